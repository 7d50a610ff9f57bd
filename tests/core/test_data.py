"""A domain from hub, folder or toy world; its captions, its splits, and every error a user can make."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dasd_utils import data, latents, toyworld
from dasd_utils.config import Config, DasdError, DomainConfig
from dasd_utils.runtime import images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` writes in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()


@pytest.fixture
def config() -> Config:
    return Config.setup("tiny", resolution=16, validation_images=4, num_heldout=5)


def picture(number: int, size=(24, 20), mode="RGB") -> Image.Image:
    """Return a picture of its own for each number: soft patches, so that a copy of another size is alike."""
    patches = np.random.default_rng(number).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).convert(mode)


def write_images(folder: Path, numbers, rows: dict | None = None) -> Path:
    """Save pictures, and metadata.jsonl with the given columns (name -> number -> value)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        picture(number).save(folder / f"{number}.png")
    if rows:
        lines = [{"file_name": f"{n}.png"} | {key: make(n) for key, make in rows.items()} for n in numbers]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf8")
    return folder


def domain(source, **settings) -> DomainConfig:
    return DomainConfig(**({"name": "thing", "data": str(source), "token": "<thing>"} | settings))


TEXT = {"text": lambda n: f"picture {n}"}


def load_all(settings: DomainConfig, config: Config) -> dict[str, data.DomainData]:
    return {split: data.load_domain(settings, config, split) for split in data.SPLITS}


# folders


def test_folder_with_metadata(tmp_path, config):
    write_images(tmp_path / "set", range(40), TEXT)
    loaded = load_all(domain(tmp_path / "set", caption_column="text"), config)
    texts = [caption[0] for part in loaded.values() for caption in part.captions]
    assert sorted(texts) == sorted(f"picture {n}" for n in range(40))
    train = loaded["train"]
    image, text = train[3]["image"], train.captions[3][0]
    assert (image.mode, image.size, len(train.images)) == ("RGB", (16, 16), len(train))
    expected = images.center_crop(picture(int(text.split()[1])), 16)
    assert image.tobytes() == expected.tobytes()
    assert train.images[-1].tobytes() == train.images[len(train) - 1].tobytes()


