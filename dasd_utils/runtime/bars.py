"""One progress bar for every long step, shown where a person would see it; on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

QUIET = 2.0  # seconds that a step may take before its short bar appears: most are over by then
SERVERS = {"JPY_SESSION_NAME", "VSCODE_PID", "VOILA_BASE_URL"}  # variables that they give their kernels


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
    """Return a `bar` for a part of a longer step: it appears after QUIET seconds and leaves no line."""
    return bar(*things, delay=QUIET, leave=False, **options)


def is_watched() -> bool:
    """Return whether somebody would see a bar of this process: on a terminal, or in a live notebook.

    A log file, papermill and nbval see none; of several processes the first one draws.
    """
    terminal = bool(getattr(sys.stderr, "isatty", lambda: False)())
    return (terminal or ("ipykernel" in sys.modules and is_live())) and int(os.environ.get("RANK", 0)) == 0


def is_live() -> bool:
    """Return whether a person sits in front of this kernel.

    A notebook server (JupyterLab, Notebook) names its session in JPY_SESSION_NAME, VS Code leaves VSCODE_PID,
    Voilà VOILA_BASE_URL, and Colab's kernels have google.colab loaded. Papermill, nbval and nbconvert start
    kernels of their own, which have none of the four.
    """
    return bool(os.environ.keys() & SERVERS) or "google.colab" in sys.modules
