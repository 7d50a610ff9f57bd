"""No command replaces what stands there silently: it refuses, takes a free name, or was told to."""

import json
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from PIL import Image

from dasd_utils import evaluation, sampling
from dasd_utils.apps import animation
from dasd_utils.apps.cli import runs, study
from dasd_utils.apps.cli.options import app, free_path
from dasd_utils.config import ROOT, Config, DasdError
from dasd_utils.papers.diffusionclip import translation
from dasd_utils.pretrain import build, evaluate
from dasd_utils.pretrain.evaluate import scores_file
from dasd_utils.study import calibration


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a copy of the shipped run; what loads it returns its config alone."""
    shutil.copytree(ROOT / "data/tiny-run", tmp_path / "run")
    config = Config.load(tmp_path / "run" / "config.json").replace(output_dir=tmp_path / "run")
    pipeline = SimpleNamespace(config=config, batch_size=2)
    monkeypatch.setattr(sampling, "load_trained_pipeline", lambda *_: pipeline)
    return tmp_path / "run"


@pytest.mark.parametrize(("name", "command", "words"), [
    ("evaluation.json", runs.evaluate, {"checkpoint": "."}),
    ("samples.webp", runs.animate, {"run": "."}),
    ("samples.webp", runs.animate, {"run": ".", "output": "samples.webp"}),
    ("out/README.md", runs.export, {"run": ".", "out": "out"}),
])  # fmt: skip
def test_a_result_is_replaced_by_force_alone(run, monkeypatch, name, command, words):
    mine = run / name
    mine.unlink(missing_ok=True)
    monkeypatch.setattr(runs, "evaluate_run", lambda _: (mine, []) if mine.write_text("new") else None)
    monkeypatch.setattr(animation, "of_run", lambda run: {})
    monkeypatch.setattr(animation, "save", lambda pictures, path, *_: path.write_text("new") and path)
    given = {key: run / value for key, value in words.items()}
    given |= {"samples": False} if command is runs.export else {}
    command(**given)
    mine.write_text("mine")
    with pytest.raises(DasdError, match="is there already"):
        command(**given)
    assert mine.read_text() == "mine"
    command(**given, force=True)
    assert mine.read_text() != "mine"


def test_a_calibration_stays_and_that_is_said(run, monkeypatch, caplog):
    (run / "calibration.json").write_text(json.dumps({"xray": {"scheduler": "ddim"}}))
    monkeypatch.setattr(evaluation, "load_scorer", lambda config: None)
    monkeypatch.setattr(calibration, "search", lambda *_: pytest.fail("It searches."))
    study.calibrate(checkpoint=run, budget=3)
    assert "was there already and stays: --again" in caplog.text


def test_what_is_drawn_takes_free_names_and_is_saved_as_it_comes(run, monkeypatch):
    def stream(prompt, _folder, domain, num_images, seed, **_):
        def images():
            for number in range(num_images):
                if number == 2:
                    raise KeyboardInterrupt
                yield Image.new("RGB", (8, 8), prompt)

        return {"domain": domain, "seed": seed}, images()

    monkeypatch.setattr(sampling.load_trained_pipeline(run), "stream", stream, raising=False)
    runs.generate(checkpoint=run, prompt="red", domain="xray", num_images=2, seed=1)
    with pytest.raises(KeyboardInterrupt):
        runs.generate(checkpoint=run, prompt="blue", domain="xray", num_images=9, seed=1)
    found = {path.stem: Image.open(path).getpixel((0, 0)) for path in (run / "generated").iterdir()}
    red, blue = (255, 0, 0), (0, 0, 255)
    assert found == {"xray_1_0": red, "xray_1_1": red, "xray_1_0-1": blue, "xray_1_1-1": blue}


def test_pictures_take_free_names_and_are_saved_as_they_are_made(run, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8)).save(pictures / f"{name}.png")
    made = []

    def translated(_pipeline, images, *_settings):
        made.append(len(list((run / "translated").glob("*.png"))))
        if len(made) == 4:
            raise KeyboardInterrupt
        return images

    own = SimpleNamespace(return_step=1, forward_steps=1, generation_steps=1, strengths=(1.0,))
    monkeypatch.setattr(translation, "run_config", lambda *_: None)
    monkeypatch.setattr(translation.objective, "settings", lambda _: own)
    monkeypatch.setattr(translation, "translate", translated)
    runs.translate(checkpoint=run, pictures=[pictures])
    with pytest.raises(KeyboardInterrupt):
        runs.translate(checkpoint=run, pictures=[pictures])
    assert made == [0, 2, 3, 5]  # two at a time; the second command adds to the first one's
    names = {"000_a", "001_b", "002_c", "000_a-1", "001_b-1"}
    assert {path.stem for path in (run / "translated").iterdir()} == names
    assert free_path(run / "new.png") == run / "new.png"


@pytest.mark.parametrize("made", [scores_file, lambda base: base / "model_index.json"])
def test_a_base_and_its_scores_are_replaced_by_force_alone(made, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "measure_base", lambda *_: (tmp_path, []))
    monkeypatch.setattr(build, "pretrain", lambda *_: tmp_path)
    how = {"output_dir": tmp_path / "base", "evaluate": made is scores_file}
    study.pretrain(**how)
    (tmp_path / "base").mkdir()
    made(tmp_path / "base").write_text("mine")
    with pytest.raises(DasdError, match="is there already: replace it by --force"):
        study.pretrain(**how)
    study.pretrain(**how, force=True)
    if how["evaluate"]:
        with pytest.raises(DasdError, match="takes no --stage"):
            study.pretrain(**how, force=True, stage=["vae"])
    else:
        made(tmp_path / "base").rename(tmp_path / "base" / "photo.png")
        with pytest.raises(DasdError, match="holds no base model"):
            study.pretrain(**how, force=True)
    assert scores_file(ROOT / "data/tiny-sd") == ROOT / "data/results/pretrain.json"


@pytest.mark.parametrize("name", ["ladder", "front", "adapt", "sweep"])
def test_a_study_says_that_it_writes_its_table_anew(name):
    (help_of,) = (one.callback.__doc__ for one in app.registered_commands if one.callback.__name__ == name)
    assert "anew" in help_of.splitlines()[0]


def test_commands_that_draw_at_once_take_different_names(tmp_path):
    class Drawn:
        """An image; while it is written another command writes one of the same name."""

        def save(self, path, **options):
            runs.save_image(Image.new("RGB", (8, 8), "red"), tmp_path / "a.png")
            Image.new("RGB", (8, 8), "blue").save(path, **options)

    assert runs.save_image(Drawn(), tmp_path / "a.png") == str(tmp_path / "a.png")
    found = {path.stem: Image.open(path).getpixel((0, 0)) for path in tmp_path.iterdir()}
    assert found == {"a": (0, 0, 255), "a-1": (255, 0, 0)}


def test_of_an_image_that_was_not_written_nothing_stays(tmp_path):
    for error, refused in ((KeyboardInterrupt, KeyboardInterrupt), (OSError(28, "No space left"), DasdError)):
        image = Mock(**{"save.side_effect": error})
        with pytest.raises(refused, match=r"a.png: No space left|^$"):
            runs.save_image(image, tmp_path / "a.png")
    assert not [*tmp_path.iterdir()]
