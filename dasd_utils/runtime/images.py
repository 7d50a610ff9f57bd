"""Where images come from, hub or folder, and how any of them becomes an RGB square with a fingerprint."""

from __future__ import annotations

import functools
import glob
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps

from dasd_utils.config import DasdError, DomainConfig, is_pinned, resolve
from dasd_utils.runtime import files, metadata

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
METADATA = (' In a folder of images they stand in a metadata.jsonl beside the images or above their folders, '
            'a line an image: {"file_name": "1.png", "text": "..."}.')  # fmt: skip
THUMBNAIL = 32  # pixels, square, grey: compared to find near duplicates
VERSION = 2  # of `_inspect_row`: a change of what it returns must not meet results cached before
SAMPLE_FEATURES = datasets.Features(
    {"image": datasets.Image(), "prompt": datasets.Value("string"), "seed": datasets.Value("int64")}
)
log = logging.getLogger(__name__)


# One image: read, to RGB, to pixels


def read_image(item: dict[str, Any]) -> Image.Image:
    """Decode what an undecoded `datasets.Image` column holds, {"bytes", "path"}, to RGB."""
    content = item["bytes"]
    with Image.open(io.BytesIO(content) if content is not None else item["path"]) as image:
        return to_rgb(image)


def open_file(path: Path) -> Image.Image:
    """Return an image file as RGB; DasdError if it cannot be read."""
    try:
        return read_image({"bytes": None, "path": path})
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DasdError(f"{path} cannot be read as an image: {error}") from None


def find_image_files(places: Sequence[Path]) -> list[Path]:
    """Return these image files, and those of the folders among them by name; DasdError if there is none."""
    listed = [sorted(place.iterdir()) if place.is_dir() else [place] for place in places]
    found = [file for files in listed for file in files if file.suffix.lower() in SUFFIXES or file in places]
    if not found:
        raise DasdError(f"There is no image in {', '.join(map(str, places))}.")
    return found


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any PIL image upright in 8-bit RGB; transparency on white, 16-bit grey scaled by its range.

    Raises ValueError for an image that is transparent everywhere: its colours are not what a person sees.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        pixels = np.nan_to_num(np.asarray(image, dtype=np.float32))
        peak = 65535.0 if image.mode.startswith("I;16") else float(pixels.max())
        white = next((level for level in (1.0, 255.0, 65535.0) if peak <= level), peak)
        image = Image.fromarray((pixels * (255 / white)).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        if not image.getchannel("A").getextrema()[1]:
            raise ValueError("every pixel is transparent")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def center_crop(image: Image.Image, resolution: int) -> Image.Image:
    """Return the RGB centre square, resolution x resolution pixels, the shorter side scaled to it."""
    return ImageOps.fit(to_rgb(image), (resolution, resolution), Image.Resampling.LANCZOS)


def to_pixels(images: Sequence[Image.Image | np.ndarray]) -> torch.Tensor:
    """Return RGB images of one size as float32 (n, 3, h, w) in [-1, 1], as the VAE reads them."""
    stacked = np.stack([np.asarray(image) for image in images])  # (n, h, w, 3) uint8
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def from_pixels(pixels: torch.Tensor) -> list[Image.Image]:
    """Return RGB images of pixels (n, 3, h, w), cut to [-1, 1]."""
    eight_bit = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in eight_bit.permute(0, 2, 3, 1).cpu().numpy()]


# The rows of a data set: from a folder or the hub


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


def open_folder(domain: DomainConfig, folder: Path) -> datasets.DatasetDict:
    """Return all splits of a domain's folder; DasdError if it has no images or cannot be read."""
    where = f"The folder {folder} (domain {domain.name})"
    paths = [path for path in folder.rglob("[!.]*") if path.is_file()]
    count = sum(path.suffix.lower() in SUFFIXES for path in paths)
    if not count and not any(path.suffix == ".parquet" for path in paths):
        raise DasdError(f"{where} has no images: looked for {', '.join(sorted(SUFFIXES))} and parquet files.")
    state = tuple(sorted((str(path), path.stat().st_mtime_ns) for path in paths))
    try:
        loaded = _read_folder("imagefolder" if count else "parquet", folder, state)
    except Exception as error:  # pyarrow and fsspec have their own classes
        raise DasdError(f"{where} cannot be read: {files.first_line(error)}.") from error
    unlisted = count - sum(loaded.num_rows.values())
    if unlisted > 0:
        log.warning("%s: %d images have no row in the metadata and are not used", folder, unlisted)
    return loaded


@functools.lru_cache(maxsize=16)
def _read_folder(kind: str, folder: Path, state: tuple) -> datasets.DatasetDict:
    """Load a folder once for all its splits, as it takes seconds; `state` changes with its files.

    Images have the columns of the metadata files, where there are some, else their folders as labels.
    """
    found = [Path(path) for path, _ in state if Path(path).name.lower() in metadata.FILES]
    options = {"drop_metadata": True, "drop_labels": bool(found) or None} if kind == "imagefolder" else {}
    loaded = datasets.load_dataset(kind, data_dir=glob.escape(str(folder)), **options)  # nosec B615  # no hub
    if not found or kind == "parquet":
        return loaded
    rows: metadata.Rows = {}
    for path in found:
        for name, each in metadata.read(path).items():
            rows.setdefault((path.parent.relative_to(folder) / name).as_posix(), []).extend(each)
    names = {split: files_of_rows(part, "image", folder) for split, part in loaded.items()}
    rows = metadata.match(rows, [name for each in names.values() for name in each], folder)
    places = {split: [i for i, name in enumerate(each) if name in rows] for split, each in names.items()}
    columns = metadata.columns([rows[names[split][i]] for split, each in places.items() for i in each])
    table = datasets.Dataset.from_dict(columns or {"none": [None] * sum(map(len, places.values()))})
    start = 0
    for split, each in places.items():
        part = [loaded[split].select(each), table.select(range(start, start + len(each)))]
        loaded[split] = datasets.concatenate_datasets(part if columns else part[:1], axis=1)
        start += len(each)
    return loaded


