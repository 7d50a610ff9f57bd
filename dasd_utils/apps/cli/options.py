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
METAVARS = {int: "N", int | None: "N", str: "NAME", str | None: "NAME"}  # unless an option names its own

# what the commands are listed under
START = "Start here"
RUNS = "Train a model and use it"
SHARE = "Hand it to others"
STUDY = "Study methods"
UPKEEP = "Build and look after"


def option(
    kind: Any, text: str, *names: str, complete: Callable[[], Iterable[str]] | None = None, **settings: Any
) -> Any:
    """Return the annotation of an option: its type, help, names (else the parameter's) and typer's settings.

    `complete` returns the values that the Tab key offers.
    """
    settings.setdefault("metavar", METAVARS.get(kind))
    if complete:
        settings["autocompletion"] = offering(complete)
    return Annotated[kind, typer.Option(*names, help=text, **settings)]


def offering(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return typer's `autocompletion` that offers the names which begin with what has been typed."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def run_folders() -> list[str]:
    """Return the run folders below data/runs, newest first."""
    places = ("*/config.json", "*/*/config.json", "*/*/*/config.json")
    found = [file.parent for place in places for file in Path("data/runs").glob(place)]
    return [str(run) for run in sorted(found, key=lambda run: run.stat().st_mtime, reverse=True)]


offer_runs = offering(run_folders)


Profile = option(
    str,
    "tiny, sd15 or auto: sd15 where a GPU has 8 GB or more, else tiny.",
    complete=lambda: ["auto", *PROFILES],
)
ConfigFile = option(
    Path | None, "JSON of the fields that differ from the profile's.", "--config", metavar="FILE"
)
Method = option(
    str | None,
    "How to train: dasd, domainstudio, indomain or diffusionclip.",
    show_default=CONFIGS,
    complete=lambda: [DASD, *known_methods()],
)
Seed = option(int | None, "Seed of everything that is random.", show_default=CONFIGS)
OutputDir = option(
    Path | None,
    "The run folder.",
    "--output_dir",
    metavar="FOLDER",
    show_default=CONFIGS,
    complete=run_folders,
)
MaxSteps = option(int | None, "Optimiser steps in all.", "--max_steps", show_default=CONFIGS)
Resume = option(bool, "Go on from the newest complete checkpoint.", "--resume")
Tracking = option(
    str | None,
    "Where losses, pictures and scores are logged: auto (TensorBoard where it is installed), none, or names "
    "with commas, as tensorboard,wandb.",
    metavar="NAMES",
    show_default=CONFIGS,
    complete=lambda: ["auto", "none", "tensorboard", "wandb", "mlflow", "trackio"],
)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=offer_runs)]
Checkpoint = option(
    Path | None,
    "A run folder or an adapter folder.",
    metavar="FOLDER",
    show_default="--output_dir",
    complete=run_folders,
)
AutoBatchSize = option(bool, "As few micro-batches to a step as memory allows.", "--auto_batch_size")
Prompt = option(str, "What the picture should show.", metavar="TEXT")
AsJson = option(bool, "Print the result as JSON, for a script.", "--json")


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


def show_rows(path: Path, rows: list[dict[str, Any]], as_json: bool, *tables: str) -> None:
    """Print the file that rows were written to, with the rows as JSON or the tables as text."""
    show({"results": str(path), "rows": rows}, as_json, "\n\n".join([*tables, str(path)]))


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
    if stored.exists() and config is not None:
        method = Config.load(stored).method
        settings = read_config(profile, config, method, output_dir=output_dir, **changes)
    elif stored.exists():
        settings = read_config(profile, stored, output_dir=output_dir or folder, **changes)
    return folder, settings


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
