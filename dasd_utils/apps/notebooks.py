"""The notebooks as files: run them, say whose stored outputs are stale, write their Colab badges.

A stamp in a notebook's metadata holds hashes of what made its outputs: its code cells, the rooms of the
package that they reach, and their data. A room is hashed as one: the core, `runtime`, a paper, `study`, or
a tool of `apps`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import shutil
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from dasd_utils.config import ROOT, DasdError, known_methods
from dasd_utils.runtime import files

NOTEBOOKS = ROOT / "notebooks"
KEY = "dasd"  # where a notebook's metadata holds its stamp
DIGITS = 8  # of each hash in a stamp
WRITTEN = ("data/cache", "data/runs", "data/results")  # folders that runs write; files in the last are data
PACKAGE = "dasd_utils"
CORE = "core"  # the room of the files at the top of the package
# What a config says for the core to import a paper at run time: a method by its name, and two more.
NAMED = {name: f"papers/{name}" for name in (*known_methods(), "text_free")} | {
    "generated": "papers/prior_images"
}
Stamp = dict[str, Any]  # {"code": hash, "rooms": {room: hash}, "data": {path: hash}}


@dataclass(frozen=True)
class Executed:
    """A notebook that ran."""

    name: str
    path: Path  # of the copy with outputs
    seconds: float
    folder: Path  # of its figures and results


def find_notebooks(only: list[str] | None = None, folder: Path | None = None) -> list[Path]:
    """Return the notebooks in order, those whose name starts with an entry of `only` if given.

    Raises DasdError for an entry that no notebook starts with.
    """
    folder = folder or NOTEBOOKS
    every = [*sorted(folder.glob("[0-9]*.ipynb")), *sorted(folder.glob("solutions.ipynb"))]
    if only is None:
        return every
    for entry in only:
        if not any(path.stem.startswith(entry) for path in every):
            names = ", ".join(path.stem for path in every)
            raise DasdError(f"No notebook starts with {entry!r}. Notebooks: {names}.")
    return [path for path in every if path.stem.startswith(tuple(only))]


def load_notebook(path: Path) -> nbformat.NotebookNode:
    """Return the notebook of a file."""
    return nbformat.read(path, as_version=4)


# Running: the whole course as one command.


def run_notebooks(
    paths: list[Path],
    output_dir: str | Path,
    parameters: dict[str, Any],
    progress: bool = True,
    report: Callable[[Executed], None] = lambda done: None,
    to_store: bool = False,
) -> list[Executed]:
    """Execute each notebook with the parameters it declares; write executed copies to `output_dir`.

    to_store: each runs in an empty folder, `output_dir/<name>`, so that it sees no other notebook's files,
    and the stamp is written into its copy.
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
        started = time.perf_counter()
        copy = output_dir / path.name
        folder = output_dir / path.stem if to_store else output_dir
        if to_store:
            shutil.rmtree(folder, ignore_errors=True)
            made = stamp(load_notebook(path))  # before it runs: code that changes meanwhile did not make it
            _execute(path, copy, parameters | {"output_dir": parameter_path(folder)}, progress)
            _write_stamp(copy, made)
        else:
            _execute(path, copy, parameters, progress)
        done.append(Executed(path.stem, copy, time.perf_counter() - started, folder))
        report(done[-1])
    return done


def parameter_path(folder: Path) -> str:
    """Return a folder as results may name it: relative to ROOT if it is inside, else unchanged."""
    return str(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder)


def _defaults(path: Path) -> dict[str, str]:
    """Return the parameters that a notebook declares, with the source of each default."""
    import papermill

    return {name: each["default"] for name, each in papermill.inspect_notebook(str(path)).items()}


def check_parameters(paths: list[Path], parameters: dict[str, Any]) -> None:
    """Raise DasdError for a parameter that none of the notebooks declares, such as a misspelled one."""
    declared = set().union(*map(_defaults, paths)) if parameters else set()
    for name in parameters:
        if name not in declared:
            known = ", ".join(sorted(declared))
            raise DasdError(f"No notebook has a parameter {name!r}. Parameters: {known}.")


def check_defaults(paths: list[Path], parameters: dict[str, Any]) -> None:
    """Raise DasdError if a parameter is not the notebook's default: stored outputs are of the defaults."""
    for path in paths:
        for name, default in _defaults(path).items():
            if name in parameters and not _is_value_of(default, parameters[name]):
                raise DasdError(f"{path.name} says {name} = {default}, and its stored outputs must be of "
                                f"that: leave out {name} = {parameters[name]!r} or --update.")  # fmt: skip


