"""A UNet that needs no text: every cross-attention puts out one vector, which is learned (arXiv 2312.08195).

The vector stands where `diffusers` has the bias of the layer's last projection, whose weights are 0 then: the
UNet saved is one that `UNet2DConditionModel` computes as it is, and alike for every text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

CROSS = ".attn2"
IDLE = re.compile(r".*\.transformer_blocks\.\d+\.(norm2\..*|attn2\.(?!to_out\.0\.bias$).*)")


class ConstantAttention:
    """A processor that puts out the layer's constant where `active`, and attends to the text elsewhere."""

    def __init__(self, attending: Any) -> None:
        self.attending, self.active = attending, True

    def __call__(self, layer: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        if not self.active:
            return self.attending(layer, hidden_states, *args, **options)
        return layer.to_out[0].bias.to(hidden_states.dtype).expand_as(hidden_states)


def cross_attentions(unet: nn.Module) -> dict[str, Attention]:
    """Return every cross-attention of a UNet by its name."""
    return {name: module for name, module in unet.named_modules() if name.endswith(CROSS)}


def is_idle(name: str) -> bool:
    """Return whether a parameter of this name does nothing in a text-free UNet."""
    return IDLE.fullmatch(name) is not None


def is_text_free(unet: nn.Module) -> bool:
    """Return whether the cross-attentions of a UNet put out constants."""
    return any(isinstance(layer.processor, ConstantAttention) for layer in cross_attentions(unet).values())


def is_active(unet: nn.Module) -> bool:
    """Return whether they do now."""
    layers = cross_attentions(unet).values()
    return any(getattr(layer.processor, "active", False) for layer in layers)


def install(unet: nn.Module) -> None:
    """Let every cross-attention put out its constant, and leave the rest of it unused."""
    for layer in cross_attentions(unet).values():
        layer.set_processor(ConstantAttention(layer.processor))


def switch(unet: nn.Module, active: bool) -> None:
    """Let the cross-attentions put out their constants, or attend to the text again."""
    for layer in cross_attentions(unet).values():
        if isinstance(layer.processor, ConstantAttention):
            layer.processor.active = active


@torch.no_grad()
def constants(unet: nn.Module, passes: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
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
def fold(unet: nn.Module, found: dict[str, Tensor]) -> None:
    """Put the constants where the last projection has its bias, and 0 for weights that no longer count."""
    for name, layer in cross_attentions(unet).items():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.to_out[0].bias.copy_(found[name])
