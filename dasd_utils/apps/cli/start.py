"""The commands to start with: doctor, new-domain."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli import options
from dasd_utils.apps.cli.options import option

commands = typer.Typer()
DomainName = Annotated[str, typer.Argument(help="Of the domain: letters, digits, '-' or '_'.")]
Images = Annotated[Path, typer.Argument(help="Its images; nothing is written there.")]
Captions = option(
    str,
    "auto; metadata, sidecars, labels or names; a captioning model's hub id or folder; "
    '"one sentence"; or "a sketch of a {label}".',
    metavar="FROM",
)
ConfigPath = option(Path | None, "The config file.", metavar="FILE", show_default="NAME.json")
Force = option(bool, "Replace what is there.", "--force")


@commands.command(rich_help_panel=options.START)
def doctor(as_json: options.AsJson = False) -> None:
    """Look at this machine: what is installed, what can be reached, what auto would pick.

    Exit status 0 where the tiny profile can run, 1 where something it needs is missing.
    """
    from dasd_utils.apps import doctor

    rows = doctor.examine()
    fine = doctor.can_run(rows)
    verdict = "The tiny profile can run here." if fine else "What is marked ! is missing."
    lines = [*doctor.report(rows), "", verdict]
    options.show({"ok": fine, "rows": [dataclasses.asdict(row) for row in rows]}, as_json, "\n".join(lines))
    if not fine:
        raise typer.Exit(1)


@commands.command(name="new-domain", rich_help_panel=options.START)
def new_domain(
    name: DomainName,
    folder: Images,
    captions: Captions = "auto",
    out: ConfigPath = None,
    force: Force = False,
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
