"""The commands that make a run and measure it: train, evaluate, all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from dasd_utils.apps.cli.options import (
    PROCESS,
    RUNS,
    AsJson,
    AutoBatchSize,
    Checkpoint,
    ConfigFile,
    MaxSteps,
    Method,
    OutputDir,
    Profile,
    Resume,
    Seed,
    Tracking,
    fail,
    leave,
    open_pipeline,
    read_config,
    shared,
    show,
)
from dasd_utils.config import Config, resolve

commands = typer.Typer()


@commands.command(rich_help_panel=RUNS)
def train(
    profile: Profile = "auto",
    config: ConfigFile = None,
    method: Method = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
    max_steps: MaxSteps = None,
    resume: Resume = False,
    auto_batch_size: AutoBatchSize = False,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Train LoRA and domain tokens, by DASD or another method."""
    given = {"seed": seed, "output_dir": output_dir, "max_train_steps": max_steps, "tracking": tracking}
    settings = read_config(profile, config, method, **given)
    folder, history = run_training(settings, resume, auto_batch_size, by_auto(profile, config))
    newest = history[-1] if history else {"step": settings.training.max_train_steps}
    last = {k: v for k, v in newest.items() if isinstance(v, int | float)}
    show(
        {"run": str(folder), **last},
        as_json,
        f"Trained {last['step']} steps; the adapter is in {folder}/adapter",
    )


@commands.command(rich_help_panel=RUNS)
def evaluate(
    checkpoint: Checkpoint = None,
    profile: Profile = "auto",
    config: ConfigFile = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Score the base, the base with style words and the run; write evaluation.json."""
    pipeline = open_pipeline(checkpoint, profile, config, output_dir, seed=seed, tracking=tracking)
    path, rows = run_evaluation(pipeline)
    from dasd_utils import evaluation

    show({"results": str(path), "rows": rows}, as_json, f"{evaluation.table(rows)}\n\n{path}")


@commands.command(name="all", rich_help_panel=RUNS)
def run_all(
    profile: Profile = "auto",
    config: ConfigFile = None,
    method: Method = None,
    seed: Seed = None,
    output_dir: OutputDir = None,
    max_steps: MaxSteps = None,
    resume: Resume = False,
    auto_batch_size: AutoBatchSize = False,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Train and evaluate in one go, with a picture of every domain."""
    given = {"seed": seed, "output_dir": output_dir, "max_train_steps": max_steps, "tracking": tracking}
    settings = read_config(profile, config, method, **given)
    from dasd_utils import evaluation, sampling

    for domain in settings.domains:  # missing prompts are to be known before hours of training
        evaluation.load_prompts(settings, domain.name)
    folder, _ = run_training(settings, resume, auto_batch_size, by_auto(profile, config))
    path, rows = run_evaluation(shared(sampling.load_trained_pipeline(folder, settings)))
    show(
        {"run": str(folder), "results": str(path), "rows": rows},
        as_json,
        f"{evaluation.table(rows)}\n\n{path}",
    )


def by_auto(profile: str, file: Path | None) -> bool:
    """Return whether "auto" chose the profile, and with it the sizes that the file does not name."""
    if file is None:
        return profile == "auto"
    return json.loads(file.read_text(encoding="utf8")).get("profile", "auto") == "auto"


def run_training(
    config: Config, resume: bool, auto_batch_size: bool, fitted: bool = False
) -> tuple[Path, list[dict[str, Any]]]:
    """Train and save; return the run folder and the history.

    fitted: the sizes of micro-batches are those that "auto" chose here, and a resumed run keeps its own.
    """
    from dasd_utils import training
    from dasd_utils.runtime import checkpoints

    training.check_training(config)
    with checkpoints.lock_run(config):
        return _run_training(config, resume, auto_batch_size, fitted)


def _run_training(
    config: Config, resume: bool, auto_batch_size: bool, fitted: bool
) -> tuple[Path, list[dict[str, Any]]]:
    from dasd_utils import latents, training
    from dasd_utils.apps import batch_size

    parts = training.setup_training(config)
    earlier = batch_size.of_checkpoint(config) if resume and (auto_batch_size or fitted) else None
    if earlier or auto_batch_size:
        config = earlier or batch_size.largest_batch(config, parts)
    _, targets, sampler = latents.create_datasets(config, parts.tokenizer)
    watch = {"on_sample": sample_grid(config, parts, targets)} if config.training.sample_every else {}
    try:
        history = training.train(config, parts, sampler, parts.token_ids, resume=resume, **watch)
    except KeyboardInterrupt as stop:  # typer would end without its message
        if str(stop):
            leave()  # all have agreed to stop
        fail(str(stop) or "Stopped.", 130)
    return training.save_training_results(config, parts, history), history


def sample_grid(config: Config, parts: Any, targets: dict[str, Any]) -> Callable[[int], dict[str, list[Any]]]:
    """Return what draws `samples/step-<step>.png` in the run folder: a row for a domain's first captions."""
    from dasd_utils import figures, sampling

    pipeline = sampling.DasdPipeline(parts, config)
    # behind the token, as an image may have no caption
    prompts = {name: [data.prompt(i) for i in range(min(4, len(data)))] for name, data in targets.items()}

    def draw(step: int) -> dict[str, list[Any]]:
        rows = {}
        for name, texts in prompts.items():
            rows[name], *_ = pipeline.generate(texts, name, seed=list(range(len(texts))))
        path = resolve(config.output_dir) / "samples" / f"step-{step:06d}.png"
        figures.save(figures.comparison_grid(rows), path)
        return {f"samples/{name}": pictures for name, pictures in rows.items()}

    return draw


def run_evaluation(pipeline: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Evaluate, write the table and the comparison picture into the run folder."""
    from dasd_utils import evaluation, figures
    from dasd_utils.runtime import checkpoints, tracking

    config = pipeline.config
    checkpoints.writable(config.output_dir)
    tracking.check_tracking(config)
    rows, images = evaluation.evaluate(config, pipeline, progress=PROCESS == 0)
    folder = resolve(config.output_dir)
    path = folder / "evaluation.json"
    if PROCESS == 0:
        evaluation.save_results(path, config, rows)
        grids = {
            domain.name: {
                method: images[method, domain.name][:8] for method in evaluation.compared_methods(config)
            }
            for domain in config.domains
        }
        for name, grid in grids.items():
            figures.save(figures.comparison_grid(grid), folder / f"comparison_{name}.png")
        with tracking.open_trackers(config) as trackers:
            step = config.training.max_train_steps
            trackers.log(tracking.score_values(rows), step)
            for name, grid in grids.items():
                trackers.show({f"comparison/{name}/{method}": each for method, each in grid.items()}, step)
    return path, rows
