"""A lock is one process's at a time, leaves no file, and is no reason not to work."""

from __future__ import annotations

import filelock
import pytest

from dasd_utils.runtime import files


def test_one_at_a_time_and_no_file_left(tmp_path):
    path = tmp_path / "x.lock"
    with files.try_lock(path) as first, files.try_lock(path) as second:
        assert (first, second) == (True, False)
    with pytest.raises(KeyError), files.try_lock(path) as again:
        assert again
        raise KeyError
    assert not path.exists()


def test_a_leftover_file_stops_nobody(tmp_path):
    path = tmp_path / "x.lock"
    path.write_text("left by a process that was killed")
    with files.try_lock(path) as mine:
        assert mine


def test_without_locks_work_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(_lock):
        raise NotImplementedError("no locks on this file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with files.try_lock(tmp_path / "x.lock") as mine:
        assert mine
    assert "cannot be locked: no locks" in caplog.text
