"""Everyday prompts: deterministic, varied, and they tell a domain only where they should."""

import numpy as np
import pytest

from dasd_utils import toyworld
from dasd_utils.toyworld import everyday


def drawn(function, *args, n=2000):
    rng = np.random.default_rng(0)
    return [function(*args, rng) for _ in range(n)]


def test_same_generator_same_words():
    assert drawn(everyday.sentence, n=50) == drawn(everyday.sentence, n=50)
    assert drawn(everyday.framed, "xray", n=50) == drawn(everyday.framed, "xray", n=50)


@pytest.mark.parametrize("function", [everyday.thing, everyday.sentence])
def test_everyday_words_tell_no_domain(function):
    texts = drawn(function)
    assert len(set(texts)) > 1500
    assert not [t for t in texts if any(telling.search(t) for telling in everyday.TELLING.values())]
    assert all(t == " ".join(t.split()) and "{" not in t and t.islower() | t.isdigit() for t in texts)


@pytest.mark.parametrize("domain", toyworld.DOMAINS)
def test_framed_tells_its_domain(domain):
    texts = drawn(everyday.framed, domain)
    assert len(set(texts)) > 1500
    assert not [t for t in texts if not everyday.TELLING[domain].search(t) or "{" in t]
