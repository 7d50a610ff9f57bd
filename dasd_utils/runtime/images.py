"""How any image becomes an RGB square with a fingerprint; a window shows more than 8 bits a channel."""

import contextlib
import hashlib
import io
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import tifffile
import torch
from PIL import ExifTags, Image, ImageOps

from dasd_utils.config import DasdError
from dasd_utils.runtime import files

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".tif",
            ".tiff", ".gif", ".jp2", ".j2k", ".tga", ".pbm", ".pgm", ".ppm", ".pnm"}  # fmt: skip
THUMBNAIL = 32  # pixels, square, grey: compared to find near duplicates
ID = "S64"  # a SHA-256 in hexadecimal digits
VERSION = 6  # of `_inspect_row`: a change of what it returns must not meet results cached before
JPEG2000 = b"\xff\x4f\xff\x51"  # the start of its code, at the start of the file or within
PPM = re.compile(rb"P6" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s")  # width, height, the value of white
Window = tuple[float, float]  # the stored values shown as black and as white
logging.getLogger("tifffile").setLevel(logging.ERROR)  # it warns of every nodata that no pixel can have


def read_image(item: dict[str, Any], window: Window | None = None) -> Image.Image:
    """Decode what an undecoded `datasets.Image` column holds, {"bytes", "path"}, to RGB; see `to_rgb`."""
    content = item["bytes"] if item["bytes"] is not None else Path(item["path"]).read_bytes()
    stored = stored_values(content)
    if stored is None:
        image = Image.open(io.BytesIO(content))
        has_more = image.format != "MPO" and getattr(image, "is_animated", False)  # a phone's has previews
    else:
        image, has_more = to_eight_bit(stored.values, window, stored.alpha, stored.inverted), stored.has_more
        image.getexif()[ExifTags.Base.Orientation] = stored.orientation
    image = to_rgb(image, window)
    if has_more:
        bands = [image.info["bands"]] if "bands" in image.info else []
        image.info["bands"] = "; ".join([*bands, "the first of its frames is read"])
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


def to_rgb(image: Image.Image, window: Window | None = None) -> Image.Image:
    """Return any PIL image upright in 8-bit RGB, on white; ValueError where all of it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = to_eight_bit(np.asarray(image), window)
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


class Stored(NamedTuple):
    """What a file of more than 8 bits a channel holds."""

    values: np.ndarray  # (h, w) or (h, w, bands); no data are nan, 0 of uint8
    alpha: np.ndarray | None  # (h, w) uint8, None where no band is said to be one
    orientation: int = 1  # of EXIF
    has_more: bool = False  # frames after this one
    inverted: bool = False  # the least value is white


def stored_values(content: bytes) -> Stored | None:
    """Return what a file holds that Pillow would cut to 8 bits, invert or refuse; None of all other files."""
    is_png, is_jpeg2000 = content[:4] == b"\x89PNG", b"jP  " in content[4:8] or content[:4] == JPEG2000
    bits = content[content.find(JPEG2000) + 42 :][:1] if is_jpeg2000 else b"\0"  # of the first band, less one
    is_deep = content[24:26] in (b"\x10\2", b"\x10\4", b"\x10\6")  # 16 bits of RGB, LA, RGBA in a PNG
    if (is_png and is_deep) or bits[0] & 127 > 7:
        with Image.open(io.BytesIO(content)) as image:  # raises for too many pixels
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        values = imagecodecs.png_decode(content) if is_png else imagecodecs.jpeg2k_decode(content)
        return Stored(*_split_alpha(values, is_png and values.shape[2] in (2, 4)), orientation)
    if (head := PPM.match(content)) and int(head[3]) > 255:
        shape = int(head[2]), int(head[1]), 3
        return Stored(np.frombuffer(content, ">u2", math.prod(shape), head.end()).reshape(shape), None)
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # the last two of BigTIFF
        return None
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        return _tiff_values(file) if file.pages else None


def _tiff_values(file: tifffile.TiffFile) -> Stored | None:
    """Read the first page; palettes, CMYK, YCbCr, bilevel and plain 8 bits are Pillow's."""
    page = file.pages.first
    has_alpha = page.extrasamples[-1:] in ((1,), (2,))
    colours = {0: 1, 1: 1, 2: 3}.get(page.photometric)  # bands where white is zero, black is zero, of RGB
    is_plain = page.bitspersample != 8 or page.samplesperpixel - has_alpha == colours
    has_numbers = page.dtype is not None and page.dtype.kind in "uif" and page.imagedepth == 1
    if not colours or not has_numbers or (page.dtype == np.uint8 and is_plain):
        return None
    if page.imagewidth * page.imagelength > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError(f"{page.imagewidth} x {page.imagelength} pixels are too many")
    values, alpha = page.asarray(), None
    if values.ndim == 3:
        values, alpha = _split_alpha(np.moveaxis(values, page.axes.index("S"), 2), has_alpha)
    is_byte, inverted = values.dtype == np.uint8, not page.photometric
    shown = 255 - values if is_byte and inverted else values
    with contextlib.suppress(ValueError):
        nothing = float(str(page.tags.valueof(42113)).strip("\0 "))  # GDAL's tag of the value for no data
        shown = np.where(values == nothing, np.uint8(0) if is_byte else np.nan, shown)
    orientation = page.tags.valueof(ExifTags.Base.Orientation, 1)
    return Stored(shown, alpha, orientation, len(file.pages) > 1, inverted and not is_byte)


def _split_alpha(values: np.ndarray, has_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if not has_alpha:
        return values, None
    most = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    alpha = np.nan_to_num(values[..., -1] * (255 / most)).clip(0, 255).astype(np.uint8)
    return values[..., :-1], alpha


def to_eight_bit(
    values: np.ndarray, window: Window | None = None, alpha: np.ndarray | None = None, inverted: bool = False
) -> Image.Image:
    """Return values (h, w) or (h, w, bands), and their alpha, as L, LA, RGB or RGBA; nan is black.

    inverted: the window's first value is white. `info` has "levels", with a thousandth of the pixels beyond
    each, and "bands" if some are lost.
    """
    values = np.atleast_3d(values)
    bands = values.shape[2]
    has_levels = values.dtype != np.uint8
    shown = values[..., : 3 if bands > 2 else 1].astype(np.float64)
    shown = np.where(np.abs(shown) < 1e37, shown, np.nan)  # values beyond, like the least float, are no data
    if np.isnan(shown).all():
        raise ValueError("no pixel has a value")
    low, high = (window or own_window(shown)) if has_levels else (0.0, 255.0)
    eight = ((shown - low) * (255 / (high - low))).clip(0, 255).round()
    eight = np.nan_to_num(255 - eight if inverted else eight).astype(np.uint8)
    eight = eight if alpha is None else np.dstack([eight, alpha])
    image = Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight)
    some = shown[:: max(len(shown) // 512, 1)]
    if has_levels and not np.isnan(some).all():
        image.info["levels"] = tuple(np.nanquantile(some, (0.001, 0.999)).tolist())
    if bands > 3:
        image.info["bands"] = f"bands 1 to 3 of {bands} are read as red, green and blue"
    elif bands == 2:
        image.info["bands"] = "band 1 of 2 is read"
    return image


def own_window(values: np.ndarray) -> Window:
    """Return the window of one image: from 0 to a usual white, or from its least to its largest value."""
    low, high = min(float(np.nanmin(values)), 0.0), float(np.nanmax(values))
    whites = (1.0, 255.0, 4095.0, 65535.0)  # of floats, of 8, 12 and 16 bits
    white = next((white for white in whites if high <= white), high) if low == 0 else high
    return low, max(white, low + 1e-6)


def propose_window(levels: np.ndarray) -> Window:
    """Return one window for images with levels (n, 2) or nan: two digits, or all of a range half used."""
    low, high = float(np.nanpercentile(levels[:, 0], 1)), float(np.nanpercentile(levels[:, 1], 99))
    if low == high:
        return own_window(np.array([low]))
    if 0 <= low < high / 5:
        low = 0.0
    white = next((white for white in (1.0, 255.0, 65535.0) if white / 2 < high <= white), None)
    if low == 0 and white:
        return low, white
    step = 10.0 ** math.floor(math.log10(high - low) - 1)
    return round(math.floor(low / step) * step, 9), round(math.ceil(high / step - 1e-6) * step, 9)


def undecoded(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the rows with nothing but the image column, as {"bytes", "path"}; DasdError if it holds none."""
    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DasdError(f"The column {column!r} holds no images but {rows.features[column]}.") from error


def cropped_images(rows: datasets.Dataset, column: str, resolution: int, window: Window | None) -> files.Lazy:
    """Return the images of a data set's rows, read and cropped at each access."""
    stored = undecoded(rows, column)

    def read(index: int) -> Image.Image:
        item = stored[index][column]
        try:
            return center_crop(read_image(item, window), resolution)
        except OSError as error:  # it could be read when the rows were inspected
            raise DasdError(f"The image {item['path'] or index} can no longer be read: {error}.") from error

    return files.Lazy(read, len(stored))


@dataclass(frozen=True)
class Inspection:
    """What is known of each row's pixels; an unreadable row has the id b""."""

    ids: np.ndarray  # (n,) content hashes, ASCII
    names: Sequence[str]  # of the image's file, "" where a table has none
    thumbnails: files.DiskArray  # (n, 32, 32) uint8
    sizes: np.ndarray  # (n, 2) width and height, pixels
    broken: list[str]  # name and reason of every row that cannot be read
    levels: np.ndarray  # (n, 2) of the stored values of images with more than 8 bits, nan of others
    notes: Sequence[str]  # which bands were read, "" where all were

    def readable(self) -> np.ndarray:
        """Return the numbers of the rows whose image can be read."""
        return np.flatnonzero(self.ids != b"")


def content_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an RGB image's size and pixels: the same picture in another file has the same."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the image as (32, 32) uint8 grey."""
    return np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def check_cache() -> Path:
    """Return where `datasets` keeps what it makes of the data that it reads; DasdError if it cannot."""
    advice = "Set HF_HOME to a folder that can be written."
    return files.check_writable(Path(datasets.config.HF_DATASETS_CACHE), "The cache of data sets", advice)


def inspect_rows(rows: datasets.Dataset, column: str, window: Window | None = None) -> Inspection:
    """Read every image of the rows once; `datasets` keeps the result until a file changes."""
    settings = {"column": column, "window": window, "version": VERSION}
    options = {"fn_kwargs": settings, "remove_columns": [column], "desc": "reading images"}
    stored = undecoded(rows, column)
    paths = []  # of images that are files: these change under the same rows
    for content, names in (items.flatten() for items in stored.data[column].chunks):
        paths += map(Path, names.filter(content.is_null()).drop_null().to_pylist())
    if paths or not stored.cache_files:  # `datasets` has no place for what it finds in rows in memory
        state = [VERSION, window, stored._fingerprint, *(p.stat().st_mtime_ns for p in paths if p.is_file())]
        options["cache_file_name"] = str(check_cache() / f"inspected-{files.short_hash(state, 32)}.arrow")
    facts = stored.map(_inspect_row, **options)
    small = files.DiskArray((THUMBNAIL, THUMBNAIL), facts["thumbnail"])
    rest = facts.remove_columns("thumbnail")
    ids, broken = np.zeros(len(rest), ID), []
    sizes, levels = np.zeros((len(rest), 2), int), np.zeros((len(rest), 2))
    for row, fact in enumerate(rest):
        ids[row], sizes[row], levels[row] = fact["id"], fact["size"], fact["levels"]
        if fact["error"]:
            broken.append(f"{fact['path'] or 'embedded image'} (row {row}): {fact['error']}")
    return Inspection(ids, facts["path"], small, sizes, broken, levels, facts["bands"])


def _inspect_row(row: dict[str, Any], column: str, window: Window | None, version: int) -> dict[str, Any]:
    item = row[column]
    facts = {"id": "", "thumbnail": bytes(THUMBNAIL**2), "size": (0, 0), "path": "", "error": "no image"}
    facts |= {"levels": (math.nan, math.nan), "bands": ""}
    if item is None:
        return facts
    facts["path"] = item["path"] or ""
    try:
        image = read_image(item, window)
    except Exception as error:  # whatever a decoder raises on a broken file
        is_unknown = "identify" in str(error)
        return facts | {"error": "no image format known here" if is_unknown else files.first_line(error)}
    facts |= {key: image.info[key] for key in ("levels", "bands") if key in image.info}
    small = thumbnail(image).tobytes()
    return facts | {"id": content_hash(image), "thumbnail": small, "size": image.size, "error": ""}


def save_samples(
    path: str | Path, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
) -> Path:
    """Write images as PNG bytes with prompt and seed to one parquet file, all or nothing; return its path."""
    rows = datasets.Dataset.from_dict({"image": list(images), "prompt": list(prompts), "seed": list(seeds)})
    table = rows.data.table.cast(rows.features.arrow_schema)
    with files.atomic_write(Path(path), "The samples") as temporary:
        pq.write_table(table, temporary)  # `to_parquet` would draw a progress bar
    return Path(path)


def load_samples(path: str | Path) -> list[Image.Image]:
    """Return the images of a file that `save_samples` wrote, RGB; DasdError if it cannot be read."""
    try:
        return [read_image(row) for row in pq.read_table(path, columns=["image"])["image"].to_pylist()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DasdError(f"The samples {path} cannot be read: {error}. Remove the file.") from None
