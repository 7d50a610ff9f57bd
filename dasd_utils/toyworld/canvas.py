"""Shapes in unit coordinates (0 to 1, y downwards), and renderers that paint or ink them."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SCALE = 4  # supersampling: shapes are drawn this many times larger, then averaged
Point = tuple[float, float]
Colour = tuple[int, int, int]


class Shape(NamedTuple):
    """One shape; `sketch` says how a sketch shows it: "line" (edged), "ink", "tone" (grey) or "hide"."""

    kind: str  # "band" (full width, top to bottom), "polygon", "ellipse" (its bounding box) or "line"
    points: list[Point]
    role: str  # its name in the palette
    sketch: str = "line"
    width: float = 0.0  # of a line, as a fraction of the picture's side


Shapes = list[Shape]
Palette = dict[str, Colour]


def band(top: float, bottom: float, role: str) -> Shape:
    """A full-width area that fades from `role` to `role_low` where the palette has one."""
    return Shape("band", [(0, top), (1, bottom)], role)


def polygon(points: list[Point], role: str, sketch: str = "line") -> Shape:
    return Shape("polygon", points, role, sketch)


def rect(left: float, top: float, right: float, bottom: float, role: str, sketch: str = "line") -> Shape:
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)], role, sketch)


def ellipse(x: float, y: float, rx: float, ry: float, role: str, sketch: str = "line") -> Shape:
    """An upright ellipse around (x, y)."""
    return Shape("ellipse", [(x - rx, y - ry), (x + rx, y + ry)], role, sketch)


def line(points: list[Point], role: str, width: float, sketch: str = "ink") -> Shape:
    return Shape("line", points, role, sketch, width)


def arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, steps: int = 14) -> list[Point]:
    """Points on an ellipse from angle `start` to `stop`, in degrees clockwise from the right."""
    angle = np.radians(np.linspace(start, stop, steps))
    return list(zip((x + rx * np.cos(angle)).tolist(), (y + ry * np.sin(angle)).tolist(), strict=True))


def blob(x: float, y: float, rx: float, ry: float, lobes: int, depth: float, turn: float) -> list[Point]:
    """Points of an ellipse with round lobes, such as a tree crown; `depth` 0 is a plain ellipse."""
    angle = np.linspace(0, 2 * np.pi, 7 * lobes, endpoint=False)
    radius = 1 - depth + depth * np.abs(np.sin(lobes * angle / 2 + turn)) * 2
    xs, ys = x + rx * radius * np.cos(angle), y + ry * radius * np.sin(angle)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def turn(points: list[Point], centre: Point, degrees: float) -> list[Point]:
    """The points turned around `centre`, clockwise on the screen."""
    angle, (cx, cy) = np.radians(degrees), centre
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return [(cx + cos * (x - cx) - sin * (y - cy), cy + sin * (x - cx) + cos * (y - cy)) for x, y in points]


def mirror(shapes: Shapes) -> Shapes:
    """The same shapes with left and right exchanged."""
    flipped = []
    for shape in shapes:
        points = [(1 - x, y) for x, y in shape.points]
        if shape.kind in ("ellipse", "band"):  # a bounding box keeps its smaller x first
            points = [(points[1][0], points[0][1]), (points[0][0], points[1][1])]
        flipped.append(shape._replace(points=points))
    return flipped


def paint(shapes: Shapes, palette: Palette, size: int, outline: float = 0.0) -> Image.Image:
    """Paint the shapes from far to near; `outline` is the width of dark outlines in output pixels."""
    image = Image.new("RGB", (SCALE * size, SCALE * size))
    pen = ImageDraw.Draw(image)
    edge = palette["outline"] if outline else None
    for shape in shapes:
        colour = palette[shape.role]
        if shape.kind == "band":
            top, bottom = (round(y * image.height) for _, y in shape.points)
            low = palette.get(shape.role + "_low", colour)  # where a band fades to
            rows = Image.fromarray(np.linspace(colour, low, bottom - top).astype(np.uint8)[:, None])
            image.paste(rows.resize((image.width, bottom - top), Image.Resampling.NEAREST), (0, top))
        else:
            drawn = edge if shape.sketch in ("line", "tone") else None
            _stroke(pen, shape, colour, drawn, outline, size)
    return image.reduce(SCALE)


def ink(shapes: Shapes, size: int, dark: Colour, paper: Colour, width: float) -> Image.Image:
    """Draw the shapes with `dark` lines of `width` output pixels and with lighter paper inside them."""
    image = Image.new("RGB", (SCALE * size, SCALE * size), paper)
    pen = ImageDraw.Draw(image)
    tone = mix(paper, dark, 0.3)
    fills = {"line": mix(paper, (255, 255, 255), 0.6), "ink": dark, "tone": tone}
    for shape in shapes:
        if shape.kind == "band":
            top = shape.points[0][1]
            horizon = line([(-0.1, top), (1.1, top)], shape.role, 0)
            pen.rectangle((0, top * SCALE * size, SCALE * size, shape.points[1][1] * SCALE * size), paper)
            shape = horizon if top > 0 else shape._replace(sketch="hide")
        if shape.kind == "line":
            shape = shape._replace(width=max(min(shape.width, 2 * width / size), width / size))
        if shape.sketch != "hide":
            _stroke(pen, shape, fills[shape.sketch], dark, width, size)
    return image.reduce(SCALE)


def _stroke(
    pen: ImageDraw.ImageDraw, shape: Shape, fill: Colour, edge: Colour | None, width: float, size: int
):
    """Draw one shape at SCALE times the output size; `edge` is its outline colour."""
    side = SCALE * size
    pixels = [(x * side, y * side) for x, y in shape.points]
    border = round(width * SCALE) if edge else 0
    if shape.kind == "ellipse":
        pen.ellipse(pixels, fill, edge if border else None, border or 1)
    elif shape.kind == "line":
        pen.line(pixels, fill, max(round(shape.width * side), 1), joint="curve")
    else:
        pen.polygon(pixels, fill)
        if border:
            pen.line([*pixels, *pixels[:2]], edge, border, joint="curve")


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """The colour `amount` (0 to 1) of the way from `first` to `second`."""
    return tuple(round(a + amount * (b - a)) for a, b in zip(first, second, strict=True))


def distinct(rng: np.random.Generator, options: list[Colour], avoid: list[Colour], distance: float = 110):
    """A colour at least `distance` (RGB units) from every one in `avoid`, or else the farthest option."""
    gaps = np.linalg.norm(np.subtract(np.array(options)[:, None], np.array(avoid)[None]), axis=-1).min(axis=1)
    far = np.flatnonzero(gaps >= distance)
    return options[int(far[rng.integers(len(far))] if len(far) else gaps.argmax())]
