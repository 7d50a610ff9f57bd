"""A file is there complete or not at all; a lock is one process's at a time and no reason not to work."""

import ast
from pathlib import Path

import filelock
import pytest
import torch
from PIL import Image

from dasd_utils import figures
from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import checkpoints, files, images

FULL = OSError(28, "No space left on device")


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


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), FULL])
def test_after_an_error_the_old_stays_and_nothing_is_left(path, error):
    files.write_json(path, "old", "It")
    with pytest.raises(DasdError if error is FULL else type(error)), files.atomic_write(path, "It") as new:
        new.write_text("half")
        raise error
    assert files.read_json(path, "It") == "old" and list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_named(path, tmp_path):
    message = r"The sums cannot be written to .*a: No space left"
    with pytest.raises(DasdError, match=message), files.atomic_write(path, "The sums"):
        raise FULL
    (tmp_path / "file").write_text("")
    with pytest.raises(DasdError, match="The sums cannot be written"):
        files.write_json(tmp_path / "file" / "a", {}, "The sums")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"The sums cannot be read from .*a: No such file"),
        (b"\xff", r"The sums .*a is no JSON"),
        (b"{", r"a is no JSON: "),
        (b"1" * 5000, r"a is no JSON: "),  # more digits than Python takes for a number
    ],
)
def test_what_cannot_be_read_is_named(path, content, message):
    path.parent.mkdir()
    if content:
        path.write_bytes(content)
    with pytest.raises(DasdError, match=message):
        files.read_json(path, "The sums")


def test_every_json_file_is_read_by_one_reader():
    """`json.loads` of a file stands in that reader, and where a library or the package wrote the file."""
    allowed = {"config.py", "adapters.py", "attribute_classifier.py", "captions.py", "export.py"}
    found = set()
    for path in Path(files.__file__).parents[1].rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text("utf8"))) if isinstance(node, ast.Call)]
        calls = map(ast.unparse, nodes)
        if any(call.startswith("json.load") and ".read_" in call for call in calls):
            found.add(path.name)
    assert found <= allowed


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": {"b": 1}, "a": {}}', "[" * 100_000])
def test_values_that_a_reader_would_lose_are_no_json(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(DasdError, match="is no JSON"):
        files.read_object(path, "The sums")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_other_encodings_is_read(path, encoding):
    path.parent.mkdir()
    path.write_text('{"a": "ü"}', encoding=encoding)
    assert files.read_object(path, "The sums") == {"a": "ü"}


def test_a_short_hash_is_that_of_the_content():
    assert files.short_hash({"b": 1, "a": "ü"}) == files.short_hash({"a": "ü", "b": 1}) == "ad8fbfe93e9d"
    assert (
        files.short_hash(["x"], 64).startswith(files.short_hash(["x"])) and len(files.short_hash(1, 64)) == 64
    )


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
        assert (first, second) == (True, False)
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


@pytest.mark.parametrize("write", [
    lambda place: Config.setup("tiny").save(place / "config.json"),
    lambda place: checkpoints.write_manifest(place, []),
    lambda place: checkpoints.write_rows(place / "history.jsonl", [{"step": 1}]),
    lambda place: figures.save(figures.comparison_grid({"a": [Image.new("RGB", (8, 8))]}), place / "a.png"),
    lambda place: images.save_samples(place / "a.parquet", [Image.new("RGB", (8, 8))], ["a"], [1]),
    lambda place: checkpoints.write_checkpoint(place, 1, {"a": {"w": torch.zeros(9000)}}, {}),
], ids=["config", "manifest", "history", "figure", "samples", "checkpoint"])  # fmt: skip
def test_a_full_disk_leaves_nothing_of_any_file(tmp_path, write):
    """A limit of file sizes refuses in the middle of a write, as a full disk does."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises((DasdError, OSError), match="File too large"):
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
