"""Methods differ in what is compared alone; rows are right on images of known quality; files come back."""

import dataclasses
import json
import logging
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dasd_utils import data, evaluation, metrics, toyworld
from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.toyworld.attribute_classifier import AttributeTable

PROMPTS = [p for p in ("aerial view", "a river", "a harbor", "a dark forest") for _ in range(2)]
LABELS = toyworld.ATTRIBUTES["satellite"]["scene"]
RED, GREEN = (200, 30, 30), (30, 200, 30)


def pictures(seed, n, colour):
    """Return noisy images of one colour."""
    random = np.random.default_rng(seed)
    pixels = np.clip(np.array(colour) + random.normal(scale=40, size=(n, 32, 32, 3)), 0, 255)
    return [Image.fromarray(p) for p in pixels.astype(np.uint8)]


@pytest.fixture(scope="module")
def config(base_dir):
    return Config.setup("tiny", clip=base_dir / "clip", num_bootstrap=50, seed=3)


@pytest.fixture(scope="module")
def scorer(config):
    return evaluation.load_scorer(config, "cpu")


@pytest.fixture(scope="module")
def score(scorer, config):
    """Return `score(method, images, ...)`: the rows of images for PROMPTS, against red held-out ones."""

    def rows_of(method, images, prompts=PROMPTS, heldout=None, own=scorer):
        heldout = pictures(2, 12, RED) if heldout is None else heldout
        return evaluation.score_method(method, "satellite", images, prompts, heldout, own, config)

    return rows_of


@pytest.fixture(scope="module")
def rows(score):
    return score("good", pictures(0, 8, RED)) + score("bad", pictures(1, 8, GREEN))


# the rows of a method


def test_rows_have_the_agreed_fields_and_images_like_the_held_out_ones_score_better(rows, config):
    assert [row["metric"] for row in rows] == 2 * ["clip_score", "clip_floor", "cmmd", "kid"]
    for row in rows:
        assert list(row) == ["method", "domain", "metric", "value", "low", "high", "n", "seed"]
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["domain"], row["n"], row["seed"]) == ("satellite", 8, config.seed)
    for good, bad in ((rows[2], rows[6]), (rows[3], rows[7])):  # CMMD and KID
        assert good["high"] < bad["low"]


def test_values_are_those_of_metrics(rows, score, scorer):
    red, heldout = scorer.embed(pictures(0, 8, RED)), scorer.embed(pictures(2, 12, RED))
    texts, groups = scorer.embed_texts(PROMPTS), [PROMPTS.index(p) for p in PROMPTS]
    assert rows[0]["value"] == pytest.approx(metrics.clip_scores(red, texts).mean().item(), abs=1e-6)
    assert rows[2]["value"] == pytest.approx(metrics.cmmd(red, heldout, groups), rel=1e-3)
    assert score("good", pictures(0, 8, RED), heldout=heldout) == rows[:4]  # features instead of images


def test_images_of_one_prompt_are_one_unit(rows, scorer):
    prompts = evaluation.embed_prompts(PROMPTS, scorer)
    groups = prompts.groups.tolist()
    assert len(set(groups)) == 4 and groups[::2] == groups[1::2]
    scores = metrics.clip_scores(scorer.embed(pictures(0, 8, RED)), prompts.features)
    expected = metrics.bootstrap_interval(scores, num_bootstrap=50, groups=groups)
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx(expected)


def test_a_caption_of_its_own_beats_the_floor(scorer, score, monkeypatch):
    """Features of prompts in place of those of images: each image shows its prompt exactly."""
    texts = scorer.embed_texts(PROMPTS)
    monkeypatch.setattr(evaluation.Scorer, "embed", lambda *_: texts)
    values = {row["metric"]: row for row in score("exact", PROMPTS, heldout=texts)}
    assert values["clip_score"]["value"] == pytest.approx(1.0, abs=1e-5)
    assert values["clip_floor"]["high"] < values["clip_score"]["low"]


def test_images_and_prompts_are_as_many_and_prompts_differ(score):
    images = pictures(0, 8, RED)
    with pytest.raises(DasdError, match="8 images came with 7 prompts"):
        score("m", images, PROMPTS[:7])
    for prompts, heldout in ((["a"] * 8, images), (PROMPTS, images[:1])):
        with pytest.raises(ValueError, match="at least two independent samples, not 1"):
            score("m", images, prompts, heldout)


def test_scores_of_prompts_do_not_depend_on_the_number_of_heldout_images(score):
    """Only a distance of both sets has the fewer of prompts and held-out images as its units."""

    def widths(heldout):
        rows = score("m", pictures(0, 8, RED), PROMPTS, pictures(20, heldout, RED))
        return {row["metric"]: row["high"] - row["low"] for row in rows}

    few, many = widths(3), widths(12)
    assert few["clip_score"] == pytest.approx(many["clip_score"]) and few["cmmd"] > 1.2 * many["cmmd"]


