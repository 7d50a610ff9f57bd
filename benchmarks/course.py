"""Wall time and peak memory of each notebook of the tiny course; see README.md.

python benchmarks/course.py
"""

from __future__ import annotations

import tempfile
from typing import Annotated

import common
import psutil
import typer

from dasd_utils.apps import notebooks


def main(
    profile: str = "tiny", only: Annotated[str, typer.Option(help="names with commas; all if empty")] = ""
) -> None:
    """Print a table and write data/results/bench_course.json."""
    paths = notebooks.find_notebooks(only.split(",") if only else None)
    rows, columns = [], {"notebook": "", "seconds": ".0f", "peak_gb": ".2f"}
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            [done] = notebooks.run_notebooks([path], folder, {"profile": profile})
            if done.error:
                raise SystemExit(done.error)
            measured = {"seconds": common.exactly(done.seconds), "peak_gb": common.exactly(done.peak_gb)}
            rows.append({"notebook": path.stem, **measured, "n": 1})
            print(common.table(rows[-1:], columns), flush=True)
    total = common.exactly(sum(row["seconds"].value for row in rows))
    peak = common.exactly(max(row["peak_gb"].value for row in rows))
    rows.append({"notebook": "all", "seconds": total, "peak_gb": peak, "n": 1})
    print(common.table(rows, columns))
    print(common.save("course", {"machine": common.machine(psutil.cpu_count()), "profile": profile}, rows))


if __name__ == "__main__":
    typer.run(main)
