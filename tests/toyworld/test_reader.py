"""The attribute classifier: its table, and that it learns what images show."""

import numpy as np
import pytest
import torch
from PIL import Image

from dasd_utils.toyworld.attribute_classifier import AttributeClassifier, AttributeTable

TABLE = {
    "field": {"scene": ["square", "stripe"], "side": ["left", "right"]},
    "sky": {"scene": ["sun", "moon"]},
}


def picture(side: str, rng: np.random.Generator) -> Image.Image:
    pixels = rng.integers(0, 60, (64, 64, 3)).astype(np.uint8)
    pixels[20:44, 8:28] += 150
    return Image.fromarray(pixels if side == "left" else pixels[:, ::-1].copy())


def test_loss_counts_only_what_a_scene_has():
    table = AttributeTable(TABLE)
    scenes = [("field", {"scene": "stripe"}), ("sky", {"scene": "sun"})]
    right = torch.zeros(2, table.size)
    right[0, 1] = right[1, 4] = 30
    assert table.loss(right, scenes) < 1e-6
    right[0, 2] = right[1, 0] = 50  # an attribute that the scene lacks, and one of another domain
    assert table.loss(right, scenes) < 1e-6
    assert table.loss(-right, scenes) > 20


def test_table_reads_the_likeliest_values():
    table = AttributeTable(TABLE)
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.0, 9.0, 0.0]])
    assert table.read(logits, "field") == [{"scene": "stripe", "side": "left"}]
    assert table.read(logits, "sky") == [{"scene": "sun"}]
    with pytest.raises(KeyError, match="sea"):
        table.read(logits, "sea")


def test_reader_learns_left_from_right_and_survives_saving(tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    reader = AttributeClassifier(TABLE, width=8)
    sides = ["left", "right"] * 8
    images = [picture(side, rng) for side in sides]
    pixels = torch.stack([torch.from_numpy(np.asarray(im).copy()) for im in images]).permute(0, 3, 1, 2)
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)
    for _ in range(30):
        loss = reader.table.loss(reader(pixels.float() / 127.5 - 1), [("field", {"side": s}) for s in sides])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert AttributeClassifier.load(tmp_path) is None  # a folder without one
    reader.save(tmp_path)
    again = AttributeClassifier.load(tmp_path)
    fresh = [picture(side, rng) for side in sides]
    assert [shown["side"] for shown in again.read(fresh, "field")] == sides
