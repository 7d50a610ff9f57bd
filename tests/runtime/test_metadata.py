"""Captions and labels beside images: one reader and one rule, whatever file they stand in."""

import csv
import json

import datasets
import pytest
from conftest import refused
from synthetic import domain, picture, write_images

from dasd_utils import data
from dasd_utils.config import Config
from dasd_utils.runtime import folders

pytestmark = pytest.mark.usefixtures("own_datasets_cache")
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file_name": "0.png", "text": "a", "text": "b"}', "line 1: the key 'text' stands twice"),
        ('{"file_name": "0.png", "text": "a"}\n\n7', "line 3: expected an object"),
        ('{"file_name": "0.png"}', "line 1: expected an object"),
        ('{"file_name": 1, "text": "a"}', "line 1: expected an object"),
        ('{"file_name": "0.png",', "line 1: Expecting property name"),
        ('{"a":' * 100_000, "line 1: maximum recursion"),
        ("PAR1 is no parquet", "metadata.parquet cannot be read"),
        ("file_name,text\n0.png,a dog, running", "line 2: 2 fields are expected"),
        ("file;text\n0.png;a dog", "not the columns file, text"),
        ("file_name,text\n", "has no row"),
    ],
)
def test_rows_that_say_no_captions(tmp_path, text, words):
    kind = {"{": "jsonl", "P": "parquet"}.get(text[0], "csv")
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


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_texts_of_unknown_encoding_are_refused(encoding, tmp_path):
    (tmp_path / "metadata.csv").write_bytes("file_name,text\n1.png,café\n".encode(encoding))
    with refused("neither UTF-8 nor UTF-16", "save it as UTF-8"):
        folders.read_metadata(tmp_path / "metadata.csv")


@pytest.mark.parametrize("text", ['[{"file_name": "1.png"}]', '{"file_name": "1.png"},', "[\n"])
def test_lines_of_json_that_are_no_objects_say_the_form(text, tmp_path):
    (tmp_path / "metadata.jsonl").write_text(text)
    with refused("line 1", "object"):
        folders.read_metadata(tmp_path / "metadata.jsonl")


def test_texts_and_lists_of_texts_are_lists():
    rows = [[{"text": "a"}], [{"text": ["b", "c"]}], [{"text": None}]]
    assert folders.as_columns(rows) == {"text": [["a"], ["b", "c"], []]}


@pytest.mark.parametrize("values", [(2**70, 1), (1, True), ({"a": 1}, {"a": "b"}), ("\ud83d", "a")])
def test_a_column_that_cannot_be_kept_is_named(values):
    with refused("column 'id'", "remove it"):
        folders.as_columns([[{"id": value}] for value in values])
