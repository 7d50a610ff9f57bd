"""Copies are known as copies and stay in one split; the splits depend on content alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from synthetic import plain, saved

from dasd_utils import data, toyworld
from dasd_utils.runtime import images


def grouped(*pictures: Image.Image) -> list[int]:
    small = np.stack([images.thumbnail(picture) for picture in pictures])
    return list(data.duplicate_groups([images.content_hash(p) for p in pictures], small, 0.97))


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
    parts = np.array(data.split_by_content(hashes(4000), [i // 2 for i in range(4000)], 0.1, 0.2))
    assert (parts[::2] == parts[1::2]).all()
    backwards = data.split_by_content(hashes(4000)[::-1], [i // 2 for i in range(4000)][::-1], 0.1, 0.2)
    assert backwards[::-1] == parts.tolist()
    assert (parts == "validation").mean() == pytest.approx(0.1, abs=0.03)
    assert (parts == "test").mean() == pytest.approx(0.2, abs=0.03)


def test_split_moves_no_image_when_others_are_added():
    for seed in range(20):
        few = data.split_by_content(hashes(300, seed), range(300), 0.1, 0.2)
        assert data.split_by_content(hashes(900, seed), range(900), 0.1, 0.2)[:300] == few
    parts = data.split_by_content(hashes(20), range(20), 0.1, 0.2)  # in every version
    assert [i for i, part in enumerate(parts) if part == "validation"] == [11]
    assert [i for i, part in enumerate(parts) if part == "test"] == [5, 7, 9, 14]


def faces(count: int, size: int = 96) -> list[Image.Image]:
    """Return pictures of one framing: a bright disc on black, with a few spots of its own in each.

    So few that all correlate above 0.97 as long as what they share is not taken out.
    """
    found = []
    for number in range(count):
        image, draw = Image.new("RGB", (size, size)), np.random.default_rng(number)
        pen = ImageDraw.Draw(image)
        pen.ellipse((6, 6, size - 6, size - 6), fill=(190, 90, 40))
        for x, y in draw.integers(size // 4, 3 * size // 4, (4, 2)).tolist():
            pen.ellipse((x, y, x + 5, y + 5), fill=(240, 230, 90))
        found.append(image)
    return found


def test_images_of_one_framing_are_no_copies_and_their_copies_are():
    pictures = faces(30)
    copies = [picture.resize((80, 80)) for picture in pictures[:5]]
    groups = grouped(*pictures, *copies)
    assert len(set(groups)) == 30 and groups[30:] == groups[:5]


def test_groups_do_not_chain():
    """Each of the row resembles the next, and the last does not resemble the first."""
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    row = [np.uint8(127 + 100 * np.sin(x / 5 + turn) * np.sin(y / 7)) for turn in np.linspace(0, 2, 12)]
    groups = data.duplicate_groups([f"{i:02d}" for i in range(12)], np.stack(row), 0.9)
    assert 3 <= len(set(groups)) < 12 and groups[0] != groups[-1]
    assert list(groups[:3]) == [groups[0]] * 3  # what resembles the first stays with it


def test_the_threshold_is_a_setting(monkeypatch):
    monkeypatch.setattr(data, "AT_ONCE", 16)
    draw = np.random.default_rng(0)
    small = np.stack([images.thumbnail(toyworld.draw("xray", 9, i)) for i in range(40)])
    noisy = np.clip(small + draw.normal(size=small.shape) * 12, 0, 255).astype(np.uint8)
    ids = hashes(80)
    counts = {t: len(set(data.duplicate_groups(ids, np.concatenate([small, noisy]), t))) for t in (0.9, 1.0)}
    assert counts == {0.9: 40, 1.0: 80}
    assert len(set(data.duplicate_groups([*ids[:79], ids[0]], np.concatenate([small, noisy]), 1.0))) == 79


@pytest.mark.parametrize(
    ("count", "least"), [(3, (1, 1, 1)), (5, (1, 1, 1)), (10, (5, 1, 2)), (20, (10, 1, 2))]
)
def test_chance_leaves_every_part_what_it_needs(count, least):
    for seed in range(200):
        parts = data.split_by_content(hashes(count, seed), range(count), 0.1, 0.2)
        assert all(parts.count(part) >= few for part, few in zip(data.SPLITS, least, strict=True))
    assert set(data.split_by_content(hashes(count), range(count), 0.1, 0.0)) == {"train", "validation"}
    assert set(data.split_by_content(hashes(count), range(count), 0.0, 0.2)) == {"train", "test"}
