"""A drawing is its choices: drawn, saved, read, and drawn again bit for bit."""

import shutil
from types import SimpleNamespace

import pytest
from PIL import Image, PngImagePlugin

from dasd_utils.apps.playground import drawings
from dasd_utils.apps.playground.drawings import AUTO, Loaded
from dasd_utils.config import Calibration, DasdError

HOW = Calibration(guidance_scale=2.0, num_inference_steps=2, scheduler="ddpm")


@pytest.fixture
def loaded(saved_run, pipeline):
    """Return the saved run, with a classifier that always finds the x-ray."""
    answer = {"best_domain": "xray", "best_score": 0.7, "all_similarities": {"xray": 0.7}}
    pipeline.classifier = SimpleNamespace(threshold=0.5, classify=lambda prompt: dict(answer))
    return Loaded(pipeline, saved_run)


def test_a_saved_image_can_be_drawn_again(loaded, saved_run, tmp_path):
    (drawing,) = drawings.draw(loaded, "clear lungs", "xray", HOW, 3)
    path = drawings.save(drawing, tmp_path / "images")
    assert drawing.settings["run"] == "saved" and str(tmp_path).encode() not in path.read_bytes()
    assert path.name == "xray_adapted_3_0.png" and Image.open(path).tobytes() == drawing.image.tobytes()
    text = Image.open(path).text["parameters"]  # for other programs
    assert text.splitlines()[0] == "<xray> clear lungs"
    assert "Sampler: DDPM, CFG scale: 2.0, Seed: 3, Size: 32x32, Model: saved" in text
    assert drawings.read(path) == drawing.settings
    assert drawings.draw_again(path, loaded) == drawing.image
    assert drawings.draw_again({**drawing.settings, "run": str(saved_run)}) == drawing.image
    exported = shutil.copytree(saved_run / "adapter", tmp_path / "exported")
    drawings.save(drawing, exported / "generated")  # no part of the adapter
    assert Loaded(loaded.pipeline, exported).identity["adapter"] == drawing.settings["adapter"]
    assert drawings.draw_again({**drawing.settings, "seed": 4}, loaded) != drawing.image
    assert drawings.save(drawing, tmp_path / "images").name == "xray_adapted_3_1.png"  # none is lost
    with pytest.raises(DasdError, match="another one"):
        drawings.draw_again({**drawing.settings, "adapter": "0"}, loaded)


def test_beside_is_the_base_with_the_same_noise(loaded):
    base, ours = drawings.draw(loaded, "clear lungs", "xray", HOW, 3, beside=True)
    assert (base.settings["model"], ours.settings["model"]) == ("base", "adapted")
    assert base.settings | {"model": 0, "token": 0} == ours.settings | {"model": 0, "token": 0}
    with loaded.pipeline.base():
        alone, *_ = loaded.pipeline.generate("clear lungs", domain="xray", seed=3, settings=HOW)
    assert base.image.tobytes() == alone.tobytes() != ours.image.tobytes()
    assert drawings.draw_again(base.settings, loaded).tobytes() == base.image.tobytes()


def test_without_a_domain_the_base_draws_whatever_the_prompt_names(loaded):
    (drawing,) = drawings.draw(loaded, "<xray> lungs", None, HOW, 3)
    with loaded.pipeline.base():
        expected, *_ = loaded.pipeline.generate("<xray> lungs", seed=3, settings=HOW)
    assert drawing.settings["model"] == "base" and drawing.image.tobytes() == expected.tobytes()
    assert drawings.draw_again(drawing.settings, loaded).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("chosen", "rule", "found", "model"), [
    (AUTO, "cfg", "xray", "adapted"),
    (None, "cfg", None, "base"),
    *(("xray", rule, "xray", "adapted") for rule in ("domain", "decoupled", "unconditional")),
])  # fmt: skip
def test_every_domain_and_guidance_is_kept(loaded, chosen, rule, found, model):
    (drawing,) = drawings.draw(loaded, "lungs", chosen, Calibration(3.0, 2, "ddim", rule, 1.5), 0)
    settings = drawing.settings
    assert (settings["domain"], settings["model"], settings["guidance"]) == (found, model, rule)
    assert drawings.draw_again(settings, loaded).tobytes() == drawing.image.tobytes()


def test_an_interval_of_guidance_is_kept_in_the_image(loaded, tmp_path):
    how = Calibration(3.0, 4, "ddim", guidance_interval=(0.3, 0.7))
    (drawing,) = drawings.draw(loaded, "lungs", "xray", how, 0)
    settings = drawings.read(drawings.save(drawing, tmp_path))
    assert drawings.calibration(settings) == how
    assert drawings.draw_again(settings, loaded).tobytes() == drawing.image.tobytes()


@pytest.mark.parametrize("text", [None, "[1]", "{", '{"prompt": "x"}'])
def test_what_holds_no_settings_is_said(tmp_path, text):
    info = PngImagePlugin.PngInfo()
    if text:
        info.add_text("dasd", text)
    plain = tmp_path / "plain.png"
    Image.new("RGB", (2, 2)).save(plain, pnginfo=info)
    with pytest.raises(DasdError, match="does not say how"):
        drawings.read(plain)
    plain.write_bytes(b"no image")
    with pytest.raises(DasdError, match="cannot be read"):
        drawings.read(plain)
