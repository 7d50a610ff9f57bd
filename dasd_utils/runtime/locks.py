"""A file that one process at a time holds."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import filelock

log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
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
