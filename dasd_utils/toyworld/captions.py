"""English captions of the toy world's scenes, joined from the tables in wordings.json.

A caption is a frame ("an aerial view of {}") around a scene phrase ("two ships in a harbor") and tails ("with
blue water") for what neither of them mentions. A wording may end in a condition: [side=both] means that it is
for captions which tell that value, and tells it; [count!=one] only asks that the picture differs. {name}
stands for the word of that attribute, {} for the scene phrase and its tails, (s) for the plural of "count".
"""

import json
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

Attributes = dict[str, str]
Wordings = tuple[str, ...]


def _frozen(table: Any) -> Any:
    """Return the table with tuples in the place of lists."""
    return tuple(table) if isinstance(table, list) else {name: _frozen(each) for name, each in table.items()}


TABLES = _frozen(json.loads(Path(__file__).with_name("wordings.json").read_text(encoding="utf8")))
WORDS = TABLES["words"]  # domain -> attribute -> value -> words; one that is missing here is an error
SCENES = TABLES["scenes"]  # domain -> scene -> phrases
TAILS = TABLES["tails"]  # domain -> attribute -> wordings, of all values or of each
FRAMES = TABLES["frames"]
BARE = TABLES["bare"]  # prompts that name the domain, besides its frames
# A sketch tells less than a painting, in the same phrases: colours stand in slots only.
WORDS["sketch"] = {name: WORDS["painting"][name] for name in ("count", "beard", "hat", "house")}
TAILS["sketch"] = {name: TAILS["painting"][name] for name in ("beard", "hat", "house")}
SCENES["sketch"] = SCENES["painting"]
FULL = 0.5  # share of captions that mention all attributes
PARTIAL = 0.3  # share of those that mention some; the rest mention the scene alone
UNFRAMED = {"painting": 0.17}  # shares of captions without a frame, which need not name the domain
MAX_WORDS, TRIES = 16, 40
SLOT = re.compile(r"{(\w+)}")
REPEATABLE = {"a", "an", "the", "of", "on", "and"}  # any other word sounds clumsy the second time


def compose_caption(domain: str, attributes: Attributes, rng: np.random.Generator) -> tuple[str, Attributes]:
    """Return a caption of a scene, lower-case and without a full stop, and the attributes that it mentions.

    What a caption leaves out to say it ("house=no") is not mentioned, nor what a plural only narrows down.
    Raises KeyError for an unknown scene, attribute or value.
    """
    for name, value in attributes.items():
        _ = SCENES[domain][value] if name == "scene" else WORDS[domain][name][value]
    draw = rng.random()
    chance = 1.0 if draw < FULL else 0.5 if draw < FULL + PARTIAL else 0.0
    wanted = {name: value for name, value in attributes.items() if name == "scene" or rng.random() < chance}
    for mentioned in (wanted, {"scene": attributes["scene"]}):
        for _ in range(TRIES):
            text, silent = _compose(domain, attributes, mentioned, rng)
            if not text or not _reads_well(text):
                continue
            text = text.replace("(s)", "" if mentioned.get("count") == "one" else "s")
            for name in SLOT.findall(text):
                text = text.replace(f"{{{name}}}", pick(WORDS[domain][name][mentioned[name]], rng), 1)
            return text, {name: value for name, value in mentioned.items() if name not in silent}
    raise RuntimeError(f"no caption for {domain}: {attributes}")


def bare_prompt(domain: str, rng: np.random.Generator) -> str:
    """Return a prompt that names the domain and nothing else, such as "a satellite image"."""
    frames = [frame for frame, _ in _options(FRAMES[domain], {}, {}) if "{}" not in frame]
    return pick([*frames, *BARE[domain]], rng)


def _compose(
    domain: str, attributes: Attributes, mentioned: Attributes, rng: np.random.Generator
) -> tuple[str, set[str]]:
    """Return a random caption, its slots still open, and the attributes whose words are empty.

    The caption is "" where it has no place for an attribute.
    """
    frame, framed = "{}", set()
    if rng.random() >= UNFRAMED.get(domain, 0):
        frame, framed = pick(_options(FRAMES[domain], attributes, mentioned), rng)
        frame = frame if "{}" in frame else f"{frame} {pick(TABLES['joins'][domain], rng)} {{}}"
    phrase, phrased = pick(_options(SCENES[domain][mentioned["scene"]], attributes, mentioned), rng)
    missing = mentioned.keys() - framed - phrased - {"scene"}
    tails = TAILS[domain] | TABLES["scene_tails"].get(mentioned["scene"], {})
    if missing - tails.keys():
        return "", set()
    said = {}
    for name in (each for each in tails if each in missing):
        wordings = tails[name]
        said[name] = pick(wordings if isinstance(wordings, tuple) else wordings[mentioned[name]], rng)
    text = " ".join(part for part in (phrase, *said.values()) if part)
    return frame.replace("{}", text), {name for name, tail in said.items() if not tail}


@cache
def _parsed(wordings: Wordings) -> list[tuple[str, dict[str, str], dict[str, str], frozenset[str]]]:
    """Return each wording with the values it mentions, those it excludes and the attributes of its slots."""
    parsed = []
    for wording in wordings:
        text, _, conditions = wording.rstrip("]").partition(" [")
        terms = [term.partition("=") for term in conditions.split(",") if term]
        mentions = {name: value for name, _, value in terms if not name.endswith("!")}
        excludes = {name[:-1]: value for name, _, value in terms if name.endswith("!")}
        parsed.append((text, mentions, excludes, frozenset(SLOT.findall(text))))
    return parsed


def _options(wordings: Wordings, attributes: Attributes, mentioned: Attributes) -> list[tuple[str, set[str]]]:
    """Return the wordings that suit the picture and mention nothing else, with what each of them mentions."""
    return _suitable(wordings, frozenset(attributes.items()), frozenset(mentioned.items()))


@lru_cache(maxsize=10_000)  # many captions are tried for one picture, and pictures resemble each other
def _suitable(wordings: Wordings, attributes: frozenset, mentioned: frozenset) -> list[tuple[str, set[str]]]:
    names = {name for name, _ in mentioned}
    return [
        (text, mentions.keys() | slots)
        for text, mentions, excludes, slots in _parsed(wordings)
        if mentions.items() <= mentioned and slots <= names and not excludes.items() & attributes
    ]


def _reads_well(text: str) -> bool:
    """Return whether a caption is short and repeats no word, slots apart (green land, green water)."""
    words = text.split()
    rest = [word for word in words if word not in REPEATABLE]
    longest = len(words) + words.count("{count}")  # "a single"
    return longest <= MAX_WORDS and len(set(rest)) == len(rest)


def pick(options: Sequence[Any], rng: np.random.Generator) -> Any:
    """Return one of the options, each as likely."""
    return options[rng.integers(len(options))]
