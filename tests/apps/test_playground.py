"""The form: what typing, choosing and clicking do, without a browser."""

import contextlib
import dataclasses
import io
import json
import threading
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from dasd_utils.apps.playground import drawings
from dasd_utils.apps.playground import form as playground
from dasd_utils.config import Calibration, Config, DasdError

CONFIG = Config.setup("tiny", shipped_run=None)
SCALES = {"satellite": 5.0, "xray": 3.0}


class FakePipeline:
    """Records its calls; the classifier finds the domain whose name is in the prompt."""

    def __init__(self):
        how = {name: Calibration(scale, 8, "ddim") for name, scale in SCALES.items()}
        domains = tuple(dataclasses.replace(d, calibration=how[d.name]) for d in CONFIG.domains)
        self.config, self.calls, self.base = CONFIG.replace(domains=domains), [], contextlib.nullcontext
        self.classifier = SimpleNamespace(threshold=0.5, classify=self.classify)

    def classify(self, prompt):
        if not prompt.strip():
            raise DasdError("The prompt is empty: <b>write</b>.")
        scores = {name: 0.9 if name in prompt else 0.1 for name in SCALES}
        best = next((name for name in SCALES if name in prompt), None)
        return {"best_domain": best, "all_similarities": scores}

    def generate(self, prompt, domain=None, seed=None, settings=None):
        self.classify(prompt)
        self.calls.append((prompt, domain, seed, settings))
        return Image.new("RGB", (8, 8), (seed % 256, 0, 0)), domain, {"token": None}


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "one/adapter").mkdir(parents=True)
    return drawings.Loaded(FakePipeline(), tmp_path / "one")


def fill(form, **values):
    for name, value in values.items():
        getattr(form, name).value = value


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def form(fake, monkeypatch):
    """Return a form whose work is done at once."""
    at_once = SimpleNamespace(submit=lambda task: task())
    monkeypatch.setattr(playground, "ThreadPoolExecutor", lambda _threads: at_once)
    timer = lambda _pause, task: SimpleNamespace(cancel=list, start=task)  # noqa: E731
    monkeypatch.setattr(playground.threading, "Timer", timer)
    return playground.Playground(fake, "a satellite")


def shown(form):
    return [Image.open(io.BytesIO(box.children[0].value)) for box in form.pictures.children]


def test_a_click_draws_what_the_form_says(form):
    fill(form, prompt="a heart", domain="xray", scale=4.5, seed=7, guidance="decoupled", domain_scale=2.0)
    form.generate.click()
    how = Calibration(4.5, 8, "ddim", "decoupled", 2.0)
    assert form.loaded.pipeline.calls == [("a heart", "xray", 7, how)]
    assert shown(form)[0].size == (8, 8) and not form.generate.disabled
    assert "xray · decoupled 4.5 + 2 · 8 steps of ddim · seed 7" in form.said.value


def test_typing_shows_the_scores_and_brings_the_calibration(form):
    assert "<b>satellite</b>" in form.scores.value and form.scale.value == 5.0
    form.prompt.value = "an xray"
    assert "<b>xray</b>" in form.scores.value and form.scale.value == 3.0
    assert 'data-domain="xray"' in form.scores.value and "#0000 50.0%" in form.scores.value
    form.scale.value = 3.0000000000000004  # as a browser answers to 3
    assert form.calibration() == form._calibrated
    form.scale.value = 3.5  # chosen by hand: it stays
    form.prompt.value = "a satellite"
    assert "<b>satellite</b>" in form.scores.value and form.scale.value == 3.5
    form.prompt.value = "a house"
    assert "<b>none</b>" in form.scores.value
    form.prompt.value = ""
    assert "&lt;b&gt;write" in form.scores.value and not form.loaded.pipeline.calls


def test_scores_wait_for_the_keys_to_be_still(fake, monkeypatch):
    monkeypatch.setattr(playground, "PAUSE", 1)
    form = playground.Playground(fake, "a house")
    prompts, before = [], form.loaded.pipeline.classify
    form.loaded.pipeline.classifier.classify = lambda prompt: prompts.append(prompt) or before(prompt)
    for text in ("an x", "an xr", "an xray"):
        form.prompt.value = text
    wait_for(lambda: "<b>xray</b>" in form.scores.value)
    assert prompts == ["an xray"]


