"""Metrics as pure functions of CLIP features: CLIP score and its floor, CMMD, KID, bootstrap intervals.

Every interval resamples independent units. Images of one prompt resemble each other, so `groups`, the index
of each image's prompt, makes the prompt the unit; without it each image is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from dasd_utils import losses
from dasd_utils.runtime import bars

Interval = tuple[float, float]
Values = Sequence[float] | Tensor
Groups = Sequence[int] | Tensor | None


# features


@torch.no_grad()
def embed_images(clip, processor, images: Sequence[Image.Image], batch_size: int = 32) -> Tensor:
    """Return unit-norm CLIP features (n, d), fp32 on the CPU.

    clip: CLIPModel; processor: its CLIPImageProcessor, which makes RGB, resizes, crops and normalises.
    """
    if not len(images):
        raise ValueError("There are no images to embed.")
    features = []
    for start in bars.short_bar(range(0, len(images), batch_size), "CLIP features", unit="batch"):
        batch = list(images[start : start + batch_size])
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"]
        pooled = clip.vision_model(pixel_values=pixels.to(clip.device, clip.dtype)).pooler_output
        features.append(clip.visual_projection(pooled).float().cpu())
    return F.normalize(torch.cat(features), dim=-1)


@torch.no_grad()
def embed_texts(clip, tokenizer, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Return unit-norm CLIP features (n, d), fp32 on the CPU; longer texts are cut at the model's length."""
    if not len(texts):
        raise ValueError("There are no texts to embed.")
    length = min(tokenizer.model_max_length, clip.config.text_config.max_position_embeddings)
    settings = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
    features = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(list(texts[start : start + batch_size]), **settings).to(clip.device)
        pooled = clip.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        features.append(clip.text_projection(pooled).float().cpu())
    return F.normalize(torch.cat(features), dim=-1)


# CLIP score