def test_a_classifier_of_attributes_adds_the_share_shown(scorer, score):
    class Reader:
        table = AttributeTable({"satellite": {"scene": ["river", "harbor"], "bridge": ["yes", "no"]}})

        def read(self, images, domain):
            return [{"scene": "river", "bridge": "yes"}] * len(images)

    def values(mentioned, reader):
        own = dataclasses.replace(scorer, attribute_classifier=reader)
        prompts = evaluation.embed_prompts(PROMPTS, own, mentioned)
        return {row["metric"]: row["value"] for row in score("m", pictures(0, 8, RED), prompts, own=own)}

    four = [{"scene": "river"}, {"scene": "river", "bridge": "no"}, {"scene": "harbor"}, {"bridge": "yes"}]
    mentioned = [entry for entry in four for _ in range(2)]
    assert values(mentioned, Reader())["attribute_accuracy"] == pytest.approx(2.5 / 4)
    with pytest.raises(DasdError, match="no scene = 'lake'"):
        values([{"scene": "lake"}] * 8, Reader())
    for given, reader in ((mentioned, None), ([*mentioned[:7], None], Reader()), (None, Reader())):
        assert "attribute_accuracy" not in values(given, reader)


# the scorer


def test_the_scorer_is_frozen_and_loads_quietly(config, caplog):
    with caplog.at_level(logging.WARNING):
        scorer = evaluation.load_scorer(config, "cpu")
    assert not scorer.clip.training and caplog.text == ""
    assert not any(p.requires_grad for p in scorer.clip.parameters())


# prompts


MALFORMED = [{"prompts": ["one"]}, {"prompts": ["one", ""]}, {"prompts": "two"}, {"prompts": ["a", {}]},
             {"prompts": ["a", {"text": None}]},
             {"prompts": ["a", {"text": "y", "attributes": ["a"]}]}]  # fmt: skip


def test_prompts_are_strings_or_objects_with_text_and_attributes(config, tmp_path):
    config = config.replace(prompts_dir=str(tmp_path))
    with pytest.raises(DasdError, match=r"domain 'satellite' cannot be read from .*satellite\.json"):
        evaluation.load_prompts(config, "satellite")
    given = ["a river", {"text": "a harbor", "attributes": {"scene": "harbor"}, "more": 1}]
    path = tmp_path / "satellite.json"
    path.write_text(json.dumps({"domain": "satellite", "prompts": given}), encoding="utf8")
    assert evaluation.load_prompts(config, "satellite") == ["a river", "a harbor"]
    assert evaluation.read_prompts(config, "satellite")[1] == given[1]
    for values in MALFORMED:
        path.write_text(json.dumps(values), encoding="utf8")
        with pytest.raises(DasdError, match=r"satellite\.json must hold"):
            evaluation.load_prompts(config, "satellite")


# sampling every method, and the whole path


