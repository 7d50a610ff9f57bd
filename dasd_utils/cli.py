"""The command `dasd`: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.cli_options import (
    DEBUG,
    PROCESS,
    AsJson,
    AutoBatchSize,
    Checkpoint,
    ConfigFile,
    MaxSteps,
    Method,
    OutputDir,
    Profile,
    Prompt,
    Seed,
    fail,
    open_pipeline,
    read_config,
    shared,
    show,
)
from dasd_utils.cli_share import commands as share_commands
from dasd_utils.cli_study import commands as study_commands
from dasd_utils.config import ROOT, Config, DasdError, resolve

app = typer.Typer(
    help="Domain-adaptive Stable Diffusion: train, evaluate, generate, classify.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
log = logging.getLogger(__name__)


@app.command()
def train(
    profile: Profile = "auto",
    config: ConfigFile = None,
    method: Method = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
    max_steps: MaxSteps = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    auto_batch_size: AutoBatchSize = False,
    as_json: AsJson = False,
) -> None:
    """Train the adapter, LoRA and domain tokens, by DASD or another method."""
    given = {"seed": seed, "output_dir": output_dir, "max_train_steps": max_steps}
    settings = read_config(profile, config, method, **given)
    folder, history = run_training(settings, resume, auto_batch_size)
    newest = history[-1] if history else {"step": settings.training.max_train_steps}
    last = {k: v for k, v in newest.items() if isinstance(v, int | float)}
    show(
        {"run": str(folder), **last},
        as_json,
        f"Trained {last['step']} steps; the adapter is in {folder}/adapter",
    )


@app.command()
def encode(
    profile: Profile = "auto",
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Fill the latent cache; several processes, here or on machines that share it, divide the work."""
    from dasd_utils import cache, data, models, precision

    settings = read_config(profile, config)
    parts = models.load_parts(settings)
    models.add_domain_tokens(parts, settings.domains)  # captions are counted with them
    *_, sampler = data.create_datasets(settings, parts.tokenizer)
    sampler.encode(parts.vae, precision.default_device())
    show_cache(settings, cache.stored(settings), "There are", as_json)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    steps: Annotated[int, typer.Option(min=1, help="First steps to do again.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Check a run: its files against their hashes, its first steps done again against its history."""
    from dasd_utils import verification

    rows = verification.verify(run, steps)
    lines = [f"{'ok' if row['ok'] else 'NOT OK':6}  {row['what']}: {row['found']}" for row in rows]
    show(rows, as_json, "\n".join(lines))
    if not all(row["ok"] for row in rows):
        raise DasdError(f"{run} does not agree with what it says of itself.")


@app.command()
def clean(profile: Profile = "auto", config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Remove every cached latent; nothing else is touched."""
    from dasd_utils import cache

    settings = read_config(profile, config)
    show_cache(settings, cache.clear(settings), "Removed", as_json)


def show_cache(settings: Config, found: tuple[int, int], what: str, as_json: bool) -> None:
    """Print shards and bytes of the latent cache."""
    place, (count, size) = str(resolve(settings.data.cache_dir)), found
    text = f"{what} {count} shards, {size / 1e6:.1f} MB: {place}"
    show({"cache_dir": place, "shards": count, "bytes": size}, as_json, text)


@app.command()
def evaluate(
    checkpoint: Checkpoint = None,
    profile: Profile = "auto",
    config: ConfigFile = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
) -> None:
    """Score base, base with style words and DASD on held-out images; write evaluation.json."""
    pipeline = open_pipeline(checkpoint, profile, config, output_dir, seed=seed)
    path, rows = run_evaluation(pipeline)
    from dasd_utils import evaluation

    show({"results": str(path), "rows": rows}, as_json, f"{evaluation.table(rows)}\n\n{path}")


@app.command()
def generate(
    prompt: Prompt,
    checkpoint: Checkpoint = None,
    domain: Annotated[str | None, typer.Option(help="satellite, xray, … ; none: the base model.")] = None,
    num_images: Annotated[int, typer.Option("--num_images", "--num-images")] = 1,
    auto_domain: Annotated[bool, typer.Option("--auto-domain", "--auto_domain")] = False,
    guidance: Annotated[
        str | None, typer.Option(help="cfg, domain, decoupled or unconditional; default: as calibrated.")
    ] = None,
    profile: Profile = "auto",
    config: ConfigFile = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
) -> None:
    """Generate images of a prompt, in a domain that is named or found."""
    from dasd_utils import checkpoints

    pipeline = open_pipeline(checkpoint, profile, config, output_dir)
    options = {"domain": domain, "num_images": num_images, "seed": seed, "auto_domain": auto_domain}
    options |= {"guidance": guidance}
    place = checkpoints.writable(Path(pipeline.config.output_dir).absolute())
    images, found, used = pipeline.generate(prompt, **options)
    paths = save_images(images, place / "generated", found or "base", used["seed"])
    result = {"images": [str(p) for p in paths], "domain": found, "settings": used}
    show(result, as_json, "\n".join(str(p) for p in paths))


@app.command()
def translate(
    pictures: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    checkpoint: Checkpoint = None,
    strength: Annotated[
        float | None, typer.Option(help="0: the picture itself; 1: as learned. Default: as the run chooses.")
    ] = None,
    profile: Profile = "auto",
    config: ConfigFile = None,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
) -> None:
    """Translate pictures by a run of diffusionclip; write them into <run>/translated."""
    from dasd_utils import checkpoints, images, translated

    pipeline = open_pipeline(checkpoint, profile, config, output_dir)
    place = checkpoints.writable(Path(pipeline.config.output_dir).absolute() / "translated")
    files = images.files(pictures)
    new = translated.by_settings(pipeline, [images.open_file(file) for file in files], strength)
    paths = [place / f"{number:03d}_{file.stem}.png" for number, file in enumerate(files)]
    for path, picture in zip(paths, new, strict=True):
        picture.save(path)
    show({"images": [str(p) for p in paths]}, as_json, "\n".join(str(p) for p in paths))


@app.command()
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


@app.command(name="all")
def run_all(
    profile: Profile = "auto",
    config: ConfigFile = None,
    method: Method = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
    max_steps: MaxSteps = None,
    resume: bool = False,
    auto_batch_size: AutoBatchSize = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate, and draw one picture of every domain side by side."""
    given = {"seed": seed, "output_dir": output_dir, "max_train_steps": max_steps}
    settings = read_config(profile, config, method, **given)
    from dasd_utils import evaluation, sampling

    for domain in settings.domains:  # missing prompts are to be known before hours of training
        evaluation.load_prompts(settings, domain.name)
    folder, _ = run_training(settings, resume, auto_batch_size)
    path, rows = run_evaluation(shared(sampling.load_trained_pipeline(folder, settings)))
    show(
        {"run": str(folder), "results": str(path), "rows": rows},
        as_json,
        f"{evaluation.table(rows)}\n\n{path}",
    )


def measure_base(base: str, seed: int, num_images: int) -> str:
    """Write data/results/pretrain.json, or beside a base of another folder, and return its table."""
    from dasd_utils import evaluation
    from dasd_utils.pretrain.evaluate import evaluate as measure

    place, default = resolve(base).resolve(), resolve("data/tiny-sd")
    name = str(place.relative_to(ROOT) if place.is_relative_to(ROOT) else place)
    settings = Config.setup("tiny", seed=seed, base=name, clip=f"{name}/clip")
    rows = measure(settings, num_images)
    file = resolve("data/results/pretrain.json") if place == default else place / "scores.json"
    path = evaluation.save_results(file, settings, rows)
    return "\n".join([*(f"{r['metric']:26} {r['domain']:18} {_interval(r)}" for r in rows), str(path)])


def _interval(row: dict) -> str:
    return f"{row['value']:8.3f} [{row['low']:.3f}, {row['high']:.3f}] n = {row['n']}"


@app.command()
def pretrain(
    stage: Annotated[list[str] | None, typer.Option(help="Only these stages; default: all.")] = None,
    output_dir: Annotated[str, typer.Option("--output_dir", "--output-dir")] = "data/tiny-sd",
    seed: int = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads of this process.")] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Measure the finished base instead.")] = False,
    num_images: Annotated[
        int, typer.Option("--num_images", "--num-images", help="Samples a domain to measure.")
    ] = 500,
) -> None:
    """Build the embedded base model from the toy world, going on where it stopped; or measure it."""
    import torch

    from dasd_utils import pretrain as stages

    if threads:
        torch.set_num_threads(threads)
    if evaluate and stage:
        raise DasdError("--evaluate measures a finished base; it takes no --stage.")
    if evaluate:
        typer.echo(measure_base(output_dir, seed, num_images))
        return
    settings = stages.PretrainConfig(seed=seed, output_dir=output_dir)
    typer.echo(stages.pretrain(settings, tuple(stage) if stage else stages.STAGES))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def notebooks(
    context: typer.Context,
    profile: Profile = "auto",
    output_dir: Annotated[Path, typer.Option("--output_dir", "--output-dir")] = Path("data/runs/course"),
    only: Annotated[str | None, typer.Option(help="Comma-separated beginnings of names: 03,04")] = None,
    seed: Seed = None,
    update: Annotated[bool, typer.Option(help="Make the copies the tracked notebooks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the notebooks in order through papermill; `-p NAME VALUE` sets a parameter."""
    from dasd_utils import batch

    values = {"profile": read_config(profile, None).profile, **read_parameters(context.args)}
    place = output_dir.resolve()
    if place.is_relative_to(ROOT):  # results name their run: a path of this machine means nothing elsewhere
        place = place.relative_to(ROOT)
    values |= {"output_dir": str(place), **({"seed": seed} if seed is not None else {})}
    done = batch.run(
        batch.find(only.split(",") if only else None),
        output_dir,
        values,
        report=lambda one: typer.echo(f"{one.name}: {one.seconds:.0f} s", err=True),
    )
    if update:
        batch.store(done)
    rows = [{"notebook": one.name, "path": str(one.path), "seconds": round(one.seconds, 1)} for one in done]
    total = sum(one.seconds for one in done)
    show(rows, as_json, f"{len(done)} notebooks in {total:.0f} s: {Path(output_dir).resolve()}")


def read_parameters(words: list[str]) -> dict[str, Any]:
    """Read `-p NAME VALUE` triples; a value that is JSON (a number, true, a list) is read as such."""
    values, rest = {}, list(words)
    while rest:
        if rest[0] not in ("-p", "--parameter") or len(rest) < 3:
            raise DasdError(f"Unknown option {rest[0]!r}. Parameters are given as: -p NAME VALUE")
        _, name, text = rest[:3]
        rest = rest[3:]
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def run_training(config: Config, resume: bool, auto_batch_size: bool) -> tuple[Path, list[dict[str, Any]]]:
    """Train and save; return the run folder and the history."""
    from dasd_utils import runs, training

    training.check(config)
    with runs.alone(config):
        return _run_training(config, resume, auto_batch_size)


def _run_training(config: Config, resume: bool, auto_batch_size: bool) -> tuple[Path, list[dict[str, Any]]]:
    from dasd_utils import batch_size, data, training

    parts = training.setup_training(config)
    if auto_batch_size:
        earlier = batch_size.of_checkpoint(config) if resume else None
        config = earlier or batch_size.largest_batch(config, parts)
    _, targets, sampler = data.create_datasets(config, parts.tokenizer)
    watch = {"on_sample": sample_grid(config, parts, targets)} if config.training.sample_every else {}
    try:
        history = training.train(config, parts, sampler, parts.token_ids, resume=resume, **watch)
    except KeyboardInterrupt as stop:  # typer would end without its message
        if str(stop):
            _leave()  # all have agreed to stop
        fail(str(stop) or "Stopped.", 130)
    return training.save_training_results(config, parts, history), history


def sample_grid(config: Config, parts: Any, targets: dict[str, Any]) -> Callable[[int], None]:
    """Return what draws `samples/step-<step>.png` in the run folder: a row for a domain's first captions."""
    from dasd_utils import figures, sampling

    pipeline = sampling.DasdPipeline(parts, config)
    # behind the token, as an image may have no caption
    prompts = {name: [data.prompt(i) for i in range(min(4, len(data)))] for name, data in targets.items()}

    def draw(step: int) -> None:
        rows = {}
        for name, texts in prompts.items():
            rows[name], *_ = pipeline.generate(texts, name, seed=list(range(len(texts))))
        path = resolve(config.output_dir) / "samples" / f"step-{step:06d}.png"
        figures.save(figures.comparison_grid(rows), path)

    return draw


def run_evaluation(pipeline: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Evaluate, write the table and the comparison picture into the run folder."""
    from dasd_utils import checkpoints, evaluation, figures, study

    config = pipeline.config
    checkpoints.writable(config.output_dir)
    rows, images = study.evaluate(config, pipeline, progress=PROCESS == 0)
    folder = resolve(config.output_dir)
    path = folder / "evaluation.json"
    if PROCESS == 0:
        evaluation.save_results(path, config, rows)
        for domain in config.domains:
            grid = {method: images[method, domain.name][:8] for method in study.compared(config)}
            figures.save(figures.comparison_grid(grid), folder / f"comparison_{domain.name}.png")
    return path, rows


def save_images(images: Any, folder: Path, domain: str, seed: int) -> list[Path]:
    """Write PNG files named by domain, seed and number; of several processes the first one does."""
    from dasd_utils import checkpoints

    checkpoints.writable(folder)
    paths = []
    for number, image in enumerate(images if isinstance(images, list) else [images]):
        paths.append(folder / f"{domain}_{seed}_{number}.png")
        if PROCESS == 0:
            image.save(paths[-1])
    return paths


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Domain-adaptive Stable Diffusion: train, evaluate, generate, classify."""
    logging.getLogger("dasd_utils").setLevel(logging.INFO if PROCESS == 0 else logging.ERROR)
    DEBUG.update(asked=debug)


app.add_typer(share_commands)
app.add_typer(study_commands)


def main() -> None:
    """Run the command; an error is one line: exit status 1 for the user's, 2 for the program's own."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    try:
        app()
    except SystemExit as done:
        if not done.code and "RANK" in os.environ:
            _leave()
        raise
    except DasdError as error:
        fail(str(error), 1)
    except Exception as error:
        fail(f"{type(error).__name__}: {error} (a fault of the program: `dasd --debug ...` says where)", 2)


def _leave() -> None:
    from dasd_utils import processes

    processes.end()


if __name__ == "__main__":
    main()
