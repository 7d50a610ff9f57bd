"""From words to a classifier for a domain without labels: its statistics, the study, and the commands."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import dasd
from PIL import Image
from typer.testing import CliRunner

from dasd_utils import data, sampling
from dasd_utils.apps.cli import main as cli
from dasd_utils.config import DasdError
from dasd_utils.papers.diffusionclip import adaptation, translation
from dasd_utils.papers.diffusionclip.adaptation import BOTH, EDGES, REAL, SOURCE, TRANSLATED, Labelled, Study
from dasd_utils.runtime import images, small_cnn

SETTINGS = {"return_step": 300, "forward_steps": 3, "generation_steps": 2, "form": "offset",
            "reference": ("a painting",), "target": ("a sketch",), "strengths": (1.0, 2.0)}  # fmt: skip
TARGET = "toyworld:sketch"


def disc(colour, background=(255, 255, 255)):
    y, x = np.mgrid[:64, :64]
    inside = (x - 32) ** 2 + (y - 32) ** 2 < 15**2
    pixels = np.where(inside[..., None], np.uint8(colour), np.uint8(background))
    return Image.fromarray(pixels.astype(np.uint8))


def test_edges_are_dark_where_brightness_changes_and_nowhere_else():
    drawn = np.asarray(adaptation.edges(disc((200, 30, 30))).convert("L"))
    assert drawn[32, 32] == 255 and drawn[2, 2] == 255  # areas of one colour are paper
    assert drawn[32, 32 - 15 : 32 - 11].min() < 60
    assert np.asarray(adaptation.edges(Image.new("RGB", (64, 64), "red"))).min() == 255


def test_curves_are_of_each_epoch_and_seed():
    pictures = [disc((250, 0, 0)), disc((0, 0, 250))] * 8
    labels = ["red", "blue"] * 8
    own, swapped = Labelled.of(pictures, labels), Labelled.of(pictures, labels[1:] + labels[:1])
    found = adaptation.correct_by_epoch({"own": own}, {"same": own, "swapped": swapped}, 0, epochs=4)
    curve = found["own", "same"]
    assert curve.shape == (4, 16) and curve[-1].tolist() == [1.0] * 16
    assert torch.equal(found["own", "swapped"], 1 - curve)
    shorter = adaptation.correct_by_epoch({"own": own}, {"same": own}, 0, epochs=2)
    assert torch.equal(shorter["own", "same"], curve[:2])
    x, seen = own.pixels, []  # watching changes nothing
    watched = small_cnn.train(x, labels, 3, 2, lambda epoch, made: made(x) is None or seen.append(epoch))
    assert torch.equal(watched(x), small_cnn.train(x, labels, 3, 2)(x)) and seen == [1, 2]


def test_the_share_of_the_gap_by_hand():
    none, full = torch.zeros(3, 4000), torch.ones(3, 4000)
    assert adaptation.share_of_the_gap(full, none, full) == pytest.approx((1, 1, 1))
    own = none.clone()
    for row, count in enumerate((1600, 2000, 2400)):
        own[row, :count] = 1
    value, least, most = adaptation.share_of_the_gap(own, none, full)
    assert value == pytest.approx(0.5) and least < 0.5 < most
    half = (most - least) / 2  # the standard error over seeds, 0.1 / sqrt(3), times t of 2 degrees
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5, rel=0.05)  # images add variance and degrees
    half_right = torch.zeros(3, 100)
    half_right[:, ::2] = 1  # by all seeds alike: what is left are the images
    _, least, most = adaptation.share_of_the_gap(half_right, none[:, :100], full[:, :100])
    assert (most - least) / 2 == pytest.approx(1.984 * 0.5 / 100**0.5, rel=0.1)
    _, least, most = adaptation.share_of_the_gap(half_right[:, :6], none[:, :6], full[:, :6])
    assert (most - least) / 2 == pytest.approx(2.571 * (0.3 / 6) ** 0.5, rel=0.05)  # a bootstrap lacks 6 / 5
    none, some = torch.zeros(2, 3, 50)
    some[:, 0] = 1  # one image of fifty: there is no gap
    assert all(map(math.isnan, adaptation.share_of_the_gap(some, none, some)))
    assert all(map(math.isnan, adaptation.share_of_the_gap(some, none, none)))
    right = (torch.rand(5, 100, generator=torch.Generator().manual_seed(0)) < 0.7).float()
    value, low, high = adaptation.estimate(right).interval()
    assert value == pytest.approx(right.mean().item()) and 0.04 < high - low < 0.2


@pytest.fixture(scope="module")
def config(make_config):
    config = make_config(num_heldout=12, num_bootstrap=20)
    domain = dataclasses.replace(
        config.domains[0], name="paintings", data="toyworld:painting", token=None, label_column="house",
        num_images=6,
    )  # fmt: skip
    plain = {"caption_dropout": 1.0, "lambda_align": 0.0, "validation_every": 0}
    return config.replace(method="diffusionclip", method_settings=SETTINGS, domains=(domain,), **plain)


@pytest.fixture(scope="module")
def study(config):
    return Study(config, TARGET, num_images=16, epochs=2)


@pytest.fixture(scope="module")
def rows(study):
    assert adaptation.run_study(study, [0, 1]) == []
    return adaptation.table(study, [0, 1])


def test_the_table_has_accuracies_of_each_epoch_a_constant_answer_and_distances_from_twins(study, rows):
    found = {(r["method"], r["domain"], r["epoch"]) for r in rows if r["metric"] == "accuracy"}
    methods, places = (SOURCE, TRANSLATED, BOTH, EDGES, REAL), ("sketch", "paintings", TRANSLATED)
    assert found == {(m, d, e) for m in methods for d in places for e in (1, 2)}
    assert all({"n", "seeds", "low", "high"} <= set(row) for row in rows)
    (row,) = [row for row in rows if row["metric"] == "constant_answer"]
    labels = study.images["sketch", "test"].labels
    most = max("no", "yes", key=labels.count)
    assert row["method"] == f"always {most!r}" and row["value"] == labels.count(most) / len(labels)
    assert row["domain"] == "sketch" and row["n"] == 12
    found = {(r["method"], r["metric"]): r["value"] for r in rows if r["metric"] != "accuracy"}
    assert {(m, "twin_mae") for m in (SOURCE, TRANSLATED, EDGES)} <= set(found)
    assert (REAL, "twin_mae") not in found and (REAL, "cmmd") in found
    assert 0 < found[SOURCE, "twin_mae"] < 1 and -1 < found[EDGES, "twin_ssim"] < 1


def test_what_is_kept_is_not_made_again(study, rows, monkeypatch):
    monkeypatch.setattr(adaptation, "measure_seed", None)
    assert adaptation.run_study(study, [0, 1]) == []
    assert adaptation.table(study, [0, 1]) == rows
    assert not Study(study.config, TARGET, num_images=16, epochs=3).path(0).is_file()
    assert not Study(study.config, TARGET, num_images=12, epochs=2).path(0).is_file()


def test_seeds_share_the_inversion_and_not_the_translation(study, rows, tmp_path):
    folder = translation.resolve(study.config.output_dir)
    assert len(list(folder.glob("inverted-*.safetensors"))) == 3  # 6 to choose a strength, 16 and 12
    found = study.images["paintings", "test"]
    own = [translation.pictures(study.config, seed, found) for seed in (0, 1)]
    assert len(own[0]) == 12 and own[0][0].tobytes() != own[1][0].tobytes()
    for number in range(2):
        found.images[number].save(tmp_path / f"{number}.png")
    again = [image for _, image in translation.by_settings(translation.trained(study.config, 0), [tmp_path])]
    pairs = [np.stack(both).astype(int) for both in zip(again, own[0], strict=False)]
    assert max(np.abs(one - other).max() for one, other in pairs) <= 1  # as the command does it


def test_nothing_that_translates_ever_loads_the_target(study, tmp_path, monkeypatch):
    config, load = study.config.replace(output_dir=str(tmp_path / "run")), data.load_domain
    pictures = study.images["paintings", "test"]

    def refuse(domain, *rest):
        assert domain.data != TARGET
        return load(domain, *rest)

    monkeypatch.setattr(data, "load_domain", refuse)
    assert len(translation.pictures(config, 0, pictures)) == 12


def test_the_strength_is_the_one_that_words_find_nearest(config, monkeypatch):
    seen = []

    def denoised(pipeline, config, noisy, amount):
        seen.append(amount)
        return [disc((0, 0, 0)).resize((32, 32))] * len(noisy)

    pipeline = translation.trained(config, 0)
    distances, shown = iter([0.7, 0.4]), []
    monkeypatch.setattr(translation, "denoised", denoised)
    loss = lambda *given: shown.append(given) or torch.tensor(next(distances))  # noqa: E731
    monkeypatch.setattr(translation.objective, "direction_loss", loss)
    assert translation.strength(pipeline, config) == 2.0 and seen == [1.0, 2.0]
    words = translation.objective.Words(config, translation.objective.settings(config), torch.device("cpu"))
    after, before, direction, form = shown[0]
    torch.testing.assert_close(after, words.embed(images.to_pixels(denoised(None, None, after, 0))))
    paintings = data.load_domain(config.domains[0], config).images
    torch.testing.assert_close(before, words.embed(images.to_pixels(paintings)))
    assert torch.equal(direction, words.direction) and form == "offset"


def test_each_set_is_what_its_name_says(study, rows, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        adaptation, "correct_by_epoch", lambda train, test, *_: seen.update(train=train, test=test)
    )
    own = {split: study.images["paintings", split] for split in ("train", "test")}
    real = {split: study.images["sketch", split] for split in ("train", "test")}
    new = {split: translation.pictures(study.config, 0, each) for split, each in own.items()}
    adaptation.classified(study, 0, new)
    expected = {
        ("train", SOURCE): (own["train"].images, own["train"]),
        ("train", TRANSLATED): (new["train"], own["train"]),
        ("train", EDGES): ([adaptation.edges(p) for p in own["train"].images], own["train"]),
        ("train", REAL): (real["train"].images, real["train"]),
        ("test", TRANSLATED): (new["test"], own["test"]),
        ("test", "sketch"): (real["test"].images, real["test"]),
    }
    for (split, name), (pictures, like) in expected.items():
        found = seen[split][name]
        assert torch.equal(found.pixels, small_cnn.pixels(pictures)) and found.labels == like.labels
    assert seen["train"][BOTH].labels == own["train"].labels * 2


def test_what_comes_back_unchanged_is_the_bases(study, rows, monkeypatch):
    seen, images = [], [study.images["paintings", "test"].images[0]] * 12
    monkeypatch.setattr(translation, "denoised", lambda *given: seen.append(given[-1]) or images)
    monkeypatch.setattr(adaptation, "classified", lambda *_: {})
    adaptation.measure_seed(study, 0)
    assert seen == [0]


def test_a_domain_without_labels_is_looked_at_and_not_classified(config):
    whole = data.load_domain(config.domains[0], config, "test")
    part = translation.first_images(whole, 5)
    assert len(part) == len(part.labels) == len(part.mentioned) == len(part.images) == 5
    assert part.labels == whole.labels[:5] and part.thumbnails.shape[0] == 5
    domain = dataclasses.replace(config.domains[0], label_column=None)
    study = Study(config.replace(domains=(domain,)), "toyworld:xray")
    assert adaptation.run_study(study, [0]) == []
    rows = adaptation.table(study, [0])
    assert {row["metric"] for row in rows} == {"cmmd"}  # no twins: other scenes


def test_what_does_not_fit_is_said_before_anything_is_trained(config, tmp_path):
    own = config.replace(output_dir=str(tmp_path / "run"))
    with pytest.raises(DasdError, match="has 8 images; scores need 10"):
        Study(own.replace(num_heldout=8), TARGET).check()
    with pytest.raises(DasdError, match="rename one"):
        Study(own.replace(domains=(dataclasses.replace(own.domains[0], name="sketch"),)), TARGET)
    by_scene = dataclasses.replace(own.domains[0], label_column="scene")
    with pytest.raises(DasdError, match="labels must be the same everywhere, two"):
        Study(own.replace(domains=(by_scene,)), "toyworld:satellite").check()
    path = own.replace(method="dasd", method_settings={}).save(tmp_path / "config.json")
    result = CliRunner().invoke(cli.app, ["adapt", "--config", str(path), "--target", TARGET])
    assert isinstance(result.exception, DasdError) and "diffusionclip" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_the_command_writes_the_table(study, rows, tmp_path):
    path = study.config.save(tmp_path / "config.json")
    words = ["adapt", "--config", str(path), "--target", TARGET, "--seeds", "0,1", "--num_images", "16"]
    result = CliRunner().invoke(cli.app, [*words, "--epochs", "2"])
    assert result.exit_code == 0, result.output
    stored = json.loads((translation.resolve(study.config.output_dir) / "adaptation.json").read_text())
    assert stored["rows"] == rows
    assert "| source images |" in result.output


def test_files_are_translated_by_the_command(study, rows, tmp_path):
    run = translation.run_config(study.config, 0).output_dir
    chosen = [study.images["paintings", "test"].images[i] for i in range(2)]
    (tmp_path / "in").mkdir()
    for number, picture in enumerate(chosen):
        picture.resize((80, 48)).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    said = dasd("translate", tmp_path / "in", "--checkpoint", run, "--strength", 0)
    new = [Path(path) for path in said["images"]]
    assert [path.name for path in new] == ["000_0.png", "001_1.png"]
    pictures = [images.open_file(tmp_path / "in" / f"{number}.png") for number in range(2)]
    back = translation.translate(sampling.load_trained_pipeline(run), pictures, 300, 3, 2, 0.0)
    assert images.open_file(new[0]).tobytes() == back[0].tobytes() and back[0].size == (32, 32)
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for path, said in (("broken.png", "cannot be read"), ("nowhere", "No such file"), ("empty", "no image")):
        result = CliRunner().invoke(cli.app, ["translate", str(tmp_path / path), "--checkpoint", run])
        assert isinstance(result.exception, DasdError) and said in str(result.exception)
