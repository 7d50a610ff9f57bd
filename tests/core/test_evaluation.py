"""The protocol on images of known quality, and the files it reads and writes."""

import dataclasses
import json
import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

from dasd_utils import evaluation, metrics
from dasd_utils.config import Config, DasdError
from dasd_utils.toyworld.attribute_classifier import AttributeTable

PROMPTS = [p for p in ("aerial view", "a river", "a harbor", "a dark forest") for _ in range(2)]


def pictures(seed, n, colour):
    """Return noisy pictures of one colour."""
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
def rows(scorer, config):
    red, green = pictures(0, 8, (200, 30, 30)), pictures(1, 8, (30, 200, 30))
    heldout = pictures(2, 12, (200, 30, 30))
    return [
        row
        for method, images in (("good", red), ("bad", green))
        for row in evaluation.score_method(method, "satellite", images, PROMPTS, heldout, scorer, config)
    ]


def test_rows_have_the_agreed_fields(rows, config):
    assert [row["metric"] for row in rows] == 2 * ["clip_score", "clip_floor", "cmmd", "kid"]
    for row in rows:
        assert list(row) == ["method", "domain", "metric", "value", "low", "high", "n", "seed"]
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["domain"], row["n"], row["seed"]) == ("satellite", 8, config.seed)


def test_images_like_the_held_out_ones_score_better(rows):
    found = {(row["method"], row["metric"]): row for row in rows}
    for metric in ("cmmd", "kid"):
        assert found["good", metric]["high"] < found["bad", metric]["low"]


def test_values_are_those_of_metrics(rows, scorer, config):
    red, heldout = scorer.embed(pictures(0, 8, (200, 30, 30))), scorer.embed(pictures(2, 12, (200, 30, 30)))
    texts = metrics.embed_texts(scorer.clip, scorer.tokenizer, PROMPTS)
    groups = [PROMPTS.index(p) for p in PROMPTS]
    values = {row["metric"]: row["value"] for row in rows if row["method"] == "good"}
    assert values["clip_score"] == pytest.approx(metrics.clip_score(red, texts), abs=1e-6)
    assert values["cmmd"] == pytest.approx(metrics.cmmd(red, heldout, groups), rel=1e-3)
    features = evaluation.score_method("good", "satellite", red_images(), PROMPTS, heldout, scorer, config)
    assert features == rows[:4]  # held-out features instead of images


def red_images():
    return pictures(0, 8, (200, 30, 30))


def test_a_caption_of_its_own_beats_the_floor(scorer, config, monkeypatch):
    """Features of prompts in place of those of images: each image shows its prompt exactly."""
    texts = metrics.embed_texts(scorer.clip, scorer.tokenizer, PROMPTS)
    monkeypatch.setattr(evaluation.metrics, "embed_images", lambda *_: texts)
    scored = evaluation.score_method("exact", "satellite", PROMPTS, PROMPTS, texts, scorer, config)
    values = {row["metric"]: row for row in scored}
    assert values["clip_score"]["value"] == pytest.approx(1.0, abs=1e-5)
    assert values["clip_floor"]["high"] < values["clip_score"]["low"]


def test_score_method_refuses_before_it_embeds(config):
    images = red_images()
    with pytest.raises(DasdError, match="8 images came with 7 prompts"):
        evaluation.score_method("m", "d", images, PROMPTS[:7], images, None, config)
    with pytest.raises(DasdError, match="two different prompts"):
        evaluation.score_method("m", "d", images, ["a"] * 8, images, None, config)
    with pytest.raises(DasdError, match="two held-out images, not 1"):
        evaluation.score_method("m", "d", images, PROMPTS, images[:1], None, config)


# the scorer


def test_the_judge_is_frozen_and_loads_quietly(config, caplog):
    with caplog.at_level(logging.WARNING):
        scorer = evaluation.load_scorer(config, "cpu")
    assert not scorer.clip.training
    assert not any(p.requires_grad for p in scorer.clip.parameters())
    assert caplog.text == ""


