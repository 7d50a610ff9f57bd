"""The painting domain, and the same scenes as line drawings for the sketch domain.

Every scene is laid out once, as a list of shapes; a palette colours it, or a pen outlines it.
"""

import numpy as np
from PIL import Image, ImageFilter

from dasd_utils.toyworld.scenery import DRAWERS, Attributes, Palette, Rng, distinct, ink, mix, paint

# Colours that an attribute names.
FRUIT = {"apples": (208, 34, 42), "oranges": (246, 138, 22), "grapes": (112, 44, 150),
         "lemons": (252, 226, 48), "pears": (150, 196, 62)}  # fmt: skip
BOWL = {"white": (244, 242, 236), "blue": (38, 82, 180), "green": (28, 122, 72)}
FLOWER = {"red": (214, 30, 44), "yellow": (252, 208, 36), "blue": (48, 84, 204), "white": (248, 246, 240)}
HAIR = {"black": (28, 24, 28), "brown": (102, 60, 30), "blond": (244, 206, 72), "grey": (172, 174, 180),
        "red": (206, 84, 28)}  # fmt: skip
CLOTHES = {"red": (202, 36, 40), "blue": (44, 84, 186), "green": (42, 132, 70), "black": (36, 36, 42),
           "white": (244, 242, 238), "yellow": (246, 206, 48)}  # fmt: skip

ATTRIBUTES = {
    "scene": ("seascape", "lighthouse", "mountain", "village", "house", "field", "bridge", "fruit", "flowers",
              "bottle", "portrait"),
    "style": ("impressionist", "flat", "watercolour", "expressionist"),
    "time": ("day", "sunset", "night"),
    "season": ("summer", "autumn", "winter"),
    "count": ("one", "two", "three"),
    "fruit": tuple(FRUIT),
    "bowl": tuple(BOWL),
    "flower": tuple(FLOWER),
    "hair": tuple(HAIR),
    "beard": ("yes", "no"),
    "hat": ("yes", "no"),
    "clothes": tuple(CLOTHES),
    "house": ("yes", "no"),
}  # fmt: skip
SKETCH_ATTRIBUTES = {name: ATTRIBUTES[name] for name in ("scene", "count", "beard", "hat", "house")}

OUTDOOR = ("seascape", "lighthouse", "mountain", "village", "house", "field", "bridge")
APPLIES = {  # what varies in each scene besides its style
    "seascape": ("time", "count"), "lighthouse": ("time",), "mountain": ("time", "season", "house"),
    "village": ("time",), "house": ("time", "season"), "field": ("time", "season", "house"),
    "bridge": ("time", "house"), "fruit": ("fruit", "bowl"), "flowers": ("flower",), "bottle": ("fruit",),
    "portrait": ("hair", "beard", "hat", "clothes"),
}  # fmt: skip

NATURAL: Palette = {
    "sun": (255, 226, 110), "moon": (250, 246, 216), "cloud": (250, 250, 252), "outline": (24, 18, 34),
    "sea": (52, 116, 172), "sea_low": (24, 70, 124), "wave": (176, 210, 230), "hull": (112, 58, 34),
    "sail": (250, 244, 228), "mast": (70, 44, 30), "rock": (112, 100, 96), "stripe": (206, 48, 44),
    "white": (246, 244, 240), "lamp": (255, 236, 120), "mountain": (116, 118, 142), "far": (150, 152, 172),
    "snow": (248, 250, 254), "trunk": (96, 62, 38), "wall": (242, 226, 196), "roof": (188, 66, 44),
    "door": (100, 58, 36), "window": (70, 90, 120), "stone": (186, 158, 124), "joint": (104, 84, 70),
    "arch": (44, 58, 76), "river": (84, 150, 196), "stem": (62, 128, 58), "heart": (120, 74, 20),
    "skin": (236, 196, 164), "eye": (28, 20, 24), "mouth": (140, 26, 44), "label": (240, 230, 204),
    "stalk": (84, 56, 34),
}  # fmt: skip
SEASON: dict[str, Palette] = {
    "summer": {"land": (124, 178, 66), "furrow": (206, 196, 84), "tree": (42, 116, 48), "pine": (26, 84, 52),
               "hill": (88, 148, 70)},
    "autumn": {"land": (196, 146, 66), "furrow": (140, 88, 48), "tree": (226, 104, 26), "pine": (176, 92, 28),
               "hill": (170, 116, 62)},
    "winter": {"land": (240, 244, 250), "furrow": (184, 200, 222), "tree": (146, 128, 136),
               "pine": (120, 152, 156), "hill": (216, 226, 238), "roof": (234, 240, 248),
               "wall": (196, 150, 112)},
}  # fmt: skip
WILD: tuple[Palette, ...] = (  # unnatural but strong colours, chosen together
    {"land": (232, 70, 130), "furrow": (250, 190, 40), "tree": (20, 90, 200), "pine": (20, 70, 180),
     "hill": (130, 40, 170), "mountain": (60, 60, 200), "far": (40, 170, 150), "wall": (250, 220, 60),
     "roof": (30, 80, 200), "stone": (250, 150, 40), "sea": (20, 70, 200), "rock": (220, 50, 100)},
    {"land": (250, 140, 20), "furrow": (150, 40, 160), "tree": (210, 30, 60), "pine": (190, 20, 70),
     "hill": (20, 140, 110), "mountain": (230, 60, 120), "far": (120, 60, 190), "wall": (90, 210, 200),
     "roof": (150, 30, 140), "stone": (230, 80, 130), "sea": (10, 120, 120), "rock": (240, 120, 30)},
    {"land": (20, 150, 90), "furrow": (240, 90, 50), "tree": (250, 190, 20), "pine": (110, 30, 150),
     "hill": (30, 70, 180), "mountain": (240, 100, 40), "far": (210, 40, 100), "wall": (250, 120, 150),
     "roof": (220, 30, 50), "stone": (150, 80, 210), "sea": (80, 40, 170), "rock": (20, 140, 90)},
)  # fmt: skip
SKY = {"day": ((84, 156, 226), (196, 226, 246)), "sunset": ((118, 76, 150), (255, 156, 72)),
       "night": ((14, 20, 62), (44, 62, 122))}  # fmt: skip
