"""The words of a new domain: where its token starts, and prompts that no training image has."""

import narrow
import pytest

from dasd_utils.apps.new_domain import words

TOKENIZER = narrow.make_tokenizer()


@pytest.mark.parametrize(
    ("name", "captions", "word", "why"),
    [
        ("sketch", ["a tree"], "sketch", "of the name"),
        ("chest-drawing", [], "drawing", "of the name"),
        ("radiograph", ["the mountain", "a mountain", "the sun"], "mountain", "in 2 of 3 captions"),
        ("radiograph", ["a photograph of the sun"], "sun", "in 1 of 1"),
        ("radiograph", ["of zzyzx"], "radiograph", "pieces of the tokenizer: no caption"),
    ],
)
def test_initial_word_is_one_piece(name, captions, word, why):
    found, said = words.initial_word(name, captions, TOKENIZER)
    assert found == word and why in said


def test_a_token_that_is_taken_is_numbered():
    tokenizer = narrow.make_tokenizer()
    tokenizer.add_tokens(["<sketch>", "<Sketch-2>"])
    assert words.free_token("Sketch", tokenizer) == "<sketch-3>"


def test_descriptions_are_english():
    found = words.describe("ink", "drawing")
    assert found["descriptions"] == ["an ink", "a picture in the style of an ink drawing"]
    assert found["style_suffix"] == "ink drawing"


def test_fresh_captions_come_first():
    heldout = ["A dog.", "one", "two", "one"]
    prompts, reworded = words.evaluation_prompts(["a dog", "Two"], heldout)
    assert prompts[0] == "one" and len(prompts) == words.ENOUGH_PROMPTS and reworded == len(prompts) - 1
    assert not {"a dog", "A dog.", "two", "Two"} & set(prompts) and len(set(prompts)) == len(prompts)
    many = [f"number {i}" for i in range(50)]
    assert words.evaluation_prompts([], many) == (many[: words.MANY_PROMPTS], 0)


def test_one_sentence_for_all_gives_two_prompts_or_more():
    prompts, reworded = words.evaluation_prompts(["a dog"], ["a dog"])
    assert len(prompts) == reworded == len(words.WORDINGS) and "a dog" not in prompts
    assert words.evaluation_prompts(["a dog"], [])[0] == prompts


def test_labelled_prompts_name_the_domain():
    others = [{"prompt": "a cat", "domain": None}, {"prompt": "old", "domain": "sketch"}]
    rows = words.labelled("sketch", "sketch", ["a sketch of a dog", "a dog", "a dog"], others)
    assert rows[0] == others[0] and [row["prompt"] for row in rows[1:]] == [
        "a sketch of a dog",
        "a dog, sketch",
    ]
    assert {row["domain"] for row in rows[1:]} == {"sketch"}
