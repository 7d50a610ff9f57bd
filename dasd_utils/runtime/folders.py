"""The rows of a domain's images, with captions and labels: of a folder, parquet files, or the hub."""

import csv
import functools
import glob
import io
import itertools
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dasd_utils.config import DasdError, DomainConfig, is_pinned, resolve, unique_keys
from dasd_utils.runtime import files, images

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # beside images, in any letter case
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "validation",
          "valid": "validation", "validation": "validation", "dev": "validation"}  # fmt: skip
TABLES = {".csv", ".tsv", ".jsonl", ".parquet"}
BESIDE = {".txt", ".caption", ".json", ".md", ".xml", ".yaml", ".yml", ".html", ".ini", ".db", ".log",
          ".npz"} | TABLES  # fmt: skip  # of files that are expected beside images
KEPT_BY_PROGRAMS = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "__pycache__")  # folders
PATHS = ("image", "file_name", "file", "path", "image_path", "filepath", "filename")  # columns of image files
Splits = dict[str, dict[Path, Path]]  # split -> its files, each with its folder: train/dog, also of dog/train
Rows = dict[str, list[Mapping[str, Any]]]  # file name -> its rows: several rows may name one file
log = logging.getLogger(__name__)
_warn_once = functools.cache(log.warning)


class NoCaptionsError(DasdError):
    """A folder has no captions of one kind; of what is there and broken the class is DasdError."""


def open_rows(domain: DomainConfig, split: str) -> datasets.Dataset:
    """Return the rows of a split of a domain's folder or hub data set; DasdError names what is not there."""
    folder, where = files.find_folder(domain.data), f"{domain.data} (domain {domain.name})"
    loaded = open_folder(domain, folder) if folder else {split: _from_hub(domain, split)}
    if split not in loaded:
        raise DasdError(f"{where} has no split {split!r}. Splits: {', '.join(loaded)}.")
    rows = loaded[split]
    if not len(rows):
        raise DasdError(f"Split {split!r} of {where} has no images.")
    for name in ("image_column", "caption_column", "label_column"):
        column = getattr(domain, name)
        if column is not None and column not in rows.column_names:
            known = ", ".join(rows.column_names)
            raise DasdError(f"{where} has no column {column!r}, its {name}. Columns: {known}. In a folder of "
                            "images they stand in a metadata.jsonl beside the images or above their folders, "
                            'a line an image: {"file_name": "1.png", "text": "..."}.')  # fmt: skip
    return rows


def open_folder(domain: DomainConfig, folder: Path) -> dict[str, datasets.Dataset]:
    """Return all splits of a domain's folder; DasdError if it has no images or cannot be read."""
    where = f"The folder {folder} (domain {domain.name})"
    paths, lost = find_files(folder)
    captions = resolve(domain.caption_file) if domain.caption_file else None
    has_images = any(path.suffix.lower() in images.SUFFIXES for path in paths)
    read = METADATA if has_images else (".parquet",)
    for path in paths:
        if re.search("[\ud800-\udfff]", str(path)):  # bytes that this locale does not read as text
            raise DasdError(f"The name of the file {str(path)!a} is no text here: rename it, or start "
                            "with the variable LC_ALL=C.UTF-8.")  # fmt: skip
        kind = path.suffix.lower()
        if kind not in BESIDE | images.SUFFIXES:
            lost[f"{kind or 'suffixless'} files, a kind that is not read"].append(path)
        elif kind in TABLES and (path.name.lower() if has_images else kind) not in read and path != captions:
            lost[f"tables that are not named {' or '.join(read)}"].append(path)
    left_out = [f"{len(found)} {reason} ({found[0]})" for reason, found in sorted(lost.items()) if found]
    if not has_images and not any(path.suffix.lower() == ".parquet" for path in paths):
        seen = f" Left out: {'; '.join(left_out)}." if left_out else ""
        raise DasdError(f"{where} has no images: looked for {', '.join(sorted(images.SUFFIXES))} and parquet "
                        f"files.{seen}")  # fmt: skip
    state = tuple((str(path), path.stat().st_mtime_ns) for path in paths)
    try:
        return _read_folder(folder, state, tuple(left_out))
    except Exception as error:  # pyarrow and fsspec have their own classes
        images.check_cache()
        raise DasdError(f"{where} cannot be read: {files.first_line(error)}.") from error


