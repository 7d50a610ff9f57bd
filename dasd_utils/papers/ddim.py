"""DDIM between any two times (arXiv 2010.02502, eta 0): to the noise or back from it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from dasd_utils.guidance import Prediction


def ddim_times(last: int, steps: int) -> list[int]:
    """Return the times from a clean image, -1, in so many steps to the last one: [-1, ..., last - 1]."""
    return [round(last * step / steps) - 1 for step in range(steps + 1)]


def alpha_at(alphas_cumprod: Tensor, time: int) -> Tensor:
    """Return the share of the image at a time, (); 1 for a clean one, -1."""
    return torch.ones(()) if time < 0 else alphas_cumprod[time].float()


def ddim_step(x: Tensor, eps: Tensor, now: int, after: int, alphas_cumprod: Tensor) -> Tensor:
    """Return x at the time `after`: the image and the noise that eps says, mixed anew; (B, C, h, w)."""
    a, b = (alpha_at(alphas_cumprod, time).to(x.device) for time in (now, after))
    clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
    return b.sqrt() * clean + (1 - b).sqrt() * eps


def follow(predict: Prediction, x: Tensor, times: Sequence[int], alphas_cumprod: Tensor) -> Tensor:
    """Return x (B, C, h, w) taken through these times, one after the other, in either direction."""
    for now, after in itertools.pairwise(times):
        eps = predict(x, torch.tensor(max(now, 0), device=x.device)).float()
        x = ddim_step(x, eps, now, after, alphas_cumprod)
    return x
