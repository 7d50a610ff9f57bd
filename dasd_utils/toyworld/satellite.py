"""Aerial images seen from straight above, drawn from a handful of attributes.

Every scene is drawn on a `_Board` whose unit is 1/64 of the picture's side and whose origin is its middle, so
that one drawing serves every size and every orientation. Shadows fall to the lower right (quay: upper left).
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

_OVERSAMPLE = 3
_SUN = np.array([0.8, 0.6])  # where shadows fall, in the finished picture
_FAR = 60  # beyond every edge, however the board is turned

_WHITE, _ASPHALT, _CONCRETE = (246, 246, 244), (84, 86, 92), (158, 158, 160)
_TERRAIN = {"green": (112, 158, 72), "brown": (138, 98, 64), "grey": (150, 151, 154), "sand": (226, 200, 144)}
_WATER = {"blue": (36, 92, 158), "green": (48, 150, 128), "brown": (122, 84, 46)}
_ROOF = {"red": (206, 64, 48), "grey": (118, 126, 142), "brown": (128, 84, 52)}
_LAWN = {"summer": (118, 168, 78), "autumn": (190, 164, 84), "winter": (240, 243, 248)}
_LEAVES = {
    "summer": ((52, 112, 48), (70, 132, 56), (40, 96, 52), (88, 146, 60)),
    "autumn": ((214, 120, 36), (192, 78, 36), (226, 168, 52), (170, 100, 44)),
    "winter": ((214, 224, 230), (198, 210, 217), (226, 233, 238)),
}
_CROPS = {
    "summer": ((92, 146, 58), (132, 178, 72), (64, 120, 58), (178, 196, 88), (222, 204, 96)),
    "autumn": ((206, 150, 66), (160, 106, 58), (226, 186, 100), (188, 116, 48), (128, 88, 58)),
    "winter": ((242, 246, 251), (214, 224, 236), (218, 206, 178), (230, 236, 244), (186, 204, 184)),
}
_BETWEEN_FIELDS = {  # hedges between square fields, open ground between round ones
    "summer": ((66, 92, 48), (224, 200, 150)),
    "autumn": ((96, 66, 44), (218, 194, 146)),
    "winter": ((112, 112, 110), (248, 250, 253)),
}
_PAINT = ((206, 50, 44), (42, 92, 184), (244, 244, 244), (240, 196, 48), (38, 42, 50), (60, 146, 90))


class _Board:
    """A turned and shifted drawing surface, drawn large and reduced at the end."""

    def __init__(self, size: int, rng: np.random.Generator, tilt: float):
        self.size = size
        self.scale = size * _OVERSAMPLE / 64 * rng.uniform(0.92, 1.0)
        angle = np.radians(90 * rng.integers(4) + rng.uniform(-tilt, tilt))
        cos, sin = np.cos(angle), np.sin(angle)
        self.turn = np.array([[cos, sin], [-sin, cos]]) * self.scale
        self.turn[0] *= rng.choice((-1, 1))
        self.middle = size * _OVERSAMPLE / 2 + rng.uniform(-1.5, 1.5, 2) * self.scale
        self.image = Image.new("RGB", (size * _OVERSAMPLE, size * _OVERSAMPLE))
        self.pen = ImageDraw.Draw(self.image)

    def fill(self, colour: tuple) -> None:
        """Covers everything with `colour`; shadows are a darker shade of it."""
        self.shade = _darker(colour, 0.55)
        self.pen.rectangle((0, 0, *self.image.size), colour)

    def _pixels(self, points, height: float = 0) -> list[float]:
        return (np.asarray(points) @ self.turn + self.middle + _SUN * height * self.scale).ravel().tolist()

    def shape(self, points, colour: tuple, height: float = 0) -> None:
        """A filled polygon; something of a `height` throws a shadow that long."""
        if height:
            self.pen.polygon(self._pixels(points, height), self.shade)
        self.pen.polygon(self._pixels(points), colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: tuple, height: float = 0) -> None:
        """A filled rectangle between two corners."""
        self.shape(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour, height)

    def disc(self, x: float, y: float, radius: float, colour: tuple, height: float = 0) -> None:
        """A filled circle."""
        reach = radius * self.scale
        if height:
            self.pen.circle(self._pixels((x, y), height), reach, self.shade)
        self.pen.circle(self._pixels((x, y)), reach, colour)

    def line(self, points, width: float, colour: tuple) -> None:
        """A line through points."""
        self.pen.line(self._pixels(points), colour, max(1, round(width * self.scale)), "curve")

    def frame(self, x0: float, y0: float, x1: float, y1: float, width: float, colour: tuple) -> None:
        """The outline of a rectangle between two corners."""
        self.line(((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)), width, colour)

    def finish(self, rng: np.random.Generator) -> Image.Image:
        """Reduces the drawing and adds uneven light, a colour cast and a little sensor noise."""
        pixels = np.asarray(self.image.reduce(_OVERSAMPLE), dtype=np.float32)
        patches = Image.fromarray(rng.normal(0, 0.035, (5, 5)).astype(np.float32))
        light = np.asarray(patches.resize((self.size, self.size), Image.Resampling.BICUBIC))
        cast = rng.uniform(0.92, 1.06) * rng.uniform(0.98, 1.02, 3)
        noise = rng.standard_normal((self.size, self.size), dtype=np.float32) * 1.5
        pixels = pixels * (1 + light)[..., None] * cast.astype(np.float32) + noise[..., None]
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _darker(colour: tuple, factor: float) -> tuple:
    return tuple(min(255, int(channel * factor)) for channel in colour)


def _tone(rng: np.random.Generator, colour: tuple, spread: float = 5) -> tuple:
    """`colour`, a little lighter or darker and a little off its hue."""
    shift = rng.uniform(-1.7, 1.7) * spread + rng.uniform(-0.6, 0.6, 3) * spread
    return tuple(int(min(255, max(0, c + s))) for c, s in zip(colour, shift, strict=True))


def _shallow(water: tuple) -> tuple:
    """The lighter colour of `water` near a shore."""
    return tuple(int(0.6 * deep + 0.4 * light) for deep, light in zip(water, (140, 225, 220), strict=True))


def _pick(rng: np.random.Generator, options: tuple) -> Any:
    return options[rng.integers(len(options))]


def _wave(rng: np.random.Generator, height: float, length: float) -> np.ndarray:
    """A wavy line across the board around y = 0, points (33, 2): two waves, the longer one of `length`."""
    x = np.linspace(-_FAR, _FAR, 33)
    phases = rng.uniform(0, 2 * np.pi, 2)
    y = np.sin(2 * np.pi * x / length + phases[0]) + 0.35 * np.sin(5.1 * np.pi * x / length + phases[1])
    return np.stack([x, y * height], axis=1)


def _moved(points: np.ndarray, x: float, y: float) -> np.ndarray:
    return points + np.array((x, y))


def _strip(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The polygon between two lines, points (n, 2) each."""
    return np.concatenate([upper, lower[::-1]])


