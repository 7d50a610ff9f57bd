"""A sweep: one notebook, run by papermill for each entry of a list of parameters."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasd_utils import evaluation
from dasd_utils.apps import notebooks
from dasd_utils.config import DasdError, resolve
from dasd_utils.runtime import files

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One entry of the list."""

    notebook: str
    parameters: Parameters
    output_dir: str  # of the sweep

    @property
    def folder(self) -> Path:
        """Return where the executed notebook and its results are, named by the parameters."""
        return Path(self.output_dir) / "cells" / files.short_hash([self.notebook, self.parameters])

    @property
    def results(self) -> Path:
        """Return the file that the notebook writes last."""
        return resolve(self.folder) / "results" / f"{self.notebook}.json"

    def command(self) -> list[str]:
        """Return the words behind `dasd` that run this cell."""
        words = ["notebooks", "--only", self.notebook, "--output_dir", str(self.folder)]
        words += ["--profile", self.parameters["profile"]] if "profile" in self.parameters else []
        rest = {name: value for name, value in self.parameters.items() if name != "profile"}
        return words + [w for name, value in rest.items() for w in ("-p", name, json.dumps(value))]


def read(path: str | Path) -> list[Parameters]:
    """Return the entries of a JSON file: a list of objects; a list as a value stands for each of its items.

    [{"lambda_align": [0.01, 0.1], "kernel": ["linear", "multi"]}] are four entries. Raises DasdError for a
    file that is not there, no JSON, or no list of objects, and for an entry that is there twice.
    """
    values = files.read_json(Path(path), "The parameters")
    if not isinstance(values, list) or not values or not all(isinstance(each, dict) for each in values):
        raise DasdError(f'{path} must be a list of objects: [{{"lambda_align": [0.01, 0.1]}}].')
    entries = [entry for each in values for entry in _product(each)]
    texts = [json.dumps(entry, sort_keys=True) for entry in entries]
    twice = [text for text in texts if texts.count(text) > 1]
    if twice:
        raise DasdError(f"{path} has an entry twice: {twice[0]}.")
    return entries


def _product(entry: Parameters) -> list[Parameters]:
    choices = [value if isinstance(value, list) else [value] for value in entry.values()]
    return [dict(zip(entry, chosen, strict=True)) for chosen in itertools.product(*choices)]


def cells(notebook: str, entries: Sequence[Parameters], output_dir: str | Path) -> list[Cell]:
    """Return a cell for each entry; DasdError for a parameter that the notebook does not declare."""
    path, *others = notebooks.find_notebooks([notebook])
    if others:
        raise DasdError(f"{notebook!r} begins several notebooks, {path.stem} and {others[0].stem}: name one.")
    for entry in entries:
        notebooks.check_parameters([path], entry)
    return [Cell(path.stem, entry, str(output_dir)) for entry in entries]


def missing(sweep: Sequence[Cell]) -> list[Cell]:
    """Return the cells that have no results yet."""
    return [cell for cell in sweep if not cell.results.is_file()]


def rows(sweep: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the rows of all cells, each with the parameters of its cell; DasdError where one is missing."""
    return [row | cell.parameters for cell in sweep for row in evaluation.load_results(cell.results)["rows"]]
