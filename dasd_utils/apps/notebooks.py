"""Run the notebooks in order through papermill: the whole course as one command."""

from __future__ import annotations

import ast
import functools
import hashlib
import logging
import re
import shutil
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from dasd_utils.config import ROOT, DasdError
from dasd_utils.runtime import files

log = logging.getLogger(__name__)
NOTEBOOKS = ROOT / "notebooks"


@dataclass(frozen=True)
class Executed:
    """One notebook that ran: its copy with outputs, how long it took, and the stamp of what made it."""

    name: str
    path: Path
    seconds: float
    folder: Path  # of its figures and results


def find_notebooks(only: list[str] | None = None, folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the notebooks in order, those whose name starts with an entry of `only` if given.

    Raises DasdError for an entry that no notebook starts with.
    """
    every = [*sorted(folder.glob("[0-9]*.ipynb")), *sorted(folder.glob("solutions.ipynb"))]
    if only is None:
        return every
    for entry in only:
        if not any(path.stem.startswith(entry) for path in every):
            names = ", ".join(path.stem for path in every)
            raise DasdError(f"No notebook starts with {entry!r}. Notebooks: {names}.")
    return [path for path in every if any(path.stem.startswith(entry) for entry in only)]


def run_notebook(
    paths: list[Path],
    output_dir: str | Path,
    parameters: dict[str, Any],
    progress: bool = True,
    report: Callable[[Executed], None] = lambda done: None,
    to_store: bool = False,
) -> list[Executed]:
    """Execute each notebook with the parameters it declares; write executed copies to `output_dir`.

    to_store: each runs in a new folder of its own, `output_dir/<name>`, so that its outputs are of the code
    and the data of the repository alone; its copy says what made it, as `freshness.stamp` tells it.
    Raises DasdError at the first failure: notebook, cell and error. The copy then holds the traceback.
    """
    output_dir = Path(output_dir).resolve()
    check_parameters(paths, parameters)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DasdError(f"The output folder {output_dir} cannot be written: {error.strerror}. Set output_dir "
                        "to another one.") from None  # fmt: skip
    done = []
    for path in paths:
        started, copy, folder = time.perf_counter(), output_dir / path.name, output_dir
        values, stamp = parameters, None
        if to_store:
            folder = output_dir / path.stem
            shutil.rmtree(folder, ignore_errors=True)
            values = parameters | {"output_dir": parameter_path(folder)}
            stamp = stamp_of(path)  # before it runs: code that changes meanwhile did not make it
        _execute(path, copy, values, progress)
        if stamp:
            write_stamp(copy, stamp)
        done.append(Executed(path.stem, copy, time.perf_counter() - started, folder))
        report(done[-1])
    return done


def parameter_path(folder: Path) -> str:
    """Return a folder's name for results, which name their run: below ROOT without a path of this machine."""
    return str(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder)


def _declared(path: Path) -> set[str]:
    import papermill

    return set(papermill.inspect_notebook(str(path)))


def check_parameters(paths: list[Path], parameters: dict[str, Any]) -> None:
    """Raise DasdError for a parameter that no notebook declares: a slip of the pen, not a setting."""
    declared = set().union(*(_declared(path) for path in paths)) if parameters else set()
    for name in parameters:
        if name not in declared:
            known = ", ".join(sorted(declared))
            raise DasdError(f"No notebook has a parameter {name!r}. Parameters: {known}.")


def check_defaults(paths: list[Path], parameters: dict[str, Any]) -> None:
    """Raise DasdError for a value that a notebook does not say itself: its outputs would be of another."""
    import papermill

    for path in paths:
        for name, said in papermill.inspect_notebook(str(path)).items():
            own = said["default"]
            if name in parameters and repr(parameters[name]) != own and parameters[name] != _value(own):
                raise DasdError(f"{path.name} says {name} = {own}, and its stored outputs must be of that: "
                                f"leave out {name} = {parameters[name]!r} or --update.")  # fmt: skip


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):  # an expression
        return None


def _execute(path: Path, copy: Path, parameters: dict[str, Any], progress: bool) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    known = _declared(path)
    values = {name: value for name, value in parameters.items() if name in known}
    try:
        papermill.execute_notebook(
            str(path), str(copy), values, progress_bar=progress, cwd=str(path.parent), log_output=False
        )
    except PapermillExecutionError as error:
        raise DasdError(
            f"{path.name} failed in cell {error.exec_count} with {error.ename}: {error.evalue}. "
            f"The executed copy with its traceback: {copy}"
        ) from None


