"""The form of notebook 04: what a click does, without a browser."""

import io
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from dasd_utils import playground
from dasd_utils.config import Config, DasdError

CONFIG = Config.setup("tiny")


class FakePipeline:
    """Records what is asked of it; the classifier finds what `found` says."""

    def __init__(self, found=None):
        self.config, self.found, self.calls = CONFIG, found, []
        self.domain_tokens = {d.name: d.token for d in CONFIG.domains}

    def classify_prompt(self, prompt):
        return {"best_domain": self.found}

    def generate(self, prompt, domain=None, seed=None, settings=None):
        if not prompt.strip():
            raise DasdError("The prompt is empty: <b>write</b>.")
        self.calls.append(SimpleNamespace(prompt=prompt, domain=domain, seed=seed, settings=settings))
        token = self.domain_tokens.get(domain)
        used = {"scheduler": settings.scheduler, "num_inference_steps": settings.num_inference_steps}
        return Image.new("RGB", (8, 8), "red"), domain, used | {"token": token}


def parts_of(form):
    names = ("prompt", "domain", "guidance", "seed", "button", "picture", "said")
    return SimpleNamespace(**dict(zip(names, form.children, strict=True)))


def test_a_click_draws_what_the_form_says():
    pipeline = FakePipeline()
    form = parts_of(playground.playground(pipeline))
    form.prompt.value, form.domain.value, form.guidance.value, form.seed.value = "a heart", "xray", 3.0, 7
    form.button.click()
    (call,) = pipeline.calls
    assert (call.prompt, call.domain, call.seed, call.settings.guidance_scale) == ("a heart", "xray", 7, 3.0)
    assert Image.open(io.BytesIO(form.picture.value)).size == (8, 8)
    assert form.picture.layout.visibility == "visible" and not form.button.disabled
    assert "&lt;xray&gt;" in form.said.value and "guidance 3" in form.said.value


@pytest.mark.parametrize("found", ["satellite", None])
def test_auto_takes_the_domain_that_the_classifier_finds(found):
    pipeline = FakePipeline(found)
    _, said = playground.draw(pipeline, "an airport", playground.AUTO, 2.0, 0)
    assert pipeline.calls[0].domain == found
    assert said.startswith(found or "base model")


def test_a_domain_brings_its_calibrated_guidance():
    domains = [
        {**CONFIG.to_dict()["domains"][0], "calibration": {"guidance_scale": 5.0}},
        {**CONFIG.to_dict()["domains"][1], "calibration": {"guidance_scale": 3.0}},
    ]
    pipeline = FakePipeline()
    pipeline.config = Config.from_dict({**CONFIG.to_dict(), "domains": domains})
    form = parts_of(playground.playground(pipeline))
    assert form.guidance.value == 5.0
    form.domain.value = "xray"
    assert form.guidance.value == 3.0
    form.domain.value = playground.BASE
    assert form.guidance.value == CONFIG.source.calibration.guidance_scale


def test_what_the_pipeline_refuses_is_said_and_the_form_stays_usable():
    form = parts_of(playground.playground(FakePipeline(), prompt=" "))
    form.button.click()
    assert form.said.value == "The prompt is empty: &lt;b&gt;write&lt;/b&gt;."
    assert not form.button.disabled and form.picture.layout.visibility == "hidden"


def test_live_means_that_a_notebook_server_vs_code_or_colab_started_the_kernel(monkeypatch):
    for name in ("JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    assert not playground.is_live()
    with monkeypatch.context() as patch:
        patch.setenv("JPY_SESSION_NAME", "notebooks/04_sampling.ipynb")
        assert playground.is_live()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "google.colab", object())
        assert playground.is_live()
