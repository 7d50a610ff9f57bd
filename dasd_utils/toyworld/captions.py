"""English captions of the toy world's scenes, joined from the tables in `wordings`.

A caption is a frame ("an aerial view of {}") around a scene phrase ("two ships in a harbor") and tails ("with
blue water") for what neither of them tells.
"""

import re
from functools import cache, lru_cache

import numpy as np

from dasd_utils.toyworld.wordings import BARE, FRAMES, JOINS, SCENE_TAILS, SCENES, TAILS, WORDS

Attributes = dict[str, str]

FULL, PARTIAL = 0.5, 0.3  # shares of captions that tell all attributes, or some; the rest tell the scene
UNFRAMED = {"painting": 0.17}  # shares of captions without a frame, which need not name the domain
MAX_WORDS, TRIES = 16, 40
SLOT = re.compile(r"{(\w+)}")
REPEATABLE = {"a", "an", "the", "of", "on", "and"}  # any other word sounds clumsy the second time


def told_caption(domain: str, attributes: Attributes, rng: np.random.Generator) -> tuple[str, Attributes]:
    """One wording of a scene, lower-case and without a full stop, and the attributes that it tells.

    What is worded by silence ("house=no") is not told, nor what a plural only narrows down. KeyError for
    anything unknown.
    """
    for name, value in attributes.items():
        _ = SCENES[domain][value] if name == "scene" else WORDS[domain][name][value]
    for told in (_told(attributes, rng), {"scene": attributes["scene"]}):
        for _ in range(TRIES):
            template, silent = _compose(domain, attributes, told, rng)
            if template and _reads_well(template):
                said = {name: value for name, value in told.items() if name not in silent}
                return _fill(template, domain, told, rng), said
    raise RuntimeError(f"no caption for {domain}: {attributes}")


def bare_prompt(domain: str, rng: np.random.Generator) -> str:
    """A prompt that names the domain and nothing else, such as "a satellite image"."""
    frames = [frame for frame, _ in _options(FRAMES[domain], {}, {}) if "{}" not in frame]
    return _pick(frames + BARE[domain].split(" | "), rng)


def _told(attributes: Attributes, rng: np.random.Generator) -> Attributes:
    """The attributes that a caption is to tell: all, some or only the scene."""
    draw = rng.random()
    chance = 1.0 if draw < FULL else 0.5 if draw < FULL + PARTIAL else 0.0
    return {name: value for name, value in attributes.items() if name == "scene" or rng.random() < chance}


def _compose(
    domain: str, attributes: Attributes, told: Attributes, rng: np.random.Generator
) -> tuple[str, set[str]]:
    """A random caption, its slots still open, and the attributes it tells by silence.

    The caption is "" where an attribute to be told found no place in it.
    """
    frame, framed = _frame(domain, attributes, told, rng)
    phrase, phrased = _pick(_options(SCENES[domain][told["scene"]], attributes, told), rng)
    untold = told.keys() - framed - phrased - {"scene"}
    tails = TAILS[domain] | SCENE_TAILS.get(told["scene"], {})
    if untold - tails.keys():
        return "", set()
    said = {name: _tail(tails[name], told[name], rng) for name in tails if name in untold}
    text = " ".join(part for part in (phrase, *said.values()) if part)
    return frame.replace("{}", text), {name for name, tail in said.items() if not tail}


def _fill(text: str, domain: str, told: Attributes, rng: np.random.Generator) -> str:
    """The caption with a word in every slot."""
    text = text.replace("(s)", "" if told.get("count") == "one" else "s")
    for name in SLOT.findall(text):
        text = text.replace(f"{{{name}}}", _pick(WORDS[domain][name][told[name]].split(" | "), rng), 1)
    return text


def _frame(
    domain: str, attributes: Attributes, told: Attributes, rng: np.random.Generator
) -> tuple[str, set[str]]:
    """A frame with its place {} for the scene, and the attributes that it tells."""
    if rng.random() < UNFRAMED.get(domain, 0):
        return "{}", set()
    frame, tells = _pick(_options(FRAMES[domain], attributes, told), rng)
    return (frame if "{}" in frame else f"{frame} {_pick(JOINS[domain].split(' | '), rng)} {{}}"), tells


def _tail(wordings: dict[str, str] | str, value: str, rng: np.random.Generator) -> str:
    return _pick((wordings if isinstance(wordings, str) else wordings[value]).split(" | "), rng)


@cache
def _parsed(wordings: str) -> list[tuple[str, dict[str, str], dict[str, str], frozenset[str]]]:
    """Every wording with the values that it tells, those that it excludes and the attributes of its slots."""
    parsed = []
    for wording in wordings.split(" | "):
        text, _, conditions = wording.rstrip("]").partition(" [")
        terms = [term.partition("=") for term in conditions.split(",") if term]
        tells = {name: value for name, _, value in terms if not name.endswith("!")}
        excludes = {name[:-1]: value for name, _, value in terms if name.endswith("!")}
        parsed.append((text, tells, excludes, frozenset(SLOT.findall(text))))
    return parsed


def _options(wordings: str, attributes: Attributes, told: Attributes) -> list[tuple[str, set[str]]]:
    """The wordings that suit the picture and tell nothing beyond `told`, with what each of them tells."""
    return _suitable(wordings, frozenset(attributes.items()), frozenset(told.items()))


@lru_cache(maxsize=10_000)  # many captions are tried for one picture, and pictures resemble each other
def _suitable(wordings: str, attributes: frozenset, told: frozenset) -> list[tuple[str, set[str]]]:
    names = {name for name, _ in told}
    return [
        (text, tells.keys() | slots)
        for text, tells, excludes, slots in _parsed(wordings)
        if tells.items() <= told and slots <= names and not excludes.items() & attributes
    ]


def _reads_well(text: str) -> bool:
    """Whether a caption is short enough and repeats no word, slots apart (green land, green water)."""
    words = text.split()
    rest = [word for word in words if word not in REPEATABLE]
    longest = len(words) + words.count("{count}")  # "a single"
    return longest <= MAX_WORDS and len(set(rest)) == len(rest)


def _pick(options: list, rng: np.random.Generator):
    return options[rng.integers(len(options))]
