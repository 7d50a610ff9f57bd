"""The probe learns what is there, and nothing where nothing is."""

import pytest
import torch
from PIL import Image

from dasd_utils.runtime import small_cnn

pytestmark = pytest.mark.usefixtures("quick_cnn")
LABELS = ["left", "right"] * 30


def pictures(labels, seed=0):
    """Noise, brighter on the left for "left" and on the right for "right"."""
    draw = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(len(labels), 3, small_cnn.SIZE, small_cnn.SIZE, generator=draw)
    for row, label in zip(x, labels, strict=True):
        row[:, :, : small_cnn.SIZE // 2] += 0.5 if label == "left" else -0.5
    return x


@pytest.mark.parametrize(("taught", "real", "left", "right"), [
    (LABELS, LABELS, 1, 1), (LABELS[::-1], LABELS, 0, 0), (LABELS, ["left", "other"] * 30, 1, 0),
], ids=["learned", "swapped labels", "a class that was never shown"])  # fmt: skip
def test_it_answers_as_it_was_taught(taught, real, left, right):
    found = small_cnn.synthetic_to_real(pictures(LABELS), taught, pictures(LABELS, seed=1), real)
    assert found.shape == (60,)
    assert abs(found[::2].mean() - left) < 0.1 and abs(found[1::2].mean() - right) < 0.1


def test_it_is_repeated_to_the_bit_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    few = LABELS[:8]
    one, two, other = (small_cnn.train(pictures(few), few, seed=n).state_dict() for n in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_pixels_are_small_and_centred_and_one_class_is_refused():
    x = small_cnn.pixels([Image.new("L", (64, 48), 255), Image.new("RGB", (10, 10))])
    assert x.shape == (2, 3, small_cnn.SIZE, small_cnn.SIZE)
    assert x[0].unique().item() == 1 and x[1].unique().item() == -1
    with pytest.raises(ValueError, match="two classes, not 1"):
        small_cnn.train(x, ["left"] * 2)