def test_a_domain_brings_its_calibration(form):
    fill(form, scale=9.0, domain="xray")
    assert (form.scale.value, form.steps.value) == (3.0, 8)
    fill(form, domain=None)
    assert form.scale.value == CONFIG.source.calibration.guidance_scale
    beyond = Calibration(20.0, 250, "ddim")  # the sliders' ends: they move
    form.calibrate(beyond)
    assert form.calibration() == beyond
    limited = Calibration(3.0, 8, "ddim", guidance_interval=(0.2, 0.9))  # no field shows it; it counts
    form.calibrate(limited)
    assert form.calibration() == limited
    form.generate.click()
    assert "cfg 3 from 0.2 to 0.9 of the way" in form.said.value
    form.guidance.value = "decoupled"  # which has none
    assert form.calibration().guidance_interval == (0, 1)


def test_what_goes_wrong_is_shown_and_the_form_stays_usable(form):
    fill(form, domain="xray", prompt=" ")
    form.generate.click()
    assert "The prompt is empty: &lt;b&gt;write" in form.said.value
    assert not form.generate.disabled and not shown(form) and form.save.disabled
    form.loaded.pipeline.generate = lambda *_words, **_options: 1 / 0
    form.generate.click()
    assert "ZeroDivisionError" in form.said.value and not form.generate.disabled


def test_the_history_puts_settings_back_and_ends_somewhere(form, monkeypatch):
    fill(form, prompt="an xray", seed=1, scale=6.0)
    form.generate.click()
    fill(form, prompt="a satellite", seed=2, scale=2.0, beside=True)
    form.generate.click()
    assert len(form.history.children) == 3 and len(shown(form)) == 2
    oldest = form.history.children[-1].children[0]
    assert "dasd-thumbnail" in oldest._dom_classes and "an xray" in oldest.tooltip
    oldest.click()
    assert (form.prompt.value, form.domain.value, form.seed.value) == ("an xray", "xray", 1)
    assert form.scale.value == 6.0 and shown(form)[0].getpixel((0, 0)) == (1, 0, 0)
    monkeypatch.setattr(playground, "KEPT", 2)
    form.generate.click()
    assert len(form.history.children) == 2


def test_save_writes_what_is_on_show(form, tmp_path):
    fill(form, beside=True)
    form.generate.click()
    fill(form, folder=str(tmp_path / "saved"))
    form.save.click()
    saved = sorted((tmp_path / "saved").iterdir())
    assert [path.name for path in saved] == ["satellite_adapted_0_0.png", "satellite_base_0_0.png"]
    assert all(drawings.read(path)["prompt"] == "a satellite" for path in saved)
    (tmp_path / "file").write_text("")
    fill(form, folder=str(tmp_path / "file/below"))
    form.save.click()
    assert "cannot be written" in form.said.value


def test_work_is_done_beside_the_page(fake):
    form, gate = playground.Playground(fake, "a satellite"), threading.Event()
    before = form.loaded.pipeline.generate
    form.loaded.pipeline.generate = lambda *words, **options: gate.wait(10) and before(*words, **options)
    form.generate.click()
    assert form.generate.disabled and "Drawing" in form.said.value
    form.prompt.value = "an xray"  # answered while it draws
    wait_for(lambda: "<b>xray</b>" in form.scores.value)
    gate.set()
    wait_for(lambda: not form.generate.disabled)
    assert shown(form) and fake.pipeline.calls[0][0] == "a satellite"


def test_names_are_no_html():
    answer = {"best_domain": "<i>", "all_similarities": {"<i>": -0.2}, "threshold": 2.0}
    text = playground.bars(answer)
    assert "<i>" not in text and "#0072b2 0.0%" in text and "#0000 100.0%" in text


def test_a_served_page_takes_its_run_from_the_environment(tmp_path, monkeypatch):
    asked = []

    def load(run, config):
        asked.append((run, config.seed))
        raise DasdError("no <run>")

    monkeypatch.setattr(drawings, "load", load)
    given = {"run": str(tmp_path), "config": Config.setup("tiny", seed=5).to_dict()}
    monkeypatch.setenv("DASD_PLAYGROUND", json.dumps(given))
    assert "no &lt;run&gt;" in playground.served().value and asked == [(str(tmp_path), 5)]
