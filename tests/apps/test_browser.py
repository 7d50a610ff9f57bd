"""The playground and the training monitor as a person meets them: in JupyterLab and served by Voilà."""

import contextlib
import dataclasses
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

import pytest
from conftest import free_port, write_notebook
from PIL import Image

from dasd_utils import training
from dasd_utils.apps.playground import drawings
from dasd_utils.config import ROOT, Config
from dasd_utils.runtime import checkpoints

pytestmark = pytest.mark.browser
HOST = "127.0.0.1"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CONNECTED = """path => fetch("/api/sessions").then(answer => answer.json()).then(all => all.some(
        one => one.path === path && one.kernel.connections && one.kernel.execution_state === "idle"))"""
SLOW = 90  # seconds that a busy machine may take to answer

PLAYGROUND = f"""
from dasd_utils.apps.playground import drawings, form
form.Playground(drawings.load({str(ROOT / "data/tiny-run")!r})).widget
"""
TRAINING = """
import dataclasses
from dasd_utils import latents, sampling, training
from dasd_utils.apps import monitor
from dasd_utils.config import Config

config = Config.load("config.json")
parts = training.setup_training(config)
*_, sampler = latents.create_datasets(config, parts.tokenizer)
pipeline = sampling.DasdPipeline(parts, config)


def look(step):
    return pipeline.generate(["a river", "a harbor"], "satellite", seed=[0, 1])[0]


running = monitor.train(config, parts, sampler, on_sample=look)
"""
DRAWN = """() => {const all = [...document.querySelectorAll("img.widget-image")];
        return all.filter(image => image.naturalWidth).length === 2}"""  # curves and pictures


def find_browser(*packages: str) -> str:
    """Return the path of the installed browser, or skip the test and say what is missing."""
    for package in ("playwright", *packages):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: `make browser` installs it")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"No browser is installed here: one of {', '.join(BROWSERS)}")
    return found


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
    write_notebook(folder / "page.ipynb", *cells)
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


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser, tmp_path):
    """Return a new page that waits for a busy machine; `last.png` shows how it ended."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(1000 * SLOW)
    yield opened
    with contextlib.suppress(Exception):  # a page that crashed has no picture
        opened.screenshot(path=tmp_path / "last.png", full_page=True)
    opened.close()


@pytest.fixture
def voila(tmp_path):
    """Return the address that `dasd playground` prints for the run that ships with the repository."""
    find_browser("voila")
    port = free_port()
    words = ["dasd_utils.apps.cli.main", "playground", "--checkpoint", f"{ROOT}/data/tiny-run"]
    with serving([*words, "--no-browser", "--port", str(port)], port, tmp_path) as said:
        while not (address := re.search(r"http://\S+", said.read_text())):
            time.sleep(0.1)
        yield address.group()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return the address of a JupyterLab and its folder."""
    find_browser()
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder) as address:
        yield address, folder


@pytest.fixture
def lab(server, page, tmp_path):
    """Return a function that opens a notebook of given cells in JupyterLab and runs all of it."""
    address, folder = server
    (folder / tmp_path.name).symlink_to(tmp_path, target_is_directory=True)
    return lambda *cells: run_all(page, address, tmp_path.name, tmp_path, cells)


def wait_for_another(page, before: str | None) -> str:
    """Wait until the picture on show is another one; return its address, which changes with its pixels."""
    script = """before => {const all = [...document.querySelectorAll("img.widget-image")];
                return all.length && all.at(-1).src !== before && all.at(-1).naturalWidth}"""
    page.wait_for_function(script, arg=before)
    return page.locator("img.widget-image").last.get_attribute("src")


def press(page, name: str) -> None:
    page.locator("button.jupyter-button", has_text=name).click()


def try_out(page, folder) -> None:
    """Type, see the bar, draw, change the seed, put settings back, save."""
    prompt = page.locator("textarea.widget-input, .widget-textarea textarea").first
    prompt.wait_for()
    readout = page.locator(".widget-readout").first  # of the guidance scale, as calibrated
    xray = ("a chest x-ray with clear lungs", "xray", "5.00")
    for text, found, scale in (xray, ("a slice of pizza", "none", "4.00"), xray):
        prompt.fill(text)
        page.locator("b", has_text=found).wait_for()  # nothing was pressed
        assert readout.inner_text() == scale
    press(page, "Generate")
    first = wait_for_another(page, None)
    seed = page.locator(".widget-text input[type=number]").first
    seed.fill("7")
    seed.press("Tab")
    page.get_by_label("base model beside it").check()
    press(page, "Generate")
    second = wait_for_another(page, first)
    assert page.locator("img.widget-image").count() == 2  # the base model's beside it
    page.set_viewport_size({"width": 420, "height": 900})
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator("button.dasd-thumbnail").last.click()  # the oldest
    wait_for_another(page, second)
    page.wait_for_function("document.querySelector('.widget-text input[type=number]').value === '0'")
    saved = page.locator(".widget-text input[type=text]").last
    saved.fill(str(folder))
    saved.press("Tab")
    press(page, "Save")
    page.get_by_text("Saved:").wait_for()
    file = folder / "xray_adapted_0_0.png"
    assert drawings.read(file)["prompt"] == "a chest x-ray with clear lungs"
    assert drawings.draw_again(file).tobytes() == Image.open(file).tobytes()


def test_the_playground_served_by_voila(voila, page, tmp_path):
    page.goto(voila)
    try_out(page, tmp_path)


def test_the_playground_in_jupyterlab(lab, page, tmp_path):
    lab(PLAYGROUND)
    try_out(page, tmp_path)


@pytest.fixture
def config(tmp_path) -> Config:
    """Return a small run of the embedded base that nobody would wait for, saved where the notebook looks."""
    changes = {"output_dir": tmp_path / "run", "cache_dir": tmp_path / "cache", "sample_every": 5}
    changes |= {"target_batch_size": 4, "source_batch_size": 2, "max_train_steps": 5000}
    config = Config.setup("tiny", checkpoint_every=0, validation_every=0, **changes)
    few = [dataclasses.replace(each, num_images=16) for each in (config.source, *config.domains)]
    config = config.replace(source=few[0], domains=tuple(few[1:]))
    config.save(tmp_path / "config.json")
    return config


@pytest.mark.parametrize("next_cell", ["1 + 1", "history = running.result()"], ids=["free", "waiting"])
def test_the_stop_button_leaves_a_run_that_goes_on(lab, page, config, tmp_path, next_cell):
    """Also where the next cell waits for the run, as "run all cells" makes it."""
    lab(TRAINING, next_cell)
    page.wait_for_function(DRAWN)
    press(page, "Stop")
    page.get_by_text("Stopped after step").first.wait_for()
    newest = checkpoints.newest_checkpoint(tmp_path / "run" / "checkpoints")
    done = checkpoints.checkpoint_step(newest)
    assert 5 <= done < 5000
    history = training.load_history(tmp_path / "run")
    assert [row["step"] for row in history] == list(range(1, done + 1))  # tests/apps/test_monitor.py goes on
