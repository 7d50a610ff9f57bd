"""Painted scenes: shapes from far to near (coordinates 0 to 1, y down), renderers, layouts of attributes."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Attributes = dict[str, str]
Rng = np.random.Generator
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
    """A filled polygon."""
    return Shape("polygon", points, role, sketch)


def rect(left: float, top: float, right: float, bottom: float, role: str, sketch: str = "line") -> Shape:
    """A filled rectangle between two corners."""
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)], role, sketch)


def ellipse(x: float, y: float, rx: float, ry: float, role: str, sketch: str = "line") -> Shape:
    """An upright ellipse around (x, y)."""
    return Shape("ellipse", [(x - rx, y - ry), (x + rx, y + ry)], role, sketch)


def line(points: list[Point], role: str, width: float, sketch: str = "ink") -> Shape:
    """A line through points; width: a fraction of the side of the image."""
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


# Layouts: each turns attributes and chance into shapes.
def _sky(attributes: Attributes, rng: Rng, horizon: float, x: float, cloud: float | None = None) -> Shapes:
    """Sky with its light near `x`: sun (and a cloud near `cloud`), setting sun, or moon and stars."""
    time, x = attributes.get("time", "day"), x + rng.uniform(-0.05, 0.05)
    shapes = [band(0, horizon + 0.02, "sky")]
    if time == "sunset":
        return [*shapes, ellipse(x, horizon - rng.uniform(0, 0.06), 0.13, 0.13, "sun")]
    y = rng.uniform(0.14, 0.19)
    if time == "night":
        crescent = arc(x, y, 0.1, 0.1, 90, 270) + arc(x, y, 0.03, 0.1, 270, 90)
        crescent = turn(crescent, (x, y), rng.uniform(-60, -30))
        stars = [(rng.uniform(0.04, 0.96), rng.uniform(0.04, 0.8 * horizon)) for _ in range(6)]
        shapes += [ellipse(*star, 0.014, 0.014, "moon", "ink") for star in stars]
        return [*shapes, polygon(crescent, "moon")]
    shapes.append(ellipse(x, y, 0.09, 0.09, "sun"))
    if cloud is not None:
        x, y, r = cloud + rng.uniform(-0.08, 0.08), rng.uniform(0.16, 0.24), rng.uniform(0.05, 0.06)
        puffs = arc(x - 1.7 * r, y, r, r, 90, 290) + arc(x, y - 0.5 * r, 1.4 * r, 1.3 * r, 190, 350)
        shapes.append(polygon(puffs + arc(x + 1.7 * r, y, r, r, 250, 450), "cloud"))
    return shapes


def _ridge(rng: Rng, base: float, height: float, role: str) -> Shapes:
    """A rolling line of hills, above `base` by up to `height`, down to the bottom edge."""
    xs, phase = np.linspace(-0.1, 1.1, 13), rng.uniform(0, 2 * np.pi)
    ys = base - height * (0.5 + 0.5 * np.sin(phase + rng.uniform(3, 6) * xs))
    return [polygon([*zip(xs.tolist(), ys.tolist(), strict=True), (1.1, 1.1), (-0.1, 1.1)], role)]


def _house(rng: Rng, x: float, base: float, width: float) -> Shapes:
    """A house with its foot at (x, base)."""
    tall, half = width * rng.uniform(0.55, 0.68), width / 2
    top, ridge = base - tall, width * rng.uniform(0, 0.25)
    peak, eave = top - width * 0.45, half * 1.2
    roof = [(x - eave, top), (x - ridge, peak), (x + ridge, peak), (x + eave, top)]
    side = rng.choice((-1, 1)) * width * 0.22
    door, window = x + side, x - side
    return [
        rect(x - half, top - 0.01, x + half, base, "wall"),
        polygon(roof, "roof"),
        rect(door - width * 0.11, base - tall * 0.66, door + width * 0.11, base, "door", "ink"),
        rect(window - width * 0.14, base - tall * 0.72, window + width * 0.14, base - tall * 0.28, "window"),
    ]


def _tree(rng: Rng, x: float, base: float, height: float) -> Shapes:
    """A round tree with its foot at (x, base)."""
    crown = blob(x, base - height * 0.66, height * 0.34, height * 0.34, 7, 0.1, rng.uniform(0, 3))
    trunk = rect(x - height * 0.06, base - height * 0.5, x + height * 0.06, base, "trunk")
    return [trunk, polygon(crown, "tree")]


def _pine(rng: Rng, x: float, base: float, height: float) -> Shapes:
    half, foot = height * rng.uniform(0.26, 0.32), base - height * 0.14
    middle = base - height * 0.52
    outline = [(x, base - height), (x + half * 0.7, middle), (x + half * 0.35, middle), (x + half, foot),
               (x - half, foot), (x - half * 0.35, middle), (x - half * 0.7, middle)]  # fmt: skip
    return [rect(x - height * 0.06, foot, x + height * 0.06, base, "trunk", "ink"), polygon(outline, "pine")]


def _boat(x: float, base: float, width: float, lean: float) -> Shapes:
    """A sailing boat afloat at (x, base)."""
    half, top = width / 2, base - width * 1.15
    deck = base - width * 0.2
    hull = [(x - half, deck), (x + half * 1.1, deck), (x + half * 0.7, base), (x - half * 0.7, base)]
    boom, left, right = deck - width * 0.08, x - width * 0.04, x + width * 0.06
    main = [(left, top), (left, boom), (x - half * (1 - lean), boom)]
    jib = [(right, top + width * 0.15), (right, boom), (x + half, boom)]
    return [line([(x, top - 0.01), (x, deck)], "mast", max(width * 0.06, 0.02)), polygon(hull, "hull"),
            polygon(main, "sail"), polygon(jib, "sail")]  # fmt: skip


def _seascape(attributes: Attributes, rng: Rng) -> Shapes:
    count = {"one": 1, "two": 2, "three": 3}[attributes.get("count", "one")]
    horizon = rng.uniform(0.46, 0.56)
    shapes = [*_sky(attributes, rng, horizon, rng.choice((0.16, 0.84)), 0.5), band(horizon, 1, "sea")]
    for y in (0.68, 0.8, 0.92):
        x = rng.uniform(0, 0.7)
        shapes.append(line([(x, y), (x + rng.uniform(0.18, 0.3), y)], "wave", 0.024))
    scale, boats = {1: 0.5, 2: 0.36, 3: 0.26}[count], []
    for place in range(count):
        x = (place + 0.5) / count + rng.uniform(-0.02, 0.02) * (4 if count == 1 else 1)
        base, lean = horizon + rng.uniform(0.16, 0.34), rng.uniform(0, 0.2)
        boats += _boat(x, base, scale * rng.uniform(0.92, 1.08), lean)
    return shapes + (mirror(boats) if rng.random() < 0.5 else boats)


def _lighthouse(attributes: Attributes, rng: Rng) -> Shapes:
    horizon, x = rng.uniform(0.58, 0.66), rng.uniform(0.62, 0.72)
    base, top, half = rng.uniform(0.76, 0.8), rng.uniform(0.2, 0.25), rng.uniform(0.1, 0.12)
    shapes = [*_sky(attributes, rng, horizon, 0.2), band(horizon, 1, "sea")]
    shapes += [line([(left, y), (left + 0.2, y)], "wave", 0.024) for left, y in ((0.04, 0.78), (0.2, 0.9))]
    if attributes.get("time") == "night":
        shapes.append(polygon([(x, top - 0.05), (-0.1, top + 0.08), (-0.1, top + 0.32)], "lamp", "hide"))
    rock = [(x - 0.34, 1.1), (x - 0.26, 0.86), (x - 0.17, base - 0.02), (x + 0.16, base - 0.03)]
    shapes.append(polygon([*rock, (x + 0.3, 0.88), (x + 0.4, 1.1)], "rock"))
    for stripe in range(5):
        upper, lower = (half * (0.62 + 0.38 * step / 5) for step in (stripe, stripe + 1))
        y, below = (top + (base - top) * step / 5 for step in (stripe, stripe + 1))
        points = [(x - upper, y), (x + upper, y), (x + lower, below), (x - lower, below)]
        shapes.append(polygon(points, "white" if stripe % 2 else "stripe"))
    room = half * 0.5
    shapes.append(rect(x - room, top - 0.1, x + room, top, "lamp"))
    shapes.append(rect(x - half * 0.8, top - 0.01, x + half * 0.8, top + 0.02, "mast", "ink"))
    roof = [(x - room * 1.3, top - 0.1), (x, top - 0.19), (x + room * 1.3, top - 0.1)]
    shapes.append(polygon(roof, "stripe"))
    return mirror(shapes) if rng.random() < 0.5 else shapes


def _mountain(attributes: Attributes, rng: Rng) -> Shapes:
    horizon, x, peak = rng.uniform(0.62, 0.68), rng.uniform(0.52, 0.66), rng.uniform(0.1, 0.18)
    half, slope = rng.uniform(0.38, 0.46), rng.uniform(0.3, 0.36)
    far, foot = rng.uniform(0.14, 0.24), horizon + 0.05
    shapes = _sky(attributes, rng, horizon, 0.14)
    shapes.append(polygon([(far - 0.36, foot), (far, rng.uniform(0.34, 0.42)), (far + 0.36, foot)], "far"))
    shapes.append(polygon([(x - half, foot), (x, peak), (x + half, foot)], "mountain"))
    cap = [(0, 0), (1, 1), (0.4, 0.72), (0, 1.15), (-0.4, 0.72), (-1, 1)]  # in its half width and height
    snow = [(x + dx * half * slope, peak + dy * (foot - peak) * slope) for dx, dy in cap]
    shapes.append(polygon(snow, "snow"))
    shapes += _ridge(rng, horizon + 0.06, 0.06, "land")
    house = attributes.get("house") == "yes"
    places = (0.08, 0.24, 0.4) if house else (0.1, 0.3, 0.72, 0.9)
    for place in places:
        x, base = place + rng.uniform(-0.03, 0.03), rng.uniform(0.86, 0.97)
        shapes += _pine(rng, x, base, rng.uniform(0.26, 0.34))
    if house:
        shapes += _house(rng, rng.uniform(0.7, 0.76), rng.uniform(0.88, 0.93), rng.uniform(0.3, 0.34))
    return mirror(shapes) if rng.random() < 0.5 else shapes


def _village(attributes: Attributes, rng: Rng) -> Shapes:
    horizon, x = rng.uniform(0.5, 0.56), rng.uniform(0.38, 0.56)
    shapes = [*_sky(attributes, rng, horizon, 0.84), *_ridge(rng, horizon + 0.02, 0.1, "hill")]
    shapes += _ridge(rng, 0.7, 0.05, "land")
    top, half = rng.uniform(0.32, 0.4), rng.uniform(0.075, 0.095)
    spire = [(x - half * 1.25, top), (x, top - rng.uniform(0.22, 0.28)), (x + half * 1.25, top)]
    shapes += [rect(x - half, top, x + half, 0.76, "wall"), polygon(spire, "roof")]
    shapes.append(rect(x - half * 0.4, top + 0.07, x + half * 0.4, top + 0.17, "window", "ink"))
    near = ((0.34, 0.94), (0.7, 0.96)) if rng.random() < 0.6 else ((0.5, 0.95),)
    for place, base in ((0.15, 0.74), (0.8, 0.76), *near):
        width = rng.uniform(0.25, 0.29) * (1.15 if base > 0.9 else 1)
        shapes += _house(rng, place + rng.uniform(-0.04, 0.04), base + rng.uniform(-0.03, 0.02), width)
    return mirror(shapes) if rng.random() < 0.5 else shapes


def _single_house(attributes: Attributes, rng: Rng) -> Shapes:
    horizon, x = rng.uniform(0.56, 0.64), rng.uniform(0.6, 0.66)
    shapes = [*_sky(attributes, rng, horizon, 0.42, 0.86), *_ridge(rng, horizon + 0.02, 0.06, "hill")]
    shapes += _ridge(rng, 0.74, 0.04, "land")
    base = rng.uniform(0.84, 0.9)
    shapes += _house(rng, x, base, rng.uniform(0.48, 0.54))
    shapes += _tree(rng, rng.uniform(0.16, 0.2), base + rng.uniform(-0.04, 0.04), rng.uniform(0.52, 0.62))
    return mirror(shapes) if rng.random() < 0.5 else shapes


def _field(attributes: Attributes, rng: Rng) -> Shapes:
    horizon, x = rng.uniform(0.48, 0.55), rng.uniform(0.35, 0.65)
    shapes = [*_sky(attributes, rng, horizon, 0.27, 0.7), band(horizon, 1, "land")]
    rows, shift = 7, rng.uniform(-0.1, 0.1)
    for row in range(rows):
        near, far = (row - rows / 2) * 0.42 + shift, (row - rows / 2) * 0.07
        points = [(x + far, horizon), (x + far + 0.035, horizon), (x + near + 0.21, 1.05), (x + near, 1.05)]
        shapes.append(polygon(points, "furrow"))
    house = attributes.get("house") == "yes"
    for place in (0.12, 0.45) if house else (0.12, 0.48, 0.84)[: 2 + rng.integers(2)]:
        x, base = place + rng.uniform(-0.05, 0.05), horizon + rng.uniform(0.04, 0.1)
        shapes += _tree(rng, x, base, rng.uniform(0.3, 0.36))
    if house:
        x, base = rng.uniform(0.74, 0.8), horizon + rng.uniform(0.06, 0.1)
        shapes += _house(rng, x, base, rng.uniform(0.3, 0.34))
    return mirror(shapes) if rng.random() < 0.5 else shapes


def _bridge(attributes: Attributes, rng: Rng) -> Shapes:
    horizon, arches = rng.uniform(0.44, 0.5), int(rng.integers(2, 4))
    shapes = [*_sky(attributes, rng, horizon, 0.16, 0.5), *_ridge(rng, horizon + 0.02, 0.06, "hill")]
    if attributes.get("house") == "yes":
        shapes += _house(rng, rng.uniform(0.73, 0.79), rng.uniform(0.49, 0.52), rng.uniform(0.28, 0.32))
    foot, deck, rise = rng.uniform(0.78, 0.82), rng.uniform(0.56, 0.6), rng.uniform(0.12, 0.18)
    shapes.append(rect(-0.1, foot - 0.08, 1.1, 1.1, "river"))
    road = arc(0.5, deck, 0.62, rise, 180, 360)
    shapes.append(polygon([*road, (1.12, foot), (-0.12, foot)], "stone"))
    pitch = {2: 0.37, 3: 0.28}[arches]
    for place in range(arches):
        x, half = 0.5 + pitch * (place - (arches - 1) / 2), pitch * 0.4
        height = (foot - deck + rise * (0.9 if abs(x - 0.5) < 0.2 else 0.7)) * 0.72
        shapes.append(polygon(arc(x, foot, half, height, 180, 360), "arch", "tone"))
    shapes.append(line([(x, y + 0.045) for x, y in road], "joint", 0.024))
    bank = [(-0.1, foot - 0.06), (0.06, foot - 0.04), (0.18, 1.1), (-0.1, 1.1)]
    shapes += [polygon(bank, "land"), polygon([(1 - x, y) for x, y in bank], "land")]
    shapes += [line([(x, y), (x + 0.22, y)], "wave", 0.024) for x, y in ((0.34, 0.88), (0.5, 0.95))]
    return mirror(shapes) if rng.random() < 0.5 else shapes


def _room(rng: Rng) -> Shapes:
    edge = rng.uniform(0.6, 0.68)
    return [band(0, edge + 0.02, "backdrop"), band(edge, 1, "table")]


def _fruit_piece(kind: str, x: float, y: float, r: float, rng: Rng) -> Shapes:
    """One fruit of radius `r` around (x, y); grapes come as a bunch."""
    if kind == "grapes":
        spots = [(-0.7, -0.5), (0, -0.6), (0.7, -0.5), (-0.36, 0.05), (0.36, 0.05), (0, 0.6)]
        bunch = [(x + r * dx, y + r * dy) for dx, dy in spots]
        fruit = [ellipse(*spot, r * 0.48, r * 0.48, "fruit") for spot in bunch]
        small = r * 0.16
        shines = [ellipse(px - r * 0.1, py - r * 0.12, small, small, "shine", "hide") for px, py in bunch]
        return fruit + shines
    if kind == "lemons":
        upper, lower = arc(x, y, r, r * 0.8, 200, 340, 9), arc(x, y, r, r * 0.8, 20, 160, 9)
        shapes = [polygon([(x - r * 1.3, y), *upper, (x + r * 1.3, y), *lower], "fruit")]
    elif kind == "pears":
        belly = arc(x, y + r * 0.2, r * 0.9, r * 0.85, -20, 200)
        tip = arc(x, y - r * 0.8, r * 0.42, r * 0.45, 190, 350, 8)
        stalk = line([(x, y - r * 1.2), (x + r * 0.2, y - r * 1.6)], "stalk", 0.02)
        shapes = [polygon(belly + tip, "fruit"), stalk]
    else:
        shapes = [ellipse(x, y, r, r, "fruit")]
        stalk = [line([(x, y - r * 0.7), (x + r * 0.25, y - r * 1.3)], "stalk", 0.022)]
        shapes += stalk if kind == "apples" else []
    return [*shapes, ellipse(x - r * 0.35, y - r * 0.3, r * 0.25, r * 0.22, "shine", "hide")]


def _fruit(attributes: Attributes, rng: Rng) -> Shapes:
    x, rim, half = rng.uniform(0.46, 0.54), rng.uniform(0.5, 0.55), rng.uniform(0.31, 0.36)
    kind, shapes, r = attributes.get("fruit", "apples"), _room(rng), rng.uniform(0.115, 0.13)
    depth = rng.uniform(0.26, 0.32)
    shapes.append(ellipse(x + 0.03, rim + depth + 0.01, half * 0.8, 0.05, "shadow", "hide"))
    heap = [(-0.5, -0.2), (0.5, -0.2)] if rng.random() < 0.5 else [(0, -0.2)]
    for across, up in [*heap, (-1, 0), (1, 0), (0, 0)]:
        y = rim - 0.04 + up * rng.uniform(0.85, 1.0)
        shapes += _fruit_piece(kind, x + across * half * 0.6 + rng.uniform(-0.02, 0.02), y, r, rng)
    foot = rect(x - half * 0.4, rim + depth - 0.04, x + half * 0.4, rim + depth + 0.02, "bowl")
    return [*shapes, foot, polygon(arc(x, rim, half, depth, 0, 180, 20), "bowl"),
            rect(x - half * 1.06, rim - 0.03, x + half * 1.06, rim + 0.03, "bowl")]  # fmt: skip


def _flowers(attributes: Attributes, rng: Rng) -> Shapes:
    x, top, half = rng.uniform(0.46, 0.54), rng.uniform(0.58, 0.62), rng.uniform(0.13, 0.16)
    shapes, base = _room(rng), rng.uniform(0.9, 0.94)
    shapes.append(ellipse(x + 0.03, base, half * 1.2, 0.035, "shadow", "hide"))
    heads = [(-0.25, 0.4), (0.25, 0.38), (-0.12, 0.2), (0.14, 0.17), (0, 0.4)][: 3 + int(rng.integers(3))]
    heads = [(x + dx + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02)) for dx, y in heads]
    shapes += [line([(x, top + 0.02), head], "stem", 0.028) for head in heads]
    for head in heads:
        r = rng.uniform(0.115, 0.135)
        shapes.append(polygon(blob(*head, r, r, 6, 0.16, rng.uniform(0, 3)), "flower"))
        shapes.append(ellipse(*head, r * 0.36, r * 0.36, "heart"))
    neck = half * rng.uniform(0.5, 0.7)
    belly = arc(x, (top + base) / 2 + 0.04, half, (base - top) / 2 - 0.01, -40, 80, 10)
    left = [(2 * x - px, py) for px, py in reversed(belly)]
    return [*shapes, polygon([(x - neck, top), (x + neck, top), *belly, *left], "vase")]


def _bottle(attributes: Attributes, rng: Rng) -> Shapes:
    x, half, base = rng.uniform(0.26, 0.34), rng.uniform(0.11, 0.13), rng.uniform(0.86, 0.9)
    top, neck, shapes = rng.uniform(0.1, 0.16), rng.uniform(0.04, 0.05), _room(rng)
    shoulder = top + rng.uniform(0.22, 0.28)
    shapes.append(ellipse(x + 0.04, base, half * 1.3, 0.035, "shadow", "hide"))
    right = [(neck, top), (neck, shoulder - 0.06), (half, shoulder + 0.06), (half, base)]
    outline = [(x + dx, y) for dx, y in right] + [(x - dx, y) for dx, y in reversed(right)]
    shapes.append(polygon(outline, "glass"))
    shapes.append(rect(x - half, shoulder + 0.14, x + half, shoulder + 0.3, "label"))
    r = rng.uniform(0.115, 0.13)
    for place, up in ((0.72, 0.17), (0.58, 0), (0.86, 0.01))[int(rng.integers(2)) :]:
        y = base - r * 0.8 - up + rng.uniform(-0.02, 0.02)
        shapes += _fruit_piece(attributes.get("fruit", "apples"), place + rng.uniform(-0.02, 0.02), y, r, rng)
    return mirror(shapes) if rng.random() < 0.5 else shapes


def _portrait(attributes: Attributes, rng: Rng) -> Shapes:
    hat, beard = attributes.get("hat") == "yes", attributes.get("beard") == "yes"
    x, y = rng.uniform(0.46, 0.54), rng.uniform(0.4, 0.43) + 0.06 * hat
    rx, ry, long = rng.uniform(0.19, 0.21), rng.uniform(0.25, 0.28), rng.random() < (0.2 if beard else 0.6)
    shoulder, chin = rng.uniform(0.36, 0.44), y + ry
    hair = arc(x, y - 0.04, rx * 1.25, ry * 1.08, 170, 370)
    if long or hat:  # side locks, so that a hat never hides the colour of the hair
        length = chin + 0.06 if long else y + ry * 0.3
        hair += [(x + rx * 1.35, length), (x - rx * 1.35, length)]
    shapes = [band(0, 1, "backdrop"), polygon(hair, "hair")]
    shapes.append(rect(x - rx * 0.45, y + ry * 0.6, x + rx * 0.45, chin + 0.1, "skin"))
    body = arc(x, chin + 0.22, shoulder, 0.19, 180, 360)
    shapes.append(polygon([*body, (x + shoulder, 1.1), (x - shoulder, 1.1)], "clothes"))
    shapes.append(ellipse(x, y, rx, ry, "skin"))
    if beard:
        jaw = arc(x, y + ry * 0.12, rx * 1.05, ry * 1.1, 8, 172, 18)
        lip = [(x - rx * 0.5, y + ry * 0.38), (x, y + ry * 0.34), (x + rx * 0.5, y + ry * 0.38)]
        shapes.append(polygon([*jaw, *lip], "hair", "tone"))
    shapes += _face(x, y, rx, ry, rng)
    shapes.append(polygon(arc(x, y, rx * 1.02, ry * 1.02, 214, 326), "hair"))
    if hat:
        brim, tall, top = y - ry * 0.5, rng.uniform(0.2, 0.26), rx * rng.uniform(0.7, 0.9)
        crown = [(x - rx, brim), (x - top, brim - tall), (x + top, brim - tall), (x + rx, brim)]
        shapes += [polygon(crown, "hat"), ellipse(x, brim, rx * 1.65, 0.045, "hat")]
    return shapes


def _face(x: float, y: float, rx: float, ry: float, rng: Rng) -> Shapes:
    shapes, gap, level = [], rx * rng.uniform(0.42, 0.48), y - ry * 0.08
    for side in (-gap, gap):
        eye, brow = x + side, level - 0.075
        shapes.append(ellipse(eye, level, 0.056, 0.042, "white", "hide"))
        shapes.append(ellipse(eye, level, 0.034, 0.04, "eye", "ink"))
        shapes.append(line([(eye - 0.06, brow), (eye + 0.06, brow)], "eye", 0.022))
    nose, wide = rng.choice((-0.03, 0.03)), rx * rng.uniform(0.34, 0.44)
    shapes.append(line([(x, level + 0.02), (x + nose, y + ry * 0.28), (x, y + ry * 0.3)], "stalk", 0.018))
    return [*shapes, line([(x - wide, y + ry * 0.55), (x + wide, y + ry * 0.55)], "mouth", 0.036)]


DRAWERS = {
    "seascape": _seascape, "lighthouse": _lighthouse, "mountain": _mountain, "village": _village,
    "house": _single_house, "field": _field, "bridge": _bridge, "fruit": _fruit, "flowers": _flowers,
    "bottle": _bottle, "portrait": _portrait}  # fmt: skip
