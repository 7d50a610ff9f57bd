"""Where the repository is: on this disk, and at its address."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
ADDRESS = PROJECT["urls"]["Repository"]


def url(page: str, target: str) -> str | None:
    """Return the address of the file or folder that a page links to; None where there is no such one.

    page: its path in the repository, without suffix or with; target: the link, relative to that page.
    """
    path = (ROOT / page).parent.joinpath(target.split("#")[0]).resolve()
    if not (path.exists() and path.is_relative_to(ROOT)):
        return None
    return f"{ADDRESS}/{'tree' if path.is_dir() else 'blob'}/main/{path.relative_to(ROOT).as_posix()}"
