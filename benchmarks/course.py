"""Wall time and peak memory of each notebook of the tiny course; see README.md.

python benchmarks/course.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from typing import Annotated

import common
import psutil
import typer

from dasd_utils.apps import notebooks


def measure(name: str, output_dir: str, profile: str) -> common.Row:
    """Run one notebook in processes of its own; return seconds and the peak of their resident memory."""
    command = [
        sys.executable,
        "-m",
        "dasd_utils.apps.cli.main",
        "notebooks",
        "--profile",
        profile,
        "--only",
        name,
    ]
    started, peak = time.perf_counter(), 0
    process = psutil.Popen(
        [*command, "--output_dir", output_dir], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        peak = max(peak, sum(map(_resident, [process, *_children(process)])))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{name} failed; run it by itself: {' '.join(command[2:])}")
    seconds = common.exactly(time.perf_counter() - started)
    return {"notebook": name, "seconds": seconds, "peak_gb": common.exactly(peak / 1e9), "n": 1}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # ended meanwhile
        return 0


def main(
    profile: str = "tiny", only: Annotated[str, typer.Option(help="names with commas; all if empty")] = ""
) -> None:
    """Print a table and write data/results/bench_course.json."""
    names = [path.stem for path in notebooks.find_notebooks(only.split(",") if only else None)]
    rows, columns = [], {"notebook": "", "seconds": ".0f", "peak_gb": ".2f"}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            rows.append(measure(name, folder, profile))
            print(common.table(rows[-1:], columns), flush=True)
    total = common.exactly(sum(row["seconds"].value for row in rows))
    peak = common.exactly(max(row["peak_gb"].value for row in rows))
    rows.append({"notebook": "all", "seconds": total, "peak_gb": peak, "n": 1})
    print(common.table(rows, columns))
    print(common.save("course", {"machine": common.machine(psutil.cpu_count()), "profile": profile}, rows))


if __name__ == "__main__":
    typer.run(main)
