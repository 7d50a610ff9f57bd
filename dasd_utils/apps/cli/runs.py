"""The commands that make a run and use it, from `dasd doctor` to `dasd export`, and the latent cache's."""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasd_utils.apps.cli import options
from dasd_utils.apps.cli.options import CONFIGS, ChosenRun, Settings, argument, command, option, run_folders
from dasd_utils.config import DASD, GUIDANCE, Config, DasdError, known_methods, resolve

Answer = tuple[Any, ...]  # what `command` prints
SOURCES = """auto; metadata, sidecars, labels or names; a captioning model's hub id or folder; \
"one sentence"; or "a sketch of a {label}"."""
METHOD = "How to train: dasd, domainstudio, indomain or diffusionclip."
FORMATS = "diffusers: LoRA and tokens; a1111, comfyui: for these programs; pipeline: the whole model."
DRAWN_IN = "The domain to draw in, such as satellite or xray."
RULE = "cfg, domain, decoupled or unconditional."
HOW_FAR = "How far: 0 as the base gives it, 1 as learned."
SHIPPED = "the config's run, else the shipped one"
OWN_PROMPTS = "the evaluation prompts of --domain, in turn"
OF_TOKEN = "that of the prompt's token, else the base model"


@command(options.START)
def doctor() -> Answer:
    """Look at this machine: what is installed, what can be reached, what auto would pick.

    Exit status 0 where the tiny profile can run, 1 where something it needs is missing.
    """
    from dasd_utils.apps import doctor

    rows = doctor.examine()
    ok = all(row.state != doctor.MISSING for row in rows)
    result = {"ok": ok, "rows": [dataclasses.asdict(row) for row in rows]}
    lines = [*doctor.report(rows), ""]
    if ok:
        return result, "\n".join([*lines, "The tiny profile can run here."])
    return result, "\n".join(lines), "What is marked ! is missing: the tiny profile needs it."


@command(options.START, "new-domain")
def new_domain(
    name: str = argument("Of the domain: letters, digits, '-' or '_'."),
    folder: Path = argument("Its images; nothing is written there."),
    captions: str = option("auto", SOURCES, metavar="FROM"),
    out: Path | None = option(None, "The config file.", metavar="FILE", show_default="NAME.json"),
    force: bool = options.FORCE,
    profile: str = options.PROFILE,
) -> Answer:
    """Look through a folder of images; write a config with token, captions and prompts for it."""
    from dasd_utils.apps import new_domain as proposal

    place = proposal.check_place(out or options.path(f"{name}.json"), folder, force)
    captions = captions if captions in ("auto", *proposal.SOURCES) else options.folder_or_name(captions)
    found = proposal.propose(name, folder, Settings(profile).read(), captions, progress=True)
    audit, why = found.audit, found.reasons
    result = {
        "config": str(place), "files": [str(path) for path in proposal.write(found, place, force)],
        "profile": found.profile, "domain": found.values(place)["domains"][0], "audit": audit,
        "reasons": why, "warnings": found.warnings, "next": found.next_commands(place)}  # fmt: skip
    lines = [
        f"images    {audit['images']}: {audit['train']} to train on, {audit['validation']} for validation, "
        f"{audit['test']} held out; {audit['exact_duplicates']} copies, {audit['near_duplicates']} near ones",
        "pixels    {} to {} (median {}) wide, ".format(*audit["width"][::2], audit["width"][1])
        + "{} to {} (median {}) high".format(*audit["height"][::2], audit["height"][1]),
        f"captions  {why['captions']}: {audit['captions_different']} different, "
        f"{audit['captions_missing']} missing, {audit['captions_cut']} too long",
        f"token     {found.entry['token']}, starts at {found.entry['initial_word']!r}: {why['initial_word']}",
        f"prompts   {why['prompts']}",
        *(f"warning   {text}" for text in found.warnings),
        *(f"written   {path}" for path in result["files"]),
        "next      " + "\n          ".join(result["next"]),
    ]
    return result, "\n".join(lines)


