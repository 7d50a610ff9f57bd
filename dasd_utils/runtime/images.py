"""Where images come from, hub or folder, and how any of them becomes an RGB square with a fingerprint."""

from __future__ import annotations

import functools
import glob
import hashlib
import io
import logging
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
from dasd_utils.runtime import files

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
THUMBNAIL = 32  # pixels, square, grey: what near duplicates are told by
VERSION = 1  # of `_inspect_row`: a change of what it returns must not meet results cached before
log = logging.getLogger(__name__)


def find_image_files(places: Sequence[Path]) -> list[Path]:
    """Return these image files, and those of the folders among them by name; DasdError if there is none."""
    found = []
    for place in places:
        if not place.exists():
            raise DasdError(f"There is no file or folder {place}.")
        inside = sorted(place.iterdir()) if place.is_dir() else []
        found += [file for file in inside if file.suffix.lower() in SUFFIXES] or [place] * place.is_file()
    if not found:
        raise DasdError(f"There is no image in {', '.join(map(str, places))}.")
    return found


def open_file(path: Path) -> Image.Image:
    """Return an image file as RGB; DasdError if it cannot be read."""
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DasdError(f"{path} cannot be read as an image: {error}") from None


def open_rows(domain: DomainConfig, split: str) -> datasets.Dataset:
    """Return the rows of one split of a domain's folder (images, or parquet files) or hub data set.

    Raises DasdError, naming what was looked for and where, if it is not there or lacks a configured column.
    """
    folder = resolve(domain.data)
    rows = _from_folder(domain, folder, split) if folder.is_dir() else _from_hub(domain, folder, split)
    for name in ("image_column", "caption_column", "label_column"):
        column = getattr(domain, name)
        if column is not None and column not in rows.column_names:
            raise DasdError(_missing_column(domain, folder, name, rows.column_names))
    if not len(rows):
        raise DasdError(f"Split {split!r} of {domain.data} (domain {domain.name}) has no images.")
    return rows


def _from_folder(domain: DomainConfig, folder: Path, split: str) -> datasets.Dataset:
    loaded = open_folder(domain, folder)
    if split not in loaded:
        raise DasdError(f"The folder {folder} (domain {domain.name}) has no split {split!r}. "
                        f"Splits: {', '.join(loaded)}.")  # fmt: skip
    return loaded[split]


def open_folder(domain: DomainConfig, folder: Path) -> datasets.DatasetDict:
    """Return all splits of a domain's folder; DasdError if it has no images or cannot be read."""
    files = [path for path in folder.rglob("[!.]*") if path.is_file()]
    count = sum(path.suffix.lower() in SUFFIXES for path in files)
    if not count and not any(path.suffix == ".parquet" for path in files):
        raise DasdError(f"The folder {folder} (domain {domain.name}) has no images: looked for "
                        f"{', '.join(sorted(SUFFIXES))} and parquet files.")  # fmt: skip
    state = tuple(sorted((str(path), path.stat().st_mtime_ns) for path in files))
    kind = "imagefolder" if count else "parquet"
    try:
        loaded = _read_folder(kind, glob.escape(str(folder)), state)
    except Exception as error:  # pyarrow, json, csv, fsspec: each has its own classes
        raise DasdError(
            f"The folder {folder} (domain {domain.name}) cannot be read: {_first_line(error)}. If it has a "
            "metadata file, check that: a row an image, with its file_name."
        ) from error
    unlisted = count - sum(loaded.num_rows.values())
    if unlisted > 0:
        log.warning("%s: %d images have no row in the metadata and are not used", folder, unlisted)
    return loaded


@functools.lru_cache(maxsize=16)
def _read_folder(kind: str, folder: str, state: tuple) -> datasets.DatasetDict:
    """Load a folder once for all its splits, as it takes seconds; `state` changes with its files."""
    return datasets.load_dataset(kind, data_dir=folder)  # nosec B615  # a folder, not the hub


def _from_hub(domain: DomainConfig, folder: Path, split: str) -> datasets.Dataset:
    if folder.exists():
        raise DasdError(f"{folder} (domain {domain.name}) is a file; `data` wants a folder or a hub id.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", domain.data) or set(domain.data) <= set("./"):
        raise DasdError(
            f"There is no folder {folder} (domain {domain.name}), and {domain.data!r} is no hub id."
        )
    try:
        rows = datasets.load_dataset(domain.data, revision=domain.revision, split=split)
    except Exception as error:  # no network, no such set or split, gated: each has its own classes
        raise DasdError(
            f"The data of domain {domain.name} cannot be read: there is no folder {folder}, and the data set "
            f"{datasets.config.HF_ENDPOINT}/datasets/{domain.data} (revision {domain.revision or 'main'}, "
            f"split {split!r}) gave: {_first_line(error)}. Check the name and the network, or set `data` "
            "to a local folder."
        ) from error
    if not is_pinned(domain.revision):
        files = [Path(file["filename"]) for file in rows.cache_files]
        commit = next((file.parent.name for file in files if is_pinned(file.parent.name)), None)
        _warn_once(
            f"The data of domain {domain.name}, {domain.data}, is read at revision "
            f"{domain.revision or 'main'}, which may hold other files tomorrow. Pin it: set the domain's "
            f"`revision` to {commit or 'the commit hash that the page of the data set shows'}."
        )
    return rows


@functools.cache
def _warn_once(text: str) -> None:
    """Warn of what is found again for every split."""
    log.warning(text)


