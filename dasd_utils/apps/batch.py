"""Run the notebooks in order through papermill: the whole course as one command."""

from __future__ import annotations

import ast
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasd_utils.apps import freshness
from dasd_utils.config import ROOT, DasdError

log = logging.getLogger(__name__)
NOTEBOOKS = ROOT / "notebooks"


@dataclass(frozen=True)
class Executed:
    """One notebook that ran: its copy with outputs, how long it took, and the stamp of what made it."""

    name: str
    path: Path
    seconds: float
    folder: Path  # of its figures and results


def find(only: list[str] | None = None, folder: Path = NOTEBOOKS) -> list[Path]:
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


def run(
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
            values = parameters | {"output_dir": told(folder)}
            stamp = freshness.stamp_of(path)  # before it runs: code that changes meanwhile did not make it
        _execute(path, copy, values, progress)
        if stamp:
            freshness.write(copy, stamp)
        done.append(Executed(path.stem, copy, time.perf_counter() - started, folder))
        report(done[-1])
    return done


def told(folder: Path) -> str:
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


def store(done: list[Executed], root: Path = ROOT) -> None:
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
        names = ("kernelspec", "language_info", freshness.KEY)
        kept = {name: notebook.metadata[name] for name in names if name in notebook.metadata}
        notebook.cells, notebook.metadata = cells, nbformat.from_dict(kept)
        nbformat.write(notebook, root / "notebooks" / one.path.name)
        for kind, target in (("figures", root / "figures"), ("results", root / "data" / "results")):
            for path in sorted((one.folder / kind).glob("*")):
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target / path.name)
