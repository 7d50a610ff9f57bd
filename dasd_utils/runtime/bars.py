"""One bar for every long step: what is done, how many there are, the time left, on standard error."""

from __future__ import annotations

import html
import io
import os
import sys
from collections.abc import Iterable
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

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


def short_bar(things: Iterable[Any] | None = None, what: str | None = None, total: int | None = None,
          **options: Any) -> tqdm:  # fmt: skip
    """Return a bar that appears after QUIET seconds and leaves no line behind: of a part of a longer step."""
    return bar(things, what, total, delay=QUIET, leave=False, **options)


def _terminal() -> bool:
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


# What a page with a person in front of it needs: whether there is one, and pictures for its widgets.


SERVERS = {"JPY_SESSION_NAME", "VSCODE_PID", "VOILA_BASE_URL"}  # variables that they give their kernels
RED = "#c0392b"  # of what went wrong


def is_live() -> bool:
    """Return whether a person sits in front of this kernel.

    A notebook server (JupyterLab, Notebook) names its session in JPY_SESSION_NAME, VS Code leaves VSCODE_PID,
    Voilà VOILA_BASE_URL, and Colab's kernels have google.colab loaded. Papermill, nbval and nbconvert start
    kernels of their own, which have none of the four.
    """
    return bool(os.environ.keys() & SERVERS) or "google.colab" in sys.modules


def png_widget(image: Image.Image) -> bytes:
    """Return the image as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def note(text: str, colour: str = "inherit") -> str:
    """Return a line of plain text as HTML that a screen reader speaks when it changes."""
    return f'<div role="status" style="line-height:1.4;color:{colour}">{html.escape(text)}</div>'