def store_outputs(done: list[Executed], root: Path = ROOT) -> None:
    """Make executed copies the tracked notebooks, and their figures and results the tracked ones.

    What papermill and the editor leave behind goes: the injected cell, times, widget states.
    """
    import nbformat

    for one in done:
        notebook = nbformat.read(one.path, as_version=4)
        cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        for cell in cells:
            tags = cell.metadata.get("tags", [])
            cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        names = ("kernelspec", "language_info", KEY)
        kept = {name: notebook.metadata[name] for name in names if name in notebook.metadata}
        notebook.cells, notebook.metadata = cells, nbformat.from_dict(kept)
        nbformat.write(notebook, root / "notebooks" / one.path.name)
        for kind, target in (("figures", root / "figures"), ("results", root / "data" / "results")):
            for path in sorted((one.folder / kind).glob("*")):
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target / path.name)


# Were a notebook's stored outputs made by the committed code? Its stamp says what made them.


PACKAGE = "dasd_utils"
KEY = "dasd"  # of the notebook's metadata
DIGITS = 8
MADE = ("data/cache", "data/runs", "data/results")  # folders that runs write; files in the last are data
Stamp = dict[str, Any]  # {"code": hash, "package": {module: hash}, "data": {path: hash}}


def stamp(notebook: nbformat.NotebookNode, root: Path = ROOT) -> Stamp:
    """Return the hashes of all that decides a notebook's outputs, as it is now."""
    cells = [facts(source) for source in code_cells(notebook)]
    reached = reached_modules(cells, root)
    data = {name for one in (*cells, *reached.values()) for name in one.texts if is_data(name, root)}
    return {
        "code": _short("\n".join(one.hash for one in cells).encode()),
        "package": {name: one.hash for name, one in sorted(reached.items())},
        "data": {name: _short(_content(root / name)) for name in sorted(data | composed_data(cells, root))},
    }


def load_notebook(path: Path) -> nbformat.NotebookNode:
    """Return the notebook of a file."""
    return nbformat.read(path, as_version=4)


def write_stamp(path: Path, made: Stamp) -> None:
    """Put the stamp into a notebook that was just executed."""
    notebook = load_notebook(path)
    notebook.metadata[KEY] = made
    nbformat.write(notebook, path)


def stamp_of(path: Path, root: Path = ROOT) -> Stamp:
    """Return the stamp of a notebook's file."""
    return stamp(load_notebook(path), root)


def stale(path: Path, root: Path = ROOT) -> list[str]:
    """Return what changed since a notebook's outputs were made; an empty list if they are fresh."""
    notebook = load_notebook(path)
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
    notebook = load_notebook(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    found = ["widget states"] if "widgets" in notebook.metadata else []
    if None in counts or counts != sorted(set(counts)):  # one may be missing: of papermill's injected cell
        found.append(f"execution counts out of order: {counts}")
    wrong = [n for n, cell in enumerate(cells, 1) if any(o.output_type == "error" for o in cell.outputs)]
    return found + [f"an error in code cell {number}" for number in wrong]


def code_cells(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the sources of the code cells; the setup cell is none of them."""
    return [c.source for c in notebook.cells if c.cell_type == "code" and not is_setup(c)]


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


def reached_modules(cells: Iterable[Facts], root: Path = ROOT) -> dict[str, Facts]:
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


# Colab badge and setup cell of every notebook, written from the address and version in pyproject.toml.


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
class Repository:
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


def repository(root: Path = ROOT) -> Repository:
    """Read address and version from pyproject.toml; DasdError where one is missing."""
    path = root / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf8"))["project"]
        return Repository(
            project["urls"]["Repository"].rstrip("/").removesuffix(".git"), f"v{project['version']}"
        )
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise DasdError(f"{path} does not say [project] version and [project.urls] Repository: {error!r}. "
                        "Write both.") from None  # fmt: skip


def is_setup(cell: nbformat.NotebookNode) -> bool:
    """Return whether a cell is the setup cell, which acts in Colab alone."""
    return cell.cell_type == "code" and COLAB in cell.source


def with_badge(text: str, name: str, wanted: Repository) -> str:
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


def outdated_badges(paths: list[Path], root: Path = ROOT) -> dict[Path, str]:
    """Return the notebooks whose badge or setup cell is not what pyproject.toml says, with their new text."""
    wanted = repository(root)
    found = {}
    for path in paths:
        text = path.read_text(encoding="utf8")
        new = with_badge(text, path.name, wanted)
        if new != text:
            found[path] = new
    return found


def write_badges(paths: list[Path], root: Path = ROOT) -> list[Path]:
    """Write badges and setup cells; return the notebooks that changed. All are read before one is written."""
    new = outdated_badges(paths, root)
    for path, text in new.items():
        with files.atomic_write(path, "The notebook") as part:
            part.write_text(text, encoding="utf8")
    return list(new)
