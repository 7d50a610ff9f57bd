"""Images of more than 8 bits: what is stored arrives, in one window for all images of a data set."""

from __future__ import annotations

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from synthetic import saved

from dasd_utils import data
from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import folders, images, levels

DRAW = np.random.default_rng(0)


def tiff(pixels: np.ndarray, compression: int = 1, predictor: int = 1, planes: bool = False) -> bytes:
    """Return uint16 pixels (h, w, bands) as a TIFF, which Pillow does not write."""
    height, width, bands = pixels.shape
    stored = pixels.astype("<u2")
    if predictor == 2:
        stored[:, 1:] = pixels[:, 1:] - pixels[:, :-1]
    body = (np.moveaxis(stored, 2, 0) if planes else stored).tobytes()
    body = zlib.compress(body) if compression == 8 else body
    body += bytes(len(body) % 2)
    pieces = bands if planes else 1
    at = 8 + len(body)
    starts = [8 + i * len(body) // pieces for i in range(pieces)]
    tags = {256: width, 257: height, 258: [16] * bands, 259: compression, 262: 2, 273: starts, 277: bands,
            278: height, 279: [len(body) // pieces] * pieces, 284: 1 + planes, 317: predictor}  # fmt: skip
    entries, more = b"", b""
    for tag, value in tags.items():
        values = value if isinstance(value, list) else [value]
        packed = struct.pack(f"<{len(values)}I", *values)
        place = packed if len(values) == 1 else struct.pack("<I", at + len(more))
        more += packed if len(values) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(values)) + place
    head = b"II*\0" + struct.pack("<I", at + len(more))
    return head + body + more + struct.pack("<H", len(tags)) + entries + bytes(4)


def png(pixels: np.ndarray) -> bytes:
    """Return uint16 pixels (h, w, 2, 3 or 4) as a PNG whose lines are filtered by "up"."""
    height, width, bands = pixels.shape
    lines = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    lines = lines - np.concatenate([np.zeros_like(lines[:1]), lines[:-1]])
    body = zlib.compress(np.concatenate([np.full((height, 1), 2, np.uint8), lines], axis=1).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", body[:99]), (b"IDAT", body[99:]), (b"IEND", b""))
    chunks = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts]
    return levels.PNG + b"".join(chunks)


@pytest.mark.parametrize("bands", [2, 3, 4, 5, 13])
@pytest.mark.parametrize(
    "options", [{}, {"compression": 8}, {"compression": 8, "predictor": 2}, {"planes": True}]
)
def test_tiffs_of_several_bands_are_read_to_the_bit(bands, options):
    pixels = DRAW.integers(0, 65536, (11, 7, bands), dtype=np.uint16)
    assert np.array_equal(levels.stored_values(tiff(pixels, **options)), pixels)


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_colour_pngs_of_16_bits_are_read_to_the_bit(bands):
    pixels = DRAW.integers(0, 65536, (11, 7, bands), dtype=np.uint16)
    assert np.array_equal(levels.stored_values(png(pixels)), pixels)


def test_files_that_pillow_reads_whole_are_left_to_it():
    for image, kind in ((Image.new("RGB", (3, 2)), "PNG"), (Image.new("L", (3, 2)), "TIFF")):
        assert levels.stored_values(saved(image, kind)["bytes"]) is None


def test_white_at_zero_is_white():
    grey = DRAW.integers(0, 4096, (8, 8), dtype=np.uint16)
    for depth, values in ((16, grey), (8, (grey // 16).astype(np.uint8))):
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "TIFF", tiffinfo={262: 0} if depth == 16 else {})
        found = np.asarray(images.read_image({"bytes": stream.getvalue(), "path": None}).convert("L"), float)
        assert np.corrcoef(found.ravel(), values.ravel())[0, 1] * (-1 if depth == 16 else 1) > 0.99


@pytest.mark.parametrize(
    ("lows_and_highs", "window"),
    [
        ([[0, 4080], [10, 4000]], (0, 4100)),
        ([[-1000, 1500], [-990, 1400]], (-1000, 1500)),
        ([[0, 3060]], (0, 3100)),
        ([[1210, 2390]], (1200, 2400)),
        ([[0.01, 0.97]], (0, 1)),
        ([[100, 60000]], (0, 65535)),
        ([[7.0, 7.0]], (0, 255)),
    ],
)
def test_a_window_is_proposed_in_two_digits(lows_and_highs, window):
    assert levels.propose_window(np.array(lows_and_highs, float)) == pytest.approx(window, abs=1e-6)


GREY = [
    np.asarray(Image.fromarray(DRAW.integers(0, 256, (5, 5), np.uint8)).resize((64, 64))) for _ in range(12)
]


@pytest.fixture
def load(tmp_path, caplog):
    """Return `load(make, **fields) -> (grey images, their originals times `scale`, warnings)` of a folder."""

    def build(make, **fields):
        for number, grey in enumerate(GREY):
            make(grey).save(tmp_path / f"{number}.tif")
        return read(**fields)

    def read(scale: float = 1.0, **fields):
        config = Config.setup("tiny", cache_dir=tmp_path / "cache")
        domain = config.domains[0].__class__("scans", str(tmp_path), caption="a scan", **fields)
        folders._warn_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            found = data.load_domain(domain, config)
        shown = np.stack([np.asarray(image.convert("L")) for image in found.images]).astype(int)
        small = scale * np.stack(GREY)
        near = [np.abs(small - image).mean(axis=(1, 2)).argmin() for image in shown]
        return shown, small[near], caplog.text

    build.read, build.folder = read, tmp_path
    return build


def as_16_bit(grey):
    return Image.fromarray(grey.astype(np.uint16) * 16)


def as_hounsfield(grey):
    return Image.fromarray(grey.astype(np.float32) / 255 * 2500 - 1000)


def as_signed(grey):
    return Image.fromarray(grey.astype(np.int32) * 10 - 1000)


@pytest.mark.parametrize("make", [as_16_bit, as_hounsfield, as_signed])
def test_grey_levels_of_a_data_set_share_a_window_that_is_said(load, own_datasets_cache, make):
    shown, originals, said = load(make)
    assert np.abs(shown - originals).mean() < 4 and "`window`" in said


def test_a_window_of_the_config_is_kept(load, own_datasets_cache):
    shown, originals, said = load(as_16_bit, scale=0.5, window=(0, 8160))
    assert np.abs(shown - originals).max() <= 1 and "window" not in said


def test_colours_of_16_bits_are_as_bright_as_others(load, own_datasets_cache):
    for number, grey in enumerate(GREY):
        (load.folder / f"{number}.tif").write_bytes(tiff(np.stack([grey.astype(np.uint16) * 12] * 3, axis=2)))
    shown, originals, _ = load.read()
    assert np.abs(shown - originals).mean() < 4


def test_bands_that_are_left_out_are_named(load, own_datasets_cache):
    shown, originals, said = load(lambda grey: Image.fromarray(np.dstack([grey] * 3 + [grey // 2 + 9])))
    assert np.array_equal(shown, originals) and "12 images of domain scans: the fourth band is no" in said
    for number, grey in enumerate(GREY):
        (load.folder / f"{number}.tif").write_bytes(tiff(np.stack([grey.astype(np.uint16)] * 5, axis=2)))
    assert "bands 1 to 3 of 5" in load.read()[2]


def test_a_fraction_of_the_range_is_said(load, own_datasets_cache):
    assert "use the levels 0 to" in load(lambda grey: Image.fromarray(grey // 8))[2]


def test_a_window_has_two_numbers_in_order():
    with pytest.raises(DasdError, match="window"):
        Config.setup("tiny").source.__class__("a", "b", window=(5, 5))
