"""The command `dasd`: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils import cli_share, cli_start, cli_study, cli_train, cli_upkeep, cli_use
from dasd_utils.cli_options import DEBUG, PROCESS, AsJson, Profile, Seed, fail, leave, read_config, show
from dasd_utils.config import ROOT, DasdError

ALIKE = {"token_normalize_func": lambda name: name.replace("-", "_")}  # --output-dir is --output_dir
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=ALIKE,
    epilog="Exit status: 0 done, 1 an error that you can mend, 2 a fault of the program, 130 stopped.",
)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def notebooks(
    context: typer.Context,
    profile: Profile = "auto",
    output_dir: Annotated[Path, typer.Option("--output_dir", "--output-dir")] = Path("data/runs/course"),
    only: Annotated[str | None, typer.Option(help="Comma-separated beginnings of names: 03,04")] = None,
    seed: Seed = None,
    update: Annotated[bool, typer.Option(help="Make the copies the tracked notebooks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the notebooks in order through papermill; `-p NAME VALUE` sets a parameter."""
    from dasd_utils import batch

    values = {"profile": read_config(profile, None).profile, **read_parameters(context.args)}
    place = output_dir.resolve()
    if place.is_relative_to(ROOT):  # results name their run: a path of this machine means nothing elsewhere
        place = place.relative_to(ROOT)
    values |= {"output_dir": str(place), **({"seed": seed} if seed is not None else {})}
    done = batch.run(
        batch.find(only.split(",") if only else None),
        output_dir,
        values,
        report=lambda one: typer.echo(f"{one.name}: {one.seconds:.0f} s", err=True),
    )
    if update:
        batch.store(done)
    rows = [{"notebook": one.name, "path": str(one.path), "seconds": round(one.seconds, 1)} for one in done]
    total = sum(one.seconds for one in done)
    show(rows, as_json, f"{len(done)} notebooks in {total:.0f} s: {Path(output_dir).resolve()}")


def read_parameters(words: list[str]) -> dict[str, Any]:
    """Read `-p NAME VALUE` triples; a value that is JSON (a number, true, a list) is read as such."""
    values, rest = {}, list(words)
    while rest:
        if rest[0] not in ("-p", "--parameter") or len(rest) < 3:
            raise DasdError(f"Unknown option {rest[0]!r}. Parameters are given as: -p NAME VALUE")
        _, name, text = rest[:3]
        rest = rest[3:]
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Take a diffusion model to far domains: train, sample, measure, compare.

    In the names of options, - and _ are the same. `dasd COMMAND --help` tells of each command.
    """
    logging.getLogger("dasd_utils").setLevel(logging.INFO if PROCESS == 0 else logging.ERROR)
    DEBUG.update(asked=debug)


for module in (cli_start, cli_train, cli_use, cli_share, cli_study, cli_upkeep):
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
