"""A classifier for a domain without labels: trained on one set of images after another, tested on real ones.

The question is how much of the way from source images to labelled target images a translation goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from dasd_utils import probe, uncertainty
from dasd_utils.uncertainty import Estimate

STRONGEST = 98  # percentile of the gradient that is drawn black
DRAWS = 1000  # of test images, for intervals


@dataclass(frozen=True)
class Labelled:
    """Images as a probe sees them, and what each shows."""

    pixels: Tensor  # (n, 3, 32, 32)
    labels: list[str]

    @classmethod
    def of(cls, images: Sequence[Image.Image], labels: Sequence[str]) -> Labelled:
        """Return images with their labels; ValueError where their numbers differ."""
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images came with {len(labels)} labels.")
        return cls(probe.pixels(images), list(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, other: Labelled) -> Labelled:
        """Return both together."""
        return Labelled(torch.cat([self.pixels, other.pixels]), self.labels + other.labels)


def edges(picture: Image.Image) -> Image.Image:
    """Return the outlines of a picture, black on white: what translation to a drawing has to beat."""
    grey = ndimage.gaussian_filter(np.asarray(picture.convert("L"), np.float32), 0.7)
    strength = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    most = np.percentile(strength, STRONGEST)
    ink = np.clip(strength / most, 0, 1) if most > 0 else np.zeros_like(strength)
    return Image.fromarray((255 * (1 - ink)).astype(np.uint8)).convert("RGB")


def answers(
    train: Mapping[str, Labelled],
    test: Mapping[str, Labelled],
    seed: int,
    epochs: int = probe.EPOCHS,
) -> dict[tuple[str, str], Tensor]:
    """Return (trained on, tested on) -> which images are got right after each epoch, (E, n); 1 or 0."""
    found = {(name, where): torch.zeros(epochs, len(own)) for name in train for where, own in test.items()}
    for name, own in train.items():

        def watch(epoch: int, made: probe.Probe, name: str = name) -> None:
            for where, asked in test.items():
                said = made.classify(asked.pixels)
                right = [a == b for a, b in zip(said, asked.labels, strict=True)]
                found[name, where][epoch - 1] = torch.tensor(right, dtype=torch.float32)

        probe.fit(own.pixels, own.labels, seed, epochs, watch)
    return found


def estimate(right: Tensor) -> Estimate:
    """Return the share of ones in (S, n), S seeds and n images, with what other images would make of it."""
    weights = uncertainty.draws(right.shape[1], DRAWS, seed=0)
    return Estimate(right.double().mean(dim=1), weights @ right.double().T / right.shape[1], right.shape[1])


def share_of_the_gap(own: Tensor, low: Tensor, high: Tensor) -> tuple[float, float, float]:
    """Return how much of the way from `low` to `high` is gone, with its 95 % interval; right ones, (S, n).

    0: no better than the source; 1: as good as labelled target images. The ratio of mean differences; its
    variance is that over seeds, each left out once, plus that over draws of images. All nan where `high` is
    not above `low` beyond its interval: there is no gap. Raises ValueError for fewer than three seeds.
    """
    counted = [estimate(each) for each in (own, low, high)]

    if not counted[2].minus(counted[1]).interval()[1] > 0:
        return math.nan, math.nan, math.nan

    def share(values: Sequence[Tensor]) -> Tensor:
        return (values[0] - values[1]).mean(dim=-1) / (values[2] - values[1]).mean(dim=-1)

    seeds, images = own.shape
    value, of_seeds = uncertainty.leave_one_out(
        lambda rows: share([each.values[rows] for each in counted]).item(), seeds
    )
    of_images = share([each.draws for each in counted]).var().item() * images / (images - 1)
    half = uncertainty.half_width(((of_images, images - 1), (of_seeds, seeds - 1)))
    return value, value - half, value + half
