"""One bar for every long step: what is done, how many there are, the time left, on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

from dasd_utils.runtime.live import is_live

QUIET = 2.0  # seconds that a step may take before its bar appears, where most are over by then


def is_watched() -> bool:
    """Return whether somebody would see a bar of this process: on a terminal, or in a live notebook.

    A log file, papermill and nbval see none; of several processes the first one draws.
    """
    seen = is_live() if "ipykernel" in sys.modules and not _terminal() else _terminal()
    return seen and int(os.environ.get("RANK", 0)) == 0


def bar(
    things: Iterable[Any] | None = None,
    what: str | None = None,
    total: int | None = None,
    *,
    shown: bool = True,
    unit: str = "it",
    **options: Any,
) -> tqdm:
    """Return a tqdm bar over things, or one of `total` that is moved by `update`, where somebody sees it.

    what: stands before it; unit: what is counted, in the singular; options: those of tqdm.
    """
    style = {"dynamic_ncols": True, "unit": f" {unit}", "smoothing": 0.1}
    return tqdm(things, what, total, disable=not (shown and is_watched()), **style | options)


def brief(things: Iterable[Any] | None = None, what: str | None = None, total: int | None = None,
          **options: Any) -> tqdm:  # fmt: skip
    """Return a bar that appears after QUIET seconds and leaves no line behind: of a part of a longer step."""
    return bar(things, what, total, delay=QUIET, leave=False, **options)


def _terminal() -> bool:
    return bool(getattr(sys.stderr, "isatty", lambda: False)())
