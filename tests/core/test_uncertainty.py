"""Intervals cover what they promise, over prompts and seeds together; power is what simulation finds."""

import numpy as np
import pytest
import torch
from scipy import stats

from dasd_utils import metrics
from dasd_utils.metrics import Estimate
from dasd_utils.study import power
from dasd_utils.study.power import VarianceComponents


def table(generator, seeds, prompts, of_seeds=0.0, of_prompts=0.0, rest=0.0):
    """Scores (S, P) around 0 with these deviations."""
    one, two, three = (
        torch.randn(s, generator=generator) for s in ((seeds, 1), (1, prompts), (seeds, prompts))
    )
    return (of_seeds * one + of_prompts * two + rest * three).double()


def estimate(scores, weights):
    return Estimate(
        scores.mean(dim=1), (weights @ scores.T) / weights.sum(dim=1, keepdim=True), scores.shape[1]
    )


@pytest.mark.parametrize(
    ("seeds", "deviations"),
    [(3, (0.3, 1.0, 0.5)), (3, (1.0, 0.0, 0.3)), (2, (0.2, 1.0, 0.2)), (5, (0.0, 1.0, 1.0))],
)
def test_the_interval_covers_prompts_and_seeds(seeds, deviations):
    generator, weights = torch.Generator().manual_seed(0), metrics.bootstrap_counts(40, 300, seed=0)
    held = [
        low <= 0 <= high
        for _ in range(400)
        for _, low, high in [estimate(table(generator, seeds, 40, *deviations), weights).interval()]
    ]
    assert 0.93 <= np.mean(held) <= 1.0


def test_prompts_alone_would_be_too_narrow():
    """What the spread of seeds is for: without it most intervals miss."""
    generator, weights = torch.Generator().manual_seed(0), metrics.bootstrap_counts(40, 300, seed=0)
    held = []
    for _ in range(200):
        scores = table(generator, 3, 40, 1.0, 0.2, 0.2).mean(dim=0, keepdim=True)  # as if one training
        _, low, high = estimate(scores, weights).interval()
        held.append(low <= 0 <= high)
    assert np.mean(held) < 0.5


def test_one_seed_is_the_interval_of_a_mean():
    scores = table(torch.Generator().manual_seed(1), 1, 50, rest=1.0)
    value, low, high = estimate(scores, metrics.bootstrap_counts(50, 20_000, seed=0)).interval()
    expected = stats.t.interval(0.95, 49, scores.mean().item(), scores.std().item() / 50**0.5)
    assert value == pytest.approx(scores.mean().item())
    assert (low, high) == pytest.approx(expected, abs=0.01)


def test_two_variances_widen_as_welch_says():
    half = metrics.half_width(((4.0, 2), (0.0, 50)))
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * 2)
    freedom = 25 / (16 / 2 + 1 / 50)
    assert metrics.half_width(((4.0, 2), (1.0, 50))) == pytest.approx(stats.t.ppf(0.975, freedom) * 5**0.5)
    assert metrics.half_width(((0.0, 2), (0.0, 9))) == 0


def test_pairs_cancel_what_they_share():
    generator, weights = torch.Generator().manual_seed(2), metrics.bootstrap_counts(60, 500, seed=0)
    shared = table(generator, 3, 60, of_prompts=1.0)
    one = estimate(shared + 0.1 + table(generator, 3, 60, rest=0.01), weights)
    other = estimate(shared, weights)
    value, low, high = one.minus(other).interval()
    assert low < 0.1 < high and high - low < 0.02 and value == pytest.approx(0.1, abs=0.01)
    assert one.interval()[1] < 0 < one.interval()[2]


def test_draws_are_counts_of_a_resample():
    weights = metrics.bootstrap_counts(7, 2000, seed=0)
    assert (weights.sum(dim=1) == 7).all() and (weights == weights.round()).all()
    assert weights.mean().item() == 1 and weights.var().item() == pytest.approx(6 / 7, rel=0.05)
    assert torch.equal(weights, metrics.bootstrap_counts(7, 2000, seed=0))
    assert not torch.equal(weights, metrics.bootstrap_counts(7, 2000, seed=1))


def test_components_are_found_again():
    generator = torch.Generator().manual_seed(3)
    found = power.variance_components(table(generator, 400, 400, 0.5, 0.2, 1.0))
    deviations = [v**0.5 for v in (found.seeds, found.prompts, found.rest)]
    assert deviations == pytest.approx([0.5, 0.2, 1.0], rel=0.1)
    with pytest.raises(ValueError, match="two seeds and prompts"):
        power.variance_components(torch.zeros(1, 9))


def test_the_prompts_needed_give_the_power():
    parts, generator = (
        VarianceComponents(seeds=0.0004**2, prompts=0.05**2, rest=0.01**2),
        torch.Generator().manual_seed(4),
    )
    needed = power.prompts_needed(parts, 0.01, seeds=3)
    assert 150 < needed < 260
    weights, found = metrics.bootstrap_counts(needed, 200, seed=0), []
    for _ in range(200):
        scores = 0.01 + table(generator, 3, needed, parts.seeds**0.5, parts.prompts**0.5, parts.rest**0.5)
        found.append(estimate(scores, weights).interval()[1] > 0)
    assert np.mean(found) == pytest.approx(power.POWER, abs=0.1)


def test_more_seeds_need_fewer_prompts_and_a_spread_of_seeds_no_number_mends():
    parts = VarianceComponents(seeds=0.004**2, prompts=0.02**2, rest=0.02**2)
    assert power.prompts_needed(parts, 0.01, 3) is None
    needed = [power.prompts_needed(parts, 0.01, seeds) for seeds in (5, 10, 20)]
    assert needed[0] > needed[1] > needed[2]


def test_leaving_each_out_is_the_t_interval_for_a_mean():
    values = torch.randn(9, generator=torch.Generator().manual_seed(0)).double()
    found = metrics.jackknife(lambda rows: values[rows].mean().item(), 9)
    low, high = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert found == pytest.approx((values.mean().item(), low, high))


def test_leaving_each_out_covers_a_mean_over_pairs():
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        values = 1 + torch.randn(20, generator=generator).double()

        def products(rows, values=values):
            square = torch.outer(values[rows], values[rows])
            return square[torch.triu_indices(len(rows), len(rows), 1).unbind()].mean().item()

        _, low, high = metrics.jackknife(products, 20)
        hits += low <= 1 <= high  # the mean of a product of two samples
    assert 0.9 <= hits / 300 <= 0.98


def test_leaving_out_needs_three():
    with pytest.raises(ValueError, match="three of them, not 2"):
        metrics.jackknife(lambda rows: 0.0, 2)