def test_folder_order_depends_on_content_alone(tmp_path, config):
    write_images(tmp_path / "a", range(12), TEXT)
    write_images(tmp_path / "b", range(12), TEXT)
    for n in range(12):
        (tmp_path / "b" / f"{n}.png").rename(tmp_path / "b" / f"x{99 - n}.png")
    lines = [{"file_name": f"x{99 - n}.png", "text": f"picture {n}"} for n in reversed(range(12))]
    (tmp_path / "b" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    one, two = (data.load_domain(domain(tmp_path / f, caption_column="text"), config) for f in "ab")
    assert one.ids == two.ids
    assert one.captions == two.captions


def test_num_images_limits_training_only(tmp_path, config):
    write_images(tmp_path / "set", range(40))
    settings = domain(tmp_path / "set", caption="a thing", num_images=3)
    loaded = load_all(settings, config)
    everything = load_all(dataclasses.replace(settings, num_images=400), config)
    assert loaded["train"].ids == everything["train"].ids[:3]
    assert loaded["test"].ids == everything["test"].ids


def test_folder_with_csv(tmp_path, config):
    folder = write_images(tmp_path / "set", range(6))
    lines = ["file_name,text", *(f"{n}.png,row {n}" for n in range(6))]
    (folder / "metadata.csv").write_text("\n".join(lines))
    assert data.load_domain(domain(folder, caption_column="text"), config).captions[0][0].startswith("row ")


def test_class_folders(tmp_path, config):
    write_images(tmp_path / "set" / "cat", range(6))
    write_images(tmp_path / "set" / "dog", range(6, 12))
    table = {"cat": "a photo of a cat", "dog": "a photo of a dog"}
    loaded = data.load_domain(domain(tmp_path / "set", label_column="label", label_captions=table), config)
    assert [[table[label]] for label in loaded.labels] == loaded.captions
    assert set(data.audit(loaded)["classes"]) == {"cat", "dog"}


def test_split_folders_are_no_classes(tmp_path, config):
    write_images(tmp_path / "set" / "train", range(8))
    write_images(tmp_path / "set" / "test", range(20, 23))
    settings = domain(tmp_path / "set", caption="a thing", test_split="test")
    loaded = load_all(settings, config)
    assert loaded["train"].labels is None
    assert len(loaded["train"]) + len(loaded["validation"]) == 8
    assert len(loaded["test"]) == 3


def test_changed_file_is_read_again(tmp_path, config):
    folder = write_images(tmp_path / "set", range(6))

    def ids() -> set[str]:
        loaded = load_all(domain(folder, caption="a thing"), config)
        return {name for part in loaded.values() for name in part.ids}

    before = ids()
    picture(77).save(folder / "7.png")
    added = ids() - before
    picture(78).save(folder / "7.png")
    changed = ids() - before
    assert len(added) == len(changed) == 1
    assert added != changed


@pytest.mark.parametrize(
    ("prepare", "settings", "words"),
    [
        (lambda f: None, {"caption": "x"}, ["There is no folder", "set"]),
        (lambda f: f.mkdir(), {"caption": "x"}, ["no images"]),
        (lambda f: f.write_text("x"), {"caption": "x"}, ["is a file"]),
        (lambda f: write_images(f, range(5)), {"caption_column": "text"}, ["no metadata.jsonl", "text"]),
        (lambda f: write_images(f, range(5), TEXT), {"caption_column": "txt"}, ["'txt'", "Columns:", "text"]),
        (lambda f: write_images(f, range(5), TEXT), {}, ["caption_column", "label_column", "text"]),
        (lambda f: write_images(f, range(5)), {"caption": "x", "test_split": "test"}, ["'test'", "train"]),
        (lambda f: write_images(f, range(1), TEXT), {"caption_column": "text"}, ["1 image"]),
        (lambda f: write_images(f, range(5), {"text": lambda n: ""}), {"caption_column": "text"},
         ["no caption"]),
        (lambda f: write_images(f, range(5), {"text": int}), {"caption_column": "text"}, ["sentence"]),
        (lambda f: write_images(f, range(5), {"kind": str}),
         {"label_column": "kind", "label_captions": {"0": "zero"}}, ["'1'", "label_captions"]),
        (lambda f: write_images(f, range(5), TEXT), {"caption": "x", "num_images": 0}, ["num_images"]),
    ],
    ids=["missing", "empty", "file", "metadata", "column", "captions", "split", "one", "blank", "number",
         "label", "none wanted"],
)  # fmt: skip
def test_folder_errors_say_what_and_where(tmp_path, config, prepare, settings, words):
    prepare(tmp_path / "set")
    with pytest.raises(DasdError) as caught:
        data.load_domain(domain(tmp_path / "set", **settings), config)
    for word in words:
        assert word in str(caught.value)


def test_metadata_of_the_top_folder_is_explained(tmp_path, config):
    for split in ("train", "test"):
        write_images(tmp_path / "set" / split, range(4))
    (tmp_path / "set" / "metadata.jsonl").write_text('{"file_name": "train/0.png", "text": "a"}')
    with pytest.raises(DasdError, match="its own metadata file"):
        data.load_domain(domain(tmp_path / "set", caption_column="text"), config)


def test_broken_metadata_is_an_error_of_the_folder(tmp_path, config):
    folder = write_images(tmp_path / "set", range(4))
    (folder / "metadata.jsonl").write_text("{broken")
    with pytest.raises(DasdError, match=r"set \(domain thing\) cannot be read"):
        data.load_domain(domain(folder, caption_column="text"), config)


def test_corrupt_image_is_named_and_skipped_only_on_request(tmp_path, config):
    folder = write_images(tmp_path / "set", range(8), TEXT)
    content = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(content[: len(content) // 2])
    (folder / "6.png").write_bytes(b"no picture")
    settings = domain(folder, caption_column="text")
    with pytest.raises(DasdError, match=r"2 of 8 images.*5\.png"):
        data.load_domain(settings, config)
    loaded = load_all(settings, config.replace(skip_corrupt=True))
    texts = {caption[0] for part in loaded.values() for caption in part.captions}
    assert texts == {f"picture {n}" for n in range(8)} - {"picture 5", "picture 6"}
    assert data.audit(loaded["train"])["skipped_corrupt"] == 2


def test_image_of_the_metadata_that_is_not_there_is_named(tmp_path, config):
    folder = write_images(tmp_path / "set", range(5), TEXT)
    (folder / "3.png").unlink()
    with pytest.raises(DasdError, match=r"3\.png"):
        data.load_domain(domain(folder, caption_column="text"), config)


def test_images_without_a_row_are_reported(tmp_path, config, caplog):
    folder = write_images(tmp_path / "set", range(5), TEXT)
    picture(9).save(folder / "9.png")
    with caplog.at_level(logging.WARNING):
        data.load_domain(domain(folder, caption_column="text"), config)
    assert "1 images have no row" in caplog.text


# captions


def test_caption_column_goes_before_label_and_constant(tmp_path, config):
    rows = {"text": lambda n: ["", f"picture {n} "][n % 2], "kind": lambda n: "odd" if n % 2 else "even"}
    folder = write_images(tmp_path / "set", range(8), rows)
    table = {"odd": "an odd one", "even": "an even one"}
    settings = domain(folder, caption_column="text", label_column="kind", label_captions=table, caption="it")

    def captions(**changes) -> set[str]:
        loaded = load_all(dataclasses.replace(settings, **changes), config)
        return {caption[0] for part in loaded.values() for caption in part.captions}

    odd = {f"picture {n}" for n in range(1, 8, 2)}
    assert captions() == odd | {"an even one"}
    assert captions(caption_column=None) == {"an odd one", "an even one"}
    assert captions(label_captions={}) == odd | {"it"}
    assert captions(label_captions={}, caption_column=None) == {"it"}


def test_missing_captions_are_empty_and_counted(tmp_path, config):
    folder = write_images(tmp_path / "set", range(12), {"text": lambda n: None if n % 2 else "even"})
    loaded = data.load_domain(domain(folder, caption_column="text"), config)
    report = data.audit(loaded)
    assert report["captions_missing"] == loaded.captions.count([""]) > 0
    assert report["captions_found"] == loaded.captions.count(["even"])


def test_prompt_picks_one_of_several_captions():
    several = data.DomainData(domain("x"), "train", [], [["a", "b", "c"]], ["0"], [], np.empty(0))
    assert [several.prompt(0, choice) for choice in (0.0, 0.4, 0.999)] == [f"<thing> {c}" for c in "abc"]


@pytest.mark.parametrize(
    ("prompt", "token", "expected"),
    [
        ("a village", "<satellite>", "<satellite> a village"),
        ("a village <satellite>", "<satellite>", "a village <satellite>"),
        ("a village <Satellite>", "<satellite>", "a village <Satellite>"),
        ("", "<satellite>", "<satellite>"),
        ("a village", None, "a village"),
    ],
)
def test_with_token(prompt, token, expected):
    assert data.with_token(prompt, token) == expected


# splits


def test_near_duplicates_are_never_parted(tmp_path, config):
    folder = write_images(tmp_path / "set", range(20))
    for number in range(20):
        picture(number).resize((48, 40)).save(folder / f"copy{number}.png")
    loaded = load_all(domain(folder, caption="a thing"), config)
    assert [len(part) % 2 for part in loaded.values()] == [0, 0, 0]
    assert sum(map(len, loaded.values())) == 40
    report = data.audit(loaded["train"])
    assert report["near_duplicates"] == len(loaded["train"]) // 2
    assert report["exact_duplicates"] == 0


def test_exact_copies_are_counted(tmp_path, config):
    folder = write_images(tmp_path / "set", range(6))
    for number in range(6):
        picture(number).save(folder / f"copy{number}.bmp")
    report = data.audit(data.load_domain(domain(folder, caption="a thing"), config))
    assert report["exact_duplicates"] == report["images"] // 2
    assert report["near_duplicates"] == 0


def test_images_that_the_test_split_has_are_kept_out_of_training(tmp_path, config):
    write_images(tmp_path / "set" / "train", range(10))
    test = write_images(tmp_path / "set" / "test", range(8, 12))
    picture(3).resize((48, 40)).save(test / "near.png")
    settings = domain(tmp_path / "set", caption="a thing", test_split="test")
    loaded = load_all(settings, config)
    assert len(loaded["train"]) + len(loaded["validation"]) == 7  # without 3, 8 and 9
    assert not {*loaded["train"].ids, *loaded["validation"].ids} & set(loaded["test"].ids)
    assert data.audit(loaded["train"])["duplicates_of_test"] == 3


def test_label_of_the_test_split_is_checked_before_training(tmp_path, config):
    write_images(tmp_path / "set" / "train", range(5), {"kind": lambda n: "a"})
    write_images(tmp_path / "set" / "test", range(9, 12), {"kind": lambda n: "b"})
    table = {"label_column": "kind", "label_captions": {"a": "one"}}
    with pytest.raises(DasdError, match="'b'"):
        data.load_domain(domain(tmp_path / "set", test_split="test", **table), config)


def test_no_image_left_for_a_split_is_an_error(tmp_path, config):
    write_images(tmp_path / "set", range(5))
    with pytest.raises(DasdError, match="test_fraction"):
        data.load_domain(domain(tmp_path / "set", caption="x"), config.replace(test_fraction=0.0), "test")


# the columns of the three hub data sets, as parquet files


def parquet_folder(folder: Path, splits: dict[str, dict], features: dict) -> Path:
    """Write files named as on the hub, with the image bytes in them."""
    folder.mkdir(parents=True)
    for split, columns in splits.items():
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def rsicd(folder: Path) -> Path:
    def split(name: str, numbers: range) -> dict:
        return {
            "filename": [f"{name}/{n}.jpg" for n in numbers],
            "captions": [[f"view {k} of place {n} ." for k in range(5)] for n in numbers],
            "image": [picture(n) for n in numbers],
        }

    string = datasets.Value("string")
    columns = {"filename": string, "captions": datasets.List(string), "image": datasets.Image()}
    parts = {"train": range(8), "valid": range(20, 22), "test": range(30, 33)}
    return parquet_folder(folder, {name: split(name, numbers) for name, numbers in parts.items()}, columns)


def chest_xray(folder: Path, names=("NORMAL", "PNEUMONIA")) -> Path:
    def split(numbers: range) -> dict:
        return {"image": [picture(n, mode="L") for n in numbers], "label": [n % 2 for n in numbers]}

    columns = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    parts = {"train": range(8), "validation": range(20, 22), "test": range(30, 33)}
    return parquet_folder(folder, {name: split(numbers) for name, numbers in parts.items()}, columns)


def art_painting(folder: Path) -> Path:
    columns = {"image": [picture(n) for n in range(8)]}
    return parquet_folder(folder, {"train": columns}, {"image": datasets.Image()})


@pytest.fixture
def sd15_domains(tmp_path) -> dict[str, DomainConfig]:
    """Return the domains of the sd15 profile with folders instead of hub ids, all else as it stands there."""
    config = Config.setup("sd15")
    makers = {"painting": art_painting, "satellite": rsicd, "xray": chest_xray}
    return {
        name: dataclasses.replace(config.domain(name), data=str(make(tmp_path / name)))
        for name, make in makers.items()
    }


def test_rsicd_columns(sd15_domains, config):
    loaded = load_all(sd15_domains["satellite"], config)
    assert len(loaded["train"]) + len(loaded["validation"]) == 8
    assert len(loaded["test"]) == 3
    assert all(len(captions) == 5 for captions in loaded["train"].captions)
    assert loaded["train"].prompt(0).startswith("<satellite> view 0 of place ")


def test_chest_xray_columns(sd15_domains, config):
    loaded = data.load_domain(sd15_domains["xray"], config)
    assert loaded[0]["image"].mode == "RGB"
    report = data.audit(loaded)
    assert set(report["classes"]) == {"NORMAL", "PNEUMONIA"}
    sentence = sd15_domains["xray"].label_captions[loaded.labels[2]]
    assert loaded.captions[2] == [sentence]


def test_art_painting_columns(sd15_domains, config):
    loaded = load_all(sd15_domains["painting"], config)
    assert sum(map(len, loaded.values())) == 8
    assert loaded["train"].captions[0] == ["a painting"]


def test_label_outside_the_table_is_named(tmp_path, config, sd15_domains):
    other = chest_xray(tmp_path / "other", ("NORMAL", "VIRUS"))
    with pytest.raises(DasdError, match=r"'VIRUS'.*NORMAL, PNEUMONIA"):
        data.load_domain(dataclasses.replace(sd15_domains["xray"], data=str(other)), config)


def test_corrupt_bytes_in_parquet_are_named_by_row(tmp_path, config):
    columns = {"image": [{"bytes": b"no picture", "path": "a.jpg"}, None, None, None]}
    folder = parquet_folder(tmp_path / "set", {"train": columns}, {"image": datasets.Image()})
    with pytest.raises(DasdError, match=r"4 of 4 images.*a\.jpg \(row 0\)"):
        data.load_domain(domain(folder, caption="x"), config)


def test_column_without_images(sd15_domains, config):
    with pytest.raises(DasdError, match="holds no images"):
        settings = dataclasses.replace(sd15_domains["xray"], image_column="label", label_column=None)
        data.load_domain(dataclasses.replace(settings, caption="x", label_captions={}), config)


# hub


def test_hub_id_revision_and_split_reach_the_library(monkeypatch, config):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        start = 40 if options["split"] == "test" else 0
        return datasets.Dataset.from_dict(
            {"image": [picture(n) for n in range(start, start + 6)]},
            features=datasets.Features({"image": datasets.Image()}),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    settings = domain("owner/things", caption="a thing", revision="abc", test_split="test")
    loaded = data.load_domain(settings, config)
    assert asked == [("owner/things", {"revision": "abc", "split": s}) for s in ("train", "test")]
    assert 0 < len(loaded) < 6


def test_unreachable_hub_id_is_an_error_and_nothing_else_is_loaded(config):
    settings = domain("owner/things-that-are-nowhere", caption="a thing", revision="abc")
    with pytest.raises(DasdError) as caught:  # conftest switches the hub off
        data.load_domain(settings, config)
    for word in ("thing", "owner/things-that-are-nowhere", "abc", "huggingface.co", "no folder", "train"):
        assert word in str(caught.value)


# toy world


def test_toy_world_splits_are_different_scenes(config):
    loaded = load_all(domain("toyworld:satellite", num_images=6), config)
    assert [len(loaded[split]) for split in ("train", "validation", "test")] == [6, 4, 5]
    assert len({i for part in loaded.values() for i in part.ids}) == 15
    train = loaded["train"]
    assert (train[0]["image"].size, train[0]["label"]) == ((16, 16), train.attributes[0]["scene"])
    assert len(train.captions[0]) == 5


def test_toy_world_says_what_each_caption_tells(config, tmp_path):
    loaded = data.load_domain(domain("toyworld:satellite", num_images=6), config)
    for i, (captions, told) in enumerate(zip(loaded.captions, loaded.mentioned, strict=True)):
        wordings = toyworld.told_variants("satellite", data.TOY_SEEDS["train"], i)
        assert list(zip(captions, told, strict=True)) == wordings
        assert all(each.items() <= loaded.attributes[i].items() for each in told)
    assert any(loaded.mentioned[0]) and loaded.mentioned[0] != [loaded.attributes[0]] * 5
    table = dict.fromkeys(toyworld.ATTRIBUTES["satellite"]["scene"], "a view")
    by_label = dict(label_column="scene", label_captions=table)
    for other in (dict(caption="a view"), dict(caption_column="scene"), by_label):
        settings = domain("toyworld:satellite", num_images=2, **other)
        assert data.load_domain(settings, config).mentioned is None
    folder = write_images(tmp_path / "set", range(4), TEXT)
    assert data.load_domain(domain(folder, caption_column="text"), config).mentioned is None


def test_toy_world_is_one_for_all_seeds(config):
    settings = domain("toyworld:xray", num_images=3)
    assert data.load_domain(settings, config).ids == data.load_domain(settings, config.replace(seed=5)).ids


def test_toy_world_takes_other_captions_by_config(config):
    settings = domain("toyworld:xray", num_images=3, caption="a chest x-ray")
    assert data.load_domain(settings, config).captions == [["a chest x-ray"]] * 3


@pytest.mark.parametrize(
    ("settings", "split", "word"),
    [
        ({"data": "toyworld:moon"}, "train", "painting, satellite"),
        ({"data": "toyworld:xray", "label_column": "colour"}, "train", "Columns: captions, scene"),
        ({"data": "toyworld:xray"}, "holdout", "validation"),
        ({"data": "toyworld:xray"}, "validation", "validation_images"),
    ],
)
def test_toy_world_errors(config, settings, split, word):
    with pytest.raises(DasdError, match=word):
        data.load_domain(domain("", **settings), config.replace(validation_images=0), split)


# reports


def test_audit_counts_what_the_tokenizer_cuts(config):
    class Words:
        model_max_length = 5

        def __call__(self, texts, **options):
            return {"input_ids": [text.split() for text in texts]}

    pictures = [picture(n) for n in range(3)]
    captions = [["one two three four"], ["one two three four five"], ["one"]]
    thumbnails = np.stack([images.thumbnail(image) for image in pictures])
    sizes = [image.size for image in pictures]
    found = data.DomainData(domain("x"), "train", pictures, captions, ["a", "b", "c"], sizes, thumbnails)
    report = data.audit(found, Words())
    assert report["captions_cut"] == 1  # the token takes one place of five
    assert (report["width_min"], report["width_median"], report["height_max"]) == (24, 24, 20)
    assert data.audit(found)["captions_cut"] is None


def test_create_datasets_returns_the_published_shapes(config, caplog):
    class Words:
        model_max_length = 77

        def __call__(self, texts, **options):
            return {"input_ids": [text.split() for text in texts]}

        def get_vocab(self):
            return {"<satellite>": 0, "<xray>": 1}

    few = [dataclasses.replace(d, num_images=4) for d in (config.source, *config.domains)]
    config = config.replace(source=few[0], domains=tuple(few[1:]))
    with caplog.at_level(logging.INFO, "dasd_utils"):
        source, targets, sampler = latents.create_datasets(config, Words())
    assert len(source) == 4
    assert list(targets) == ["satellite", "xray"]
    assert isinstance(sampler, latents.Sampler)
    assert caplog.text.count("images 4") == 3
