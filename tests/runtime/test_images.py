"""Any picture becomes an RGB square, also of more than 8 bits, and samples come back as they were."""

import io
import itertools
import logging

import datasets
import imagecodecs
import numpy as np
import pandas
import pytest
import tifffile
import torch
from PIL import Image
from synthetic import plain, saved

from dasd_utils import data, sampling
from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import folders, images

DRAW = np.random.default_rng(0)
GREY = [
    np.asarray(Image.fromarray(DRAW.integers(0, 256, (5, 5), np.uint8)).resize((64, 64))) for _ in range(12)
]


def palette_with_a_hole() -> Image.Image:
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(("image", "kind", "expected"), [
    (plain("L", 90), "PNG", (90, 90, 90)),
    (plain("1", 1), "PNG", (255, 255, 255)),
    (plain("P", 0).convert("RGB").quantize(2), "PNG", (0, 0, 0)),
    (plain("RGBA", (200, 0, 0, 51)), "PNG", (244, 204, 204)),
    (plain("CMYK", (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
    (Image.fromarray(np.full((4, 6), 32896, np.uint16)), "PNG", (128, 128, 128)),
    (Image.fromarray(np.full((4, 6), 65535, np.int32)), "TIFF", (255, 255, 255)),
    (Image.fromarray(np.full((4, 6), 0.5, np.float32)), "TIFF", (128, 128, 128)),
], ids=["L", "1", "P", "transparent", "CMYK", "16-bit", "32-bit", "float"])  # fmt: skip
def test_every_mode_becomes_rgb(image, kind, expected):
    read = images.read_image(saved(image, kind))
    assert read.mode == "RGB"
    assert read.getpixel((2, 2)) == expected


@pytest.mark.parametrize("image", [palette_with_a_hole(), plain("RGBA", (200, 0, 0, 0)), plain("LA", (0, 0))])
def test_an_image_that_nobody_sees_is_no_white_one(image):
    with pytest.raises(ValueError, match="every pixel is transparent"):
        images.read_image(saved(image, "PNG"))


def test_pixels_run_from_minus_one_to_one_and_back():
    picture = Image.new("RGB", (3, 2), (255, 0, 51))
    pixels = images.to_pixels([picture, np.asarray(picture)])
    assert pixels.shape == (2, 3, 2, 3) and pixels.dtype == torch.float32
    assert pixels[:, :, 0, 0].tolist() == [pytest.approx([1.0, -1.0, -0.6])] * 2
    colours = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    found = sampling.from_pixels(images.to_pixels(list(map(Image.fromarray, colours))))
    assert all(np.array_equal(np.asarray(image), one) for image, one in zip(found, colours, strict=True))
    beyond = sampling.from_pixels(torch.full((1, 3, 2, 2), 7.0))
    assert np.asarray(beyond[0]).min() == 255


def test_a_camera_s_rotation_is_applied():
    lying = Image.new("RGB", (6, 4), "black")
    lying.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the first pixel comes to the top right
    upright = images.read_image(saved(lying, "PNG", exif=exif))
    assert upright.size == (4, 6)
    assert upright.getpixel((3, 0)) == (255, 255, 255)


def test_center_crop_keeps_the_middle_and_scales_the_shorter_side():
    wide = Image.new("L", (90, 30), 0)
    wide.paste(200, (30, 0, 60, 30))
    square = images.center_crop(wide, 16)
    assert (square.mode, square.size) == ("RGB", (16, 16))
    assert np.asarray(square).min() > 150
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = image.resize((30, 20), Image.Resampling.LANCZOS).crop((5, 0, 25, 20))
    difference = np.asarray(images.center_crop(image, 20), int) - np.asarray(expected, int)
    assert np.abs(difference[:, 3:-3]).max() <= 1  # near the cut the filter sees one side only


# more than 8 bits


def tiff(pixels: np.ndarray, photometric: str = "rgb", extra: str = "unspecified", planes: bool = False,
         order: str = "<", **options) -> bytes:  # fmt: skip
    """Return pixels (h, w, bands) of any type as a TIFF, which Pillow does not write."""
    stream, bands = io.BytesIO(), pixels.shape[2]
    if bands > 1:
        options["planarconfig"] = "separate" if planes else "contig"
        options["extrasamples"] = [extra] * (bands - {"rgb": 3, "minisblack": 1}[photometric]) or None
    pixels = pixels[..., 0] if bands == 1 else np.moveaxis(pixels, 2, 0) if planes else pixels
    tifffile.imwrite(stream, pixels, photometric=photometric, byteorder=order, metadata=None, **options)
    return stream.getvalue()


def read(content: bytes, window: images.Window | None = None) -> Image.Image:
    return images.read_image({"bytes": content, "path": None}, window)


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_colour_pngs_of_16_bits_are_read_to_the_bit(bands):
    pixels = DRAW.integers(0, 65536, (11, 7, bands), dtype=np.uint16)
    found, alpha, *_ = images.stored_values(imagecodecs.png_encode(pixels))
    assert np.array_equal(found, pixels if bands == 3 else pixels[..., :-1])
    assert alpha is None if bands == 3 else np.abs(alpha - pixels[..., -1] / 257).max() < 1


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bands", [1, 2, 3, 5, 13])
def test_every_sample_format_is_read_to_the_bit(kind, order, bands):
    pixels = (DRAW.random((11, 7, bands)) * 250 - 125 * (kind[0] != "u")).astype(kind)
    predictor = {"f2": 1, "f4": 3, "f8": 3}.get(kind, 2)
    for options in (
        {}, {"bigtiff": True, "rowsperstrip": 4}, {"rowsperstrip": 4, "planes": True},
        {"compression": "zlib", "rowsperstrip": 4, "planes": True}, {"compression": "lzw", "tile": (16, 16)},
        {"compression": "zlib", "rowsperstrip": 5, "predictor": predictor},
    ):  # fmt: skip
        content = tiff(pixels, "rgb" if bands > 2 else "minisblack", order=order, **options)
        stored = images.stored_values(content)
        if kind == "u1" and bands in (1, 3):  # Pillow reads it whole
            assert stored is None
            continue
        found = stored[0][..., None] if bands == 1 else stored[0]
        assert stored[1] is None  # no band is alpha unless the file says so
        assert found.dtype == pixels.dtype and np.array_equal(found, pixels)


def test_a_further_band_is_alpha_where_the_file_says_so():
    pixels = np.full((8, 8, 4), 300, np.uint16)
    pixels[:4, :, 3] = 65535
    pixels[4:, :, 3] = 0
    for extra, below in (("unassalpha", 255), ("unspecified", 38)):
        image = read(tiff(pixels, extra=extra), (0, 2000))
        assert np.asarray(image)[0, 0, 0] == 38 and np.asarray(image)[7, 0, 0] == below
    assert image.info["bands"] == "bands 1 to 3 of 4 are read as red, green and blue"
    image = read(tiff(pixels[..., :2], "minisblack"))
    assert image.info["bands"] == "band 1 of 2 is read"
    pixels = np.full((8, 8, 5), 300, np.uint16)
    pixels[..., 4] = 65535
    pixels[:4, :, 4] = 0
    image = read(tiff(pixels, extra="unassalpha"))
    assert image.info["levels"] == (300, 300) and image.info["bands"].startswith("bands 1 to 3 of 4")


def test_frames_that_are_left_out_and_rotation_are_found():
    turned = (274, 3, 1, 6, True)  # the first pixel comes to the top right
    pixels = np.zeros((4, 6, 3), np.uint16)
    pixels[0, 0] = 65535
    assert read(tiff(pixels, extratags=[turned])).getpixel((3, 0)) == (255, 255, 255)
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        for _ in range(2):
            file.write(pixels, photometric="rgb", metadata=None)
    image = read(stream.getvalue())
    assert image.size == (6, 4) and image.info["bands"] == "the first of its frames is read"
    for kind, deep in (("GIF", 0), ("TIFF", 0), ("TIFF", 1), ("WEBP", 0)):
        frames = [Image.fromarray(grey.astype(np.uint16) if deep else grey) for grey in GREY[:3]]
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
        assert read(stream.getvalue()).info["bands"] == "the first of its frames is read"


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -np.inf, np.finfo(np.float32).min])
def test_no_value_moves_no_window(nothing):
    pixels = DRAW.uniform(250, 310, (64, 64, 1)).astype(np.float32)
    pixels[:20] = nothing
    image = read(tiff(pixels, "minisblack"), (250, 310))
    low, high = images.to_eight_bit(pixels[..., 0]).info["levels"]
    assert 249 < low < high < 311 and not np.asarray(image)[:20].any() and np.asarray(image)[20:].mean() > 120


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_no_value_of_8_bits_is_black_and_stretches_nothing(photometric):
    pixels = DRAW.integers(100, 120, (8, 8, 2), dtype=np.uint8)
    pixels[:2] = 255
    nothing = [(42113, "s", 0, "255", True)]
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, photometric=photometric, planarconfig="contig", extratags=nothing)
    image = read(stream.getvalue())
    expected = 255 - pixels[..., 0] if photometric == "miniswhite" else pixels[..., 0]
    expected[:2] = 0
    assert np.array_equal(np.asarray(image)[..., 0], expected) and "levels" not in image.info


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "PNG"), ("L", "TIFF")])
def test_a_file_that_pillow_reads_whole_is_left_to_it(mode, kind):
    assert images.stored_values(saved(plain(mode, 0), kind)["bytes"]) is None


