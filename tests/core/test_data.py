"""A domain from hub, folder or toy world: its captions, its splits, its report, and what its errors say."""

import dataclasses
import json
import logging
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from synthetic import Words, domain, picture, plain, saved, write_images

from dasd_utils import data, latents, toyworld
from dasd_utils.config import Config, DasdError, DomainConfig
from dasd_utils.runtime import files, folders, images, splits

pytestmark = pytest.mark.usefixtures("own_datasets_cache")
TEXT = {"text": lambda n: f"picture {n}"}


@pytest.fixture
def config() -> Config:
    return Config.setup("tiny", resolution=16, validation_images=4, num_heldout=5)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "set"


def load(source, config: Config, **settings) -> data.DomainData:
    return data.load_domain(domain(source, **settings), config)


def load_all(settings: DomainConfig, config: Config) -> dict[str, data.DomainData]:
    return {split: data.load_domain(settings, config, split) for split in data.SPLITS}


def first_captions(loaded: dict[str, data.DomainData]) -> list[str]:
    return [captions[0] for part in loaded.values() for captions in part.captions]


# folders


def test_folder_with_metadata(folder, config, caplog):
    write_images(folder, range(40), TEXT)
    picture(99).save(folder / "99.png")
    loaded = load_all(domain(folder, caption_column="text"), config)
    assert sorted(first_captions(loaded)) == sorted(f"picture {n}" for n in range(40))
    train = loaded["train"]
    image, text = train[3]["image"], train.captions[3][0]
    assert (image.mode, image.size, len(train.images)) == ("RGB", (16, 16), len(train))
    assert image.tobytes() == images.center_crop(picture(int(text.split()[1])), 16).tobytes()
    assert train.images[-1].tobytes() == train.images[len(train) - 1].tobytes() and train.mentioned is None
    assert "1 images that have no row" in caplog.text


def test_folder_order_depends_on_content_alone(tmp_path, config):
    write_images(tmp_path / "a", range(12), TEXT)
    write_images(tmp_path / "b", range(12))
    for n in range(12):
        (tmp_path / "b" / f"{n}.png").rename(tmp_path / "b" / f"x{99 - n}.png")
    lines = [{"file_name": f"x{99 - n}.png", "text": f"picture {n}"} for n in reversed(range(12))]
    (tmp_path / "b" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    one, two = (load(tmp_path / name, config, caption_column="text") for name in "ab")
    assert one.ids == two.ids and one.captions == two.captions


def test_num_images_limits_training_only(folder, config):
    settings = domain(write_images(folder, range(40)), caption="a thing", num_images=3)
    few, everything = (load_all(dataclasses.replace(settings, num_images=n), config) for n in (3, 400))
    assert few["train"].ids == everything["train"].ids[:3] and few["test"].ids == everything["test"].ids


def test_changed_file_is_read_again(folder, config):
    write_images(folder, range(6))

    def ids() -> set[str]:
        loaded = load_all(domain(folder, caption="a thing"), config)
        return {name for part in loaded.values() for name in part.ids}

    before = ids()
    picture(77).save(folder / "7.png")
    added = ids() - before
    picture(78).save(folder / "7.png")
    changed = ids() - before
    assert len(added) == len(changed) == 1 and added != changed


def test_a_changed_file_that_a_table_names_is_read_again(tmp_path, config):
    store = write_images(tmp_path / "store", range(24))
    (tmp_path / "table").mkdir()
    rows = {"image": [f"../store/{n}.png" for n in range(24)], "text": ["a thing"] * 24}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "table" / "a.parquet")
    settings = domain(tmp_path / "table", caption_column="text", num_images=24)
    (store / "0.png").write_bytes(b"no image")
    before = data.load_domain(settings, config.replace(skip_corrupt=True))
    assert len(before.broken) == 1
    for name, number in (("0.png", 100), ("1.png", 101)):
        picture(number).save(store / name)
    after = [data.load_domain(settings, config.replace(skip_corrupt=True), split) for split in data.SPLITS]
    ids = {name for part in after for name in part.ids}
    assert not after[0].broken and {images.content_hash(picture(n)) for n in (100, 101)} <= ids