def _is_value_of(source: str, value: Any) -> bool:
    try:
        return repr(value) == source or ast.literal_eval(source) == value
    except (SyntaxError, ValueError):  # an expression
        return False


def _execute(path: Path, copy: Path, parameters: dict[str, Any], progress: bool) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    values = {name: parameters[name] for name in _defaults(path) if name in parameters}
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
    """Copy executed notebooks over notebooks/, their figures and results over figures/ and data/results/.

    What papermill and editors add is left out: the injected cell, times, widget states.
    """
    for one in done:
        notebook = load_notebook(one.path)
        cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        for cell in cells:
            cell.metadata = _only(cell.metadata, "tags")
        notebook.cells = cells
        notebook.metadata = _only(notebook.metadata, "kernelspec", "language_info", KEY)
        nbformat.write(notebook, root / "notebooks" / one.path.name)
        for kind, target in (("figures", root / "figures"), ("results", root / "data" / "results")):
            for path in sorted((one.folder / kind).glob("*")):
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target / path.name)


def _only(metadata: nbformat.NotebookNode, *names: str) -> nbformat.NotebookNode:
    return nbformat.from_dict({name: metadata[name] for name in names if metadata.get(name)})


# Freshness: a stamp names the code and the data that made a notebook's stored outputs.


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


def _write_stamp(path: Path, made: Stamp) -> None:
    """Put the stamp into a notebook that was just executed."""
    notebook = load_notebook(path)
    notebook.metadata[KEY] = made
    nbformat.write(notebook, path)


def stamp(notebook: nbformat.NotebookNode, root: Path = ROOT) -> Stamp:
    """Return the hashes of all that decides a notebook's outputs, as it is now."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code" and not is_setup(cell)]
    cells = read_code("\n".join(sources))
    rooms = reached_rooms(cells, root)
    data = _composed_data(cells, root).union(*(_data_of(code, root) for code in (cells, *rooms.values())))
    return {
        "code": cells.hash,
        "rooms": {name: room.hash for name, room in sorted(rooms.items())},
        "data": {name: _short(_content(root / name)) for name in sorted(data)},
    }


@dataclass(frozen=True)
class Code:
    """What a stamp must know of a piece of code."""

    hash: str  # without what only readers see: comments, layout, docstrings
    imports: frozenset[str]  # dotted names; some are of attributes, not modules
    texts: frozenset[str]
    patterns: frozenset[str]  # regular expressions of the f-strings, whose values are their groups
    methods: frozenset[str]  # the names that a paper gives its methods in the ladder


@functools.lru_cache(maxsize=256)
def read_code(source: str) -> Code:
    """Return what a stamp must know of Python code; DasdError for magic lines."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise DasdError(f"This code is no plain Python, {error.msg}: {(error.text or source)[:80]!r}. Write "
                        "it without magic lines.") from None  # fmt: skip
    _drop_prose(tree)
    imports, texts, patterns, methods = set(), set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imports |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif _is_text(node):
            texts.add(node.value)
        elif isinstance(node, ast.keyword) and node.arg in NAMED:
            texts.add(node.arg)
        elif isinstance(node, ast.JoinedStr):
            parts = [re.escape(v.value) if isinstance(v, ast.Constant) else r"(\w+)" for v in node.values]
            patterns.add("".join(parts))
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LADDER":
            methods |= {key.value for key in getattr(node.value, "keys", []) if _is_text(key)}
    hashed = _short(repr(_plain(tree)).encode())
    return Code(hashed, *map(frozenset, (imports, texts, patterns, methods)))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _drop_prose(tree: ast.Module) -> None:
    """Remove docstrings and what only type checkers read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        elif isinstance(getattr(node, "body", None), list):
            node.body = [
                each for each in node.body if not (isinstance(each, ast.Expr) and _is_text(each.value))
            ]


def _plain(node: Any) -> Any:
    """Return a tree as nested lists, without empty fields: versions of Python differ in which there are."""
    if isinstance(node, ast.AST):
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    return [_plain(one) for one in node] if isinstance(node, list) else node


def reached_rooms(cells: Code, root: Path = ROOT) -> dict[str, Code]:
    """Return the rooms of the package that code uses, and those that these import, inside functions too.

    A text that is a module's name, such as "dasd_utils.apps.cli.main", counts as an import of it. A paper
    also counts if its name is in the cells, in a config that they name, or in another paper that counts.
    """
    rooms = rooms_of(root)
    data = _data_of(cells, root) | _composed_data(cells, root)
    configs = [name for name in data if name.startswith("data/configs/")]
    said = [
        cells,
        *(read_code((root / name).read_text(encoding="utf8")) for name in configs),
    ]  # JSON is Python
    left = [name for code in said for name in (*_imported(code), *_papers_named(code, rooms))]
    found: dict[str, Code] = {}
    while left:
        name = left.pop()
        if name in rooms and name not in found:
            found[name] = room = rooms[name]
            left += _imported(room)
            left += _papers_named(room, rooms) if name.startswith("papers/") else []
    return found


def rooms_of(root: Path = ROOT) -> dict[str, Code]:
    """Return the code by room: "core", a folder ("study"), or a part of papers or apps ("papers/ddim")."""
    package = root / PACKAGE
    sources: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        folder, *below = path.relative_to(package).with_suffix("").parts
        room = f"{folder}/{below[0]}" if folder in ("papers", "apps") else folder
        sources.setdefault(room if below else CORE, []).append(path.read_text(encoding="utf8"))
    return {room: read_code("\n".join(texts)) for room, texts in sources.items()}


def _imported(code: Code) -> list[str]:
    """Return the names that rooms of code's imports can have; an import runs each `__init__` on its way."""
    names = [name.split(".") for name in code.imports | code.texts if name.split(".")[0] == PACKAGE]
    return [room for _, *rest in names for room in (CORE, *rest[:1], "/".join(rest[:2]))]