def _from_hub(domain: DomainConfig, folder: Path, split: str) -> datasets.Dataset:
    if folder.exists():
        raise DasdError(f"{folder} (domain {domain.name}) is a file; `data` wants a folder or a hub id.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", domain.data) or set(domain.data) <= set("./"):
        raise DasdError(f"There is no folder {folder} (domain {domain.name}); {domain.data!r} is no hub id.")
    revision = domain.revision or "main"
    try:
        rows = datasets.load_dataset(domain.data, revision=domain.revision, split=split)
    except Exception as error:  # no network, no such set or split, gated: each has its own classes
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
    return rows


@functools.cache
def _warn_once(text: str) -> None:
    """Warn of what is found again for every split."""
    log.warning(text)


def undecoded(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the rows with nothing but the image column, as {"bytes", "path"}; DasdError if it holds none."""
    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DasdError(f"The column {column!r} holds no images but {rows.features[column]}.") from error


def files_of_rows(rows: datasets.Dataset, column: str, folder: Path) -> list[str]:
    """Return each row's image file relative to the folder; DasdError for images inside a table."""
    items = undecoded(rows, column)[column]
    if not all(item and item["path"] and item["bytes"] is None for item in items):
        raise DasdError(f"The images of {folder} are inside tables, so no file name leads to a caption.")
    return [Path(os.path.relpath(item["path"], folder)).as_posix() for item in items]


class LazyImages(Sequence):
    """Images 0 to count - 1, each made by `read(index)` at every access."""

    def __init__(self, read: Callable[[int], Image.Image], count: int) -> None:
        self._read = read
        self._places = range(count)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        found = self._places[index]
        return self._read(found) if isinstance(found, int) else [self._read(place) for place in found]


def cropped_images(rows: datasets.Dataset, column: str, resolution: int) -> LazyImages:
    """Return the images of a data set's rows, read and cropped at each access."""
    stored = undecoded(rows, column)

    def read(index: int) -> Image.Image:
        item = stored[index][column]
        try:
            return center_crop(read_image(item), resolution)
        except OSError as error:  # it could be read when the rows were inspected
            raise DasdError(
                f"The image {item['path'] or index} can no longer be read: "
                f"{error.strerror or error}. Put its folder back, then start again."
            ) from error

    return LazyImages(read, len(stored))


# What is known of the pixels of all rows


@dataclass(frozen=True)
class Inspection:
    """What is known of each row's pixels; an unreadable row has the id ""."""

    ids: list[str]  # content hash
    thumbnails: np.ndarray  # (n, 32, 32) uint8
    sizes: list[tuple[int, int]]  # (width, height), pixels
    broken: list[str]  # name and reason of every row that cannot be read

    def readable(self) -> list[int]:
        """Return the numbers of the rows whose image can be read."""
        return [row for row, name in enumerate(self.ids) if name]


def content_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an RGB image's size and pixels: the same picture in another file has the same."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the image as (32, 32) uint8 grey."""
    return np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def inspect_rows(rows: datasets.Dataset, column: str) -> Inspection:
    """Read every image of the rows once; `datasets` keeps the result until a file changes."""
    options = {"fn_kwargs": {"column": column, "version": VERSION}, "remove_columns": [column]}
    facts = undecoded(rows, column).map(_inspect_row, desc="reading images", **options)[:]
    reasons = enumerate(zip(facts["path"], facts["error"], strict=True))
    broken = [f"{name or 'embedded image'} (row {i}): {why}" for i, (name, why) in reasons if why]
    small = np.frombuffer(b"".join(facts["thumbnail"]), dtype=np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)
    return Inspection(facts["id"], small, list(zip(facts["width"], facts["height"], strict=True)), broken)


def _inspect_row(row: dict[str, Any], column: str, version: int) -> dict[str, Any]:
    facts = {"id": "", "thumbnail": bytes(THUMBNAIL**2), "width": 0, "height": 0, "path": "", "error": ""}
    if row[column] is None:
        return facts | {"error": "no image"}
    facts["path"] = row[column]["path"] or ""
    try:
        image = read_image(row[column])
    except Exception as error:  # whatever a decoder raises on a broken file
        unknown = "identify" in str(error)
        return facts | {"error": "no image format known here" if unknown else files.first_line(error)}
    width, height = image.size
    small = thumbnail(image).tobytes()
    return facts | {"id": content_hash(image), "thumbnail": small, "width": width, "height": height}


# Generated images as one parquet file: image, prompt, seed. `datasets`, pandas and others read it.


def save_samples(
    path: str | Path, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
) -> Path:
    """Write the images as PNG bytes with prompt and seed, all or nothing; return the path."""
    columns = {"image": list(images), "prompt": list(prompts), "seed": list(seeds)}
    with files.atomic_write(Path(path), "The samples") as temporary:
        table = datasets.Dataset.from_dict(columns, features=SAMPLE_FEATURES).data.table
        table = table.cast(SAMPLE_FEATURES.arrow_schema)
        pq.write_table(table, temporary)  # `to_parquet` would draw a progress bar
    return Path(path)


def load_samples(path: str | Path) -> list[Image.Image]:
    """Return the images of a file that `save_samples` wrote, RGB; DasdError if it cannot be read."""
    try:
        return [read_image(row) for row in pq.read_table(path, columns=["image"])["image"].to_pylist()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DasdError(
            f"The samples {path} cannot be read: {error}. Remove the file to make them again."
        ) from None
