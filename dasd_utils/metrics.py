"""Metrics as pure functions of features, and the one kind of interval that every number of this project has.

An interval is the value plus and minus Student's t times the standard error over independent units: images,
or prompts where `groups` gives the prompt of each image, as images of one prompt are correlated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from dasd_utils.losses import Kernel, gaussian_kernel

Interval = tuple[float, float]
SHARE: Interval = (0.0, 1.0)  # bounds of a share
WILSON = float(stats.chi2.ppf(0.95, 1))  # 1.96 squared
Values = Sequence[float] | Tensor
Groups = Sequence[int] | Tensor | None
Statistic = Callable[..., Tensor]  # of two sets: weights (B, n) and (B, m) -> (B,)


# CLIP score
def clip_scores(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return the cosine of each image with its own text; (n, d), (n, d) -> (n,)."""
    if image_features.shape != text_features.shape:  # would be broadcast
        raise ValueError(f"There are {len(image_features)} images and {len(text_features)} texts.")
    return F.cosine_similarity(image_features, text_features, dim=-1)


def shuffled_scores(
    image_features: Tensor, text_features: Tensor, groups: Groups = None, repeats: int = 10, seed: int = 0
) -> Tensor:
    """Return the mean CLIP score of each image over `repeats` texts of other groups, (n,): the floor."""
    index = _group_index(groups, len(image_features))
    count = int(index.max()) + 1
    first = torch.stack([(index == g).nonzero()[0, 0] for g in range(count)])  # a text of each group
    wrong = [first[derangement(count, seed + i)][index] for i in range(repeats)]
    return torch.stack([clip_scores(image_features, text_features[rows]) for rows in wrong]).mean(dim=0)


def attribute_accuracy(shown: Sequence[dict[str, str]], mentioned: Sequence[dict[str, str]]) -> Tensor:
    """Return the share of the attributes mentioned by each prompt that its image shows; (n,) in [0, 1]."""
    shares = [
        sum(seen.get(name) == value for name, value in wanted.items()) / len(wanted)
        for seen, wanted in zip(shown, mentioned, strict=True)
    ]
    return torch.tensor(shares)


def derangement(n: int, seed: int) -> Tensor:
    """Return a random order of 0 .. n - 1 that leaves none in its place; ValueError for n below 2."""
    if n < 2:
        raise ValueError(f"Shuffling needs two different texts, not {n}.")
    generator = torch.Generator().manual_seed(seed)
    while True:  # about one permutation in e is a derangement
        order = torch.randperm(n, generator=generator)
        if (order != torch.arange(n)).all():
            return order


# distances of distributions
def cmmd_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return 1000 times the Gaussian kernel of bandwidth 10 (arXiv 2401.09603)."""
    return 1000 * gaussian_kernel(x, y, 10.0)


def kid_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return (x.y + 1)^3 of unit-norm features (arXiv 1801.01401); the paper's x.y / d is for Inception's."""
    return (x @ y.T + 1) ** 3


def cmmd(x: Tensor, y: Tensor, groups: Groups = None) -> float:
    """Return the CMMD of two sets of unit-norm CLIP features; (n, d), (m, d). Unbiased: can be below 0.

    Pairs of x in one group do not count. Google's code is the biased estimate: it adds the diagonal's share.
    """
    return mmd_statistic(x, y, cmmd_kernel, groups)().item()


def kid(x: Tensor, y: Tensor, groups: Groups = None) -> float:
    """Return the KID of two sets of unit-norm features, of all pairs; as `cmmd`."""
    return mmd_statistic(x, y, kid_kernel, groups)().item()


def mmd_statistic(
    x: Tensor, y: Tensor, kernel: Kernel, groups: Groups = None, own: Groups = None
) -> Statistic:
    """Return the unbiased squared MMD of two sets as a function of how often each sample counts.

    A plain bootstrap fails here: an image that is drawn twice meets its copy off the diagonal, which lifts
    every draw (80 generated and 200 held-out images: its interval covered the truth 0 to 90 % of the time).
    So a draw is a weight, the number of times an image (or all images of a group) was drawn, and pairs of an
    image with itself, or of one group, stay out whatever its weight: draws then centre on the estimate. So
    does a pair of x and its `own` row of y, as of a sample and the image of its caption: it is nearer.
    """
    x, y, group = x.double(), y.double(), _group_index(groups, len(x))  # double: large sums cancel
    of_x, of_y = pair_mean(kernel(x, x), group, group), pair_mean(kernel(y, y), torch.arange(len(y)))
    across = pair_mean(kernel(x, y), own)
    once = torch.ones(1, len(x)).double(), torch.ones(1, len(y)).double()
    return lambda a=once[0], b=once[1]: of_x(a, a) + of_y(b, b) - 2 * across(a, b)


