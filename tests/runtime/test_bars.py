"""Bars: shown on a terminal and in a live notebook, silent in files, papermill, nbval and other processes."""

import ast
import io
import sys
from pathlib import Path

import dasd_utils
from dasd_utils.runtime import bars

PACKAGE = Path(dasd_utils.__file__).parent


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """Make standard error a terminal of the only process, outside of notebooks; return it."""
    for name in ("RANK", "JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_a_terminal_sees_the_name_the_count_and_the_time_left(monkeypatch):
    screen = terminal(monkeypatch)
    for _ in bars.bar(range(4), "training", unit="step", mininterval=0):
        pass
    last = screen.getvalue().split("\r")[-1]
    assert "training: 100%" in last and "4/4" in last and " step/s" in last
    assert "<00:00" in last  # elapsed<left


def test_what_goes_into_a_file_holds_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(bars.bar(range(3), "training", mininterval=0)) == [0, 1, 2]
    assert sys.stderr.getvalue() == ""


def test_a_bar_that_is_not_asked_for_is_silent(monkeypatch):
    screen = terminal(monkeypatch)
    with bars.bar(None, "training", 3, shown=False) as bar:
        bar.update(3)
    assert screen.getvalue() == ""


def test_of_several_processes_the_first_draws(monkeypatch):
    terminal(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    assert not bars.is_watched()
    monkeypatch.setenv("RANK", "0")
    assert bars.is_watched()


def test_a_kernel_draws_only_for_a_person(monkeypatch):
    for name in ("RANK", "JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert not bars.is_watched()  # papermill, nbval
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/03_training.ipynb")
    assert bars.is_watched()


def test_a_brief_step_draws_nothing(monkeypatch):
    screen = terminal(monkeypatch)
    assert sum(bars.short_bar([1, 2, 3], "images", mininterval=0)) == 6
    assert screen.getvalue().strip("\r \n") == ""


def test_every_bar_has_one_style():
    for path in PACKAGE.rglob("*.py"):
        names = {n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
        assert path.name == "bars.py" or not any((name or "").startswith("tqdm") for name in names), path
