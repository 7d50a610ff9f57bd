"""The Tab key: names of profiles, methods, domains, runs and notebooks, found without loading torch."""

import json
import os
import subprocess
import sys

import pytest
import typer

from dasd_utils import config
from dasd_utils.apps.cli import completion
from dasd_utils.apps.cli import main as cli
from dasd_utils.config import DASD, ROOT, known_methods


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Work in a folder with two runs, the second newer and of its own domain."""
    monkeypatch.chdir(tmp_path)
    for age, (name, domain) in enumerate({"old": "xray", "deep/new": "sketch"}.items()):
        file = tmp_path / "data" / "runs" / name / "config.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"domains": [{"name": domain}]}))
        os.utime(file.parent, (age, age))
    return tmp_path


def context(**params):
    found = typer.Context(typer.main.get_command(cli.app))
    found.params.update(params)
    return found


def test_profiles_methods_and_rules():
    assert completion.profiles("") == ["auto", "tiny", "sd15"]
    assert set(completion.methods("")) == {DASD, *known_methods()}
    assert completion.methods("dom") == ["domainstudio"]
    assert completion.guidances("") == list(config.GUIDANCE)
    assert "03" in completion.notebooks("") and completion.notebooks("03") == ["03"]


def test_runs_come_newest_first_and_else_folders(runs):
    assert completion.runs("") == ["data/runs/deep/new", "data/runs/old"]
    assert completion.runs("data/runs/o") == ["data/runs/old"]
    (runs / "elsewhere").mkdir()
    assert completion.runs("else") == ["elsewhere"]
    assert completion.runs("no-such-folder/") == []


def test_domains_are_those_of_the_run_or_config_named_before(runs):
    assert completion.domains(context(), "") == ["satellite", "xray"]
    assert completion.domains(context(checkpoint="data/runs/deep/new"), "") == ["sketch"]
    assert completion.domains(context(config="data/runs/old/config.json"), "") == ["xray"]
    (runs / "broken.json").write_text("{")
    assert completion.domains(context(config="broken.json"), "sat") == ["satellite"]


def test_the_shell_gets_them_quickly_without_torch(runs):
    code = """import sys
from dasd_utils.apps.cli import main as cli
try:
    cli.app(prog_name="dasd")
except SystemExit:
    pass
assert "torch" not in sys.modules, "torch was loaded"
"""
    words = {"_DASD_COMPLETE": "complete_bash", "COMP_WORDS": "dasd train --method d", "COMP_CWORD": "3"}
    environment = os.environ | words | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["dasd", "diffusionclip", "domainstudio"]
