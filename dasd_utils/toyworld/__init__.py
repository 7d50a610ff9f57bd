"""A small world to learn from: captioned scenes with ground-truth attributes, in four domains.

This file draws and captions any scene. The others, in reading order:

- scenery: shapes, renderers that paint or ink them, and layouts of the painted scenes
- painting: the painting domain, coloured from palettes.json, and the sketch domain from the same scenes
- satellite: aerial pictures
- xray: chest x-rays
- captions: English captions of a scene, joined from the tables in wordings.json, and everyday English
- attribute_classifier: a network that reads a picture's attributes
"""

import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dasd_utils.toyworld import captions, painting, satellite, xray

DOMAINS = ("painting", "satellite", "xray", "sketch")
_MODULES = {"painting": painting, "satellite": satellite, "xray": xray, "sketch": painting}
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {name: _MODULES[name].ATTRIBUTES for name in DOMAINS}
ATTRIBUTES["sketch"] = painting.SKETCH_ATTRIBUTES


@dataclass(frozen=True)
class Scene:
    """One rendered scene; `attributes` are those that the picture shows."""

    domain: str
    image: Image.Image  # RGB, square
    caption: str
    attributes: dict[str, str]


def _generator(domain: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    world = "painting" if domain == "sketch" else domain  # a sketch shows the painting of its index
    return np.random.default_rng([zlib.crc32(world.encode()), seed, index, purpose])


def attributes(domain: str, seed: int, index: int) -> dict[str, str]:
    """Return what scene `index` shows, without drawing it."""
    drawn = _MODULES[domain].sample_attributes(_generator(domain, seed, index, 0))
    return {name: value for name, value in drawn.items() if name in ATTRIBUTES[domain]}


def draw(domain: str, seed: int, index: int, size: int = 64) -> Image.Image:
    """Draw scene `index` as an RGB image of size x size pixels."""
    module = _MODULES[domain]
    sampled = module.sample_attributes(_generator(domain, seed, index, 0))
    draw_scene = painting.draw_sketch if domain == "sketch" else module.draw
    return draw_scene(sampled, _generator(domain, seed, index, 1), size)


def render(domain: str, seed: int, index: int, size: int = 64) -> Scene:
    """Return a captioned scene of its (domain, seed, index); a sketch shows what the painting shows."""
    caption = caption_variants(domain, seed, index, 1)[0]
    return Scene(domain, draw(domain, seed, index, size), caption, attributes(domain, seed, index))


def caption_variants(domain: str, seed: int, index: int, n: int = 5) -> list[str]:
    """Return n captions of one scene; the first is the caption that `render` gives."""
    return [text for text, _ in captions_with_mentions(domain, seed, index, n)]


def captions_with_mentions(
    domain: str, seed: int, index: int, n: int = 5
) -> list[tuple[str, dict[str, str]]]:
    """Return n captions of one scene, each with the attributes that it mentions."""
    shown = attributes(domain, seed, index)
    generators = (_generator(domain, seed, index, 2 + i) for i in range(n))
    return [captions.compose_caption(domain, shown, rng) for rng in generators]
