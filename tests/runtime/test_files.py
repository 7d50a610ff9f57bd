"""Files are complete or not there; weights come from a folder, the hub or its cache; bars where seen."""

import ast
import errno
import io
import json
import re
import shutil
import sys
from pathlib import Path

import datasets
import filelock
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from dasd_utils import evaluation, figures, models
from dasd_utils.config import Config, DasdError, DomainConfig
from dasd_utils.papers.diffusionclip import objective
from dasd_utils.runtime import checkpoints, checks, files, folders, images

FULL = OSError(28, "No space left on device")
PACKAGE = Path(files.__file__).parents[1]


def calls(text):
    """Return the calls in a text of code."""
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "a"


def test_the_new_takes_the_place_of_the_old_at_the_end(path):
    for text in ("one", "two"):
        with files.atomic_write(path, "It") as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
    assert path.read_text() == "two" and path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("error", "seen", "said"), [
    (ValueError("x"), ValueError, "x"), (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    (FULL, DasdError, r"The sums cannot be written to .*a: No space left"),
])  # fmt: skip
def test_after_an_error_the_old_stays_and_nothing_is_left(path, error, seen, said):
    files.write_json(path, "old", "It")
    with pytest.raises(seen, match=said), files.atomic_write(path, "The sums") as new:
        new.write_text("half")
        raise error
    assert files.read_json(path, "It") == "old" and list(path.parent.iterdir()) == [path]
    with pytest.raises(DasdError, match="It cannot be written"):
        files.write_json(path / "below", {}, "It")


@pytest.mark.parametrize("content", [
    b"\xff", b"{", b"1" * 5000,  # more digits than Python takes for a number
    b'{"a": 1, "a": 2}', b'{"a": {"b": 1}, "a": {}}', b"[" * 100_000,  # values that a reader would lose
])  # fmt: skip
def test_what_is_no_json_is_named(path, content):
    with pytest.raises(DasdError, match=r"The sums cannot be read from .*a: No such file"):
        files.read_json(path, "The sums")
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DasdError, match=r"The sums .*a is no JSON: "):
        files.read_object(path, "The sums")


def test_every_json_file_is_read_by_one_reader():
    """`json.loads` of a file stands in that reader, and where a library or the package wrote the file."""
    allowed = {"checks.py", "adapters.py", "attribute_classifier.py", "captions.py", "export.py"}
    reading = re.compile(r"json\.loads?\([^)]*\.read_")
    assert {path.name for path in PACKAGE.rglob("*.py") if reading.search(path.read_text("utf8"))} <= allowed


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_other_encodings_is_read(path, encoding):
    path.parent.mkdir()
    path.write_text('{"a": "ü"}', encoding=encoding)
    assert files.read_object(path, "The sums") == {"a": "ü"}


def test_a_short_hash_is_that_of_the_content():
    assert files.short_hash({"b": 1, "a": "ü"}) == files.short_hash({"a": "ü", "b": 1}) == "ad8fbfe93e9d"
    whole = files.short_hash(["x"], 64)
    assert len(whole) == 64 and whole.startswith(files.short_hash(["x"]))


def test_a_folder_takes_the_place_of_the_old(path):
    for name in ("one", "two"):
        with files.atomic_folder(path, "It") as new:
            (new / name).write_text("")
            assert not (path / name).exists()
    assert [file.name for file in path.iterdir()] == ["two"] and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("at_the_end", [False, True])
def test_after_an_error_the_old_folder_stays(path, monkeypatch, at_the_end):
    path.mkdir(parents=True)
    (path / "old").write_text("")
    rename = type(path).rename

    def fail(self, target):
        if self.name == "new":
            raise FULL
        return rename(self, target)

    with pytest.raises(DasdError, match="It cannot be written"), files.atomic_folder(path, "It"):
        if not at_the_end:
            raise FULL
        monkeypatch.setattr(type(path), "rename", fail)
    assert [file.name for file in path.iterdir()] == ["old"] and list(path.parent.iterdir()) == [path]


def test_one_at_a_time_and_no_file_left(tmp_path):
    path = tmp_path / "x.lock"
    path.write_text("left by a process that was killed")  # it stops nobody
    with files.try_lock(path) as first, files.try_lock(path) as second:
        assert first and not second
    with pytest.raises(KeyError), files.try_lock(path) as again:
        assert again
        raise KeyError
    assert not path.exists()


