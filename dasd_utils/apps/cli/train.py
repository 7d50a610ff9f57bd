"""The commands that make a run and measure it: train, evaluate, all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from dasd_utils.apps.cli import options
from dasd_utils.config import Config

commands = typer.Typer()
History = list[dict[str, Any]]


def training_command(name: str, work: Callable[..., tuple[dict[str, Any], str]]) -> None:
    """Add a command with the options of a training.

    work(config, resume, auto_batch_size, fitted) does what its docstring says, as `run_training` takes these,
    and returns the result for a script and the text for a person.
    """

    @commands.command(name, help=work.__doc__, rich_help_panel=options.RUNS)
    def command(
        profile: options.Profile = "auto",
        config: options.ConfigFile = None,
        method: options.Method = None,
        seed: options.Seed = None,
        output_dir: options.OutputDir = None,
        max_steps: options.MaxSteps = None,
        resume: options.Resume = False,
        auto_batch_size: options.AutoBatchSize = False,
        tracking: options.Tracking = None,
        as_json: options.AsJson = False,
    ) -> None:
        given = {"seed": seed, "output_dir": output_dir, "max_train_steps": max_steps, "tracking": tracking}
        settings = options.read_config(profile, config, method, **given)
        result, text = work(settings, resume, auto_batch_size, by_auto(profile, config))
        options.show(result, as_json, text)


def train(config: Config, *how: bool) -> tuple[dict[str, Any], str]:
    """Train LoRA and domain tokens, by DASD or another method."""
    folder, history = run_training(config, *how)
    newest = history[-1] if history else {"step": config.training.max_train_steps}
    last = {name: value for name, value in newest.items() if isinstance(value, int | float)}
    text = f"Trained {last['step']} steps; the adapter is in {folder}/adapter"
    return {"run": str(folder), **last}, text


def train_and_evaluate(config: Config, *how: bool) -> tuple[dict[str, Any], str]:
    """Train and evaluate in one go, with a picture of every domain."""
    from dasd_utils import evaluation, sampling

    for domain in config.domains:  # missing prompts are to be known before hours of training
        evaluation.load_prompts(config, domain.name)
    folder, _ = run_training(config, *how)
    result, text = _evaluate(options.shared(sampling.load_trained_pipeline(folder, config)))
    return {"run": str(folder), **result}, text


training_command("train", train)


@commands.command(rich_help_panel=options.RUNS)
def evaluate(
    checkpoint: options.Checkpoint = None,
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    seed: options.Seed = None,
    output_dir: options.OutputDir = None,
    tracking: options.Tracking = None,
    as_json: options.AsJson = False,
) -> None:
    """Score the base, the base with style words and the run; write evaluation.json."""
    pipeline = options.open_pipeline(checkpoint, profile, config, output_dir, seed=seed, tracking=tracking)
    result, text = _evaluate(pipeline)
    options.show(result, as_json, text)


training_command("all", train_and_evaluate)


def _evaluate(pipeline: Any) -> tuple[dict[str, Any], str]:
    from dasd_utils import evaluation

    path, rows = evaluation.evaluate_run(pipeline)
    return {"results": str(path), "rows": rows}, f"{evaluation.table(rows)}\n\n{path}"


def by_auto(profile: str, file: Path | None) -> bool:
    """Return whether "auto" chose the profile, and with it the batch sizes that the file does not name."""
    if file is None:
        return profile == "auto"
    return json.loads(file.read_text(encoding="utf8")).get("profile", "auto") == "auto"


def run_training(
    config: Config, resume: bool, auto_batch_size: bool, fitted: bool = False
) -> tuple[Path, History]:
    """Train and save; return the run folder and the history.

    fitted: "auto" chose the sizes of micro-batches for this machine, and a resumed run keeps its own.
    """
    from dasd_utils import training
    from dasd_utils.runtime import checkpoints

    training.check_training(config)
    with checkpoints.lock_run(config):
        return _train(config, resume, auto_batch_size, fitted)


def _train(config: Config, resume: bool, auto_batch_size: bool, fitted: bool) -> tuple[Path, History]:
    from dasd_utils import latents, training
    from dasd_utils.apps import animation, batch_size

    parts = training.setup_training(config)
    earlier = batch_size.of_checkpoint(config) if resume and (auto_batch_size or fitted) else None
    if earlier or auto_batch_size:
        config = earlier or batch_size.largest_batch(config, parts)
    _, targets, sampler = latents.create_datasets(config, parts.tokenizer)
    watch = {}
    if config.training.sample_every:
        watch["on_sample"] = animation.sample_grid(config, parts, targets)
    try:
        history = training.train(config, parts, sampler, parts.token_ids, resume=resume, **watch)
    except KeyboardInterrupt as stop:  # typer would end without its message
        if str(stop):
            options.leave()  # all have agreed to stop
        options.fail(str(stop) or "Stopped.", 130)
    return training.save_training_results(config, parts, history), history
