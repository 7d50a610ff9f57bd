"""How many prompts show a difference, given how it varies between training seeds and between prompts."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dasd_utils.evaluation import ResultRow, Scores
from dasd_utils.metrics import half_width

POWER = 0.8
EFFECT = 0.01  # of the CLIP score
MANY_SEEDS = (3, 5, 10, 20)
MOST_PROMPTS = 100_000  # more than anybody samples


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
        of_seeds = parts.seeds / seeds + parts.rest / (seeds * prompts)
        terms = ((of_seeds, seeds - 1), (parts.prompts / prompts, prompts - 1))
        return half_width(terms) + half_width(terms, POWER) <= effect

    if not enough(MOST_PROMPTS):
        return None
    return bisect.bisect_left(range(MOST_PROMPTS + 1), True, lo=2, key=enough)


def power_rows(found: Mapping[str, Sequence[Scores]], domain: str, against: str) -> list[ResultRow]:
    """Return how many prompts would show a CLIP score 0.01 above or below another's, by number of seeds.

    found: the scores of each method, one entry a training seed.
    """
    rows = []
    for name, by_seed in found.items():
        if name == against or against not in found or len(by_seed) < 2:
            continue
        pairs = zip(by_seed, found[against], strict=True)
        parts = variance_components(
            torch.stack([one["clip_score"] - two["clip_score"] for one, two in pairs])
        )
        row = {"method": name, "against": against, "domain": domain, "metric": "prompts_needed"}
        row |= {"effect": EFFECT, "deviation_of_seeds": parts.seeds**0.5}
        row |= {"deviation_of_prompts": parts.prompts**0.5}
        rows += [row | {"seeds": n, "value": prompts_needed(parts, EFFECT, n)} for n in MANY_SEEDS]
    return rows
