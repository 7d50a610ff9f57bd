"""A UNet that needs no text: every cross-attention puts out one vector, which is learned (arXiv 2312.08195).

The vector stands where `diffusers` has the bias of the layer's last projection, whose weights are 0 then: the
UNet saved is one that `UNet2DConditionModel` computes as it is, and alike for every text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dasd_utils import models, sampling

CROSS = ".attn2"
IDLE = re.compile(r".*\.transformer_blocks\.\d+\.(norm2\..*|attn2\.(?!to_out\.0\.bias$).*)")


def cross_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """Return every cross-attention of a UNet by its name."""
    return {name: module for name, module in unet.named_modules() if name.endswith(CROSS)}


def is_idle(name: str) -> bool:
    """Return whether a parameter of this name does nothing in a text-free UNet."""
    return IDLE.fullmatch(name) is not None


@torch.no_grad()
def mean_outputs(unet: nn.Module, passes: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the mean output (d,) of every cross-attention over passes of (x_t, timesteps, empty text)."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def noting(name: str) -> Any:
        def note(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            rows = output.double().flatten(0, -2)
            sums[name] = sums.get(name, 0) + rows.sum(dim=0)
            counts[name] = counts.get(name, 0) + len(rows)

        return note

    layers = cross_attentions(unet)
    hooks = [layer.register_forward_hook(noting(name)) for name, layer in layers.items()]
    try:
        for noisy, timesteps, empty in passes:
            unet(noisy, timesteps, encoder_hidden_states=empty)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sums[name] / counts[name] for name in layers}


@torch.no_grad()
def fold_constants(unet: nn.Module, found: dict[str, Tensor]) -> None:
    """Put the constants where the last projection has its bias, and 0 for weights that no longer count."""
    for name, layer in cross_attentions(unet).items():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.to_out[0].bias.copy_(found[name])


# The start of a text-free UNet: constants for what its cross-attentions make of the empty prompt.


IMAGES, STEPS, TIMES = 8, 10, 8


def open_text_free(parts: models.Parts) -> None:
    """Turn a UNet that learns whole into the text-free copy of arXiv 2312.08195; the base's weights are kept.

    Each constant is the mean, over images, places and timesteps, of what the layer puts out for the empty
    prompt, on images that the base itself draws of nothing: the same for every seed. Computed where the parts
    are.
    """
    empty = models.encode_prompts(parts, [""]).detach()
    found = mean_outputs(parts.unet, _passes(parts, empty))
    fold_constants(parts.unet, found)
    parts.frozen_names = {name for name, _ in parts.unet.named_parameters() if is_idle(name)}


@torch.no_grad()
def _passes(parts: models.Parts, empty: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(x_t, timesteps, text) of the base's own images, at timesteps over the whole range."""
    unet, text = parts.unet, empty.expand(IMAGES, -1, -1)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        return unet(latents, timestep, encoder_hidden_states=text).sample

    shape, scheduler = models.latent_shape(parts), parts.noise_scheduler
    noise = torch.stack([sampling.initial_noise(shape, 0, i) for i in range(2 * IMAGES)]).to(empty.device)
    drawn = sampling.denoise(predict, sampling.make_scheduler("ddim", scheduler), noise[:IMAGES], STEPS)
    last = scheduler.config.num_train_timesteps - 1
    times = torch.linspace(0, last, TIMES, device=empty.device).long()
    rows = [time.expand(IMAGES) for time in times]
    return [(scheduler.add_noise(drawn, noise[IMAGES:], row), row, text) for row in rows]
