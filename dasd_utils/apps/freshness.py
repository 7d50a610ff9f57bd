"""Were a notebook's stored outputs made by the committed code? Its stamp says what made them.

A stamp is written when a notebook is executed, and by nothing else. It holds a hash of the notebook's code
cells, of each module of the package that they reach, and of the data that cells and modules name. A lesson
whose outputs are stored runs in a folder of its own, where the one run it finds is the shipped one: data.
Prose is not in it, markdown, comments, docstrings; nor is the setup cell, which acts in Colab alone. Cells
that print sources are compared by nbval.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from dasd_utils.apps import badges
from dasd_utils.config import ROOT, DasdError

PACKAGE = "dasd_utils"
KEY = "dasd"  # of the notebook's metadata
DIGITS = 8
MADE = ("data/cache", "data/runs", "data/results")  # folders that runs write; files in the last are data
Stamp = dict[str, Any]  # {"code": hash, "package": {module: hash}, "data": {path: hash}}


def stamp(notebook: nbformat.NotebookNode, root: Path = ROOT) -> Stamp:
    """Return the hashes of all that decides a notebook's outputs, as it is now."""
    cells = [facts(source) for source in code(notebook)]
    reached = modules(cells, root)
    data = {name for one in (*cells, *reached.values()) for name in one.texts if is_data(name, root)}
    return {
        "code": _short("\n".join(one.hash for one in cells).encode()),
        "package": {name: one.hash for name, one in sorted(reached.items())},
        "data": {name: _short(_content(root / name)) for name in sorted(data | composed_data(cells, root))},
    }


def load(path: Path) -> nbformat.NotebookNode:
    """Return the notebook of a file."""
    return nbformat.read(path, as_version=4)


def write(path: Path, made: Stamp) -> None:
    """Put the stamp into a notebook that was just executed."""
    notebook = load(path)
    notebook.metadata[KEY] = made
    nbformat.write(notebook, path)


def stamp_of(path: Path, root: Path = ROOT) -> Stamp:
    """Return the stamp of a notebook's file."""
    return stamp(load(path), root)


def stale(path: Path, root: Path = ROOT) -> list[str]:
    """Return what changed since a notebook's outputs were made; an empty list if they are fresh."""
    notebook = load(path)
    made, now = notebook.metadata.get(KEY), stamp(notebook, root)
    if not made or set(made) != set(now):
        return ["no stamp: its outputs are not of a whole run"]
    changed = ["its code cells"] if made["code"] != now["code"] else []
    for kind in ("package", "data"):
        before, after = made[kind], now[kind]
        changed += sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return changed