@dataclass
class Training(Settings):
    """The options of a training."""

    method: str | None = option(None, METHOD, show_default=CONFIGS, complete=lambda: [DASD, *known_methods()])
    seed: int | None = options.SEED
    output_dir: Path | None = option(None, "The run folder.", show_default=CONFIGS, complete=run_folders)
    max_steps: int | None = option(None, "Optimiser steps in all.", show_default=CONFIGS)
    resume: bool = option(False, "Go on from the newest complete checkpoint.")
    force: bool = option(False, "Train anew in the place of the run that is there.")
    auto_batch_size: bool = option(False, "As few micro-batches to a step as the GPU allows.")
    tracking: str | None = options.TRACKING

    def settings(self) -> Config:
        """Return the config of the training."""
        given = {"seed": self.seed, "max_train_steps": self.max_steps, "tracking": self.tracking}
        return self.read(self.method, output_dir=self.output_dir, **given)


@command(options.RUNS)
def train(how: Training) -> Answer:
    """Train LoRA and domain tokens, by DASD or another method."""
    config = how.settings()
    folder, history = run_training(config, how.resume, how.force, how.auto_batch_size, how.by_auto())
    last = history[-1] if history else {"step": config.training.max_train_steps}
    numbers = {name: value for name, value in last.items() if isinstance(value, int | float)}
    text = f"Trained {last['step']} steps; the adapter is in {folder}/adapter"
    return {"run": str(folder), **numbers}, text


@command(options.RUNS)
def evaluate(
    run: ChosenRun,
    seed: int | None = options.SEED,
    tracking: str | None = options.TRACKING,
    force: bool = options.FORCE,
) -> Answer:
    """Score the base, the base with style words and the run; write evaluation.json."""
    from dasd_utils import evaluation

    options.check_free(resolve(run.find()[1].output_dir) / "evaluation.json", force)
    path, rows = evaluate_run(run.open(seed=seed, tracking=tracking))
    return options.with_rows(path, rows, evaluation.table(rows))


