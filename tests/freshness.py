"""Whether the stored outputs of the notebooks are those of the present code, and how they are made anew.

python tests/freshness.py [NN ...]                  # what is stale, of these or of all
python tests/freshness.py --renew [--all] [NN ...]  # run what is stale, or all, as they stand, and store it

A stamp in a notebook's metadata holds hashes of what made its outputs: its code cells, the rooms of the
package that they reach, and their data. A room is the core, `runtime`, a paper, `study`, or a tool of `apps`.
"""

import argparse
import ast
import functools
import hashlib
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

from dasd_utils.apps import notebooks
from dasd_utils.apps.notebooks import KERNEL, is_setup, load_notebook
from dasd_utils.config import ROOT, DasdError, known_methods
from dasd_utils.runtime import files

KEY = "dasd"  # where a notebook's metadata holds its stamp
DATA = re.compile(r"data/(?!(cache|runs)(/|$)|results/?$)[\w./-]+")  # what no run writes
SHIPPED, LOADS = "data/tiny-run", "find_trained"  # the config of every notebook names it; this call reads it
# What a config says for the core to import a paper at run time: a method by its name, and two more.
NAMED = {name: f"papers/{name}" for name in (*known_methods(), "text_free")}
NAMED["generated"] = "papers/prior_images"
Stamp = dict[str, Any]  # {"code": hash, "rooms": {room: hash}, "data": {path: hash}}


def stale(path: Path, root: Path = ROOT) -> list[str]:
    """Return what changed since a notebook's outputs were made; an empty list if they are fresh."""
    notebook = load_notebook(path)
    made = notebook.metadata.get(KEY)
    now = stamp(notebook, root)
    if not made or set(made) != set(now):
        return ["no stamp: its outputs are not of a complete run"]
    changed = ["its code cells"] if made["code"] != now["code"] else []
    for kind in ("rooms", "data"):
        before, after = made[kind], now[kind]
        changed += sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return changed


