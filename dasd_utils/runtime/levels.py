"""Images of more than 8 bits a channel: their stored values, and the window that shows them in 8 bits."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import ExifTags, Image

Window = tuple[float, float]  # the stored values shown as black and as white
WHITES = (1.0, 255.0, 4095.0, 65535.0)  # of floats, of 8, 12 and 16 bits
PNG = b"\x89PNG\r\n\x1a\n"
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two of BigTIFF
COLOURS = {0: 1, 1: 1, 2: 3}  # bands by the photometric interpretation: white is zero, black is zero, RGB
NODATA = 42113  # a tag of GDAL
NOTHING = 1e37  # values beyond it, like the least float, stand for none
logging.getLogger("tifffile").setLevel(logging.ERROR)  # it warns of every nodata that no pixel can have


class Stored(NamedTuple):
    """What a file of more than 8 bits a channel holds."""

    values: np.ndarray  # (h, w) or (h, w, bands); nan where the file says none, negated where white is 0
    alpha: np.ndarray | None  # (h, w) uint8, None where no band is said to be one
    orientation: int = 1  # of EXIF
    has_more: bool = False  # frames after this one


def stored_values(content: bytes) -> Stored | None:
    """Return what a file holds that Pillow would cut to 8 bits, invert or refuse; None of all other files."""
    if content[:8] == PNG and content[24:26] in (b"\x10\2", b"\x10\4", b"\x10\6"):  # 16 bits of RGB, LA, RGBA
        with Image.open(io.BytesIO(content)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        values = imagecodecs.png_decode(content)
        return Stored(*_split_alpha(values, values.shape[2] in (2, 4)), orientation)
    if content[:4] not in TIFFS:
        return None
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        return _tiff_values(file) if file.pages else None


def _tiff_values(file: tifffile.TiffFile) -> Stored | None:
    """Read the first page; palettes, CMYK, YCbCr, bilevel and plain 8 bits are Pillow's."""
    page = file.pages.first
    has_alpha = page.extrasamples[-1:] in ((1,), (2,))
    colours = COLOURS.get(page.photometric)
    is_plain = page.bitspersample != 8 or page.samplesperpixel - has_alpha == colours
    has_numbers = page.dtype is not None and page.dtype.kind in "uif" and page.imagedepth == 1
    if not colours or not has_numbers or (page.dtype == np.uint8 and is_plain):
        return None
    if page.imagewidth * page.imagelength > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError(f"{page.imagewidth} x {page.imagelength} pixels are too many")
    values, alpha = page.asarray(), None
    if values.ndim == 3:
        values, alpha = _split_alpha(np.moveaxis(values, page.axes.index("S"), 2), has_alpha)
    with contextlib.suppress(ValueError):
        nothing = float(str(page.tags.valueof(NODATA)).strip("\0 "))
        values = np.where(values == nothing, np.nan, values)
    values = -values.astype(np.float32) if page.photometric == 0 else values
    orientation = page.tags.valueof(ExifTags.Base.Orientation, 1)
    return Stored(values, alpha, orientation, len(file.pages) > 1)


def _split_alpha(values: np.ndarray, has_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if not has_alpha:
        return values, None
    most = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    alpha = np.nan_to_num(values[..., -1] * (255 / most)).clip(0, 255).astype(np.uint8)
    return values[..., :-1], alpha


def to_eight_bit(
    values: np.ndarray, window: Window | None = None, alpha: np.ndarray | None = None
) -> Image.Image:
    """Return values (h, w) or (h, w, bands), and their alpha, as L, LA, RGB or RGBA; no value is black.

    Without a window black is 0, or the least value below it, and white the nearest of WHITES. The image's
    `info` says what was read: "levels", the values that all but a thousandth of the pixels lie between, and
    "bands" where some were left out.
    """
    bands = values.shape[2] if values.ndim == 3 else 1
    has_levels = values.dtype != np.uint8
    shown = values[..., : 3 if bands > 2 else 1].astype(np.float64)
    shown = shown if values.ndim == 3 else values.astype(np.float64)
    shown = np.where(np.abs(shown) < NOTHING, shown, np.nan)
    if np.isnan(shown).all():
        raise ValueError("no pixel has a value")
    low, high = (window or own_window(shown)) if has_levels else (0.0, 255.0)
    scaled = ((shown - low) * (255 / (high - low))).clip(0, 255).round()
    eight = np.nan_to_num(scaled).astype(np.uint8)
    eight = eight if alpha is None else np.dstack([eight, alpha])
    image = Image.fromarray(eight[..., 0] if eight.shape[2:] == (1,) else eight)
    some = shown[:: max(len(shown) // 512, 1)]
    if has_levels and not np.isnan(some).all():
        image.info["levels"] = tuple(np.nanquantile(some, (0.001, 0.999)).tolist())
    if bands > 3:
        image.info["bands"] = f"bands 1 to 3 of {bands} are read as red, green and blue"
    elif bands == 2:
        image.info["bands"] = "band 1 of 2 is read"
    return image


def own_window(values: np.ndarray) -> Window:
    """Return the window of an image by itself."""
    low, high = min(float(np.nanmin(values)), 0.0), float(np.nanmax(values))
    white = next((white for white in WHITES if high <= white), high) if low == 0 else high
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
