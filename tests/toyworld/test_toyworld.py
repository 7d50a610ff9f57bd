"""The toy world: deterministic scenes, captions of what is shown, everyday prompts, and its classifier."""

import numpy as np
import pytest
import torch
from PIL import Image

from dasd_utils import toyworld
from dasd_utils.toyworld import captions
from dasd_utils.toyworld.attribute_classifier import AttributeClassifier, AttributeTable

DOMAINS = toyworld.DOMAINS


def pixels(domain, seed, index, size=64):
    return np.asarray(toyworld.draw(domain, seed, index, size))


@pytest.mark.parametrize("domain", DOMAINS)
def test_scene_is_a_function_of_domain_seed_index(domain):
    one, same, other = (toyworld.render(domain, 1, index) for index in (3, 3, 4))
    assert np.array_equal(np.asarray(one.image), np.asarray(same.image))
    assert (one.caption, one.attributes) == (same.caption, same.attributes)
    assert not np.array_equal(np.asarray(one.image), np.asarray(other.image))
    assert not np.array_equal(np.asarray(one.image), pixels(domain, 2, 3))
    for size in (64, 128):
        image = toyworld.draw(domain, 1, 0, size)
        assert (image.mode, image.size) == ("RGB", (size, size))
        assert np.asarray(image).std() > 10  # not a blank page


@pytest.mark.parametrize("domain", DOMAINS)
def test_attributes_are_those_of_the_table(domain):
    table = toyworld.ATTRIBUTES[domain]
    seen = set()
    for index in range(300):
        shown = toyworld.attributes(domain, 5, index)
        assert "scene" in shown
        assert all(value in table[name] for name, value in shown.items())
        seen.add(shown["scene"])
    assert seen == set(table["scene"])  # every class comes up
    assert len(seen) >= {"satellite": 10}.get(domain, 4)


def test_a_sketch_shows_the_painting_of_its_index_without_colours():
    for index in range(50):
        painted, drawn = (toyworld.attributes(d, 1, index) for d in ("painting", "sketch"))
        assert drawn.items() <= painted.items()
    image = pixels("sketch", 1, 0).astype(float)
    assert (image.mean(axis=2) > 180).mean() > 0.5  # mostly light paper
    colours = {"red", "blue", "green", "yellow", "orange", "purple"}
    texts = [c for i in range(200) for c in toyworld.caption_variants("sketch", 1, i, 3)]
    assert not [t for t in texts if colours & set(t.split())]


@pytest.mark.parametrize("domain", DOMAINS)
def test_captions_vary_and_fit(domain):
    texts = [c for i in range(100) for c in toyworld.caption_variants(domain, 1, i, 3)]
    assert len(set(texts)) > 150
    assert all(text == text.strip() and 1 <= len(text.split()) <= 20 for text in texts)


@pytest.mark.parametrize("domain", DOMAINS)
def test_what_a_caption_mentions_stands_in_it(domain):
    """ "No" needs a word, as every other value does."""
    for index in range(60):
        for text, mentioned in toyworld.captions_with_mentions(domain, 9, index, 4):
            assert mentioned.items() <= toyworld.attributes(domain, 9, index).items()
            for name, value in mentioned.items():
                if value == "no":
                    assert "without" in text, (text, name)


def test_an_unknown_value_is_an_error():
    for unknown in ({"scene": "moon base"}, {"scene": "harbor", "weather": "x"}):
        with pytest.raises(KeyError):
            captions.compose_caption("satellite", unknown, np.random.default_rng(0))


def drawn(function, *args, n=2000):
    rng = np.random.default_rng(0)
    return [function(*args, rng) for _ in range(n)]


@pytest.mark.parametrize("function", [captions.thing, captions.sentence])
def test_everyday_words_name_no_domain(function):
    texts = drawn(function)
    assert texts == drawn(function)  # the generator decides
    assert len(set(texts)) > 1500
    assert not [t for t in texts if any(telling.search(t) for telling in captions.TELLING.values())]
    assert all(t == " ".join(t.split()) and "{" not in t and t.islower() | t.isdigit() for t in texts)


@pytest.mark.parametrize("domain", DOMAINS)
def test_prompts_of_a_domain_name_it(domain):
    assert len(set(drawn(captions.bare_prompt, domain, n=100))) >= 8
    texts = drawn(captions.framed, domain)
    assert texts == drawn(captions.framed, domain)
    assert len(set(texts)) > 1500
    assert not [t for t in texts if not captions.TELLING[domain].search(t) or "{" in t]


# the attribute classifier


TABLE = {
    "field": {"scene": ["square", "stripe"], "side": ["left", "right"]},
    "sky": {"scene": ["sun", "moon"]},
}


def square(side: str, rng: np.random.Generator) -> Image.Image:
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
    images = [square(side, rng) for side in sides]
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
    fresh = [square(side, rng) for side in sides]
    assert [shown["side"] for shown in again.read(fresh, "field")] == sides
