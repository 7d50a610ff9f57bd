"""What the alignment term does inside: its gradient beside that of the noise prediction, and the features."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dasd_utils import losses, metrics, training
from dasd_utils.runtime import processes

if TYPE_CHECKING:
    from dasd_utils import models
    from dasd_utils.config import Config
    from dasd_utils.latents import Sampler


class Pull(NamedTuple):
    """Two gradients of one batch, over all that trains."""

    noise: float  # norm of that of the noise prediction
    align: float  # norm of lambda_align times that of the MMD
    cosine: float  # between the two: below 0 they undo each other


def gradient_pulls(
    parts: models.Parts, sampler: Sampler, config: Config, steps: Sequence[int], warm: int = 4
) -> list[Pull]:
    """Return the pulls at the training batches of these steps, without an update.

    The queue holds the `warm` batches before the first; of a step only the first micro-batch counts.
    lambda_align must not be 0.
    """
    if processes.default_device().type == "cuda":  # for two gradients the graph takes more than in training
        config = config.replace(gradient_checkpointing=True)
    updater = training.Updater(config, parts)
    objective, found = losses.DasdObjective(config), []
    first = min(steps)
    for step in (*range(max(first - warm, 0), first), *steps):
        batch = sampler.batch(step).to(updater.device, torch.float32)
        with updater.autocast():
            eps, mid = losses.predict_batch(parts, batch, config)
            noise = losses.noise_loss(parts, batch, eps, config)
            rows = losses.alignment_features(mid, batch, parts, config)
            distances = objective.distances(rows, batch, config)
        if step >= first and distances:
            mmd, weight = torch.stack(list(distances.values())).mean(), config.alignment.lambda_align
            # the weight comes last: fp16 loses a gradient that is too small
            two = weight * _gradient(mmd, updater.parameters, retain_graph=True)  # needs half of the graph
            one = _gradient(noise, updater.parameters)
            cosine = functional.cosine_similarity(one, two, dim=0)
            found.append(Pull(one.norm().item(), two.norm().item(), cosine.item()))
    return found


def _gradient(loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False) -> Tensor:
    """All of it in one row; what the loss does not reach (up-blocks, by the MMD) counts as 0."""
    found = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def pull_ratio(pulls: Sequence[Pull]) -> tuple[float, float, float]:
    """Return (mean, low, high) at 95 %, by Student's t, of align / noise over three batches or more."""
    ratios = torch.tensor([pull.align / pull.noise for pull in pulls], dtype=torch.float64)
    return metrics.jackknife(lambda rows: ratios[rows].mean().item(), len(ratios))


@torch.no_grad()
def features(parts: models.Parts, sampler: Sampler, config: Config, steps: int) -> dict[str, Tensor]:
    """Return mean-pooled features (n, d) of each domain over training batches, LoRA on for the source too."""
    found: dict[str, list[Tensor]] = {}
    for step in range(steps):
        batch = sampler.batch(step).to(parts.unet.device, torch.float32)
        with processes.autocast(config.training.mixed_precision, parts.unet.device):
            _, mid = losses.predict_noise(parts, batch, with_source=True, layer=config.alignment.layer)
        rows, count = losses.pool_features(mid.float(), "mean"), len(batch.target_latents)
        found.setdefault(config.source.name, []).append(rows[count:])
        for name, places in losses.domain_rows(batch, config).items():
            found.setdefault(name, []).append(rows[:count][places])
    return {name: torch.cat(each) for name, each in found.items()}


def separation(source: Tensor, target: Tensor, num_bootstrap: int = 1000) -> tuple[float, float, float]:
    """Return the unbiased squared MMD of two sets of features, five bandwidths, and its 95 % interval."""
    bandwidth = losses.median_bandwidth(source, target).item()
    kernel = functools.partial(losses.multi_kernel, sigma=bandwidth)
    return metrics.mmd_estimate(source.cpu(), target.cpu(), kernel, num_bootstrap=num_bootstrap).interval()
