"""Every score of a sample set does what it says, on sets whose answer is known."""

import dataclasses

import pytest
import torch

from dasd_utils import data, evaluation, metrics
from dasd_utils.config import DasdError
from dasd_utils.study import ladder

COUNT = 16


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(num_heldout=COUNT, num_bootstrap=50)


@pytest.fixture(scope="module")
def scorer(config, quick_cnn):
    return evaluation.load_scorer(config, "cpu")


@pytest.fixture(scope="module")
def wanted(config, scorer):
    return evaluation.load_reference(config.domains[0], config, scorer, COUNT)


@pytest.fixture(scope="module")
def domains(config):
    more = {"source": dataclasses.replace(config.source, num_images=150)}
    more["domains"] = tuple(dataclasses.replace(d, num_images=150) for d in config.domains)
    return ladder.Scoring(config.replace(**more)).domains


def heldout(config, count=COUNT):
    return list(data.load_domain(config.domains[0], config.replace(num_heldout=count), "test").images)


def test_the_reference_is_of_held_out_images(config, scorer, wanted):
    test, train = (data.load_domain(config.domains[0], config, split) for split in ("test", "train"))
    assert wanted.prompts.texts == [each[0] for each in test.captions]
    assert wanted.prompts.labels == test.labels and len(wanted.train) == len(train)
    assert not set(test.ids) & set(train.ids)
    assert not any("<satellite>" in prompt for prompt in wanted.prompts.texts)
    single = dataclasses.replace(train, labels=["one"] * len(train))  # one label for all teaches nothing
    assert evaluation.prompts_of(single, scorer, COUNT).labels is None
    bare = dataclasses.replace(train, captions=[[""], *train.captions[1:]])
    texts = evaluation.prompts_of(bare, scorer, 2).texts
    assert texts == ["satellite", train.captions[1][0]]  # no caption: asked for and scored by its domain
    with pytest.raises(DasdError, match="test split of satellite has 5 images"):
        evaluation.load_reference(config.domains[0], config, scorer, 5)


def test_held_out_images_themselves_are_perfect(config, scorer, wanted, domains):
    found = evaluation.score_images(heldout(config), wanted, scorer, domains)
    assert torch.equal(found["features"], wanted.heldout)
    assert all(found[name].eq(1).all() for name in ("precision", "recall", "coverage"))
    assert found["copy_rank"].mean() == pytest.approx(0.5)
    texts = wanted.prompts.features
    torch.testing.assert_close(found["clip_score"], (wanted.heldout * texts).sum(dim=1))
    alike = dataclasses.replace(wanted.prompts, labels=["river"] * COUNT)  # which teach no classifier
    assert "synthetic_to_real" in found
    other = evaluation.score_images(heldout(config), wanted, scorer, domains, own=alike)
    assert found.keys() - other.keys() == {"synthetic_to_real"}
    estimate = evaluation.estimates([found], wanted, 50)
    assert abs(estimate["cmmd"].values.item()) < abs(metrics.cmmd(wanted.heldout, wanted.train)) + 0.2


def test_training_images_are_copies_and_another_domain_is_seen(config, scorer, wanted, domains):
    train = data.load_domain(config.domains[0], config)
    own = evaluation.prompts_of(train, scorer, COUNT)
    found = evaluation.score_images(list(train.images)[:COUNT], wanted, scorer, domains, own=own)
    assert found["copy_rank"].max() == 0
    pictures = data.load_domain(config.domains[1], config.replace(num_heldout=COUNT), "test").images
    other = evaluation.score_images(list(pictures), wanted, scorer, domains)
    assert domains.names == sorted(d.name for d in (config.source, *config.domains))
    assert other["domain_accuracy"].mean() < 0.3 < 0.7 < found["domain_accuracy"].mean()


