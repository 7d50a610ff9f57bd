"""The command `dasd`: results on standard output, everything else on standard error."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from dasd_utils.apps.cli import start, study, train, upkeep, use
from dasd_utils.apps.cli.options import DEBUG, PROCESS, fail, leave
from dasd_utils.config import DasdError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},  # --output-dir as well
    epilog="Exit status: 0 done, 1 an error that you can fix, 2 a fault of the program, 130 stopped.",
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Adapt a diffusion model to far domains: train, sample, measure, compare.

    In the names of options, - and _ are the same. `dasd COMMAND --help` explains each command.
    """
    logging.getLogger("dasd_utils").setLevel(logging.INFO if PROCESS == 0 else logging.ERROR)
    DEBUG["on"] = debug


for module in (start, train, use, upkeep, study):
    app.add_typer(module.commands)


def main() -> None:
    """Run the command. Exit status: 0 done, 1 the user's error, 2 the program's own, 130 stopped.

    An error is one line, with `--debug` its traceback too.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
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
    except Exception as error:
        fail(f"{type(error).__name__}: {error} (a fault of the program: `dasd --debug ...` says where)", 2)


if __name__ == "__main__":
    main()
