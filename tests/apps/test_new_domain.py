"""A folder becomes a domain: captions and words, a proposal, files all or none, a training by commands."""

import dataclasses
import json
import shlex

import datasets
import narrow
import pytest
import torch
import transformers
from conftest import dasd, picture_files
from PIL import Image
from typer.testing import CliRunner

from dasd_utils import data, evaluation, latents, models
from dasd_utils.apps import new_domain
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.new_domain import find_captions, words_of
from dasd_utils.config import ROOT, Config, DasdError
from dasd_utils.runtime import checkpoints, latent_cache

pytestmark = pytest.mark.usefixtures("own_datasets_cache")
THINGS = ("house", "boat", "tree", "mountain", "bottle")
NAMES = [f"{colour}-{thing}_{i}.png" for thing in THINGS for i, colour in enumerate(("red", "blue", "green"))]
NAMES += [f"large {thing} {i}.png" for i, thing in enumerate(THINGS * 2)]
NUMBERED = [f"IMG_{i:04}.png" for i in range(4)]
TOKENIZER = narrow.make_tokenizer()
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "house", "boat", "tree"]


# captions of a folder


def album(folder, names, rows=None):
    picture_files(folder, names)
    if rows is not None:
        lines = [json.dumps({"file_name": name} | row) for name, row in zip(names, rows, strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return new_domain.open_album(folder)


@pytest.mark.parametrize(("name", "words"), [
    ("red-house_by the sea-003", "red house by the sea"),
    ("RedHouse (2)", "red house"),
    ("dog01", "dog"),
    ("copy of photo_dog_056_0002", "dog"),
    ("street 42 at night", "street 42 at night"),
    ("été à Paris", "été à paris"),
    *((n, "") for n in ("IMG_0032", "0001", "a3f9c2d1", "deadbeef", "00f54ecb-1298", "DSC0012", "x")),
])  # fmt: skip
def test_a_name_says_its_words(name, words):
    assert words_of(name) == words


def test_metadata_column(tmp_path):
    for column, text in (("text", "a tree"), ("Caption", "a tree"), ("sentences", ["a tree"])):
        opened = album(tmp_path / column, NUMBERED, [{column: text, "other": "no"} for _ in NUMBERED])
        assert find_captions(opened).entry == {"caption_column": column}


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
        new_domain.from_sidecars(opened)


def test_captions_that_are_broken_are_not_passed_over(tmp_path):
    opened = album(tmp_path, ["red house.png", "blue boat.png"])
    (tmp_path / "red house.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DasdError, match=r"red house\.txt.* neither UTF-8"):
        find_captions(opened)


def test_subfolders_and_columns_are_labels(tmp_path):
    opened = album(tmp_path / "a", ["dog/1.png", "old_elephant/2.png", "oil tanks/3.png", "bus/4.png"])
    table = {"bus": "a bus", "dog": "a dog", "old_elephant": "an old elephant", "oil tanks": "oil tanks"}
    assert find_captions(opened).entry == {"label_column": "label", "label_captions": table}
    table = new_domain.from_labels(opened, "a sketch of a {label}").entry["label_captions"]
    assert table["dog"] == "a sketch of a dog" and table["old_elephant"] == "a sketch of an old elephant"
    rows = [{"class": label} for label in ("dog", "cat", "dog|Old_Cat", None)]
    table = {"dog": "a dog", "cat": "a cat", "dog|Old_Cat": "a dog and old cat", "": ""}
    found = find_captions(album(tmp_path / "b", NUMBERED, rows))
    assert found.entry == {"label_column": "class", "label_captions": table}


def test_labels_of_several_classes_have_several_captions(tmp_path):
    for name, labels, table in (
        ("numbered", ("stage_1", "stage_2"), {"stage_1": "a stage 1", "stage_2": "a stage 2"}),
        ("joined", ("class1", "class2"), {"class1": "a class 1", "class2": "a class 2"}),
        ("cameras", ("photo", "sketch"), {"photo": "a photo", "sketch": "a sketch"}),
        ("counted", ("001.Black_tern", "002.Elf"), {"001.Black_tern": "a black tern", "002.Elf": "an elf"}),
    ):
        opened = album(tmp_path / name, [f"{label}/{i}.png" for i, label in enumerate(labels)])
        assert find_captions(opened).entry["label_captions"] == table
    opened = album(tmp_path / "alike", ["1_dog/red.png", "2_dog/blue.png", "cat/green.png"])
    with pytest.raises(DasdError, match="labels 1_dog, 2_dog get one caption, 'a dog'"):
        find_captions(opened)


def test_sources_go_in_order(tmp_path):
    opened = album(tmp_path, ["dog/red-house.png", "cat/tree.png"])
    assert "label_column" in find_captions(opened).entry
    assert set(find_captions(opened, "names").texts.values()) == {"red house", "tree"}
    (tmp_path / "dog" / "red-house.txt").write_text("a house")
    assert find_captions(opened).texts == {"dog/red-house.png": "a house"}
    opened = album(tmp_path / "splits", ["train/red-house.png", "train/a tree.png", "test/boat 7.png"])
    texts = {"train/red-house.png": "red house", "train/a tree.png": "a tree", "test/boat 7.png": "boat"}
    assert find_captions(opened).texts == texts  # folders of splits are no labels


def test_what_says_no_captions_is_named(tmp_path):
    with pytest.raises(DasdError) as error:
        find_captions(album(tmp_path / "none", NUMBERED))
    for words in ("metadata:", "sidecars:", "labels:", "names:", "0 of 4", "IMG_0000.png", "--captions"):
        assert words in str(error.value)
    for labels, words in (("12", "'1' is no word"), (("dog", "dog"), "two or more")):
        names = [f"{label}/{i}.png" for i, label in enumerate(labels)]
        with pytest.raises(DasdError, match=words):
            new_domain.from_labels(album(tmp_path / words[:3], names))
    for caption, words in (("", r"'text' \(string"), (3, r"'text' \(int64")):
        opened = album(tmp_path / f"text {caption}", NUMBERED, [{"text": caption} for _ in NUMBERED])
        with pytest.raises(DasdError, match=words):
            new_domain.from_metadata(opened)


def test_images_in_tables_have_no_files(tmp_path):
    pictures = {"picture": [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]}
    datasets.Dataset.from_dict(pictures).to_parquet(tmp_path / "train.parquet")
    opened = new_domain.open_album(tmp_path)
    assert opened.column == "picture"
    with pytest.raises(DasdError, match="inside tables"):
        opened.files()


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """Return the folder of a narrow random BLIP that captions, in the layout of the hub."""
    folder = tmp_path_factory.mktemp("blip")
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    special = dict(bos_token_id=5, eos_token_id=3, sep_token_id=3, pad_token_id=0)
    text = dict(vocab_size=len(WORDS), encoder_hidden_size=16, **special, **small)
    seen = dict(image_size=32, patch_size=16, **small)
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
    monkeypatch.setattr(new_domain, "BATCH", 2)
    names = picture_files(tmp_path, ["a/1.png", "b/2.png", "3.png"])
    (tmp_path / "4.png").write_bytes(b"no image")
    found = new_domain.from_model(new_domain.open_album(tmp_path), str(blip))
    assert set(found.texts) == set(names) and found.entry == {}
    assert all("boat" in text for text in found.texts.values())


def test_a_model_that_is_no_captioner_and_a_pickle_are_refused(tmp_path, base_dir, blip):
    opened, planted = album(tmp_path / "images", ["1.png"]), tmp_path / "planted"
    planted.mkdir()
    for file in blip.iterdir():
        if file.suffix != ".safetensors":
            (planted / file.name).write_bytes(file.read_bytes())
    weights = transformers.BlipForConditionalGeneration.from_pretrained(blip).state_dict()
    torch.save(weights, planted / "pytorch_model.bin")
    wrong = {"nobody/captions": "there is no folder", base_dir / "clip": "be loaded", planted: "safetensors"}
    for name, words in wrong.items():
        with pytest.raises(DasdError, match=rf"{name}'.*{words}"):
            new_domain.from_model(opened, str(name))


# words of a domain


@pytest.mark.parametrize(("name", "known", "word", "why"), [
    ("chest-drawing", [], "drawing", "of the name"),
    ("radiograph", ["the mountain", "a mountain", "the sun"], "mountain", "in 2 of 3 captions"),
    ("radiograph", ["a photograph of the sun"], "sun", "in 1 of 1"),
    ("radiograph", ["of zzyzx"], "radiograph", "pieces of the tokenizer: no caption"),
])  # fmt: skip
def test_initial_word_is_one_piece(name, known, word, why):
    found, reason = new_domain.initial_word(name, known, TOKENIZER)
    assert found == word and why in reason


def test_descriptions_are_english_and_labelled_prompts_name_the_domain():
    found = new_domain.describe("ink", "drawing")
    assert found["descriptions"] == ["an ink", "a picture in the style of an ink drawing"]
    assert found["style_suffix"] == "ink drawing"
    others = [{"prompt": "a cat", "domain": None}, {"prompt": "old", "domain": "sketch"}]
    mine = {"prompt": "a pencil sketch of a tree", "domain": None}  # else no threshold tells them apart
    captions = ["a sketch of a dog", "a dog", "a dog"]
    rows = new_domain.labelled("sketch", "sketch", captions, [*others, mine])
    own = [{"prompt": text, "domain": "sketch"} for text in ("a sketch of a dog", "a dog, sketch")]
    assert rows == [others[0], *own]


def test_fresh_captions_come_first():
    heldout = ["A dog.", "one", "two", "one"]
    prompts, origin = new_domain.evaluation_prompts(["a dog", "Two"], heldout)
    assert prompts[0] == "one" and len(prompts) == new_domain.ENOUGH_PROMPTS
    assert "1 captions of held-out" in origin and f"{len(prompts) - 1} rewordings" in origin
    assert not {"a dog", "A dog.", "two", "Two"} & set(prompts) and len(set(prompts)) == len(prompts)
    many = [f"number {i}" for i in range(50)]
    assert new_domain.evaluation_prompts([], many)[0] == many[: new_domain.MANY_PROMPTS]
    for heldout in (["a dog"], []):  # one sentence for all
        prompts, _ = new_domain.evaluation_prompts(["a dog"], heldout)
        assert len(prompts) == len(new_domain.WORDINGS) and "a dog" not in prompts


# a proposal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of 25 images whose captions are their names. Do not write to it."""
    place = tmp_path_factory.mktemp("images") / "sketches"
    picture_files(place, NAMES)
    return place


@pytest.fixture
def found(folder, tiny_config):
    return propose(folder, tiny_config)


def propose(folder, config, how="auto", name="sketch"):
    return new_domain.propose(name, folder, config, how)


def numbered(folder, count=25, **how):
    picture_files(folder, [f"{i:04}.png" for i in range(count)], **how)
    return folder


def classes(folder):
    return numbered(folder / "tree").parent if numbered(folder / "house", first=100) else folder


def test_a_proposal_says_what_is_there(found, folder):
    audit = found.audit
    assert audit["images"] == 25 == sum(audit[split] for split in data.SPLITS)
    assert audit["captions_missing"] == audit["captions_cut"] == audit["exact_duplicates"] == 0
    assert audit["captions_different"] == 20 and audit["width"] == audit["height"] == [32, 32, 32]
    assert not audit["smaller_than_resolution"] and not audit["unreadable"]
    assert found.entry["token"] == "<sketch>" and found.entry["initial_word"] == "sketch"
    assert found.warnings[0].startswith(f"{audit['train']} training images are few")
    assert not list(folder.glob("*.jsonl"))


def test_the_audit_finds_what_is_wrong(tmp_path, tiny_config):
    picture_files(tmp_path, ["big tree.png", *NAMES], size=20)
    (tmp_path / "copy of red-house_0.png").write_bytes((tmp_path / "red-house_0.png").read_bytes())
    (tmp_path / "0001.png").write_bytes((tmp_path / "big tree.png").read_bytes())
    (tmp_path / "broken boat.png").write_bytes(b"no image")
    (tmp_path / f"{'long ' * 45}tree.png").write_bytes((tmp_path / NAMES[5]).read_bytes())
    found = propose(tmp_path, tiny_config, "names")
    audit = found.audit
    assert (audit["images"], audit["exact_duplicates"], audit["captions_missing"]) == (29, 3, 1)
    assert (audit["captions_cut"], audit["smaller_than_resolution"]) == (1, 29)
    assert len(audit["unreadable"]) == 1 and "broken boat.png" in audit["unreadable"][0]
    for text in ("cannot be read", "have no caption", "longer than", "smaller than 32"):
        assert text in " ".join(found.warnings)
    assert found.values(tmp_path / "x.json")["data"] == {"skip_corrupt": True}


def test_all_sources_can_be_named_and_split_folders_are_used(tmp_path, tiny_config, folder, monkeypatch):
    label = propose(classes(tmp_path / "classes"), tiny_config, "a sketch of a {label}")
    assert label.entry["label_captions"] == {"tree": "a sketch of a tree", "house": "a sketch of a house"}
    one = propose(numbered(tmp_path / "one"), tiny_config, "a line drawing")
    assert one.entry["caption"] == "a line drawing" and "All captions are the same" in str(one.warnings)
    assert propose(folder, tiny_config, "names").captions.texts[NAMES[0]] == "red house"

    def from_model(album, name, progress):
        return new_domain.Captions(name, {}, dict.fromkeys(album.files(), f"seen by {name}"))

    monkeypatch.setattr(new_domain, "from_model", from_model)
    for how in ("owner/name", "owner/name@0123abc", str(tmp_path)):
        found = propose(tmp_path / "one", tiny_config, how)
        assert set(found.captions.texts.values()) == {f"seen by {how}"}
    picture_files(tmp_path / "parted", [f"train/{name}" for name in NAMES])
    picture_files(tmp_path / "parted", [f"test/yellow vase {i}.png" for i in range(4)], first=500)
    picture_files(tmp_path / "parted", [f"validation/green vase {i}.png" for i in range(3)], first=600)
    found = propose(tmp_path / "parted", tiny_config)
    assert "3 images of validation are not used" in " ".join(found.warnings)
    assert found.entry["test_split"] == "test" and found.audit["test"] == 4
    assert set(found.captions.texts) >= {f"train/{NAMES[0]}", "test/yellow vase 0.png"}


@pytest.mark.parametrize(("change", "message"), [
    ({"name": "no name"}, "letters, digits"),
    ({"name": "painting"}, "Two domains have one name"),
    ({"name": "x" * 63}, "at most 62"),
    ({"how": "name"}, "Did you mean 'names'"),
    ({"how": ""}, "Or give a sentence"),
    ({"how": "metadata"}, "metadata: no metadata"),
    ({"how": "a {label}"}, "no label column"),
    ({"folder": "nowhere"}, "There is no folder"),
])  # fmt: skip
def test_what_cannot_be_proposed(folder, tiny_config, change, message):
    with pytest.raises(DasdError, match=message):
        propose(**({"folder": folder, "config": tiny_config} | change))


def test_what_fails_does_so_before_a_model_captions(folder, tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr(new_domain, "from_model", lambda *_, **__: pytest.fail("too early"))
    with pytest.raises(DasdError, match="too few images to split"):
        propose(numbered(tmp_path / "few", count=4), tiny_config, "owner/name")
    (tmp_path / "there.json").write_text("{}")
    result = command(folder, tmp_path / "there.json", "--captions", "owner/name")
    assert isinstance(result.exception, DasdError) and "would be replaced" in str(result.exception)


def test_prompts_are_no_captions_of_training_images(folder, tmp_path, tiny_config):
    def plain(text):
        return text.lower().rstrip(".")

    sources = ((folder, "names"), (classes(tmp_path / "images"), "labels"), (folder, "a line drawing"))
    for place, how in sources:
        found = propose(place, tiny_config, how)
        config = Config.load(new_domain.write(found, tmp_path / f"{how}.json")[0])
        splits = [data.load_domain(config.domain("sketch"), config, s) for s in ("train", "validation")]
        trained = {plain(text) for split in splits for texts in split.captions for text in texts}
        assert trained and len(set(found.prompts)) >= 2
        assert not trained & {plain(prompt) for prompt in found.prompts}


# files


def test_written_and_loaded(found, tmp_path):
    written = new_domain.write(found, tmp_path / "mine.json")
    names = [path.name for path in written]
    assert names == ["mine.json", "classifier.json", "metadata.jsonl", "sketch.json"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in written)
    config = Config.load(tmp_path / "mine.json")
    loaded = data.load_domain(config.domain("sketch"), config)
    assert loaded.prompt(0).startswith("<sketch> ") and all(c[0] for c in loaded.captions)
    assert evaluation.load_prompts(config, "sketch") == found.prompts
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "mine_files"}


def test_nothing_is_replaced_unless_forced(found, folder, tmp_path):
    out = tmp_path / "mine.json"
    new_domain.write(found, out)
    (tmp_path / "mine_files" / "prompts" / "old.json").write_text("")
    (tmp_path / "mine_files" / ".DS_Store").write_text("")  # which a Mac writes
    for there in (out, tmp_path / "mine_files"):
        with pytest.raises(DasdError, match=rf"{there.name}.* would be replaced"):
            new_domain.write(found, out)
        out.unlink(missing_ok=True)
    new_domain.write(found, out, force=True)
    assert out.exists() and not (tmp_path / "mine_files" / "prompts" / "old.json").exists()
    (tmp_path / "mine_files" / "notes.txt").write_text("")
    with pytest.raises(DasdError, match=r"holds other files \(notes\.txt\)"):
        new_domain.write(found, out, force=True)
    with pytest.raises(DasdError, match="in the folder of images"):
        new_domain.write(found, folder / "mine.json")
    with pytest.raises(DasdError, match="is a folder"):
        new_domain.write(found, folder.parent, force=True)
    assert new_domain.portable(ROOT / "data" / "x") == "data/x"


def test_a_folder_of_images_is_never_replaced(tmp_path):
    sketches = numbered(tmp_path / "sketch_files", count=3)
    for images in (sketches, tmp_path / "elsewhere"):  # of another domain too
        with pytest.raises(DasdError, match=r"in the folder of images, or hold it|holds other files"):
            new_domain.check_place(tmp_path / "sketch.json", images, force=True)
    result = command(sketches, tmp_path / "sketch.json", "--force")
    assert isinstance(result.exception, DasdError) and len(list(sketches.glob("*.png"))) == 3
    deeper = numbered(tmp_path / "other_files" / "prompts", count=1)
    with pytest.raises(DasdError, match="in the folder of images, or hold it"):
        new_domain.check_place(tmp_path / "other.json", deeper, force=True)


def test_nothing_is_half_written(found, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    new_domain.write(found, tmp_path / "mine.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(new_domain, "caption_lines", fail)
    for out in (tmp_path / "mine.json", tmp_path / "other.json"):
        with pytest.raises(DasdError, match="No space left"):
            new_domain.write(found, out, force=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# what it is for


def run_config(written, tiny_config):
    """Return the written config on the narrow base, with its few steps."""
    changes = {"prompts_dir": written.evaluation.prompts_dir, "images_per_prompt": 1}
    protocol = dataclasses.replace(tiny_config.evaluation, **changes)
    changes = {"domains": written.domains, "classifier": written.classifier, "evaluation": protocol}
    return dataclasses.replace(tiny_config, **changes)


def test_the_next_commands_can_be_pasted_into_a_shell(folder, tmp_path):
    found = new_domain.propose("sketch", folder, Config.setup("tiny"))
    found.prompts[0] = "a $HOME of 'one' `ls`"
    lines = [shlex.split(line) for line in found.next_commands(tmp_path / "My Documents" / "mine.json")]
    assert [line[-2:] for line in lines] == [["--config", f"{tmp_path}/My Documents/mine.json"]] * 3
    assert lines[1][1:4] == ["generate", "--prompt", "a $HOME of 'one' `ls`"]


def test_a_folder_does_not_take_the_place_of_a_source_of_captions(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names").mkdir(exist_ok=True)
    said = command(folder, tmp_path / "a.json", "--captions", "names").stdout
    assert "the file names" in said


def command(folder, out, *options):
    words = ("new-domain", "sketch", folder, "--profile", "tiny", "--out", out, *options)
    return CliRunner().invoke(cli.app, [*map(str, words)])


def test_trained_and_evaluated_by_commands_alone(folder, tiny_config, tmp_path):
    said = command(folder, tmp_path / "b.json").stdout
    pixels = "32 to 32 (median 32) wide, 32 to 32 (median 32) high"
    words = ("25: ", pixels, "the file names: 20 different", "<sketch>")
    for text in (*words, f"dasd train --config {tmp_path}/b.json"):
        assert text in said
    answer = json.loads(command(folder, tmp_path / "a.json", "--json").stdout)
    assert [line.split()[1] for line in answer["next"]] == ["train", "generate", "evaluate"]
    path = run_config(Config.load(answer["config"]), tiny_config).save(tmp_path / "narrow.json")
    dasd("train", "--config", path, "--max_steps", "2")
    rows = dasd("evaluate", "--config", path)["rows"]
    assert {row["domain"] for row in rows} == {"sketch"}
    assert {"cmmd", "clip_score"} <= {row["metric"] for row in rows}
    assert dasd("classify", "--config", path, "--prompt", "<sketch> a house")["best_domain"] == "sketch"


def test_other_captions_are_another_run_on_the_same_latents(found, tiny_config, tmp_path):
    new_domain.write(found, tmp_path / "a.json")
    config = run_config(Config.load(tmp_path / "a.json"), tiny_config)
    parts = models.load_parts(config)

    def sampler():
        *_, made = latents.create_datasets(config, parts.tokenizer)
        made.encode(parts.vae, progress=False)
        return made.fingerprint, latent_cache.stored(config)

    before, again = sampler(), sampler()
    path = tmp_path / "a_files" / "metadata.jsonl"
    path.write_text(path.read_text().replace("red house", "a red house"))
    after = sampler()
    assert before == again and before[0] != after[0] and before[1] == after[1]


def test_a_caption_file_is_checked(found, tmp_path):
    new_domain.write(found, tmp_path / "a.json")
    config = Config.load(tmp_path / "a.json")
    path = tmp_path / "a_files" / "metadata.jsonl"
    wrong = {("elsewhere.png", "a tree"): "elsewhere.png", (NAMES[0], 3): "file .* of domain sketch holds 3"}
    for (name, text), message in wrong.items():
        path.write_text(json.dumps({"file_name": name, "text": text}))
        with pytest.raises(DasdError, match=message):
            data.load_domain(config.domain("sketch"), config)
    both = dataclasses.replace(config.domains[0], caption_column="text")
    with pytest.raises(DasdError, match="caption_file and in a caption_column"):
        config.replace(domains=(both,))
    config = Config.setup("tiny")  # it is part of a run's name only where there is one
    named = dataclasses.replace(config.domains[0], data="folder", caption_file="captions.jsonl")
    others = [config.replace(domains=(dataclasses.replace(named, caption_file=c),)) for c in (None, "a", "b")]
    assert len({checkpoints.run_key(other) for other in others}) == 3
