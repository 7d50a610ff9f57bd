"""A file is there whole or not at all."""

import pytest

from dasd_utils.config import DasdError
from dasd_utils.runtime import files


def test_the_new_takes_the_place_of_the_old_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with files.atomic_write(path, "It") as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
    assert path.read_text() == "two" and path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_after_an_error_the_old_stays_and_nothing_is_left(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), files.atomic_write(path, "It") as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_told(tmp_path):
    said = r"The sums cannot be written to .*a\.txt: No space left"
    with pytest.raises(DasdError, match=said), files.atomic_write(tmp_path / "a.txt", "The sums"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "a"
    with pytest.raises(DasdError, match="The sums cannot be written"), files.atomic_write(below, "The sums"):
        pass


def test_a_folder_takes_the_place_of_the_old_whole(tmp_path):
    path = tmp_path / "a"
    for name in ("one", "two"):
        with files.atomic_folder(path, "It") as new:
            (new / name).write_text("")
            assert not (path / name).exists()
    assert [file.name for file in path.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_folder_stays(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").write_text("")
    with pytest.raises(DasdError, match="It cannot be written"), files.atomic_folder(path, "It"):
        raise OSError(28, "No space left on device")
    rename = type(path).rename

    def fail(self, target):
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", fail)
    with pytest.raises(DasdError, match="It cannot be written"), files.atomic_folder(path, "It"):
        pass
    assert [file.name for file in path.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [path]
