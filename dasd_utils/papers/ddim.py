"""DDIM with eta 0 between any two times (arXiv 2010.02502): to the noise or back from it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from dasd_utils.guidance import Prediction


def ddim_times(last: int, steps: int) -> list[int]:
    """Return [-1, ..., last - 1]: the times of so many steps from a clean image, -1, to time `last`."""
    return [round(last * step / steps) - 1 for step in range(steps + 1)]


def alpha_at(alphas_cumprod: Tensor, time: int) -> Tensor:
    """Return the share of the image at a time, (); 1 for a clean one, -1."""
    return torch.ones(()) if time < 0 else alphas_cumprod[time].float()


def ddim_step(x: Tensor, eps: Tensor, now: int, after: int, alphas_cumprod: Tensor) -> Tensor:
    """Return x (B, C, h, w) at the time `after`: predicted_x0 and eps mixed by that time's share."""
    a, b = (alpha_at(alphas_cumprod, time).to(x.device) for time in (now, after))
    predicted_x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    return b.sqrt() * predicted_x0 + (1 - b).sqrt() * eps


def follow(predict: Prediction, x: Tensor, times: Sequence[int], alphas_cumprod: Tensor) -> Tensor:
    """Return x (B, C, h, w) after steps through these times, in either direction."""
    for now, after in itertools.pairwise(times):
        eps = predict(x, torch.tensor(max(now, 0), device=x.device)).float()
        x = ddim_step(x, eps, now, after, alphas_cumprod)
    return x
