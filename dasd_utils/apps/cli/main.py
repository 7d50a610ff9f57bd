"""The command `dasd`: results on standard output, everything else on standard error."""

import io
import logging
import os
import re
import signal
import sys
from typing import Annotated, Any

import psutil
import typer

from dasd_utils.apps.cli import runs, study  # noqa: F401 (they add their commands to `app`)
from dasd_utils.apps.cli.options import DEBUG, PROCESS, app, fail, leave
from dasd_utils.config import DasdError


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Adapt a diffusion model to far domains: train, sample, measure, compare.

    In the names of options, - and _ are the same. `dasd COMMAND --help` explains each command.
    """
    logging.getLogger("dasd_utils").setLevel(logging.INFO if PROCESS == 0 else logging.ERROR)
    DEBUG["on"] = debug


def main() -> None:
    """Run the command; an error is one line, with `--debug` its traceback too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of any encoding
            stream.reconfigure(errors="backslashreplace")
    # a waiting thread soon gives its core away (docs/long_runs.md); torch reads this when it is imported
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    sys.argv = [_as_utf8(word) for word in sys.argv]
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except SystemExit as done:
        if not done.code and "RANK" in os.environ:
            leave()
        if done.code == 2:  # typer's, for words that it does not understand
            raise SystemExit(1) from None
        raise
    except DasdError as error:
        fail(str(error), 1)
    except UnicodeEncodeError as error:  # a path of other bytes, where a file is to name it
        fail(f"{error.object[:200]!r} is no Unicode text: rename what it names, in UTF-8.", 1)
    except OSError as error:
        fail(f"{error.filename or 'The output'}: {error.strerror}" if error.strerror else str(error), 1)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not f"{error.name}".startswith("dasd_utils"):
            fail(f"The package {error.name} is missing here: pip install {error.name}", 1)
        said = f"{type(error).__name__}: {error}"  # torch and safetensors have kinds of their own
        if re.search("MemoryError|out of memory|allocate memory", said):
            fail("This machine has too little free memory: close other programs, or ask for less.", 1)
        if re.search("No space left|File too large|quota exceeded", said):
            fail("The disk is full, or a file larger than is allowed here: make room, then start again.", 1)
        fail(f"{said} (a fault of the program: `dasd --debug ...` says where)", 2)


def _stop(*_: Any) -> None:
    """On SIGTERM stop as on Ctrl-C, which a terminal sends to the processes started from here too."""
    for child in psutil.Process().children():
        child.terminate()
    raise KeyboardInterrupt


def _as_utf8(word: str) -> str:
    """Return a word of the command line read as UTF-8, whatever the locale; as it is where it is none."""
    try:
        return os.fsencode(word).decode("utf8")
    except UnicodeError:
        return word


if __name__ == "__main__":
    main()
