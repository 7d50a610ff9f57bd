"""The notebooks as files: run them, say whose stored outputs are stale, write their Colab badges.

A stamp in a notebook's metadata holds hashes of what made its outputs: its code cells, the rooms of the
package that they reach, and their data. A room is the core, `runtime`, a paper, `study`, or a tool of `apps`.
"""

import ast
import contextlib
import functools
import hashlib
import json
import logging
import re
import shutil
import threading
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import psutil

from dasd_utils.config import ROOT, DasdError, known_methods, portable, read_json
from dasd_utils.runtime import files

NOTEBOOKS = ROOT / "notebooks"
KEY = "dasd"  # where a notebook's metadata holds its stamp
DATA = re.compile(r"data/(?!(cache|runs)(/|$)|results/?$)[\w./-]+")  # what no run writes
# What a config says for the core to import a paper at run time: a method by its name, and two more.
NAMED = {name: f"papers/{name}" for name in (*known_methods(), "text_free")}
NAMED["generated"] = "papers/prior_images"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
Stamp = dict[str, Any]  # {"code": hash, "rooms": {room: hash}, "data": {path: hash}}
log = logging.getLogger(__name__)


class Executed(NamedTuple):
    """A notebook that ran."""

    path: Path  # of the copy with outputs
    seconds: float
    peak_gb: float  # resident memory of the notebook's process
    folder: Path  # of its figures and results
    stamp: Stamp  # empty if its outputs are not to be stored
    error: str = ""  # where it failed


