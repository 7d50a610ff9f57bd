"""The toy world: deterministic scenes, captions that mention what is shown, everyday prompts of no domain."""

import numpy as np
import pytest

from dasd_utils import toyworld
from dasd_utils.toyworld import captions

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


def drawn(function, *args, n=2000):
    rng = np.random.default_rng(0)
    return [function(*args, rng) for _ in range(n)]


@pytest.mark.parametrize("function", [captions.thing, captions.sentence])
def test_everyday_words_name_no_domain(function):
    texts = drawn(function)
    assert len(set(texts)) > 1500
    assert not [t for t in texts if any(telling.search(t) for telling in captions.TELLING.values())]
    assert all(t == " ".join(t.split()) and "{" not in t and t.islower() | t.isdigit() for t in texts)


@pytest.mark.parametrize("domain", DOMAINS)
def test_prompts_of_a_domain_name_it(domain):
    assert len(set(drawn(captions.bare_prompt, domain, n=100))) >= 8
    texts = drawn(captions.framed, domain)
    assert len(set(texts)) > 1500
    assert not [t for t in texts if not captions.TELLING[domain].search(t) or "{" in t]
