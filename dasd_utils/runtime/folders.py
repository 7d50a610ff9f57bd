"""The rows of a domain's images: from a folder as people have them, parquet files, or the hub."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dasd_utils.config import DasdError, DomainConfig, check_no_hub_id, is_pinned, resolve
from dasd_utils.runtime import files, images, metadata

METADATA = (' In a folder of images they stand in a metadata.jsonl beside the images or above their folders, '
            'a line an image: {"file_name": "1.png", "text": "..."}.')  # fmt: skip
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "validation",
          "valid": "validation", "validation": "validation", "dev": "validation"}  # fmt: skip
BESIDE = {".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md", ".xml", ".yaml", ".yml",
          ".html", ".ini", ".db", ".log", ".npz"}  # fmt: skip  # of files that are expected beside images
TABLES = {".csv", ".tsv", ".jsonl", ".parquet"}
KEPT_BY_PROGRAMS = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "__pycache__")  # folders
BYTES = r"(large_)?binary|struct<(.*, )?bytes: (large_)?binary(, .*)?>"  # types of columns
PATHS = ("image", "file_name", "file", "path", "image_path", "filepath", "filename")  # columns of image files
log = logging.getLogger(__name__)


def open_rows(domain: DomainConfig, split: str) -> datasets.Dataset:
    """Return the rows of one split of a domain's folder (images, or parquet files) or hub data set.

    Raises DasdError, naming what was looked for and where, if it is not there or lacks a configured column.
    """
    folder, where = resolve(domain.data), f"{domain.data} (domain {domain.name})"
    loaded = open_folder(domain, folder) if folder.is_dir() else {split: _from_hub(domain, folder, split)}
    if split not in loaded:
        raise DasdError(f"{where} has no split {split!r}. Splits: {', '.join(loaded)}.")
    rows = loaded[split]
    for name in ("image_column", "caption_column", "label_column"):
        column = getattr(domain, name)
        if column is not None and column not in rows.column_names:
            known = ", ".join(rows.column_names)
            advice = METADATA if folder.is_dir() else ""
            raise DasdError(f"{where} has no column {column!r}, its {name}. Columns: {known}.{advice}")
    if not len(rows):
        raise DasdError(f"Split {split!r} of {where} has no images.")
    return rows


def open_folder(domain: DomainConfig, folder: Path) -> dict[str, datasets.Dataset]:
    """Return all splits of a domain's folder; DasdError if it has no images or cannot be read.

    What it leaves out, and why, is a warning: once, until a file changes.
    """
    where = f"The folder {folder} (domain {domain.name})"
    paths, lost = find_files(folder)
    captions = resolve(domain.caption_file) if domain.caption_file else None
    has_images = any(path.suffix.lower() in images.SUFFIXES for path in paths)
    for path in paths:
        if re.search("[\ud800-\udfff]", str(path)):  # bytes that this locale does not read as text
            raise DasdError(f"The name of the file {str(path)!a} is no text here: rename it, or start "
                            "with the variable LC_ALL=C.UTF-8.")  # fmt: skip
        kind = path.suffix.lower()
        if kind not in BESIDE | images.SUFFIXES:
            lost.setdefault(f"{kind or 'suffixless'} files, a kind that is not read", []).append(path)
        elif kind in TABLES and has_images and path.name.lower() not in metadata.FILES and path != captions:
            lost.setdefault(f"tables that are not named {' or '.join(metadata.FILES)}", []).append(path)
    left_out = [f"{len(found)} {reason} ({found[0]})" for reason, found in sorted(lost.items())]
    if not has_images and not any(path.suffix.lower() == ".parquet" for path in paths):
        known = ", ".join(sorted(images.SUFFIXES))
        seen = f" Left out: {'; '.join(left_out)}." if left_out else ""
        raise DasdError(f"{where} has no images: looked for {known} and parquet files.{seen}")
    state = tuple((str(path), path.stat().st_mtime_ns) for path in paths)
    try:
        return _read_folder(folder, state, tuple(left_out))
    except Exception as error:  # pyarrow and fsspec have their own classes
        images.check_cache()
        raise DasdError(f"{where} cannot be read: {files.first_line(error)}.") from error


def find_files(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Return the files of a folder and of linked folders, by name, and what is left out, by reason.

    Hidden ones, and copies that programs keep, are no part of it.
    """
    found: list[Path] = []
    lost: dict[str, list[Path]] = {}
    root = folder.resolve()
    read = {root}

    def fail(error: OSError) -> None:
        lost.setdefault("folders that cannot be opened", []).append(Path(error.filename))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        shown = sorted(name for name in folders if not name.startswith(KEPT_BY_PROGRAMS))
        folders.clear()
        for path in (Path(place, name) for name in shown):
            target = path.resolve()
            is_inside = root in target.parents or target in root.parents
            if target in read or (path.is_symlink() and is_inside):
                lost.setdefault("links to folders that are read already", []).append(path)
            else:
                read.add(target)
                folders.append(path.name)
        for path in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
            there = found if path.is_file() else lost.setdefault("links that lead to no file", [])
            there.append(path)
    return sorted(found), lost