def faults(path: Path) -> list[str]:
    """Return signs that a notebook was not run from top to bottom: widget states, errors, wrong counts."""
    notebook = load_notebook(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    found = ["widget states"] if "widgets" in notebook.metadata else []
    if None in counts or counts != sorted(set(counts)):  # one may be missing: of papermill's injected cell
        found.append(f"execution counts out of order: {counts}")
    wrong = [n for n, cell in enumerate(cells, 1) if any(o.output_type == "error" for o in cell.outputs)]
    return found + [f"an error in code cell {number}" for number in wrong]


def stamp(notebook: nbformat.NotebookNode, root: Path = ROOT) -> Stamp:
    """Return the hashes of all that decides a notebook's outputs, as it is now."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code" and not is_setup(cell)]
    cells = read_code("\n".join(sources))
    rooms = reached_rooms(cells, root)
    data = set().union(*(_data_of(code, root) for code in (cells, *rooms.values())))
    if not any(LOADS in source for source in sources):
        data.discard(SHIPPED)
    return {
        "code": cells.hash,
        "rooms": {name: room.hash for name, room in sorted(rooms.items())},
        "data": {name: _short(_content(root / name)) for name in sorted(data)},
    }


class Code(NamedTuple):
    """What a stamp must know of a piece of code."""

    hash: str  # without what only readers see: comments, layout, docstrings
    imports: set[str]  # dotted names; some are of attributes, not modules
    texts: set[str]
    methods: set[str]  # the names that a paper gives its methods in the ladder


@functools.lru_cache(maxsize=256)
def read_code(source: str) -> Code:
    """Return what a stamp must know of Python code; DasdError for magic lines."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise DasdError(f"This code has magic lines, {error.msg}: {(error.text or source)[:80]!r}.") from None
    _drop_prose(tree)
    imports, texts, methods = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imports |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif _is_text(node):
            texts.add(node.value)
        elif isinstance(node, ast.keyword) and node.arg in NAMED:
            texts.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LADDER":
            methods |= {key.value for key in getattr(node.value, "keys", []) if _is_text(key)}
    return Code(_short(repr(_plain(tree)).encode()), imports, texts, methods)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _drop_prose(tree: ast.Module) -> None:
    """Remove docstrings and what only type checkers read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        elif isinstance(getattr(node, "body", None), list):
            prose = [each for each in node.body if isinstance(each, ast.Expr) and _is_text(each.value)]
            node.body = [each for each in node.body if each not in prose]


def _plain(node: Any) -> Any:
    """Return a tree as nested lists, without empty fields: versions of Python differ in these."""
    if isinstance(node, ast.AST):
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    return [_plain(one) for one in node] if isinstance(node, list) else node


def reached_rooms(cells: Code, root: Path = ROOT) -> dict[str, Code]:
    """Return the rooms of the package that code uses, and those that these import, inside functions too.

    A module's name as a text counts too, and a paper's in the cells, their configs, or a paper that counts.
    """
    rooms = rooms_of(root)
    configs = [root / name for name in _data_of(cells, root) if name.startswith("data/configs/")]
    given = [cells, *(read_code(path.read_text(encoding="utf8")) for path in configs)]  # JSON is Python
    left = [name for code in given for name in (*_imported(code), *_papers_named(code, rooms))]
    found: dict[str, Code] = {}
    while left:
        name = left.pop()
        if name in rooms and name not in found:
            found[name] = room = rooms[name]
            left += _imported(room)
            left += _papers_named(room, rooms) if name.startswith("papers/") else []
    return found


def rooms_of(root: Path = ROOT) -> dict[str, Code]:
    """Return the code by room: "core", a folder ("study"), or a part of papers or apps ("papers/editing")."""
    package = root / "dasd_utils"
    sources: dict[str, list[str]] = {}
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.json")]):  # texts in JSON are Python, too
        folder, *below = path.relative_to(package).with_suffix("").parts
        room = f"{folder}/{below[0]}" if folder in ("papers", "apps") else folder
        room = room if below or folder == "__main__" else "core"  # nothing imports how a package is started
        sources.setdefault(room, []).append(path.read_text(encoding="utf8"))
    return {room: read_code("\n".join(texts)) for room, texts in sources.items()}


def _imported(code: Code) -> list[str]:
    """Return the names that rooms of code's imports can have; an import runs each `__init__` on its way."""
    names = [name.split(".") for name in code.imports | code.texts if name.split(".")[0] == "dasd_utils"]
    return [room for _, *rest in names for room in ("core", *rest[:1], "/".join(rest[:2]))]


def _papers_named(code: Code, rooms: dict[str, Code]) -> list[str]:
    """Return the papers that code names as a config or the ladder does ("DomainStudio, no losses")."""
    named = {text.split(",")[0].lower() for text in code.texts}
    papers = [room for name, room in NAMED.items() if name in named]
    return papers + [name for name, room in rooms.items() if room.methods & code.texts]


def _data_of(code: Code, root: Path) -> set[str]:
    """Return the texts that are paths of a file or folder below data/ that no run writes."""
    return {text for text in code.texts if DATA.fullmatch(text) and (root / text).exists()}


def _content(path: Path) -> bytes:
    """Return a file's content, a folder's manifest, which has hashes, or names and contents of its files."""
    for file in (path, path / "manifest.json"):
        if file.is_file():
            return file.read_bytes()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    kept = (name for name in names if not name.endswith(".md") and not re.search(r"(^|/)[._]", name))
    return b"".join(name.encode() + b"\0" + (path / name).read_bytes() + b"\0" for name in kept)


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def store_outputs(path: Path, made: Stamp, root: Path = ROOT) -> None:
    """Copy a notebook without papermill's additions over notebooks/, its files over figures/ and data/."""
    notebook = nbformat.read(path, 4)
    notebook.cells = [
        cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.get("tags", [])} if cell.metadata.get("tags", []) else {}
    info = notebook.metadata.language_info
    notebook.metadata = {"kernelspec": KERNEL, "language_info": info, KEY: made}
    with files.atomic_write(root / "notebooks" / path.name, "The notebook") as part:
        nbformat.write(notebook, part)
    for kind, folder in (("figures", root / "figures"), ("results", root / "data" / "results")):
        for file in sorted((path.parent / kind).glob("*")):
            with files.atomic_write(folder / file.name, "What the notebook made") as part:
                shutil.copyfile(file, part)


def renew(paths: list[Path], output_dir: Path, root: Path = ROOT) -> str:
    """Run each in an empty folder, where it sees no other's files, and store it; return the first error."""
    for path in paths:
        made, folder = stamp(load_notebook(path), root), output_dir / path.stem
        shutil.rmtree(folder, ignore_errors=True)
        (done,) = notebooks.run_notebooks([path], folder, {})
        if done.error:
            return done.error
        store_outputs(done.path, made, root)
    return ""


def main(root: Path = ROOT) -> int:
    """Do what the command line says; 1 where notebooks are stale or fail."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NN", help="how names begin; without them all")
    parser.add_argument("--renew", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "data/runs/notebooks")
    given = parser.parse_args()
    paths = notebooks.find_notebooks(given.names or None)
    reasons = {path: faults(path) + stale(path, root) for path in paths}
    if given.renew:
        error = renew([path for path in paths if given.all or reasons[path]], given.output_dir, root)
        print(error, end="", file=sys.stderr)
        return bool(error)
    old = {path.stem: found for path, found in reasons.items() if found}
    for name, found in old.items():
        print(f"{name}: {', '.join(found)}")
    print(f"{len(old)} of {len(paths)} notebooks are to be run again: python tests/freshness.py --renew")
    return bool(old)


if __name__ == "__main__":
    sys.exit(main())
