"""Commands of `dasd` side by side, here or on a cluster; a sweep: a notebook for each entry of a list."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasd_utils.apps import notebooks
from dasd_utils.config import ROOT, DasdError, read_json, resolve
from dasd_utils.runtime import files

PATIENCE = 10  # seconds that a scheduler has to answer
Command = Sequence[str]  # the words behind `dasd`
Parameters = dict[str, Any]


def run_all(commands: Sequence[Command], workers: int, scheduler: str | None) -> None:
    """Run all commands as `run` does; raise DasdError with the message of the first that failed."""
    results = zip(commands, run(commands, workers, scheduler), strict=True)
    if failed := [f"`dasd {' '.join(command)}`: {error}" for command, error in results if error]:
        raise DasdError(f"{len(failed)} of {len(commands)} commands failed, the first: {failed[0]}")


def run(commands: Sequence[Command], workers: int = 1, scheduler: str | None = None) -> list[str | None]:
    """Run each command, here or on a dask cluster; return its error message, None if it worked."""
    if scheduler is not None:
        return _on_cluster(commands, scheduler)
    cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)  # a job may have a few
    pool = ThreadPoolExecutor(workers)
    waiting = [pool.submit(execute, command, max(len(cores) // workers, 1)) for command in commands]
    try:
        for _ in files.bar(as_completed(waiting), "commands", len(waiting)):
            pass
    finally:  # after Ctrl-C those at work, which got the signal too, save
        pool.shutdown(cancel_futures=True)
    return [one.result() for one in waiting]


def execute(command: Command, threads: int | None = None) -> str | None:
    """Run one command in a process of its own; return its error message if it failed."""
    environment = ({"OMP_NUM_THREADS": str(threads)} if threads else {}) | os.environ  # a given one stays
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    words = [sys.executable, "-m", "dasd_utils.apps.cli.main", *command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    said = re.findall(r"(?ms)^dasd: .*", done.stderr) or done.stderr.strip().splitlines()[-1:]
    return said[0].strip() if said else f"exit status {done.returncode}"


def _on_cluster(commands: Sequence[Command], scheduler: str) -> list[str | None]:
    import distributed

    try:
        client = distributed.Client(scheduler, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise DasdError(f"No dask scheduler answers at {scheduler}: {error}.") from None
    with client:
        # a command whose worker is lost is run again
        futures = client.map(execute, [list(command) for command in commands], retries=2, pure=False)
        for _ in files.bar(distributed.as_completed(futures), "commands", len(futures)):
            pass
        return [str(one.exception()) if one.exception() else one.result() for one in futures]


@dataclass(frozen=True)
class Cell:
    """One entry of a sweep's list."""

    notebook: str
    parameters: Parameters
    output_dir: str  # of the sweep

    @property
    def folder(self) -> Path:
        """Return where the executed notebook and its results are, named by the parameters."""
        return Path(self.output_dir) / "cells" / files.short_hash([self.notebook, self.parameters])

    @property
    def results(self) -> Path:
        """Return the file that the notebook writes last."""
        return resolve(self.folder) / "results" / f"{self.notebook}.json"

    def command(self) -> list[str]:
        """Return the words behind `dasd` that run this cell."""
        words = ["notebooks", "--only", self.notebook, "--output_dir", str(self.folder), "--force"]
        words += ["--profile", self.parameters["profile"]] if "profile" in self.parameters else []
        rest = {name: value for name, value in self.parameters.items() if name != "profile"}
        return words + [w for name, value in rest.items() for w in ("-p", name, json.dumps(value))]


def read_sweep(path: str | Path) -> list[Parameters]:
    """Return the entries of a JSON file: a list of objects; a list as a value stands for each of its items.

    [{"lambda_align": [0.01, 0.1], "kernel": ["linear", "multi"]}] are four entries.
    """
    values = read_json(Path(path), "The parameters")
    if not isinstance(values, list) or not values or not all(isinstance(each, dict) for each in values):
        raise DasdError(f'{path} must be a list of objects: [{{"lambda_align": [0.01, 0.1]}}].')
    entries = []
    for each in values:
        choices = [value if isinstance(value, list) else [value] for value in each.values()]
        entries += [dict(zip(each, chosen, strict=True)) for chosen in itertools.product(*choices)]
    if twice := [entry for entry in entries if entries.count(entry) > 1]:
        raise DasdError(f"{path} has an entry twice: {twice[0]}.")
    return entries


def sweep_cells(notebook: str, entries: Sequence[Parameters], output_dir: str | Path) -> list[Cell]:
    """Return a cell for each entry; DasdError for a parameter that the notebook does not declare."""
    path, *others = notebooks.find_notebooks([notebook])
    if others:
        raise DasdError(f"{notebook!r} begins several notebooks, {path.stem} and {others[0].stem}: name one.")
    if f"{path.stem}.json" not in path.read_text(encoding="utf8"):
        raise DasdError(f"{path.stem} writes no results, so a sweep of it would have no table.")
    for entry in entries:
        notebooks.check_parameters([path], entry)
    return [Cell(path.stem, entry, str(output_dir)) for entry in entries]