def test_white_at_zero_is_white():
    grey = DRAW.integers(0, 4096, (8, 8), dtype=np.uint16)
    stored = saved(Image.fromarray(grey), "TIFF", tiffinfo={262: 0})
    found = np.asarray(images.read_image(stored).convert("L"), float)
    assert np.corrcoef(found.ravel(), grey.ravel())[0, 1] < -0.99


@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("kind", ["jp2", "j2k"])
def test_jpeg_2000_of_more_than_8_bits_is_shown_in_its_window(bands, kind):
    values = DRAW.integers(500, 3500, (16, 16, bands), dtype=np.uint16).squeeze()
    content = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat=kind)
    shown = np.asarray(read(content, (0, 4000)))
    near = np.atleast_3d(values)[..., :3] * (255 / 4000)
    assert shown.shape == (16, 16, 3) and np.abs(shown - near).max() < 1
    plain_bands = imagecodecs.jpeg2k_encode((values >> 4).astype(np.uint8), level=0, codecformat=kind)
    assert images.stored_values(plain_bands) is None


def test_a_ppm_of_16_bits_is_shown_in_its_window():
    values = DRAW.integers(500, 3500, (6, 8, 3), dtype=np.uint16)
    content = b"P6 # a comment 1 2 3\n8 6\n65535\n" + values.astype(">u2").tobytes()
    shown = np.asarray(read(content, (0, 4000)))
    assert np.abs(shown - values * (255 / 4000)).max() < 1
    assert images.stored_values(b"P6 2 1 255\n" + bytes(6)) is None


