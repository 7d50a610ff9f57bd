"""What the commands share: their options, the config, one way to show a result and to fail."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dasd_utils.config import Config, resolve

DEBUG = {"asked": False}
PROCESS = int(os.environ.get("RANK", 0))  # of those that `accelerate launch` started

Profile = Annotated[str, typer.Option(help="auto, tiny or sd15.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="JSON: what differs from the profile.")]
Method = Annotated[
    str | None,
    typer.Option(help="Overrides the config's method: dasd, domainstudio, indomain or diffusionclip."),
]
Seed = Annotated[int | None, typer.Option(help="Overrides the config's seed.")]
OutputDir = Annotated[Path | None, typer.Option("--output_dir", "--output-dir", help="The run folder.")]
MaxSteps = Annotated[int | None, typer.Option("--max_steps", "--max-steps", help="Optimiser steps.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="A run folder or an adapter folder. Default: --output_dir."),
]
AutoBatchSize = Annotated[
    bool,
    typer.Option(
        "--auto_batch_size", "--auto-batch-size", help="As few micro-batches to a step as memory allows."
    ),
]
Prompt = Annotated[str, typer.Option(help="What the picture should show.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON result.")]


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
    return shared(sampling.load_trained_pipeline(folder, settings))


def shared(pipeline: Any) -> Any:
    """Let each of several processes sample its part of what all are asked for."""
    from dasd_utils import processes

    pipeline.shared = processes.count() > 1
    return pipeline


def fail(message: str, status: int) -> NoReturn:
    """Leave with one line on standard error, and the traceback if asked for."""
    if DEBUG["asked"]:
        traceback.print_exc()
    name = "dasd" if PROCESS == 0 else f"dasd, process {PROCESS}"
    typer.echo(f"{name}: {message}", err=True)
    sys.exit(status)
