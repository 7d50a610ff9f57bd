"""Frontal chest x-rays of the toy world: grey fields on a grid, in the coordinates of a posed patient.

Body coordinates: x to the right, y down, the middle of the chest at (0, 0), one unit about half a picture.
The patient faces us: the patient's left is the picture's right.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SCENE_SHARES = {"normal": 0.22, "pneumonia": 0.18, "effusion": 0.16, "enlarged heart": 0.12,
                "pneumothorax": 0.11, "nodule": 0.11, "pacemaker": 0.1}  # fmt: skip
ATTRIBUTES = {
    "scene": tuple(SCENE_SHARES),
    "side": ("left", "right", "both"),  # pneumonia and effusion; pneumothorax and nodule are never on both
    "severity": ("mild", "severe"),  # pneumonia and effusion
    "build": ("adult", "child"),
}
SIDES = {"left": ("left",), "right": ("right",), "both": ("left", "right")}
SIGN = {"left": 1.0, "right": -1.0}  # patient's left = positive x = right half of the picture
LETTERS = {  # strokes of L and R, 4 units high
    "left": ((0, 0), (0, 4), (2.4, 4)),
    "right": ((0, 4), (0, 0), (2.0, 0.2), (2.4, 1.1), (2.0, 2), (0, 2.1), (0.8, 2.1), (2.6, 4)),
}
Field = np.ndarray  # float32, (grid, grid)
Point = tuple[float, float]


@dataclass(frozen=True)
class Chest:
    """Coordinates and proportions of one patient; `air` is filled when the lungs are drawn."""

    x: Field
    y: Field
    child: bool
    wall: float  # |x| of the outer lung edge
    apex: float  # y of the lung tops
    base: float  # y of the diaphragm domes
    tissue: float  # brightness of soft tissue, 0 to 1
    air: dict[str, Field]  # side -> 1 where that lung is seen


def sample_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Attributes of one x-ray; side and severity are absent where they do not apply."""
    scene = ATTRIBUTES["scene"][rng.choice(len(SCENE_SHARES), p=list(SCENE_SHARES.values()))]
    attributes = {"scene": scene}
    if scene in ("pneumonia", "effusion"):
        attributes["side"] = ATTRIBUTES["side"][rng.integers(3)]
        attributes["severity"] = ATTRIBUTES["severity"][rng.integers(2)]
    elif scene in ("pneumothorax", "nodule"):
        attributes["side"] = ATTRIBUTES["side"][rng.integers(2)]
    attributes["build"] = "child" if rng.random() < 0.25 else "adult"
    return attributes


