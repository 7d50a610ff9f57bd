"""Captions of a folder: every source, and what each refuses."""

import json

import datasets
import numpy as np
import pytest
from conftest import picture_files
from PIL import Image

from dasd_utils import data
from dasd_utils.apps.new_domain import captions
from dasd_utils.apps.new_domain.captions import find_captions, words_of
from dasd_utils.config import DasdError

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def album(folder, names, rows=None):
    picture_files(folder, names)
    if rows is not None:
        lines = [json.dumps({"file_name": name} | row) for name, row in zip(names, rows, strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return captions.open_album(folder)


NUMBERED = [f"IMG_{i:04}.png" for i in range(4)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red-house_by the sea-003", "red house by the sea"),
        ("RedHouse (2)", "red house"),
        ("dog01", "dog"),
        ("copy of photo_dog_056_0002", "dog"),
        ("street 42 at night", "street 42 at night"),
        ("été à Paris", "été à paris"),
        *(
            (name, "")
            for name in ("IMG_0032", "0001", "a3f9c2d1", "deadbeef", "00f54ecb-1298", "DSC0012", "x")
        ),
    ],
)
def test_a_name_says_its_words(name, words):
    assert words_of(name) == words


@pytest.mark.parametrize("column", ["text", "Caption", "sentences"])
def test_metadata_column(tmp_path, column):
    rows = [{column: ["a tree"] if column == "sentences" else "a tree", "other": "no"} for _ in NUMBERED]
    assert find_captions(album(tmp_path, NUMBERED, rows)).entry == {"caption_column": column}


def test_sidecars(tmp_path):
    opened = album(tmp_path, NUMBERED)
    for name, suffix in zip(NUMBERED[:3], ("txt", "caption", "png.txt"), strict=True):
        (tmp_path / name).with_suffix(f".{suffix}").write_text("  a red\n house ")
    found = find_captions(opened)
    assert found.entry == {} and found.texts == dict.fromkeys(NUMBERED[:3], "a red house")
    (tmp_path / NUMBERED[0]).with_suffix(".txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DasdError, match="no UTF-8"):
        captions.from_sidecars(opened)


def test_subfolders_are_labels(tmp_path):
    opened = album(tmp_path, ["dog/1.png", "old_elephant/2.png", "oil tanks/3.png"])
    table = {"dog": "a dog", "old_elephant": "an old elephant", "oil tanks": "oil tanks"}
    assert find_captions(opened).entry == {"label_column": "label", "label_captions": table}
    told = captions.from_labels(opened, "a sketch of a {label}").entry["label_captions"]
    assert told["dog"] == "a sketch of a dog" and told["old_elephant"] == "a sketch of an old elephant"


def test_label_column_of_metadata(tmp_path):
    opened = album(tmp_path, NUMBERED, [{"class": label} for label in ("dog", "cat", "dog", None)])
    table = {"dog": "a dog", "cat": "a cat", "": ""}
    assert find_captions(opened).entry == {"label_column": "class", "label_captions": table}


def test_folders_of_splits_are_no_labels(tmp_path):
    opened = album(tmp_path, ["train/red-house.png", "train/a tree.png", "test/boat 7.png"])
    texts = {"train/red-house.png": "red house", "train/a tree.png": "a tree", "test/boat 7.png": "boat"}
    assert find_captions(opened).texts == texts


def test_sources_go_in_order(tmp_path):
    opened = album(tmp_path, ["dog/red-house.png", "cat/tree.png"])
    assert "label_column" in find_captions(opened).entry
    assert set(find_captions(opened, "names").texts.values()) == {"red house", "tree"}
    (tmp_path / "dog" / "red-house.txt").write_text("a house")
    assert find_captions(opened).texts == {"dog/red-house.png": "a house"}


def test_nothing_says_anything(tmp_path):
    with pytest.raises(DasdError) as error:
        find_captions(album(tmp_path, NUMBERED))
    for words in ("metadata:", "sidecars:", "labels:", "names:", "0 of 4", "IMG_0000.png", "--captions"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("labels", "words"), [(("1", "2"), "'1' is no word"), (("dog", "dog"), "two or more")]
)
def test_labels_that_say_nothing(tmp_path, labels, words):
    names = [f"{label}/{i}.png" for i, label in enumerate(labels)]
    with pytest.raises(DasdError, match=words):
        captions.from_labels(album(tmp_path, names))


def test_too_many_labels_are_no_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "MOST_LABELS", 2)
    with pytest.raises(DasdError, match="3 labels are no classes"):
        captions.from_labels(album(tmp_path, ["a dog/1.png", "a cat/1.png", "a cow/1.png"]))


def test_an_empty_caption_column_is_none(tmp_path):
    with pytest.raises(DasdError, match="no metadata with a column text"):
        captions.from_metadata(album(tmp_path, NUMBERED, [{"text": ""} for _ in NUMBERED]))


def test_no_folder(tmp_path):
    with pytest.raises(DasdError, match="There is no folder"):
        captions.open_album(tmp_path / "nowhere")


def test_images_in_tables_have_no_files(tmp_path):
    pictures = [Image.fromarray(np.full((8, 8, 3), i, np.uint8)) for i in range(2)]
    kinds = datasets.Features({"picture": datasets.Image()})
    datasets.Dataset.from_dict({"picture": pictures}, kinds).to_parquet(tmp_path / "train.parquet")
    opened = captions.open_album(tmp_path)
    assert opened.column == "picture"
    with pytest.raises(DasdError, match="inside tables"):
        opened.files()


@pytest.mark.parametrize("line", ["{", "[]", '{"file_name": "1.png"}', '{"file_name": 1, "text": "a"}'])
def test_a_broken_caption_file_names_its_line(tmp_path, line):
    path = tmp_path / "captions.jsonl"
    path.write_text(f'{{"file_name": "0.png", "text": "a"}}\n\n{line}\n')
    with pytest.raises(DasdError, match="line 3"):
        data.read_caption_file(path)
    with pytest.raises(DasdError, match="No such file"):
        data.read_caption_file(tmp_path / "nowhere")
