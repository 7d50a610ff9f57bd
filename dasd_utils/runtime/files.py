"""Files of text and JSON, complete or not there at all; names made of hashes; locks between processes."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
from safetensors import SafetensorError

from dasd_utils.config import DasdError, read_json

log = logging.getLogger(__name__)


def read_text(path: Path, what: str) -> str:
    """Return the text of a UTF-8 or UTF-16 file without byte order mark; DasdError if it cannot be read."""
    try:
        with path.open("rb") as file:
            is_wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = path.read_text(encoding="utf-16" if is_wide else "utf-8-sig")
        if "\0" in text:  # UTF-16 without its mark, or no text
            raise UnicodeError
        return text
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None)
        reason = reason or "it is neither UTF-8 nor UTF-16 with its mark; save it as UTF-8"
        raise DasdError(f"{what} cannot be read from {path}: {reason}.") from None


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Return the object in a JSON file; DasdError as of `read_json`, and for any other value."""
    values = read_json(path, what)
    if not isinstance(values, dict):
        raise DasdError(f"{path} holds no JSON object.")
    return values


def write_json(path: Path, value: Any, what: str, indent: int | None = 2) -> None:
    """Write a value as a JSON file by `atomic_write`."""
    with atomic_write(path, what) as temporary:
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf8")


def check_writable(folder: Path, what: str, advice: str) -> Path:
    """Return the folder, made if need be; DasdError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DasdError(f"{what} {folder} cannot be written: {error.strerror}. {advice}") from None
    return folder


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop; its class where it says nothing.

    What `datasets` says of an error while it reads is that error's message.
    """
    if "while generating the dataset" in str(error) and error.__cause__:
        return first_line(error.__cause__)
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def short_hash(value: Any, digits: int = 12) -> str:
    """Return hexadecimal digits of the SHA-256 of a value as JSON: a file name of all that decides a file."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


@contextlib.contextmanager
def atomic_write(path: Path, what: str) -> Iterator[Path]:
    """Yield the path for a new file that takes the place of `path` at the end of the `with`.

    After an error inside what was at `path` stays; for an OSError, DasdError says that `what` cannot be
    written.
    """
    with _folder_beside(path, what) as folder:
        new = folder / "new"
        yield new
        new.replace(path)


@contextlib.contextmanager
def atomic_folder(path: Path, what: str) -> Iterator[Path]:
    """Yield a new empty folder that takes the place of `path`, whatever it held, as `atomic_write` does."""
    with _folder_beside(path, what) as folder:
        new, old = folder / "new", folder / "old"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


@contextlib.contextmanager
def _folder_beside(path: Path, what: str) -> Iterator[Path]:
    """Yield a temporary folder on the file system of `path`, where a rename is all or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"dir": path.parent, "prefix": f".{path.name}-", "ignore_cleanup_errors": True}
        with tempfile.TemporaryDirectory(**options) as folder:
            yield Path(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DasdError(f"{what} cannot be written to {path}: {reason}.") from None


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yield whether this process has the lock file inside the `with`; it does not wait for another's.

    The system ends a lock with its process: a file that a killed one leaves stops nobody. Where a file system
    has no locks it warns, and yields True.
    """
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except (NotImplementedError, OSError) as error:  # no reason not to work
        log.warning("%s cannot be locked: %s. See to it that one process works there.", path, error)
    try:
        yield True
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # where an open file cannot be removed
                path.unlink(missing_ok=True)
            lock.release()
