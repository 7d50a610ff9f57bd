"""How any image becomes an RGB square with a fingerprint."""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import ExifTags, Image, ImageOps

from dasd_utils.config import DasdError
from dasd_utils.runtime import files, levels

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".tif",
            ".tiff", ".gif", ".jp2", ".j2k", ".tga", ".pbm", ".pgm", ".ppm", ".pnm"}  # fmt: skip
THUMBNAIL = 32  # pixels, square, grey: compared to find near duplicates
VERSION = 4  # of `_inspect_row`: a change of what it returns must not meet results cached before
SAMPLE_FEATURES = datasets.Features(
    {"image": datasets.Image(), "prompt": datasets.Value("string"), "seed": datasets.Value("int64")}
)
log = logging.getLogger(__name__)


# One image: read, to RGB, to pixels


def read_image(item: dict[str, Any], window: levels.Window | None = None) -> Image.Image:
    """Decode what an undecoded `datasets.Image` column holds, {"bytes", "path"}, to RGB; see `to_rgb`."""
    content = item["bytes"] if item["bytes"] is not None else Path(item["path"]).read_bytes()
    if not content:
        raise ValueError("the file is empty")
    stored = levels.stored_values(content)
    if stored is None:
        image = Image.open(io.BytesIO(content))
        has_more = image.format != "MPO" and getattr(image, "is_animated", False)  # a phone's has previews
    else:
        image, has_more = levels.to_eight_bit(stored.values, window, stored.alpha), stored.has_more
        image.getexif()[ExifTags.Base.Orientation] = stored.orientation
    image = to_rgb(image, window)
    if has_more:
        notes = (image.info.get("bands"), "the first of its frames is read")
        image.info["bands"] = "; ".join(filter(None, notes))
    return image


def open_file(path: Path) -> Image.Image:
    """Return an image file as RGB; DasdError if it cannot be read."""
    try:
        return read_image({"bytes": None, "path": path})
    except Exception as error:  # whatever a decoder raises on a broken file
        raise DasdError(f"{path} cannot be read as an image: {error}") from None


def find_image_files(places: Sequence[Path]) -> list[Path]:
    """Return these image files, and those of the folders among them by name; DasdError if there is none."""
    listed = [sorted(place.iterdir()) if place.is_dir() else [place] for place in places]
    found = [file for files in listed for file in files if file.suffix.lower() in SUFFIXES or file in places]
    if not found:
        raise DasdError(f"There is no image in {', '.join(map(str, places))}.")
    return found


def to_rgb(image: Image.Image, window: levels.Window | None = None) -> Image.Image:
    """Return any PIL image upright in 8-bit RGB, transparency on white.

    window: the values shown as black and white, of an image with more than 8 bits. Raises ValueError for an
    image that is transparent everywhere: its colours are not what a person sees.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = levels.to_eight_bit(np.asarray(image), window)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image)[..., 3]
        if not alpha.any():
            raise ValueError("every pixel is transparent")
        if alpha.min() < alpha.max() and ((alpha > 0) & (alpha < 255)).mean() > 0.5:
            image.info["bands"] = "the fourth band is no transparency; bands 1 to 3 are read"
        else:
            ground = Image.new("RGBA", image.size, "white")
            ground.info = {key: image.info[key] for key in ("levels", "bands") if key in image.info}
            image = Image.alpha_composite(ground, image)
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


# The rows of a data set


def undecoded(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the rows with nothing but the image column, as {"bytes", "path"}; DasdError if it holds none."""
    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DasdError(f"The column {column!r} holds no images but {rows.features[column]}.") from error


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


def cropped_images(
    rows: datasets.Dataset, column: str, resolution: int, window: levels.Window | None
) -> LazyImages:
    """Return the images of a data set's rows, read and cropped at each access."""
    stored = undecoded(rows, column)

    def read(index: int) -> Image.Image:
        item = stored[index][column]
        try:
            return center_crop(read_image(item, window), resolution)
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
    names: list[str]  # of the image's file, "" where a table has none
    thumbnails: np.ndarray  # (n, 32, 32) uint8
    sizes: list[tuple[int, int]]  # (width, height), pixels
    broken: list[str]  # name and reason of every row that cannot be read
    levels: np.ndarray  # (n, 2) of the stored values of images with more than 8 bits, nan of others
    notes: list[str]  # which bands were read, "" where all were

    def readable(self) -> list[int]:
        """Return the numbers of the rows whose image can be read."""
        return [row for row, name in enumerate(self.ids) if name]


def content_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an RGB image's size and pixels: the same picture in another file has the same."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the image as (32, 32) uint8 grey."""
    return np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def check_cache() -> None:
    """Raise DasdError where `datasets` cannot write what it keeps of the data that it reads."""
    place, advice = Path(datasets.config.HF_DATASETS_CACHE), "Set HF_HOME to a folder that can be written."
    files.check_writable(place, "The cache of data sets", advice)


def inspect_rows(rows: datasets.Dataset, column: str, window: levels.Window | None = None) -> Inspection:
    """Read every image of the rows once; `datasets` keeps the result until a file changes."""
    settings = {"column": column, "window": window, "version": VERSION}
    options = {"fn_kwargs": settings, "remove_columns": [column], "desc": "reading images"}
    stored, cache = undecoded(rows, column), Path(datasets.config.HF_DATASETS_CACHE)
    if not stored.cache_files:  # rows of a list of files: `datasets` has no place for what it finds in them
        paths = [Path(item["path"]) for item in stored[column] if item and item["path"]]
        state = [VERSION, window, stored._fingerprint, *(p.stat().st_mtime_ns for p in paths if p.is_file())]
        options["cache_file_name"] = str(cache / "inspected" / f"{files.short_hash(state, 32)}.arrow")
    try:
        (cache / "inspected").mkdir(parents=True, exist_ok=True)
        facts = stored.map(_inspect_row, **options)[:]
    except OSError as error:  # not of an image: those are facts of their rows
        raise DasdError(f"The cache of data sets {cache} cannot be written: {error.strerror or error}. Make "
                        "room, or set HF_HOME to a folder that can be written.") from error  # fmt: skip
    reasons = enumerate(zip(facts["path"], facts["error"], strict=True))
    broken = [f"{name or 'embedded image'} (row {i}): {why}" for i, (name, why) in reasons if why]
    small = np.frombuffer(b"".join(facts["thumbnail"]), dtype=np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)
    sizes = list(zip(facts["width"], facts["height"], strict=True))
    stored = np.array([facts["low"], facts["high"]], dtype=float).T
    return Inspection(facts["id"], facts["path"], small, sizes, broken, stored, facts["bands"])


def _inspect_row(
    row: dict[str, Any], column: str, window: levels.Window | None, version: int
) -> dict[str, Any]:
    facts = {"id": "", "thumbnail": bytes(THUMBNAIL**2), "width": 0, "height": 0, "path": "", "error": ""}
    facts |= {"low": math.nan, "high": math.nan, "bands": ""}
    if row[column] is None:
        return facts | {"error": "no image"}
    facts["path"] = row[column]["path"] or ""
    try:
        image = read_image(row[column], window)
    except Exception as error:  # whatever a decoder raises on a broken file
        unknown = "identify" in str(error)
        return facts | {"error": "no image format known here" if unknown else files.first_line(error)}
    width, height = image.size
    low, high = image.info.get("levels", (math.nan, math.nan))
    facts |= {"low": low, "high": high, "bands": image.info.get("bands", "")}
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
