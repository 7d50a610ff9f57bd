"""Metadata: rows that name the files of images, in JSON lines, CSV or parquet. One reader for all of them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dasd_utils.config import DasdError, unique_keys
from dasd_utils.runtime import files

FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of a folder of images, in any letter case
Rows = dict[str, list[Mapping[str, Any]]]  # file name -> its rows: several rows may name one file


def read(path: Path, column: str | None = None) -> Rows:
    """Return the rows of a metadata file; DasdError, naming the line, for one without file name or column."""
    expected = f'expected an object {{"file_name": ..., "{column or "text"}": ...}}'
    found: Rows = {}
    try:
        for number, row in _read_lines(path):
            values = row if isinstance(row, dict) else {}
            names = {key: str(key).strip() for key in values}
            names |= {key: key.lower() for key in names.values() if key.lower() == "file_name"}
            values = {names.get(names[key], names[key]): value for key, value in values.items()}
            name = values.get("file_name")
            if not isinstance(name, str) or (column or "file_name") not in values:
                columns = f", not the columns {', '.join(map(str, values))}" if values else ""
                raise DasdError(f"{path}, line {number}: {expected}{columns}.")
            place = Path(os.path.normpath(name.replace("\\", "/"))).as_posix()
            found.setdefault(place, []).append(values)
    except (OSError, csv.Error, pa.ArrowException) as error:
        raise DasdError(f"{path} cannot be read: {files.first_line(error)}.") from None
    if not found:
        raise DasdError(f"{path} has no row: {expected} for each image.")
    return found


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each row behind its number. Values of CSV are texts: "None" and "NA" are words like others."""
    if path.suffix.lower() == ".parquet":
        yield from enumerate(pq.read_table(path).to_pylist(), start=1)
        return
    text = files.read_text(path, "The metadata")
    if path.suffix.lower() != ".csv":
        for number, line in enumerate(text.split("\n"), start=1):  # a caption may hold other ends of lines
            if line.strip():
                try:
                    yield number, json.loads(line, object_pairs_hook=unique_keys)
                except (ValueError, RecursionError) as error:
                    reason = str(error).rstrip(".")
                    raise DasdError(f"{path}, line {number}: {reason}. Each line is one object: no comma "
                                    "behind it, and no list around all of them.") from None  # fmt: skip
        return
    header = text.partition("\n")[0]
    table = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=max(",;\t|", key=header.count), skipinitialspace=True
    )
    for row in table:
        if None in row or None in row.values():
            raise DasdError(f"{path}, line {table.line_num}: {len(table.fieldnames)} fields are expected. "
                            "Put a text that has a comma or a line break in quotes.")  # fmt: skip
        if any(row.values()):
            yield table.line_num, {name: value or None for name, value in row.items()}


def match(rows: Rows, names: Sequence[str], folder: Path) -> Rows:
    """Return the rows of these files of a folder, in any letter case; DasdError where one is not there."""
    folded = {name.casefold(): name for name in names} | {name: name for name in names}
    found: Rows = {}
    missing = []
    for name, each in rows.items():
        inside = Path(os.path.relpath(folder / name, folder)).as_posix()
        place = folded.get(inside) or folded.get(inside.casefold())
        if place:
            found.setdefault(place, []).extend(each)
        elif inside.startswith("../") or not (folder / name).is_file():  # those of another split are
            missing.append(name)
    if missing:
        raise DasdError(f"{len(missing)} of {len(rows)} files that have a row are not in {folder}, the "
                        f"first: {missing[0]}. Remove their rows, or put the files back.")  # fmt: skip
    return found


def columns(rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[Any]]:
    """Return the columns of images with any number of rows: of lists where the rows of an image differ."""
    found = {}
    for name in dict.fromkeys(name for each in rows for row in each for name in row):
        values = [_distinct(row.get(name) for row in each) for each in rows]
        parts = [part for each in values for value in each for part in as_list(value) if part is not None]
        other = next((part for part in parts if isinstance(part, str) != isinstance(parts[0], str)), None)
        if other is not None:
            raise DasdError(f"the column {name!r} of its metadata holds texts and other values, like "
                            f"{parts[0]!r} and {other!r}: put all of them in quotes.")  # fmt: skip
        is_list = any(isinstance(value, list | tuple) for each in values for value in each)
        if not is_list and all(len(each) < 2 for each in values):
            found[name] = [each[0] if each else None for each in values]
        else:
            found[name] = [[part for value in each for part in as_list(value)] for each in values]
        try:
            pa.array(found[name])
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise DasdError(f"the column {name!r} of its metadata cannot be kept: {files.first_line(error)}. "
                            "Give its values one type, or remove it.") from None  # fmt: skip
    return {name: values for name, values in found.items() if name not in ("file_name", "image")}


def _distinct(values: Iterable[Any]) -> list[Any]:
    found = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and of any other value one that holds it."""
    return list(value) if isinstance(value, list | tuple) else [value]
