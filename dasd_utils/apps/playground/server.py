"""Serve the playground as a page of Voilà, on this machine alone."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

from dasd_utils.config import Config, DasdError

HOST, PORT = "127.0.0.1", 8866
PAGE = Path(__file__).with_name("playground.ipynb")
SETTINGS = "DASD_PLAYGROUND"  # the environment variable that holds the page's run and config, as JSON


def serve(run: Path, config: Config, port: int | None, browser: bool) -> None:
    """Run Voilà until Ctrl-C or SIGTERM; say its address, which opens by a token, once the page answers.

    Raises DasdError where Voilà is not installed or the port is in use.
    """
    if importlib.util.find_spec("voila") is None:
        raise DasdError("The playground is served by Voilà, which is missing here: pip install voila "
                        "(or dasd-utils[playground]). In JupyterLab, notebook 04 ends with it.")  # fmt: skip
    from voila.app import Voila  # optional

    port, token = choose_port(port), secrets.token_urlsafe(16)
    given = {"run": str(run.absolute()), "config": config.to_dict()}
    os.environ[SETTINGS] = json.dumps(given)  # kernels inherit it; it is read as data, never run
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    said = f"The playground of {run}: http://{HOST}:{port}/?token={token}\nCtrl-C ends it."
    threading.Thread(target=_say_when_it_answers, args=(port, said), daemon=True).start()
    options = [f"ip={HOST}", "port_retries=0", f"token={token}", "log_level=ERROR"]
    words = [str(PAGE), f"--port={port}", *(f"--Voila.{option}" for option in options)]
    words += ["--VoilaConfiguration.show_tracebacks=False", *([] if browser else ["--no-browser"])]
    Voila.launch_instance(argv=words)


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


def _say_when_it_answers(port: int, said: str) -> None:
    while True:
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        try:
            connection.request("HEAD", "/static/none")  # any answer does
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            time.sleep(0.1)
            continue
        finally:
            connection.close()
        print(said, file=sys.stderr, flush=True)
        return