def test_without_locks_work_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(_lock):
        raise NotImplementedError("no locks on this file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with files.try_lock(tmp_path / "x.lock") as mine:
        assert mine
    assert "cannot be locked: no locks" in caplog.text


def test_a_file_system_without_locks_gets_none_that_outlives_its_process(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")  # not on Windows

    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    (tmp_path / "x.lock").write_text("left by a killed process")
    with files.try_lock(tmp_path / "x.lock") as mine:
        assert mine
    assert "cannot be locked" in caplog.text


@pytest.mark.parametrize("write", [
    lambda place: Config.setup("tiny").save(place / "config.json"),
    lambda place: checkpoints.write_manifest(place, []),
    lambda place: checkpoints.write_rows(place / "history.jsonl", [{"step": 1}]),
    lambda place: figures.save(figures.comparison_grid({"a": [Image.new("RGB", (8, 8))]}), place / "a.png"),
    lambda place: images.save_samples(place / "a.parquet", [Image.new("RGB", (8, 8))], ["a"], [1]),
], ids=["config", "manifest", "history", "figure", "samples"])  # fmt: skip
def test_a_full_disk_leaves_nothing_of_any_file(tmp_path, write, full_disk):
    with full_disk(10), pytest.raises((DasdError, OSError), match="File too large"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


# pretrained weights


class Recorder:
    """Stands for a class of models: keeps what `from_pretrained` was asked."""

    def __init__(self, error=None):
        self.error, self.asked = error, None

    def from_pretrained(self, where, **options):
        self.asked = (where, options)
        if self.error:
            raise self.error
        return "model"


def hub(monkeypatch, error=None):
    """Let the hub's one answer be this error, or none; return the list of questions."""
    questions = []

    def model_info(self, name, revision=None, timeout=None):
        questions.append((name, revision))
        if error:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return questions


def test_a_folder_comes_first_and_the_hub_is_not_asked(base_dir, monkeypatch):
    questions = hub(monkeypatch)
    source = files.find_weights(str(base_dir), revision="main")
    assert source.folder == base_dir and questions == []
    assert isinstance(source.load(UNet2DConditionModel, "unet"), UNet2DConditionModel)


def test_a_folder_with_the_name_of_a_hub_id_is_named_once(base_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    files.say_once.cache_clear()
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to(base_dir)
    (tmp_path / "data" / "things").mkdir(parents=True)
    for _ in range(2):
        assert files.find_weights("owner/name").folder == base_dir
    assert f"owner/name is read from the folder {base_dir}, not from the hub." in caplog.text
    assert files.find_weights(str(base_dir)).folder == base_dir
    assert files.find_folder("data/things") and files.find_folder("owner") and len(caplog.messages) == 1
    assert files.find_folder("owner/other") is None


def test_a_reachable_hub_is_asked_once_and_loaded_from(monkeypatch):
    questions, kind = hub(monkeypatch), Recorder()
    source = files.find_weights("owner/name", "abc", "fp16")
    assert source.load(kind, "unet", variant="fp16") == "model" and questions == [("owner/name", "abc")]
    options = {"revision": "abc", "local_files_only": False, "variant": "fp16", "subfolder": "unet"}
    assert kind.asked == ("owner/name", options)


def test_without_network_only_the_cache_is_read(monkeypatch):
    hub(monkeypatch, ConnectionError("no route to host"))
    kind = Recorder()
    files.find_weights("owner/name").load(kind)
    assert kind.asked == ("owner/name", {"revision": None, "local_files_only": True})
    with pytest.raises(DasdError) as failure:
        files.find_weights("owner/name", "abc").load(Recorder(OSError("not cached")), "vae")
    for part in ("The vae of 'owner/name'", "revision abc", "no route to host", "hf download owner/name"):
        assert part in str(failure.value)


@pytest.mark.parametrize("name", ["./base", "/no/base", "a/b/c", "base", "~/base"])
def test_a_name_that_can_only_be_a_folder_is_not_looked_for_on_the_hub(name, monkeypatch):
    questions = hub(monkeypatch)
    with pytest.raises(DasdError, match="no folder"):
        files.find_weights(name)
    assert questions == []


def test_every_load_of_weights_says_its_dtype():
    """Else transformers takes that of the file: float16, several times slower on a CPU."""
    root, silent = PACKAGE.parent, []
    rooms = ("dasd_utils", "benchmarks", "docs", "Report")
    code = {str(path): path.read_text("utf8") for room in rooms for path in root.glob(f"{room}/**/*.py")}
    for path in root.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text("utf8"))["cells"]
        code[str(path)] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for name, text in code.items():
        for call in calls(text):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained":
                kind, named = ast.unparse(call.func.value), {word.arg for word in call.keywords}
                if not kind.endswith(("Tokenizer", "Processor", "Scheduler")) and not named & {"dtype", None}:
                    silent.append(f"{name}:{call.lineno}")
    assert len(code) > 100 and not silent


def test_files_of_float16_are_loaded_as_float32(base_dir, tmp_path):
    base = Path(shutil.copytree(base_dir, tmp_path / "base"))
    for file in base.rglob("*.safetensors"):
        save_file({name: value.half() for name, value in load_file(file).items()}, file, {"format": "pt"})
    for file in base.rglob("config.json"):  # which says the type too
        file.write_text(file.read_text("utf8").replace('"float32"', '"float16"'), encoding="utf8")
    config = Config.setup("tiny", base=base, clip=base / "clip")
    parts, scorer = models.load_parts(config), evaluation.load_scorer(config, "cpu")
    settings = objective.Settings(target=("a river",), reference=("a harbor",))
    words = objective.Words(config, settings, torch.device("cpu"))
    modules = parts.unet, parts.vae, parts.text_encoder, scorer.clip, words.clip
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}
    half = files.find_weights(str(base)).load(UNet2DConditionModel, "unet", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["data/tiny-sd", "data/tiny-sd/clip", "data/mine"])
def test_the_repository_s_folder_is_no_owner_on_the_hub(name, monkeypatch, tmp_path):
    """As where a wheel is installed: a stranger's repository of that name is never asked for."""
    questions = hub(monkeypatch)
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("the hub was asked"))
    with pytest.raises(DasdError, match=r"never looked for on the hub\..*git clone"):
        files.find_weights(name)
    with pytest.raises(DasdError, match="never looked for on the hub"):
        folders.open_rows(DomainConfig("things", name, caption="a thing"), "train")
    assert questions == []


# progress bars


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Take away what a launcher or a notebook server around the tests would have left."""
    for name in ("RANK", *files.SERVERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)


def test_lazy_items_are_read_when_asked_for():
    asked = []
    items = files.Lazy(lambda i: asked.append(i) or i, 5)
    assert not asked and len(items) == 5
    assert (items[-1], items[1:3], list(items)) == (4, [1, 2], [0, 1, 2, 3, 4])
    assert items == [0, 1, 2, 3, 4] and items != [0, 1, 2, 3] and items != [0, 1, 2, 3, 5]
    assert files.short_hash(items) == files.short_hash([0, 1, 2, 3, 4])  # names of files do not change
    with pytest.raises(IndexError):
        items[5]


def test_what_is_on_disk_reads_as_it_was_written():
    items = [["ä", "b c"], [], [""], {"a": None}]
    assert files.on_disk(iter(items)) == items and files.on_disk([]) == []
    array = np.arange(60, dtype=np.uint8).reshape(10, 2, 3)
    stored = files.DiskArray((2, 3), [array[:4], *(each.tobytes() for each in array[4:])])
    assert (
        stored.shape == array.shape and (stored[:] == array).all() and (stored[[7, 2]] == array[[7, 2]]).all()
    )
    some = stored.take(np.array([9, 3, 1]))
    assert len(some) == 3 and (some[1:] == array[[3, 1]]).all() and (some.take([2])[0] == array[1]).all()


def stderr(monkeypatch, terminal: bool = True) -> io.StringIO:
    """Replace standard error in a test, since pytest does so between its fixtures and it."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_terminal_sees_the_name_the_count_and_the_time_left(monkeypatch):
    screen = stderr(monkeypatch)
    for _ in files.bar(range(4), "training", unit="step", mininterval=0):
        pass
    last = screen.getvalue().split("\r")[-1]
    assert "training: 100%" in last and "4/4" in last and " step/s" in last
    assert "<00:00" in last  # elapsed<left
    for rank, drawn in (("1", False), ("0", True)):  # of several processes the first draws
        monkeypatch.setenv("RANK", rank)
        assert files.is_watched() == drawn


@pytest.mark.parametrize(("terminal", "make", "options"), [
    (False, files.bar, {}), (True, files.bar, {"shown": False}), (True, files.short_bar, {}),
], ids=["file", "not wanted", "over in no time"])  # fmt: skip
def test_no_bar_in_a_file_nor_where_none_is_wanted_nor_of_a_short_step(monkeypatch, terminal, make, options):
    screen = stderr(monkeypatch, terminal)
    assert list(make(range(3), "training", mininterval=0, **options)) == [0, 1, 2]
    assert screen.getvalue().strip("\r \n") == ""


@pytest.mark.parametrize("name", ["JPY_SESSION_NAME", "VSCODE_PID", "VOILA_BASE_URL", "google.colab"])
def test_a_kernel_draws_only_for_a_person_in_front_of_it(monkeypatch, name):
    stderr(monkeypatch, terminal=False)
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert not files.is_live() and not files.is_watched()  # papermill, nbval
    if name == "google.colab":  # which is known by its module
        monkeypatch.setitem(sys.modules, name, object())
    else:
        monkeypatch.setenv(name, "notebooks/05_sampling.ipynb")
    assert files.is_live() and files.is_watched()


def test_every_bar_has_one_style():
    for path in PACKAGE.rglob("*.py"):
        made = re.search(r"\b(tqdm|trange)\(", path.read_text("utf8"))
        assert bool(made) == (path.name == "files.py"), path
