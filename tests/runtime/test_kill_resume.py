"""A run killed at three random moments and resumed is, bit for bit, the run that nobody killed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def kill_resume():
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import kill_resume

    yield kill_resume
    sys.path.pop(0)


def test_three_kills(kill_resume, base_dir, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = kill_resume.measure(3, str(base_dir))
    assert [row["phase"] for row in rows] == ["step", "checkpoint", "latent cache"]
    for row in rows:
        assert row["killed"] and row["resumed"], row
        assert row["equal"] and row["each_step_once"], row
