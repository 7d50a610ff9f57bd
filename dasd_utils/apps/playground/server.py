"""Serve the playground as a page of Voilà, on this machine alone."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
from pathlib import Path

from dasd_utils.config import DasdError

HOST, PORT = "127.0.0.1", 8866
PAGE = Path(__file__).with_name("playground.ipynb")
SETTINGS = "DASD_PLAYGROUND"  # the environment variable that holds the page's run and config, as JSON


def check_voila() -> None:
    """Raise DasdError where Voilà is not installed."""
    if importlib.util.find_spec("voila") is None:
        raise DasdError("The playground is served by Voilà, which is missing here: pip install voila "
                        "(or dasd-utils[playground]). In JupyterLab, notebook 04 ends with it.")  # fmt: skip


def new_token() -> str:
    """Return the secret that a page's address ends with."""
    return secrets.token_urlsafe(16)


def choose_port(wanted: int | None) -> int:
    """Return the wanted port, or DasdError where it is in use; of none PORT, or another free one."""
    for number in [wanted] if wanted else [PORT, 0]:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((HOST, number))
            except OSError as error:
                reason = error.strerror
                continue
            return trial.getsockname()[1]
    raise DasdError(f"Port {wanted} cannot be used: {reason}. Choose another by --port, or leave it out.")


def serve(port: int, token: str, browser: bool) -> None:
    """Run Voilà until Ctrl-C or SIGTERM; the page opens for those alone who have the token."""
    from voila.app import Voila  # optional

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    words = [
        str(PAGE),
        f"--Voila.ip={HOST}",
        f"--port={port}",
        "--Voila.port_retries=0",
        f"--Voila.token={token}",
        "--Voila.log_level=ERROR",
        "--VoilaConfiguration.show_tracebacks=False",
    ]
    Voila.launch_instance(argv=words if browser else [*words, "--no-browser"])
