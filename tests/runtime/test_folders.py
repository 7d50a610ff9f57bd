"""Folders as people have them: what is read, what is left out and said once, and captions by one rule."""

import csv
import json
import logging
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused
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


@pytest.mark.parametrize(("places", "expected", "classes"), [
    (["bus", "plane", "train"], {"train": 12}, {"bus", "plane", "train"}),
    (["cat", "val"], {"train": 8}, {"cat", "val"}),
    (["train", "test"], {"train": 4, "test": 4}, set()),
    (["Training", "valid", "Test"], {"train": 4, "validation": 4, "test": 4}, set()),
    (["set/train", "set/val"], {"train": 4, "validation": 4}, set()),
    (["train/cat", "train/dog", "test/cat"], {"train": 8, "test": 4}, {"cat", "dog"}),
    (["train/cat", "train/dog"], {"train": 8}, {"cat", "dog"}),
    (["dog/train", "dog/test", "cat/train", "cat/test"], {"train": 8, "test": 8}, {"cat", "dog"}),
    (["x/dog/train", "x/dog/val", "y/cat/train"], {"train": 8, "validation": 4}, {"cat", "dog"}),
    (["dog/train", "cat/train"], {"train": 8}, {"cat", "dog"}),
    (["train/dev", "train/cat", "test/dev", "test/cat"], {"train": 8, "test": 8}, {"cat", "dev"}),
    (["only"], {"train": 4}, set()),
])  # fmt: skip
def test_folders_are_splits_or_classes(places, expected, classes, tmp_path):
    for number, place in enumerate(places):
        write_images(tmp_path / "s" / place, range(4 * number, 4 * number + 4))
    assert splits(tmp_path / "s") == expected and labels(tmp_path / "s") == classes


@pytest.mark.parametrize("places", [("cat", "dog/train", "dog/test"), ("val", "test")])
def test_splits_that_would_be_classes_are_refused(places, tmp_path):
    for number, place in enumerate(places):
        write_images(tmp_path / place, range(4 * number, 4 * number + 4))
    with refused("test and", "would be classes"):
        splits(tmp_path)


def test_a_split_without_rows_in_the_metadata_is_left_out(tmp_path, caplog):
    write_images(tmp_path / "train", range(6), {"text": str})
    write_images(tmp_path / "test", range(6, 9))
    assert splits(tmp_path) == {"train": 6} and "3 images that have no row" in caplog.text
    write_images(tmp_path / "beside" / "train", range(3))
    write_images(tmp_path / "beside" / "test", range(3, 5))
    write_images(tmp_path / "beside" / "extra", range(5, 9), {"text": str})
    assert splits(tmp_path / "beside") == {"train": 3, "test": 2} and "4 files beside" in caplog.text


def test_names_of_files_are_no_splits(tmp_path):
    for number, name in enumerate(("train_1", "test-2", "val 3", "my test", "contest", "dev")):
        picture(number).save(tmp_path / f"{name}.png")
    assert splits(tmp_path) == {"train": 6}


def test_what_lies_beside_splits_or_classes_is_named_once(tmp_path, caplog):
    for number, place in enumerate(("s/train", "s/test", "s/extra", "s", "c/cat", "c/dog", "c")):
        write_images(tmp_path / place, range(10 * number, 10 * number + 3))
    with caplog.at_level(logging.INFO, "dasd_utils"):
        assert splits(tmp_path / "s") == splits(tmp_path / "s") == {"train": 3, "test": 3}
        (message,) = (record.message for record in caplog.records if record.levelname == "WARNING")
        assert message.count("3 files beside the splits test, train") == 2 and "s/extra)" in message
        assert splits(tmp_path / "c") == {"train": 9} and labels(tmp_path / "c") == set()
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
    assert all(text in caplog.text for text in ("1 suffixless files", "1 .dcm files", "2 .heic files"))
    assert len(caplog.messages) == 1 and ".txt" not in caplog.text and ".md" not in caplog.text
    assert ".PPM" not in caplog.text  # read, so not among what is left out
    (folder / "captions.csv").write_text("file,text")
    with caplog.at_level(logging.WARNING):
        splits(folder)
    assert "1 tables that are not named metadata.jsonl or" in caplog.text and "captions.csv)" in caplog.text
    write_images(tmp_path / "only", ()).joinpath("1.heic").write_text("x")
    with pytest.raises(DasdError, match=r"1 \.heic files"):
        splits(tmp_path / "only")


def test_hidden_folders_are_no_part_of_it(tmp_path, caplog):
    for name in ("cat", "dog", "cat/.ipynb_checkpoints", "__MACOSX/cat", ".git/x", "dog/@eaDir/1.png"):
        write_images(tmp_path / "s" / name, range(len(name), len(name) + 2))
    with caplog.at_level(logging.WARNING):
        assert splits(tmp_path / "s") == {"train": 4}
    assert labels(tmp_path / "s") == {"cat", "dog"} and not caplog.messages


