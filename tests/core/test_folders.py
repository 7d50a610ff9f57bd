"""Folders of images as people have them: what is read, what is left out, and that it is said, once."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import domain, picture, saved, write_images

from dasd_utils import data
from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import folders, images

pytestmark = pytest.mark.usefixtures("own_datasets_cache")
WHOLE = {"resolution": 16, "validation_fraction": 0.0, "test_fraction": 0.0}


def splits(folder: Path) -> dict[str, int]:
    return {split: len(rows) for split, rows in folders.open_folder(domain(folder), folder).items()}


def labels(folder: Path, split: str = "train") -> set[str]:
    rows = folders.open_folder(domain(folder), folder)[split]
    return set(data.label_names(rows, "label")) if "label" in rows.column_names else set()


@pytest.mark.parametrize(
    ("places", "expected", "classes"),
    [
        (["bus", "plane", "train"], {"train": 12}, {"bus", "plane", "train"}),
        (["cat", "val"], {"train": 8}, {"cat", "val"}),
        (["train", "test"], {"train": 4, "test": 4}, set()),
        (["Training", "valid", "Test"], {"train": 4, "validation": 4, "test": 4}, set()),
        (["set/train", "set/val"], {"train": 4, "validation": 4}, set()),
        (["train/cat", "train/dog", "test/cat", "test/dog"], {"train": 8, "test": 8}, {"cat", "dog"}),
        (["train/cat", "train/dog", "test/cat"], {"train": 8, "test": 4}, {"cat", "dog"}),
        (["train/cat", "train/dog"], {"train": 8}, {"cat", "dog"}),
        (["only"], {"train": 4}, set()),
    ],
)
def test_folders_are_splits_or_classes(places, expected, classes, tmp_path):
    for number, place in enumerate(places):
        write_images(tmp_path / "s" / place, range(4 * number, 4 * number + 4))
    assert splits(tmp_path / "s") == expected
    assert labels(tmp_path / "s") == classes


def test_names_of_files_are_no_splits(tmp_path):
    for number, name in enumerate(("train_1", "test-2", "val 3", "my test", "contest", "dev")):
        picture(number).save(write_images(tmp_path / "s", ()) / f"{name}.png")
    assert splits(tmp_path / "s") == {"train": 6}


def test_what_lies_beside_splits_is_named_once(tmp_path, caplog):
    for number, place in enumerate(("train", "test", "extra", ".")):
        write_images(tmp_path / "s" / place, range(10 * number, 10 * number + 3))
    with caplog.at_level(logging.WARNING):
        assert splits(tmp_path / "s") == splits(tmp_path / "s") == {"train": 3, "test": 3}
    (message,) = caplog.messages
    assert message.count("3 images beside the splits test, train") == 2 and "s/extra)" in message


def test_images_beside_class_folders_leave_no_labels_and_it_is_said(tmp_path, caplog):
    for number, place in enumerate(("cat", "dog", ".")):
        write_images(tmp_path / "s" / place, range(10 * number, 10 * number + 3))
    with caplog.at_level(logging.INFO, "dasd_utils"):
        assert splits(tmp_path / "s") == {"train": 9} and labels(tmp_path / "s") == set()
    assert "images read are 9 .png" in caplog.text and "3 images lie beside these folders" in caplog.text


def test_linked_folders_are_read_and_circles_are_not(tmp_path, caplog):
    store = write_images(tmp_path / "store", range(10, 13))
    for number, name in enumerate(("normal", "other")):
        write_images(tmp_path / "s" / name, range(3 * number, 3 * number + 3))
    (tmp_path / "s" / "abnormal").symlink_to(store, target_is_directory=True)
    (tmp_path / "s" / "twice").symlink_to(store, target_is_directory=True)
    (tmp_path / "s" / "around").symlink_to(tmp_path, target_is_directory=True)
    with caplog.at_level(logging.WARNING):
        assert splits(tmp_path / "s") == {"train": 9}
    assert labels(tmp_path / "s") == {"abnormal", "normal", "other"}
    assert "2 links to folders that are read already" in caplog.text and "s/around)" in caplog.text


def test_every_kind_is_read_or_counted_by_its_suffix(tmp_path, caplog):
    folder = write_images(tmp_path / "s", range(3))
    picture(3).save(folder / "3.jfif", format="JPEG")
    picture(4).save(folder / "4.PPM")
    for name in ("5.heic", "6.heic", "7.dcm", "8.txt", "notes.md", "IM0009"):
        (folder / name).write_text("x")
    with caplog.at_level(logging.WARNING):
        assert splits(folder) == {"train": 5}
    assert (
        "1 suffixless files" in caplog.text
        and "1 .dcm files" in caplog.text
        and "2 .heic files" in caplog.text
    )
    assert len(caplog.messages) == 1 and ".txt" not in caplog.text and ".md" not in caplog.text
    assert ".PPM" not in caplog.text  # read, so not among what is left out
    (folder / "captions.csv").write_text("file,text")
    with caplog.at_level(logging.WARNING):
        splits(folder)
    assert "1 tables that are not named metadata.jsonl or" in caplog.text and "captions.csv)" in caplog.text
    only = tmp_path / "only"
    only.mkdir()
    (only / "1.heic").write_text("x")
    with pytest.raises(DasdError, match=r"1 \.heic files"):
        splits(only)


def test_hidden_folders_are_no_part_of_it(tmp_path, caplog):
    for name in ("cat", "dog", "cat/.ipynb_checkpoints", "__MACOSX/cat", ".git/x", "dog/@eaDir/1.png"):
        write_images(tmp_path / "s" / name, range(len(name), len(name) + 2))
    with caplog.at_level(logging.WARNING):
        assert splits(tmp_path / "s") == {"train": 4}
    assert labels(tmp_path / "s") == {"cat", "dog"} and not caplog.messages


@pytest.mark.parametrize("kind", ["bytes", "struct", "struct of bytes alone", "paths"])
def test_parquet_without_the_type_of_images(kind, tmp_path):
    folder = write_images(tmp_path / "s", ())
    pictures = [picture(number) for number in range(6)]
    if kind == "paths":
        (tmp_path / "store").mkdir()
        for number, image in enumerate(pictures):
            image.save(tmp_path / "store" / f"{number}.png")
        column = [f"../store/{number}.png" for number in range(6)]
    else:
        content = [saved(image, "PNG")["bytes"] for image in pictures]
        beside = {"path": None} if kind == "struct" else {}
        column = content if kind == "bytes" else [{"bytes": each} | beside for each in content]
    datasets.Dataset.from_dict({"image": column, "text": list("abcdef")}).to_parquet(folder / "part.parquet")
    loaded = data.load_domain(domain(folder, caption_column="text"), Config.setup("tiny", **WHOLE))
    assert sorted(text for captions in loaded.captions for text in captions) == list("abcdef")
    assert loaded.images[0].size == (16, 16)
    rows = folders.open_folder(domain(folder), folder)["train"]
    assert isinstance(rows.features["image"], datasets.Image)


def test_a_cache_that_cannot_be_written_is_named_and_not_the_images(tmp_path, monkeypatch):
    write_images(tmp_path / "album", range(2))
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = folders.open_rows(domain(tmp_path / "album", caption="a thing"), "train")
    with pytest.raises(DasdError, match=r"cache of data sets .*cache cannot be written.*HF_HOME"):
        images.inspect_rows(rows, "image")
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": [b"1", b"2"]}), tmp_path / "table" / "a.parquet")
    with pytest.raises(DasdError, match="cache of data sets"):
        folders.open_folder(domain(tmp_path / "table"), tmp_path / "table")


@pytest.mark.parametrize("content", [b"garbage" * 9, None])
def test_a_parquet_that_cannot_be_read_is_named(tmp_path, content):
    table = pa.table({"image": [b"1", b"2"], "text": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.drop_columns(["text"]), tmp_path / "b.parquet")
    if content:
        (tmp_path / "b.parquet").write_bytes(content)
    with pytest.raises(DasdError, match=r"b\.parquet"):
        folders.open_folder(domain(tmp_path), tmp_path)


def test_a_name_that_is_no_text_is_named(tmp_path):
    write_images(tmp_path, range(2))
    place = os.fsencode(tmp_path / "bad") + b"\xff.png"
    try:
        os.rename(tmp_path / "1.png", place)
    except OSError:
        pytest.skip("this file system refuses such names")
    with pytest.raises(DasdError, match=r"bad.*dcff\.png.* rename it"):
        folders.open_folder(domain(tmp_path), tmp_path)
