"""The commands that use a run: generate, translate, classify, animate, playground, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli import options
from dasd_utils.apps.cli.options import option
from dasd_utils.config import GUIDANCE, Config, resolve
from dasd_utils.profiles import PROFILES

commands = typer.Typer()
DOMAINS = dict.fromkeys(domain["name"] for profile in PROFILES.values() for domain in profile["domains"])
Domain = option(
    str | None,
    "The domain to draw in, such as satellite or xray.",
    show_default="that of the prompt's token, else the base model",
    complete=lambda: DOMAINS,
)
Guidance = option(
    str | None,
    "cfg, domain, decoupled or unconditional.",
    metavar="RULE",
    show_default="as calibrated",
    complete=lambda: GUIDANCE,
)
NumImages = option(int, "How many images.", "--num_images", min=1)
AutoDomain = option(bool, "Let the classifier find the domain, or none.", "--auto-domain")
Pictures = Annotated[
    list[Path], typer.Argument(metavar="PICTURE...", help="Image files, or folders of them.")
]
Strength = option(
    float | None,
    "How far: 0 is the picture itself, 1 as learned.",
    metavar="X",
    show_default="as the run chooses",
)
Animation = option(
    Path | None, "What to write: .webp, .gif or .png.", metavar="FILE", show_default="<run>/samples.webp"
)
Label = option(str | None, "What stands above.", metavar="TEXT", show_default="the run's profile")
Width = option(int, "Pixels.", min=64)
Port = option(int | None, "Of the page's address.", min=1, max=65535, show_default="8866 or a free one")
Browser = option(bool, "Open the page, where there is a browser.")
Adapter = Annotated[
    Path, typer.Argument(help="A run folder or an adapter folder.", autocompletion=options.offer_runs)
]
ExportDir = Annotated[Path, typer.Argument(help="A folder that is new, empty, or of an earlier export.")]
Format = option(
    str,
    "diffusers: LoRA and tokens; a1111, comfyui: for these programs; pipeline: the whole model.",
    "--format",
)
Name = option(str | None, "Of the LoRA, and before the embeddings' words.", show_default="the run's")
Samples = option(bool, "Draw a picture for the model card.")


@commands.command(rich_help_panel=options.RUNS)
def generate(
    prompt: options.Prompt,
    checkpoint: options.Checkpoint = None,
    domain: Domain = None,
    num_images: NumImages = 1,
    auto_domain: AutoDomain = False,
    guidance: Guidance = None,
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    seed: options.Seed = None,
    output_dir: options.OutputDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw images of a prompt, in a domain that is named or found, into <run>/generated."""
    from dasd_utils.runtime import checkpoints

    pipeline = options.open_pipeline(checkpoint, profile, config, output_dir)
    place = checkpoints.writable(Path(pipeline.config.output_dir).absolute())
    given = {"num_images": num_images, "seed": seed, "auto_domain": auto_domain, "guidance": guidance}
    images, found, used = pipeline.generate(prompt, domain=domain, **given)
    listed = images if isinstance(images, list) else [images]
    names = [f"{found or 'base'}_{used['seed']}_{number}.png" for number in range(len(listed))]
    paths = save_images(listed, place / "generated", names)
    options.show({"images": paths, "domain": found, "settings": used}, as_json, "\n".join(paths))


def save_images(images: list[Any], folder: Path, names: list[str]) -> list[str]:
    """Write images into a folder, in one of several processes; return the paths."""
    from dasd_utils.runtime import checkpoints

    checkpoints.writable(folder)
    paths = [folder / name for name in names]
    if options.PROCESS == 0:
        for path, image in zip(paths, images, strict=True):
            image.save(path)
    return [str(path) for path in paths]


