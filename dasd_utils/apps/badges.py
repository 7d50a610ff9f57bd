"""Colab badge and setup cell of every notebook, written from the address and version in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import nbformat

from dasd_utils.config import ROOT, DasdError
from dasd_utils.runtime import files

COLAB = '"google.colab" in sys.modules'  # what tells a setup cell from all others
BADGE = re.compile(r"\[!\[Open In Colab\]\([^)]*\)\]\([^)]*\)")
SVG = "https://colab.research.google.com/assets/colab-badge.svg"
SETUP = """import pathlib, runpy, subprocess, sys
if "google.colab" in sys.modules:  # elsewhere the package is installed already
    address, version, folder = "ADDRESS", "TAG", "dasd-TAG"
    clone = "git clone -q -c advice.detachedHead=false --depth 1 --branch".split()
    pathlib.Path(folder).exists() or subprocess.run([*clone, version, address, folder], check=True)
    runpy.run_path(f"{folder}/dasd_utils/apps/colab.py", run_name="__main__")"""


@dataclass(frozen=True)
class Source:
    """Where a reader gets this very version of the repository."""

    address: str  # "https://github.com/<owner>/<name>"
    tag: str  # "v<version>"

    def setup(self) -> str:
        """Return the source of the setup cell."""
        return SETUP.replace("ADDRESS", self.address).replace("TAG", self.tag)

    def badge(self, name: str) -> str:
        """Return the badge that opens notebooks/<name> of this version in Colab."""
        owner = self.address.removeprefix("https://github.com/")
        link = f"https://colab.research.google.com/github/{owner}/blob/{self.tag}/notebooks/{name}"
        return f"[![Open In Colab]({SVG})]({link})"


def source(root: Path = ROOT) -> Source:
    """Read address and version from pyproject.toml; DasdError where one is missing."""
    path = root / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf8"))["project"]
        return Source(
            project["urls"]["Repository"].rstrip("/").removesuffix(".git"), f"v{project['version']}"
        )
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise DasdError(f"{path} does not say [project] version and [project.urls] Repository: {error!r}. "
                        "Write both.") from None  # fmt: skip


def is_setup(cell: nbformat.NotebookNode) -> bool:
    """Return whether a cell is the setup cell, which acts in Colab alone."""
    return cell.cell_type == "code" and COLAB in cell.source


def renewed(text: str, name: str, wanted: Source) -> str:
    """Return a notebook's text with its badge and setup cell as they are to be, and all else as it is.

    Raises DasdError for a notebook whose first cell has no badge, or whose first code cell is no setup cell.
    """
    notebook = nbformat.reads(text, as_version=4)
    title, first = notebook.cells[0], next((c for c in notebook.cells if c.cell_type == "code"), None)
    if not BADGE.search(title.source) or first is None or not is_setup(first):
        raise DasdError(f"{name} must begin with a title and a Colab badge, and its first code cell must be "
                        "the setup cell: take both from another notebook.")  # fmt: skip
    badge = wanted.badge(name)
    cells = {id(title): BADGE.sub(lambda _: badge, title.source), id(first): wanted.setup()}
    if all(cells[id(cell)] == cell.source for cell in (title, first)):
        return text
    for cell in (title, first):
        cell.source = cells[id(cell)]
    return nbformat.writes(notebook) + "\n"


def outdated(paths: list[Path], root: Path = ROOT) -> dict[Path, str]:
    """Return the notebooks whose badge or setup cell is not what pyproject.toml says, with their new text."""
    wanted = source(root)
    found = {}
    for path in paths:
        text = path.read_text(encoding="utf8")
        new = renewed(text, path.name, wanted)
        if new != text:
            found[path] = new
    return found


def write(paths: list[Path], root: Path = ROOT) -> list[Path]:
    """Write badges and setup cells; return the notebooks that changed. All are read before one is written."""
    new = outdated(paths, root)
    for path, text in new.items():
        with files.whole(path, "The notebook") as part:
            part.write_text(text, encoding="utf8")
    return list(new)
