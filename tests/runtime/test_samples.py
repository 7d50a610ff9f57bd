"""Samples come back as they were, and tools that people have read the file."""

import datasets
import numpy as np
import pandas
import pytest
from synthetic import plain

from dasd_utils.config import DasdError
from dasd_utils.runtime import images

IMAGES = [plain("RGB", (i, 2 * i, 7)) for i in range(5)]


def test_images_return_to_the_pixel(tmp_path):
    path = images.save_samples(tmp_path / "new" / "samples.parquet", IMAGES, list("abcde"), range(5))
    for one, other in zip(images.load_samples(path), IMAGES, strict=True):
        assert one.mode == "RGB" and np.array_equal(np.asarray(one), np.asarray(other))
    assert [file.name for file in path.parent.iterdir()] == ["samples.parquet"]


def test_other_tools_read_them(tmp_path):
    path = images.save_samples(tmp_path / "samples.parquet", IMAGES, list("abcde"), range(5))
    rows = datasets.load_dataset(
        "parquet", data_files=str(path), cache_dir=str(tmp_path / "c"), split="train"
    )
    assert rows[3]["image"].getpixel((0, 0)) == (3, 6, 7) and rows[3]["prompt"] == "d"
    assert pandas.read_parquet(path)["seed"].tolist() == [0, 1, 2, 3, 4]


def test_a_damaged_file_is_named(tmp_path):
    path = images.save_samples(tmp_path / "samples.parquet", IMAGES, list("abcde"), range(5))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DasdError, match=r"samples\.parquet cannot be read.*Remove the file"):
        images.load_samples(path)
    with pytest.raises(DasdError, match="cannot be read"):
        images.load_samples(tmp_path / "none.parquet")
