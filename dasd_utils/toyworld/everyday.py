"""English of everyday life that matches no picture of the toy world, and domain frames around such things.

Words that tell a domain (`TELLING`) stand in none of its lists ("everyday" in wordings.json), nor does
what the painting domain draws.
"""

import re
from functools import cache

import numpy as np

from dasd_utils.toyworld import captions
from dasd_utils.toyworld.captions import pick

TELLING = {  # a prompt with one of these words asks for the domain
    domain: re.compile(rf"\b(?:{words})\b")
    for domain, words in {
        "painting": r"paint\w*|watercolou?rs?|canvas|artwork|art|artist\S*|oil|brush|portrait|impressionis\w+"
        r"|expressionist|acrylics?|gouache",
        "sketch": r"sketch\w*|draw\w*|drawn|pencil|ink|pen|line art|charcoal|crayon|doodle",
        "satellite": r"satellite|aerial\w*|overhead|from (?:high |directly )?above|top[- ]down|top view"
        r"|bird'?s.eye|straight down|looking down|remote sensing|remotely|orbit\w*|drone|space|nadir|map"
        r"|earth observation|from the air|sky|orthophoto|airplanes?|airport|runway|harbou?r",
        "xray": r"x[- ]rays?|xrays?|radio(?:graph|log)\w*|scans?|lungs?|chest|thora\w+|ribs?|ribcage"
        r"|pulmonary|imaging|pleural|pneumo\w+|film|diagnostic|clinical",
    }.items()
}
DRAWN = {  # what the toy world does draw in the domain, near enough
    "painting": re.compile(r"\b(?:man|men|woman|women|couple)\b"),
    "satellite": re.compile(r"\b(?:street|alley|cars?|football|garden)\b"),
    "xray": re.compile(
        r"\b(?:man|men|woman|women|child|children|baby|babies|toddlers?|boys?|girls?|teenagers?)\b"
    ),
}
DRAWN["sketch"] = DRAWN["painting"]
SYNTHETIC = 0.06  # share of things that are named by an invented word
_LISTS = captions.TABLES["everyday"]  # of nouns, adjectives, and what may follow a noun
_IRREGULAR = {"mouse": "mice", "goose": "geese", "wolf": "wolves", "calf": "calves", "knife": "knives"}
_IRREGULAR |= {"child": "children", "man": "men", "woman": "women", "sheep": "sheep", "moose": "moose"}
_IRREGULAR |= {word: word for word in ("scissors", "shrimp", "dice", "salmon", "trout")}
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
        telling = [text for text in captions.BARE[domain] if TELLING[domain].search(text)]
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
    """A thing that the domain does not draw."""
    subject = thing(rng)
    return _undrawn(domain, rng) if DRAWN[domain].search(subject) else subject


@cache
def _frames(domain: str) -> list[str]:
    """The domain's frames of any scene that tell it and leave the subject open."""
    frames = [frame.partition(" [") for frame in captions.FRAMES[domain]]
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
    """A word that no one has read before, of two or three syllables."""
    syllables = [_word("onsets", rng) + _word("vowels", rng) for _ in range(rng.integers(2, 4))]
    return "".join(syllables) + (_word("codas", rng) if rng.random() < 0.6 else "")


def _article(noun: str) -> str:
    """The noun with "a" or "an"."""
    vowel = noun[0] in "aeiou" and not noun.startswith(("uni", "eu", "use", "one"))
    return f"{'an' if vowel else 'a'} {noun}"


def _plural(noun: str) -> str:
    head, _, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith("man"):
        last = last[:-3] + "men"
    elif re.search("[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "es" if re.search("(s|x|z|ch|sh)$", last) else "s"
    return f"{head} {last}".strip()
