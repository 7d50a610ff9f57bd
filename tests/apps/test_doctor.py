"""The doctor: what is missing, too old or out of reach is said, and nothing hangs or leaks."""

import dataclasses
import email
import json
import sys
import threading
import time

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from dasd_utils.apps import doctor
from dasd_utils.apps.cli import main as cli
from dasd_utils.config import Config

ABOUT = """Requires-Python: >=3.{minor}
Requires-Dist: typer>={typer}
Requires-Dist: {name}
Requires-Dist: no-such-extra; extra == "gpu"
Requires-Dist: no-such-test>=1; extra == "test"
"""


def states(rows):
    return {row.what: row.state for row in rows}


def found(minor=11, typer="0.1", name="numpy"):
    about = email.message_from_string(ABOUT.format(minor=minor, typer=typer, name=name))
    return states(doctor.packages(about))


def test_packages_are_held_against_the_bounds():
    assert found() == {"Python": "ok", "typer": "ok", "numpy": "ok", "no-such-extra": "note"}
    assert found(minor=99)["Python"] == "missing"
    assert found(typer="999")["typer"] == "missing"
    assert found(name="no-such-package")["no-such-package"] == "missing"
    said = doctor._package("typer>=999", "0.9", "missing", "pip install it").found
    assert said == "0.9, needs >=999; pip install it"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Return the folder that is the hub's cache here."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def place(name="owner/name", revision=None, reason="no network", needed="note"):
    return doctor._place(name, revision, "models", reason, needed)


def test_a_model_is_looked_for_in_folders_the_cache_and_the_hub(cached, tmp_path):
    assert place()[1] == "note" and "not cached" in place()[0]
    assert place(reason="") == ("owner/name, to be fetched from the hub", "ok")
    snapshot = cached / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    assert place()[1] == "note"  # a download that was cut off before its first file
    (snapshot / "config.json").write_text("{}")
    assert place() == ("owner/name, in the hub's cache", "ok")
    assert place(revision="a" * 40)[1] == "ok" and place(revision="b" * 40)[1] == "note"
    assert place(str(tmp_path))[1] == "ok" and place("data/no-such-base", needed="missing")[1] == "missing"


def test_only_what_the_tiny_profile_needs_stops_it(cached):
    rows = list(doctor.sources("sd15", Config.setup("sd15"), "no network"))
    assert "note" in states(rows).values() and "missing" not in states(rows).values()
    lost = Config.setup("tiny", base="data/no-such-base")
    rows = list(doctor.sources("tiny", lost, "no network"))
    assert states(rows)["base"] == "missing"


def test_a_hub_that_says_nothing_is_not_waited_for(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: never.wait(30))
    started = time.monotonic()
    assert "not answer" in doctor.ask_hub(0.2)
    never.set()
    assert time.monotonic() - started < 5
    monkeypatch.undo()
    assert "ffline" in doctor.ask_hub(5.0)  # as `conftest` has it


def test_a_token_is_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    rows = list(doctor.hugging_face(""))
    assert states(rows)["token"] == "ok" and "hf_" not in repr(rows)
    assert next(row.found for row in rows if row.what == "token") == "set"


def test_no_disk_to_write_on_is_missing(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert states(doctor.room(Config.setup("tiny")))["disk for runs"] == "missing"


@pytest.mark.parametrize(("busy", "threads", "noted"), [(2.0, 2, True), (2.0, 1, False), (1.0, 2, False)])
def test_busy_cores_are_noted_where_threads_would_wait(monkeypatch, busy, threads, noted):
    monkeypatch.setattr(doctor.psutil, "getloadavg", lambda: (busy, 0.0, 0.0))
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert (states(doctor.devices()).get("load") == "note") == noted


def test_without_pytorch_it_still_answers(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert states(doctor.devices()) == {"PyTorch": "missing"}
    assert doctor.chosen().state == "missing"


def test_the_command_ends_with_1_where_something_is_missing(monkeypatch):
    good, bad = doctor.Row("packages", "numpy", "2.0"), doctor.Row("packages", "torch", "old", "missing")
    for rows, status in ([good], 0), ([good, bad], 1):
        monkeypatch.setattr(doctor, "examine", lambda rows=rows: rows)
        result = CliRunner().invoke(cli.app, ["doctor"])
        assert result.exit_code == status and ("! torch" in result.stdout) == bool(status)
    result = CliRunner().invoke(cli.app, ["doctor", "--json"])
    said = json.loads(result.stdout)
    assert result.exit_code == 1 and said == {"ok": False, "rows": [*map(dataclasses.asdict, [good, bad])]}


def test_the_report_fits_a_terminal():
    rows = [doctor.Row("packages", "numpy", "word " * 40), doctor.Row("devices", "CPU", "2 cores", "note")]
    lines = doctor.report(rows)
    assert max(map(len, lines)) <= 79 and lines[0] == "packages" and "devices" in lines
    assert any(line.startswith("~ CPU") for line in lines)


def test_this_machine_can_run_the_tiny_profile(cached):
    rows = doctor.examine(patience=1.0)
    assert {row.part for row in rows} >= {"packages", "devices", "room", "profile tiny", "profile sd15"}
    assert [row for row in rows if row.part == "profile tiny" and row.state != "ok"] == []
