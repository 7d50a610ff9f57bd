"""A training set drawn anew to the shares of a target that has no labels."""

import functools

import pytest
import torch

from dasd_utils.papers.diffusionclip import hspace
from dasd_utils.papers.diffusionclip.adaptation import Labelled


@pytest.fixture
def domains():
    """Features that tell the label, pictures that do: bright ones are "yes"."""
    random, labels = torch.Generator().manual_seed(0), ["no", "yes"] * 60
    x = torch.randn(120, 3, generator=random)
    x[1::2, 0] += 8
    pixels = torch.randn(120, 3, 32, 32, generator=random) * 0.1
    pixels[1::2] += 1
    known = hspace.LabelledFeatures(x[:80], labels[:80], x[80:], labels[80:])
    return known, Labelled(pixels[:80], labels[:80]), Labelled(pixels[80:], labels[80:])


def test_the_targets_share_is_found_without_its_labels(domains, monkeypatch):
    known, teach, real = domains
    monkeypatch.setattr(hspace.adaptation, "answers", functools.partial(hspace.adaptation.answers, epochs=5))
    shares = {"source": (0.8, 0.2), "target": (0.3, 0.7)}
    found = hspace.label_shift_trial(known, known, teach, real, shares, seed=0)
    assert found[hspace.SHARE] == pytest.approx(0.7, abs=0.15)  # of forty that were drawn
    assert set(found) == {hspace.AS_IT_IS, hspace.ESTIMATED, hspace.TRUE, hspace.SHARE}
    assert all(found[name] > 0.9 for name in found if name != hspace.SHARE)


def test_sets_are_drawn_as_their_names_say(domains, monkeypatch):
    known, teach, real = domains
    seen = {}

    def keep(train, test, seed):
        seen.update(train | test)
        return {(name, "target"): torch.zeros(1, 2) for name in train}

    monkeypatch.setattr(hspace.adaptation, "correct_by_epoch", keep)
    hspace.label_shift_trial(known, known, teach, real, {"source": (0.9, 0.1), "target": (0.2, 0.8)}, seed=1)
    of = {name: own.labels.count("yes") / len(own) for name, own in seen.items()}
    assert of[hspace.AS_IT_IS] < 0.25 and len(seen[hspace.TRUE]) == 80
    assert min(of[hspace.ESTIMATED], of[hspace.TRUE], of["target"]) > 0.6
    for own in seen.values():  # pictures keep their labels
        assert [pixel.mean() > 0.5 for pixel in own.pixels] == [label == "yes" for label in own.labels]


def test_trials_are_numbers_of_one_kind():
    found = hspace.label_shift_estimates([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}])
    assert found["a"].tolist() == [1.0, 3.0] and found["b"].tolist() == [2.0, 4.0]
