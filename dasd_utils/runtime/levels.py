"""Images of more than 8 bits a channel: their stored values, and the window that shows them in 8 bits."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zlib

import numpy as np
from PIL import Image, TiffImagePlugin

Window = tuple[float, float]  # the stored values shown as black and as white
WHITES = (1.0, 255.0, 4095.0, 65535.0)  # of floats, of 8, 12 and 16 bits
PNG = b"\x89PNG\r\n\x1a\n"
# Tags of TIFF, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, PLANAR = 256, 257, 258, 262, 277, 284
COMPRESSION, FILL_ORDER, ROWS, PREDICTOR, TILE_WIDTH, TILE_HEIGHT = 259, 266, 278, 317, 322, 323
PLACES = (273, 279, 324, 325)  # of strips and of tiles, and their sizes
EXTRA_SAMPLES, SAMPLE_FORMAT, NODATA = 338, 339, 42113
BYTEWISE = (1, 5, 8, 32773, 32946, 34925, 50000)  # compressions that know no samples: none, LZW, deflate, ...
KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # sample formats
NOTHING = 1e37  # values beyond it, like the least float, stand for none


def stored_values(content: bytes) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Return the values (h, w) or (h, w, bands) of a file that Pillow would cut to 8 bits, invert or refuse.

    Beside them its alpha in 8 bits (h, w), None where no band is said to be one; None for all other files.
    Values that mean white at 0 are negated, those that mean none (GDAL's nodata) are nan.
    """
    if content[:8] == PNG and content[24] == 16 and content[25] != 0 and not content[28]:  # no grey, one pass
        values = _png_values(content)
        return _without_alpha(values, values.shape[2] in (2, 4))
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0"):
        return None
    tags = tiff_tags(content)
    bands, bits, photometric = tags.get(SAMPLES, 1), tags.get(BITS, (1,)), tags.get(PHOTOMETRIC)
    kind, extra = KINDS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "?"), tags.get(EXTRA_SAMPLES, ())
    has_alpha = extra[-1:] in ((1,), (2,))
    is_known = bits[0] == 8 and kind == "u"
    is_known &= bands == 1 or (photometric == 2 and bands == 3 + has_alpha) or (bands == 2 and has_alpha)
    if (
        is_known or {*bits} & {1, 2, 4} or photometric not in (0, 1, 2) or kind == "?"
        or not {*bits} <= {8, 16, 32, 64} or tags.get(COMPRESSION, 1) not in BYTEWISE
        or (bits[0] == 8 and bands == 4 and has_alpha)
    ):  # fmt: skip
        return None
    values = _tiff_values(content, tags, f"{kind}{bits[0] // 8}")
    nothing = str(tags.get(NODATA, "")).strip("\0 ")
    with contextlib.suppress(ValueError):
        values = np.where(values == float(nothing), np.nan, values) if nothing else values
    values, alpha = _without_alpha(values, has_alpha)
    return (-values.astype(np.float32) if photometric == 0 else values), alpha


def _without_alpha(values: np.ndarray, has_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if not has_alpha:
        return values, None
    most = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    alpha = np.nan_to_num(values[..., -1] * (255 / most)).clip(0, 255).astype(np.uint8)
    return values[..., :-1], alpha


def _png_values(content: bytes) -> np.ndarray:
    """Decode a 16-bit PNG as two 8-bit ones, of the high and of the low bytes: filters work byte by byte."""
    place, data = 8, b""
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        data += content[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += length + 12
    height = struct.unpack_from(">I", content, 20)[0]
    size = height * (1 + 2 * struct.unpack_from(">I", content, 16)[0] * {2: 3, 4: 2, 6: 4}[content[25]])
    rows = np.frombuffer(zlib.decompressobj().decompress(data, size), np.uint8).reshape(height, -1)
    halves = []
    for part in (1, 2):
        header = content[16:24] + bytes([8, content[25], 0, 0, 0])
        body = zlib.compress(np.concatenate([rows[:, :1], rows[:, part::2]], axis=1).tobytes(), 1)
        parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
        chunks = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts]
        halves.append(np.asarray(Image.open(io.BytesIO(PNG + b"".join(chunks))), np.uint16))
    return halves[0] * 256 + halves[1]


def tiff_tags(content: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Return the tags of the first image of a TIFF, of a BigTIFF too."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if content[2] == 43 else 8])
    stream = io.BytesIO(content)
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def _tiff_values(content: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, kind: str) -> np.ndarray:
    """Decode a TIFF plane by plane as grey images of its bytes, which Pillow only unpacks."""
    bands, width, height = tags.get(SAMPLES, 1), tags[WIDTH], tags[HEIGHT]
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError(f"{width} x {height} pixels are too many")
    kind = np.dtype(kind).newbyteorder("<" if content[:2] == b"II" else ">")
    planes = bands if tags.get(PLANAR, 1) == 2 else 1
    step = bands // planes * kind.itemsize  # bytes of a pixel
    padded = content + bytes(len(content) % 2)
    parts = []
    for plane in range(planes):
        new = {WIDTH: width * step, HEIGHT: height, BITS: 8, PHOTOMETRIC: 1, SAMPLES: 1}
        new |= {tag: tags[tag] for tag in (COMPRESSION, FILL_ORDER, ROWS, TILE_HEIGHT) if tag in tags}
        new |= {TILE_WIDTH: tags[TILE_WIDTH] * step} if TILE_WIDTH in tags else {}
        for tag in (tag for tag in PLACES if tag in tags):
            places = tags[tag] if isinstance(tags[tag], tuple) else (tags[tag],)
            count = len(places) // planes
            new[tag] = places[plane * count : (plane + 1) * count]
        lists, entries = b"", b""
        for tag, value in sorted(new.items()):
            numbers = value if isinstance(value, tuple) else (value,)
            entries += struct.pack("<HHI", tag, 4, len(numbers))
            entries += struct.pack("<I", numbers[0] if len(numbers) == 1 else len(padded) + len(lists))
            lists += struct.pack(f"<{len(numbers)}I", *numbers) if len(numbers) > 1 else b""
        head = b"II*\0" + struct.pack("<I", len(padded) + len(lists))
        single = head + padded[8:] + lists + struct.pack("<H", len(new)) + entries + bytes(4)
        rows = np.asarray(TiffImagePlugin.TiffImageFile(io.BytesIO(single)))
        tile = (tags.get(TILE_WIDTH) or width) * step
        tiles = [rows[:, x : x + tile] for x in range(0, width * step, tile)]
        values = [_unpredicted(each, kind, step // kind.itemsize, tags.get(PREDICTOR, 1)) for each in tiles]
        parts.append(np.concatenate(values, axis=1))
    values = np.concatenate(parts, axis=2)
    return values[..., 0] if bands == 1 else values


def _unpredicted(rows: np.ndarray, kind: np.dtype, bands: int, predictor: int) -> np.ndarray:
    """Return the values (h, w, bands) of rows of bytes, some of them differences to the pixel on the left."""
    if predictor == 3:  # bytes of all values by rank, the first of each first
        shape = (len(rows), -1, bands)
        rows = rows.reshape(shape).cumsum(axis=1, dtype=np.uint8).reshape(len(rows), kind.itemsize, -1)
        rows, kind = rows.swapaxes(1, 2).reshape(len(rows), -1), kind.newbyteorder(">")
    values = np.ascontiguousarray(rows).view(kind).reshape(len(rows), -1, bands)
    values = values.astype(kind.newbyteorder("="))
    return values.cumsum(axis=1, dtype=values.dtype) if predictor == 2 else values


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