def find_files(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Return the files of a folder and of linked folders, sorted, and those left out, by reason."""
    found, unopened = [], []
    lost = defaultdict(list, {"folders that cannot be opened": unopened})
    root = folder.resolve()
    read = {root}
    walk = os.walk(folder, followlinks=True, onerror=lambda error: unopened.append(Path(error.filename)))
    for place, folders, names in walk:
        shown = sorted(name for name in folders if not name.startswith(KEPT_BY_PROGRAMS))
        folders.clear()
        for path in (Path(place, name) for name in shown):
            target = path.resolve()
            is_inside = root in target.parents or target in root.parents
            if target in read or (path.is_symlink() and is_inside):
                lost["links to folders that are read already"].append(path)
            else:
                read.add(target)
                folders.append(path.name)
        for path in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
            (found if path.is_file() else lost["links that lead to no file"]).append(path)
    return sorted(found), lost


@functools.lru_cache(maxsize=16)
def _read_folder(folder: Path, state: tuple, left_out: tuple[str, ...]) -> dict[str, datasets.Dataset]:
    """Return a folder's splits, read once until its files change; a warning says what is left out."""
    paths = [Path(path) for path, _ in state]
    pictures = [path for path in paths if path.suffix.lower() in images.SUFFIXES]
    splits, stray = _find_splits(pictures or [path for path in paths if path.suffix.lower() == ".parquet"])
    columns, beside = _labels(splits) if pictures else ({}, 0)
    reasons = [*left_out, *stray]
    rows: Rows = {}
    for path in (path for path in paths if pictures and path.name.lower() in METADATA):
        for name, each in read_metadata(path).items():
            rows.setdefault((path.parent.relative_to(folder) / name).as_posix(), []).extend(each)
    names = {path: path.relative_to(folder).as_posix() for each in splits.values() for path in each}
    rows = match_rows(rows, list(names.values()), folder)
    if rows:
        listed = {split: {p: each[p] for p in each if names[p] in rows} for split, each in splits.items()}
        splits = {split: each for split, each in listed.items() if each}
        unlisted = len(names) - sum(map(len, splits.values()))
        reasons += [f"{unlisted} images that have no row in the metadata"] if unlisted else []
        columns = as_columns([rows[names[path]] for each in splits.values() for path in each])
    elif beside:
        reasons.append(f"the names of folders as labels, for {beside} images lie beside these folders")
    kinds = Counter(path.suffix.lower() for each in splits.values() for path in each)
    log.info("%s: images read are %s", folder, ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds)))
    if reasons:
        log.warning("%s: left out are %s", folder, "; ".join(reasons))
    if not pictures:
        _check_tables(list(names))
        tables = {split: [glob.escape(str(path)) for path in each] for split, each in splits.items()}
        loaded = datasets.load_dataset("parquet", data_files=tables)  # nosec B615  # no hub
        return {split: with_images(rows, folder) for split, rows in loaded.items()}
    content = {"image": [str(path) for each in splits.values() for path in each], **columns}
    table = datasets.Dataset.from_dict(content).cast_column("image", datasets.Image())
    ends = itertools.accumulate(map(len, splits.values()))
    return {split: table.select(range(end - len(splits[split]), end))
            for split, end in zip(splits, ends, strict=True)}  # fmt: skip


def _find_splits(paths: list[Path]) -> tuple[Splits, list[str]]:
    """Return the files by split, of folders named train, test, ... at any one level, and what is beside."""
    # a parquet file is a folder of its rows: of the hub's test-00000-of-00002.parquet it is test
    parents = [path.parent / re.sub(r"-\d+-of-\d+.*", "", path.stem) if path.suffix.lower() == ".parquet"
               else path.parent for path in paths]  # fmt: skip
    base = Path(os.path.commonpath(parents))
    parts = [parent.relative_to(base).parts for parent in parents]
    levels = enumerate(zip(*parts, strict=False))
    level = next((k for k, names in levels if all(name.lower() in SPLITS for name in names)), 0)
    where = {path: base.joinpath(*each[level : level + 1], *each[:level], *each[level + 1 :])
             for path, each in zip(paths, parts, strict=True)}  # fmt: skip
    first = {path: "".join(place.relative_to(base).parts[:1]) for path, place in where.items()}
    counts = Counter(first.values())
    named = {name: SPLITS[name.lower()] for name in counts if name.lower() in SPLITS}
    found = set(named.values())
    if "train" not in found or (len(found) == 1 and counts.keys() - named - {""}):
        return {"train": where}, []  # a single such name among others is a class
    splits = {split: {path: where[path] for path in paths if named.get(first[path]) == split}
              for split in ("train", "validation", "test") if split in found}  # fmt: skip
    stray = [f"{counts[name]} files beside the splits {', '.join(named)} ({base / name})"
             for name in sorted(counts.keys() - named)]  # fmt: skip
    return splits, stray