def _papers_named(code: Code, rooms: dict[str, Code]) -> list[str]:
    """Return the papers that code names as a config or the ladder does ("DomainStudio, no losses")."""
    said = {text.split(",")[0].lower() for text in code.texts}
    named = [room for name, room in NAMED.items() if name in said]
    return named + [name for name, room in rooms.items() if room.methods & code.texts]


def _data_of(code: Code, root: Path) -> set[str]:
    """Return the texts that are paths of a file or folder below data/ that no run writes."""
    texts = {text for text in code.texts if re.fullmatch(r"data/(?!cache/|runs/)[\w./-]+", text)}
    return {text for text in texts if text.rstrip("/") not in WRITTEN and (root / text).exists()}


def _composed_data(cells: Code, root: Path) -> set[str]:
    """Return the results and configs whose name an f-string of the cells makes of texts of the same cells:
    f"bench_{name}.json" in a notebook that says "guidance"."""
    found = set()
    for path in (*root.glob("data/results/*.json"), *root.glob("data/configs/*.json")):
        name = path.relative_to(root).as_posix()
        for pattern in cells.patterns:
            match = re.fullmatch(f"(?:data/results/)?{pattern}", name)
            if match and match.groups() and cells.texts.issuperset(match.groups()):
                found.add(name)
    return found


def _content(path: Path) -> bytes:
    """Return a file's content, or a folder's: names and contents of its files but prose.

    Of a folder with a manifest, such as a run, the manifest alone: it has the hash of each file that was
    saved, and later images or timings beside them do not count.
    """
    for file in (path, path / "manifest.json"):
        if file.is_file():
            return file.read_bytes()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    kept = (name for name in names if not name.endswith(".md") and not re.search(r"(^|/)[._]", name))
    return b"".join(name.encode() + b"\0" + (path / name).read_bytes() + b"\0" for name in kept)


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


# Badges: the Colab badge and setup cell of every notebook, from address and version in pyproject.toml.


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
    title = notebook.cells[0]
    first = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
    if not BADGE.search(title.source) or first is None or not is_setup(first):
        raise DasdError(f"{name} must begin with a title and a Colab badge, and its first code cell must be "
                        "the setup cell: take both from another notebook.")  # fmt: skip
    before = title.source, first.source
    title.source = BADGE.sub(lambda _: wanted.badge(name), title.source)
    first.source = wanted.setup()
    return text if (title.source, first.source) == before else nbformat.writes(notebook) + "\n"


def outdated_badges(paths: list[Path], root: Path = ROOT) -> dict[Path, str]:
    """Return the notebooks whose badge or setup cell is not what pyproject.toml says, with their new text."""
    wanted = repository(root)
    before = {path: path.read_text(encoding="utf8") for path in paths}
    after = {path: with_badge(text, path.name, wanted) for path, text in before.items()}
    return {path: text for path, text in after.items() if text != before[path]}


def write_badges(paths: list[Path], root: Path = ROOT) -> list[Path]:
    """Write badges and setup cells; return the notebooks that changed. All are read before one is written."""
    new = outdated_badges(paths, root)
    for path, text in new.items():
        with files.atomic_write(path, "The notebook") as part:
            part.write_text(text, encoding="utf8")
    return list(new)
