"""The picture of the method: how DASD trains and how it samples, drawn from boxes and arrows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from matplotlib.path import Path
from PIL import Image

from dasd_utils import figures

WIDTH, HEIGHT = 120, 74  # units of the drawing; ten are an inch
FILLS = {  # kind -> fill, edge
    "frozen": ("#e4eaf0", "#8795a3"),
    "trained": ("#ffdf9e", "#c98500"),
    "data": ("#ffffff", "#8795a3"),
    "loss": ("#f6e1ec", "#b35f8d"),
    "panel": ("#f8fafb", "#e3e8ed"),
}
TARGET, SOURCE = "#0072b2", "#009e73"
Images = Mapping[str, Image.Image]


@figures.style()
def method_diagram(images: Images | None = None) -> figures.Figure:
    """Return the diagram of the method.

    images: small pictures to show, any of "target", "source" and "result"; plain icons for the others.
    """
    drawing = _Drawing()
    images = images or {}
    _data(drawing, images)
    _network(drawing)
    _losses(drawing)
    _sampling(drawing, images)
    return drawing.figure


class _Drawing:
    """Boxes, arrows and text on one axes without ticks."""

    def __init__(self) -> None:
        self.figure = figures.Figure(figsize=(WIDTH / 10, HEIGHT / 10))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.set_axis_off()

    def text(self, x: float, y: float, text: str, **settings: Any) -> None:
        """Write text centred at a point."""
        plain = {"ha": "center", "va": "center", "size": 9, "linespacing": 1.25}
        self.axes.text(x, y, text, **plain | settings)

    def note(self, x: float, y: float, text: str, **settings: Any) -> None:
        """Write a small remark."""
        self.text(x, y, text, **{"size": 7.5, "color": figures.MUTED} | settings)

    def box(self, place: Sequence[float], kind: str, text: str = "", **settings: Any) -> None:
        """Draw a rounded box at (left, bottom, width, height) with text in its middle."""
        (x, y, width, height), (fill, edge) = place, FILLS[kind]
        shape = "round,pad=0,rounding_size=0.8"
        colors = {"facecolor": fill, "edgecolor": edge, "linewidth": 1}
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, **colors))
        self.text(x + width / 2, y + height / 2, text, **settings)

    def arrow(self, *points: tuple[float, float], color: str = figures.MUTED) -> None:
        """Draw an arrow along straight pieces."""
        line = {"color": color, "linewidth": 1.5, "joinstyle": "round", "capstyle": "butt"}
        head = "-|>,head_length=4,head_width=2"
        self.axes.add_patch(FancyArrowPatch(path=Path(points), arrowstyle=head, fill=False, **line))

    def picture(
        self, x: float, y: float, image: Image.Image | None, color: str, side: float = 9, cards: int = 1
    ) -> None:
        """Draw the image, or a plain icon of one, on the uppermost of some cards."""
        for shift in 0.6 * np.arange(cards)[::-1]:
            corner = (x + shift, y + shift)
            self.axes.add_patch(Rectangle(corner, side, side, facecolor="white", edgecolor=color))
        if image is not None:
            edges = (x + 0.3, x + side - 0.3, y + 0.3, y + side - 0.3)
            self.axes.imshow(
                np.asarray(image.convert("RGB")), extent=edges, interpolation="lanczos", zorder=2
            )
            self.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="auto")  # imshow moves them
            return
        hill = [(0.1, 0.12), (0.38, 0.55), (0.55, 0.32), (0.7, 0.48), (0.9, 0.12)]
        self.axes.add_patch(Polygon([(x + side * a, y + side * b) for a, b in hill], color=color, alpha=0.35))
        self.axes.add_patch(Circle((x + 0.72 * side, y + 0.74 * side), 0.1 * side, color=color, alpha=0.35))


def _data(drawing: _Drawing, images: Images) -> None:
    """Images become noisy latents."""
    _panel(drawing, 21, 73, "Training", "three target samples for each source sample, at the same timesteps")
    for x, kind in ((93, "frozen"), (105, "trained")):
        drawing.box((x, 69.4, 3, 2), kind)
        drawing.note(x + 3.8, 70.4, kind, ha="left", size=8.5)
    for y, name, color in ((46.3, "target", TARGET), (30.8, "source", SOURCE)):
        drawing.picture(4, y, images.get(name), color, cards=3)
        drawing.note(8.5, y - 1.6, f"{name} images", color=color)
        drawing.box((31.5, y + 2.2, 6.6, 5), "data", "$x_t$", size=11)
        for start, end in ((14.7, 17.8), (27.2, 31.3), (38.3, 45)):
            drawing.arrow((start, y + 4.7), (end, y + 4.7), color=color)
    drawing.box((18, 32, 9, 22.5), "frozen", "VAE\nencoder")
    drawing.note(22.5, 30.3, "latents cached once")
    drawing.note(34.8, 43.3, "noise\nadded")


def _network(drawing: _Drawing) -> None:
    """The UNet with its LoRA, whose source pass ends at the mid-block, and the text side above it."""
    drawing.box((4, 60.2, 23, 5.6), "data", "“<satellite> a village by a river”", size=8)
    drawing.box((31.5, 58, 22, 10), "frozen")
    drawing.text(42.5, 65.5, "Text encoder")
    drawing.box((33.5, 59.3, 18, 3.6), "trained", "one new row per token", size=7.5)
    drawing.arrow((27.2, 63), (31.3, 63))
    drawing.arrow((53.7, 63), (64, 63), (64, 48.2))
    for x in (52.2, 75.8):
        drawing.arrow((64, 57.5), (x, 57.5), (x, 51.6))
    drawing.note(65.3, 60.3, "cross-attention", ha="left")
    fill, edge = FILLS["frozen"]
    for x, sign in ((45.2, 1), (82.8, -1)):
        corners = [(0, 11), (13.8, 4.5), (13.8, -4.5), (0, -11)]
        points = [(x + sign * a, 43.3 + b) for a, b in corners]
        drawing.axes.add_patch(Polygon(points, facecolor=fill, edgecolor=edge, joinstyle="round"))
    drawing.box((60, 38.8, 8, 9), "frozen")
    for x, name in ((51.6, "UNet\ndown"), (64, "mid"), (76.4, "UNet\nup")):
        drawing.text(x, 45, name)
        drawing.box((x - 2.9, 40, 5.8, 2.4), "trained", "LoRA", size=7)


def _losses(drawing: _Drawing) -> None:
    """Predicted noise and the distance of mid-block features make the loss."""
    drawing.arrow((83, 43.3), (92.6, 43.3), color=TARGET)
    drawing.note(87.6, 45.9, "predicted\nnoise")
    drawing.box((93, 39.3, 22, 8), "loss", "Noise prediction\n$||\\epsilon-\\epsilon_\\theta||^2$", size=8.5)
    drawing.arrow((64, 38.6), (64, 27.2), (70.6, 27.2))
    drawing.note(62.8, 28.6, "mid-block features of both:\nthe pass of the source ends here", ha="right")
    drawing.box((71, 23.2, 17, 8), "loss")
    random = np.random.default_rng(4)
    for x, color in ((75, SOURCE), (78.4, TARGET)):
        points = np.array([x, 27.2]) + random.normal(size=(14, 2)) * (0.8, 1.1)
        drawing.axes.plot(*points.T, "o", color=color, markersize=3, alpha=0.75, markeredgewidth=0)
    drawing.text(84, 27.2, "MMD²")
    drawing.box((93, 23.2, 22, 8), "loss", "$L = L_{noise} + \\lambda\\,\\mathrm{MMD}^2$", size=10)
    drawing.arrow((104, 39.1), (104, 31.6))
    drawing.arrow((88.2, 27.2), (92.6, 27.2))


def _sampling(drawing: _Drawing, images: Images) -> None:
    """A prompt finds its domain, token and calibrated settings, and becomes an image."""
    _panel(drawing, 1, 19.5, "Sampling", "the prompt finds its domain, and the domain its token and settings")
    drawing.box((4, 5.5, 19, 5.6), "data", "“aerial view of airport”", size=8)
    drawing.box((28, 4.3, 13, 8), "frozen", "Prompt\nclassifier")
    drawing.box((46, 5.2, 19, 6.2), "data", "“<satellite> aerial\nview of airport”", size=8)
    drawing.box((70, 3, 16, 10.6), "frozen")
    drawing.text(75, 11.3, "UNet")
    drawing.box((78.2, 10.1, 5.8, 2.4), "trained", "LoRA", size=7)
    drawing.note(78, 6.3, "guidance, steps and\nscheduler of the domain", size=7)
    drawing.box((91.5, 4.3, 9, 8), "frozen", "VAE\ndecoder")
    drawing.picture(106, 3.8, images.get("result"), TARGET)
    for start, end in ((23.2, 27.6), (41.2, 45.6), (65.2, 69.6), (86.2, 91.1), (100.7, 105.5)):
        drawing.arrow((start, 8.3), (end, 8.3))


def _panel(drawing: _Drawing, bottom: float, top: float, title: str, text: str) -> None:
    drawing.box((1, bottom, WIDTH - 2, top - bottom), "panel")
    drawing.text(4, top - 2.6, title, weight="bold", size=12, ha="left")
    drawing.note(15.5, top - 2.7, text, ha="left", size=8.5)
