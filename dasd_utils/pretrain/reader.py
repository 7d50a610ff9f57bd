"""The attribute reader: trained on renders, and on what the VAE makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dasd_utils import toyworld
from dasd_utils.config import DasdError
from dasd_utils.pretrain.loop import fingerprint, fit
from dasd_utils.pretrain.settings import PretrainConfig
from dasd_utils.pretrain.vae import train_vae
from dasd_utils.pretrain.world import Images, read_rows
from dasd_utils.toyworld.attribute_classifier import SIZE, AttributeClassifier


def train_reader(config: PretrainConfig, work: Path, progress: bool = True) -> AttributeClassifier:
    """Cross-entropy of every attribute that a scene has, on augmented renders of all domains."""
    if config.resolution != SIZE:
        raise DasdError(f"The attribute reader sees {SIZE} pixels, not {config.resolution}.")
    torch.manual_seed(config.seed)
    reader = AttributeClassifier(toyworld.ATTRIBUTES)
    vae = train_vae(config, work, progress)
    images = Images(work, toyworld.DOMAINS)
    rows = [read_rows(work, domain) for domain in toyworld.DOMAINS]

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 4, step])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        picks = images.draw(rng, config.reader_batch_size)
        scenes = [(toyworld.DOMAINS[d], rows[d][i]["attributes"]) for d, i in picks]
        pixels = images.pixels(picks)
        with torch.autocast("cpu", torch.bfloat16):
            pixels = _augment(_through_vae(vae, pixels, len(pixels) // 8), rng, generator)
            logits = reader(pixels)
        return reader.table.loss(logits.float(), scenes)

    return fit(
        reader,
        loss_at,
        config.reader_steps,
        config,
        work / "reader",
        progress,
        inputs=fingerprint(work / "vae"),
    )


@torch.no_grad()
def _through_vae(vae: nn.Module, pixels: Tensor, count: int) -> Tensor:
    """Replace the first images by their reconstructions: generated pictures have the VAE's marks too."""
    decoded = vae.decode(vae.encode(pixels[:count]).latent_dist.mean).sample
    return torch.cat([decoded.float(), pixels[count:]])


def _augment(pixels: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Vary contrast, brightness, grain and place (by up to 3 pixels); (n, 3, h, w) in [-1, 1]."""
    shape = (len(pixels), 1, 1, 1)
    gain, shift = rng.uniform(0.85, 1.15, shape), rng.uniform(-0.1, 0.1, shape)
    grain = torch.from_numpy(rng.uniform(0, 0.06, shape)).float() * torch.randn(
        pixels.shape, generator=generator
    )
    down, right = rng.integers(-3, 4, 2)
    padded = nn.functional.pad(pixels, (3, 3, 3, 3), mode="replicate")
    height, width = pixels.shape[-2:]
    moved = padded[..., 3 + down : 3 + down + height, 3 + right : 3 + right + width]
    return moved * torch.from_numpy(gain).float() + torch.from_numpy(shift).float() + grain
