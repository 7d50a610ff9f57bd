"""The words of a new domain: its token, where that starts, descriptions, and prompts to evaluate it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dasd_utils.apps.new_domain.captions import words_of

MANY_PROMPTS, ENOUGH_PROMPTS = 20, 8
WORDINGS = ("an image that shows {}", "here one can see {}", "the picture is of {}", "what it shows is {}")
STOP_WORDS = set(re.findall(r"\w+", """
    a above all an and another are as at be behind beside between but by during each five for four from
    has have image in into is it its many near next no not of on one or other over painting photo
    photograph picture seen several showing shows some that the there these this those three to two
    under very view was what which while who with without
"""))  # fmt: skip


def free_token(name: str, tokenizer: Any) -> str:
    """Return "<name>", numbered where the vocabulary has it; tokenizers match in any case."""
    taken = {piece.lower() for piece in tokenizer.get_vocab()}
    stem = name.lower()
    numbered = (f"<{stem}-{number}>" if number > 1 else f"<{stem}>" for number in range(1, 100))
    return next(token for token in numbered if token not in taken)


def initial_word(name: str, captions: Sequence[str], tokenizer: Any) -> tuple[str, str]:
    """Return the word where the token starts, and why: one piece of the tokenizer, so that it has a meaning.

    The name, or a word of it; else the most frequent such word of the captions; else the name's pieces.
    """

    def fits(word: str) -> bool:
        return len(tokenizer.tokenize(word)) == 1 and word not in STOP_WORDS and len(word) > 2

    own = words_of(name).split() or [name.lower()]
    named = next(filter(fits, reversed(own)), None)  # of "chest-radiograph" the last says what it is
    if named:
        return named, "a word of the name, and one piece of the tokenizer"
    counts = Counter(w for caption in captions for w in set(re.findall(r"[^\W\d_]+", caption.lower())))
    word = next(filter(fits, sorted(counts, key=lambda each: (-counts[each], each))), None)
    if word:
        why = f"in {counts[word]} of {len(captions)} captions, and one piece of the tokenizer"
        return word, f"{why}; the name {name!r} is {len(tokenizer.tokenize(name))}"
    pieces = len(tokenizer.tokenize(" ".join(own)))
    return " ".join(own), f"the name, {pieces} pieces of the tokenizer: no caption has a word that is one"


def describe(name: str, word: str) -> dict[str, Any]:
    """Return descriptions for the classifier, and what a careful user would add to the base's prompt."""
    own = words_of(name) or name
    style = own if word in own.split() else f"{own} {word}"
    return {
        "descriptions": [f"{_article(own)} {own}", f"a picture in the style of {_article(style)} {style}"],
        "style_suffix": style,
    }


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def evaluation_prompts(known: Sequence[str], heldout: Sequence[str]) -> tuple[list[str], int]:
    """Return up to MANY_PROMPTS captions of held-out images that are not among the known ones.

    Where too few are new, as captions of labels or of one sentence are, rewordings join them; the second
    value says how many.
    """
    seen, new = {_normal(caption) for caption in known}, {}
    for caption in heldout:
        if _normal(caption) not in seen:
            new.setdefault(_normal(caption), caption)
    new = list(new.values())[:MANY_PROMPTS]
    different = list(dict.fromkeys(heldout or known))
    reworded = [wording.format(caption) for wording in WORDINGS for caption in different]
    reworded = [text for text in reworded if _normal(text) not in seen]
    more = reworded[: max(ENOUGH_PROMPTS - len(new), 0)]
    return new + more, len(more)


def _normal(caption: str) -> str:
    return " ".join(re.findall(r"\w+", caption.casefold()))


def prompts_origin(count: int, reworded: int) -> str:
    """Return in words what `evaluation_prompts` returned."""
    parts = {
        "captions of held-out images that no training image has": count - reworded,
        "rewordings of held-out captions, as training images have the same": reworded,
    }
    return ", ".join(f"{number} {text}" for text, number in parts.items() if number)


def labelled(
    name: str, style: str, captions: Sequence[str], others: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return other labelled prompts for the classifier's threshold, and the domain's own behind them.

    A caption that has a word of the style stands as it is; others get the style words behind them.
    """
    own, different = set(style.split()), list(dict.fromkeys(captions))[:MANY_PROMPTS]
    prompts = [c if own & set(_normal(c).split()) else f"{c}, {style}" for c in different]
    kept = [row for row in others if row["domain"] != name]
    return [*kept, *({"prompt": text, "domain": name} for text in prompts)]
