"""Any picture becomes an RGB square, and samples come back as they were."""

from __future__ import annotations

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from synthetic import plain, saved

from dasd_utils.config import DasdError
from dasd_utils.runtime import images


def palette_with_a_hole() -> Image.Image:
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (plain("L", 90), "PNG", (90, 90, 90)),
        (plain("1", 1), "PNG", (255, 255, 255)),
        (plain("P", 0).convert("RGB").quantize(2), "PNG", (0, 0, 0)),
        (plain("RGBA", (200, 0, 0, 51)), "PNG", (244, 204, 204)),
        (plain("RGBA", (200, 0, 0, 255)), "PNG", (200, 0, 0)),
        (plain("CMYK", (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.fromarray(np.full((4, 6), 32896, np.uint16)), "PNG", (128, 128, 128)),
        (Image.fromarray(np.full((4, 6), 65535, np.int32)), "TIFF", (255, 255, 255)),
        (Image.fromarray(np.full((4, 6), 0.5, np.float32)), "TIFF", (128, 128, 128)),
    ],
    ids=["L", "1", "P", "transparent", "opaque", "CMYK", "16-bit", "32-bit", "float"],
)
def test_every_mode_becomes_rgb(image, kind, expected):
    read = images.read_image(saved(image, kind))
    assert read.mode == "RGB"
    assert read.getpixel((2, 2)) == expected


@pytest.mark.parametrize("image", [palette_with_a_hole(), plain("RGBA", (200, 0, 0, 0)), plain("LA", (0, 0))])
def test_an_image_that_nobody_sees_is_no_white_one(image):
    with pytest.raises(ValueError, match="every pixel is transparent"):
        images.read_image(saved(image, "PNG"))


def test_pixels_run_from_minus_one_to_one_with_channels_first():
    picture = Image.new("RGB", (3, 2), (255, 0, 51))
    pixels = images.to_pixels([picture, np.asarray(picture)])
    assert pixels.shape == (2, 3, 2, 3) and pixels.dtype == torch.float32
    assert pixels[:, :, 0, 0].tolist() == [pytest.approx([1.0, -1.0, -0.6])] * 2


def test_a_camera_s_rotation_is_applied():
    lying = Image.new("RGB", (6, 4), "black")
    lying.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the first pixel comes to the top right
    upright = images.read_image(saved(lying, "PNG", exif=exif))
    assert upright.size == (4, 6)
    assert upright.getpixel((3, 0)) == (255, 255, 255)


def test_center_crop_keeps_the_middle_of_the_longer_side():
    wide = Image.new("L", (90, 30), 0)
    wide.paste(200, (30, 0, 60, 30))
    square = images.center_crop(wide, 16)
    assert (square.mode, square.size) == ("RGB", (16, 16))
    assert np.asarray(square).min() > 150


def test_center_crop_scales_the_shorter_side():
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = image.resize((30, 20), Image.Resampling.LANCZOS).crop((5, 0, 25, 20))
    difference = np.asarray(images.center_crop(image, 20), int) - np.asarray(expected, int)
    assert np.abs(difference[:, 3:-3]).max() <= 1  # near the cut the filter sees one side only


def test_lazy_images_are_read_when_asked_for():
    asked = []
    pictures = images.LazyImages(lambda i: asked.append(i) or i, 5)
    assert not asked and len(pictures) == 5
    assert (pictures[-1], pictures[1:3], list(pictures)) == (4, [1, 2], [0, 1, 2, 3, 4])
    with pytest.raises(IndexError):
        pictures[5]


def test_pixels_and_images_are_each_others_inverse():
    colours = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    found = images.from_pixels(images.to_pixels(list(map(Image.fromarray, colours))))
    assert all(np.array_equal(np.asarray(image), one) for image, one in zip(found, colours, strict=True))
    beyond = images.from_pixels(torch.full((1, 3, 2, 2), 7.0))
    assert np.asarray(beyond[0]).min() == 255


SAMPLES = [plain("RGB", (i, 2 * i, 7)) for i in range(5)]


@pytest.fixture
def samples(tmp_path):
    """Return the file of five samples."""
    return images.save_samples(tmp_path / "new" / "samples.parquet", SAMPLES, list("abcde"), range(5))


def test_samples_return_to_the_pixel(samples):
    for one, other in zip(images.load_samples(samples), SAMPLES, strict=True):
        assert one.mode == "RGB" and np.array_equal(np.asarray(one), np.asarray(other))
    assert [file.name for file in samples.parent.iterdir()] == ["samples.parquet"]


def test_other_tools_read_samples(samples, own_datasets_cache):
    rows = datasets.load_dataset("parquet", data_files=str(samples), split="train")
    assert rows[3]["image"].getpixel((0, 0)) == (3, 6, 7) and rows[3]["prompt"] == "d"
    assert pandas.read_parquet(samples)["seed"].tolist() == [0, 1, 2, 3, 4]


def test_damaged_samples_are_named(samples, tmp_path):
    samples.write_bytes(samples.read_bytes()[:200])
    with pytest.raises(DasdError, match=r"samples\.parquet cannot be read.*Remove the file"):
        images.load_samples(samples)
    with pytest.raises(DasdError, match="cannot be read"):
        images.load_samples(tmp_path / "none.parquet")