def find_notebooks(only: list[str] | None = None, folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the notebooks in order, those whose name starts with an entry of `only` if given."""
    every = [*sorted(folder.glob("[0-9]*.ipynb")), *sorted(folder.glob("solutions.ipynb"))]
    if not every:
        raise DasdError(f"{folder} holds no notebook. The course comes by `git clone {files.address()}`.")
    for entry in only or []:
        if not any(path.stem.startswith(entry) for path in every):
            raise DasdError(f"No notebook starts with {entry!r}: {', '.join(path.stem for path in every)}.")
    return [path for path in every if only is None or path.stem.startswith(tuple(only))]


def load_notebook(path: Path) -> nbformat.NotebookNode:
    """Return the notebook of a file; DasdError for another file."""
    try:
        return nbformat.read(path, 4)
    except (OSError, ValueError, LookupError, AttributeError, nbformat.ValidationError) as error:
        raise DasdError(f"{path} is no notebook: {files.first_line(error)}.") from None


# Running: the whole course as one command.


def run_notebooks(
    paths: list[Path],
    output_dir: str | Path,
    parameters: dict[str, Any],
    to_store: bool = False,
    keep_going: bool = False,
) -> list[Executed]:
    """Execute each notebook with the parameters it declares; write executed copies to `output_dir`.

    to_store: each runs in an empty folder, `output_dir/<name>`, so that it sees no other notebook's files,
    and parameters other than its defaults are refused. keep_going: the others run after a failure too, which
    else the first one ends the list.
    """
    output_dir = Path(output_dir).resolve()
    check_parameters(paths, parameters, to_store)
    output_dir.mkdir(parents=True, exist_ok=True)
    done = []
    for path in paths:
        started = time.perf_counter()
        copy = output_dir / path.name
        folder = output_dir / path.stem if to_store else output_dir
        made = stamp(load_notebook(path)) if to_store else {}  # code that changes later did not make it
        if to_store:
            shutil.rmtree(folder, ignore_errors=True)
        error, peak = _execute(path, copy, parameters | {"output_dir": portable(folder)})
        done.append(Executed(copy, time.perf_counter() - started, peak / 1e9, folder, made, error))
        log.info("%s: %.0f s", path.stem, done[-1].seconds)
        if error and not keep_going:
            break
    return done


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _defaults(path: Path) -> dict[str, str]:
    """Return the parameters that a notebook declares, with the source of each default."""
    cells = [cell for cell in load_notebook(path).cells if "parameters" in _tags(cell)]
    lines = [node for cell in cells for node in ast.parse(cell.source).body]
    return {ast.unparse(n.targets): ast.unparse(n.value) for n in lines if isinstance(n, ast.Assign)}


def check_parameters(paths: list[Path], parameters: dict[str, Any], to_store: bool = False) -> None:
    """Raise DasdError for a parameter that no notebook declares, or to_store: whose default differs."""
    declared = {path: _defaults(path) for path in paths}
    known = set().union(*declared.values())
    for name, value in parameters.items():
        if name not in known:
            raise DasdError(f"No notebook has a parameter {name!r}. Parameters: {', '.join(sorted(known))}.")
        for path, defaults in declared.items() if to_store and name != "output_dir" else ():
            if defaults.get(name, repr(value)) != repr(value):
                raise DasdError(f"{path.name} says {name} = {defaults[name]}, and its stored outputs must be "
                                f"of that: leave out {name} = {value!r} or --update.")  # fmt: skip


def _execute(path: Path, copy: Path, parameters: dict[str, Any]) -> tuple[str, int]:
    """Run one notebook; return its error ("" if it has none) and the most bytes that its process held."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    values = {name: parameters[name] for name in _defaults(path) if name in parameters}
    kernel = {"kernel_name": KERNEL["name"], "language": KERNEL["language"]}  # whatever it was saved with
    done, peak = threading.Event(), [0]
    watch = threading.Thread(target=_watch_memory, args=(done, peak), daemon=True)
    watch.start()
    try:
        papermill.execute_notebook(str(path), str(copy), values, **kernel, cwd=str(path.parent))
        error = ""
    except DeadKernelError:
        error = f"{path.name}: its kernel died, most likely of too little memory."
    except papermill.PapermillExecutionError as fault:
        said = f"{fault.ename}: {fault.evalue}".rstrip(".")
        error = (f"{path.name} failed in cell {fault.exec_count} with {said}. "
                 f"The executed copy with its traceback: {copy}")  # fmt: skip
    finally:
        done.set()
        watch.join()
    return error, peak[0]


def _watch_memory(done: threading.Event, peak: list[int]) -> None:
    """Keep in `peak` the most resident bytes of all child processes together, until done."""
    while not done.wait(0.2):
        total = 0
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # ended meanwhile
                total += child.memory_info().rss
        peak[0] = max(peak[0], total)


def store_outputs(done: list[Executed], root: Path = ROOT) -> None:
    """Copy executed notebooks over notebooks/, their figures and results over figures/ and data/results/.

    What papermill and editors add is left out: the injected cell, times, widget states.
    """
    for one in done:
        notebook = nbformat.read(one.path, 4)
        notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in _tags(cell)]
        for cell in notebook.cells:
            cell.metadata = {"tags": _tags(cell)} if _tags(cell) else {}
        info = notebook.metadata.language_info
        notebook.metadata = {"kernelspec": KERNEL, "language_info": info, KEY: one.stamp}
        with files.atomic_write(root / "notebooks" / one.path.name, "The notebook") as part:
            nbformat.write(notebook, part)
        for kind, folder in (("figures", root / "figures"), ("results", root / "data" / "results")):
            for path in sorted((one.folder / kind).glob("*")):
                with files.atomic_write(folder / path.name, "What the notebook made") as part:
                    shutil.copyfile(path, part)


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


def stamp(notebook: nbformat.NotebookNode, root: Path = ROOT) -> Stamp:
    """Return the hashes of all that decides a notebook's outputs, as it is now."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code" and not is_setup(cell)]
    cells = read_code("\n".join(sources))
    rooms = reached_rooms(cells, root)
    data = set().union(*(_data_of(code, root) for code in (cells, *rooms.values())))
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

    A module's name as a text counts as an import of it. So does a paper's name in the cells, in a config that
    they name, or in a paper that counts.
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


# Badges: Colab badge and setup cell of every notebook say address and version of pyproject.toml, and a line
# of its first cell what it takes.

LINK = re.compile(r"https://colab\.research\.google\.com/github/[^)]*")
COST = re.compile(r"Time: with `tiny`.*? predicted from counted work\.")
PLACE = re.compile(r"address, version, folder = .*?(?=\\n)")  # in the file, where a line of a cell is a text


def is_setup(cell: nbformat.NotebookNode) -> bool:
    """Return whether a cell is the setup cell, which acts in Colab alone."""
    return cell.cell_type == "code" and '"google.colab" in sys.modules' in cell.source


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
                           f"{' or '.join(large)}, predicted from counted work.")  # fmt: skip
    return sentences


def renew_badges(paths: list[Path], root: Path = ROOT, write: bool = True) -> list[Path]:
    """Make badges and setup cells say what pyproject.toml says, and first cells what the notebook takes.

    Return the notebooks where they did not.
    """
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
