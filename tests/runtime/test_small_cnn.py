"""The probe learns what is there, and nothing where nothing is."""

import pytest
import torch
from PIL import Image

from dasd_utils.runtime import small_cnn


def pictures(labels, seed=0):
    """Noise, brighter on the left for "left" and on the right for "right"."""
    x = 0.3 * torch.randn(
        len(labels),
        3,
        small_cnn.SIZE,
        small_cnn.SIZE,
        generator=torch.Generator().manual_seed(seed),
    )
    for row, label in zip(x, labels, strict=True):
        row[:, :, : small_cnn.SIZE // 2] += 0.5 if label == "left" else -0.5
    return x


LABELS = ["left", "right"] * 30


def test_it_learns_and_transfers():
    right = small_cnn.synthetic_to_real(pictures(LABELS), LABELS, pictures(LABELS, seed=1), LABELS)
    assert right.shape == (60,) and right.mean() > 0.95


def test_wrong_labels_teach_the_wrong_thing():
    swapped = ["right" if label == "left" else "left" for label in LABELS]
    assert (
        small_cnn.synthetic_to_real(pictures(LABELS), swapped, pictures(LABELS, seed=1), LABELS).mean() < 0.05
    )


def test_a_class_that_was_never_shown_is_never_right():
    real = ["left", "other"] * 30
    right = small_cnn.synthetic_to_real(pictures(LABELS), LABELS, pictures(LABELS, seed=1), real)
    assert right[1::2].sum() == 0 and right[::2].mean() > 0.9


def test_it_is_repeated_to_the_bit_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    one, two = (small_cnn.train(pictures(LABELS), LABELS, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())
    other = small_cnn.train(pictures(LABELS), LABELS, seed=4).state_dict()
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes, not 1"):
        small_cnn.train(pictures(["left"] * 4), ["left"] * 4)


def test_pixels_are_small_and_centred():
    x = small_cnn.pixels([Image.new("L", (64, 48), 255), Image.new("RGB", (10, 10))])
    assert x.shape == (2, 3, small_cnn.SIZE, small_cnn.SIZE)
    assert x[0].unique().item() == 1 and x[1].unique().item() == -1