@commands.command(rich_help_panel=options.RUNS)
def translate(
    pictures: Pictures,
    checkpoint: options.Checkpoint = None,
    strength: Strength = None,
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    output_dir: options.OutputDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Translate pictures by a run of the method diffusionclip, into <run>/translated."""
    from dasd_utils.papers.diffusionclip import translation
    from dasd_utils.runtime import checkpoints, images

    pipeline = options.open_pipeline(checkpoint, profile, config, output_dir)
    place = checkpoints.writable(Path(pipeline.config.output_dir).absolute() / "translated")
    files = images.find_image_files(pictures)
    new = translation.by_settings(pipeline, [images.open_file(file) for file in files], strength)
    paths = save_images(new, place, [f"{number:03d}_{file.stem}.png" for number, file in enumerate(files)])
    options.show({"images": paths}, as_json, "\n".join(paths))


@commands.command(rich_help_panel=options.RUNS)
def classify(
    prompt: options.Prompt,
    checkpoint: options.Checkpoint = None,
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    output_dir: options.OutputDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the domain of a prompt, or none."""
    result = options.open_pipeline(checkpoint, profile, config, output_dir).classify_prompt(prompt)
    options.show(result, as_json, f"{result['best_domain'] or 'no domain'}: {result['suggested_prompt']}")


@commands.command(rich_help_panel=options.RUNS)
def animate(
    run: options.Run,
    output: Animation = None,
    label: Label = None,
    width: Width = 640,
    as_json: options.AsJson = False,
) -> None:
    """Make a moving picture of a run's sample grids (sample_every in the config)."""
    from dasd_utils.apps import animation

    grids = animation.of_run(run)
    stored = resolve(run) / "config.json"
    if label is None:
        label = f"{Config.load(stored).profile} profile" if stored.exists() else ""
    path = animation.save(grids, output or resolve(run) / "samples.webp", label, width)
    result = {"animation": str(path), "pictures": len(grids), "bytes": path.stat().st_size}
    options.show(result, as_json, f"{path}: {len(grids)} pictures, {result['bytes'] / 1e3:.0f} kB")


@commands.command(rich_help_panel=options.RUNS)
def playground(
    checkpoint: options.Checkpoint = None,
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    port: Port = None,
    browser: Browser = True,
) -> None:
    """Serve the playground at an address of this machine: prompts, domains, guidance, images."""
    from dasd_utils.apps.playground import server

    server.serve(*find_run(checkpoint, profile, config), port, browser)


def find_run(checkpoint: Path | None, profile: str, config: Path | None) -> tuple[Path, Config]:
    """Return the run of the command line, or the one that a lesson would take, and its config."""
    from dasd_utils import adapters, sampling
    from dasd_utils.runtime import checkpoints

    if checkpoint is None:
        settings = options.read_config(profile, config)
        return checkpoints.find_run(settings), settings
    checkpoint = resolve(checkpoint)
    adapters.read_summary(checkpoint / "adapter" if (checkpoint / "adapter").is_dir() else checkpoint)
    return options.run_settings(sampling.run_folder(checkpoint), profile, config, None)


@commands.command(rich_help_panel=options.SHARE)
def export(
    run: Adapter,
    out: ExportDir,
    kind: Format = "diffusers",
    name: Name = None,
    samples: Samples = True,
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a run's adapter in the files that other programs read, with a model card."""
    from dasd_utils import sampling
    from dasd_utils.apps import export, model_card

    folder = resolve(run)
    own = sampling.run_folder(folder)
    adapter = folder / "adapter" if (folder / "adapter").is_dir() else folder
    export.check_export(adapter, out, kind, name or own.name)
    pipeline = options.open_pipeline(folder, profile, config, None)
    drawn = export.draw_samples(pipeline) if samples else None
    rows = export.evaluation_rows(own)
    done = export.export(adapter, out, kind, pipeline.config, name or own.name, rows, drawn)
    upload = model_card.UPLOAD.format(folder=out)
    advice = f"To publish it: {upload} (add --private to keep it to yourself)"
    lines = [*(str(out / file) for file in done.files), advice]
    options.show({"folder": str(out), **vars(done), "upload": upload}, as_json, "\n".join(lines))
