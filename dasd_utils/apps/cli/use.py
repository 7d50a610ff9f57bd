"""The commands that use a run: generate, translate, classify, animate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli import completion
from dasd_utils.apps.cli.options import (
    COUNT,
    PROCESS,
    RUNS,
    AsJson,
    Checkpoint,
    ConfigFile,
    OutputDir,
    Profile,
    Prompt,
    Seed,
    open_pipeline,
    show,
)
from dasd_utils.config import Config, resolve

commands = typer.Typer()


@commands.command(rich_help_panel=RUNS)
def generate(
    prompt: Prompt,
    checkpoint: Checkpoint = None,
    domain: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.domains,
            help="The domain to draw in, such as satellite or xray.",
            show_default="that of the prompt's token, else the base model",
        ),
    ] = None,
    num_images: Annotated[
        int, typer.Option("--num_images", min=1, metavar=COUNT, help="How many images.")
    ] = 1,
    auto_domain: Annotated[
        bool, typer.Option("--auto-domain", help="Let the classifier find the domain, or none.")
    ] = False,
    guidance: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            autocompletion=completion.guidances,
            help="cfg, domain, decoupled or unconditional.",
            show_default="as calibrated",
        ),
    ] = None,
    profile: Profile = "auto",
    config: ConfigFile = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
) -> None:
    """Draw images of a prompt, in a domain that is named or found, into <run>/generated."""
    from dasd_utils.runtime import checkpoints

    pipeline = open_pipeline(checkpoint, profile, config, output_dir)
    options = {"domain": domain, "num_images": num_images, "seed": seed, "auto_domain": auto_domain}
    options |= {"guidance": guidance}
    place = checkpoints.writable(Path(pipeline.config.output_dir).absolute())
    images, found, used = pipeline.generate(prompt, **options)
    paths = save_images(images, place / "generated", found or "base", used["seed"])
    result = {"images": [str(p) for p in paths], "domain": found, "settings": used}
    show(result, as_json, "\n".join(str(p) for p in paths))


@commands.command(rich_help_panel=RUNS)
def translate(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURE...", help="Image files, or folders of them.")
    ],
    checkpoint: Checkpoint = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="How far: 0 is the picture itself, 1 as learned.",
            show_default="as the run chooses",
        ),
    ] = None,
    profile: Profile = "auto",
    config: ConfigFile = None,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
) -> None:
    """Translate pictures by a run of the method diffusionclip, into <run>/translated."""
    from dasd_utils.papers.diffusionclip import translation
    from dasd_utils.runtime import checkpoints, images

    pipeline = open_pipeline(checkpoint, profile, config, output_dir)
    place = checkpoints.writable(Path(pipeline.config.output_dir).absolute() / "translated")
    files = images.find_image_files(pictures)
    new = translation.by_settings(pipeline, [images.open_file(file) for file in files], strength)
    paths = [place / f"{number:03d}_{file.stem}.png" for number, file in enumerate(files)]
    for path, picture in zip(paths, new, strict=True):
        picture.save(path)
    show({"images": [str(p) for p in paths]}, as_json, "\n".join(str(p) for p in paths))


@commands.command(rich_help_panel=RUNS)
def classify(
    prompt: Prompt,
    checkpoint: Checkpoint = None,
    profile: Profile = "auto",
    config: ConfigFile = None,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
) -> None:
    """Find the domain of a prompt, or none."""
    result = open_pipeline(checkpoint, profile, config, output_dir).classify_prompt(prompt)
    show(result, as_json, f"{result['best_domain'] or 'no domain'}: {result['suggested_prompt']}")


@commands.command(rich_help_panel=RUNS)
def animate(
    run: Annotated[Path, typer.Argument(metavar="RUN", autocompletion=completion.runs, help="A run folder.")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What to write: .webp, .gif or .png.",
            show_default="<run>/samples.webp",
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What stands above.", show_default="the run's profile")
    ] = None,
    width: Annotated[int, typer.Option(min=64, metavar=COUNT, help="Pixels.")] = 640,
    as_json: AsJson = False,
) -> None:
    """Make a moving picture of a run's sample grids (sample_every in the config)."""
    from dasd_utils.apps import animation

    grids, stored = animation.of_run(run), resolve(run) / "config.json"
    if label is None:
        label = f"{Config.load(stored).profile} profile" if stored.exists() else ""
    path = animation.save(grids, output or resolve(run) / "samples.webp", label, width)
    result = {"animation": str(path), "pictures": len(grids), "bytes": path.stat().st_size}
    show(result, as_json, f"{path}: {len(grids)} pictures, {result['bytes'] / 1e3:.0f} kB")


def save_images(images: Any, folder: Path, domain: str, seed: int) -> list[Path]:
    """Write PNG files named by domain, seed and number; of several processes the first one does."""
    from dasd_utils.runtime import checkpoints

    checkpoints.writable(folder)
    paths = []
    for number, image in enumerate(images if isinstance(images, list) else [images]):
        paths.append(folder / f"{domain}_{seed}_{number}.png")
        if PROCESS == 0:
            image.save(paths[-1])
    return paths
