"""The start of a text-free UNet: constants for what its cross-attentions make of the empty prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from dasd_utils import denoising, models
from dasd_utils.papers import cross_attention

IMAGES, STEPS, TIMES = 8, 10, 8


def open_text_free(parts: models.Parts) -> None:
    """Turn a UNet that learns whole into the text-free copy of arXiv 2312.08195; the base's weights are kept.

    Each constant is the mean, over images, places and timesteps, of what the layer puts out for the empty
    prompt, on images that the base itself draws of nothing: the same for every seed. Computed where the parts
    are.
    """
    empty = models.encode_prompts(parts, [""]).detach()
    found = cross_attention.constants(parts.unet, _passes(parts, empty))
    cross_attention.fold(parts.unet, found)
    cross_attention.install(parts.unet)


@torch.no_grad()
def _passes(parts: models.Parts, empty: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(x_t, timesteps, text) of the base's own images, at timesteps over the whole range."""
    unet, text = parts.unet, empty.expand(IMAGES, -1, -1)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        return unet(latents, timestep, encoder_hidden_states=text).sample

    shape, scheduler = models.latent_shape(parts), parts.noise_scheduler
    noise = torch.stack([denoising.initial_noise(shape, 0, i) for i in range(2 * IMAGES)]).to(empty.device)
    drawn = denoising.denoise(predict, denoising.make_scheduler("ddim", scheduler), noise[:IMAGES], STEPS)
    last = scheduler.config.num_train_timesteps - 1
    times = torch.linspace(0, last, TIMES, device=empty.device).long()
    rows = [time.expand(IMAGES) for time in times]
    return [(scheduler.add_noise(drawn, noise[IMAGES:], row), row, text) for row in rows]