def _missing_column(domain: DomainConfig, folder: Path, name: str, columns: Sequence[str]) -> str:
    wanted = getattr(domain, name)
    text = (f"{domain.data} (domain {domain.name}) has no column {wanted!r}, its {name}. "
            f"Columns: {', '.join(columns)}.")  # fmt: skip
    if not folder.is_dir() or any(folder.rglob("*.parquet")):
        return text
    if not any(path.name in METADATA for path in folder.rglob("metadata.*")):
        return text + (f" There is no metadata.jsonl in {folder}: write one beside the images, one line an "
                       f'image, like {{"file_name": "1.png", "{wanted}": "..."}}.')  # fmt: skip
    if any((folder / file).exists() for file in METADATA):  # not read where images lie in split folders
        return text + " Where images lie in split folders, each of them needs its own metadata file."
    return text


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any PIL image upright in 8-bit RGB; transparency on white, 16-bit grey scaled by its range."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = _to_eight_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_eight_bit(image: Image.Image) -> Image.Image:
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float32))
    peak = 65535.0 if image.mode.startswith("I;16") else float(pixels.max())
    white = next((level for level in (1.0, 255.0, 65535.0) if peak <= level), peak)
    return Image.fromarray((pixels * (255 / white)).clip(0, 255).round().astype(np.uint8))


def to_pixels(images: Sequence[Image.Image | np.ndarray]) -> torch.Tensor:
    """Return RGB images of one size as float32 (n, 3, h, w) in [-1, 1], what VAE and reader take."""
    stacked = np.stack([np.asarray(image) for image in images])  # (n, h, w, 3) uint8
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def from_pixels(pixels: torch.Tensor) -> list[Image.Image]:
    """Return RGB images of pixels (n, 3, h, w), cut to [-1, 1]."""
    eight_bit = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in eight_bit.permute(0, 2, 3, 1).cpu().numpy()]


def center_crop(image: Image.Image, resolution: int) -> Image.Image:
    """Return the RGB centre square, resolution x resolution pixels, the shorter side scaled to it."""
    return ImageOps.fit(to_rgb(image), (resolution, resolution), Image.Resampling.LANCZOS)


def read_image(item: dict[str, Any]) -> Image.Image:
    """Decode what an undecoded `datasets.Image` column holds, {"bytes", "path"}, to RGB."""
    content = item["bytes"]
    with Image.open(io.BytesIO(content) if content is not None else item["path"]) as image:
        return to_rgb(image)


class LazyImages(Sequence):
    """Images 0 to count - 1, each made by `read(index)` whenever it is asked for."""

    def __init__(self, read: Callable[[int], Image.Image], count: int) -> None:
        self._read, self._places = read, range(count)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, slice):
            return [self._read(i) for i in self._places[index]]
        return self._read(self._places[index])


def cropped_images(rows: datasets.Dataset, column: str, resolution: int) -> LazyImages:
    """Return the images of a data set's rows, read and cropped when asked for."""
    stored = undecoded(rows, column)

    def read(index: int) -> Image.Image:
        item = stored[index][column]
        try:
            return center_crop(read_image(item), resolution)
        except OSError as error:  # it was whole when the rows were inspected
            raise DasdError(
                f"The image {item['path'] or index} can no longer be read: {error.strerror or error}. Put "
                "its folder back, then start again."
            ) from error

    return LazyImages(read, len(stored))


def undecoded(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the rows with nothing but the image column, as {"bytes", "path"}; DasdError if it holds none."""
    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        kind = rows.features[column]
        raise DasdError(f"The column {column!r} holds no images but {kind}.") from error


@dataclass(frozen=True)
class Inspection:
    """What is known of each row's pixels; an unreadable row has the id ""."""

    ids: list[str]  # content hash
    thumbnails: np.ndarray  # (n, 32, 32) uint8
    sizes: list[tuple[int, int]]  # (width, height), pixels
    broken: list[str]  # name and reason of every row that cannot be read


def content_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an RGB image's size and pixels: the same picture in another file has the same."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the image as (32, 32) uint8 grey."""
    return np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def inspect_rows(rows: datasets.Dataset, column: str) -> Inspection:
    """Read every image of the rows once; `datasets` keeps the result until a file changes."""
    facts = undecoded(rows, column).map(
        _inspect_row, fn_kwargs={"column": column, "version": VERSION}, remove_columns=[column],
        desc="reading images",
    )[:]  # fmt: skip
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
        reason = "no image format known here" if "identify" in str(error) else _first_line(error)
        return facts | {"error": reason}
    facts["id"], facts["thumbnail"] = content_hash(image), thumbnail(image).tobytes()
    facts["width"], facts["height"] = image.size
    return facts


# Generated images as one parquet file: image, prompt, seed. `datasets`, pandas and others read it.


SAMPLE_FEATURES = datasets.Features(
    {"image": datasets.Image(), "prompt": datasets.Value("string"), "seed": datasets.Value("int64")}
)


def save_samples(
    path: str | Path, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
) -> Path:
    """Write the images as PNG bytes with prompt and seed, whole or not at all; return the path."""
    path = Path(path)
    columns = {"image": list(images), "prompt": list(prompts), "seed": list(seeds)}
    with files.atomic_write(path, "The samples") as temporary:
        table = datasets.Dataset.from_dict(columns, features=SAMPLE_FEATURES).data.table
        pq.write_table(
            table.cast(SAMPLE_FEATURES.arrow_schema), temporary
        )  # `to_parquet` would draw a progress bar
    return path


def load_samples(path: str | Path) -> list[Image.Image]:
    """Return the images of a file that `save` wrote, RGB; DasdError if it cannot be read."""
    try:
        column = pq.read_table(path, columns=["image"]).column("image").to_pylist()
        return [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in column]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DasdError(
            f"The samples {path} cannot be read: {error}. Remove the file to make them again."
        ) from None
