"""Bars: shown on a terminal and in a live notebook, silent in files, papermill, nbval and other processes."""

import ast
import io
import sys
from pathlib import Path

import pytest

import dasd_utils
from dasd_utils.runtime import bars

PACKAGE = Path(dasd_utils.__file__).parent


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Take away what a launcher or a notebook server around the tests would have left."""
    for name in ("RANK", *bars.SERVERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)


def stderr(monkeypatch, terminal: bool = True) -> io.StringIO:
    """Replace standard error in a test, since pytest does so between its fixtures and it."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_terminal_sees_the_name_the_count_and_the_time_left(monkeypatch):
    screen = stderr(monkeypatch)
    for _ in bars.bar(range(4), "training", unit="step", mininterval=0):
        pass
    last = screen.getvalue().split("\r")[-1]
    assert "training: 100%" in last and "4/4" in last and " step/s" in last
    assert "<00:00" in last  # elapsed<left


@pytest.mark.parametrize(
    "terminal, make, options",
    [(False, bars.bar, {}), (True, bars.bar, {"shown": False}), (True, bars.short_bar, {})],
    ids=["file", "not wanted", "over in no time"],
)
def test_no_bar_in_a_file_nor_where_none_is_wanted_nor_of_a_short_step(monkeypatch, terminal, make, options):
    screen = stderr(monkeypatch, terminal)
    assert list(make(range(3), "training", mininterval=0, **options)) == [0, 1, 2]
    assert screen.getvalue().strip("\r \n") == ""


def test_of_several_processes_the_first_draws(monkeypatch):
    stderr(monkeypatch)
    for rank, drawn in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert bars.is_watched() == drawn


@pytest.mark.parametrize("name", ["JPY_SESSION_NAME", "VSCODE_PID", "VOILA_BASE_URL", "google.colab"])
def test_a_kernel_draws_only_for_a_person_in_front_of_it(monkeypatch, name):
    stderr(monkeypatch, terminal=False)
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert not bars.is_live() and not bars.is_watched()  # papermill, nbval
    if name == "google.colab":  # which is known by its module
        monkeypatch.setitem(sys.modules, name, object())
    else:
        monkeypatch.setenv(name, "notebooks/04_sampling.ipynb")
    assert bars.is_live() and bars.is_watched()


def test_every_bar_has_one_style():
    for path in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf8"))) if isinstance(node, ast.Call)]
        made = [call for call in calls if getattr(call.func, "id", None) in ("tqdm", "trange")]
        assert bool(made) == (path.name == "bars.py"), path
