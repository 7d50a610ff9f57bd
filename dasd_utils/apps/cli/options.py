"""What the commands share: options, reading the config, opening a run, printing a result, failing."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dasd_utils.config import DASD, Config, known_methods, resolve
from dasd_utils.profiles import PROFILES

DEBUG = {"on": False}
PROCESS = int(os.environ.get("RANK", 0))  # of those that `accelerate launch` started
CONFIGS = "the config's"  # shown as a default

# what the commands are listed under
START = "Start here"
RUNS = "Train a model and use it"
SHARE = "Hand it to others"
STUDY = "Study methods"
UPKEEP = "Build and look after"


def completing(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return an `autocompletion` that offers those of the names that begin with what has been typed."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def run_folders() -> list[str]:
    """Return the run folders below data/runs, newest first."""
    found = [
        file for depth in ("*", "*/*", "*/*/*") for file in Path("data/runs").glob(f"{depth}/config.json")
    ]
    newest = sorted(found, key=lambda file: file.parent.stat().st_mtime, reverse=True)
    return [str(file.parent) for file in newest]


Profile = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completing(lambda: ["auto", *PROFILES]),
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
        autocompletion=completing(lambda: [DASD, *known_methods()]),
        help="How to train: dasd, domainstudio, indomain or diffusionclip.",
        show_default=CONFIGS,
    ),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="Seed of everything that is random.", show_default=CONFIGS)
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output_dir",
        metavar="FOLDER",
        autocompletion=completing(run_folders),
        help="The run folder.",
        show_default=CONFIGS,
    ),
]
MaxSteps = Annotated[
    int | None, typer.Option("--max_steps", metavar="N", help="Optimiser steps in all.", show_default=CONFIGS)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")]
Tracking = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        autocompletion=completing(lambda: ["auto", "none", "tensorboard", "wandb", "mlflow", "trackio"]),
        help="Where losses, pictures and scores are logged: auto (TensorBoard where it is installed), none, "
        "or names with commas, as tensorboard,wandb.",
        show_default=CONFIGS,
    ),
]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", autocompletion=completing(run_folders), help="A run folder.")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        autocompletion=completing(run_folders),
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
    """Return the file's config, or the profile's, with the command line's changes (None: none)."""
    named = {} if method is None else {"method": method}
    config = Config.load(path, **named) if path else Config.setup(profile, **named)
    given = {name: str(v) if isinstance(v, Path) else v for name, v in changes.items() if v is not None}
    return config.replace(**given)


def show(result: Any, as_json: bool, text: str) -> None:
    """Print the result, in one of several processes: as JSON for a script, as text for a person."""
    if PROCESS == 0:
        typer.echo(json.dumps(result, indent=2, default=str) if as_json else text)


def open_pipeline(
    checkpoint: Path | None, profile: str, config: Path | None, output_dir: Path | None, **changes: Any
) -> Any:
    """Load the pipeline of a run, with the config that `run_settings` finds."""
    from dasd_utils import sampling

    folder, settings = run_settings(checkpoint, profile, config, output_dir, **changes)
    return shared(sampling.load_trained_pipeline(folder, settings))


def run_settings(
    checkpoint: Path | None, profile: str, config: Path | None, output_dir: Path | None, **changes: Any
) -> tuple[Path, Config]:
    """Return a run's folder and the config to load it with.

    That is the run's own with `changes`. A config file of the command line replaces all of it but the method,
    which may have been an option of `dasd train`.
    """
    settings = read_config(profile, config, output_dir=output_dir, **changes)
    folder = Path(checkpoint or resolve(settings.output_dir))
    stored = folder / "config.json"
    if not stored.exists():
        return folder, settings
    if config is not None:
        method = Config.load(stored).method
        return folder, read_config(profile, config, method, output_dir=output_dir, **changes)
    return folder, read_config(profile, stored, output_dir=output_dir or folder, **changes)


def shared(pipeline: Any) -> Any:
    """Let each of several processes sample its part of the prompts."""
    from dasd_utils.runtime import processes

    pipeline.shared = processes.count() > 1
    return pipeline


def fail(message: str, status: int) -> NoReturn:
    """Leave with one line on standard error, and with the traceback after `dasd --debug`."""
    if DEBUG["on"]:
        traceback.print_exc()
    name = "dasd" if PROCESS == 0 else f"dasd, process {PROCESS}"
    typer.echo(f"{name}: {message}", err=True)
    sys.exit(status)


def leave() -> None:
    """End together with the other processes: one that only exits breaks the connection of the others."""
    from dasd_utils.runtime import processes

    processes.end()
