"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from dasd_utils.config import DasdError


@contextlib.contextmanager
def atomic_write(path: Path, what: str) -> Iterator[Path]:
    """Yield the path of a new file that takes the place of `path` at the end of the `with`.

    After an error inside nothing of it is left, and what was at `path` stays. Raises DasdError, which says
    that `what` cannot be written, for an OSError.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # mkstemp lets only the owner read
        temporary.replace(path)
    except OSError as error:
        raise DasdError(f"{what} cannot be written to {path}: {error.strerror}.") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, what: str) -> Iterator[Path]:
    """Yield a new empty folder that takes the place of `path`, whatever it held, at the end of the `with`.

    As in `whole`, an error inside leaves what was there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        new, old = temporary / "new", temporary / "old"
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
    except OSError as error:
        raise DasdError(f"{what} cannot be written to {path}: {error.strerror}.") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


# A file that one process at a time holds.


log = logging.getLogger(__name__)


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yield whether the lock file is this process's inside the `with`; it does not wait for another's.

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
