"""The autoencoder: 64 px images to 16 x 16 latents of unit variance in every channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from dasd_utils import toyworld
from dasd_utils.pretrain.loop import fit
from dasd_utils.pretrain.settings import PretrainConfig
from dasd_utils.pretrain.world import Images, grid


def vae_model(config: PretrainConfig) -> AutoencoderKL:
    """Return an untrained VAE without attention: what it learns on crops then holds for whole images."""
    levels = len(config.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=config.resolution,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def train_vae(config: PretrainConfig, work: Path, progress: bool = True) -> AutoencoderKL:
    """L1, squared error, edges and a little KL; on crops first, on whole images in the decay.

    A 32 px crop costs a quarter and teaches the same local lesson.
    """
    torch.manual_seed(config.seed)
    vae = vae_model(config)
    images = Images(work, toyworld.DOMAINS)
    half = config.resolution // 2

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 2, step])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        crops = step < config.decay_starts(config.vae_steps)
        pixels = images.pixels(images.draw(rng, config.vae_batch_size * (2 if crops else 1)))
        if crops:
            top, left = rng.integers(0, half + 1, 2)
            pixels = pixels[..., top : top + half, left : left + half]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels.contiguous()).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return reconstruction_loss(decoded.float(), pixels) + config.kl_weight * kl

    def preview(vae: nn.Module, path: Path) -> None:
        pixels = images.pixels(images.draw(np.random.default_rng(0), 12))
        grid(torch.cat([pixels, vae.decode(vae.encode(pixels).latent_dist.mean).sample]), path, columns=12)

    vae = fit(vae, loss_at, config.vae_steps, config, work / "vae", progress, preview)
    return normalise_latents(vae, images)


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1, squared error and L1 of the image gradients; (B, 3, h, w) in [-1, 1]."""
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * edges


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: Images) -> AutoencoderKL:
    """Fold mean and deviation of each latent channel into the 1x1 convolutions around the latents.

    Latents then have mean 0 and deviation 1 in every channel, and `scaling_factor` is 1.
    """
    picks = images.draw(np.random.default_rng(0), 1024)
    moments = [vae.encode(images.pixels(picks[i : i + 64])).latent_dist.mean for i in range(0, 1024, 64)]
    latents = torch.cat(moments)  # (1024, 4, h, w)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.bias[channels:] -= 2 * deviation.log()  # log-variance of the scaled latents
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= deviation[None, :, None, None]
    return vae