def test_the_floor_never_compares_with_an_equal_text(scorer, wanted, config):
    def score(texts, features):
        prompts = dataclasses.replace(wanted.prompts, texts=texts, features=features)
        return evaluation.score_prompts(heldout(config), prompts, scorer, wanted.domain)

    features, half = wanted.prompts.features, COUNT // 2
    found = score(["a", "b"] * half, features[[0, 1] * half])
    other = features[[1, 0] * half]
    torch.testing.assert_close(found["clip_floor"], (wanted.heldout * other).sum(dim=1))
    one = score(["a dog"] * COUNT, features[:1].expand(COUNT, -1))  # one text for all leaves no wrong one
    assert "clip_floor" not in one and one["clip_score"].shape == (COUNT,)
    assert "clip_floor" not in evaluation.estimates([one], wanted, 20)


def fake(seed, shift=0.0, n=2 * COUNT, d=8):
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(n, d, generator=generator) + shift, dim=1)
    return {"features": features, "clip_score": features[:, 0].clone()}


def made_reference(d=8):
    prompts = evaluation.Prompts([f"prompt {i}" for i in range(COUNT)], torch.zeros(COUNT, d))
    real = fake(99, n=COUNT, d=d)["features"]
    train = fake(98, n=40, d=d)["features"]
    return evaluation.Reference("satellite", prompts, real, train, torch.zeros(COUNT, 3, 1, 1))


def test_estimates_are_the_means_over_seeds():
    wanted, sets = made_reference(), [fake(0), fake(1), fake(2)]
    found = evaluation.estimates(sets, wanted, 30)
    assert found["clip_score"].values.tolist() == pytest.approx([s["clip_score"].mean().item() for s in sets])
    groups = wanted.prompts.prompt_of(2 * COUNT)
    expected = [metrics.cmmd(s["features"], wanted.heldout, groups) for s in sets]
    assert found["cmmd"].values.tolist() == pytest.approx(expected)
    assert found["cmmd"].draws.shape == (30, 3) and found["cmmd"].units == COUNT
    assert {"kid", "intra_cluster"} <= set(found) and "recall" not in found


def test_images_of_one_prompt_are_drawn_together():
    wanted, one = made_reference(), fake(0)
    one["clip_score"] = wanted.prompts.prompt_of(2 * COUNT).float()  # the same for both images of a prompt
    draws = evaluation.estimates([one], wanted, 4000)["clip_score"].draws
    spread = torch.arange(COUNT).double().var(unbiased=False) / COUNT
    assert draws.var().item() == pytest.approx(spread.item(), rel=0.1)  # not half of it


def test_differences_are_paired_and_marked():
    wanted = made_reference()
    near, far = [fake(i) for i in range(3)], [fake(i, shift=0.8) for i in range(3)]
    near_too = [{**s, "clip_score": s["clip_score"] + 1e-3 * fake(7)["clip_score"]} for s in near]
    sets = {"DASD": near, "far": far, "as good": near_too, "of two seeds": near[:2]}
    named = {name: evaluation.estimates(scores, wanted, 200) for name, scores in sets.items()}
    rows = evaluation.result_rows(named, {"domain": "satellite"}, "DASD")
    found = {(r["method"], r["metric"]): r for r in rows if "against" in r}
    assert found["far", "cmmd"]["separable"] and found["far", "clip_score"]["separable"]
    assert not found["as good", "clip_score"]["separable"]
    assert {method for method, _ in found} == {"far", "as good"}  # other seeds have no pairs
    assert all(r["domain"] == "satellite" for r in rows)
    same = found["as good", "cmmd"]
    assert same["value"] == same["low"] == same["high"] == 0


def test_a_difference_without_variance_is_not_separable_by_its_width():
    wanted = made_reference()
    accurate = [{**fake(i), "domain_accuracy": torch.ones(2 * COUNT)} for i in range(3)]
    wrong = {"domain_accuracy": torch.zeros(2 * COUNT)}
    shifted = [{**s, "clip_score": s["clip_score"].double() + 0.25, **wrong} for s in accurate]
    named = {"DASD": accurate, "shifted": shifted}
    named = {name: evaluation.estimates(scores, wanted, 50) for name, scores in named.items()}
    rows = evaluation.result_rows(named, {}, "DASD")
    found = {r["metric"]: r for r in rows if "against" in r}
    assert found["clip_score"]["value"] == pytest.approx(0.25) and not found["clip_score"]["separable"]
    shares = found["domain_accuracy"]
    assert shares["separable"] and shares["low"] == -1 and -0.7 < shares["high"] < 0


