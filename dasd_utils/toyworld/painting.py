"""Paintings, and the same scenes as sketches: shapes, coloured by a palette or outlined by a pen."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from dasd_utils.toyworld.scenery import DRAWERS, Attributes, Palette, Rng, distinct, ink, mix, paint

# Colours by name. "named": of what an attribute names; "wild": unnatural but strong ones, chosen together.
TABLES = json.loads(Path(__file__).with_name("palettes.json").read_text(encoding="utf8"))
NAMED: dict[str, Palette] = TABLES["named"]
ATTRIBUTES = {
    "scene": tuple(DRAWERS),
    "style": ("impressionist", "flat", "watercolour", "expressionist"),
    "time": ("day", "sunset", "night"),
    "season": ("summer", "autumn", "winter"),
    "count": ("one", "two", "three"),
    "fruit": tuple(NAMED["fruit"]),
    "bowl": tuple(NAMED["bowl"]),
    "flower": tuple(NAMED["flower"]),
    "hair": tuple(NAMED["hair"]),
    "beard": ("yes", "no"),
    "hat": ("yes", "no"),
    "clothes": tuple(NAMED["clothes"]),
    "house": ("yes", "no")}  # fmt: skip
SKETCH_ATTRIBUTES = {name: ATTRIBUTES[name] for name in ("scene", "count", "beard", "hat", "house")}

APPLIES = {  # what varies in each scene besides its style
    "seascape": ("time", "count"), "lighthouse": ("time",), "mountain": ("time", "season", "house"),
    "village": ("time",), "house": ("time", "season"), "field": ("time", "season", "house"),
    "bridge": ("time", "house"), "fruit": ("fruit", "bowl"), "flowers": ("flower",), "bottle": ("fruit",),
    "portrait": ("hair", "beard", "hat", "clothes")}  # fmt: skip

GLOWING = ("sun", "moon", "lamp", "outline")


def sample_attributes(rng: Rng) -> Attributes:
    """A random scene with the attributes that apply to it."""
    attributes = {name: _pick(name, rng) for name in ("scene", "style")}
    attributes |= {name: _pick(name, rng) for name in APPLIES[attributes["scene"]]}
    attributes.setdefault("house", "yes" if attributes["scene"] in ("village", "house") else "no")
    if attributes["style"] == "expressionist":
        attributes.pop("season", None)  # unnatural colours show no season
    return attributes


def _pick(name: str, rng: Rng) -> str:
    return ATTRIBUTES[name][rng.integers(len(ATTRIBUTES[name]))]


def draw(attributes: Attributes, rng: Rng, size: int) -> Image.Image:
    """The scene as a painting, size x size pixels."""
    shapes, style = DRAWERS[attributes["scene"]](attributes, rng), attributes.get("style", "flat")
    outline = 1.3 * size / 64 if style == "expressionist" else 0
    image = paint(shapes, _palette(attributes, rng), size, outline)
    if style == "impressionist":
        image = brushwork(image, rng)
    if style == "watercolour":
        image = watercolour(image, rng)
    return sensor_noise(image, rng)


def draw_sketch(attributes: Attributes, rng: Rng, size: int) -> Image.Image:
    """The scene as a line drawing: same attributes and generator, same geometry as from `draw`."""
    shapes = DRAWERS[attributes["scene"]](attributes, rng)
    dark = mix((20, 18, 24), ((30, 34, 80), (70, 40, 24), (24, 24, 28))[rng.integers(3)], rng.uniform(0.3, 1))
    paper = tuple(int(channel) for channel in np.add((238, 234, 226), rng.integers(-6, 7, 3)))
    image = ink(shapes, size, dark, paper, rng.uniform(1.35, 1.8) * size / 64)
    return sensor_noise(image, rng, 1.2)


def _palette(attributes: Attributes, rng: Rng) -> Palette:
    style = attributes.get("style", "flat")
    wild = style == "expressionist"
    palette = TABLES["natural"] | TABLES["season"][attributes.get("season", "summer")]
    palette |= TABLES["wild"][rng.integers(len(TABLES["wild"]))] if wild else {}
    palette["river"] = palette["sea"] if wild else palette["river"]
    palette["sea_low"] = mix(palette["sea"], (0, 10, 50), 0.4)
    if "time" in APPLIES[attributes["scene"]]:  # outdoors
        palette |= _daylight(palette, attributes.get("time", "day"), style)
    else:
        palette |= _indoors(attributes, wild, rng)
    if style == "flat":  # plain colours do not fade
        palette = {role: colour for role, colour in palette.items() if not role.endswith("_low")}
    varied = np.array(list(palette.values())) + rng.normal(0, 5, (len(palette), 3))
    return dict(zip(palette, map(tuple, np.clip(varied, 0, 255).astype(int).tolist()), strict=True))


def _daylight(palette: Palette, time: str, style: str) -> Palette:
    """The palette in the light of that time of day, with its sky."""
    light = np.array(TABLES["light"][time]) ** (0.6 if style == "expressionist" else 1)
    lit = (np.array(list(palette.values())) * light).tolist()
    lit = dict(zip(palette, lit, strict=True)) | {role: palette[role] for role in GLOWING}
    lit["sky"], lit["sky_low"] = TABLES["wild_sky" if style == "expressionist" else "sky"][time]
    if style == "flat":
        lit["sky"] = {"day": (124, 190, 240), "sunset": (250, 162, 118)}.get(time, lit["sky"])
    if time == "sunset":
        lit["wall"] = mix(palette["wall"], lit["wall"], 0.4)  # walls catch the light and leave the orange sky
        lit["sun"] = (255, 92, 40) if style != "expressionist" else (255, 240, 80)
    if time == "night":
        lit["window"] = palette["lamp"]
    return lit


def _indoors(attributes: Attributes, wild: bool, rng: Rng) -> Palette:
    """Colours of the objects on a table or of a sitter, and a background that they stand out from."""
    named = {role: options[attributes.get(role, next(iter(options)))] for role, options in NAMED.items()}
    shown = [named[role] for role in named if role in attributes] or [(255, 255, 255)]
    named["skin"] = distinct(rng, TABLES["wild_skin" if wild else "skin"], [named["hair"]], 90)
    wall = distinct(rng, TABLES["wild_wallpaper" if wild else "wallpaper"], [*shown, named["skin"]])
    table = distinct(rng, TABLES["wild_wallpaper" if wild else "table"], [*shown, wall], 70)
    named |= {"backdrop": wall, "backdrop_low": mix(wall, (0, 0, 0), 0.15), "table": table}
    named["glass"] = distinct(rng, TABLES["glass"], [*shown, wall], 60)
    named["vase"] = distinct(rng, TABLES["vase"], [*shown, wall, table])
    named["hat"] = distinct(rng, TABLES["hat"], [*shown, wall])
    named["shine"] = mix(named["fruit"], (255, 255, 255), 0.5)
    named["shadow"] = mix(table, (0, 0, 0), 0.4)
    return named


def soft_noise(rng: np.random.Generator, size: int, cells: tuple[int, int], angle: float = 0) -> np.ndarray:
    """Smooth noise in [-1, 1], (size, size, 3): `cells` grains down and across, turned by `angle` radians."""
    grid = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    across, down = cells[1] / size, cells[0] / size
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = (across * cos, across * sin, 32 - across * size * (cos + sin) / 2,
              -down * sin, down * cos, 32 - down * size * (cos - sin) / 2)  # fmt: skip
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    picture = Image.fromarray(grid).transform((size, size), affine, matrix, bicubic)
    return np.asarray(picture, np.float32) / 127.5 - 1


def brushwork(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Soft short strokes of colour variation, mostly of brightness, in one direction."""
    noise = soft_noise(rng, image.width, (20, 7), rng.uniform(-0.9, 0.9))
    noise = 0.6 * noise[..., :1] + 0.4 * noise
    return _to_image(np.asarray(image, np.float32) + 24 * noise)


def watercolour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Pale washes with soft edges on light paper, which stays bare around the picture."""
    size = image.width
    colours = np.asarray(image.filter(ImageFilter.GaussianBlur(size / 90)), np.float32)
    wash = 0.74 * (1 + 0.25 * soft_noise(rng, size, (5, 5))[..., :1])
    edge = np.minimum(np.arange(size), np.arange(size)[::-1]) / size
    border = np.minimum(edge[:, None], edge[None])[..., None] + 0.02 * soft_noise(rng, size, (9, 9))[..., :1]
    wash *= np.clip((border - 0.03) / 0.04, 0, 1)
    paper = np.array([252, 248, 238], np.float32)
    return _to_image(paper - wash * (paper - colours))


def sensor_noise(image: Image.Image, rng: np.random.Generator, strength: float = 1.4) -> Image.Image:
    """Slight grain and one common change of brightness."""
    pixels = np.asarray(image, np.float32)
    grain = rng.standard_normal(pixels.shape[:2], dtype=np.float32)[..., None]
    return _to_image(pixels * rng.uniform(0.94, 1.05) + strength * grain)


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