WILD_SKY = {"day": ((40, 190, 210), (250, 236, 120)), "sunset": ((214, 30, 70), (255, 170, 30)),
            "night": ((36, 10, 92), (40, 50, 160))}  # fmt: skip
LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.82, 0.74), "night": (0.5, 0.54, 0.74)}
GLOWING = ("sun", "moon", "lamp", "outline")
WALLPAPER = [(120, 140, 112), (92, 116, 150), (188, 152, 96), (150, 98, 92), (206, 196, 176), (88, 82, 100),
             (160, 176, 190), (128, 104, 136)]  # fmt: skip
WILD_WALLPAPER = [(232, 60, 130), (20, 150, 140), (250, 150, 20), (90, 50, 180), (40, 190, 220),
                  (190, 30, 60), (170, 210, 40)]  # fmt: skip
VASE = [(60, 130, 140), (176, 92, 58), (236, 226, 200), (84, 70, 130)]
GLASS = [(22, 74, 44), (60, 32, 26), (30, 48, 96)]
HAT = [(40, 44, 60), (112, 66, 40), (226, 206, 160), (70, 110, 80)]
TABLE = [(138, 90, 54), (196, 150, 100), (232, 226, 214), (96, 66, 50), (110, 130, 120)]
SKIN = [(242, 206, 178), (224, 178, 140), (190, 138, 98), (150, 100, 70)]
WILD_SKIN = [(130, 204, 130), (252, 196, 70), (248, 140, 160), (110, 176, 232)]


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
    """Colour of every role, slightly varied."""
    style = attributes.get("style", "flat")
    wild = style == "expressionist"
    palette = NATURAL | SEASON[attributes.get("season", "summer")]
    palette |= WILD[rng.integers(len(WILD))] if wild else {}
    palette["river"] = palette["sea"] if wild else palette["river"]
    palette["sea_low"] = mix(palette["sea"], (0, 10, 50), 0.4)
    if attributes["scene"] in OUTDOOR:
        palette |= _daylight(palette, attributes.get("time", "day"), style)
    else:
        palette |= _indoors(attributes, wild, rng)
    if style == "flat":  # plain colours do not fade
        palette = {role: colour for role, colour in palette.items() if not role.endswith("_low")}
    varied = np.array(list(palette.values())) + rng.normal(0, 5, (len(palette), 3))
    return dict(zip(palette, map(tuple, np.clip(varied, 0, 255).astype(int).tolist()), strict=True))


def _daylight(palette: Palette, time: str, style: str) -> Palette:
    """The palette in the light of that time of day, with its sky."""
    light = np.array(LIGHT[time]) ** (0.6 if style == "expressionist" else 1)
    lit = (np.array(list(palette.values())) * light).tolist()
    lit = dict(zip(palette, lit, strict=True)) | {role: palette[role] for role in GLOWING}
    lit["sky"], lit["sky_low"] = (WILD_SKY if style == "expressionist" else SKY)[time]
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
    tables = {"fruit": FRUIT, "bowl": BOWL, "flower": FLOWER, "hair": HAIR, "clothes": CLOTHES}
    named = {role: options[attributes.get(role, next(iter(options)))] for role, options in tables.items()}
    shown = [named[role] for role in named if role in attributes] or [(255, 255, 255)]
    named["skin"] = distinct(rng, WILD_SKIN if wild else SKIN, [named["hair"]], 90)
    wall = distinct(rng, WILD_WALLPAPER if wild else WALLPAPER, [*shown, named["skin"]])
    table = distinct(rng, WILD_WALLPAPER if wild else TABLE, [*shown, wall], 70)
    named |= {"backdrop": wall, "backdrop_low": mix(wall, (0, 0, 0), 0.15), "table": table}
    named["glass"] = distinct(rng, GLASS, [*shown, wall], 60)
    named["vase"] = distinct(rng, VASE, [*shown, wall, table])
    named["hat"] = distinct(rng, HAT, [*shown, wall])
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