def test_metadata_may_stand_above_split_folders(folder, config):
    lines = []
    for split, first in (("train", 0), ("test", 20)):
        write_images(folder / split, range(first, first + 8))
        lines += [{"file_name": f"{split}/{n}.png", "text": f"{n}"} for n in range(first, first + 8)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    loaded = load_all(domain(folder, caption_column="text", test_split="test"), config)
    assert set(first_captions(loaded)) == {f"{n}" for n in (*range(8), *range(20, 28))}


# captions


def test_caption_column_goes_before_label_and_constant(folder, config):
    rows = {"text": lambda n: ["", f"picture {n} "][n % 2], "kind": lambda n: "odd" if n % 2 else "even"}
    write_images(folder, range(8), rows)
    table = {"odd": "an odd one", "even": "an even one"}
    settings = domain(folder, caption_column="text", label_column="kind", label_captions=table, caption="it")

    def captions(**changes) -> set[str]:
        return set(first_captions(load_all(dataclasses.replace(settings, **changes), config)))

    odd = {f"picture {n}" for n in range(1, 8, 2)}
    assert captions() == odd | {"an even one"}
    assert captions(caption_column=None) == {"an odd one", "an even one"}
    assert captions(label_captions={}) == odd | {"it"}
    assert captions(label_captions={}, caption_column=None) == {"it"}


def test_missing_captions_are_empty_and_counted(folder, config):
    write_images(folder, range(12), {"text": lambda n: None if n % 2 else "even"})
    loaded = load(folder, config, caption_column="text")
    report = data.audit(loaded)
    assert report["captions_missing"] == loaded.captions.count([""]) > 0
    assert report["captions_found"] == loaded.captions.count(["even"])


def test_a_prompt_is_one_of_several_captions_behind_the_token():
    several = data.DomainData(domain("x"), "train", [], [["a", "b", "c"]], ["0"], [], np.empty(0))
    assert [several.prompt(0, choice) for choice in (0.0, 0.4, 0.999)] == [f"<thing> {c}" for c in "abc"]
    assert data.with_token("a village", "<xray>") == "<xray> a village"
    for prompt in ("a village <xray>", "a village <Xray>"):
        assert data.with_token(prompt, "<xray>") == prompt
    assert data.with_token("", "<xray>") == "<xray>" and data.with_token("a village", None) == "a village"


# splits


def test_near_duplicates_are_never_parted_and_exact_ones_are_counted(folder, config):
    write_images(folder, range(20))
    for number in range(20):
        picture(number).resize((48, 40)).save(folder / f"copy{number}.png")
    loaded = load_all(domain(folder, caption="a thing"), config)
    assert [len(part) % 2 for part in loaded.values()] == [0, 0, 0]
    assert sum(map(len, loaded.values())) == 40
    report = data.audit(loaded["train"])
    assert (report["near_duplicates"], report["exact_duplicates"]) == (len(loaded["train"]) // 2, 0)
    exact = write_images(folder.parent / "exact", range(6))
    for number in range(6):
        picture(number).save(exact / f"copy{number}.bmp")
    report = data.audit(load(exact, config, caption="a thing"))
    assert (report["exact_duplicates"], report["near_duplicates"]) == (report["images"] // 2, 0)


def test_at_a_threshold_of_1_only_exact_copies_are_copies():
    looks = np.random.default_rng(0).integers(0, 256, (80, 32, 32), dtype=np.uint8)[np.arange(120) % 80]
    groups = splits.duplicate_groups([f"{n:064}" for n in range(120)], looks, 1.0)
    assert len(set(groups.tolist())) == 120  # equal thumbnails, other ids
    assert len(set(splits.duplicate_groups([f"{n % 100:064}" for n in range(120)], looks, 1.0))) == 100
    assert not splits.near_copies(looks[:40], looks[40:], 1.0).any()


def test_images_that_the_test_split_has_are_kept_out_of_training(folder, config):
    write_images(folder / "train", range(10))
    test = write_images(folder / "test", range(8, 12))
    picture(3).resize((48, 40)).save(test / "near.png")
    loaded = load_all(domain(folder, caption="a thing", test_split="test"), config)
    assert len(loaded["train"]) + len(loaded["validation"]) == 7  # without 3, 8 and 9
    assert not {*loaded["train"].ids, *loaded["validation"].ids} & set(loaded["test"].ids)
    assert data.audit(loaded["train"])["duplicates_of_test"] == 3


def test_what_the_test_split_lacks_is_said_before_training(folder, config):
    write_images(folder / "train", range(5), {"kind": lambda n: "a"})
    write_images(folder / "test", range(9, 12), {"kind": lambda n: "b"})
    with pytest.raises(DasdError, match="'b'"):
        load(folder, config, test_split="test", label_column="kind", label_captions={"a": "one"})
    with pytest.raises(DasdError, match="test_fraction"):  # no image is left for a split
        data.load_domain(domain(folder / "train", caption="x"), config.replace(test_fraction=0.0), "test")


# the columns of the three hub data sets, as parquet files


def parquet_folder(folder: Path, splits: dict[str, dict], **features) -> None:
    """Write files named as on the hub, with the image bytes in them."""
    folder.mkdir(parents=True)
    kinds = datasets.Features(image=datasets.Image(), **features)
    for split, columns in splits.items():
        rows = datasets.Dataset.from_dict(columns, features=kinds)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def sd15_domain(name: str, folder: Path, **changes) -> DomainConfig:
    """Return a domain of the sd15 profile with a folder instead of its hub id."""
    return dataclasses.replace(Config.setup("sd15").domain(name), data=str(folder), **changes)


def test_rsicd_columns(folder, config):
    parts = {"train": range(8), "valid": range(20, 22), "test": range(30, 33)}
    splits = {name: {"captions": [[f"view {k} of place {n} ." for k in range(5)] for n in numbers],
                     "image": [picture(n) for n in numbers]} for name, numbers in parts.items()}  # fmt: skip
    parquet_folder(folder, splits, captions=datasets.List(datasets.Value("string")))
    loaded = load_all(sd15_domain("satellite", folder), config)
    assert len(loaded["train"]) + len(loaded["validation"]) == 8 and len(loaded["test"]) == 3
    assert all(len(captions) == 5 for captions in loaded["train"].captions)
    assert loaded["train"].prompt(0).startswith("<satellite> view 0 of place ")


def test_chest_xray_columns(folder, config):
    parts = {"train": range(8), "validation": range(20, 22), "test": range(30, 33)}
    splits = {name: {"image": [picture(n, mode="L") for n in numbers], "label": [n % 2 for n in numbers]}
              for name, numbers in parts.items()}  # fmt: skip
    parquet_folder(folder, splits, label=datasets.ClassLabel(names=["NORMAL", "PNEUMONIA"]))
    settings = sd15_domain("xray", folder)
    loaded = data.load_domain(settings, config)
    assert loaded[0]["image"].mode == "RGB"
    assert set(data.audit(loaded)["classes"]) == {"NORMAL", "PNEUMONIA"}
    assert loaded.captions[2] == [settings.label_captions[loaded.labels[2]]]
    with pytest.raises(DasdError, match=r"'NORMAL'.*has normal"):
        data.load_domain(dataclasses.replace(settings, label_captions={"normal": "x"}), config)
    with pytest.raises(DasdError, match="holds no images"):
        other = {"image_column": "label", "label_column": None, "label_captions": {}, "caption": "x"}
        data.load_domain(dataclasses.replace(settings, **other), config)


def test_art_painting_columns_and_corrupt_bytes_are_named_by_row(folder, tmp_path, config):
    parquet_folder(folder, {"train": {"image": [picture(n) for n in range(8)]}})
    loaded = load_all(sd15_domain("painting", folder), config)
    assert sum(map(len, loaded.values())) == 8 and loaded["train"].captions[0] == ["a painting"]
    folder, broken = tmp_path / "broken", {"bytes": b"no picture", "path": "a.jpg"}
    parquet_folder(folder, {"train": {"image": [broken, None, None, None]}})
    with pytest.raises(DasdError, match=r"4 of 4 images.*a\.jpg \(row 0\)"):
        load(folder, config, caption="x")


# hub


def test_hub_id_revision_and_split_reach_the_library(monkeypatch, config):
    calls = []

    def load_dataset(name, **options):
        calls.append((name, options))
        start = 40 if options["split"] == "test" else 0
        pictures = {"image": [picture(n) for n in range(start, start + 6)]}
        return datasets.Dataset.from_dict(pictures, features=datasets.Features(image=datasets.Image()))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load("owner/things", config, caption="a thing", revision="abc", test_split="test")
    assert calls == [("owner/things", {"revision": "abc", "split": s}) for s in ("train", "test")]
    assert 0 < len(loaded) < 6


def test_the_first_rows_of_a_hub_set_are_streamed_once_and_stored_as_they_are(monkeypatch, tmp_path, config):
    """Names of classes stay, no image is encoded again, and a second look needs no network."""
    table, calls = tmp_path / "hub.parquet", []
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    pictures = [saved(picture(n), "JPEG") | {"path": f"{n}.jpg"} for n in range(300)]
    labels = [n % 2 for n in range(300)]
    datasets.Dataset.from_dict({"image": pictures, "label": labels}, features).to_parquet(table)
    load_dataset = datasets.load_dataset

    def from_hub(name, **options):
        calls.append((name, options))
        kept = {key: options[key] for key in ("split", "streaming")}
        return load_dataset("parquet", data_files=str(table), **kept)

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    settings = {"stream_rows": 130, "revision": "abc", "label_column": "label"}
    settings |= {"label_captions": {"cat": "a cat", "dog": "a dog"}, "num_images": 1000}
    for _ in range(2):
        loaded = load_all(domain("owner/large", **settings), config)
        assert sum(map(len, loaded.values())) == 130
        assert set(loaded["train"].labels) == {"cat", "dog"}
        assert calls == [("owner/large", {"revision": "abc", "split": "train", "streaming": True})]
    rows = folders.open_rows(domain("owner/large", **settings), "train")
    assert images.undecoded(rows, "image")[129]["image"]["bytes"] == pictures[129]["bytes"]


def test_unreachable_hub_id_is_an_error_and_nothing_else_is_loaded(config):
    with pytest.raises(DasdError) as caught:  # conftest switches the hub off
        load("owner/things-that-are-nowhere", config, caption="a thing", revision="abc")
    for word in ("thing", "owner/things-that-are-nowhere", "abc", "huggingface.co", "no folder", "train"):
        assert word in str(caught.value)


# toy world


def test_toy_world_splits_are_different_scenes_and_one_for_all_seeds(config):
    loaded = load_all(domain("toyworld:satellite", num_images=6), config)
    assert [len(loaded[split]) for split in ("train", "validation", "test")] == [6, 4, 5]
    assert len({i for part in loaded.values() for i in part.ids}) == 15
    train = loaded["train"]
    assert (train[0]["image"].size, train[0]["label"]) == ((16, 16), train.attributes[0]["scene"])
    assert len(train.captions[0]) == 5
    one, other = (load("toyworld:xray", config.replace(seed=seed), num_images=3) for seed in (0, 5))
    assert one.ids == other.ids
    loaded = load("toyworld:xray", config, num_images=3, caption="a chest x-ray")
    assert loaded.captions == [["a chest x-ray"]] * 3


def test_toy_world_says_what_each_caption_mentions(config):
    loaded = load("toyworld:satellite", config, num_images=6)
    for i, (captions, mentioned) in enumerate(zip(loaded.captions, loaded.mentioned, strict=True)):
        wordings = toyworld.captions_with_mentions("satellite", data.TOY_SEEDS["train"], i)
        assert list(zip(captions, mentioned, strict=True)) == wordings
        assert all(each.items() <= loaded.attributes[i].items() for each in mentioned)
    assert any(loaded.mentioned[0]) and loaded.mentioned[0] != [loaded.attributes[0]] * 5
    table = dict.fromkeys(toyworld.ATTRIBUTES["satellite"]["scene"], "a view")
    by_label = dict(label_column="scene", label_captions=table)
    for other in (dict(caption="a view"), dict(caption_column="scene"), by_label):
        assert load("toyworld:satellite", config, num_images=2, **other).mentioned is None


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


def test_audit_counts_what_the_tokenizer_cuts():
    pictures = [picture(n) for n in range(3)]
    captions = [["one two three four"], ["one two three four five"], ["one"]]
    thumbnails = np.stack([images.thumbnail(image) for image in pictures])
    sizes = [image.size for image in pictures]
    found = data.DomainData(domain("x"), "train", pictures, captions, ["a", "b", "c"], sizes, thumbnails)
    report = data.audit(found, Words(limit=5))
    assert report["captions_cut"] == 1  # the token takes one place of five
    assert (report["width_min"], report["width_median"], report["height_max"]) == (24, 24, 20)
    assert data.audit(found)["captions_cut"] is None


def test_create_datasets_returns_the_published_shapes(config, caplog):
    source, *targets = (dataclasses.replace(d, num_images=4) for d in (config.source, *config.domains))
    config = config.replace(source=source, domains=tuple(targets))
    with caplog.at_level(logging.INFO, "dasd_utils"):
        source, targets, sampler = latents.create_datasets(config, Words())
    assert len(source) == 4 and list(targets) == ["satellite", "xray"]
    assert isinstance(sampler, latents.Sampler) and caplog.text.count("images 4") == 3


# copies and splits


def grouped(*pictures: Image.Image) -> list[int]:
    small = np.stack([images.thumbnail(picture) for picture in pictures])
    return list(splits.duplicate_groups([images.content_hash(p) for p in pictures], small, 0.97))


def test_altered_copies_share_a_group_and_other_pictures_do_not():
    first, other = (toyworld.render("painting", 9, i, 64).image for i in (0, 1))
    worse = images.read_image(saved(first, "JPEG", quality=60))
    brighter = ImageEnhance.Brightness(first).enhance(1.1)
    groups = grouped(first, other, worse, first.resize((48, 48)), brighter, first.copy())
    assert groups[1] != groups[0] and groups[2:] == [groups[0]] * 4
    x_rays = [toyworld.render("xray", 9, i, 32).image for i in range(12)]  # alike, but no duplicates
    assert len(set(grouped(*x_rays))) == 12
    groups = grouped(plain("RGB", "red"), plain("RGB", "blue"), plain("RGB", "red"))
    assert groups[0] == groups[2] != groups[1]


def hashes(count: int, seed: int = 0) -> list[str]:
    return [np.random.default_rng([seed, i]).bytes(32).hex() for i in range(count)]


def test_split_keeps_the_fractions_parts_no_group_and_moves_no_image():
    parts = np.array(splits.split_by_content(hashes(4000), [i // 2 for i in range(4000)], 0.1, 0.2))
    assert (parts[::2] == parts[1::2]).all()
    backwards = splits.split_by_content(hashes(4000)[::-1], [i // 2 for i in range(4000)][::-1], 0.1, 0.2)
    assert backwards[::-1] == parts.tolist()
    assert (parts == "validation").mean() == pytest.approx(0.1, abs=0.03)
    assert (parts == "test").mean() == pytest.approx(0.2, abs=0.03)
    for seed in range(20):
        few = splits.split_by_content(hashes(300, seed), range(300), 0.1, 0.2)
        assert (
            splits.split_by_content(hashes(900, seed), range(900), 0.1, 0.2)[:300] == few
        )  # others are added
    parts = splits.split_by_content(hashes(20), range(20), 0.1, 0.2)  # in every version
    assert [i for i, part in enumerate(parts) if part == "validation"] == [11]
    assert [i for i, part in enumerate(parts) if part == "test"] == [5, 7, 9, 14]


def test_images_of_one_framing_are_no_copies_and_their_copies_are():
    """A bright disc on black, with few spots of its own: all correlate above .97 by what they share."""
    pictures = []
    for number in range(30):
        image, draw = Image.new("RGB", (96, 96)), np.random.default_rng(number)
        pen = ImageDraw.Draw(image)
        pen.ellipse((6, 6, 90, 90), fill=(190, 90, 40))
        for x, y in draw.integers(24, 72, (4, 2)).tolist():
            pen.ellipse((x, y, x + 5, y + 5), fill=(240, 230, 90))
        pictures.append(image)
    copies = [picture.resize((80, 80)) for picture in pictures[:5]]
    groups = grouped(*pictures, *copies)
    assert len(set(groups)) == 30 and groups[30:] == groups[:5]


def test_groups_do_not_chain():
    """Each of the row resembles the next, and the last does not resemble the first."""
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    row = [np.uint8(127 + 100 * np.sin(x / 5 + turn) * np.sin(y / 7)) for turn in np.linspace(0, 2, 12)]
    groups = splits.duplicate_groups([f"{i:02d}" for i in range(12)], np.stack(row), 0.9)
    assert 3 <= len(set(groups)) < 12 and groups[0] != groups[-1]
    assert list(groups[:3]) == [groups[0]] * 3  # what resembles the first stays with it


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.97])
def test_short_vectors_and_blocks_leave_the_groups_of_all_whole_products(monkeypatch, threshold):
    monkeypatch.setattr(splits, "AT_ONCE", 32)
    draw = np.random.default_rng(0)
    small = np.stack([images.thumbnail(toyworld.draw("satellite", 9, i, size=32)) for i in range(150)])
    noisy = np.clip(small + draw.normal(size=small.shape) * 8, 0, 255).astype(np.uint8)
    small = np.concatenate([small, noisy])
    order = np.argsort(hashes(300))
    flat = small[order].reshape(300, -1) - small.reshape(300, -1).mean(axis=1)[order, None]
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    flat -= 0.8 * 300 / 304 * flat.mean(axis=0)
    near = np.corrcoef(flat) > threshold
    expected = np.full(300, -1)
    for row in range(300):
        if expected[row] < 0:
            expected[near[row] & (expected < 0)] = row
    on_disk = files.DiskArray((32, 32), [small])
    for stored in (small, on_disk, on_disk.take(np.arange(300))):
        groups = splits.duplicate_groups(hashes(300), stored, threshold)
        assert (groups[order] == expected).all() and len(set(groups)) < 300


def test_memory_does_not_grow_with_the_images(monkeypatch, config):
    """An image may keep its short vector, a hash and a few numbers in memory: less than half a thumbnail."""
    monkeypatch.setattr(
        toyworld, "draw", lambda _, seed, i, size: Image.effect_noise((size, size), 9 + i % 90)
    )
    monkeypatch.setattr(toyworld, "captions_with_mentions", lambda _, seed, i: [(f"picture {i} " * 20, {})])

    def peak(count: int) -> int:
        tracemalloc.start()
        loaded = load("toyworld:satellite", config, num_images=count)
        assert data.audit(loaded)["images"] == len(set(loaded.ids)) == len(loaded.captions) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    less, more = peak(1200), peak(3600)
    assert more - less < 2400 * 512


def test_the_threshold_is_a_setting():
    draw = np.random.default_rng(0)
    small = np.stack([images.thumbnail(toyworld.draw("xray", 9, i)) for i in range(40)])
    noisy = np.clip(small + draw.normal(size=small.shape) * 12, 0, 255).astype(np.uint8)
    ids = hashes(80)
    counts = {
        t: len(set(splits.duplicate_groups(ids, np.concatenate([small, noisy]), t))) for t in (0.9, 1.0)
    }
    assert counts == {0.9: 40, 1.0: 80}
    assert len(set(splits.duplicate_groups([*ids[:79], ids[0]], np.concatenate([small, noisy]), 1.0))) == 79


@pytest.mark.parametrize(
    ("count", "least"), [(3, (1, 1, 1)), (5, (1, 1, 1)), (10, (5, 1, 2)), (20, (10, 1, 2))]
)
def test_chance_leaves_every_part_what_it_needs(count, least):
    for seed in range(200):
        parts = splits.split_by_content(hashes(count, seed), range(count), 0.1, 0.2)
        assert all(parts.count(part) >= few for part, few in zip(data.SPLITS, least, strict=True))
    assert set(splits.split_by_content(hashes(count), range(count), 0.1, 0.0)) == {"train", "validation"}
    assert set(splits.split_by_content(hashes(count), range(count), 0.0, 0.2)) == {"train", "test"}