def test_a_window_is_of_stored_values_where_white_is_zero_too():
    grey = DRAW.integers(0, 4081, (8, 8), dtype=np.uint16)
    contents = [tiff(grey[..., None], kind) for kind in ("minisblack", "miniswhite")]
    dark, light = (np.asarray(read(content, (0, 4080))).astype(int) for content in contents)
    assert np.abs(dark + light - 255).max() == 0 and dark.std() > 50
    stored = [images.stored_values(content) for content in contents]
    made = [images.to_eight_bit(each.values, None, each.alpha, each.inverted) for each in stored]
    assert made[0].info["levels"] == made[1].info["levels"]  # so that one window suits both


@pytest.mark.parametrize(("lows_and_highs", "window"), [
    ([[0, 4080], [10, 4000]], (0, 4100)),
    ([[-1000, 1500], [-990, 1400]], (-1000, 1500)),
    ([[1210, 2390]], (1200, 2400)),
    ([[0.01, 0.97]], (0, 1)),
    ([[100, 60000]], (0, 65535)),
    ([[0, 20000]], (0, 20000)),
    ([[7.0, 7.0]], (0, 255)),
])  # fmt: skip
def test_a_window_is_proposed_in_two_digits(lows_and_highs, window):
    assert images.propose_window(np.array(lows_and_highs, float)) == pytest.approx(window, abs=1e-6)


