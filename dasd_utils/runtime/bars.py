"""One progress bar for every long step, shown where a person would see it; on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

# variables that JupyterLab, VS Code and Voilà give their kernels; Colab's have google.colab loaded
SERVERS = {"JPY_SESSION_NAME", "VSCODE_PID", "VOILA_BASE_URL"}


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


def short_bar(*things: Any, **options: Any) -> tqdm:
    """Return a `bar` for a part of a longer step: it appears after two seconds and leaves no line."""
    return bar(*things, delay=2.0, leave=False, **options)


def is_watched() -> bool:
    """Return whether somebody would see a bar of this process: on a terminal, or in a live notebook.

    A log file, papermill and nbval see none; of several processes the first one draws.
    """
    terminal = bool(getattr(sys.stderr, "isatty", lambda: False)())
    return (terminal or ("ipykernel" in sys.modules and is_live())) and int(os.environ.get("RANK", 0)) == 0


def is_live() -> bool:
    """Return whether a person sits in front of this kernel: not in papermill, nbval and nbconvert."""
    return bool(os.environ.keys() & SERVERS) or "google.colab" in sys.modules