@functools.lru_cache(maxsize=16)
def _read_folder(folder: Path, state: tuple, left_out: tuple[str, ...]) -> dict[str, datasets.Dataset]:
    """Load a folder once for all its splits; `state` changes with its files.

    Images have the columns of the metadata files, where there are some, else their folders as labels.
    """
    paths = [Path(path) for path, _ in state]
    pictures = [path for path in paths if path.suffix.lower() in images.SUFFIXES]
    if not pictures:
        _check_tables([path for path in paths if path.suffix.lower() == ".parquet"])
        loaded = datasets.load_dataset("parquet", data_dir=glob.escape(str(folder)))  # nosec B615  # no hub
        return {split: with_images(rows, folder) for split, rows in loaded.items()}
    splits, stray = _find_splits(pictures)
    labels, beside = _labels(splits)
    reasons = [*left_out, *stray]
    tables = [path for path in paths if path.name.lower() in metadata.FILES]
    rows: metadata.Rows = {}
    if tables:
        for path in tables:
            for name, each in metadata.read(path).items():
                rows.setdefault((path.parent.relative_to(folder) / name).as_posix(), []).extend(each)
        names = {path: path.relative_to(folder).as_posix() for each in splits.values() for path in each}
        rows = metadata.match(rows, list(names.values()), folder)
        splits = {split: [path for path in each if names[path] in rows] for split, each in splits.items()}
        unlisted = len(names) - sum(map(len, splits.values()))
        reasons += [f"{unlisted} images that have no row in the metadata"] if unlisted else []
        columns = metadata.columns([rows[names[path]] for each in splits.values() for path in each])
    elif beside:
        reasons.append(f"the names of folders as labels, for {beside} images lie beside these folders")
    kinds = Counter(path.suffix.lower() for each in splits.values() for path in each)
    log.info("%s: images read are %s", folder, ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds)))
    if reasons:
        log.warning("%s: left out are %s", folder, "; ".join(reasons))
    if tables:
        return _as_rows(splits, columns, None)
    classes = {name: datasets.ClassLabel(names=sorted({*values})) for name, values in labels.items()}
    return _as_rows(splits, labels, datasets.Features({"image": datasets.Image(), **classes}))


def _as_rows(
    splits: dict[str, list[Path]], columns: dict[str, list[Any]], features: datasets.Features | None
) -> dict[str, datasets.Dataset]:
    """Return the rows of each split: its images, and their part of the columns."""
    content = {"image": [str(path) for each in splits.values() for path in each], **columns}
    table = datasets.Dataset.from_dict(content, features=features).cast_column("image", datasets.Image())
    loaded, start = {}, 0
    for split, each in splits.items():
        loaded[split] = table.select(range(start, start + len(each)))
        start += len(each)
    return loaded


