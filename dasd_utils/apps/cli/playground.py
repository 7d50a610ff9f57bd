"""The command that serves the playground as a page."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer

from dasd_utils.apps.cli.options import RUNS, Checkpoint, ConfigFile, Profile, read_config, run_settings
from dasd_utils.config import Config, DasdError, resolve

HOST, PORT = "127.0.0.1", 8866
PAGE = Path(__file__).parents[1] / "playground" / "playground.ipynb"
SETTINGS = "DASD_PLAYGROUND"  # as `playground.SETTINGS`, whose import would load torch

commands = typer.Typer()


@commands.command(rich_help_panel=RUNS)
def playground(
    checkpoint: Checkpoint = None,
    profile: Profile = "auto",
    config: ConfigFile = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, metavar="N", help="Of the page's address.", show_default=f"{PORT} or a free one"
        ),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page, where there is a browser.")] = True,
) -> None:
    """Serve the playground at an address of this machine: prompts, domains, guidance, images."""
    if importlib.util.find_spec("voila") is None:
        raise DasdError("The playground is served by Voilà, which is missing here: pip install voila "
                        "(or dasd-utils[playground]). In JupyterLab, notebook 04 ends with it.")  # fmt: skip
    folder, settings = find(checkpoint, profile, config)
    number, token = choose_port(port), secrets.token_urlsafe(16)
    given = {"run": str(resolve(folder).absolute()), "config": settings.to_dict()}
    os.environ[SETTINGS] = json.dumps(given)  # kernels inherit it; it is read as data, never run
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    typer.echo(f"The playground of {folder}: http://{HOST}:{number}/?token={token}", err=True)
    typer.echo("Ctrl-C ends it.", err=True)
    serve(number, token, browser)


def find(checkpoint: Path | None, profile: str, config: Path | None) -> tuple[Path, Config]:
    """Return the run to serve, that of the command line or the one a lesson would take, and its config."""
    from dasd_utils import adapters, sampling
    from dasd_utils.runtime import checkpoints

    if checkpoint is None:
        settings = read_config(profile, config)
        return checkpoints.find_run(settings), settings
    checkpoint = resolve(checkpoint)
    adapters.read_summary(checkpoint / "adapter" if (checkpoint / "adapter").is_dir() else checkpoint)
    return run_settings(sampling.run_folder(checkpoint), profile, config, None)


def choose_port(wanted: int | None) -> int:
    """Return the wanted port, or DasdError where it is in use; without one a free port, PORT if it is."""
    for number in [wanted] if wanted else [PORT, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, number))
            except OSError as error:
                reason = error.strerror
                continue
            return probe.getsockname()[1]
    raise DasdError(f"Port {wanted} cannot be used: {reason}. Choose another by --port, or leave it out.")


def serve(port: int, token: str, browser: bool) -> None:
    """Run Voilà until Ctrl-C or SIGTERM; only who has the token is let in."""
    from voila.app import Voila

    words = [
        str(PAGE),
        f"--Voila.ip={HOST}",
        f"--port={port}",
        "--Voila.port_retries=0",
        f"--Voila.token={token}",
    ]
    words += ["--Voila.log_level=ERROR", "--VoilaConfiguration.show_tracebacks=False"]
    Voila.launch_instance(argv=[*words, *([] if browser else ["--no-browser"])])
