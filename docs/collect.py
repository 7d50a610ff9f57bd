"""Gather the pages of the site into one folder, laid out as the repository is, so that links hold.

Pages, notebooks, figures and cards are copied as they are. Written are the first page (the README and the
contents), the API, the commands and the report.
"""

import re
import shutil
import subprocess
import sys

import api
import report
from repository import ROOT

SOURCE = ROOT / "docs" / "_build" / "source"
COPIED = (
    "docs/[!_]*.md", "notebooks/*.ipynb", "figures/*.png", "figures/*.webp", "data/README.md",
    "data/tiny-sd/README.md", "benchmarks/README.md", "CONTRIBUTING.md", "SECURITY.md", "Report/main.pdf",
)  # fmt: skip


def index(readme: str) -> str:
    """Return the first page: the README, and the contents of the site."""
    lists = {
        "readme": readme,
        "api": "\n".join(f"api/{api.slug(title)}" for title in api.GROUPS),
    }
    text = (ROOT / "docs" / "_contents.md").read_text(encoding="utf8")
    return re.sub(r"<!-- (readme|api) -->", lambda match: lists[match[1]], text)


def pages() -> dict[str, str]:
    """Return every page that is written, by its path."""
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    found = {"index.md": index(readme), "commands.md": _commands()}
    found |= {f"api/{api.slug(title)}.rst": api.page(title, names) for title, names in api.GROUPS.items()}
    pdf = ROOT / "Report" / "main.pdf"
    return found | {"Report/main.rst": report.page(pdf.name if pdf.is_file() else "")}


def _commands() -> str:
    """Return the commands and their options as Typer tells them."""
    command = [sys.executable, "-m", "typer", "dasd_utils.apps.cli.main", "utils", "docs", "--name", "dasd"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return text.replace("# `dasd`", "# The command `dasd`", 1)


def main() -> None:
    """Write the folder anew."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for path, text in pages().items():
        (SOURCE / path).parent.mkdir(parents=True, exist_ok=True)
        (SOURCE / path).write_text(text, encoding="utf8")
    for path in (path for pattern in COPIED for path in ROOT.glob(pattern)):
        copy = SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


if __name__ == "__main__":
    main()
