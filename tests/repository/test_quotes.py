"""Decimals in the sentences of notebooks, README and docs are outputs or stored results; pictures were read.

A sentence that describes a picture is read again when the picture changes; running this file then writes the
new hashes.
"""

import functools
import hashlib
import json
import re
from pathlib import Path

import pytest

from dasd_utils.apps import notebooks
from dasd_utils.config import Config

ROOT = Path(__file__).resolve().parents[2]
READ = Path(__file__).with_name("pictures_read.json")  # notebook -> hashes when last described
PLAIN = r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
DECIMAL = re.compile(r"(?<![\w.,])-?\d+(?:,\d{3})*\.\d+(?![\w]|\.\d)")
INTERVAL = re.compile(rf"({DECIMAL.pattern}) \[({PLAIN}), ({PLAIN})\]")
NO_SENTENCE = re.compile(
    r"```.*?```|<!-- \w+:.*?end of \w+ -->|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|https?://\S+"
    r"|^#[^\n]*$|^Time:[^\n]*$|(?:Stable Diffusion|SD|arXiv) \d+\.\d+|(?:CUDA|Python|torch|NumPy) ?\d+\.\d+",
    re.DOTALL | re.MULTILINE,
)
DOCS = sorted((ROOT / "docs").glob("[a-z]*.md"))
NOTEBOOKS = [path.stem for path in notebooks.find_notebooks()]


def result(file, metric, **fields):
    """Return the one value that rows of a file of results with these fields have."""
    rows = json.loads((ROOT / "data" / "results" / f"{file}.json").read_text(encoding="utf8"))["rows"]
    wanted = {"metric": metric, "against": None} | fields
    (value,) = {row["value"] for row in rows if all(row.get(key) == wanted[key] for key in wanted)}
    return value


def sketch(metric, method):
    return result("guidance", metric, domain="sketch", method=method)


DECOUPLED = "images alone, decoupled, domain 4, guidance 8"
BARE = "captions, no prompt, over training, max_train_steps"
BOUNDED = dict(lambda_align=1.0, kernel="gaussian", queue_size=64, domain="xray", against="LoRA + token")
SPLIT = Config.setup("tiny").data
# Decimals that no output, no cell and no own result holds: their value, or how they follow from others.
DERIVED = {
    "01_diffusion_from_scratch": {
        "0.6": "million parameters of its UNet: 636,516",
        "6.9": "of that in data/tiny-sd: 6,941,060",
    },
    "02_data": {"0.97": SPLIT.near_duplicate, "0.2": SPLIT.test_fraction, "0.3": "0.2 and 0.1 of validation"},
    "04_training": {"0.0005": "50 steps of 1e-5"},
    "05_sampling": {
        "0.66": result(
            "calibration_search",
            "attribute_accuracy",
            domain="satellite",
            calls=30,
            guidance_scale=1.5,
            guidance="cfg",
            seed=0,
        )
    },
    "07_evaluation": {
        "0.286": "the published CLIP score of the base",
        "0.329": "the published CLIP score of DASD",
        "0.043": 0.329 - 0.286,
        "0.52": "of mirrored x-rays, in the solutions",
    },
    "06_classifier": {"0.17": "the classifier of data/tiny-run, asked for 'airport': 0.1670"},
    "09_guidance": {
        "0.70": sketch("attribute_accuracy", DECOUPLED),
        "6.5": sketch("cmmd", f"{BARE} 25"),
        "1.25": sketch("cmmd", f"{BARE} 200"),
    },
    "11_comparison": {
        "7.5": "guidance scale in a file of the published project",
        "0.77": result("ladder", "copy_rank", domain="xray", method="DASD"),
    },
    "12_alignment": {
        "8.3": result("alignment_sweep", "cmmd", **BOUNDED),
    },
    "solutions": {"5.39": result("07_evaluation", "cmmd", domain="satellite", method="base")},
}


def number(text):
    return float(text.replace(",", ""))


def sentences(text):
    return NO_SENTENCE.sub(" ", text).replace("−", "-")


