"""Images of more than 8 bits a channel: their stored values, and the window that shows them in 8 bits."""

from __future__ import annotations

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
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANAR = 256, 257, 258, 262, 274, 277, 284
PREDICTOR, TILE_WIDTH, EXTRA_SAMPLES, SAMPLE_FORMAT = 317, 322, 338, 339


def stored_values(content: bytes) -> np.ndarray | None:
    """Return the values (h, w) or (h, w, bands) of a file that Pillow would cut to 8 bits, invert or refuse.

    None for all others. Values that mean white at 0 are negated.
    """
    if content[:8] == PNG and content[24] == 16 and content[25] != 0 and not content[28]:  # no grey, one pass
        return _png_values(content)
    if content[:4] not in (b"II*\0", b"MM\0*"):
        return None
    tags = _tiff_tags(content)
    bands, bits = tags.get(SAMPLES, 1), tags.get(BITS, (1,))
    inverted = tags.get(PHOTOMETRIC) == 0 and bits[0] > 8
    if (bands == 1 and not inverted) or (bands <= 4 and bits[0] <= 8):
        return None
    values = _tiff_values(content, tags) if bands > 1 else np.asarray(Image.open(io.BytesIO(content)))
    return -values.astype(np.float32) if inverted else values


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


def _tiff_tags(content: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
    stream = io.BytesIO(content)
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def _tiff_values(content: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2) -> np.ndarray:
    """Decode a TIFF of several bands as one of a single band, as wide or as high as all together."""
    bands, width, height = tags[SAMPLES], tags[WIDTH], tags[HEIGHT]
    planes = tags.get(PLANAR, 1) == 2
    changed = {PHOTOMETRIC: 1, SAMPLES: 1, PLANAR: 1, BITS: tags[BITS][0], PREDICTOR: 1}
    changed |= {SAMPLE_FORMAT: tags.get(SAMPLE_FORMAT, (1,))[0]}
    if planes:
        changed[HEIGHT] = height * bands
    else:
        changed |= {tag: tags[tag] * bands for tag in (WIDTH, TILE_WIDTH) if tag in tags}
    order = "<" if content[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", content, 4)[0]
    count = struct.unpack_from(f"{order}H", content, start)[0]
    entries = [content[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    kept = {struct.unpack_from(f"{order}H", entry)[0]: entry for entry in entries}
    kept |= {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in changed.items()}
    kept = {tag: entry for tag, entry in kept.items() if tag not in (EXTRA_SAMPLES, ORIENTATION)}
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept[tag] for tag in sorted(kept)) + bytes(4)
    padded = content + bytes(len(content) % 2)
    single = padded[:4] + struct.pack(f"{order}I", len(padded)) + padded[8:] + directory
    flat = np.asarray(Image.open(io.BytesIO(single)))
    values = flat.reshape((bands, height, width) if planes else (height, width, bands))
    values = np.moveaxis(values, 0, 2) if planes else values
    if tags.get(PREDICTOR, 1) == 2:  # differences to the pixel on the left, anew in each tile
        step = tags.get(TILE_WIDTH, width)
        parts = [values[:, x : x + step].cumsum(axis=1, dtype=values.dtype) for x in range(0, width, step)]
        values = np.concatenate(parts, axis=1)
    return values


def to_eight_bit(values: np.ndarray, window: Window | None = None) -> Image.Image:
    """Return values (h, w) or (h, w, bands) as L or RGB, of 16-bit files of 2 or 4 bands with their alpha.

    Without a window black is 0, or the least value below it, and white the nearest of WHITES. The image's
    `info` says what was read: "levels", the values that all but a thousandth of the pixels lie between, and
    "bands" where some were left out.
    """
    bands = values.shape[2] if values.ndim == 3 else 1
    alpha = values[..., -1] / 257 if bands in (2, 4) and values.dtype == np.uint16 else None
    values = np.nan_to_num(values.astype(np.float32))
    shown = values[..., : 3 if bands > 2 else 1] if values.ndim == 3 else values
    low, high = window or own_window(shown)
    eight = ((shown - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8)
    if alpha is not None:
        eight = np.dstack([eight, alpha.clip(0, 255).astype(np.uint8)])
    image = Image.fromarray(eight[..., 0] if eight.shape[2:] == (1,) else eight)
    image.info["levels"] = tuple(np.quantile(shown[:: max(len(shown) // 512, 1)], (0.001, 0.999)).tolist())
    if bands > 3 and alpha is None:
        image.info["bands"] = f"bands 1 to 3 of {bands} are read as red, green and blue"
    return image


def own_window(values: np.ndarray) -> Window:
    """Return the window of an image by itself."""
    low, high = min(float(values.min()), 0.0), float(values.max())
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
