"""Losses against hand-computed values, identities and statistics."""

import math

import pytest
import torch

from dasd_utils import losses


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
Y = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 5.0]])


# noise prediction


def test_min_snr_weights_by_hand():
    alphas = torch.tensor([10 / 11, 5 / 6, 1 / 3, 0.0])  # SNR 10, 5, 0.5, 0
    weights = losses.min_snr_weights(alphas, torch.arange(4), gamma=5.0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.0, 1.0, 1.0]))


def test_noise_prediction_weighs_samples_not_pixels():
    eps, noise = torch.zeros(2, 1, 2, 2), torch.stack([torch.full((1, 2, 2), 2.0), torch.ones(1, 2, 2)])
    alphas = torch.tensor([10 / 11, 1 / 3])  # weights 0.5 and 1
    loss = losses.noise_prediction(eps, noise, torch.tensor([0, 1]), alphas, 5.0)
    assert loss.item() == pytest.approx((0.5 * 4 + 1 * 1) / 2)
    assert losses.noise_prediction(eps, noise).item() == pytest.approx((4 + 1) / 2)


def test_noise_prediction_is_computed_in_fp32():
    loss = losses.noise_prediction(torch.zeros(1, 4).half(), torch.full((1, 4), 300.0).half())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(9e4)  # above the largest fp16


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        losses.noise_prediction(torch.zeros(2, 3), torch.zeros(2, 1))


# kernels


def test_kernels_by_hand():
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 6.0]])  # distance 5
    assert losses.mmd(x, y, "linear", unbiased=False).item() == 25
    assert losses.gaussian_kernel(x, y, 5.0).item() == pytest.approx(math.exp(-0.5))
    expected = sum(math.exp(-0.5 / f**2) for f in (0.25, 0.5, 1, 2, 4)) / 5
    assert losses.multi_kernel(x, y, 5.0).item() == pytest.approx(expected)


def test_distances_of_many_points_far_from_the_origin_do_not_cancel():
    x = normal(0, 40, 8) + 1000  # above 25 points torch may use norms and products
    apart = (x[:, None].double() - x.double()).square().sum(-1)
    expected = torch.exp(-apart / 8).float()
    torch.testing.assert_close(losses.gaussian_kernel(x, x, 2.0), expected, rtol=1e-4, atol=1e-6)


def test_median_bandwidth_by_hand_and_detached():
    x, y = torch.tensor([[0.0], [1.0]], requires_grad=True), torch.tensor([[3.0], [7.0]])
    sigma = losses.median_bandwidth(x, y)  # distances 1 2 3 4 6 7; torch takes the lower middle
    assert sigma.item() == 3 and not sigma.requires_grad
    assert losses.median_bandwidth(torch.zeros(3, 2), torch.zeros(2, 2)).item() == 1  # of equal points
    assert losses.median_bandwidth(torch.zeros(8, 1), torch.full((1, 1), 2.0)).item() == 2


# MMD


def test_linear_mmd_by_hand():
    # means (1, 0) and (0, 3)
    assert losses.mmd(X, Y, "linear", unbiased=False).item() == pytest.approx(1 + 9)
    # pairs of X: 0; pairs of Y: (3 + 5 + 15) / 3; cross pairs: 0
    for kernel in ("linear", lambda a, b: a @ b.T + 7):  # a constant cancels
        assert losses.mmd(X, Y, kernel, unbiased=True).item() == pytest.approx(23 / 3)


def test_gaussian_mmd_by_hand():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])

    def k(d):
        return math.exp(-(d**2) / 2)

    cross = (k(2) + k(4) + k(1) + k(3)) / 4
    unbiased = k(1) + k(2) - 2 * cross
    biased = (1 + k(1)) / 2 + (1 + k(2)) / 2 - 2 * cross
    assert losses.mmd(x, y, sigma=1.0).item() == pytest.approx(unbiased)
    assert losses.mmd(x, y, sigma=1.0, unbiased=False).item() == pytest.approx(biased)
    equal = torch.zeros(3, 4, requires_grad=True)
    losses.mmd(equal, torch.zeros(2, 4)).backward()
    assert torch.equal(equal.grad, torch.zeros(3, 4))


EACH = pytest.mark.parametrize("kernel", ["linear", "gaussian", "multi"])


@EACH
def test_unbiased_mmd_of_one_distribution_has_mean_zero_and_biased_has_not(kernel):
    draws = [(normal(2 * i, 8, 3), normal(2 * i + 1, 12, 3)) for i in range(400)]
    values = torch.stack([losses.mmd(x, y, kernel, sigma=2.0) for x, y in draws])
    standard_error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 4 * standard_error
    assert values.min() < 0
    biased = torch.stack([losses.mmd(x, y, kernel, unbiased=False, sigma=2.0) for x, y in draws])
    assert biased.mean() > 20 * standard_error
    assert biased.min() > 0
    same = losses.mmd(*draws[0][:1] * 2, kernel, unbiased=False)
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_mmd_leaves_autocast_and_half_precision():
    x, y = normal(0, 20, 6) + 30, normal(1, 20, 6) + 30
    exact = losses.mmd(x.bfloat16().float(), y.bfloat16().float(), "linear")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = losses.mmd(x.bfloat16(), y.bfloat16(), "linear")
        pairs = losses.mmd(x.bfloat16(), y.bfloat16(), "linear", pairs=True)
    assert value.dtype == pairs.dtype == torch.float32
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(pairs, losses.mmd(x.bfloat16(), y.bfloat16(), "linear", pairs=True))


def test_mean_pair_distance_by_hand():
    # squared distances of (0, 0): 1, 9, 25; of (2, 0): 5, 13, 29
    assert losses.mmd(X, Y, "linear", pairs=True).item() == pytest.approx(82 / 6)
    expected = sum(2 - 2 * math.exp(-d / 8) for d in (1, 9, 25, 5, 13, 29)) / 6
    assert losses.mmd(X, Y, sigma=2.0, pairs=True).item() == pytest.approx(expected)


@EACH
def test_mean_pair_distance_is_that_of_batches_of_one(kernel):
    x, y = normal(0, 5, 4), normal(1, 3, 4) + 1
    sigma = losses.median_bandwidth(x, y)
    pairs = [losses.mmd(a[None], b[None], kernel, unbiased=False, sigma=sigma) for a in x for b in y]
    torch.testing.assert_close(losses.mmd(x, y, kernel, pairs=True), torch.stack(pairs).mean())
    assert losses.mmd(x, x, kernel, pairs=True) > 0.1  # no distance of distributions
    assert losses.mmd(x[:1], x[:1], kernel, pairs=True).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "x, y, options, match",
    [
        (X[:1], Y, {}, "2 or more samples of each set, not 1 and 3"),
        (X, Y[:1], {}, "2 or more"),
        (X[:0], Y, {"unbiased": False}, "1 or more"),
        (X, Y[:0], {"pairs": True}, "1 or more"),
    ],
)
def test_mmd_refuses(x, y, options, match):
    with pytest.raises(ValueError, match=match):
        losses.mmd(x, y, **options)
