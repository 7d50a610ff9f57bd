"""The commands to start with: doctor."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from typing import TYPE_CHECKING

import typer

from dasd_utils.apps.cli.options import START, AsJson, show

if TYPE_CHECKING:
    from dasd_utils.apps.doctor import Row

commands = typer.Typer()
MARKS = {"ok": "  ", "note": "~ ", "missing": "! "}


@commands.command(rich_help_panel=START)
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine: what is installed, what can be reached, what auto would pick.

    Exit status 0 where the tiny profile can run, 1 where something it needs is missing.
    """
    from dasd_utils.apps import doctor

    rows = doctor.examine()
    fine = doctor.can_run(rows)
    lines = [*report(rows), "", "The tiny profile can run here." if fine else "What is marked ! is missing."]
    result = {"ok": fine, "rows": [dataclasses.asdict(row) for row in rows]}
    show(result, as_json, "\n".join(lines))
    if not fine:
        raise typer.Exit(1)


def report(rows: list[Row], width: int = 79) -> list[str]:
    """Return the lines that a person reads: `!` marks what is missing, `~` what is worth knowing."""
    lines, left = [], 2 + max(len(row.what) for row in rows) + 2
    for part, found in itertools.groupby(rows, lambda row: row.part):
        lines += ["", part] if lines else [part]
        for row in found:
            start = MARKS[row.state] + row.what.ljust(left - 2)
            wrapped = textwrap.wrap(row.found, width - left, break_long_words=False) or [""]
            lines += [start + wrapped[0], *(" " * left + more for more in wrapped[1:])]
    return lines