@pytest.mark.parametrize("stored", [
    lambda number, image: image["bytes"],
    lambda number, image: image,  # bytes and path
    lambda number, image: {"bytes": image["bytes"]},
    lambda number, image: f"../store/{number}.png",
], ids=["bytes", "struct", "struct of bytes alone", "paths"])  # fmt: skip
def test_parquet_without_the_type_of_images(stored, tmp_path):
    folder = write_images(tmp_path / "s", ())
    write_images(tmp_path / "store", range(6))
    column = [stored(number, saved(picture(number), "PNG")) for number in range(6)]
    datasets.Dataset.from_dict({"image": column, "text": list("abcdef")}).to_parquet(folder / "part.parquet")
    loaded = data.load_domain(domain(folder, caption_column="text"), Config.setup("tiny", **WHOLE))
    assert sorted(text for captions in loaded.captions for text in captions) == list("abcdef")
    assert loaded.images[0].size == (16, 16)
    rows = folders.open_folder(domain(folder), folder)["train"]
    assert isinstance(rows.features["image"], datasets.Image)


@pytest.mark.parametrize(("names", "expected", "said"), [
    (["train", "more"], {"train": 4}, ""),
    (["painting_train", "painting_extra", "painting_test"], {"train": 6}, ""),
    (["[1]/a", "[1]/test_data"], {"train": 4}, ""),
    (["train/a", "extra/a"], {"train": 4}, ""),
    (["train/a", "test/a", "test/b", "extra/a"], {"train": 2, "test": 4}, "1 files beside the splits"),
    (["train", "test", "more"], {"train": 2, "test": 2}, "1 files beside the splits"),
    (["data/train-00000-of-00002", "data/train-00001-of-00002", "data/validation-00000-of-00001-0f"],
     {"train": 4, "validation": 2}, ""),
])  # fmt: skip
def test_no_parquet_is_lost_without_a_word(names, expected, said, tmp_path, caplog):
    for number, name in enumerate(names):
        table = {"image": [saved(picture(2 * number + n), "PNG")["bytes"] for n in range(2)]}
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    assert splits(tmp_path) == expected
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said in "".join(warned) and bool(said) == bool(warned)


def test_other_files_beside_a_parquet_are_left_out_and_named(tmp_path, caplog):
    datasets.Dataset.from_dict({"image": [b"1"]}).to_parquet(tmp_path / "data.parquet")
    for name in ("notes.txt", "LICENSE", "x.html", "metadata.csv"):
        (tmp_path / name).write_text("file_name\n1.png")
    assert splits(tmp_path) == {"train": 1}
    assert "1 suffixless files" in caplog.text and "metadata.csv)" in caplog.text


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
        splits(tmp_path / "table")


def test_a_parquet_that_cannot_be_read_is_named(tmp_path):
    table = pa.table({"image": [b"1", b"2"], "text": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.drop_columns(["text"]), tmp_path / "b.parquet")
    with pytest.raises(DasdError, match=r"b\.parquet"):
        splits(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"garbage" * 9)
    with pytest.raises(DasdError, match=r"b\.parquet"):
        splits(tmp_path)


def test_a_name_that_is_no_text_is_named(tmp_path):
    write_images(tmp_path, range(2))
    place = os.fsencode(tmp_path / "bad") + b"\xff.png"
    try:
        os.rename(tmp_path / "1.png", place)
    except OSError:
        pytest.skip("this file system refuses such names")
    with pytest.raises(DasdError, match=r"bad.*dcff\.png.* rename it"):
        splits(tmp_path)


# captions and labels beside images


FORMS = ("metadata.jsonl", "METADATA.CSV", "metadata.parquet", "captions.jsonl", "captions.csv")
ENCODING = {"captions.csv": "utf-16", "metadata.jsonl": "utf8"}
WORDS = ["None", "NA", "null", "nan", "N/A", "a dog, running", "two\nlines"]


@pytest.fixture
def config() -> Config:
    return Config.setup("tiny", resolution=16, test_fraction=0.2, validation_fraction=0.2)


def write(folder, rows, form):
    """Write rows next to images, or as a caption file next to the folder; return the domain."""
    path = (folder if form.lower() in folders.METADATA else folder.parent) / form
    if form.endswith("parquet"):
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif form.lower().endswith("csv"):
        with path.open("w", newline="", encoding=ENCODING.get(form, "utf-8-sig")) as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding=ENCODING.get(form, "utf-8-sig"))
    inside = path.parent == folder
    return domain(folder, **{"caption_column": "text"} if inside else {"caption_file": str(path)})


def load(settings, config):
    """Return caption lists of all images, sorted."""
    parts = [data.load_domain(settings, config, split) for split in data.SPLITS]
    return sorted(captions for part in parts for captions in part.captions)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_alike(tmp_path, config, form):
    folder = write_images(tmp_path / "set", range(20))
    texts = [WORDS[n] if n < len(WORDS) else f"picture {n}" for n in range(20)]
    rows = [{"file_name": f".\\{n}.PNG", "text": f"\ufeff{text}"} for n, text in enumerate(texts)]
    rows += [{"file_name": "3.png", "text": text} for text in ("another", "third", "nan")]
    expected = sorted([text] if n != 3 else ["nan", "another", "third"] for n, text in enumerate(texts))
    assert load(write(folder, [*rows[:-1], {**rows[-1], "text": "\ufeffnan"}], form), config) == expected