def evaluate_run(pipeline: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Evaluate a run; write `evaluation.json` and pictures into its folder; return the file and its rows."""
    from dasd_utils import evaluation, figures
    from dasd_utils.runtime import files, tracking

    config = pipeline.config
    folder = files.output_folder(config.output_dir)
    tracking.tracker_names(config)  # or an error
    rows, images = evaluation.evaluate(config, pipeline)
    path = folder / "evaluation.json"
    if options.PROCESS > 0:
        return path, rows
    evaluation.save_results(path, config, rows)
    with tracking.open_trackers(config) as trackers:
        step = config.training.max_train_steps
        trackers.log(tracking.score_values(rows), step)
        for domain in config.domains:
            grid = {method: images[method, domain.name][:8] for method in evaluation.compared_methods(config)}
            figures.save(figures.comparison_grid(grid), folder / f"comparison_{domain.name}.png")
            trackers.show({f"comparison/{domain.name}/{method}": each for method, each in grid.items()}, step)
    return path, rows


def run_training(
    config: Config, resume: bool, force: bool = False, auto_batch_size: bool = False, fitted: bool = False
) -> tuple[Path, list[dict[str, Any]]]:
    """Train and save; return folder and history. fitted: sizes are "auto", a resumed run keeps its own."""
    with options.garbage_kept():
        from dasd_utils import latents, sampling, training
        from dasd_utils.apps import animation, batch_size
        from dasd_utils.runtime import checkpoints

    training.check_training(config)
    with checkpoints.lock_run(config):
        training.check_folder(config, resume, force)
        parts = training.setup_training(config)
        earlier = batch_size.of_checkpoint(config) if resume and (auto_batch_size or fitted) else None
        if earlier or auto_batch_size:
            config = earlier or batch_size.largest_batch(config, parts)
        _, targets, sampler = latents.create_datasets(config, parts.tokenizer)
        wanted = config.training.sample_every
        draw = animation.sample_grid(sampling.DasdPipeline(parts, config), targets) if wanted else None
        given = {"resume": resume, "force": force, "on_sample": draw}
        try:
            history = training.train(config, parts, sampler, parts.token_ids, **given)
        except KeyboardInterrupt as stop:  # typer would end without its message
            if str(stop):
                options.leave()  # all have agreed to stop
            options.fail(str(stop) or "Stopped.", 130)
        return training.save_training_results(config, parts, history), history


@command(options.RUNS)
def generate(
    run: ChosenRun,
    prompt: str | None = option(None, options.WANTED, metavar="TEXT", show_default=OWN_PROMPTS),
    domain: str | None = option(None, DRAWN_IN, show_default=OF_TOKEN, complete=lambda: options.DOMAINS),
    num_images: int = option(1, "How many images.", min=1),
    auto_domain: bool = option(False, "Let the classifier find the domain, or none."),
    guidance: str | None = option(None, RULE, show_default="as calibrated", complete=lambda: GUIDANCE),
    seed: int | None = option(None, "Seed of the noise.", show_default="a random one"),
) -> Answer:
    """Draw images of a prompt, in a domain that is named or found, into <run>/generated."""
    from dasd_utils.runtime import files

    pipeline = run.open()
    given = {"auto_domain": auto_domain, "guidance": guidance, "domain": domain}
    place = files.output_folder(pipeline.config.output_dir)
    if prompt is None:
        if domain is None:
            raise DasdError("There is no prompt: give one by --prompt, or a --domain that has its own.")
        from dasd_utils import evaluation  # takes seconds, and only this case needs it

        prompt = evaluation.load_prompts(pipeline.config, domain)
    used, images = pipeline.stream(prompt, place, num_images=num_images, seed=seed, **given)
    start = files.output_folder(place / "generated") / f"{used['domain'] or 'base'}_{used['seed']}"
    # saved as they come: what was drawn before a stop stays
    paths = [save_image(image, Path(f"{start}_{number}.png")) for number, image in enumerate(images)]
    return {"images": paths, "domain": used["domain"], "settings": used}, "\n".join(paths)


def save_image(image: Any, path: Path) -> str:
    """Write an image to a path, or a free one beside it, by the first of several processes; return that."""
    if options.PROCESS > 0:
        return str(path)
    path = options.free_path(path)
    try:
        image.save(path, format="PNG")
    except BaseException as error:  # an interrupt too
        path.unlink()
        if isinstance(error, OSError):  # of a full disk, which names no file
            raise DasdError(f"The image cannot be written to {path}: {error.strerror}.") from None
        raise
    return str(path)


@command(options.RUNS)
def translate(
    run: ChosenRun,
    pictures: list[Path] = argument("Image files, or folders of them.", metavar="PICTURE..."),
    strength: float | None = option(None, HOW_FAR, show_default="as the run chooses"),
) -> Answer:
    """Translate pictures by a run of the method diffusionclip, into <run>/translated."""
    from dasd_utils.papers.diffusionclip import translation
    from dasd_utils.runtime import files

    pipeline = run.open()
    place = files.output_folder(resolve(pipeline.config.output_dir) / "translated")
    drawn = enumerate(translation.by_settings(pipeline, pictures, strength))
    paths = [save_image(image, place / f"{number:03d}_{file.stem}.png") for number, (file, image) in drawn]
    return {"images": paths}, "\n".join(paths)


@command(options.RUNS)
def classify(run: ChosenRun, prompt: str = option(..., options.WANTED, metavar="TEXT")) -> Answer:
    """Find the domain of a prompt, or none."""
    result = run.open().classify_prompt(prompt)
    return result, f"{result['best_domain'] or 'no domain'}: {result['suggested_prompt']}"


@command(options.RUNS)
def animate(
    run: Path = options.RUN,
    output: Path | None = option(None, "Also .gif, .png.", metavar="FILE", show_default="<run>/samples.webp"),
    label: str | None = option(None, "What stands above.", metavar="TEXT", show_default="the run's profile"),
    width: int = option(640, "Pixels.", min=64),
    force: bool = options.FORCE,
) -> Answer:
    """Make a moving picture of a run's sample grids (sample_every in the config)."""
    from dasd_utils.apps import animation

    run = options.run_folder(run)
    output = options.check_free(output or run / "samples.webp", force)
    grids = animation.of_run(run)
    if label is None and (run / "config.json").exists():
        label = f"{Config.load(run / 'config.json').profile} profile"
    path = animation.save(grids, output, label or "", width)
    result = {"animation": str(path), "pictures": len(grids), "bytes": path.stat().st_size}
    return result, f"{path}: {len(grids)} pictures, {result['bytes'] / 1e3:.0f} kB"


@command(options.RUNS)
def playground(
    how: options.OfRun,
    checkpoint: Path | None = option(None, options.RUN_OR, show_default=SHIPPED, complete=run_folders),
    port: int | None = option(None, "Of the page.", min=1, max=65535, show_default="8866 or a free one"),
    browser: bool = option(True, "Open the page, where there is a browser."),
) -> None:
    """Serve the playground at an address of this machine: prompts, domains, guidance, images."""
    from dasd_utils import sampling
    from dasd_utils.apps.playground import form
    from dasd_utils.runtime import checkpoints

    if checkpoint is None:  # as a lesson would find it
        settings = how.read()
        folder = checkpoints.find_trained(settings)
    else:
        folder, adapter = sampling.run_places(checkpoint)
        if not adapter.is_dir():
            raise DasdError(f"There is no adapter in {folder}.")
        _, settings = ChosenRun(**vars(how), checkpoint=checkpoint).find()
    form.serve(folder, settings, port, browser)


@command(options.SHARE)
def export(
    how: options.OfRun,
    run: Path = options.RUN,
    out: Path = argument("A folder that is new or empty."),
    kind: str = option("diffusers", FORMATS, "--format"),
    name: str | None = option(None, "Of LoRA and embeddings; a1111, comfyui.", show_default="the run's"),
    samples: bool = option(True, "Draw a picture for the model card."),
    force: bool = option(False, "Replace an earlier export."),
) -> Answer:
    """Write a run's adapter in the files that other programs read, with a model card."""
    from dasd_utils import evaluation, sampling
    from dasd_utils.apps import export

    own, adapter = sampling.run_places(run)
    name = name or own.name
    export.check_export(adapter, out, kind, name)
    options.check_free(out / "README.md", force)
    scores = own / "evaluation.json"
    rows = evaluation.load_results(scores)["rows"] if scores.exists() else []
    if not all(isinstance(row, dict) and row.keys() >= {*export.SHOWN} for row in rows):
        raise DasdError(f"A row of {scores} lacks one of {', '.join(export.SHOWN)}: evaluate the run again.")
    pipeline = ChosenRun(**vars(how), checkpoint=run).open()
    drawn = export.draw_samples(pipeline) if samples else None
    done = export.export(adapter, out, kind, pipeline.config, name, rows, drawn)
    upload = shlex.join(["hf", "upload", "OWNER/NAME", str(out)])
    advice = f"To publish it: {upload} (add --private to keep it to yourself)"
    lines = [*(str(out / file) for file in done.files), advice]
    return {"folder": str(out), **done._asdict(), "upload": upload}, "\n".join(lines)


@command(options.UPKEEP)
def encode(
    how: Settings, workers: int = options.WORKERS, scheduler: str | None = options.SCHEDULER
) -> Answer:
    """Fill the latent cache. Processes that share it, here or elsewhere, divide the work."""
    from dasd_utils import latents, training
    from dasd_utils.apps.workers import run_all
    from dasd_utils.runtime import latent_cache

    settings = how.read()
    if workers > 1 or scheduler:
        path = settings.save(resolve(settings.output_dir) / "encode_config.json")
        run_all([["encode", "--config", str(path)]] * workers, workers, scheduler)
    parts = training.setup_training(settings)
    *_, sampler = latents.create_datasets(settings, parts.tokenizer)
    sampler.encode(parts.vae)
    return in_cache(settings, latent_cache.stored(settings), "There are")


@command(options.UPKEEP)
def clean(how: Settings) -> Answer:
    """Remove the cached latents and source features of all runs."""
    from dasd_utils.runtime import latent_cache

    settings = how.read()
    return in_cache(settings, latent_cache.clear(settings), "Removed")


def in_cache(config: Config, found: tuple[int, int], verb: str) -> Answer:
    """Return the answer of shards and bytes of the latent cache."""
    place = str(resolve(config.data.cache_dir))
    result = {"cache_dir": place, "shards": found[0], "bytes": found[1]}
    return result, f"{verb} {found[0]} shards, {found[1] / 1e6:.1f} MB: {place}"
