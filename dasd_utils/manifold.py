"""Metrics of two sets of features beyond a distance of distributions: fidelity, diversity, copying.

Features are (n, d) tensors of any encoder; distances are Euclidean unless another matrix is given.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Manifold(NamedTuple):
    """How two sets cover each other, by balls around each sample to its k-th neighbour: means of each."""

    precision: Tensor  # (n,) 1 where a generated sample is inside a real ball
    recall: Tensor  # (m,) 1 where a real sample is inside a generated ball
    density: Tensor  # (n,) real balls that hold the generated sample, over k
    coverage: Tensor  # (m,) 1 where the real ball holds a generated sample


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
        precision=real_inside.any(dim=1).double(),
        recall=generated_inside.any(dim=0).double(),
        density=real_inside.sum(dim=1).double() / k,
        coverage=real_inside.any(dim=0).double(),
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance (n,) of each sample to its k-th neighbour; the nearest of all is itself."""
    return distances(x, x).kthvalue(k + 1, dim=1).values


def frechet(x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None) -> Tensor:
    """Return the Frechet distance of Gaussians fitted to two sets, (B,): with Inception's features, the FID.

    |m_x - m_y|^2 + tr C_x + tr C_y - 2 tr (C_x C_y)^(1/2), arXiv 1706.08500. With C = A^T A the last trace is
    the sum of the singular values of A_x A_y^T, (n, m): cheap where features are more than samples. Weights
    (B, n) and (B, m), how often each sample counts, give B values; without them there is one. It is biased
    upwards where the sets are few: give n with it, and compare equal n only.
    """
    weights = [torch.ones(1, len(z)) if w is None else w for z, w in ((x, x_weights), (y, y_weights))]
    values = []
    for rows in zip(*(w.double().broadcast_to(max(map(len, weights)), -1) for w in weights), strict=True):
        (m_x, a_x), (m_y, a_y) = (_gaussian(z.double(), w) for z, w in zip((x, y), rows, strict=True))
        traces = a_x.square().sum() + a_y.square().sum()
        values.append((m_x - m_y).square().sum() + traces - 2 * torch.linalg.svdvals(a_x @ a_y.T).sum())
    return torch.stack(values)


def _gaussian(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,), and A (n, d) whose A^T A is the covariance, of samples that count so often."""
    mean = weights @ x / weights.sum()
    return mean, (weights / (weights.sum() - 1)).sqrt()[:, None] * (x - mean)


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance (n,) of each row of x to the nearest row of y, and which row that is."""
    found = distances(x, y).min(dim=1)
    return found.values, found.indices


def copy_rank(generated: Tensor, train: Tensor, heldout: Tensor) -> Tensor:
    """Return how near to training images each generated one lies, compared with held-out real ones; (n,).

    The rank of its nearest training distance among those of held-out images, from 0 to 1: a mean of 0.5 is as
    near as new real images are, 0 is nearer than all of them (copies), 1 is farther than all.
    """
    ours, theirs = nearest(generated, train)[0], nearest(heldout, train)[0]
    below = (theirs[None] < ours[:, None]).double() + 0.5 * (theirs[None] == ours[:, None]).double()
    return below.mean(dim=1)


def intra_cluster_distance(
    generated: Tensor, train: Tensor, pairwise: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Return the mean distance inside clusters, (B,): few-shot diversity, 0 for copies.

    Each generated sample (n, d) joins the nearest of the training samples (k, d); the mean pairwise distance
    inside each cluster of two or more is averaged over those clusters (Ojha et al. 2021, arXiv 2104.06820).
    `pairwise` (n, n) replaces the Euclidean distances inside, by LPIPS for instance. `weights` (B, n), how
    often each sample counts, gives B values; nan where no cluster has two samples. One value without them.
    """
    apart = (distances(generated, generated) if pairwise is None else pairwise).double()
    member = torch.nn.functional.one_hot(nearest(generated, train)[1].unique(return_inverse=True)[1]).double()
    weights = torch.ones(1, len(generated)) if weights is None else weights
    values = []
    for row in weights.double():
        inside = row[:, None] * member  # (n, clusters)
        pairs = inside.sum(dim=0).square() - inside.square().sum(dim=0)  # of different samples
        sums = (inside * (apart @ inside)).sum(dim=0)
        values.append((sums[pairs > 0] / pairs[pairs > 0]).mean())
    return torch.stack(values)