def test_a_missing_judge_says_where_it_was_looked_for(config, tmp_path):
    with pytest.raises(DasdError, match=r"no folder .*nowhere/clip"):
        evaluation.load_scorer(config.replace(clip=str(tmp_path / "nowhere" / "clip")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DasdError, match=r"cannot be loaded from .*empty"):
        evaluation.load_scorer(config.replace(clip=str(tmp_path / "empty")))


# files


def write_prompts(config, tmp_path, values):
    (tmp_path / "satellite.json").write_text(json.dumps(values), encoding="utf8")
    return config.replace(prompts_dir=str(tmp_path))


def test_prompts_are_strings_or_objects_with_text(config, tmp_path):
    values = {"domain": "satellite", "prompts": ["a river", {"text": "a harbor", "attributes": {"n": 1}}]}
    config = write_prompts(config, tmp_path, values)
    assert evaluation.load_prompts(config, "satellite") == ["a river", "a harbor"]


@pytest.mark.parametrize(
    "values",
    [{"prompts": ["one"]}, {"prompts": ["one", ""]}, {"prompts": "two"}, {"prompts": ["a", {}]}, ["a", "b"]],
)
def test_malformed_prompts_are_refused(config, tmp_path, values):
    with pytest.raises(DasdError, match=r"satellite\.json must hold"):
        evaluation.load_prompts(write_prompts(config, tmp_path, values), "satellite")


def test_told_attributes_are_all_or_none(config, tmp_path):
    both = [{"text": "a river", "attributes": {"scene": "river"}}, {"text": "x", "attributes": {"a": "b"}}]
    assert evaluation.load_mentioned(write_prompts(config, tmp_path, {"prompts": both}), "satellite") == [
        {"scene": "river"},
        {"a": "b"},
    ]
    some = write_prompts(config, tmp_path, {"prompts": [both[0], "a harbor"]})
    assert evaluation.load_mentioned(some, "satellite") is None
    wrong = write_prompts(config, tmp_path, {"prompts": [{"text": "x", "attributes": ["a"]}, both[1]]})
    with pytest.raises(DasdError, match="object of texts"):
        evaluation.load_mentioned(wrong, "satellite")


def test_a_reader_adds_the_share_of_attributes_shown(scorer, config):
    class Reader:
        table = AttributeTable({"satellite": {"scene": ["river", "harbor"], "bridge": ["yes", "no"]}})

        def read(self, images, domain):
            return [{"scene": "river", "bridge": "yes"}] * len(images)

    def score(mentioned, reader):
        reading = dataclasses.replace(scorer, reader=reader)
        prompts = evaluation.embed_prompts(PROMPTS, reading, mentioned)
        given = ("DASD", "satellite", pictures(0, 8, (9, 9, 9)), prompts, pictures(2, 4, (9, 9, 9)))
        return {row["metric"]: row["value"] for row in evaluation.score_method(*given, reading, config)}

    four = [{"scene": "river"}, {"scene": "river", "bridge": "no"}, {"scene": "harbor"}, {"bridge": "yes"}]
    mentioned = [entry for entry in four for _ in range(2)]
    assert score(mentioned, Reader())["attribute_accuracy"] == pytest.approx(2.5 / 4)
    with pytest.raises(DasdError, match="no scene = 'lake'"):
        score([{"scene": "lake"}] * 8, Reader())
    for values, reader in ((mentioned, None), ([*mentioned[:7], None], Reader()), (None, Reader())):
        assert "attribute_accuracy" not in score(values, reader)


def test_missing_prompts_say_which_file(config, tmp_path):
    with pytest.raises(DasdError, match=r"domain 'satellite' cannot be read from .*satellite\.json"):
        evaluation.load_prompts(config.replace(prompts_dir=str(tmp_path)), "satellite")


def test_results_come_back_as_they_were_saved(tmp_path, config, rows):
    path = evaluation.save_results(tmp_path / "new" / "06_evaluation.json", config, rows)
    results = evaluation.load_results(path)
    assert results["rows"] == rows
    assert type(config).from_dict(results["config"]) == config
    assert os.listdir(path.parent) == ["06_evaluation.json"]
    assert path.stat().st_mode & 0o044 == 0o044


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = evaluation.save_results(tmp_path / "r.json", {}, [{"value": 1.0}])
    before = path.read_text()
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        evaluation.save_results(path, {}, [{"value": float("nan")}])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DasdError, match="No space left"):
        evaluation.save_results(path, {}, [{"value": 2.0}])
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["r.json"]


def test_results_that_are_none_are_refused(tmp_path):
    with pytest.raises(DasdError, match="cannot be read"):
        evaluation.load_results(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("no")
    with pytest.raises(DasdError, match="no JSON"):
        evaluation.load_results(tmp_path / "text.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DasdError, match="holds no results"):
        evaluation.load_results(tmp_path / "other.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DasdError, match="cannot be written"):
        evaluation.save_results(tmp_path / "file" / "r.json", {}, [])


def test_the_table_has_a_column_per_method():
    def row(method, metric, value, seed=0):
        low, high = value - 0.01, value + 0.01
        fixed = {"domain": "xray", "n": 80, "seed": seed}
        return {"method": method, "metric": metric, "value": value, "low": low, "high": high, **fixed}

    rows = [row("base", "clip_score", 0.2), row("DASD", "clip_score", 0.3), row("DASD", "cmmd", 5.0)]
    lines = evaluation.table(rows).split("\n")
    assert lines[0] == "| domain | metric | base | DASD |"
    assert lines[1] == "|---|---|---|---|"
    assert lines[2] == "| xray | CLIP score ↑ | 0.200 [0.190, 0.210] | 0.300 [0.290, 0.310] |"
    assert lines[3] == "| xray | CMMD ↓ |  | 5.00 [4.99, 5.01] |"
    assert "(seed 1)" in evaluation.table([*rows, row("base", "kid", 1.0, seed=1)])


def test_features_of_a_judge_have_unit_norm(scorer):
    norms = scorer.embed(red_images()).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(8))


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
