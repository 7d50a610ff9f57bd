"""Wall time and peak memory of each notebook of the tiny course; see README.md.

python benchmarks/course.py
python benchmarks/course.py --measured ROWS.json

The second writes what `dasd notebooks --profile tiny --json > ROWS.json` measured; several such files are put
together. `python benchmarks/badges.py` then writes the seconds into the notebooks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import common
import psutil
import typer

from dasd_utils.apps import notebooks


def _run(paths: list[Path], profile: str) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            [done] = notebooks.run_notebooks([path], folder, {"profile": profile})
            yield done._asdict() | {"notebook": path.stem}


def _stored(places: list[Path]) -> list[dict[str, Any]]:
    found = [row for place in places for row in json.loads(place.read_text(encoding="utf8"))]
    return sorted(found, key=lambda row: row["notebook"])


def main(
    profile: str = "tiny",
    only: Annotated[str, typer.Option(help="names with commas; all if empty")] = "",
    measured: Annotated[list[Path], typer.Option(help="what `dasd notebooks --json` printed")] = (),
    threads: Annotated[int, typer.Option(help="of each notebook, for --measured")] = psutil.cpu_count(),
    how: Annotated[str, typer.Option(help="what else ran beside it, for --measured")] = "",
) -> None:
    """Print a table and write data/results/bench_course.json, of runs made now or of a file of them."""
    rows, columns = [], {"notebook": "", "seconds": ".0f", "peak_gb": ".2f"}
    names = only.split(",") if only else None
    for done in _stored(measured) if measured else _run(notebooks.find_notebooks(names), profile):
        if done["error"]:
            raise SystemExit(done["error"])
        numbers = {name: common.exactly(done[name]) for name in ("seconds", "peak_gb")}
        rows.append({"notebook": done["notebook"], **numbers, "n": 1})
        print(common.table(rows[-1:], columns), flush=True)
    total = common.exactly(sum(row["seconds"].value for row in rows))
    peak = common.exactly(max(row["peak_gb"].value for row in rows))
    rows.append({"notebook": "all", "seconds": total, "peak_gb": peak, "n": 1})
    print(common.table(rows, columns))
    settings = {"machine": common.machine(threads), "profile": profile} | ({"how": how} if how else {})
    print(common.save("course", settings, rows))


if __name__ == "__main__":
    typer.run(main)
