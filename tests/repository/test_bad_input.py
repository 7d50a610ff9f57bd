"""Bad and odd input: each case ends in the right answer, or in one DasdError that helps."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image
from safetensors.torch import save_file
from synthetic import NoiseSampler, domain, make_parts, write_images

from dasd_utils import data, latents, models, sampling, training
from dasd_utils.apps import animation
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import options
from dasd_utils.config import Config
from dasd_utils.runtime import checkpoints, images

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def all_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# images


@pytest.fixture
def whole() -> Config:
    """Return a config that trains on all images of a folder."""
    return Config.setup("tiny", resolution=16, validation_fraction=0.0, test_fraction=0.0)


def palette_with_a_hole(path: Path) -> None:
    image = Image.new("P", (30, 20), 1)
    image.putpalette([255, 0, 0, 200, 10, 20])
    image.paste(0, (0, 10, 30, 20))
    image.save(path.with_suffix(".png"), transparency=1)


def frames(path: Path) -> None:
    first, second = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    first.save(path.with_suffix(".gif"), save_all=True, append_images=[second])


RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255,) * 3
ODD = {  # how it is written, its size, and its colour near the top and near the bottom
    "a hole in the palette": (palette_with_a_hole, (30, 20), WHITE, RED),
    "animated": (frames, (30, 20), RED, RED),
    "narrow": (lambda f: Image.new("RGB", (1, 10_000), "lime").save(f"{f}.png"), (1, 10_000), GREEN, GREEN),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_is_read_as_it_looks(name, tmp_path, whole):
    write, size, upper, lower = ODD[name]
    folder = write_images(tmp_path / "Привет, [мир] #1 50%", range(3))  # any name will do
    write(folder / "ein schönes Bild 日本 *")
    loaded = data.load_domain(domain(folder, caption="a thing"), whole)
    odd = images.read_image({"bytes": None, "path": str(next(folder.glob("ein*")))})
    place = loaded.ids.index(images.content_hash(odd))
    image = loaded[place]["image"]
    assert loaded.sizes[place] == size and (image.mode, image.size) == ("RGB", (16, 16))
    for row, colour in ((2, upper), (13, lower)):
        assert np.abs(np.subtract(image.getpixel((8, row)), colour)).max() < 8


@pytest.mark.parametrize("kind", ["nothing", "truncated", "text", "bomb"])
def test_a_broken_picture_is_named_or_left_out(kind, tmp_path, whole):
    folder = write_images(tmp_path / "set", range(4))
    file = folder / "3.png"
    content = {"nothing": b"", "truncated": file.read_bytes()[:60], "text": b"no picture"}
    if kind == "bomb":  # a small file of many pixels
        Image.new("1", (20_000, 20_000)).save(file)
    else:
        file.write_bytes(content[kind])
    wanted = domain(folder, caption="a thing")
    with refused("1 of 4 images", "3.png", "skip_corrupt"):
        data.load_domain(wanted, whole)
    loaded = data.load_domain(wanted, whole.replace(skip_corrupt=True))
    assert len(loaded) == 3 and data.audit(loaded)["skipped_corrupt"] == 1


# folders


def captioned(folder: Path, lines: list) -> Path:
    """Save a picture for each row of metadata.jsonl."""
    write_images(folder, range(len(lines)))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf8")
    return folder


def rows(*captions, column="text") -> list[dict]:
    return [{"file_name": f"{i}.png", column: caption} for i, caption in enumerate(captions)]


KINDS = {"label_column": "kind", "label_captions": {"dog": "a dog"}, "caption_column": None}
REFUSED = {  # the folder or the lines of its metadata, settings of the domain, words of the error
    "empty": (lambda f: f.mkdir(), {"caption": "a"}, "has no images"),
    "no images": (lambda f: write_images(f, ()).joinpath("a.txt").touch(), {"caption": "a"}, "has no images"),
    "a file": (lambda f: f.write_text("x"), {"caption": "a"}, "is a file"),
    "a link to itself": (lambda f: f.symlink_to(f), {"caption": "a"}, "cannot be used"),
    "missing": ((), {"caption": "a"}, "There is no folder"),
    "a long name": ((), {"source": "x" * 300}, "cannot be used"),
    "the home of nobody": ((), {"source": "~nobody-of-this-name/set"}, "cannot be used"),
    "numbers": (rows(1, 2, 3), {}, "holds 1; a caption is a sentence"),
    "dictionaries": (rows({"a": 1}, {"a": 2}), {}, "a caption is a sentence"),
    "numbers in a list": (rows([1], [2]), {}, "a caption is a sentence"),
    "kinds mixed": (rows("a", 2, "c"), {}, "column 'text' of its metadata cannot be kept: "),
    "no caption at all": (rows("", " ", None), {}, "has no caption"),
    "one image": (rows("a"), {}, "1 image"),
    "no metadata": (lambda f: write_images(f, range(5)), {}, "metadata.jsonl beside the images"),
    "no column named": (rows("a", "b"), {"caption_column": None}, "thing has no captions"),
    "another split": (lambda f: write_images(f, range(5)), {"caption": "a", "test_split": "test"}, "'test'"),
    "another column": (rows("a", "b", column="txt"), {}, "Columns: image, txt."),
    "no file names": ([{"text": "a"}, {"text": "b"}], {}, "cannot be read"),
    "a file that is not there": ([{"file_name": "9.png", "text": "a"}, *rows("a", "b")[1:]], {}, "9.png"),
    "another label": (rows("dog", "cat", column="kind"), KINDS, "label 'cat' of domain thing"),
    "no label": (rows("dog", None, column="kind"), KINDS, "label '' of domain thing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_are_none_are_refused(name, tmp_path, whole):
    prepare, settings, words = REFUSED[name]
    if callable(prepare):
        prepare(tmp_path / "set")
    elif prepare:
        captioned(tmp_path / "set", prepare)
    column = {} if "caption" in settings else {"caption_column": "text"}
    with refused(words):
        data.load_domain(domain(**{"source": tmp_path / "set"} | column | settings), whole)


def prepared(config: Config, folder: Path, **changes):
    """Return (config, parts, targets, sampler) of two steps on the captioned images of a folder."""
    own = domain(folder, caption_column="text", initial_word="aerial")
    unchanged = dict(max_train_steps=2, test_fraction=0.0, caption_dropout=0.0)
    config = config.replace(domains=(own,), **unchanged, **changes)
    parts = training.setup_training(config)
    _, targets, sampler = latents.create_datasets(config, parts.tokenizer)
    return config, parts, targets, sampler


def test_odd_captions_are_trained_on(tmp_path, tiny_config):
    odd = ["river " * 10_000, "a\x00\x07\t\r\n\x1b[0m harbor", "", "日本 🛰️ \u202e", "<thing>", "a village"]
    config, parts, targets, sampler = prepared(tiny_config, captioned(tmp_path / "set", rows(*odd)))
    assert data.audit(targets["thing"], parts.tokenizer)["captions_cut"] <= 1
    history = training.train(config, parts, sampler, parts.token_ids, progress=False)
    assert [row["step"] for row in history if np.isfinite(row["loss"])] == [1, 2]
    animation.sample_grid(sampling.DasdPipeline(parts, config), targets)(2)
    assert (tmp_path / "run" / "samples" / "step-000002.png").is_file()


# base model, adapter, device


def test_the_resolution_is_a_multiple_of_what_the_vae_needs(tiny_config):
    with refused("resolution is 34", "multiple of 4", "32"):
        models.load_parts(tiny_config.replace(resolution=34))
    config = tiny_config.replace(resolution=36, max_train_steps=1)  # 9 x 9 latents, that a UNet halves
    parts = training.setup_training(config)
    _, _, sampler = latents.create_datasets(config, parts.tokenizer)
    (row,) = training.train(config, parts, sampler, progress=False)
    assert np.isfinite(row["loss"])
    image, *_ = sampling.DasdPipeline(parts, config).generate("a harbor", domain="satellite", seed=0)
    assert image.size == (36, 36)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, b"[]"])
def test_a_damaged_adapter_file_is_named(content, saved_run):
    token = saved_run / "adapter" / "xray.safetensors"
    whole = token.read_bytes()
    for row in (torch.zeros(7), torch.zeros(2, 32), torch.tensor(1.0)):  # of another width
        save_file({"<xray>": row}, token)
        with refused("xray.safetensors", "32 wide"):
            sampling.load_trained_pipeline(saved_run)
    token.write_bytes(whole)
    for file in ("pytorch_lora_weights.safetensors", "adapter.json"):
        (saved_run / "adapter" / file).write_bytes(content)
        with refused(file):
            sampling.load_trained_pipeline(saved_run)


# training


@pytest.fixture
def config(tiny_config) -> Config:
    return tiny_config.replace(max_train_steps=3, validation_every=0, checkpoint_every=1)


def train(config: Config, sampler=None, **options) -> list[dict]:
    parts = make_parts(config)
    return training.train(config, parts, sampler or NoiseSampler(config), progress=False, **options)


OUTPUTS = {
    "a file": lambda f: f.write_text("x"),
    "a link to itself": lambda f: f.symlink_to(f),
    "an adapter of other files": lambda f: [
        (f / "adapter").mkdir(parents=True), (f / "adapter" / "notes.txt").write_text("x")
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(name, config, tmp_path):
    folder = tmp_path / "run"
    OUTPUTS[name](folder)
    before, sampler = all_files(tmp_path), NoiseSampler(config)
    with refused(str(folder)):
        train(config.replace(output_dir=folder), sampler)
    assert sampler.encoded == 0 and all_files(tmp_path) == before


def test_a_second_run_in_the_folder_is_refused(config, tmp_path):
    answers = []

    def second(row) -> None:
        with ThreadPoolExecutor() as pool:
            for resume in (False, True):
                answers.append(str(pool.submit(train, config, resume=resume).exception()))

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / checkpoints.LOCK).write_text("left by a killed run, which stops nobody")
    history = train(config, on_step=second)
    assert len(history) == 3 and len(answers) == 6  # in each of the three steps
    assert all("Another run is at work" in text and str(tmp_path / "run") in text for text in answers)
    assert training.load_history(config.output_dir) == history
    assert not list((tmp_path / "run").glob(".*"))
    assert len(train(config, resume=True)) == 3


@pytest.mark.parametrize("when", ["before", "during"])
def test_data_that_vanish(when, tmp_path, tiny_config):
    folder = captioned(tmp_path / "set", rows(*"abcdefgh"))
    config, parts, _, sampler = prepared(tiny_config, folder, validation_every=1)
    if when == "before":
        shutil.rmtree(folder)
        with refused("can no longer be read", ".png"):
            training.train(config, parts, sampler, progress=False)
        assert not list((tmp_path / "cache").glob("thing*"))
        return
    remove = lambda row: shutil.rmtree(folder, ignore_errors=True)  # noqa: E731
    history = training.train(config, parts, sampler, progress=False, on_step=remove)
    assert not folder.exists() and "validation_thing" in history[-1]


@pytest.fixture(scope="module")
def finished(make_config):
    """Return (config, folder) of a finished run. Copy it."""
    config = make_config(max_train_steps=2, validation_every=0, checkpoint_every=1)
    train(config)
    return config, Path(config.output_dir)


NEWEST = "checkpoints/step-000002"
NO_TENSORS = b"\x02\0\0\0\0\0\0\0{}"  # a whole safetensors file
DAMAGES = {  # a file of the run, what it holds, words of the error
    "state is a list": (f"{NEWEST}/state.json", b"[]", "no JSON object"),
    "state is empty": (f"{NEWEST}/state.json", b"{}", "state.json lacks base, config"),
    "state is no JSON": (f"{NEWEST}/state.json", b"{", "is no JSON"),
    "tensors are cut": (f"{NEWEST}/adapter.safetensors", b"\x08", "cannot be read"),
    "tensors are others": (f"{NEWEST}/adapter.safetensors", NO_TENSORS, "of another LoRA"),
    "history is no text": ("history.jsonl", b"\xff\xff\n", "The history cannot be read"),
    "history of lists": ("history.jsonl", b"[1]\n7\n{}\n", "Line 1"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_not_resumed(name, finished, tmp_path):
    file, content, words = DAMAGES[name]
    run = shutil.copytree(finished[1], tmp_path / "run")
    (run / file).write_bytes(content)
    if "step-" in file:  # who changed it knows of hashes
        kept = [each for each in (run / NEWEST).iterdir() if each.name != checkpoints.MANIFEST]
        checkpoints.write_manifest(run / NEWEST, kept)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with refused(words):
        train(finished[0].replace(output_dir=run, max_train_steps=3), resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# the command line


@pytest.fixture
def dasd(monkeypatch, capsys):
    """Return `dasd(*words) -> (exit status, lines on standard error)`."""

    def call(*words) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["dasd", *map(str, words)])
        monkeypatch.setitem(cli.DEBUG, "on", False)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().err.strip().splitlines()

    return call


COMMANDS = {
    "unknown profile": ("train --profile tny", "tny"),
    "no config file": ("train --config none.json", "none.json"),
    "config is a folder": ("train --config .", "cannot be read"),
    "config is a list": ("train --config list.json", "JSON object"),
    "config is empty": ("evaluate --config empty.json", "no JSON"),
    "no steps": ("train --profile tiny --max_steps 0", "max_train_steps is 0"),
    "output is a file": ("train --profile tiny --output_dir list.json", "list.json cannot be written"),
    "no run": ("evaluate --profile tiny --output_dir nowhere", "no adapter"),
    "run is a file": ("generate --profile tiny --checkpoint list.json --prompt x", "no adapter"),
    "verify a file": ("verify list.json", "no finished run"),
    "cache is a file": ("encode --config cache.json", "cache"),
    "unknown lesson": ("notebooks --only 99", "99"),
    "lessons into a file": ("notebooks --only 00 --output_dir list.json", "list.json"),
    "unknown parameter": ("notebooks --only 00 --output_dir nowhere -p sead 3", "sead"),
    "broken parameter": ("notebooks --only 00 -p steps", "NAME VALUE"),
    "unknown stage": ("pretrain --stage nonsense --output_dir nowhere", "nonsense"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_fails_in_one_line(name, dasd, tmp_path, monkeypatch, tiny_config):
    words, message = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    Path("empty.json").write_text("")
    tiny_config.replace(cache_dir=tmp_path / "list.json").save("cache.json")
    before = all_files(tmp_path)
    status, lines = dasd(*words.split())
    assert status == 1 and lines[-1].startswith("dasd: ") and message in lines[-1], lines
    assert not any("Traceback" in line for line in lines)
    assert all_files(tmp_path) == before


def test_pictures_that_cannot_be_written(dasd, saved_run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "generated").write_text("")
    for place in (tmp_path / "file", tmp_path / "out"):
        status, lines = dasd(
            "generate", "--checkpoint", saved_run, "--prompt", "a harbor", "--output_dir", place
        )
        assert status == 1 and "cannot be written" in lines[-1], lines
    status, lines = dasd("generate", "--checkpoint", saved_run, "--prompt", "")
    assert status == 1 and "prompt is empty" in lines[-1]
    assert sorted(path.name for path in saved_run.iterdir()) == ["adapter", "config.json"]


def test_a_finished_run_that_lost_its_history_is_resumed(tiny_config, tmp_path):
    path = tiny_config.replace(max_train_steps=1).save(tmp_path / "config.json")
    conftest.dasd("train", "--config", path)
    assert all_files(tmp_path / "run").isdisjoint({checkpoints.LOCK})
    (tmp_path / "run" / "history.jsonl").unlink()
    assert conftest.dasd("train", "--config", path, "--resume")["step"] == 1


def test_debug_shows_where_an_error_arose(dasd, monkeypatch):
    status, lines = dasd("--debug", "train", "--profile", "tny")
    assert status == 1 and any("Traceback" in line for line in lines) and lines[-1].startswith("dasd: ")

    def broken(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr(options.Settings, "read", broken)
    status, lines = dasd("train")
    assert status == 2 and "RuntimeError: a fault" in lines[-1] and len(lines) == 1
