"""The commands of the course: run the notebooks, say which are stale, write their badges."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli.options import UPKEEP, AsJson, Profile, Seed, read_config, show
from dasd_utils.config import DasdError

commands = typer.Typer()
Only = Annotated[str | None, typer.Option(metavar="NAMES", help="Comma-separated beginnings of names: 03,04")]


@commands.command(
    rich_help_panel=UPKEEP, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def notebooks(
    context: typer.Context,
    profile: Profile = "auto",
    output_dir: Annotated[
        Path,
        typer.Option("--output_dir", metavar="FOLDER", help="Of executed copies, runs, figures and results."),
    ] = Path("data/runs/course"),
    only: Only = None,
    seed: Seed = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only those that `dasd fresh` lists.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Make the copies the tracked notebooks, with their stamp.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the notebooks in order through papermill; `-p NAME VALUE` sets a parameter."""
    needs_notebooks()
    from dasd_utils.apps import notebooks

    values = {"profile": read_config(profile, None).profile, **read_parameters(context.args)}
    values |= {"seed": seed} if seed is not None else {}
    paths = notebooks.find_notebooks(only.split(",") if only else None)
    paths = [path for path in paths if notebooks.stale(path)] if stale else paths
    if update:
        notebooks.check_defaults(paths, values)
    done: list[notebooks.Executed] = []
    if paths:  # else none is stale
        values |= {"output_dir": notebooks.parameter_path(output_dir.resolve())}
        done = notebooks.run_notebook(
            paths,
            output_dir,
            values,
            report=lambda one: typer.echo(f"{one.name}: {one.seconds:.0f} s", err=True),
            to_store=update,
        )
    if update and done:
        notebooks.store_outputs(done)
    rows = [{"notebook": one.name, "path": str(one.path), "seconds": round(one.seconds, 1)} for one in done]
    total = sum(one.seconds for one in done)
    show(rows, as_json, f"{len(done)} notebooks in {total:.0f} s: {Path(output_dir).resolve()}")


def needs_notebooks() -> None:
    """Raise DasdError where the packages that read and run notebooks are missing."""
    missing = [name for name in ("nbformat", "papermill") if importlib.util.find_spec(name) is None]
    if missing:
        raise DasdError(f"{' and '.join(missing)} is missing here: pip install papermill nbformat ipykernel "
                        "(or dasd-utils[batch]).")  # fmt: skip


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


@commands.command(rich_help_panel=UPKEEP)
def fresh(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Notebooks to look at.", show_default="all of them")
    ] = None,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """Say of which notebooks the stored outputs were not made, or not wholly, by the present code.

    Exit status 1 if there are any: `dasd notebooks --stale --update` renews them.
    """
    needs_notebooks()
    from dasd_utils.apps import notebooks

    paths = files or notebooks.find_notebooks(only.split(",") if only else None)
    for path in paths:
        if not path.is_file():
            raise DasdError(f"There is no notebook {path}.")
    rows = [{"notebook": p.stem, "faults": notebooks.faults(p), "changed": notebooks.stale(p)} for p in paths]
    wrong = [row for row in rows if row["faults"] or row["changed"]]
    lines = [f"{row['notebook']}: {', '.join([*row['faults'], *row['changed']])}" for row in wrong]
    show(rows, as_json, "\n".join(lines) or f"{len(rows)} notebooks are fresh.")
    if wrong:
        raise DasdError(f"{len(wrong)} of {len(rows)} notebooks are to be run again: `make notebooks` "
                        "runs all, `dasd notebooks --profile tiny --stale --update` these.")  # fmt: skip


@commands.command(rich_help_panel=UPKEEP)
def badges(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; status 1 if one is old.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write Colab badges and setup cells of the notebooks, from address and version in pyproject.toml."""
    needs_notebooks()
    from dasd_utils.apps import notebooks
    from dasd_utils.apps import notebooks as cells

    paths = notebooks.find_notebooks()
    found = [path.name for path in (cells.outdated_badges(paths) if check else cells.write_badges(paths))]
    where = cells.repository()
    said = f"{len(found)} of {len(paths)} notebooks {'are old' if check else 'changed'}"
    show(found, as_json, "\n".join([*found, f"{said}: {where.address}, {where.tag}"]))
    if check and found:
        raise DasdError(f"{said}: `dasd badges` writes them anew.")