def draw(attributes: dict[str, str], rng: np.random.Generator, size: int) -> Image.Image:
    """Render one x-ray as a grey RGB picture of size x size pixels."""
    chest = _sample_chest(attributes["build"] == "child", rng, size * 3 // 2)
    image = _soft_tissue(chest, rng)
    image = _lungs(image, chest, rng)
    image = _bones(image, chest, rng)
    scene = attributes["scene"]
    if scene in IN_LUNG:
        image = IN_LUNG[scene](image, chest, attributes, rng)
    image = _heart(image, chest, scene == "enlarged heart", rng)
    if scene in ON_TOP:
        image = ON_TOP[scene](image, chest, attributes, rng)
    film = Image.fromarray(_expose(image, rng))
    _mark_side(film, rng)
    return film.resize((size, size), Image.Resampling.BICUBIC).convert("RGB")


@lru_cache(maxsize=4)
def _grid(n: int) -> tuple[Field, Field]:
    """Picture coordinates from -1 to 1, x to the right and y down."""
    line = ((np.arange(n) + 0.5) / n * 2 - 1).astype(np.float32)
    return tuple(np.meshgrid(line, line))


def _sample_chest(child: bool, rng: np.random.Generator, n: int) -> Chest:
    tilt = np.radians(rng.uniform(-8, 8))
    zoom = rng.uniform(0.88, 1.0) if child else rng.uniform(0.88, 1.2)
    shift_x, shift_y = rng.uniform(-0.12, 0.12), rng.uniform(-0.06, 0.1) + (0.12 if child else 0.02)
    cos, sin = float(np.cos(tilt) / zoom), float(np.sin(tilt) / zoom)
    px, py = _grid(n)
    px, py = px - np.float32(shift_x), py - np.float32(shift_y)
    return Chest(
        x=cos * px + sin * py,
        y=cos * py - sin * px,
        child=child,
        wall=rng.uniform(0.5, 0.56) if child else rng.uniform(0.56, 0.68),
        apex=rng.uniform(-0.52, -0.46) if child else rng.uniform(-0.74, -0.64),
        base=rng.uniform(0.24, 0.32) if child else rng.uniform(0.36, 0.52),
        tissue=rng.uniform(0.64, 0.74),
        air={},
    )


def _step(distance: Field, width: float) -> Field:
    """0 outside, 1 inside, a ramp of the given width at distance 0."""
    return np.clip(distance * (1 / width) + 0.5, 0, 1)


def _blend(image: Field, value: float | Field, mask: Field) -> Field:
    return image + mask * (value - image)


def _blob(x: Field, y: Field, centre: Point, rx: float, ry: float) -> Field:
    """Squared elliptical radius: 1 on the ellipse with radii rx and ry around the centre."""
    return ((x - centre[0]) * (1 / rx)) ** 2 + ((y - centre[1]) * (1 / ry)) ** 2


def _segment(x: Field, y: Field, start: Point, end: Point) -> Field:
    """Distance of every grid point to a line segment."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    x, y = x - start[0], y - start[1]
    along = np.clip((x * dx + y * dy) * (1 / (dx * dx + dy * dy)), 0, 1)
    return np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2)


def _in_lung(chest: Chest, side: str, across: float, down: float) -> Point:
    """Body coordinates of a lung point: across 0 (spine) to 1 (wall), down 0 (apex) to 1 (base)."""
    return SIGN[side] * chest.wall * across, chest.apex + (chest.base - chest.apex) * down


def _soft_noise(rng: np.random.Generator, n: int, cells: int, strength: float) -> Field:
    """Smooth noise of a few cells across, n x n, with the given standard deviation at the cells."""
    coarse = Image.fromarray(rng.normal(0, strength, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((n, n), Image.Resampling.BICUBIC))


def _soft_tissue(chest: Chest, rng: np.random.Generator) -> Field:
    """Trunk, neck, chin and arms on a dark background; a child holds the arms up."""
    across, top = np.abs(chest.x), chest.apex + rng.uniform(-0.04, 0.04)
    flank, shoulder = chest.wall + rng.uniform(0.1, 0.18), chest.wall + rng.uniform(0.24, 0.34)
    chin = top - (0.16 if chest.child else rng.uniform(0.34, 0.5))
    neck = rng.uniform(0.18, 0.24)
    belly = flank + rng.uniform(-0.02, 0.2)
    heights = (chin - 0.44, chin - 0.24, chin - 0.09, chin, top - 0.08, top + 0.1, top + 0.3, 0.1, 0.5, 1.6)
    widths = (0.34, 0.36, 0.29, neck, neck + 0.03, shoulder - 0.12, flank + 0.12, flank, flank, belly)
    trunk = np.interp(chest.y, heights, widths).astype(np.float32) - across
    hand = (shoulder + rng.uniform(0.08, 0.26), top - 0.9 if chest.child else 1.0)
    arm = 0.14 - _segment(across, chest.y, (shoulder - 0.12, top + 0.26), hand)
    depth = np.maximum(trunk, arm)
    thickness = 0.6 + 0.4 * np.clip(depth * 2.5, 0, 1)
    return _blend(np.float32(rng.uniform(0.01, 0.08)), chest.tissue * thickness, _step(depth, 0.06))


def _lungs(image: Field, chest: Chest, rng: np.random.Generator) -> Field:
    """Two dark lungs: elongated ellipses, wider below, cut by the diaphragm domes and the mediastinum."""
    middle, reach = (chest.apex + chest.base) / 2 + 0.1, (chest.base - chest.apex) / 2 + 0.1
    darkness, dome = rng.uniform(0.6, 0.78), rng.uniform(0.06, 0.16)
    gap = rng.uniform(0.09, 0.13)
    for side, sign in SIGN.items():
        x = chest.x * sign
        width = 1 + 0.2 * (chest.y - middle)
        radius = chest.wall / 2 + 0.02
        off = (x - chest.wall * 0.5) * (1 / radius) / width
        shape = 1 - off**2 - np.abs((chest.y - middle) * (1 / reach)) ** 3
        floor = chest.base + dome * ((x - 0.5 * chest.wall) * (1 / radius)) ** 2
        floor = floor - (0.05 if side == "right" else 0.0)  # the liver lifts the right dome
        air = _step(shape, 0.25) * _step(floor - chest.y, 0.05) * _step(x - gap, 0.06)
        chest.air[side] = air
        image = image * (1 - darkness * air)
    return image


def _bones(image: Field, chest: Chest, rng: np.random.Generator) -> Field:
    """Ribs as soft arcs, the spine, the windpipe and the collarbones."""
    across = np.abs(chest.x)
    spacing = (chest.base - chest.apex) / rng.uniform(4.6, 5.6)
    arc = chest.y - rng.uniform(0.7, 1.1) * (across - rng.uniform(0.15, 0.3)) ** 2
    wave = np.cos((arc - chest.apex) * (2 * np.pi / spacing) + rng.uniform(0, 6.28))
    middle, reach = (chest.apex + chest.base) / 2 + 0.05, (chest.base - chest.apex) / 2 + 0.1
    cage = _step(1 - _blob(across, chest.y, (chest.wall / 2, middle), chest.wall / 2 + 0.06, reach), 0.3)
    image = image + rng.uniform(0.05, 0.11) * np.clip(wave, 0, 1) * cage
    spine = _step(rng.uniform(0.075, 0.1) - across, 0.05)
    image = image + rng.uniform(0.04, 0.1) * spine
    image = image - 0.1 * _step(0.04 - across, 0.03) * _step(chest.apex + 0.4 - chest.y, 0.2)
    rise = rng.uniform(0.0, 0.1)
    outer = (chest.wall + 0.06, chest.apex + 0.16 - rise)
    collarbone = _segment(across, chest.y, (0.06, chest.apex + 0.22), outer)
    return image + rng.uniform(0.08, 0.14) * _step(0.035 - collarbone, 0.03)


def _heart(image: Field, chest: Chest, enlarged: bool, rng: np.random.Generator) -> Field:
    """Heart shadow, mostly on the patient's left, with the vessels above and the lung roots beside it."""
    size = rng.uniform(0.84, 0.96) if enlarged else rng.uniform(0.44, 0.52)
    rx, ry = chest.wall * size, 0.36 * (chest.base - chest.apex) * (1.15 if enlarged else 0.9)
    centre = (chest.wall * rng.uniform(0.16, 0.24), chest.base - ry * 0.62)
    slant = chest.x - 0.25 * (chest.y - centre[1])
    heart = _step(1 - _blob(slant, chest.y, centre, rx, ry), 0.3)
    roots = np.exp(-3 * _blob(np.abs(chest.x), chest.y, (0.14, centre[1] - ry), 0.16, 0.26))
    knob = _step(1 - _blob(chest.x, chest.y, (0.1, chest.apex + 0.42), 0.09, 0.1), 0.4)
    image = _blend(image, chest.tissue * 0.92, np.maximum(0.45 * roots, 0.8 * knob))
    return _blend(image, chest.tissue * rng.uniform(0.97, 1.1), 0.95 * heart)


def _pneumonia(image: Field, chest: Chest, attributes: dict[str, str], rng: np.random.Generator) -> Field:
    """Cloudy white patches: one when mild, most of the lung when severe."""
    severe, scale = attributes["severity"] == "severe", (chest.base - chest.apex) / 1.1
    for side in SIDES[attributes["side"]]:
        cloud = np.zeros_like(image)
        wisps = _soft_noise(rng, len(image), 15, 0.6)
        for down in (0.25, 0.5, 0.75) if severe else (rng.uniform(0.26, 0.6),):
            centre = _in_lung(chest, side, rng.uniform(0.56, 0.7), down)
            rx, ry = scale * (rng.uniform(0.17, 0.23, size=2) if severe else rng.uniform(0.15, 0.2, size=2))
            cloud = np.maximum(cloud, _step(1 - _blob(chest.x, chest.y, centre, rx, ry) + wisps, 1.5))
        image = _blend(image, chest.tissue * 1.1, 0.85 * cloud * chest.air[side])
    return image


def _effusion(image: Field, chest: Chest, attributes: dict[str, str], rng: np.random.Generator) -> Field:
    """White fluid filling the lung from below, its surface rising towards the wall."""
    height = rng.uniform(0.56, 0.68) if attributes["severity"] == "severe" else rng.uniform(0.2, 0.28)
    for side in SIDES[attributes["side"]]:
        level = chest.base - height * (chest.base - chest.apex)
        rise = 0.22 * np.clip(chest.x * (SIGN[side] / chest.wall), 0, 1) ** 2
        fluid = _step(chest.y - level + rise, 0.06)
        cover = np.minimum(3 * chest.air[side], 1)  # over the lung's soft edge, so that no dark rim is left
        image = _blend(image, chest.tissue * 1.06, fluid * cover)
    return image


def _pneumothorax(image: Field, chest: Chest, attributes: dict[str, str], rng: np.random.Generator) -> Field:
    """One side almost black, its collapsed lung a grey lump beside the heart."""
    side = attributes["side"]
    centre = _in_lung(chest, side, 0.34, rng.uniform(0.5, 0.62))
    rx, ry = chest.wall * rng.uniform(0.24, 0.3), (chest.base - chest.apex) * rng.uniform(0.25, 0.32)
    collapsed = _blob(chest.x, chest.y, centre, rx, ry)
    image = _blend(image, 0.02, 0.92 * chest.air[side])
    image = _blend(image, chest.tissue * 0.75, chest.air[side] * _step(1 - collapsed, 0.3))
    return _blend(image, chest.tissue * 1.1, 0.7 * chest.air[side] * _step(0.22 - np.abs(collapsed - 1), 0.2))


def _nodule(image: Field, chest: Chest, attributes: dict[str, str], rng: np.random.Generator) -> Field:
    """One round bright spot in the outer half of a lung."""
    centre = _in_lung(chest, attributes["side"], rng.uniform(0.56, 0.72), rng.uniform(0.3, 0.7))
    radius = rng.uniform(0.1, 0.14)
    return _blend(image, 0.95, _step(1 - _blob(chest.x, chest.y, centre, radius, radius), 0.3))


def _pacemaker(image: Field, chest: Chest, attributes: dict[str, str], rng: np.random.Generator) -> Field:
    """A white box below the left collarbone and a lead that runs down into the heart."""
    x, y = _in_lung(chest, "left", rng.uniform(0.7, 0.85), rng.uniform(0.2, 0.28))
    turn = 0.1, y + rng.uniform(-0.06, 0.04)
    tip = rng.uniform(0.1, 0.2), chest.base - rng.uniform(0.08, 0.16)
    lead = np.minimum(_segment(chest.x, chest.y, (x, y), turn), _segment(chest.x, chest.y, turn, tip))
    tilt = rng.uniform(-0.3, 0.3)
    across, down = np.abs(chest.x - x + tilt * (chest.y - y)), np.abs(chest.y - y - tilt * (chest.x - x))
    box = np.minimum(rng.uniform(0.12, 0.15) - across, rng.uniform(0.09, 0.12) - down)
    return _blend(image, 1.0, np.maximum(_step(box, 0.03), _step(0.026 - lead, 0.02)))


# An enlarged heart is in neither table: `_heart` draws it large in the first place.
IN_LUNG = {"pneumonia": _pneumonia, "effusion": _effusion, "pneumothorax": _pneumothorax}
ON_TOP = {"nodule": _nodule, "pacemaker": _pacemaker}


def _expose(image: Field, rng: np.random.Generator) -> np.ndarray:
    """Soft unevenness, exposure, grain and sometimes collimator edges; returns uint8."""
    n = len(image)
    image = image + _soft_noise(rng, n, 10, 0.02)
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.004, 0.016)
    image = np.clip(image * rng.uniform(0.95, 1.2), 0, 1) ** rng.uniform(0.85, 1.2) + rng.uniform(0, 0.03)
    if rng.random() < 0.35:
        left, right, top, bottom = rng.uniform(-0.05, 0.07, 4)
        x, y = _grid(n)
        image = image * ((x > 2 * left - 1) & (x < 1 - 2 * right) & (y > 2 * top - 1) & (y < 1 - 2 * bottom))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def _mark_side(film: Image.Image, rng: np.random.Generator) -> None:
    """Half of the films carry a lead letter, L or R, in the upper corner of that side."""
    if rng.random() < 0.5:
        return
    side = "left" if rng.random() < 0.6 else "right"
    n = film.width
    unit = n * rng.uniform(0.024, 0.03)
    corner = n * (0.5 + SIGN[side] * rng.uniform(0.37, 0.41)) - unit, n * rng.uniform(0.05, 0.14)
    points = [(corner[0] + unit * x, corner[1] + unit * y) for x, y in LETTERS[side]]
    ImageDraw.Draw(film).line(points, fill=int(rng.integers(215, 256)), width=max(1, round(n / 50)))