@pytest.mark.parametrize("form", FORMS)
def test_a_row_without_its_file_is_refused_in_every_form(tmp_path, config, form):
    folder = write_images(tmp_path / "set", range(8))
    rows = [{"file_name": f"{n}.png", "text": f"picture {n}"} for n in range(9)]
    outside = write_images(tmp_path / "outside", [8]) / "8.png"
    for name in ("8.png", "../outside/8.png", str(outside)):
        with refused("1 of 9 files", "8.png", "put the files back"):
            load(write(folder, [*rows[:-1], rows[-1] | {"file_name": name}], form), config)
    rows[7]["file_name"] = str(folder / "7.png")
    assert len(load(write(folder, rows[:-1], form), config)) == 8


@pytest.mark.parametrize("name", [None, "{}.png"])
def test_several_rows_of_a_table_are_one_image(tmp_path, config, name):
    rows = []
    for n in range(12):
        picture(n).save(tmp_path / "picture.png")
        stored = {"bytes": (tmp_path / "picture.png").read_bytes(), "path": name and name.format(n)}
        rows += [{"image": stored, "text": text} for text in (f"one {n}", f"two {n}", f"one {n}")]
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows, features=kinds).to_parquet(tmp_path / "set" / "train.parquet")
    settings = domain(tmp_path / "set", caption_column="text")
    assert load(settings, config) == sorted([f"one {n}", f"two {n}"] for n in range(12))


def test_several_labels_are_named_together(tmp_path, config):
    kinds = [[], ["mass"], ["mass", "edema"]]
    folder = write_images(tmp_path, range(12), {"labels": lambda n: kinds[n % 3]})
    table = {"": "", "mass": "a mass", "mass, edema": "a mass and edema"}
    settings = domain(folder, label_column="labels", label_captions=table)
    assert {captions[0] for captions in load(settings, config)} == set(table.values())


@pytest.mark.parametrize(("text", "words"), [
    ('{"file_name": "0.png", "text": "a", "text": "b"}', "line 1: the key 'text' stands twice"),
    ('{"file_name": "0.png", "text": "a"}\n\n7', "line 3: expected an object"),
    ('{"file_name": "0.png"}', "line 1: expected an object"),
    ('{"file_name": 1, "text": "a"}', "line 1: expected an object"),
    ('{"file_name": "0.png",', "line 1: Expecting property name"),
    ('{"a":' * 100_000, "line 1: maximum recursion"),
    ('[{"file_name": "1.png"}]', "line 1: expected an object"),
    ('{"file_name": "1.png"},', "line 1: Extra data"),
    ("[\n", "line 1: Expecting value"),
    ("PAR1 is no parquet", "metadata.parquet cannot be read"),
    ("file_name,text\n0.png,a dog, running", "line 2: 2 fields are expected"),
    ("file;text\n0.png;a dog", "not the columns file, text"),
    ("file_name,text\n", "has no row"),
])  # fmt: skip
def test_rows_that_say_no_captions(tmp_path, text, words):
    kind = {"{": "jsonl", "[": "jsonl", "P": "parquet"}.get(text[0], "csv")
    path = tmp_path / f"metadata.{kind}"
    path.write_text(text)
    with refused(words):
        folders.read_metadata(path, "text")


@pytest.mark.parametrize(
    "text", ['File_Name, Text,\n1.png, "a dog, running",\n\n,,\n', "file_name|Text\n1.png|a dog, running\n"]
)
def test_csv_as_spreadsheets_and_hands_write_it(text, tmp_path):
    (tmp_path / "metadata.csv").write_text(text)
    rows = folders.read_metadata(tmp_path / "metadata.csv")
    assert [row["Text"] for row in rows["1.png"]] == ["a dog, running"]
    for encoding in ("cp1252", "utf-16-le"):
        (tmp_path / "metadata.csv").write_bytes("file_name,text\n1.png,café\n".encode(encoding))
        with refused("neither UTF-8 nor UTF-16", "save it as UTF-8"):
            folders.read_metadata(tmp_path / "metadata.csv")


@pytest.mark.parametrize("values", [(2**70, 1), (1, True), ({"a": 1}, {"a": "b"}), ("\ud83d", "a")])
def test_texts_and_lists_are_lists_and_a_column_that_cannot_be_kept_is_named(values):
    rows = [[{"text": "a"}], [{"text": ["b", "c"]}], [{"text": None}]]
    assert folders.as_columns(rows) == {"text": [["a"], ["b", "c"], []]}
    with refused("column 'id'", "remove it"):
        folders.as_columns([[{"id": value}] for value in values])
