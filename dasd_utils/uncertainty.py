"""What can be told apart: intervals over prompts and training seeds together, paired differences, power.

A score depends on which prompts were asked and on which seed the training had. Both are samples of what
could have been, so both count: prompts by a bootstrap, seeds by their spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

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
    value, variance = leave_one_out(statistic, count)
    half = half_width(((variance, count - 1),))
    return value, value - half, value + half


def leave_one_out(statistic: Callable[[Tensor], float], count: int) -> tuple[float, float]:
    """Return (value, variance) of what `jackknife` gives an interval of; ValueError for fewer than three."""
    if count < 3:
        raise ValueError(f"An interval by leaving samples out needs three of them, not {count}.")
    rows = torch.arange(count)
    without = torch.tensor([statistic(rows[rows != i]) for i in range(count)], dtype=torch.float64)
    return statistic(rows), without.var(correction=0).item() * (count - 1)


@dataclass(frozen=True)
class Components:
    """Variances of one image's paired difference: between seeds, between prompts, and the rest."""

    seeds: float
    prompts: float
    rest: float


def components(differences: Tensor) -> Components:
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
    return Components(max(between_seeds / prompts, 0.0), max(between_prompts / seeds, 0.0), rest)


def prompts_needed(parts: Components, effect: float, seeds: int) -> int | None:
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


def draws(units: int, num_bootstrap: int, seed: int) -> Tensor:
    """Return how often each of `units` is in each draw with replacement, (B, units) float64."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(units, (num_bootstrap, units), generator=generator)
    counts = torch.zeros(num_bootstrap, units, dtype=torch.float64)
    return counts.scatter_add_(1, picked, torch.ones_like(counts))
