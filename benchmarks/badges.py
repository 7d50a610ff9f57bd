"""Write Colab badge, setup cell, and the line of time and memory into the notebooks.

python benchmarks/badges.py
python benchmarks/badges.py --check

The first two are of pyproject.toml; the line is of data/results, measured and counted there by course.py and
notebook_memory.py. --check writes nothing, and ends with 1 if something is old.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

from dasd_utils.apps import notebooks
from dasd_utils.config import ROOT, DasdError, read_json
from dasd_utils.runtime import files

LINK = re.compile(r"https://colab\.research\.google\.com/github/[^)]*")
COST = re.compile(r"Time: with `tiny`.*? estimated from operation counts\.")
PLACE = re.compile(r"address, version, folder = .*?(?=\\n)")  # in the file, where a line of a cell is a text


def repository(root: Path = ROOT) -> tuple[str, str]:
    """Return address and tag, "v<version>", of this version of the repository, from pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf8"))["project"]
    return project["urls"]["Repository"].rstrip("/").removesuffix(".git"), f"v{project['version']}"


def costs(results: Path = ROOT / "data" / "results") -> dict[str, str]:
    """Return notebook -> the sentence that says its minutes and memory, from the stored results."""
    stored = [read_json(results / file, "What notebooks take")
              for file in ("bench_course.json", "notebook_memory.json")]  # fmt: skip
    rows = [row for file in stored for row in file["rows"]]
    threads = stored[0]["config"]["machine"]["threads"]
    cpu = f"{threads} CPU thread{'s' * (threads > 1)}"
    whole = [row for row in rows if "cell" not in row and row.get("profile", "auto") == "auto"]
    found = {(row["notebook"], row.get("card"), row["metric"]): row["value"] for row in whole}

    def text(name: str, card: str | None, minutes: float) -> str:
        span = f"{60 * minutes:.0f} s" if minutes < 1.5 else f"{minutes:.0f} min"
        return f"{span} and {found[name, card, 'peak_gb']:.1f} GB"

    sentences = {}
    for name in (name for name, card, metric in found if (card, metric) == ("L4", "peak_gb")):
        seconds = found.get((name, None, "seconds"))
        tiny = "not measured" if seconds is None else f"{text(name, None, seconds / 60)}, measured"
        large = [f"{text(name, card, found[name, card, 'minutes'])} on {card}" for card in ("L4", "T4")]
        sentences[name] = (f"Time: with `tiny` on {cpu} {tiny}; with `sd15` about "
                           f"{' or '.join(large)}, estimated from operation counts.")  # fmt: skip
    return sentences


def renew_badges(paths: list[Path], root: Path = ROOT, write: bool = True) -> list[Path]:
    """Renew badges and setup cells by pyproject.toml, and lines of cost; return the changed notebooks."""
    address, tag = repository(root)
    place = json.dumps(f'address, version, folder = "{address}", "{tag}", "dasd-{tag}"')[1:-1]
    page = f"{address.replace('https://github.com', 'https://colab.research.google.com/github')}/blob/{tag}"
    changed, sentences = {}, costs()
    for path in paths:
        before = path.read_text(encoding="utf8")
        text, badges = LINK.subn(f"{page}/notebooks/{path.name}", before, count=1)
        text, setups = PLACE.subn(lambda _: place, text)
        if not badges or setups != 1:
            raise DasdError(f"{path.name} must begin with a title and a Colab badge, and its first code cell "
                            "must be the setup cell: take both from another notebook.")  # fmt: skip
        if path.stem in sentences:
            text, lines = COST.subn(lambda _, name=path.stem: sentences[name], text, count=1)
            if not lines:
                raise DasdError(f"The first cell of {path.name} must have the line: {sentences[path.stem]}")
        if text != before:
            changed[path] = text
    for path, text in changed.items() if write else ():
        with files.atomic_write(path, "The notebook") as part:
            part.write_text(text, encoding="utf8")
    return list(changed)


if __name__ == "__main__":
    check = sys.argv[1:] == ["--check"]
    old = [path.name for path in renew_badges(notebooks.find_notebooks(), write=not check)]
    print(
        *old, f"{len(old)} notebooks {'are old' if check else 'changed'}: {', '.join(repository())}", sep="\n"
    )
    sys.exit(check and bool(old))
