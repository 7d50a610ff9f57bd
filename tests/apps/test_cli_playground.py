"""`dasd playground`: what it serves, where, and what it needs."""

import json
import os
import socket

import nbformat
import pytest
from typer.testing import CliRunner

from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.playground import server
from dasd_utils.config import ROOT, Config, DasdError

runner = CliRunner()
TINY_RUN = ROOT / "data/tiny-run"


@pytest.fixture
def served(monkeypatch):
    """Return the calls of `serve`, which would not return; the environment is put back."""
    calls = []
    monkeypatch.setattr(server, "serve", lambda *words: calls.append(words))
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return calls


def run(*words):
    return runner.invoke(cli.app, ["playground", *map(str, words)])


def test_the_shipped_run_is_served_on_this_machine_alone(served):
    result = run("--profile", "tiny", "--no-browser")
    assert result.exit_code == 0, result.output
    ((port, token, browser),) = served
    assert result.stdout == "" and f"http://127.0.0.1:{port}/?token={token}" in result.stderr
    assert not browser and len(token) >= 16
    given = json.loads(os.environ[server.SETTINGS])
    assert given["run"] == str(TINY_RUN) and Config.from_dict(given["config"]).profile == "tiny"


def test_a_run_or_its_adapter_and_a_port_are_chosen(served, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert run("--checkpoint", TINY_RUN / "adapter", "--port", port).exit_code == 0
    assert served[0][0] == port and served[0][2]
    assert json.loads(os.environ[server.SETTINGS])["run"] == str(TINY_RUN)


def test_a_port_in_use_is_an_error_and_without_one_another_is_taken(served, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(DasdError, match="cannot be used"):
            server.choose_port(taken)
        monkeypatch.setattr(server, "PORT", taken)
        assert server.choose_port(None) not in (taken, 0)


def test_a_run_without_adapter_is_an_error_before_anything_is_served(served, tmp_path):
    result = run("--checkpoint", tmp_path)
    assert isinstance(result.exception, DasdError) and "no adapter" in str(result.exception)
    assert not served


def test_without_voila_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    result = run()
    assert isinstance(result.exception, DasdError) and "pip install voila" in str(result.exception)


def test_the_page_names_no_run_itself():
    notebook = nbformat.read(server.PAGE, 4)
    nbformat.validate(notebook)
    (code,) = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code.source == "from dasd_utils.apps.playground import form as playground\n\nplayground.served()"
    assert not code.outputs and code.execution_count is None
