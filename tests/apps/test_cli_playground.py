"""`dasd playground`: what it serves, and where."""

import http.server
import json
import os
import queue
import socket
import sys
import threading
import time
from types import SimpleNamespace

import nbformat
import pytest
from conftest import free_port
from typer.testing import CliRunner

from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.playground import form
from dasd_utils.config import ROOT, Config, DasdError

TINY_RUN = ROOT / "data/tiny-run"


@pytest.fixture
def served(monkeypatch):
    """Return the words that Voilà is launched with, which would not return; the environment is put back."""
    calls = []
    voila = SimpleNamespace(launch_instance=lambda argv: calls.append(argv))
    monkeypatch.setitem(sys.modules, "voila.app", SimpleNamespace(Voila=voila))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(form, "_say_when_it_answers", lambda *_words: None)
    return calls


def run(*words):
    return CliRunner().invoke(cli.app, ["playground", *map(str, words)])


@pytest.mark.parametrize("options", [(), ("--checkpoint", TINY_RUN / "adapter")])
def test_a_run_is_served_on_this_machine_alone(served, options, monkeypatch):
    said = queue.Queue()
    monkeypatch.setattr(form, "_say_when_it_answers", lambda *words: said.put(words))
    port = free_port()
    result = run("--profile", "tiny", "--port", port, "--no-browser", *options)
    assert result.exit_code == 0, result.output
    ((page, *words),) = served
    assert page == str(form.PAGE) and "--no-browser" in words and f"--port={port}" in words
    (token,) = (word.partition("token=")[2] for word in words if "token=" in word)
    assert len(token) >= 16 and f"--Voila.ip={form.HOST}" in words and form.HOST == "127.0.0.1"
    assert {"--Voila.port_retries=0", "--VoilaConfiguration.show_tracebacks=False"} <= {*words}
    asked, address = said.get(timeout=10)
    assert asked == port and f"http://127.0.0.1:{port}/?token={token}\n" in address
    given = json.loads(os.environ[form.SETTINGS])
    assert given["run"] == str(TINY_RUN) and Config.from_dict(given["config"]).profile == "tiny"
    run("--profile", "tiny", "--port", port, *options)
    assert not [word for word in served[1] if token in word or word == "--no-browser"]


def test_the_address_is_said_once_it_answers(capsys):
    port = free_port()
    threading.Thread(target=form._say_when_it_answers, args=(port, "here"), daemon=True).start()
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
    handler = http.server.BaseHTTPRequestHandler  # answers 501 to all
    with http.server.HTTPServer((form.HOST, port), handler) as answering:
        time.sleep(0.3)
        assert capsys.readouterr().err == ""  # it listens, and does not answer yet
        answering.handle_request()
    end = time.monotonic() + 5
    while "here\n" not in capsys.readouterr().err:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_port_in_use_is_an_error_and_without_one_another_is_taken(served, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(DasdError, match="cannot be used"):
            form.choose_port(taken)
        monkeypatch.setattr(form, "PORT", taken)
        assert form.choose_port(None) not in (taken, 0)


def test_a_run_without_adapter_is_an_error_before_anything_is_served(served, tmp_path):
    result = run("--checkpoint", tmp_path)
    assert isinstance(result.exception, DasdError) and "no adapter" in str(result.exception)
    assert not served


def test_the_page_names_no_run_itself():
    notebook = nbformat.read(form.PAGE, 4)
    nbformat.validate(notebook)
    (code,) = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert code == "from dasd_utils.apps.playground import form as playground\n\nplayground.served()"
