"""Commands side by side: here, and on a cluster of two workers of which one is killed on the way."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from dasd_utils.apps import workers
from dasd_utils.config import DasdError

HELP = ["--help"]
FAILING = ["train", "--config", "none.json"]  # before it loads a library


def test_commands_run_and_failures_are_reported():
    errors = workers.run([HELP, FAILING, HELP], workers=2)
    assert errors[0] is errors[2] is None and "none.json" in errors[1]
    with pytest.raises(DasdError, match=r"1 of 1 commands failed.*`dasd train --config none.json`"):
        workers.run_all([FAILING], 1, None)


@pytest.mark.parametrize("affinity", [range(8), None])  # on macOS a process has none
def test_processes_share_the_cores_that_they_may_use(monkeypatch, affinity):
    seen = []
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 64 if affinity else 8)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: affinity, raising=False)
    if affinity is None:
        monkeypatch.delattr(workers.os, "sched_getaffinity")
    monkeypatch.setattr(workers, "execute", lambda command, threads=None: seen.append(threads))
    workers.run([HELP] * 3, workers=3)
    assert seen == [2, 2, 2]


@pytest.mark.parametrize(("given", "used"), [(None, "3"), ("1", "1")])
def test_threads_are_for_the_user_to_set(monkeypatch, given, used):
    ran = []
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    done = SimpleNamespace(returncode=1, stderr="A warning.\ndasd: 04 failed: Error\n\tsize mismatch\n")
    monkeypatch.setattr(workers.subprocess, "run", lambda *_, env, **__: ran.append(env) or done)
    assert workers.execute(HELP, threads=3) == "dasd: 04 failed: Error\n\tsize mismatch"
    assert ran[0]["OMP_NUM_THREADS"] == used


def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "PATIENCE", 1)
    with pytest.raises(DasdError, match=r"scheduler answers at tcp://127\.0\.0\.1:9"):
        workers.run([HELP], scheduler="tcp://127.0.0.1:9")


def record(command, threads=None):
    """Stand in for a command: note who runs it, and take a while, the victim until it is killed."""
    place, number, victim = command
    with open(os.path.join(place, f"{number}-{os.getpid()}"), "w"):
        time.sleep(200 if os.getpid() == victim else 0.2)


def test_a_killed_worker_costs_no_command(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "execute", record)
    place = tmp_path / "ran"
    place.mkdir()
    options = dict(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with distributed.LocalCluster(**options, local_directory=str(tmp_path / "dask")) as cluster:
        victim = next(iter(cluster.workers.values())).pid

        def kill_one():
            deadline = time.monotonic() + 150
            while not any(file.name.endswith(f"-{victim}") for file in place.iterdir()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        commands = [[str(place), str(i), victim] for i in range(6)]
        said = workers.run(commands, scheduler=cluster.scheduler_address)
        killer.join()
    assert said == [None] * 6
    ran = [file.name.split("-")[0] for file in place.iterdir()]
    assert set(ran) == {str(i) for i in range(6)} and len(ran) > 6  # one began twice
