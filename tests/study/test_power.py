"""The number of prompts that show a difference is what simulation finds."""

import numpy as np
import pytest
import torch

from dasd_utils import metrics
from dasd_utils.study import power
from dasd_utils.study.power import VarianceComponents


def table(generator, seeds, prompts, of_seeds=0.0, of_prompts=0.0, rest=0.0):
    """Scores (S, P) around 0 with these deviations."""
    one, two, three = (
        torch.randn(s, generator=generator) for s in ((seeds, 1), (1, prompts), (seeds, prompts))
    )
    return (of_seeds * one + of_prompts * two + rest * three).double()


def test_components_are_found_again():
    generator = torch.Generator().manual_seed(3)
    found = power.variance_components(table(generator, 400, 400, 0.5, 0.2, 1.0))
    deviations = [v**0.5 for v in (found.seeds, found.prompts, found.rest)]
    assert deviations == pytest.approx([0.5, 0.2, 1.0], rel=0.1)
    with pytest.raises(ValueError, match="two seeds and prompts"):
        power.variance_components(torch.zeros(1, 9))


def test_the_prompts_needed_give_the_power():
    parts = VarianceComponents(seeds=0.0004**2, prompts=0.05**2, rest=0.01**2)
    generator = torch.Generator().manual_seed(4)
    needed = power.prompts_needed(parts, 0.01, seeds=3)
    assert 150 < needed < 260
    weights, found = metrics.bootstrap_counts(needed, 200, seed=0), []
    for _ in range(200):
        scores = 0.01 + table(generator, 3, needed, parts.seeds**0.5, parts.prompts**0.5, parts.rest**0.5)
        found.append(metrics.mean_estimate(scores, weights, needed).interval()[1] > 0)
    assert np.mean(found) == pytest.approx(power.POWER, abs=0.1)


def test_more_seeds_need_fewer_prompts_and_a_spread_of_seeds_no_number_mends():
    parts = VarianceComponents(seeds=0.004**2, prompts=0.02**2, rest=0.02**2)
    assert power.prompts_needed(parts, 0.01, 3) is None
    needed = [power.prompts_needed(parts, 0.01, seeds) for seeds in (5, 10, 20)]
    assert needed[0] > needed[1] > needed[2]
