"""What the commands share: their options, the config, one way to show a result and to fail."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dasd_utils.apps.cli import completion
from dasd_utils.config import Config, resolve

DEBUG = {"asked": False}
PROCESS = int(os.environ.get("RANK", 0))  # of those that `accelerate launch` started
CONFIGS, COUNT = "the config's", "N"  # shown as a default, as a value

# what the commands are listed under
START, RUNS, SHARE = "Start here", "Train a model and use it", "Hand it to others"
STUDY, UPKEEP = "Study methods", "Build and look after"

Profile = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completion.profiles,
        help="tiny, sd15 or auto: sd15 where a GPU has 8 GB or more, else tiny.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="JSON of the fields that differ from the profile's."),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=completion.methods,
        help="How to train: dasd, domainstudio, indomain or diffusionclip.",
        show_default=CONFIGS,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar=COUNT, help="What all that is random is drawn from.", show_default=CONFIGS),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output_dir",
        metavar="FOLDER",
        autocompletion=completion.runs,
        help="The run folder.",
        show_default=CONFIGS,
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        "--max_steps", metavar=COUNT, help="Optimiser steps of the whole run.", show_default=CONFIGS
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")]
Tracking = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        autocompletion=completion.trackers,
        help="Who is told of losses, pictures and scores: auto (TensorBoard where it is installed), none, or "
        "names with commas, as tensorboard,wandb.",
        show_default=CONFIGS,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        autocompletion=completion.runs,
        help="A run folder or an adapter folder.",
        show_default="--output_dir",
    ),
]
AutoBatchSize = Annotated[
    bool, typer.Option("--auto_batch_size", help="As few micro-batches to a step as memory allows.")
]
Prompt = Annotated[str, typer.Option(metavar="TEXT", help="What the picture should show.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for a script.")]


def read_config(profile: str, path: Path | None, method: str | None = None, **changes: Any) -> Config:
    """Return the file's config, or the profile's, with what was given on the command line."""
    named = {} if method is None else {"method": method}
    config = Config.load(path, **named) if path else Config.setup(profile, **named)
    given = {name: str(v) if isinstance(v, Path) else v for name, v in changes.items() if v is not None}
    return config.replace(**given)


def show(result: Any, as_json: bool, text: str) -> None:
    """Print the result, of several processes once: JSON for a script, a sentence for a person."""
    if PROCESS == 0:
        typer.echo(json.dumps(result, indent=2, default=str) if as_json else text)


def open_pipeline(
    checkpoint: Path | None, profile: str, config: Path | None, output_dir: Path | None, **changes: Any
) -> Any:
    """Load the pipeline of a run; a config given on the command line replaces all of its own but the method,
    which the command line may have named when it trained."""
    from dasd_utils import sampling

    folder, settings = run_settings(checkpoint, profile, config, output_dir, **changes)
    return shared(sampling.load_trained_pipeline(folder, settings))


def run_settings(
    checkpoint: Path | None, profile: str, config: Path | None, output_dir: Path | None, **changes: Any
) -> tuple[Path, Config]:
    """Return the run's folder and the config that `open_pipeline` loads it with."""
    settings = read_config(profile, config, output_dir=output_dir, **changes)
    folder = checkpoint or resolve(settings.output_dir)
    stored = Path(folder) / "config.json"
    if stored.exists() and config is not None:
        method = Config.load(stored).method
        settings = read_config(profile, config, method, output_dir=output_dir, **changes)
    elif stored.exists():
        given = {name: value for name, value in changes.items() if value is not None}
        given["output_dir"] = str(output_dir or folder)
        settings = Config.load(stored).replace(**given)
    return Path(folder), settings


def shared(pipeline: Any) -> Any:
    """Let each of several processes sample its part of what all are asked for."""
    from dasd_utils.runtime import processes

    pipeline.shared = processes.count() > 1
    return pipeline


def fail(message: str, status: int) -> NoReturn:
    """Leave with one line on standard error, and the traceback if asked for."""
    if DEBUG["asked"]:
        traceback.print_exc()
    name = "dasd" if PROCESS == 0 else f"dasd, process {PROCESS}"
    typer.echo(f"{name}: {message}", err=True)
    sys.exit(status)


def leave() -> None:
    """End together with the other processes, all of which have agreed to."""
    from dasd_utils.runtime import processes

    processes.end()