def pair_mean(k: Tensor, own: Groups = None, groups: Groups = None) -> Statistic:
    """Return the mean of k (n, m) by weights (B, n) and (B, m), without pairs of row i and group own[i]."""
    own = torch.full((len(k),), -1) if own is None else torch.as_tensor(own)
    other = (own[:, None] != _group_index(groups, k.shape[1])).to(k.dtype)
    return lambda x, y: ((x @ (k * other)) * y).sum(1) / ((x @ other) * y).sum(1)


def _group_index(groups: Groups, n: int) -> Tensor:
    """Return the group of each of n samples as 0 .. count - 1, (n,); each its own without groups."""
    if groups is None:
        return torch.arange(n)
    return torch.unique(torch.as_tensor(groups), return_inverse=True)[1]


def frechet_distance(
    x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> Tensor:
    """Return the Frechet distance of Gaussians fitted to two sets, (B,): with Inception's features, the FID.

    |m_x - m_y|^2 + tr C_x + tr C_y - 2 tr (C_x C_y)^(1/2), arXiv 1706.08500. With C = A^T A the last trace is
    the sum of the singular values of A_x A_y^T, (n, m): cheap where features are more than samples. Weights
    (B, n) and (B, m) say how often each sample counts. Biased upwards for small sets: compare equal n only.
    """
    weights = [torch.ones(1, len(z)) if w is None else w for z, w in ((x, x_weights), (y, y_weights))]
    values = []
    for rows in zip(*(w.double().broadcast_to(max(map(len, weights)), -1) for w in weights), strict=True):
        means, roots = [], []
        for z, w in zip((x.double(), y.double()), rows, strict=True):
            means.append(w @ z / w.sum())
            roots.append((w / (w.sum() - 1)).sqrt()[:, None] * (z - means[-1]))
        traces = sum(root.square().sum() for root in roots)
        across = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
        values.append((means[0] - means[1]).square().sum() + traces - 2 * across)
    return torch.stack(values)


# fidelity, diversity, copying
def euclidean_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return Euclidean distances, (n, d), (m, d) -> (n, m), in float64 and without cancellation."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def precision_recall(generated: Tensor, real: Tensor, k: int = 5) -> dict[str, Tensor]:
    """Return precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797), by sample.

    (n, d), (m, d), more than k samples each. A ball reaches from a sample to its k-th neighbour in its set.
    Intervals of precision and density are given these real images, those of the others given these samples.
    """
    across = euclidean_distances(generated, real)  # (n, m)
    # the nearest of all is the sample itself
    radii = [euclidean_distances(z, z).kthvalue(k + 1, dim=1).values for z in (generated, real)]
    generated_inside = across <= radii[0][:, None]
    real_inside = across <= radii[1][None]
    return {
        "precision": real_inside.any(dim=1).double(),  # (n,) 1 where the sample is inside a real ball
        "recall": generated_inside.any(dim=0).double(),  # (m,) 1 where a generated ball holds the image
        "density": real_inside.sum(dim=1).double() / k,  # (n,) real balls that hold the sample, over k
        "coverage": real_inside.any(dim=0).double(),  # (m,) 1 where the real ball holds a sample
    }


def nearest_neighbours(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance (n,) of each row of x to the nearest row of y, and which row that is."""
    return tuple(euclidean_distances(x, y).min(dim=1))


def copy_rank(generated: Tensor, train: Tensor, heldout: Tensor) -> Tensor:
    """Return whether each generated image is farther from the training images than each held-out one; (n, m).

    By the nearest training image: 1 if farther, 0.5 if equally far, 0 if nearer. A mean of 0.5 is as near as
    new real images are, 0 is nearer than all of them (copies), 1 is farther than all.
    """
    ours, theirs = nearest_neighbours(generated, train)[0], nearest_neighbours(heldout, train)[0]
    return (theirs[None] < ours[:, None]).double() + 0.5 * (theirs[None] == ours[:, None]).double()


def intra_cluster_distance(generated: Tensor, train: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean distance inside clusters, (B,): few-shot diversity, 0 for copies.

    Each generated sample (n, d) joins the nearest of the training samples (k, d); the mean pairwise distance
    inside each cluster of two or more is averaged over those clusters (Ojha et al. 2021, arXiv 2104.06820).
    `weights` (B, n), how often each sample counts, gives B values; nan where no cluster has two samples.
    """
    apart = euclidean_distances(generated, generated)
    member = F.one_hot(nearest_neighbours(generated, train)[1].unique(return_inverse=True)[1]).double()
    weights = torch.ones(1, len(generated)) if weights is None else weights
    values = []
    for row in weights.double():
        inside = row[:, None] * member  # (n, clusters)
        pairs = inside.sum(dim=0).square() - inside.square().sum(dim=0)  # of different samples
        sums = (inside * (apart @ inside)).sum(dim=0)
        values.append((sums[pairs > 0] / pairs[pairs > 0]).mean())
    return torch.stack(values)


# intervals
@dataclass(frozen=True)
class Estimate:
    """A statistic of S training seeds, and what it becomes when prompts and real images are drawn again."""

    values: Tensor  # (S,), nan-free
    draws: Tensor  # (B, S), the same draws for all seeds and all methods
    units: int  # independent prompts, held-out images, or the fewer of both
    bounds: Interval | None = None  # of what a unit can have

    def minus(self, other: Self) -> Self:
        """Return the paired difference: seed with seed, draw with draw."""
        bounds = self.bounds and (self.bounds[0] - self.bounds[1], self.bounds[1] - self.bounds[0])
        return Estimate(self.values - other.values, self.draws - other.draws, self.units, bounds)

    @property
    def value(self) -> float:
        """Return the mean over seeds."""
        return self.values.mean().item()

    @property
    def variance(self) -> float:
        """Return the variance of the mean over seeds, times the n / (n - 1) that a bootstrap lacks."""
        return self.draws.mean(dim=1).var().item() * self.units / (self.units - 1)

    def interval(self) -> tuple[float, float, float]:
        """Return (mean over seeds, low, high) at 95 %.

        The variance of the mean is that of prompts plus that over seeds, s^2 / S; the degrees of freedom of
        their sum are Welch and Satterthwaite's (where seeds vary most, two hold the truth 87 % of the time,
        three 92 %). One seed adds nothing: the interval is then of this one training. Where all units are
        equal, as for a share of 0 or 1, each end moves z^2 / (n + z^2) of the way to its bound (Wilson 1927).
        """
        seeds, value = len(self.values), self.value
        of_seeds = self.values.var().item() / seeds if seeds > 1 else 0.0
        half = half_width(((self.variance, self.units - 1), (of_seeds, seeds - 1)))
        if half < 1e-12:  # rounding
            (least, most), part = self.bounds or (value, value), WILSON / (self.units + WILSON)
            return value, value - part * (value - least), value + part * (most - value)
        return value, value - half, value + half


Terms = Sequence[tuple[float, int]]  # variances, each with its degrees of freedom


def freedom(terms: Terms) -> float:
    """Return the degrees of freedom of a sum of variances, not all 0 (Welch 1947, Satterthwaite 1946)."""
    total = sum(variance for variance, _ in terms)
    return total**2 / sum(variance**2 / degrees for variance, degrees in terms if variance > 0)


def half_width(terms: Terms) -> float:
    """Return half of the 95 % interval: Student's t times the root of a sum of variances."""
    total = sum(variance for variance, _ in terms)
    if math.isnan(total) or total == 0:
        return total
    return float(stats.t.ppf(0.975, freedom(terms))) * math.sqrt(total)


def power(effect: float, terms: Terms, variance: float) -> float:
    """Return how often an interval of these terms leaves out 0 on the side of the effect (noncentral t).

    variance: that of the estimate; the terms may count some of it twice, as `Estimate.interval` does.
    """
    if variance == 0:
        return float(effect > 0)
    degrees, total = freedom(terms), sum(each for each, _ in terms)
    limit = stats.t.ppf(0.975, degrees) * math.sqrt(total / variance)
    return float(stats.nct.sf(limit, degrees, effect / math.sqrt(variance)))


def bootstrap_counts(units: int, num_bootstrap: int, seed: int) -> Tensor:
    """Return how often each of `units`, two or more, is in each draw with replacement, (B, units) float64."""
    if units < 2:
        raise ValueError(f"An interval needs at least two independent samples, not {units}.")
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(units, (num_bootstrap, units), generator=generator)
    counts = torch.zeros(num_bootstrap, units, dtype=torch.float64)
    return counts.scatter_add_(1, picked, torch.ones_like(counts))


def mean_estimate(values: Tensor, weights: Tensor, units: int, share: bool = False) -> Estimate:
    """Return the estimate of a mean; values: (S, n) of S seeds; weights: (B, n), how often each is drawn."""
    draws = (weights @ values.T) / weights.sum(dim=1, keepdim=True)
    return Estimate(values.mean(dim=1), draws, units, SHARE if share else None)


def set_estimate(statistics: Sequence[Statistic], weights: Sequence[Tensor], units: int) -> Estimate:
    """Return the estimate of a statistic of two sets, one for each seed; weights: (B, n) and (B, m)."""
    once = [torch.ones_like(each[:1]) for each in weights]
    values = torch.cat([statistic(*once) for statistic in statistics])
    draws = torch.stack([statistic(*weights) for statistic in statistics], dim=1)
    # a draw that leaves too little for the statistic counts as the value
    return Estimate(values, draws.nan_to_num(values.mean().item()), units)


def mmd_estimate(
    x: Tensor, y: Tensor, kernel: Kernel, groups: Groups = None, num_bootstrap: int = 1000, seed: int = 0,
    own: Groups = None,
) -> Estimate:  # fmt: skip
    """Return the unbiased squared MMD of one set x and a set y, both drawn again; see `mmd_statistic`."""
    group = _group_index(groups, len(x))
    count = int(group.max()) + 1
    drawn_y = bootstrap_counts(len(y), num_bootstrap, seed + 1)
    drawn = bootstrap_counts(count, num_bootstrap, seed)[:, group] if own is None else drawn_y[:, own]
    return set_estimate([mmd_statistic(x, y, kernel, groups, own)], (drawn, drawn_y), min(count, len(y)))


def cmmd_interval(
    x: Tensor, y: Tensor, groups: Groups = None, num_bootstrap: int = 1000, seed: int = 0
) -> Interval:
    """Return the 95 % interval of `cmmd`."""
    return mmd_estimate(x, y, cmmd_kernel, groups, num_bootstrap, seed).interval()[1:]


def bootstrap_interval(
    values: Values, num_bootstrap: int = 1000, seed: int = 0, groups: Groups = None, share: bool = False
) -> Interval:
    """Return the 95 % interval of a mean, groups drawn whole; share: of values and interval from 0 to 1."""
    values = torch.as_tensor(values, dtype=torch.float64)
    group = _group_index(groups, len(values))
    count = int(group.max()) + 1
    drawn = bootstrap_counts(count, num_bootstrap, seed)[:, group]
    low, high = mean_estimate(values[None], drawn, count, share).interval()[1:]
    return (max(low, 0.0), min(high, 1.0)) if share else (low, high)


def paired_difference(
    a: Values, b: Values, num_bootstrap: int = 1000, seed: int = 0, groups: Groups = None
) -> tuple[float, float, float]:
    """Return (mean of a - b, low, high) at 95 %; a[i] and b[i] share prompt and seed."""
    difference = torch.as_tensor(a, dtype=torch.float64) - torch.as_tensor(b, dtype=torch.float64)
    return difference.mean().item(), *bootstrap_interval(difference, num_bootstrap, seed, groups)


def jackknife(statistic: Callable[[Tensor], float], count: int) -> tuple[float, float, float]:
    """Return (value, low, high) at 95 % of a statistic, by leaving each of `count` samples out (Tukey 1958).

    statistic: takes the indices of its samples, (k,). For what draws with replacement would distort, such as
    pairs, where a sample drawn twice meets itself. Raises ValueError for fewer than three samples.
    """
    value, variance = jackknife_variance(statistic, count)
    half = half_width(((variance, count - 1),))
    return value, value - half, value + half


def jackknife_variance(statistic: Callable[[Tensor], float], count: int) -> tuple[float, float]:
    """Return (value, variance) of what `jackknife` gives an interval of; ValueError for fewer than three."""
    if count < 3:
        raise ValueError(f"An interval by leaving samples out needs three of them, not {count}.")
    rows = torch.arange(count)
    without = torch.tensor([statistic(rows[rows != i]) for i in range(count)], dtype=torch.float64)
    return statistic(rows), without.var(correction=0).item() * (count - 1)