PAIRS = 40


def perfect(seed, samples):
    """Return held-out images and samples of their captions, as good as other images of these captions."""
    generator = torch.Generator().manual_seed(seed)

    def features(captions):
        own = torch.randn(captions.shape, generator=generator)
        return torch.nn.functional.normalize(captions + 0.7 * own, dim=1)

    captions = torch.randn(PAIRS, 16, generator=generator)
    return features(captions), features(captions[torch.arange(samples) % PAIRS])


@pytest.mark.parametrize("samples", [PAIRS // 2, PAIRS, 2 * PAIRS])
def test_a_perfect_model_is_at_no_distance_from_the_images_whose_captions_it_has(samples):
    """An image and the sample of its caption are alike: as a pair they pull the estimate below 0."""
    prompts = evaluation.Prompts([f"prompt {i}" for i in range(PAIRS)], torch.zeros(PAIRS, 16))
    values, held = {True: [], False: []}, {True: 0, False: 0}
    for i in range(200):
        heldout, made = perfect(i, samples)
        for paired in values:
            reference = evaluation.Reference("satellite", prompts, heldout, paired=paired)
            for name in ("cmmd", "kid"):
                estimate = evaluation.estimates([{"features": made}], reference, 60)[name]
                value, low, high = estimate.interval()
                values[paired].append(value / estimate.variance**0.5)
                held[paired] += low <= 0 <= high
    means = {paired: sum(found) / 400 for paired, found in values.items()}
    assert abs(means[True]) < 0.1 and held[True] >= 0.93 * 400
    assert means[False] < -0.5 and held[False] < held[True]


def test_a_sample_is_drawn_with_its_image_in_a_reference_that_is_paired(config, wanted):
    assert wanted.paired and not made_reference().paired
    scores = fake(0, n=COUNT)
    scores |= {"recall": scores["clip_score"], "precision": scores["clip_score"]}
    for paired in (True, False):
        found = evaluation.estimates([scores], dataclasses.replace(made_reference(), paired=paired), 30)
        assert torch.equal(found["precision"].draws, found["recall"].draws) == paired


def test_the_distance_to_training_images_counts_both_sets_of_images(monkeypatch):
    monkeypatch.setattr(
        metrics, "intra_cluster_distance", lambda x, train, weights: torch.zeros(len(weights))
    )
    train, held = fake(98, n=60, d=4)["features"], 0
    prompts = evaluation.Prompts([f"prompt {i}" for i in range(PAIRS)], torch.zeros(PAIRS, 4))
    many = fake(97, shift=0.5, n=4000, d=4)["features"], fake(96, n=4000, d=4)["features"]
    truth = metrics.copy_rank(many[0], train, many[1]).mean().item()
    for i in range(200):
        made, real = fake(i, shift=0.5, n=PAIRS, d=4), fake(1000 + i, n=PAIRS, d=4)["features"]
        made["copy_rank"] = metrics.copy_rank(made["features"], train, real).view(PAIRS, -1).mean(dim=1)
        reference = evaluation.Reference("satellite", prompts, real, train)
        value, low, high = evaluation.estimates([made], reference, 100)["copy_rank"].interval()
        assert value == pytest.approx(made["copy_rank"].mean().item())
        held += low <= truth <= high
    assert held >= 0.92 * 200


def test_with_inception_there_is_a_fid():
    wanted = made_reference()
    real = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(1))
    wanted = dataclasses.replace(wanted, inception=real)
    sets = [fake(i) | {"inception": real.repeat(2, 1) + i} for i in range(2)]
    found = evaluation.estimates(sets, wanted, 20)["fid"]
    assert found.values[1] - found.values[0] == pytest.approx(5, rel=1e-4)  # a shift by 1 in each of 5
    assert found.draws.shape == (20, 2) and found.draws.var(dim=0).min() > 0
    assert "fid" not in evaluation.estimates([fake(0)], made_reference(), 20)
