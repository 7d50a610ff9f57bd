"""A UNet that needs no text: each cross-attention outputs one vector, which is learned (arXiv 2312.08195).

The vector takes the place of the bias of the layer's last projection, whose weights are then 0. So plain
diffusers loads the saved UNet, and every text gives the same output.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dasd_utils import models, sampling

CROSS = ".attn2"
IDLE = re.compile(r".*\.transformer_blocks\.\d+\.(norm2\..*|attn2\.(?!to_out\.0\.bias$).*)")
IMAGES, STEPS, TIMES = 8, 10, 8  # by which the constants are estimated


def open_text_free(parts: models.Parts) -> None:
    """Turn a UNet whose weights all learn into the text-free copy of arXiv 2312.08195; the base's are kept.

    Each constant is a layer's mean output, over places, timesteps and generated images, for the empty prompt.
    """
    empty = models.encode_prompts(parts, [""]).detach()
    constants = mean_outputs(parts.unet, _passes(parts, empty))
    with torch.no_grad():
        for name, layer in cross_attentions(parts.unet).items():
            for parameter in layer.parameters():
                parameter.zero_()
            layer.to_out[0].bias.copy_(constants[name])
    parts.frozen_names = {name for name, _ in parts.unet.named_parameters() if is_idle(name)}


def cross_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """Return every cross-attention of a UNet by its name."""
    return {name: module for name, module in unet.named_modules() if name.endswith(CROSS)}


def is_idle(name: str) -> bool:
    """Return whether a parameter of this name has no effect in a text-free UNet."""
    return IDLE.fullmatch(name) is not None


@torch.no_grad()
def _passes(parts: models.Parts, empty: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (x_t, timesteps, text) of images that the base generates, at timesteps over the full range."""
    unet, text = parts.unet, empty.expand(IMAGES, -1, -1)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        return unet(latents, timestep, encoder_hidden_states=text).sample

    shape, scheduler = models.latent_shape(parts), parts.noise_scheduler
    noise = torch.stack([sampling.initial_noise(shape, 0, i) for i in range(2 * IMAGES)]).to(empty.device)
    clean = sampling.denoise(predict, sampling.make_scheduler("ddim", scheduler), noise[:IMAGES], STEPS)
    last = scheduler.config.num_train_timesteps - 1
    times = torch.linspace(0, last, TIMES, device=empty.device).long()
    rows = [time.expand(IMAGES) for time in times]
    return [(scheduler.add_noise(clean, noise[IMAGES:], row), row, text) for row in rows]


@torch.no_grad()
def mean_outputs(unet: nn.Module, passes: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the mean output (d,) of every cross-attention over passes of (x_t, timesteps, empty text)."""
    layers = cross_attentions(unet)
    sums, counts = (dict.fromkeys(layers.values(), 0) for _ in range(2))

    def add(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        rows = output.double().flatten(0, -2)
        sums[layer] += rows.sum(dim=0)
        counts[layer] += len(rows)

    hooks = [layer.register_forward_hook(add) for layer in layers.values()]
    for noisy, timesteps, empty in passes:
        unet(noisy, timesteps, encoder_hidden_states=empty)
    for hook in hooks:
        hook.remove()
    return {name: sums[layer] / counts[layer] for name, layer in layers.items()}