def faults(path: Path) -> list[str]:
    """Return what a whole run would not have left: widget states, errors, execution counts out of order."""
    notebook = load(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    found = ["widget states"] if "widgets" in notebook.metadata else []
    if None in counts or counts != sorted(set(counts)):  # one may be missing: of papermill's injected cell
        found.append(f"execution counts out of order: {counts}")
    wrong = [n for n, cell in enumerate(cells, 1) if any(o.output_type == "error" for o in cell.outputs)]
    return found + [f"an error in code cell {number}" for number in wrong]


def code(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the sources of the code cells; the setup cell is none of them."""
    return [c.source for c in notebook.cells if c.cell_type == "code" and not badges.is_setup(c)]


@dataclass(frozen=True)
class Facts:
    """What there is to know of a piece of code."""

    hash: str
    imports: frozenset[str]  # dotted names; some are of attributes, not modules
    texts: frozenset[str]
    patterns: tuple[str, ...]  # regular expressions of the f-strings, whose values are their groups


@functools.lru_cache(maxsize=1024)
def facts(source: str) -> Facts:
    """Read code, without what only readers see: comments, layout, docstrings. DasdError for magic lines."""
    try:
        tree = _OnlyCode().visit(ast.parse(source))
    except SyntaxError as error:
        raise DasdError(
            f"This code is no plain Python, {error.msg}: {source[:80]!r}. Write it without magic lines."
        ) from None
    imports, texts, patterns = set(), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imports |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [re.escape(v.value) if isinstance(v, ast.Constant) else r"(\w+)" for v in node.values]
            patterns.append("".join(parts))
    hashed = _short(repr(_plain(tree)).encode())
    return Facts(hashed, frozenset(imports | texts), frozenset(texts), tuple(patterns))


class _OnlyCode(ast.NodeTransformer):
    """Drops docstrings and `if TYPE_CHECKING:`."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Return the node without its docstring."""
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        return super().generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """Return nothing for what only type checkers read."""
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def _plain(node: Any) -> Any:
    """Return a tree as nested lists, without empty fields: versions of Python differ in which there are."""
    if isinstance(node, ast.AST):
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    return [_plain(one) for one in node] if isinstance(node, list) else node


def modules(cells: Iterable[Facts], root: Path = ROOT) -> dict[str, Facts]:
    """Return the package's modules that code imports, and that these import, inside functions too.

    Keys are paths from the root. Importing a module runs the `__init__` of its packages, which count; a text
    that is a module's name, such as "dasd_utils.apps.cli.main", counts as an import of it.
    """
    found: dict[str, Facts] = {}
    left = [name for one in cells for name in one.imports]
    while left:
        name = left.pop()
        if re.fullmatch(rf"{PACKAGE}(\.\w+)*", name):
            for file in _files(name.split("."), root):
                key = file.relative_to(root).as_posix()
                if key not in found:
                    found[key] = facts(file.read_text(encoding="utf8"))
                    left += found[key].imports
    return found


def _files(words: list[str], root: Path) -> Iterator[Path]:
    """Yield the files that importing a dotted name runs; what is no module may be any that `__init__` names,
    which imports them late."""
    files: list[Path] = []
    for end in range(1, len(words) + 1):
        place = root.joinpath(*words[:end])
        files = [file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()]
        yield from files
    if not files and len(words) == 2:
        package = root / words[0]
        texts = facts((package / "__init__.py").read_text(encoding="utf8")).texts
        yield from (file for file in package.glob("*.py") if file.stem in texts)


def is_data(name: str, root: Path = ROOT) -> bool:
    """Return whether a text is the path of a file or folder below data/ that no run writes."""
    written = name.rstrip("/") in MADE or name.startswith(("data/cache/", "data/runs/"))
    return re.fullmatch(r"data/[\w./-]+", name) is not None and not written and (root / name).exists()


def composed_data(cells: Iterable[Facts], root: Path = ROOT) -> set[str]:
    """Return the files of data/results and data/configs whose name an f-string of the cells makes of their
    own texts: f"bench_{name}.json" in a notebook that says "guidance"."""
    cells = list(cells)
    texts = {text for one in cells for text in one.texts}
    found = set()
    for path in (*root.glob("data/results/*.json"), *root.glob("data/configs/*.json")):
        name = path.relative_to(root).as_posix()
        for pattern in {pattern for one in cells for pattern in one.patterns}:
            match = re.fullmatch(pattern, name.removeprefix("data/results/")) or re.fullmatch(pattern, name)
            if match and match.groups() and texts.issuperset(match.groups()):
                found.add(name)
    return found


def _content(path: Path) -> bytes:
    """Return a file's content, or a folder's: names and contents of its files but prose.

    Of a folder with a manifest, such as a run, the manifest alone, which has the hash of each file: what is
    drawn or measured beside it is not what it was made of.
    """
    for file in (path, path / "manifest.json"):
        if file.is_file():
            return file.read_bytes()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    kept = (name for name in names if not name.endswith(".md") and not re.search(r"(^|/)[._]", name))
    return b"".join(name.encode() + b"\0" + (path / name).read_bytes() + b"\0" for name in kept)


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