def printed(cells):
    """Yield every line of text that the cells printed or showed as a table, without markup."""
    for cell in cells:
        for output in cell.get("outputs", []):
            shown = [output.get("text", "")]
            shown += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
            for text in map("".join, shown):
                cut = re.sub(r"<style.*?</style>|url\(data:[^)]*\)|\n", " ", text, flags=re.DOTALL).split(
                    "</tr>"
                )
                rows = [re.sub(r"<[^>]+>", " ", row) for row in cut]
                yield from rows if len(rows) > 1 else text.splitlines()


def stored(file):
    """Return (value, low, high) of every row of a file of results."""
    return [
        (row["value"], row.get("low"), row.get("high"))
        for row in json.loads(file.read_text(encoding="utf8"))["rows"]
        if isinstance(row.get("value"), int | float)
    ]


@functools.cache
def found(name):
    """Return the numbers of outputs, code and own results, and threes in a row, of all results named too."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf8"))["cells"]
    alone, threes = set(), set()
    for line in printed(cells):
        values = [number(n) for n in re.findall(rf"(?<![\w.]){PLAIN}", line.replace("−", "-"))]
        alone.update(values)
        threes.update(zip(values, values[1:], values[2:], strict=False))
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    alone.update(number(n) for n in re.findall(rf"(?<![\w.]){PLAIN}", code))
    for word in {name, *re.findall(r'["/](\w+)(?:\.json)?"', code)}:
        file = ROOT / "data" / "results" / f"{word}.json"
        rows = stored(file) if file.exists() else []
        threes.update(rows)
        if word == name:
            alone.update(end for row in rows for end in row if end is not None)
    return alone, threes


def same(quoted, value):
    """Return whether a value rounds to what is quoted, as it is, as a percentage, or without its sign."""
    digits = len(quoted.partition(".")[2])
    near = 0.5000001 * 10**-digits
    return value is not None and any(abs(abs(value) * k - abs(number(quoted))) <= near for k in (1, 100))


def is_row(quoted, rows):
    """Return whether (value, low, high) is one of some rows; -0.1 [-0.2, 0] may be quoted as 0.1 [0, 0.2]."""
    orders = (0, 1, 2), (0, 2, 1)
    return any(all(same(q, row[i]) for q, i in zip(quoted, o, strict=True)) for row in rows for o in orders)


def is_derived(name, quoted):
    source = DERIVED.get(name, {}).get(quoted)
    return isinstance(source, str) or same(quoted, source)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_each_decimal_of_a_sentence_is_an_output_or_a_result(name):
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf8"))["cells"]
    text = "\n".join(sentences("".join(c["source"])) for c in cells if c["cell_type"] == "markdown")
    alone, threes = found(name)
    wrong = [f"{m[1]} [{m[2]}, {m[3]}]" for m in INTERVAL.finditer(text) if not is_row(m.groups(), threes)]
    alone_quoted = DECIMAL.findall(INTERVAL.sub(" ", text))
    assert DERIVED.get(name, {}).keys() <= set(alone_quoted), "an exception that no sentence needs"
    unknown = [
        quoted
        for quoted in alone_quoted
        if not any(same(quoted, value) for value in alone) and not is_derived(name, quoted)
    ]
    assert not unknown and not wrong, f"{name} quotes numbers that it does not show: {unknown} {wrong}"


@functools.cache
def all_results():
    return [row for file in (ROOT / "data" / "results").glob("*.json") for row in stored(file)]


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("[a-z]*.md"))]
)
def test_each_interval_of_a_page_is_a_stored_result(page):
    text = sentences((ROOT / page).read_text(encoding="utf8"))
    assert not [m[0] for m in INTERVAL.finditer(text) if not is_row(m.groups(), all_results())]


def pictures(name):
    """Return a hash of each picture that a notebook shows."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf8"))["cells"]
    shown = [output["data"] for cell in cells for output in cell.get("outputs", []) if "data" in output]
    drawn = [text for data in shown for kind, text in data.items() if kind.startswith("image/")]
    return [hashlib.sha256("".join(text).encode()).hexdigest()[:12] for text in drawn]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_sentences_about_pictures_were_read_since_they_changed(name):
    assert pictures(name) == json.loads(READ.read_text(encoding="utf8"))[name], (
        f"Pictures of {name} changed. Read what its sentences say of them, then run `python {__file__}`."
    )


if __name__ == "__main__":
    READ.write_text(
        json.dumps({name: pictures(name) for name in NOTEBOOKS}, indent=1) + "\n", encoding="utf8"
    )
