"""What `make` does beside its commands: both halves of the course end together, and runs of the user stay."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from dasd_utils.config import ROOT

SLOW = '#!/bin/sh\necho $$ >> "{place}/started"\nexec sleep 60\n'


def _listens():
    """Let Ctrl-C reach a process whose parents ignore it, as those of a script's `make test &` do."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_an_interrupted_course_leaves_nothing_at_work(tmp_path):
    (tmp_path / ".installed").touch()
    (tmp_path / "dasd").write_text(SLOW.format(place=tmp_path))
    (tmp_path / "dasd").chmod(0o755)
    command = ["make", "course", f"VENV={tmp_path}", f"BIN={tmp_path}"]
    options = {"start_new_session": True, "stderr": subprocess.DEVNULL, "preexec_fn": _listens}
    with subprocess.Popen(command, cwd=ROOT, **options) as course:
        started = tmp_path / "started"
        while not started.exists() or len(started.read_text().split()) < 2:
            assert course.poll() is None
            time.sleep(0.05)
        os.killpg(course.pid, signal.SIGINT)  # as a terminal does
        assert course.wait(20) != 0
    time.sleep(0.2)
    for process in map(int, started.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_clean_leaves_the_runs_of_the_user():
    command = ["make", "--no-print-directory", "--dry-run", "clean"]  # `make test` may be the one that asks
    said = subprocess.check_output(command, cwd=ROOT, text=True)
    removed = said.split("\n")[0].split("#")[0].split()[2:]
    assert removed == ["data/runs/course", "data/runs/rehearsal", "docs/_build"]