def _find_splits(pictures: list[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the images of each split, and what lies beside the folders of splits.

    Folders named train and test are splits. A single one of such a name beside others is a class, and no
    name of a file is a split.
    """
    base = Path(os.path.commonpath([path.parent for path in pictures]))
    places: dict[str, list[Path]] = {}
    for path in pictures:
        first, *below = path.relative_to(base).parts
        places.setdefault(first if below else "", []).append(path)
    named = {name: SPLITS[name.lower()] for name in places if name.lower() in SPLITS}
    found = set(named.values())
    if "train" not in found or (len(found) == 1 and places.keys() - named - {""}):
        return {"train": pictures}, []
    splits = {split: [p for name in named if named[name] == split for p in places[name]] for split in found}
    stray = [f"{len(places[name])} images beside the splits {', '.join(named)} ({base / name})"
             for name in sorted(places.keys() - named)]  # fmt: skip
    return {split: splits[split] for split in ("train", "validation", "test") if split in splits}, stray


def _labels(splits: dict[str, list[Path]]) -> tuple[dict[str, list[str]], int]:
    """Return the folder of each image as its label, where all of a split lie in one of several.

    Else nothing, and how many images lie beside several folders.
    """
    labels = []
    for pictures in splits.values():
        base = Path(os.path.commonpath([path.parent for path in pictures]))
        base = base.parent if len(splits) > 1 and base.name.lower() not in SPLITS else base
        labels += [path.parent.name for path in pictures if path.parent != base]
    beside = sum(map(len, splits.values())) - len(labels)
    if len(set(labels)) < 2:
        return {}, 0
    return ({}, beside) if beside else ({"label": labels}, 0)


def _check_tables(paths: list[Path]) -> None:
    """Raise DasdError, naming the file, for one that is no parquet or has other columns than the first."""
    columns = {}
    for path in paths:
        try:
            columns[path] = pq.read_schema(path).names
        except (OSError, pa.ArrowException) as error:
            raise DasdError(f"{path}: {files.first_line(error)}") from None
    for path, names in columns.items():
        if sorted(names) != sorted(columns[paths[0]]):
            raise DasdError(f"{path} has the columns {', '.join(names)}, and {paths[0]} "
                            f"{', '.join(columns[paths[0]])}")  # fmt: skip


def with_images(rows: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Return rows without a column of images with those of bytes, or else of file names, as images."""
    if any(isinstance(kind, datasets.Image) for kind in rows.features.values()):
        return rows
    kinds = {field.name: str(field.type) for field in rows.features.arrow_schema}
    stored = [name for name, kind in kinds.items() if re.fullmatch(BYTES, kind)]
    for name in (name for name in PATHS if not stored and kinds.get(name, "").endswith("string")):
        values = rows[name][:]
        address = next((value for value in values if value and "://" in value), None)
        if address:
            raise DasdError(f"the column {name!r} holds addresses like {address}: download the images, and "
                            "put their file names there.")  # fmt: skip
        if all(value is None or Path(value).suffix.lower() in images.SUFFIXES for value in values):
            values = [value and str(folder / value) for value in values]
            rows = rows.remove_columns(name).add_column(name, values)
            stored = [name]
    for name in stored:
        rows = rows.cast_column(name, datasets.Image())
    return rows


def _from_hub(domain: DomainConfig, folder: Path, split: str) -> datasets.Dataset:
    if folder.exists():
        raise DasdError(f"{folder} (domain {domain.name}) is a file; `data` wants a folder or a hub id.")
    check_no_hub_id(domain.data)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", domain.data) or set(domain.data) <= set("./"):
        raise DasdError(f"There is no folder {folder} (domain {domain.name}); {domain.data!r} is no hub id.")
    revision = domain.revision or "main"
    try:
        rows = datasets.load_dataset(domain.data, revision=domain.revision, split=split)
    except Exception as error:  # no network, no such set or split, gated: each has its own classes
        images.check_cache()
        page = f"{datasets.config.HF_ENDPOINT}/datasets/{domain.data}"
        raise DasdError(
            f"The data of domain {domain.name} cannot be read: there is no folder {folder}, and {page} "
            f"(revision {revision}, split {split!r}) gave: {files.first_line(error)}. Check the name and the "
            "network, or set `data` to a local folder."
        ) from error
    if not is_pinned(domain.revision):
        folders = [Path(file["filename"]).parent.name for file in rows.cache_files]
        commit = next(filter(is_pinned, folders), "the commit hash that the page of the data set shows")
        _warn_once(
            f"The data of domain {domain.name}, {domain.data}, is read at revision {revision}, which "
            f"may hold other files tomorrow. Pin it: set the domain's `revision` to {commit}."
        )
    return with_images(rows, folder)


@functools.cache
def _warn_once(text: str) -> None:
    """Warn of what is found again for every split."""
    log.warning(text)


def files_of_rows(rows: datasets.Dataset, column: str, folder: Path) -> list[str]:
    """Return each row's image file relative to the folder; DasdError for images inside a table."""
    items = images.undecoded(rows, column)[column]
    if not all(item and item["path"] and item["bytes"] is None for item in items):
        raise DasdError(f"The images of {folder} are inside tables, so no file name leads to a caption.")
    return [Path(os.path.relpath(item["path"], folder)).as_posix() for item in items]


def find_window(domain: DomainConfig, rows: datasets.Dataset) -> images.Window | None:
    """Return the values that are black and white in a split of a domain, None where all images have 8 bits.

    Where the domain names none, those that its training images propose. Warns of what a reader would not
    expect: a window that was chosen, bands that are left out, images that use a fraction of the range.
    """
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
    shown = found.thumbnails[found.readable()]
    if len(shown) > 1 and shown.max() - shown.min() < 64:
        advice = "Set its `window`" if deep else "Stretch them"
        _warn_once(f"The images of {name} use the levels {shown.min()} to {shown.max()} of 255 only. "
                   f"{advice} if that is not wanted.")  # fmt: skip
    return window if deep else None