@pytest.fixture
def load(tmp_path, caplog, own_datasets_cache):
    """Return `load(make, **fields) -> (grey images, their originals times `scale`, warnings)` of a folder."""

    def build(make, scale: float = 1.0, **fields):
        for number, grey in enumerate(GREY):
            made = make(grey)
            content = made if isinstance(made, bytes) else saved(made, "TIFF")["bytes"]
            (tmp_path / f"{number}.tif").write_bytes(content)
        config = Config.setup("tiny", cache_dir=tmp_path / "cache")
        domain = config.domains[0].__class__("scans", str(tmp_path), caption="a scan", **fields)
        folders._warn_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            found = data.load_domain(domain, config)
        shown = np.stack([np.asarray(image.convert("L")) for image in found.images]).astype(int)
        small = scale * np.stack(GREY)
        near = [np.abs(small - image).mean(axis=(1, 2)).argmin() for image in shown]
        return shown, small[near], caplog.text

    return build


def as_16_bit(grey):
    return Image.fromarray(grey.astype(np.uint16) * 16)


def as_hounsfield(grey):
    return Image.fromarray(grey.astype(np.float32) / 255 * 2500 - 1000)


@pytest.mark.parametrize(
    "make", [as_16_bit, as_hounsfield, lambda g: Image.fromarray(g.astype(np.int32) * 10 - 1000)]
)
def test_grey_levels_of_a_data_set_share_a_window_that_is_said(load, make):
    shown, originals, said = load(make)
    assert np.abs(shown - originals).mean() < 4 and "`window`" in said


def test_dark_images_of_a_data_set_stay_dark_and_a_window_of_the_config_is_kept(load):
    shown, originals, said = load(as_16_bit, scale=0.5, window=(0, 8160))
    assert np.abs(shown - originals).max() <= 1 and "window" not in said
    darker = itertools.cycle([1, 4])
    brightest = load(lambda grey: as_hounsfield(grey // next(darker)))[0].max(axis=(1, 2))
    assert brightest.min() < 80 and brightest.max() > 200


def test_colours_of_16_bits_are_as_bright_as_others(load):
    shown, originals, _ = load(lambda grey: tiff(np.stack([grey.astype(np.uint16) * 12] * 3, axis=2)))
    assert np.abs(shown - originals).mean() < 4


def test_bands_that_are_left_out_are_named(load):
    shown, originals, said = load(lambda grey: Image.fromarray(np.dstack([grey] * 3 + [grey // 2 + 9])))
    assert np.array_equal(shown, originals) and "12 images of domain scans: the fourth band is no" in said
    assert "bands 1 to 3 of 5" in load(lambda grey: tiff(np.stack([grey.astype(np.uint16)] * 5, axis=2)))[2]


def test_a_fraction_of_the_range_is_said_and_a_window_is_checked(load):
    assert "use the levels 0 to" in load(lambda grey: Image.fromarray(grey // 8))[2]
    with pytest.raises(DasdError, match="window"):
        Config.setup("tiny").source.__class__("a", "b", window=(5, 5))


# samples


SAMPLES = [plain("RGB", (i, 2 * i, 7)) for i in range(5)]


@pytest.fixture
def samples(tmp_path):
    """Return the file of five samples."""
    return images.save_samples(tmp_path / "new" / "samples.parquet", SAMPLES, list("abcde"), range(5))


def test_samples_return_to_the_pixel_and_other_tools_read_them(samples, own_datasets_cache):
    for one, other in zip(images.load_samples(samples), SAMPLES, strict=True):
        assert one.mode == "RGB" and np.array_equal(np.asarray(one), np.asarray(other))
    assert [file.name for file in samples.parent.iterdir()] == ["samples.parquet"]
    rows = datasets.load_dataset("parquet", data_files=str(samples), split="train")
    assert rows[3]["image"].getpixel((0, 0)) == (3, 6, 7) and rows[3]["prompt"] == "d"
    assert pandas.read_parquet(samples)["seed"].tolist() == [0, 1, 2, 3, 4]


def test_damaged_samples_are_named(samples, tmp_path):
    samples.write_bytes(samples.read_bytes()[:200])
    with pytest.raises(DasdError, match=r"samples\.parquet cannot be read.*Remove the file"):
        images.load_samples(samples)
    with pytest.raises(DasdError, match="cannot be read"):
        images.load_samples(tmp_path / "none.parquet")
