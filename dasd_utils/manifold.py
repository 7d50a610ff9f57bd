"""Metrics of two sets of features beyond a distance of distributions: fidelity, diversity, copying.

Features are (n, d) tensors of any encoder; distances are Euclidean unless another matrix is given.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy import linalg
from torch import Tensor


class Manifold(NamedTuple):
    """How two sets of samples cover each other, by balls around each sample to its k-th neighbour."""

    precision: float  # share of generated samples inside a real ball
    recall: float  # share of real samples inside a generated ball
    density: float  # real balls that hold a generated sample, on average, over k
    coverage: float  # share of real balls that hold a generated sample


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return Euclidean distances, (n, d), (m, d) -> (n, m), in float64 and without cancellation."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def manifold(generated: Tensor, real: Tensor, k: int = 5) -> Manifold:
    """Return precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    generated: (n, d); real: (m, d). Raises ValueError unless each set has more than k samples.
    """
    if min(len(generated), len(real)) <= k:
        counts = f"{len(generated)} generated and {len(real)} real"
        raise ValueError(f"There are {counts} samples; each set takes more than k = {k}.")
    across = distances(generated, real)  # (n, m)
    real_inside = across <= _radii(real, k)[None]
    generated_inside = across <= _radii(generated, k)[:, None]
    return Manifold(
        precision=real_inside.any(dim=1).double().mean().item(),
        recall=generated_inside.any(dim=0).double().mean().item(),
        density=real_inside.sum(dim=1).double().mean().item() / k,
        coverage=real_inside.any(dim=0).double().mean().item(),
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance (n,) of each sample to its k-th neighbour; the nearest of all is itself."""
    return distances(x, x).kthvalue(k + 1, dim=1).values


def frechet(x: Tensor, y: Tensor) -> float:
    """Return the Frechet distance of Gaussians fitted to two sets (arXiv 1706.08500): the FID of Inception's.

    It is biased upwards where the sets are few: give n with it, and compare equal n only.
    """
    x, y = x.double(), y.double()
    means = (x.mean(dim=0) - y.mean(dim=0)).square().sum().item()
    one, two = (torch.atleast_2d(each.T.cov()) for each in (x, y))
    product = linalg.eigvals((one @ two).numpy()).real  # the root's trace is the sum of its roots
    root = float((product.clip(min=0) ** 0.5).sum())
    return means + (one.trace() + two.trace()).item() - 2 * root


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance (n,) of each row of x to the nearest row of y, and which row that is."""
    found = distances(x, y).min(dim=1)
    return found.values, found.indices


def memorisation(generated: Tensor, train: Tensor, heldout: Tensor) -> float:
    """Return how much nearer to training images generated ones lie than held-out real ones do.

    The mean rank of a generated sample's nearest training distance among those of held-out images, from 0 to
    1: 0.5 is as near as new real images are, 0 is nearer than all of them (copies), 1 is farther than all.
    """
    ours, theirs = nearest(generated, train)[0], nearest(heldout, train)[0]
    below = (theirs[None] < ours[:, None]).double() + 0.5 * (theirs[None] == ours[:, None]).double()
    return below.mean().item()


def intra_cluster_distance(
    generated: Tensor, train: Tensor, pairwise: Tensor | None = None
) -> tuple[float, Tensor]:
    """Return (mean distance inside clusters, cluster of each sample): few-shot diversity, 0 for copies.

    Each generated sample (n, d) joins the nearest of the training samples (k, d); the mean pairwise distance
    inside each cluster of two or more is averaged over those clusters (Ojha et al. 2021, arXiv 2104.06820).
    `pairwise` (n, n) replaces the Euclidean distances inside, by LPIPS for instance. Raises ValueError where
    no cluster has two.
    """
    cluster = nearest(generated, train)[1]
    apart = distances(generated, generated) if pairwise is None else pairwise
    means = []
    for name in cluster.unique():
        rows = (cluster == name).nonzero().flatten()
        if len(rows) > 1:
            inside = apart[rows][:, rows]
            means.append(inside.sum() / (len(rows) * (len(rows) - 1)))
    if not means:
        raise ValueError("No two generated samples share a nearest training sample: generate more.")
    return torch.stack(means).mean().item(), cluster
