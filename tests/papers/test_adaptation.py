"""The experiment of domain adaptation: sets, curves, the cheap baseline, and the share of the gap."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from dasd_utils.papers.diffusionclip import adaptation
from dasd_utils.papers.diffusionclip.adaptation import Labelled
from dasd_utils.runtime import small_cnn


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


def test_sets_are_joined_with_their_labels():
    one = Labelled.of([disc((0, 0, 0))] * 2, ["a", "b"])
    both = one + one
    assert both.pixels.shape == (4, 3, 32, 32) and both.labels == ["a", "b", "a", "b"]
    with pytest.raises(ValueError, match="2 images came with 1 labels"):
        Labelled.of([disc((0, 0, 0))] * 2, ["a"])


def test_curves_are_of_each_epoch_and_seed():
    pictures = [disc((250, 0, 0)), disc((0, 0, 250))] * 8
    labels = ["red", "blue"] * 8
    own, swapped = Labelled.of(pictures, labels), Labelled.of(pictures, labels[1:] + labels[:1])
    found = adaptation.correct_by_epoch({"own": own}, {"same": own, "swapped": swapped}, 0, epochs=4)
    curve = found["own", "same"]
    assert curve.shape == (4, 16) and curve[-1].tolist() == [1.0] * 16
    assert torch.equal(found["own", "swapped"], 1 - curve)
    assert torch.equal(
        adaptation.correct_by_epoch({"own": own}, {"same": own}, 0, epochs=2)["own", "same"], curve[:2]
    )


def test_watching_changes_nothing():
    x, labels = torch.randn(8, 3, 32, 32), ["a", "b"] * 4
    seen = []
    watched = small_cnn.train(
        x, labels, 3, epochs=2, watch=lambda epoch, made: seen.append((epoch, made(x).argmax(1)))
    )
    plain = small_cnn.train(x, labels, 3, epochs=2)
    assert torch.equal(watched(x), plain(x)) and [epoch for epoch, _ in seen] == [1, 2]


def test_the_share_of_the_gap_by_hand():
    none, whole = torch.zeros(3, 4000), torch.ones(3, 4000)
    assert adaptation.share_of_the_gap(whole, none, whole) == pytest.approx((1, 1, 1))
    own = none.clone()
    for row, count in enumerate((1600, 2000, 2400)):
        own[row, :count] = 1
    value, least, most = adaptation.share_of_the_gap(own, none, whole)
    assert value == pytest.approx(0.5) and least < 0.5 < most
    half = (most - least) / 2  # the standard error over seeds, 0.1 / sqrt(3), times t of 2 degrees
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5, rel=0.05)  # images add variance and degrees
    half_right = torch.zeros(3, 100)
    half_right[:, ::2] = 1  # by all seeds alike: what is left are the images
    _, least, most = adaptation.share_of_the_gap(half_right, none[:, :100], whole[:, :100])
    assert (most - least) / 2 == pytest.approx(1.984 * 0.5 / 100**0.5, rel=0.1)


def test_no_share_is_told_where_there_is_no_gap():
    none, some = torch.zeros(3, 50), torch.zeros(3, 50)
    some[:, 0] = 1  # one image of fifty
    assert all(map(math.isnan, adaptation.share_of_the_gap(some, none, some)))
    assert all(map(math.isnan, adaptation.share_of_the_gap(some, none, none)))


def test_an_estimate_counts_images_and_seeds():
    right = (torch.rand(5, 100, generator=torch.Generator().manual_seed(0)) < 0.7).float()
    value, low, high = adaptation.estimate(right).interval()
    assert value == pytest.approx(right.mean().item()) and 0.04 < high - low < 0.2
