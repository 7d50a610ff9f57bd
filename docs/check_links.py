"""Check the built site: every local address and anchor is there, and no page loads from another host.

    python docs/check_links.py docs/_build/html

Lists addresses of other hosts in `external.txt` next to the folder; they are not opened.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

ADDRESSES = ("href", "src", "srcset", "data", "poster")
LOADED_BY_CSS = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)")


def addresses(soup: BeautifulSoup) -> list[tuple[str, bool]]:
    """Return each address of a page, and whether opening the page loads it."""
    found = []
    for tag in soup.find_all(True):
        for name in ADDRESSES:
            if value := tag.get(name):
                found.append((value.split()[0] if name == "srcset" else value, tag.name not in ("a", "area")))
    return found


def local_problem(page: Path, address: str, anchors: dict[Path, set[str]]) -> str | None:
    """Return what is wrong with an address within the site, or None."""
    parts = urlsplit(address)
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    path = path / "index.html" if path.is_dir() else path
    if not path.is_file():
        return f"{page.name}: {address} is not there"
    if parts.fragment and path in anchors and unquote(parts.fragment) not in anchors[path]:
        return f"{page.name}: {address} has no such anchor"
    return None


def check(folder: Path) -> tuple[list[str], dict[str, set[str]]]:
    """Return what is wrong with a built site, and the pages that name each address of another host."""
    folder = folder.resolve()
    soups = {path: BeautifulSoup(path.read_bytes(), "html.parser") for path in folder.rglob("*.html")}
    anchors = {path: {tag["id"] for tag in soup.find_all(id=True)} for path, soup in soups.items()}
    problems, external = [], defaultdict(set)
    for page, soup in soups.items():
        for address, loaded in addresses(soup):
            remote = address.startswith("//") or urlsplit(address).scheme in ("http", "https")
            if remote and loaded:
                problems.append(f"{page.name}: loads {address}")
            elif remote:
                external[address].add(page.relative_to(folder).as_posix())
            elif not urlsplit(address).scheme and (problem := local_problem(page, address, anchors)):
                problems.append(problem)
    for path in folder.rglob("*.css"):
        problems += [
            f"{path.name}: loads {url}" for url in LOADED_BY_CSS.findall(path.read_text(encoding="utf8"))
        ]
    return problems, external


def main() -> None:
    """Check a folder; fail where something is wrong."""
    folder = Path(sys.argv[1])
    problems, external = check(folder)
    lines = [f"{address}  {', '.join(sorted(pages))}\n" for address, pages in sorted(external.items())]
    (folder.parent / "external.txt").write_text("".join(lines), encoding="utf8")
    if problems:
        sys.exit("\n".join([*problems, f"{len(problems)} broken links"]))
    print(f"links: every local one holds; those to {len(external)} addresses elsewhere are in external.txt")


if __name__ == "__main__":
    main()
