"""The notebooks as files: find them, run them with parameters."""

import ast
import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import psutil

from dasd_utils.config import ROOT, DasdError, portable
from dasd_utils.runtime import files

NOTEBOOKS = ROOT / "notebooks"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
log = logging.getLogger(__name__)


class Executed(NamedTuple):
    """A notebook that ran."""

    path: Path  # of the copy with outputs
    seconds: float
    peak_gb: float  # resident memory of the notebook's process
    error: str = ""  # where it failed


def find_notebooks(only: list[str] | None = None, folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the notebooks in order, those whose name starts with an entry of `only` if given."""
    every = [*sorted(folder.glob("[0-9]*.ipynb")), *sorted(folder.glob("solutions.ipynb"))]
    if not every:
        raise DasdError(f"{folder} holds no notebook. The course comes by `git clone {files.address()}`.")
    for entry in only or []:
        if not entry or not any(path.stem.startswith(entry) for path in every):
            raise DasdError(f"No notebook starts with {entry!r}: {', '.join(path.stem for path in every)}.")
    return [path for path in every if only is None or path.stem.startswith(tuple(only))]


def load_notebook(path: Path) -> nbformat.NotebookNode:
    """Return the notebook of a file; DasdError for another file."""
    try:
        return nbformat.read(path, 4)
    except (OSError, ValueError, LookupError, AttributeError, nbformat.ValidationError) as error:
        raise DasdError(f"{path} is no notebook: {files.first_line(error)}.") from None


def run_notebooks(
    paths: list[Path], output_dir: str | Path, parameters: dict[str, Any], keep_going: bool = False
) -> list[Executed]:
    """Execute each notebook with the parameters it declares; keep_going: also after one that fails."""
    output_dir = Path(output_dir).resolve()
    check_parameters(paths, parameters)
    output_dir.mkdir(parents=True, exist_ok=True)
    done = []
    for path in paths:
        started = time.perf_counter()
        copy = output_dir / path.name
        error, peak = _execute(path, copy, parameters | {"output_dir": portable(output_dir)})
        done.append(Executed(copy, time.perf_counter() - started, peak / 1e9, error))
        log.info("%s: %.0f s", path.stem, done[-1].seconds)
        if error and not keep_going:
            break
    return done


def _declared(path: Path) -> set[str]:
    cells = [cell for cell in load_notebook(path).cells if "parameters" in cell.metadata.get("tags", [])]
    lines = [node for cell in cells for node in ast.parse(cell.source).body]
    return {ast.unparse(node.targets) for node in lines if isinstance(node, ast.Assign)}


def check_parameters(paths: list[Path], parameters: dict[str, Any]) -> None:
    """Raise DasdError for a parameter that no notebook declares, and for the one that the command sets."""
    if "output_dir" in parameters:
        raise DasdError("output_dir is where all notebooks write: set it by --output_dir.")
    known = set().union(*map(_declared, paths))
    for name in parameters.keys() - known:
        raise DasdError(f"No notebook has a parameter {name!r}. Parameters: {', '.join(sorted(known))}.")


def _execute(path: Path, copy: Path, parameters: dict[str, Any]) -> tuple[str, int]:
    """Run one notebook; return its error ("" if it has none) and the most bytes that its process held."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    values = {name: parameters[name] for name in _declared(path) if name in parameters}
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


def is_setup(cell: nbformat.NotebookNode) -> bool:
    """Return whether a cell is the setup cell, which acts in Colab alone."""
    return cell.cell_type == "code" and '"google.colab" in sys.modules' in cell.source
