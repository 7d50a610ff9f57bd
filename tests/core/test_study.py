"""Methods differ in what is compared and in nothing else."""

from types import SimpleNamespace

import pytest
from conftest import on_narrow_base
from PIL import Image

from dasd_utils import evaluation
from dasd_utils.config import DasdError
from dasd_utils.toyworld.attribute_classifier import AttributeTable


class Recorder:
    """Stands in for a pipeline: remembers what it was asked, returns named images."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts, num_images, **options):
        self.calls.append({"prompts": prompts, "num_images": num_images, **options})
        images = [
            [Image.new("RGB", (8, 8), (p, i, 0)) for i in range(num_images)] for p in range(len(prompts))
        ]
        return images if num_images > 1 else [row[0] for row in images], None, None


@pytest.fixture
def config(base_dir, tmp_path):
    changes = dict(images_per_prompt=2, num_heldout=6, num_bootstrap=20, num_inference_steps=1)
    return on_narrow_base("tiny", base_dir, base_dir / "clip", tmp_path, **changes)


def calls(config, prompts=("a harbor", "a forest")):
    recorder = Recorder()
    for method in evaluation.METHODS:
        evaluation.sample_method(config, recorder, method, config.domains[0], list(prompts))
    return recorder.calls


def test_methods_share_seeds_settings_and_counts(config):
    base, style, dasd = calls(config)
    for name in ("seed", "settings", "num_images"):
        assert base[name] == style[name] == dasd[name]
    assert base["settings"].guidance_scale == config.evaluation.guidance_scale
    assert base["prompts"] == dasd["prompts"] == ["a harbor", "a forest"]
    assert (base["domain"], style["domain"], dasd["domain"]) == (None, None, "satellite")
    assert style["prompts"] == [f"{p}, {config.domains[0].style_suffix}" for p in base["prompts"]]


def test_each_prompt_has_noise_of_its_own(config):
    first, second = calls(config)[0]["seed"], calls(config.replace(seed=1))[0]["seed"]
    assert len({*first, *second}) == 4


@pytest.mark.parametrize("count", [1, 2])
def test_images_come_prompt_by_prompt(config, count):
    config = config.replace(images_per_prompt=count)
    made = evaluation.sample_method(config, Recorder(), "DASD", config.domains[0], ["a", "b"])
    assert [image.getpixel((0, 0))[:2] for image in made] == [(p, i) for p in range(2) for i in range(count)]


def test_unknown_method(config):
    with pytest.raises(DasdError, match="DASD"):
        evaluation.sample_method(config, Recorder(), "dasd", config.domains[0], ["a"])


def test_protocol_is_that_of_the_config(config):
    """Not that of the run which the pipeline was loaded from."""
    recorder = Recorder()
    recorder.config = config.replace(images_per_prompt=5)
    rows, images = evaluation.evaluate(config, recorder, methods=("base",), progress=False)
    assert len(images["base", "satellite"]) == rows[0]["n"] == 40
    assert {row["metric"] for row in rows} == {"clip_score", "clip_floor", "cmmd", "kid"}


def test_wrong_attributes_are_refused_before_any_sampling(config, monkeypatch):
    table = AttributeTable({"satellite": {"scene": ["harbor"]}})
    scorer = evaluation.Scorer(None, None, None, SimpleNamespace(table=table))
    monkeypatch.setattr(evaluation, "load_scorer", lambda config: scorer)
    recorder = Recorder()
    with pytest.raises(DasdError, match="no scene = 'airport'"):
        evaluation.evaluate(config, recorder, progress=False)
    assert recorder.calls == []
