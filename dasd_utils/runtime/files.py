"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dasd_utils.config import DasdError


@contextlib.contextmanager
def whole(path: Path, what: str) -> Iterator[Path]:
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
def whole_folder(path: Path, what: str) -> Iterator[Path]:
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
