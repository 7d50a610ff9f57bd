"""Copies are known as copies and stay in one split; the splits depend on content alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from synthetic import plain, saved

from dasd_utils import toyworld
from dasd_utils.runtime import images, splits


def grouped(*pictures: Image.Image) -> list[int]:
    small = np.stack([images.thumbnail(picture) for picture in pictures])
    return list(splits.duplicate_groups([images.content_hash(p) for p in pictures], small))


def test_altered_copies_share_a_group_and_other_pictures_do_not():
    first, other = (toyworld.render("painting", 9, i, 64).image for i in (0, 1))
    worse = images.read_image(saved(first, "JPEG", quality=60))
    brighter = ImageEnhance.Brightness(first).enhance(1.1)
    groups = grouped(first, other, worse, first.resize((48, 48)), brighter, first.copy())
    assert groups[1] != groups[0]
    assert groups[2:] == [groups[0]] * 4


def test_chest_x_rays_are_alike_but_no_duplicates():
    pictures = [toyworld.render("xray", 9, i, 32).image for i in range(12)]
    assert len(set(grouped(*pictures))) == 12


def test_flat_pictures_are_duplicates_only_if_equal():
    groups = grouped(plain("RGB", "red"), plain("RGB", "blue"), plain("RGB", "red"))
    assert groups[0] == groups[2] != groups[1]


def hashes(count: int, seed: int = 0) -> list[str]:
    return [np.random.default_rng([seed, i]).bytes(32).hex() for i in range(count)]


def test_split_keeps_the_fractions_and_parts_no_group():
    parts = np.array(splits.split_by_content(hashes(4000), [i // 2 for i in range(4000)], 0.1, 0.2))
    assert (parts[::2] == parts[1::2]).all()
    backwards = splits.split_by_content(hashes(4000)[::-1], [i // 2 for i in range(4000)][::-1], 0.1, 0.2)
    assert backwards[::-1] == parts.tolist()
    assert (parts == "validation").mean() == pytest.approx(0.1, abs=0.03)
    assert (parts == "test").mean() == pytest.approx(0.2, abs=0.03)


def test_split_moves_no_image_when_others_are_added():
    few = splits.split_by_content(hashes(300), range(300), 0.1, 0.2)
    assert splits.split_by_content(hashes(900), range(900), 0.1, 0.2)[:300] == few


@pytest.mark.parametrize("count", [3, 4, 5])
def test_split_leaves_no_part_empty(count):
    for seed in range(20):
        parts = splits.split_by_content(hashes(count, seed), range(count), 0.1, 0.2)
        assert set(parts) == {"train", "validation", "test"}


def brute_force_groups(ids, thumbnails):
    """Return the groups by every pair of whole thumbnails."""
    flat = thumbnails.reshape(len(ids), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    alike = (flat @ flat.T > splits.NEAR_DUPLICATE) | (np.asarray(ids)[:, None] == np.asarray(ids))
    return splits.csgraph.connected_components(alike, directed=False)[1]


def test_near_duplicates_are_those_of_every_pair(monkeypatch):
    monkeypatch.setattr(splits, "TILE", 16)
    draw = np.random.default_rng(0)
    small = np.stack([images.thumbnail(toyworld.draw("xray", 9, i)) for i in range(40)])
    noise = draw.normal(size=small.shape) * draw.uniform(0, 40, size=(40, 1, 1))
    noisy = np.clip(small + noise, 0, 255).astype(np.uint8)
    black = np.zeros((2, 32, 32), dtype=np.uint8)
    thumbnails = np.concatenate([small, noisy, black, small[:3]])
    ids = [str(i) for i in range(82)] + ["0", "1", "x"]
    groups = splits.duplicate_groups(ids, thumbnails)
    expected = brute_force_groups(ids, thumbnails)
    assert 10 < len(set(expected)) < 80  # the noise parts some pairs, not all
    assert np.array_equal(groups, expected)
