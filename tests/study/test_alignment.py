"""The pulls are the gradients that training adds; features are those that the MMD sees."""

import functools
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from synthetic import make_parts, make_sampler

from dasd_utils import losses, models, training
from dasd_utils.study import alignment


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(lambda_align=0.5, queue_size=0, target_batch_size=8, source_batch_size=4)


@pytest.fixture
def made(config, vae):
    return make_parts(config), make_sampler(config, vae)


def test_the_two_pulls_add_up_to_the_gradient_of_training(config, made):
    parts, sampler = made
    (pull,) = alignment.gradient_pulls(parts, sampler, config, [3])
    loss, _ = losses.DasdObjective(config)(parts, sampler.batch(3).to("cpu", torch.float32), config)
    loss.backward()
    trained = itertools.chain(*models.trainable_parameters(parts).values())
    whole = torch.cat([p.grad.flatten() for p in trained if p.grad is not None]).norm().item()
    expected = pull.noise**2 + pull.align**2 + 2 * pull.cosine * pull.noise * pull.align
    assert whole**2 == pytest.approx(expected, rel=1e-3)
    assert pull.align > 0 and pull.noise > 0


def test_the_pull_grows_with_lambda_alone(config, made):
    parts, sampler = made
    (one,) = alignment.gradient_pulls(parts, sampler, config, [0])
    (ten,) = alignment.gradient_pulls(parts, sampler, config.replace(lambda_align=5.0), [0])
    assert ten.align == pytest.approx(10 * one.align, rel=1e-3) and ten.noise == pytest.approx(one.noise)


def test_a_small_lambda_loses_nothing_in_half_precision(config, made, monkeypatch):
    parts, sampler = made

    class Half(training.Updater):  # as on a GPU without bf16
        def __init__(self, *given):
            super().__init__(*given)
            self.autocast = functools.partial(torch.autocast, "cpu", torch.float16)

    monkeypatch.setattr(training, "Updater", Half)
    (one,) = alignment.gradient_pulls(parts, sampler, config, [0])
    (small,) = alignment.gradient_pulls(parts, sampler, config.replace(lambda_align=5e-7), [0])
    assert small.align == pytest.approx(1e-6 * one.align, rel=1e-3)
    assert small.cosine == pytest.approx(one.cosine, abs=1e-3)


def test_the_queue_is_filled_before_the_first_step(config, made):
    parts, sampler = made
    queued = config.replace(queue_size=16)
    warm, cold = (alignment.gradient_pulls(parts, sampler, queued, [6], warm=n)[0] for n in (4, 0))
    assert warm.align < cold.align


def test_the_interval_of_the_ratio_is_that_of_student():
    ratios = [0.01, 0.02, 0.04, 0.03, 0.02, 0.05, 0.01, 0.02]
    pulls = [alignment.Pull(2.0, 2 * ratio, 0.0) for ratio in ratios]
    low, high = stats.t.interval(0.95, 7, np.mean(ratios), stats.sem(ratios))  # 2.36, not 1.96
    assert alignment.pull_ratio(pulls) == pytest.approx((np.mean(ratios), low, high))


def test_features_are_those_of_a_unet_in_half_precision_too(config, made):
    _, sampler = made
    halves = config.replace(mixed_precision="bf16", half_weights=True)
    parts = make_parts(halves)
    parts.unet.to(torch.bfloat16)  # as on a GPU
    found = alignment.features(parts, sampler, halves, 2)
    whole = alignment.features(made[0], sampler, config, 2)
    for name, rows in whole.items():
        assert (found[name] - rows).norm() < 0.1 * rows.norm()


def test_features_are_those_of_the_batches(config, made):
    parts, sampler = made
    found = alignment.features(parts, sampler, config, 2)
    assert {name: len(rows) for name, rows in found.items()} == {"painting": 8, "satellite": 8, "xray": 8}
    batch = sampler.batch(0).to("cpu", torch.float32)
    with torch.no_grad():
        _, mid = losses.predict_noise(parts, batch, with_source=True)
    torch.testing.assert_close(found["painting"][:4], mid[8:].mean(dim=(2, 3)))
    torch.testing.assert_close(found["xray"][:4], mid[:8][batch.target_domains == 1].mean(dim=(2, 3)))


def test_separation_is_zero_for_one_distribution_and_large_for_two():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(100, 4, generator=generator), torch.randn(100, 4, generator=generator)
    (alike, low, high), apart = alignment.separation(x, y), alignment.separation(x, y + 3)
    assert low < 0 < high and low < alike < high and abs(alike) < 0.02
    assert 0.2 < apart[1] < apart[0] < apart[2]
    assert alignment.separation(10 * x, 10 * (y + 3)) == pytest.approx(apart, rel=1e-4)
