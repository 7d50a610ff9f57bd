"""What a page with a person in front of it needs: whether there is one, and pictures for its widgets."""

from __future__ import annotations

import html
import io
import os
import sys

from PIL import Image

SERVERS = {"JPY_SESSION_NAME", "VSCODE_PID", "VOILA_BASE_URL"}  # variables that they give their kernels
RED = "#c0392b"  # of what went wrong


def is_live() -> bool:
    """Return whether a person sits in front of this kernel.

    A notebook server (JupyterLab, Notebook) names its session in JPY_SESSION_NAME, VS Code leaves VSCODE_PID,
    Voilà VOILA_BASE_URL, and Colab's kernels have google.colab loaded. Papermill, nbval and nbconvert start
    kernels of their own, which have none of the four.
    """
    return bool(os.environ.keys() & SERVERS) or "google.colab" in sys.modules


def png(image: Image.Image) -> bytes:
    """Return the image as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def note(text: str, colour: str = "inherit") -> str:
    """Return a line of plain text as HTML that a screen reader speaks when it changes."""
    return f'<div role="status" style="line-height:1.4;color:{colour}">{html.escape(text)}</div>'