def _labels(splits: Splits) -> tuple[dict[str, list[str]], int]:
    """Return the folder of each image as its label, or none and how many images lie beside such folders."""
    labels = []
    for places in map(dict.values, splits.values()):
        base = Path(os.path.commonpath(places))
        base = base.parent if len(splits) > 1 and base.name.lower() not in SPLITS else base
        labels += [place.name for place in places if place != base]
    both = sorted({name.lower() for name in labels} & SPLITS.keys())
    if len({SPLITS[name] for name in both}) > 1:
        raise DasdError(f"folders {' and '.join(both)} would be classes: splits, with train/, go above them")
    beside = sum(map(len, splits.values())) - len(labels)
    if len(set(labels)) < 2:
        return {}, 0
    return ({}, beside) if beside else ({"label": labels}, 0)


def _check_tables(paths: list[Path]) -> None:
    """Raise DasdError, naming the file, for one that is no parquet or has other columns than the first."""
    first: list[str] = []
    for path in paths:
        try:
            names = sorted(pq.read_schema(path).names)
        except (OSError, pa.ArrowException) as error:
            raise DasdError(f"{path}: {files.first_line(error)}") from None
        first = first or names
        if names != first:
            raise DasdError(f"{path} has the columns {', '.join(names)}, and {paths[0]} {', '.join(first)}")


