"""Whether a person sits in front of the kernel, and what is put on the page."""

import io
import sys

import pytest
from PIL import Image

from dasd_utils.runtime import bars


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Take away what a notebook server around the tests would have left."""
    for name in bars.SERVERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)


def test_without_a_server_nobody_is_there():
    assert not bars.is_live()


@pytest.mark.parametrize("name", ["JPY_SESSION_NAME", "VSCODE_PID", "VOILA_BASE_URL"])
def test_servers_name_themselves(monkeypatch, name):
    monkeypatch.setenv(name, "notebooks/04_sampling.ipynb")
    assert bars.is_live()


def test_colab_is_known_by_its_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert bars.is_live()


def test_a_note_is_plain_text():
    assert "&lt;b&gt;" in bars.note("<b>") and "<b>" not in bars.note("<b>")


def test_png_keeps_the_pixels():
    image = Image.new("RGB", (3, 2), "red")
    assert Image.open(io.BytesIO(bars.png_widget(image))).tobytes() == image.tobytes()