class Recorder:
    """Stands in for a pipeline: remembers its calls, returns images that say prompt and number."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts, num_images, **options):
        self.calls.append({"prompts": prompts, "num_images": num_images, **options})
        numbers = range(num_images)
        images = [[Image.new("RGB", (8, 8), (p, i, 0)) for i in numbers] for p in range(len(prompts))]
        return images if num_images > 1 else [row[0] for row in images], None, None


def calls(config):
    recorder = Recorder()
    for method in evaluation.METHODS:
        evaluation.sample_method(config, recorder, method, config.domains[0], ["a harbor", "a forest"])
    return recorder.calls


def test_methods_share_seeds_settings_and_counts(tiny_config):
    base, style, dasd = calls(tiny_config)
    for name in ("seed", "settings", "num_images"):
        assert base[name] == style[name] == dasd[name]
    assert base["settings"].guidance_scale == tiny_config.evaluation.guidance_scale
    assert base["prompts"] == dasd["prompts"] == ["a harbor", "a forest"]
    assert (base["domain"], style["domain"], dasd["domain"]) == (None, None, "satellite")
    assert style["prompts"] == [f"{p}, {tiny_config.domains[0].style_suffix}" for p in base["prompts"]]
    other = calls(tiny_config.replace(seed=1))[0]["seed"]
    assert len({*base["seed"], *other}) == 4  # each prompt has noise of its own


@pytest.mark.parametrize("count", [1, 2])
def test_images_come_prompt_by_prompt(tiny_config, count):
    config = tiny_config.replace(images_per_prompt=count)
    made = evaluation.sample_method(config, Recorder(), "DASD", config.domains[0], ["a", "b"])
    assert [image.getpixel((0, 0))[:2] for image in made] == [(p, i) for p in range(2) for i in range(count)]
    with pytest.raises(DasdError, match="DASD"):
        evaluation.sample_method(config, Recorder(), "dasd", config.domains[0], ["a"])


def test_the_protocol_is_that_of_the_config(tiny_config):
    """Not that of the run which the pipeline was loaded from."""
    recorder = Recorder()
    recorder.config = tiny_config.replace(images_per_prompt=5)
    rows, images = evaluation.evaluate(tiny_config, recorder, methods=("base",), progress=False)
    assert len(images["base", "satellite"]) == rows[0]["n"] == 40
    assert {row["metric"] for row in rows} == {"clip_score", "clip_floor", "cmmd", "kid"}


def test_wrong_attributes_and_few_images_are_refused_before_any_sampling(tiny_config, scorer, monkeypatch):
    table = AttributeTable({"satellite": {"scene": ["harbor"]}})
    own = dataclasses.replace(scorer, attribute_classifier=SimpleNamespace(table=table))
    monkeypatch.setattr(evaluation, "load_scorer", lambda config: own)
    recorder = Recorder()
    with pytest.raises(DasdError, match="no scene = 'airport'"):
        evaluation.evaluate(tiny_config, recorder, progress=False)
    monkeypatch.undo()
    with pytest.raises(DasdError, match="two held-out images of satellite or more, not 1"):
        evaluation.evaluate(tiny_config.replace(num_heldout=1), recorder, progress=False)
    assert recorder.calls == []


def test_a_damaged_attribute_classifier_is_named(tiny_config, tmp_path):
    shutil.copytree(resolve(tiny_config.model.base), tmp_path / "base")
    (tmp_path / "base" / "reader").mkdir(exist_ok=True)
    (tmp_path / "base" / "reader" / "config.json").write_text('{"width": ', encoding="utf8")
    with pytest.raises(DasdError, match=r"attribute classifier .*reader cannot be read"):
        evaluation.load_scorer(tiny_config.replace(base=str(tmp_path / "base")), "cpu")


# files and tables


def test_results_come_back_as_they_were_saved(tmp_path, config, rows):
    path = evaluation.save_results(tmp_path / "new" / "07_evaluation.json", config, rows)
    results = evaluation.load_results(path)
    assert results["rows"] == rows
    assert type(config).from_dict(results["config"]) == config
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        evaluation.save_results(path, config, [{"value": float("nan")}])
    (tmp_path / "none.json").write_text('{"rows": 1}')
    with pytest.raises(DasdError, match="holds no results"):
        evaluation.load_results(tmp_path / "none.json")
    assert evaluation.load_results(path) == results and os.listdir(path.parent) == ["07_evaluation.json"]


def test_the_table_has_a_column_per_method():
    def row(method, metric, value, seed=0):
        ends = {"value": value, "low": value - 0.01, "high": value + 0.01}
        return {"method": method, "metric": metric, **ends, "domain": "xray", "n": 80, "seed": seed}

    rows = [row("base", "clip_score", 0.2), row("DASD", "clip_score", 0.3), row("DASD", "cmmd", 5.0)]
    lines = evaluation.table(rows).split("\n")
    assert lines[:2] == ["| domain | metric | base | DASD |", "|---|---|---|---|"]
    assert lines[2] == "| xray | CLIP score ↑ | 0.200 [0.190, 0.210] | 0.300 [0.290, 0.310] |"
    assert lines[3] == "| xray | CMMD ↓ |  | 5.00 [4.99, 5.01] |"
    assert "(seed 1)" in evaluation.table([*rows, row("base", "kid", 1.0, seed=1)])


def test_real_images_of_two_captions_are_no_distance_from_real_images(tiny_config, scorer, config):
    """Each is a unit of its own: leaving out all pairs of one caption would compare two classes instead."""
    captions = dict.fromkeys(LABELS, "a place") | {"harbor": "a harbor"}
    changes = {"label_column": "scene", "caption_column": None, "label_captions": captions}
    domain = dataclasses.replace(tiny_config.domains[0], **changes)
    heldout = data.load_domain(domain, config.replace(num_heldout=120), "test")
    own, rest = list(heldout.images)[:60], list(heldout.images)[60:]
    given = evaluation.prompts_of(heldout, scorer, 60)
    assert len(set(given.texts)) == 2
    rows = evaluation.score_method("real", domain.name, own, given, rest, scorer, config)
    [cmmd] = [row for row in rows if row["metric"] == "cmmd"]
    assert cmmd["low"] < 0 < cmmd["high"]
    assert cmmd["value"] == pytest.approx(metrics.cmmd(scorer.embed(own), scorer.embed(rest)), rel=1e-6)


class Mean(torch.nn.Module):
    """Stands in for Inception: bytes (n, 3, h, w) to three numbers."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8 and return_features
        return x.float().mean(dim=(2, 3))


def test_inception_is_a_file_that_the_config_names(base_dir, tmp_path):
    path = tmp_path / "inception.pt"
    torch.jit.script(Mean()).save(path)
    config = Config.setup("tiny", base=base_dir, clip=base_dir / "clip", inception=str(path))
    scorer = evaluation.load_scorer(config, "cpu")
    images = [Image.new("RGB", (5, 4), (10, 20, 30)), Image.new("L", (7, 7), 50)]
    assert scorer.embed_inception(images).tolist() == [[10, 20, 30], [50, 50, 50]]
    assert evaluation.load_scorer(config.replace(inception=None), "cpu").inception is None
    path.write_bytes(b"no archive")
    with pytest.raises(DasdError, match=r"inception names .*inception\.pt, which is no TorchScript file"):
        evaluation.load_scorer(config, "cpu")
