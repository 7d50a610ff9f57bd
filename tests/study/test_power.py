"""The number of prompts that show a difference is what simulation finds."""

import numpy as np
import pytest
import torch

from dasd_utils import metrics
from dasd_utils.study import ladder
from dasd_utils.study.ladder import VarianceComponents


def table(generator, seeds, prompts, *deviations):
    """Scores (S, P) around 0 with deviations between seeds, between prompts, and of the rest."""
    shapes = (seeds, 1), (1, prompts), (seeds, prompts)
    return sum(
        d * torch.randn(s, generator=generator) for d, s in zip(deviations, shapes, strict=True)
    ).double()


def test_components_are_found_again():
    generator = torch.Generator().manual_seed(3)
    found = ladder.variance_components(table(generator, 400, 400, 0.5, 0.2, 1.0))
    deviations = [v**0.5 for v in (found.seeds, found.prompts, found.rest)]
    assert deviations == pytest.approx([0.5, 0.2, 1.0], rel=0.1)


def test_the_prompts_needed_give_the_power():
    parts = VarianceComponents(seeds=0.0004**2, prompts=0.05**2, rest=0.01**2)
    generator = torch.Generator().manual_seed(4)
    needed = ladder.prompts_needed(parts, 0.01, seeds=3)
    assert 150 < needed < 260
    weights, found = metrics.bootstrap_counts(needed, 200, seed=0), []
    for _ in range(200):
        scores = 0.01 + table(generator, 3, needed, parts.seeds**0.5, parts.prompts**0.5, parts.rest**0.5)
        found.append(metrics.mean_estimate(scores, weights, needed).interval()[1] > 0)
    assert np.mean(found) == pytest.approx(ladder.POWER, abs=0.1)


def test_more_seeds_need_fewer_prompts_and_a_spread_of_seeds_no_number_mends():
    parts = VarianceComponents(seeds=0.004**2, prompts=0.02**2, rest=0.02**2)
    assert ladder.prompts_needed(parts, 0.01, 3) is None
    needed = [ladder.prompts_needed(parts, 0.01, seeds) for seeds in (5, 10, 20)]
    assert needed[0] > needed[1] > needed[2]
