"""English captions of the toy world's scenes, and everyday English, joined from tables in wordings.json.

A caption is a frame ("an aerial view of {}") around a scene phrase ("two ships in a harbor") and tails ("with
blue water") for what neither of them mentions. A wording may end in a condition: [side=both] means that it is
for captions which tell that value, and tells it; [count!=one] only asks that the picture differs. {name}
stands for the word of that attribute, {} for the scene phrase and its tails, (s) for the plural of "count".

Everyday English matches no picture: its lists have no words that tell a domain, and nothing that is painted.
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
TABLES = json.loads(
    Path(__file__).with_name("wordings.json").read_text(encoding="utf8"),
    object_hook=lambda table: {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()},
)
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

    What it expresses by silence ("house=no") is not mentioned. KeyError for an unknown attribute or value.
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
    """Return a caption, slots open, and attributes without words; "" where one has no place."""
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


# Everyday English, and frames of a domain around such things.


def _any_of(words: dict[str, Wordings]) -> dict[str, re.Pattern]:
    return {domain: re.compile(rf"\b(?:{'|'.join(each)})\b") for domain, each in words.items()}


TELLING = _any_of(TABLES["telling"])  # a prompt with one of these words asks for the domain
DRAWN = _any_of(TABLES["drawn"])  # what the toy world does draw in the domain, near enough
SYNTHETIC = 0.06  # share of things that are named by an invented word
_LISTS = TABLES["everyday"]  # of nouns, adjectives, and what may follow a noun
_SAME_NUMBER = ("pair of", "stack of", "group of", "family", "crowd", "scissors", "dice", "soap", "perfume")


def thing(rng: np.random.Generator) -> str:
    """A noun phrase of something that the toy world does not draw, such as "a small teapot"."""
    draw = rng.random()
    if draw < 0.12:
        food = _word("food", rng)
        return food if rng.random() < 0.4 else f"a {_word('servings', rng)} {food}"
    if draw < 0.22:
        return _article(_word("events", rng))
    alive = draw < 0.62
    nouns = "animals" if draw < 0.42 else "people" if alive else "objects"
    noun = _invented(rng) if rng.random() < SYNTHETIC else _word(nouns, rng)
    extra = ""
    if rng.random() < 0.25:
        extra = _word("activities" if alive and rng.random() < 0.5 else "places", rng)
    adjective = _word("adjectives" if alive else "made", rng) if rng.random() < 0.3 else ""
    if rng.random() < 0.2 and not noun.startswith(_SAME_NUMBER):
        text = f"{pick(('two', 'three', 'four', 'five', 'some', 'many'), rng)} {adjective} {_plural(noun)}"
    else:
        text = _article(f"{adjective} {noun}".strip())
    return " ".join(f"{text} {extra}".split())


def sentence(rng: np.random.Generator) -> str:
    """A prompt as a user types it that belongs to no domain."""
    draw = rng.random()
    if draw < 0.25:
        return thing(rng)
    if draw < 0.37:  # a single word or two
        kinds = ("animals", "people", "food", "objects", "events", "ideas")
        return _invented(rng) if rng.random() < SYNTHETIC else _word(pick(kinds, rng), rng)
    if draw < 0.62:
        medium = _word("media", rng)
        if rng.random() < 0.15:
            return f"{thing(rng)}, {medium}"
        return f"{medium if rng.random() < 0.2 else _article(medium)} of {thing(rng)}"
    if draw < 0.72:
        return f"{_article(pick(_LISTS['animals'] + _LISTS['people'], rng))} {_word('activities', rng)}"
    return re.sub(r"\{(\w+)\}", lambda slot: _slot(slot[1], rng), _word("sentences", rng))


def framed(domain: str, rng: np.random.Generator) -> str:
    """A prompt that names the domain and asks it for something that the toy world does not draw there."""
    if rng.random() < 0.15:
        telling = [text for text in BARE[domain] if TELLING[domain].search(text)]
        tags = [text for text in telling if not re.search("^(an?|the|land|lungs) |thorax|lungs", text)]
        tag = pick(tags, rng)  # what may follow a comma ("oil on canvas")
        return f"{_undrawn(domain, rng)}, {tag}"
    if domain in ("painting", "sketch") and rng.random() < 0.1:
        sitters = [word for word in _LISTS["people"] + _LISTS["animals"] if not DRAWN[domain].search(word)]
        portrait = "a portrait" if domain == "painting" else "a portrait sketch"
        return f"{portrait} of {_article(pick(sitters, rng))}"
    frame, subject = pick(_frames(domain), rng), _undrawn(domain, rng)
    if "{}" in frame:
        return frame.replace("{}", subject)
    draw = rng.random()
    if draw < 0.3:
        frame = re.sub(r"^an? ", "", frame)
    return f"{subject}, {frame}" if draw < 0.12 else f"{frame} of {subject}"


def _undrawn(domain: str, rng: np.random.Generator) -> str:
    subject = thing(rng)
    return _undrawn(domain, rng) if DRAWN[domain].search(subject) else subject


@cache
def _frames(domain: str) -> list[str]:
    """The domain's frames of any scene that tell it and leave the subject open."""
    frames = [frame.partition(" [") for frame in FRAMES[domain]]
    texts = [text for text, _, condition in frames if not condition or condition.startswith("style")]
    return [text for text in texts if TELLING[domain].search(text) and " of " not in text]


def _slot(name: str, rng: np.random.Generator) -> str:
    if name == "thing":
        return thing(rng)
    if name == "number":
        return str(rng.integers(1000))
    if name == "food":
        return _word(name, rng)
    word = _word({"person": "people"}.get(name, f"{name}s"), rng)
    return word if name in ("idea", "object") else _article(word)


def _word(kind: str, rng: np.random.Generator) -> str:
    return pick(_LISTS[kind], rng)


def _invented(rng: np.random.Generator) -> str:
    syllables = [_word("onsets", rng) + _word("vowels", rng) for _ in range(rng.integers(2, 4))]
    return "".join(syllables) + (_word("codas", rng) if rng.random() < 0.6 else "")


def _article(noun: str) -> str:
    vowel = noun[0] in "aeiou" and not noun.startswith(("uni", "eu", "use", "one"))
    return f"{'an' if vowel else 'a'} {noun}"


def _plural(noun: str) -> str:
    head, _, last = noun.rpartition(" ")
    if last in TABLES["plurals"]:
        last = TABLES["plurals"][last]
    elif last.endswith("man"):
        last = last[:-3] + "men"
    elif re.search("[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "es" if re.search("(s|x|z|ch|sh)$", last) else "s"
    return f"{head} {last}".strip()