def clip_scores(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return the cosine of each image with its own text; (n, d), (n, d) -> (n,)."""
    if image_features.shape != text_features.shape:
        shapes = f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        raise ValueError(f"The CLIP score pairs each image with its text; the features have shapes {shapes}.")
    return F.cosine_similarity(image_features, text_features, dim=-1)


def clip_score(image_features: Tensor, text_features: Tensor) -> float:
    """Return the mean of `clip_scores`."""
    return clip_scores(image_features, text_features).mean().item()


def shuffled_scores(
    image_features: Tensor, text_features: Tensor, groups: Groups = None, repeats: int = 10, seed: int = 0
) -> Tensor:
    """Return what each image scores with texts of other images, (n,): the floor of any CLIP score.

    Averaged over `repeats` shuffles. Images of one group share a text and get the same wrong one.
    """
    index, count = _group_index(groups, len(image_features))
    if count < 2:
        raise ValueError("A shuffled-caption floor needs two different texts.")
    first = torch.stack([(index == g).nonzero()[0, 0] for g in range(count)])  # a text of each group
    shuffles = [first[derangement(count, seed + i)][index] for i in range(repeats)]
    return torch.stack([clip_scores(image_features, text_features[s]) for s in shuffles]).mean(dim=0)


def attribute_accuracy(shown: Sequence[dict[str, str]], told: Sequence[dict[str, str]]) -> Tensor:
    """Return the share of the attributes told by each prompt that its image shows; (n,) in [0, 1].

    shown: what a reader sees in each image. Raises ValueError where a prompt tells nothing.
    """
    if len(shown) != len(told):
        raise ValueError(f"{len(shown)} images were read, {len(told)} prompts given.")
    if not all(told):
        raise ValueError("Every prompt must tell at least one attribute.")
    shares = [
        sum(seen.get(name) == value for name, value in asked.items()) / len(asked)
        for seen, asked in zip(shown, told, strict=True)
    ]
    return torch.tensor(shares)


def derangement(n: int, seed: int) -> Tensor:
    """Return a random order of 0 .. n - 1 that leaves none in its place."""
    if n < 2:
        raise ValueError(f"{n} cannot be deranged; it takes at least 2.")
    generator = torch.Generator().manual_seed(seed)
    while True:  # about one permutation in e is a derangement
        order = torch.randperm(n, generator=generator)
        if (order != torch.arange(n)).all():
            return order


# distances of distributions


def cmmd_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return 1000 times the Gaussian kernel of bandwidth 10 (arXiv 2401.09603)."""
    return 1000 * losses.gaussian_kernel(x, y, 10.0)


def kid_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return (x.y + 1)^3 of unit-norm features (arXiv 1801.01401).

    The paper's x.y / d is for Inception features, whose norm grows with d; CLIP's norm means nothing, and
    with x.y / d of unit-norm features the kernel would be linear.
    """
    return (x @ y.T + 1) ** 3


def cmmd(x: Tensor, y: Tensor, groups: Groups = None) -> float:
    """Return the CMMD of two sets of unit-norm CLIP features; (n, d), (m, d). Unbiased: can be below 0.

    Pairs of x in one group do not count. Google's code is the biased estimate: it adds the diagonal's share.
    """
    return _mmd(x, y, cmmd_kernel, groups)


def kid(x: Tensor, y: Tensor, groups: Groups = None) -> float:
    """Return the KID of two sets of unit-norm features; (n, d), (m, d). Unbiased: can be below 0.

    It uses all pairs once, of which an average over random subsets is a noisier estimate. Pairs of x in one
    group do not count.
    """
    return _mmd(x, y, kid_kernel, groups)


def cmmd_interval(
    x: Tensor, y: Tensor, groups: Groups = None, num_bootstrap: int = 1000, seed: int = 0
) -> Interval:
    """Return the 95 % interval of `cmmd`: see `mmd_interval`."""
    return mmd_interval(x, y, cmmd_kernel, groups, num_bootstrap, seed)


def kid_interval(
    x: Tensor, y: Tensor, groups: Groups = None, num_bootstrap: int = 1000, seed: int = 0
) -> Interval:
    """Return the 95 % interval of `kid`: see `mmd_interval`."""
    return mmd_interval(x, y, kid_kernel, groups, num_bootstrap, seed)


def mmd_interval(
    x: Tensor,
    y: Tensor,
    kernel: losses.Kernel,
    groups: Groups = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the bootstrap 95 % interval of the unbiased squared MMD, both sets resampled.

    A plain bootstrap fails here: an image that is drawn twice meets its copy off the diagonal, which lifts
    every draw (80 generated and 200 held-out images: it covered the truth 0 to 90 % of the time). So a draw
    is a weight, the number of times an image (or all images of a group) was drawn, and pairs of an image with
    itself stay out whatever its weight. Draws then centre on the estimate; in the same simulation, with
    images alone and in 20 prompts of 4, the interval covered the truth 95 to 99 %, and up to 100 % where the
    two distributions are the same: there it is too wide.
    """
    terms = kernel_terms(x, y, kernel)
    (index, count), (own, m) = _group_index(groups, len(x)), _group_index(None, len(y))
    random = np.random.default_rng(seed)
    x_weights = _draw_weights(random, count, num_bootstrap)[:, index]
    y_weights = _draw_weights(random, m, num_bootstrap)
    draws = weighted_mmd(terms, (index, own), (x_weights, y_weights))
    return _percentiles(draws, min(count, m))


def _mmd(x: Tensor, y: Tensor, kernel: losses.Kernel, groups: Groups) -> float:
    if groups is None:
        return losses.mmd(x.double(), y.double(), kernel, unbiased=True).item()
    index, own = _group_index(groups, len(x))[0], torch.arange(len(y))
    weights = (torch.ones(1, len(x), dtype=torch.float64), torch.ones(1, len(y), dtype=torch.float64))
    return weighted_mmd(kernel_terms(x, y, kernel), (index, own), weights).item()


def kernel_terms(x: Tensor, y: Tensor, kernel: losses.Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """Return the kernel of x with itself, of y with itself and of x with y, in float64."""
    x, y = x.double(), y.double()  # CMMD is a small difference of large sums
    return kernel(x, x), kernel(y, y), kernel(x, y)


def weighted_mmd(terms: Sequence[Tensor], groups: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return one unbiased squared MMD per row of weights; weights: (B, n) and (B, m); returns (B,).

    terms: of `kernel_terms`; groups: the group of each sample of x and of y, whose own pairs do not count.
    """
    (k_xx, k_yy, k_xy), (x_weights, y_weights) = terms, weights
    within = _weighted_pairs(k_xx, groups[0], x_weights) + _weighted_pairs(k_yy, groups[1], y_weights)
    across = ((x_weights @ k_xy) * y_weights).sum(1) / (x_weights.sum(1) * y_weights.sum(1))
    return within - 2 * across


def _weighted_pairs(k: Tensor, group: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of k over pairs of different groups, per row of weights (B, n); nan if none is left."""
    different = (group[:, None] != group[None]).to(k.dtype)
    return ((weights @ (k * different)) * weights).sum(1) / ((weights @ different) * weights).sum(1)


# intervals of a mean


def bootstrap_interval(
    values: Values, num_bootstrap: int = 1000, seed: int = 0, groups: Groups = None
) -> Interval:
    """Return the bootstrap 95 % interval of the mean; whole groups are drawn where they are given."""
    values = torch.as_tensor(values, dtype=torch.float64)
    index, count = _group_index(groups, len(values))
    weights = _draw_weights(np.random.default_rng(seed), count, num_bootstrap)[:, index]
    return _percentiles((weights @ values) / weights.sum(1), count)


def paired_difference(
    a: Values, b: Values, num_bootstrap: int = 1000, seed: int = 0, groups: Groups = None
) -> tuple[float, float, float]:
    """Return (mean of a - b, low, high), a 95 % interval; a[i] and b[i] share prompt and seed."""
    difference = torch.as_tensor(a, dtype=torch.float64) - torch.as_tensor(b, dtype=torch.float64)
    return difference.mean().item(), *bootstrap_interval(difference, num_bootstrap, seed, groups)


def _percentiles(draws: Tensor, units: int) -> Interval:
    """Return the 95 % percentile interval, widened as Student's t widens a normal one (arXiv 1411.5279)."""
    tail = stats.norm.cdf((units / (units - 1)) ** 0.5 * stats.t.ppf(0.025, units - 1))
    low, high = np.nanquantile(draws.numpy(), [tail, 1 - tail])
    return float(low), float(high)


def _draw_weights(random: np.random.Generator, units: int, num_bootstrap: int) -> Tensor:
    """Return how often each unit is in each draw with replacement; (num_bootstrap, units)."""
    if units < 2:
        raise ValueError(f"An interval needs at least two independent samples, not {units}.")
    counts = random.multinomial(units, np.full(units, 1 / units), size=num_bootstrap)
    return torch.from_numpy(counts).double()


def _group_index(groups: Groups, n: int) -> tuple[Tensor, int]:
    """Return the group of each sample as 0 .. count - 1, and count."""
    if groups is None:
        return torch.arange(n), n
    groups = torch.as_tensor(groups)
    if len(groups) != n:
        raise ValueError(f"There are {len(groups)} groups for {n} samples.")
    index = torch.unique(groups, return_inverse=True)[1]
    return index, int(index.max()) + 1


# Metrics of two sets of features beyond a distance of distributions: fidelity, diversity, copying.


class PrecisionRecall(NamedTuple):
    """How two sets cover each other, by balls around each sample to its k-th neighbour: means of each."""

    precision: Tensor  # (n,) 1 where a generated sample is inside a real ball
    recall: Tensor  # (m,) 1 where a real sample is inside a generated ball
    density: Tensor  # (n,) real balls that hold the generated sample, over k
    coverage: Tensor  # (m,) 1 where the real ball holds a generated sample


def euclidean_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return Euclidean distances, (n, d), (m, d) -> (n, m), in float64 and without cancellation."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def precision_recall(generated: Tensor, real: Tensor, k: int = 5) -> PrecisionRecall:
    """Return precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    generated: (n, d); real: (m, d). Raises ValueError unless each set has more than k samples.
    """
    if min(len(generated), len(real)) <= k:
        counts = f"{len(generated)} generated and {len(real)} real"
        raise ValueError(f"There are {counts} samples; each set takes more than k = {k}.")
    across = euclidean_distances(generated, real)  # (n, m)
    real_inside = across <= _radii(real, k)[None]
    generated_inside = across <= _radii(generated, k)[:, None]
    return PrecisionRecall(
        precision=real_inside.any(dim=1).double(),
        recall=generated_inside.any(dim=0).double(),
        density=real_inside.sum(dim=1).double() / k,
        coverage=real_inside.any(dim=0).double(),
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance (n,) of each sample to its k-th neighbour; the nearest of all is itself."""
    return euclidean_distances(x, x).kthvalue(k + 1, dim=1).values


def frechet_distance(
    x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> Tensor:
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


def nearest_neighbours(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance (n,) of each row of x to the nearest row of y, and which row that is."""
    found = euclidean_distances(x, y).min(dim=1)
    return found.values, found.indices


def copy_rank(generated: Tensor, train: Tensor, heldout: Tensor) -> Tensor:
    """Return how near to training images each generated one lies, compared with held-out real ones; (n,).

    The rank of its nearest training distance among those of held-out images, from 0 to 1: a mean of 0.5 is as
    near as new real images are, 0 is nearer than all of them (copies), 1 is farther than all.
    """
    ours, theirs = nearest_neighbours(generated, train)[0], nearest_neighbours(heldout, train)[0]
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
    apart = (euclidean_distances(generated, generated) if pairwise is None else pairwise).double()
    member = torch.nn.functional.one_hot(
        nearest_neighbours(generated, train)[1].unique(return_inverse=True)[1]
    ).double()
    weights = torch.ones(1, len(generated)) if weights is None else weights
    values = []
    for row in weights.double():
        inside = row[:, None] * member  # (n, clusters)
        pairs = inside.sum(dim=0).square() - inside.square().sum(dim=0)  # of different samples
        sums = (inside * (apart @ inside)).sum(dim=0)
        values.append((sums[pairs > 0] / pairs[pairs > 0]).mean())
    return torch.stack(values)


# What can be told apart: intervals over prompts and training seeds together, paired differences, power.


CONFIDENCE = 0.95
POWER = 0.8
MOST_PROMPTS = 100_000


@dataclass(frozen=True)
class Estimate:
    """A statistic of S training seeds, and what it becomes when prompts and real images are drawn again."""

    values: Tensor  # (S,), nan-free
    draws: Tensor  # (B, S), the same draws for all seeds and all methods
    units: int  # independent prompts

    def minus(self, other: Estimate) -> Estimate:
        """Return the paired difference: seed with seed, draw with draw."""
        return Estimate(self.values - other.values, self.draws - other.draws, self.units)

    def interval(self) -> tuple[float, float, float]:
        """Return (mean over seeds, low, high) at 95 %.

        The variance of the mean is that over draws of prompts (times P / (P - 1), which a bootstrap lacks)
        plus that over seeds, s^2 / S; the degrees of freedom of their sum are Welch and Satterthwaite's, so
        that few seeds widen the interval as Student's t does. What prompts and seeds do together is counted
        in both: the interval is a little wide rather than narrow. One seed adds nothing: the interval is then
        of this one training.
        """
        value, seeds = self.values.mean().item(), len(self.values)
        of_prompts = self.draws.mean(dim=1).var().item() * self.units / (self.units - 1)
        of_seeds = self.values.var().item() / seeds if seeds > 1 else 0.0
        half = half_width(((of_prompts, self.units - 1), (of_seeds, seeds - 1)))
        return value, value - half, value + half


def half_width(terms: tuple[tuple[float, int], ...], probability: float = (1 + CONFIDENCE) / 2) -> float:
    """Return t times the root of a sum of variances, each with its degrees of freedom (Welch 1947)."""
    total = sum(variance for variance, _ in terms)
    if math.isnan(total) or total == 0:
        return total
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in terms if variance > 0)
    return float(stats.t.ppf(probability, freedom)) * math.sqrt(total)


def jackknife(statistic: Callable[[Tensor], float], count: int) -> tuple[float, float, float]:
    """Return (value, low, high) at 95 % of a statistic of `count` samples, by leaving each out once.

    statistic: takes the indices of the samples that it is of, (k,) long. For what draws with replacement
    would distort, such as pairs, where a sample drawn twice meets itself (Tukey 1958). Raises ValueError for
    fewer than three samples.
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


@dataclass(frozen=True)
class VarianceComponents:
    """Variances of one image's paired difference: between seeds, between prompts, and the rest."""

    seeds: float
    prompts: float
    rest: float


def variance_components(differences: Tensor) -> VarianceComponents:
    """Return the variance components of differences (S, P) by the mean squares of a two-way table.

    Raises ValueError for fewer than two seeds or prompts.
    """
    if differences.ndim != 2 or min(differences.shape) < 2:
        raise ValueError(f"Variance components need two seeds and prompts, not {tuple(differences.shape)}.")
    table = differences.double()
    (seeds, prompts), mean = table.shape, table.mean()
    of_seeds, of_prompts = table.mean(dim=1, keepdim=True), table.mean(dim=0, keepdim=True)
    squares = (table - of_seeds - of_prompts + mean).square().sum().item()
    rest = squares / ((seeds - 1) * (prompts - 1))
    between_seeds = prompts * of_seeds.var().item() - rest
    between_prompts = seeds * of_prompts.var().item() - rest
    return VarianceComponents(max(between_seeds / prompts, 0.0), max(between_prompts / seeds, 0.0), rest)


def prompts_needed(parts: VarianceComponents, effect: float, seeds: int) -> int | None:
    """Return how many prompts show a difference of `effect` with a power of 80 %, or None if no number does.

    Two-sided at 95 %, with `seeds` trainings, at least 2, one image a prompt. Spread between seeds does not
    shrink with prompts: where it is the larger part, only more seeds help.
    """

    def enough(prompts: int) -> bool:
        terms = ((parts.seeds / seeds + parts.rest / (seeds * prompts), seeds - 1),
                 (parts.prompts / prompts, prompts - 1))  # fmt: skip
        found, missed = half_width(terms), half_width(terms, POWER)
        return found + missed <= effect

    if not enough(MOST_PROMPTS):
        return None
    low, high = 1, MOST_PROMPTS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def bootstrap_counts(units: int, num_bootstrap: int, seed: int) -> Tensor:
    """Return how often each of `units` is in each draw with replacement, (B, units) float64."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(units, (num_bootstrap, units), generator=generator)
    counts = torch.zeros(num_bootstrap, units, dtype=torch.float64)
    return counts.scatter_add_(1, picked, torch.ones_like(counts))
