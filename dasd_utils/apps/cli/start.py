"""The commands to start with: doctor, new-domain."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dasd_utils.apps.cli import options

if TYPE_CHECKING:
    from dasd_utils.apps.doctor import Row

commands = typer.Typer()
MARKS = {"ok": "  ", "note": "~ ", "missing": "! "}


@commands.command(rich_help_panel=options.START)
def doctor(as_json: options.AsJson = False) -> None:
    """Look at this machine: what is installed, what can be reached, what auto would pick.

    Exit status 0 where the tiny profile can run, 1 where something it needs is missing.
    """
    from dasd_utils.apps import doctor

    rows = doctor.examine()
    fine = doctor.can_run(rows)
    lines = [*report(rows), "", "The tiny profile can run here." if fine else "What is marked ! is missing."]
    options.show({"ok": fine, "rows": [dataclasses.asdict(row) for row in rows]}, as_json, "\n".join(lines))
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


@commands.command(name="new-domain", rich_help_panel=options.START)
def new_domain(
    name: Annotated[str, typer.Argument(help="Of the domain: letters, digits, '-' or '_'.")],
    folder: Annotated[Path, typer.Argument(help="Its images; nothing is written there.")],
    captions: Annotated[
        str,
        typer.Option(
            metavar="FROM",
            help="auto; metadata, sidecars, labels or names; a captioning model's hub id or folder; "
            '"one sentence"; or "a sketch of a {label}".',
        ),
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The config file.", show_default="NAME.json")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    profile: options.Profile = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Look through a folder of images; write a config with token, captions and prompts for it."""
    from dasd_utils.apps.new_domain import proposal

    place = proposal.check_place(out or Path(f"{name}.json"), folder, force)
    found = proposal.propose(name, folder, options.read_config(profile, None), captions, progress=not as_json)
    written = proposal.write(found, place, force)
    result = {
        "config": str(place),
        "files": [str(path) for path in written],
        "profile": found.profile,
        "domain": found.values(place)["domains"][0],
        "audit": found.audit,
        "reasons": found.reasons,
        "warnings": found.warnings,
        "next": found.next_commands(place),
    }
    options.show(result, as_json, in_words(found, result))


def in_words(found: Any, result: dict[str, Any]) -> str:
    """Return what a person reads of a proposal."""
    audit, entry, why = found.audit, found.entry, found.reasons
    lines = [
        f"images    {audit['images']}: {audit['train']} to train on, {audit['validation']} for validation, "
        f"{audit['test']} held out; {audit['exact_duplicates']} copies, {audit['near_duplicates']} near ones",
        f"pixels    {_range(audit['width'])} wide, {_range(audit['height'])} high, {audit['grey']:.0%} grey",
        f"captions  {why['captions']}: {audit['captions_different']} different, "
        f"{audit['captions_missing']} missing, {audit['captions_cut']} too long",
        f"token     {entry['token']}, starts at {entry['initial_word']!r}: {why['initial_word']}",
        f"prompts   {why['prompts']}",
        *(f"warning   {text}" for text in found.warnings),
        *(f"written   {path}" for path in result["files"]),
        "next      " + "\n          ".join(result["next"]),
    ]
    return "\n".join(lines)


def _range(values: list[int]) -> str:
    low, median, high = values
    return str(low) if low == high else f"{low} to {high} (median {median})"
