"""A headless Chromium's pages, and servers on free ports of this machine that end with their test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from dasd_utils.config import ROOT

HOST = "127.0.0.1"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CONNECTED = """path => fetch("/api/sessions").then(answer => answer.json()).then(all => all.some(
        one => one.path === path && one.kernel.connections && one.kernel.execution_state === "idle"))"""
SLOW = 90  # seconds that a busy machine may take to answer


def find_browser(*packages: str) -> str:
    """Return the path of the installed browser, or skip the test and say what is missing."""
    for package in ("playwright", *packages):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: `make browser` installs it")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"No browser is installed here: one of {', '.join(BROWSERS)}")
    return found


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(words: list[str], port: int, folder: Path) -> Iterator[Path]:
    """Run a server of a module inside the `with`, its settings in the folder; yield what it says, a file."""
    said = folder / "server.log"
    env = {name: value for name, value in os.environ.items() if name != "JPY_SESSION_NAME"}
    env |= {"PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(folder / "jupyter")}
    env |= {f"JUPYTERLAB_{name.upper()}_DIR": str(folder / name) for name in ("settings", "workspaces")}
    with said.open("wb") as log:
        server = subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log, env=env, cwd=folder)
        try:
            end = time.monotonic() + SLOW
            while not _answers(port):
                assert server.poll() is None and time.monotonic() < end, said.read_text(errors="replace")
                time.sleep(0.3)
            yield said
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Run JupyterLab on a folder inside the `with`; yield its address."""
    port = free_port()
    words = f"jupyterlab --no-browser --allow-root --ip={HOST} --port={port} --port-retries=0"
    words = [*words.split(), "--IdentityProvider.token=", f"--notebook-dir={folder}"]
    place = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    place.parent.mkdir(parents=True)
    place.write_text('{"fetchNews": "false"}')  # else a question lies over the page
    with serving(words, port, folder):
        yield f"http://{HOST}:{port}"


def run_all(page, address: str, name: str, folder: Path, cells: tuple[str, ...]) -> None:
    """Write a notebook of these cells, open it in JupyterLab, and run all cells by the menu."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, folder / "page.ipynb")
    page.goto(f"{address}/lab/workspaces/{name}/tree/{name}/page.ipynb")  # no tabs of another test
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    page.wait_for_function(CONNECTED, arg=f"{name}/page.ipynb")  # else it asks which kernel to take
    prompt = page.locator(".jp-InputPrompt").first
    for _ in range(5):  # a click before the notebook is ready does nothing
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        page.wait_for_timeout(2000)
        if prompt.inner_text() != "[ ]:":
            return
    raise AssertionError("JupyterLab does not run the cells.")
