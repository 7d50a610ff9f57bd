"""The command that makes a domain of a folder of images: new-domain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli.options import START, AsJson, Profile, read_config, show

commands = typer.Typer()


@commands.command(name="new-domain", rich_help_panel=START)
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
    profile: Profile = "auto",
    as_json: AsJson = False,
) -> None:
    """Look through a folder of images; write a config with token, captions and prompts for it."""
    from dasd_utils.apps.new_domain import proposal as domains

    place = domains.check_place(out or Path(f"{name}.json"), folder, force)
    found = domains.propose(name, folder, read_config(profile, None), captions, progress=not as_json)
    written = domains.write(found, place, force)
    result = {
        "config": str(place), "files": [str(path) for path in written], "profile": found.profile,
        "domain": found.values(place)["domains"][0], "audit": found.audit, "reasons": found.reasons,
        "warnings": found.warnings, "next": found.next_commands(place),
    }  # fmt: skip
    show(result, as_json, in_words(found, result))


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
