"""Commands of `dasd` side by side: processes of this machine, or the workers of a dask cluster."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from dasd_utils.config import ROOT, DasdError
from dasd_utils.runtime import bars

RETRIES = 2  # of a command whose dask worker was lost
PATIENCE = 10  # seconds that a scheduler has to answer
log = logging.getLogger(__name__)
Command = Sequence[str]


def run(
    commands: Sequence[Command], workers: int = 1, scheduler: str | None = None, progress: bool = True
) -> list[str | None]:
    """Run each command, the words behind `dasd`; return the last line of its errors if it failed, else None.

    `workers` processes share the cores of this machine. With the address of a dask scheduler the cluster's
    workers run them instead, each as often as they have threads: they need this project and a file system in
    common, and a command whose worker is lost is run again by another. A failed command stops no other.
    Raises DasdError where the scheduler cannot be reached or `distributed` is not installed.
    """
    if scheduler is not None:
        return _on_cluster(commands, scheduler, progress)
    if workers < 1:
        raise DasdError(f"workers is {workers}; it must be at least 1.")
    threads = max((os.cpu_count() or 1) // workers, 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(execute, command, threads) for command in commands]
        try:
            for _ in bars.bar(as_completed(waiting), "commands", len(waiting), shown=progress):
                pass
            return [one.result() for one in waiting]
        except KeyboardInterrupt:  # the processes got the signal too, and save
            for one in waiting:
                one.cancel()
            raise


def run_all(commands: Sequence[Command], workers: int, scheduler: str | None) -> None:
    """Run all commands as `run` does; raise DasdError with the last line of the first that failed."""
    results = zip(commands, run(commands, workers, scheduler), strict=True)
    failed = [(command, error) for command, error in results if error]
    if failed:
        command, error = failed[0]
        raise DasdError(f"{len(failed)} of {len(commands)} commands failed, the first: "
                        f"`dasd {' '.join(command)}`: {error}")  # fmt: skip


def execute(command: Command, threads: int | None = None) -> str | None:
    """Run one command in a process of its own; return its last line of stderr if it failed."""
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    words = [sys.executable, "-m", "dasd_utils.apps.cli.main", *command]
    done = subprocess.run(words, env=environment, cwd=Path.cwd(), capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {done.returncode}"


def _on_cluster(commands: Sequence[Command], scheduler: str, progress: bool) -> list[str | None]:
    try:
        from distributed import Client
        from distributed import as_completed as finished
    except ImportError:
        raise DasdError("A cluster needs the package distributed: `pip install distributed`.") from None
    try:
        client = Client(scheduler, timeout=PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        raise DasdError(f"No dask scheduler answers at {scheduler}: {error}.") from None
    with client:
        futures = client.map(execute, [list(command) for command in commands], retries=RETRIES, pure=False)
        for _ in bars.bar(finished(futures), "commands", len(futures), shown=progress):
            pass
        return [str(one.exception()) if one.exception() else one.result() for one in futures]