def with_images(rows: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Return rows without a column of images with those of bytes, or else of file names, as images."""
    if any(isinstance(kind, datasets.Image) for kind in rows.features.values()):
        return rows
    kinds = {field.name: str(field.type) for field in rows.features.arrow_schema}
    binary = r"(large_)?binary|struct<(.*, )?bytes: (large_)?binary(, .*)?>"
    stored = [name for name, kind in kinds.items() if re.fullmatch(binary, kind)]
    for name in (name for name in PATHS if not stored and kinds.get(name, "").endswith("string")):
        values = rows[name][:]
        if all(value is None or Path(value).suffix.lower() in images.SUFFIXES for value in values):
            rows = rows.remove_columns(name).add_column(name, [v and str(folder / v) for v in values])
            stored = [name]
    for name in stored:
        rows = rows.cast_column(name, datasets.Image())
    return rows


def _from_hub(domain: DomainConfig, split: str) -> datasets.Dataset:
    folder = resolve(domain.data)
    if folder.exists():
        raise DasdError(f"{folder} (domain {domain.name}) is a file; `data` wants a folder or a hub id.")
    files.check_no_hub_id(domain.data)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", domain.data) or set(domain.data) <= set("./"):
        raise DasdError(f"There is no folder {folder} (domain {domain.name}); {domain.data!r} is no hub id.")
    revision = domain.revision or "main"
    options = {"revision": domain.revision, "split": split}
    try:
        if domain.stream_rows:
            rows = _first_rows(domain.data, domain.stream_rows, options)
        else:
            rows = datasets.load_dataset(domain.data, **options)
    except Exception as error:  # no network, no such set or split, gated: each has its own classes
        images.check_cache()
        page = f"{datasets.config.HF_ENDPOINT}/datasets/{domain.data}"
        raise DasdError(f"The data of domain {domain.name} cannot be read: there is no folder {folder}, and "
                        f"{page} (revision {revision}, split {split!r}) gave: {files.first_line(error)}. "
                        "Check the name and the network, name a local folder, or, where the set is too "
                        "large, set the domain's `stream_rows`.") from error  # fmt: skip
    if not is_pinned(domain.revision):
        folders = [Path(file["filename"]).parent.name for file in rows.cache_files]
        commit = next(filter(is_pinned, folders), "the commit hash that the page of the data set shows")
        _warn_once(f"The data of domain {domain.name}, {domain.data}, is read at revision {revision}, which "
                   f"may change. Pin it: set the domain's `revision` to {commit}.")  # fmt: skip
    return with_images(rows, folder)


def _first_rows(name: str, count: int, options: dict[str, Any]) -> datasets.Dataset:
    """Return the first rows of a hub data set, read as a stream and kept in a file, as they are stored."""
    path = images.check_cache() / f"streamed-{files.short_hash([name, count, options], 32)}.parquet"
    if not path.exists():
        stream = datasets.load_dataset(name, streaming=True, **options).take(count)._resolve_features()
        schema = stream.features.arrow_schema
        with files.atomic_write(path, "The streamed rows") as part, pq.ParquetWriter(part, schema) as writer:
            for table in stream.with_format("arrow").iter(100):
                writer.write_table(table.cast(schema))
    return datasets.Dataset.from_parquet(str(path))


def files_of_rows(rows: datasets.Dataset, column: str, folder: Path) -> list[str]:
    """Return each row's image file relative to the folder; DasdError for images inside a table."""
    items = images.undecoded(rows, column)[column]
    if not all(item and item["path"] and item["bytes"] is None for item in items):
        raise NoCaptionsError(f"The images of {folder} are inside tables: no file name leads to a caption.")
    return [Path(os.path.relpath(item["path"], folder)).as_posix() for item in items]


def find_window(domain: DomainConfig, rows: datasets.Dataset) -> images.Window | None:
    """Return the domain's window, or one that its training images propose; None where all have 8 bits."""
    window, name = domain.window, f"domain {domain.name}"
    found = images.inspect_rows(rows, domain.image_column, window)
    deep = not np.isnan(found.levels).all()
    if window is None and deep:
        known = images.inspect_rows(open_rows(domain, domain.train_split), domain.image_column).levels
        window = images.propose_window(found.levels if np.isnan(known).all() else known)
        _warn_once(f"Images of {name} have more than 8 bits: {window[0]:g} is read as black, {window[1]:g} "
                   f"as white. To keep this, set its `window` to {[*window]}.")  # fmt: skip
        found = images.inspect_rows(rows, domain.image_column, window)
    for note, count in Counter(filter(None, found.notes)).items():
        _warn_once(f"{count} images of {name}: {note}.")
    readable = found.readable()
    parts = (found.thumbnails[part] for part in np.array_split(readable, len(readable) // 1024 + 1))
    shown = [level for part in parts if len(part) for level in (part.min(), part.max())]
    if len(readable) > 1 and max(shown) - min(shown) < 64:
        advice = "Set its `window`" if deep else "Stretch them"
        _warn_once(f"The images of {name} use the levels {min(shown)} to {max(shown)} of 255 only. "
                   f"{advice} if that is not wanted.")  # fmt: skip
    return window if deep else None


def read_metadata(path: Path, column: str | None = None) -> Rows:
    """Return the rows of a metadata file; DasdError, naming the line, for one without file name or column."""
    expected = f'expected an object {{"file_name": ..., "{column or "text"}": ...}}'
    found: Rows = {}
    try:
        for number, row in _read_lines(path):
            values = {key.strip(): value for key, value in row.items()} if isinstance(row, dict) else {}
            values = {"file_name" if key.lower() == "file_name" else key: values[key] for key in values}
            name = values.get("file_name")
            if not isinstance(name, str) or (column or "file_name") not in values:
                columns = f", not the columns {', '.join(values)}" if values else ""
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
                    raise DasdError(f"{path}, line {number}: {files.first_line(error)}. Each line is one "
                                    "object: no comma behind it, no list around all.") from None  # fmt: skip
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


def match_rows(rows: Rows, names: Sequence[str], folder: Path) -> Rows:
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


def as_columns(rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[Any]]:
    """Return the columns of images with any number of rows: of lists where the rows of an image differ."""
    found = {}
    names = dict.fromkeys(name for each in rows for row in each for name in row)
    for name in (name for name in names if name not in ("file_name", "image")):
        values = [_distinct([row.get(name) for row in each]) for each in rows]
        if any(len(each) > 1 or isinstance(value, list | tuple) for each in values for value in each):
            found[name] = [[part for value in each for part in as_list(value)] for each in values]
        else:
            found[name] = [each[0] if each else None for each in values]
        try:
            pa.array(found[name])
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise DasdError(f"the column {name!r} of its metadata cannot be kept: {files.first_line(error)}. "
                            "Give its values one type, or remove it.") from None  # fmt: skip
    return found


def _distinct(values: list[Any]) -> list[Any]:
    found = [value for value in values if value is not None]
    return [value for place, value in enumerate(found) if value not in found[:place]]


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and of any other value one that holds it."""
    return list(value) if isinstance(value, list | tuple) else [value]