def _tree(board: _Board, rng: np.random.Generator, x: float, y: float, radius: float, season: str) -> None:
    colour = _tone(rng, _pick(rng, _LEAVES[season]))
    board.disc(x, y, radius, (138, 160, 154) if season == "winter" else _darker(colour, 0.78), 1.5)
    board.disc(x, y, radius * 0.62, colour)


def _airport(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    count = {"one": 1, "two": 2, "three": 3, "many": 4}[attributes["count"]]
    board.fill(_tone(rng, _TERRAIN[attributes["terrain"]]))
    asphalt, apron = _tone(rng, _ASPHALT), _tone(rng, (140, 141, 146))
    board.box(-_FAR, -23, _FAR, -10, asphalt)
    for x in np.arange(-15 + rng.uniform(0, 4), 50, 12):
        board.box(x, -17.6, x + 7, -15.4, _WHITE)
    for y in (-21.5, -18.4, -15.3, -12.2):
        board.box(-28, y - 0.1, -20, y + 1.7, _WHITE)
    taxi = rng.uniform(-22, 22)
    board.box(taxi - 3.5, -11, taxi + 3.5, 8, asphalt)
    board.box(-_FAR, 0, _FAR, _FAR, apron)
    board.shade = _darker(apron, 0.6)
    board.box(-_FAR, 24, _FAR, _FAR, _tone(rng, _pick(rng, ((232, 226, 214), (180, 92, 76), (92, 80, 84)))))
    pitch = 14.9 if count == 4 else 18.5
    middle = rng.uniform(-1, 1) * (30 - pitch * count / 2)
    half = np.array([(0, -1.1), (0.17, -0.85), (0.17, -0.35), (0.92, 0.22), (0.92, 0.45), (0.17, 0.22),
                     (0.15, 0.62), (0.45, 0.86), (0.45, 1.05), (0, 0.95)])  # fmt: skip
    plane = _strip(half, half * (-1, 1)) * (pitch * 0.52)  # its nose up
    for index in range(count):
        board.shape(_moved(plane, middle + (index - (count - 1) / 2) * pitch, 11.5), _WHITE, 2)


def _harbor(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    count = {"one": 1, "two": 2, "three": 3, "many": rng.integers(5, 7)}[attributes["count"]]
    water = _tone(rng, _WATER[attributes["water"]])
    board.fill(water)
    quay = _tone(rng, _CONCRETE)
    board.box(-_FAR, 17, _FAR, _FAR, quay, -2)
    for x in (-17, 17):
        board.box(x - 2.5, -rng.uniform(6, 12), x + 2.5, 20, quay, 1.5)
    sheds = ((186, 84, 66), (92, 96, 108), (214, 208, 196))
    for x in (-21, 0, 21):
        board.box(x - 8, 22, x + 8, 30, _tone(rng, _pick(rng, sheds)))
    berths = [(x, rng.uniform(1, 4), False) for x in (-25.5, -8, 8, 25.5)]
    sea = [(x, rng.uniform(-24, -21), True) for x in (-14, 15)]
    spots = berths + sea if count > 3 else [berths[i] for i in rng.permutation(4)]
    for x, y, sailing in spots[-count:]:
        _ship(board, rng, x, y, sailing)


def _ship(board: _Board, rng: np.random.Generator, x: float, y: float, sideways: bool) -> None:
    """A ship 21 long, its bow away from the quay, or to the right when `sideways`."""
    turn = np.array([[0, -1], [1, 0]]) if sideways else np.eye(2)
    hull = np.array([(0, -11), (3, -6.5), (3.6, 8), (2.4, 10), (-2.4, 10), (-3.6, 8), (-3, -6.5)])
    colour = _pick(rng, ((206, 56, 46), (236, 146, 44), _WHITE))
    board.shape(_moved(hull @ turn.T, x, y), colour, 1.5)
    deck = np.array([(0, -8), (1.9, -5), (2.2, 2), (-2.2, 2), (-1.9, -5)])
    board.shape(_moved(deck @ turn.T, x, y), (120, 78, 56) if colour == _WHITE else (232, 214, 178))
    bridge = np.array([(-2.2, 4), (2.2, 4), (2.2, 7.5), (-2.2, 7.5)])
    board.shape(_moved(bridge @ turn.T, x, y), (70, 90, 120) if colour == _WHITE else _WHITE)


def _river(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    land = _tone(rng, _TERRAIN[attributes["terrain"]])
    board.fill(land)
    half = rng.uniform(8, 11)
    course = _wave(rng, rng.uniform(4, 8), rng.uniform(55, 80))
    for x in rng.uniform(-30, 30, 5):
        y = np.interp(x, course[:, 0], course[:, 1]) + rng.choice((-1, 1)) * (half + rng.uniform(8, 16))
        _tree(board, rng, x, y, rng.uniform(3, 4.5), "summer")
    board.shape(_strip(_moved(course, 0, -half - 2), _moved(course, 0, half + 2)), _darker(land, 0.82))
    water = _tone(rng, _WATER[attributes["water"]])
    board.shape(_strip(_moved(course, 0, -half), _moved(course, 0, half)), water)
    board.shape(_strip(_moved(course, 0, -half * 0.45), _moved(course, 0, half * 0.3)), _darker(water, 1.1))
    if attributes["bridge"] == "yes":
        x = rng.uniform(-14, 14)
        y = np.interp(x, course[:, 0], course[:, 1])
        board.line(((x, -_FAR), (x, _FAR)), 6, _tone(rng, (112, 112, 116)))
        board.shade = _darker(water, 0.6)
        board.box(x - 4.2, y - half - 4, x + 4.2, y + half + 4, (236, 234, 228), 2.5)
        board.box(x - 2.4, y - half - 4, x + 2.4, y + half + 4, (112, 112, 116))


def _farmland(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    crops = [_tone(rng, colour) for colour in _CROPS[attributes["season"]]]
    hedge, soil = _BETWEEN_FIELDS[attributes["season"]]
    if attributes["pattern"] == "squares":
        _square_fields(board, rng, crops, hedge)
    else:
        _round_fields(board, rng, crops, soil)


def _other(rng: np.random.Generator, crops: list, last: int) -> int:
    """The index of any crop but the last, so that neighbours differ."""
    return (last + rng.integers(1, len(crops))) % len(crops)


def _square_fields(board: _Board, rng: np.random.Generator, crops: list, hedge: tuple) -> None:
    board.fill(hedge)
    x, last = -46 - rng.uniform(0, 12), 0
    while x < 46:
        width, y = rng.uniform(17, 25), -46 - rng.uniform(0, 12)
        while y < 46:
            height, last = rng.uniform(15, 28), _other(rng, crops, last)
            board.box(x + 0.8, y + 0.8, x + width - 0.8, y + height - 0.8, crops[last])
            if rng.random() < 0.4:
                for furrow in np.arange(x + 4, x + width - 3, 5):
                    board.box(furrow, y + 0.8, furrow + 2.2, y + height - 0.8, _darker(crops[last], 0.9))
            y += height
        x += width


def _round_fields(board: _Board, rng: np.random.Generator, crops: list, soil: tuple) -> None:
    board.fill(_tone(rng, soil))
    pitch, last = rng.uniform(27, 31), 0
    shift = rng.uniform(-6, 6, 2)
    for column, row in np.ndindex(4, 4):
        x, y = (np.array((column, row)) - 1.5) * pitch + shift
        last = _other(rng, crops, last)
        crop = _darker(crops[last], 0.9)
        board.disc(x, y, pitch * 0.46, _darker(crop, 0.8))
        board.disc(x, y, pitch * 0.41, crop)
        angle = rng.uniform(0, 2 * np.pi)
        arm = np.array((np.cos(angle), np.sin(angle))) * 0.4 * pitch
        board.line(((x, y), _moved(arm, x, y)), 1.2, _darker(crop, 0.65))


def _residential(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    season = attributes["season"]
    board.fill(_tone(rng, _LAWN[season], 4))
    board.box(-_FAR, -5, _FAR, 5, _tone(rng, (86, 87, 92)))
    for x in range(-48, 50, 12):
        board.box(x, -0.6, x + 6, 0.6, (226, 224, 216))
    pitch = rng.uniform(18, 22)
    for side in (-1, 1):
        start = rng.uniform(-4, 4)
        for x in np.arange(-2, 3) * pitch + start:
            board.box(x + 2, side * 5, x + 5, side * 16, (196, 192, 186))
            y, roof = side * rng.uniform(17.5, 20), _tone(rng, _ROOF[attributes["roof"]], 7)
            wide, deep = rng.uniform(6, 7.2), rng.uniform(6.2, 8)
            board.box(x - wide, y - deep, x + wide, y + deep, roof, 2.5)
            board.box(x - wide, y, x + wide, y + deep, _darker(roof, 0.76))  # the half in the shade
            board.line(((x - wide, y), (x + wide, y)), 0.8, _darker(roof, 1.25))
            _tree(board, rng, x + pitch / 2, side * rng.uniform(9, 28), 2.8, season)


def _parking_lot(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    board.fill(_tone(rng, _TERRAIN[attributes["terrain"]]))
    asphalt = _tone(rng, (104, 106, 112))
    board.box(-_FAR, -24.5, _FAR, 24.5, asphalt)
    board.shade = _darker(asphalt, 0.6)
    pitch, start = rng.uniform(10.5, 12), rng.uniform(-5, 5)
    half = np.array([(2.4, -7), (3.7, -5.8), (3.7, 5.8), (2.4, 7)])
    car = _strip(half, half * (-1, 1))
    for side, index in itertools.product((-1, 1), range(-4, 5)):
        x = index * pitch + start
        board.box(x - 0.6, side * 8, x + 0.6, side * 24, (220, 220, 216))
        if rng.random() < 0.85:
            x, y = x + pitch / 2, side * rng.uniform(15.3, 16.3)
            paint = _pick(rng, _PAINT)
            board.shape(_moved(car, x, y), paint, 1.5)
            glass = (64, 74, 88) if sum(paint) > 200 else (130, 145, 160)
            board.box(x - 2.8, y - 3.6, x + 2.8, y - 1.4, glass)
            board.box(x - 2.8, y + 2.6, x + 2.8, y + 4.4, glass)


def _forest(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    season = attributes["season"]
    board.fill({"summer": (30, 66, 34), "autumn": (104, 58, 32), "winter": (104, 124, 120)}[season])
    trail = _moved(_wave(rng, 5, 70), 0, rng.uniform(-14, 14)) if rng.random() < 0.4 else None
    pitch = rng.uniform(9.5, 12)
    columns, rows = np.meshgrid(np.arange(-4, 5) * pitch, np.arange(-4, 5) * pitch)
    columns = columns + (np.arange(9) % 2 * pitch / 2)[:, None]
    spots = np.stack([columns, rows], axis=-1).reshape(-1, 2) + rng.normal(0, 1.2, (81, 2))
    for x, y in spots[np.abs(spots).max(axis=1) < 42]:
        _tree(board, rng, x, y, pitch * rng.uniform(0.52, 0.66), season)
    if trail is not None:
        board.line(trail, 4.5, (250, 251, 253) if season == "winter" else (206, 176, 124))


def _beach(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    water, land = _tone(rng, _WATER[attributes["water"]]), _TERRAIN[attributes["terrain"]]
    board.fill(water)
    shore = _moved(_wave(rng, rng.uniform(2, 3.5), rng.uniform(45, 70)), 0, -rng.uniform(2, 6))
    far = _moved(shore * (1, 0), 0, _FAR)
    board.shape(_strip(_moved(shore, 0, -9), far), _shallow(water))
    board.shape(_strip(_moved(shore, 0, -3), far), _WHITE)
    sand = _tone(rng, (238, 216, 160))
    board.shape(_strip(shore, far), sand)
    edge = _moved(_wave(rng, 1.5, 40), 0, rng.uniform(18, 21))
    board.shape(_strip(edge, far), _tone(rng, land))
    board.shade = _darker(land, 0.6)
    for x in np.arange(-38, 40, 9):
        _tree(board, rng, x + rng.uniform(-2, 2), rng.uniform(25, 29), rng.uniform(2.6, 3.6), "summer")
    board.shade = _darker(sand, 0.65)
    for x in rng.permutation((-24, -12, 0, 12, 24))[: rng.integers(3, 6)]:
        x, y, paint = x + rng.uniform(-2, 2), rng.uniform(7, 12), _PAINT[rng.integers(2)]
        board.disc(x, y, 3.6, paint, 2)
        board.disc(x, y, 1.3, _WHITE)


def _oval(half_length: float, half_width: float) -> np.ndarray:
    """A running track's outline: a rectangle with round ends, points (26, 2)."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 13)
    end = np.stack([np.cos(angles), np.sin(angles)], axis=1) * half_width
    end = _moved(end, half_length - half_width, 0)
    return np.concatenate([end, -end])


def _stadium(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    board.fill(_tone(rng, _TERRAIN[attributes["terrain"]]))
    length, width = rng.uniform(28, 30), rng.uniform(20.5, 23)
    stands = _tone(rng, _pick(rng, ((226, 226, 228), (206, 212, 224))))
    board.shape(_oval(length, width), stands, 3.5)
    board.shape(_oval(length - 2.2, width - 2.2), _darker(stands, 0.72))
    board.shape(_oval(length - 4, width - 4), stands)
    board.shape(_oval(length - 5.5, width - 5.5), _tone(rng, (198, 82, 52)))
    grass = _tone(rng, (70, 158, 66))
    board.shape(_oval(length - 9.5, width - 9.5), grass)
    reach, deep = length - 15, width - 12.5
    for x in np.linspace(-reach, reach, 7)[:-1:2]:
        board.box(x, -deep, x + reach / 3, deep, _darker(grass, 1.16))
    board.frame(-reach, -deep, reach, deep, 1.1, _WHITE)
    board.line(((0, -deep), (0, deep)), 1.1, _WHITE)
    board.disc(0, 0, 3.6, _WHITE)
    board.disc(0, 0, 2.5, grass)


def _interchange(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    land, asphalt = _tone(rng, _TERRAIN[attributes["terrain"]]), _tone(rng, (92, 94, 100))
    board.fill(land)
    angles = np.linspace(0, 2 * np.pi, 25)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    reach = rng.uniform(9, 10.5)
    for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        board.line(ring * reach + np.array((x, y)) * (reach + 2.5), 4.8, asphalt)
    for ends in (((-_FAR, 0), (_FAR, 0)), ((0, -_FAR), (0, _FAR))):
        board.line(ends, 12.5, (214, 212, 204))
        board.line(ends, 11, asphalt)
        board.line(ends, 1.3, (240, 206, 84))
    for index, along in enumerate((-27, -17, 17, 27)):
        lane = rng.choice((-3, 3))
        x, y = (along + rng.uniform(-2, 2), lane) if index % 2 else (lane, along + rng.uniform(-2, 2))
        long, wide = (3, 1.6) if index % 2 else (1.6, 3)
        board.box(x - long, y - wide, x + long, y + wide, _PAINT[rng.integers(4)])


def _desert(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    sand = _tone(rng, {"sand": (234, 206, 148), "brown": (172, 108, 68)}[attributes["terrain"]])
    board.fill(sand)
    pitch = rng.uniform(15, 20)
    crest = _wave(rng, rng.uniform(2.5, 4), rng.uniform(34, 50))
    for row in range(-3, 4):
        line = _moved(crest, rng.uniform(-4, 4), row * pitch)
        depth = pitch * (0.4 + 0.16 * np.sin(line[:, :1] / 7 + row * 2)) * (0, 1)
        board.shape(_strip(line, line + depth * 1.5), _darker(sand, 0.9))
        board.shape(_strip(line, line + depth), _darker(sand, 0.74))
        board.line(_moved(line, 0, -0.8), 1.8, _darker(sand, 1.1))


_TANK_SPOTS = {  # where the tanks stand and how large they are
    "one": (((0, 0),), 19),
    "two": (((-15.5, 0), (15.5, 0)), 13),
    "three": (((-15, -12), (15, -12), (0, 13)), 11.5),
    "many": (tuple((x, y) for x in (-19.5, 0, 19.5) for y in (-12, 12)), 8.6),
}


def _storage_tanks(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    ground = _tone(rng, _TERRAIN[attributes["terrain"]])
    board.fill(ground)
    spots, size = _TANK_SPOTS[attributes["count"]]
    if attributes["count"] == "many":
        spots = spots[rng.integers(2) :]
    spots = np.array(spots) + rng.uniform(-1, 1, (len(spots), 2))
    board.line(((-_FAR, 0), (_FAR, 0)), 3, _darker(ground, 0.72))
    for x, y in spots:
        board.line(((x, y), (x, 0)), 3, _darker(ground, 0.72))
    paint = _tone(rng, _pick(rng, ((240, 240, 238), (216, 220, 226))))
    for x, y in spots:
        radius = size * rng.uniform(0.9, 1)
        board.disc(x, y, radius, _darker(paint, 0.72), 4)
        board.disc(x, y, radius * 0.88, paint)
        board.disc(x, y, radius * 0.32, _darker(paint, 0.82))
        board.disc(x, y, radius * 0.18, paint)


def _island(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    water, land = _tone(rng, _WATER[attributes["water"]]), _tone(rng, _TERRAIN[attributes["terrain"]])
    board.fill(water)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = sum(rng.uniform(0, 0.2 / k) * np.cos(k * angles + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    coast = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.75, 1)], axis=1) * (1 + waves)[:, None]
    reach = rng.uniform(18, 21)
    board.shape(coast * (reach + 6), _shallow(water))
    board.shape(coast * (reach + 1.3), _WHITE)
    board.shape(coast * reach, _tone(rng, (240, 218, 162)))
    board.shape(coast * (reach - 4.5), land)
    board.shade = _darker(land, 0.6)
    board.shape(coast * reach * 0.4 - 1, _darker(land, 0.85))
    for x, y in coast[rng.permutation(8)[:4] * 5] * reach * 0.55:
        _tree(board, rng, x, y, rng.uniform(2.6, 3.8), "summer")


_COURT_SPOTS = {  # columns and rows of courts, half a court's width and length
    "one": ((0,), (0,), 13, 24),
    "two": ((-14.5, 14.5), (0,), 10, 20),
    "three": ((-19.6, 0, 19.6), (0,), 6.5, 15),
    "many": ((-14.5, 14.5), (-15.5, 15.5), 9, 10.5),
}


def _tennis_courts(board: _Board, attributes: dict, rng: np.random.Generator) -> None:
    board.fill(_tone(rng, _TERRAIN[attributes["terrain"]]))
    green, rust, blue, clay = (44, 98, 70), (150, 66, 50), (58, 112, 190), (206, 104, 62)
    around, inside = _pick(rng, ((green, blue), (green, clay), (rust, blue)))
    around, inside = _tone(rng, around), _tone(rng, inside)
    columns, rows, wide, deep = _COURT_SPOTS[attributes["count"]]
    for x, y in itertools.product(columns, rows):
        board.box(x - wide - 2, y - deep - 2, x + wide + 2, y + deep + 2, around)
        board.box(x - wide, y - deep, x + wide, y + deep, inside)
        board.frame(x - wide, y - deep, x + wide, y + deep, 1.2, _WHITE)
        board.frame(x - wide, y - deep / 2, x + wide, y + deep / 2, 1, _WHITE)
        board.line(((x, y - deep / 2), (x, y + deep / 2)), 1, _WHITE)
        board.line(((x - wide - 1, y), (x + wide + 1, y)), 1.8, (36, 40, 46))


_COUNTS = ("one", "two", "three", "many")
_SEASONS = ("summer", "autumn", "winter")
_GROUNDS = ("green", "brown", "sand")
# How each scene is drawn, by how many degrees it may lean from the upright, and what varies in it.
_SCENES: dict[str, tuple[Callable, float, dict[str, tuple[str, ...]]]] = {
    "airport": (_airport, 5, {"terrain": _GROUNDS, "count": _COUNTS}),
    "harbor": (_harbor, 4, {"water": ("blue", "green"), "count": _COUNTS}),
    "river": (_river, 40, {"terrain": ("green", "sand"), "water": tuple(_WATER), "bridge": ("yes", "no")}),
    "farmland": (_farmland, 25, {"pattern": ("squares", "circles"), "season": _SEASONS}),
    "residential": (_residential, 8, {"roof": tuple(_ROOF), "season": _SEASONS}),
    "parking lot": (_parking_lot, 6, {"terrain": _GROUNDS}),
    "forest": (_forest, 45, {"season": _SEASONS}),
    "beach": (_beach, 14, {"terrain": ("green", "brown"), "water": ("blue", "green")}),
    "stadium": (_stadium, 15, {"terrain": tuple(_TERRAIN)}),
    "interchange": (_interchange, 45, {"terrain": _GROUNDS}),
    "desert": (_desert, 20, {"terrain": ("sand", "brown")}),
    "storage tanks": (_storage_tanks, 8, {"terrain": tuple(_TERRAIN), "count": _COUNTS}),
    "island": (_island, 45, {"terrain": ("green", "brown"), "water": ("blue", "green")}),
    "tennis courts": (_tennis_courts, 6, {"terrain": ("green", "grey", "sand"), "count": _COUNTS}),
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "scene": tuple(_SCENES), "terrain": tuple(_TERRAIN), "count": _COUNTS, "season": _SEASONS,
    "water": tuple(_WATER), "bridge": ("yes", "no"), "roof": tuple(_ROOF), "pattern": ("squares", "circles"),
}  # fmt: skip


def sample_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Draws a scene and a value for each attribute that applies to it."""
    scene = _pick(rng, tuple(_SCENES))
    return {"scene": scene} | {name: _pick(rng, values) for name, values in _SCENES[scene][2].items()}


def draw(attributes: dict[str, str], rng: np.random.Generator, size: int) -> Image.Image:
    """The scene that `attributes` describe, `size` x `size` pixels in RGB; all else is left to `rng`."""
    drawer, tilt, _ = _SCENES[attributes["scene"]]
    board = _Board(size, rng, tilt)
    drawer(board, attributes, rng)
    return board.finish(rng)
