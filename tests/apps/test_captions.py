"""Captions of a folder: every source, a model, and what each refuses."""

import json

import datasets
import numpy as np
import pytest
import torch
import transformers
from conftest import picture_files
from PIL import Image

from dasd_utils.apps.new_domain import captions
from dasd_utils.apps.new_domain.captions import find_captions, words_of
from dasd_utils.config import DasdError

pytestmark = pytest.mark.usefixtures("own_datasets_cache")
NUMBERED = [f"IMG_{i:04}.png" for i in range(4)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "house", "boat", "tree"]


def album(folder, names, rows=None):
    picture_files(folder, names)
    if rows is not None:
        lines = [json.dumps({"file_name": name} | row) for name, row in zip(names, rows, strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return captions.open_album(folder)


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
    for name, suffix in zip(NUMBERED[:3], ("TXT", "caption", "png.txt"), strict=True):
        (tmp_path / name).with_suffix(f".{suffix}").write_bytes("\ufeff a red \t house \r\n".encode())
    (tmp_path / NUMBERED[1]).with_suffix(".caption").write_text("one\n\ntwo\n")  # a caption a line
    found = find_captions(opened)
    assert found.texts == dict.fromkeys(NUMBERED[:3], "a red house") | {NUMBERED[1]: ["one", "two"]}
    assert found.entry == {}
    (tmp_path / NUMBERED[0]).with_suffix(".TXT").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DasdError, match="neither UTF-8"):
        captions.from_sidecars(opened)


def test_subfolders_are_labels(tmp_path):
    opened = album(tmp_path, ["dog/1.png", "old_elephant/2.png", "oil tanks/3.png", "bus/4.png"])
    table = {"bus": "a bus", "dog": "a dog", "old_elephant": "an old elephant", "oil tanks": "oil tanks"}
    assert find_captions(opened).entry == {"label_column": "label", "label_captions": table}
    table = captions.from_labels(opened, "a sketch of a {label}").entry["label_captions"]
    assert table["dog"] == "a sketch of a dog" and table["old_elephant"] == "a sketch of an old elephant"


def test_label_column_of_metadata(tmp_path):
    opened = album(tmp_path, NUMBERED, [{"class": label} for label in ("dog", "cat", "dog|Old_Cat", None)])
    table = {"dog": "a dog", "cat": "a cat", "dog|Old_Cat": "a dog and old cat", "": ""}
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


@pytest.mark.parametrize(("labels", "words"), [("12", "'1' is no word"), (("dog", "dog"), "two or more")])
def test_labels_that_are_no_classes(tmp_path, labels, words):
    names = [f"{label}/{i}.png" for i, label in enumerate(labels)]
    with pytest.raises(DasdError, match=words):
        captions.from_labels(album(tmp_path, names))


@pytest.mark.parametrize(("caption", "words"), [("", r"'text' of its metadata .*\(string"), (3, r"\(int64")])
def test_a_caption_column_without_captions_says_so(tmp_path, caption, words):
    with pytest.raises(DasdError, match=words):
        captions.from_metadata(album(tmp_path, NUMBERED, [{"text": caption} for _ in NUMBERED]))


def test_images_in_tables_have_no_files(tmp_path):
    pictures = [Image.fromarray(np.full((8, 8, 3), i, np.uint8)) for i in range(2)]
    kinds = datasets.Features({"picture": datasets.Image()})
    datasets.Dataset.from_dict({"picture": pictures}, kinds).to_parquet(tmp_path / "train.parquet")
    opened = captions.open_album(tmp_path)
    assert opened.column == "picture"
    with pytest.raises(DasdError, match="inside tables"):
        opened.files()


# a model in the layout of the hub: a narrow random BLIP


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """Return the folder of a narrow BLIP that captions."""
    folder = tmp_path_factory.mktemp("blip")
    narrow = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    special = dict(bos_token_id=5, eos_token_id=3, sep_token_id=3, pad_token_id=0)
    seen = dict(image_size=32, patch_size=16, **narrow)
    text = dict(vocab_size=len(WORDS), encoder_hidden_size=16, **special, **narrow)
    settings = transformers.BlipConfig(text_config=text, vision_config=seen, projection_dim=16)
    torch.manual_seed(0)
    model = transformers.BlipForConditionalGeneration(settings)
    model.text_decoder.cls.predictions.bias.data[WORDS.index("boat")] = 9.0
    model.save_pretrained(folder)
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    images = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_each_image_is_captioned_by_its_file(tmp_path, blip, monkeypatch):
    monkeypatch.setattr(captions, "BATCH", 2)
    names = picture_files(tmp_path, ["a/1.png", "b/2.png", "3.png"])
    (tmp_path / "4.png").write_bytes(b"no image")
    found = captions.from_model(captions.open_album(tmp_path), str(blip), "cpu")
    assert set(found.texts) == set(names) and found.entry == {}
    assert all("boat" in text for text in found.texts.values())


def test_a_model_that_is_not_there_or_no_captioner(tmp_path, base_dir):
    opened = album(tmp_path, ["1.png"])
    for name, words in (("nobody/captions", "there is no folder"), (str(base_dir / "clip"), "be loaded")):
        with pytest.raises(DasdError, match=rf"{name}'.*{words}"):
            captions.from_model(opened, name, "cpu")


def test_a_pickle_is_not_read(tmp_path, blip):
    opened, planted = album(tmp_path / "images", ["1.png"]), tmp_path / "planted"
    planted.mkdir()
    for file in blip.iterdir():
        if file.suffix != ".safetensors":
            (planted / file.name).write_bytes(file.read_bytes())
    weights = transformers.BlipForConditionalGeneration.from_pretrained(blip).state_dict()
    torch.save(weights, planted / "pytorch_model.bin")
    with pytest.raises(DasdError, match="safetensors"):
        captions.from_model(opened, str(planted), "cpu")
