"""Losses as pure functions of tensors: noise prediction with min-SNR weights, kernels, squared MMD."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, d), (m, d) -> (n, m)
BANDWIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def noise_prediction(
    eps: Tensor,
    noise: Tensor,
    timesteps: Tensor | None = None,
    alphas_cumprod: Tensor | None = None,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """Return the mean of (eps - noise)^2, in fp32; each sample weighs `min_snr_weights` where gamma is given.

    eps, noise: (B, ...); timesteps: (B,); alphas_cumprod: (T,). Weights need the last two.
    """
    if eps.shape != noise.shape:
        raise ValueError(f"eps has the shape {tuple(eps.shape)}, noise {tuple(noise.shape)}.")
    losses = (eps.float() - noise.float()).square().flatten(1).mean(dim=1)  # (B,)
    if min_snr_gamma is not None:
        if timesteps is None or alphas_cumprod is None:
            raise ValueError("Min-SNR weights need timesteps and alphas_cumprod.")
        losses = losses * min_snr_weights(alphas_cumprod, timesteps, min_snr_gamma)
    return losses.mean()


def snr(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return the signal-to-noise ratio a / (1 - a) of each timestep; (T,), (B,) -> (B,)."""
    a = alphas_cumprod.to(timesteps.device)[timesteps].float()
    return a / (1 - a)


def min_snr_weights(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float = 5.0) -> Tensor:
    """Return min(SNR, gamma) / SNR for noise prediction (arXiv 2303.09556); (B,)."""
    if not gamma > 0:
        raise ValueError(f"min_snr_gamma is {gamma}; it must be above 0.")
    return (gamma / snr(alphas_cumprod, timesteps)).clamp(max=1.0)  # 1, not 0 / 0, where the SNR is 0


def linear_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products; its biased MMD is the squared distance of the two means."""
    return x @ y.T


def gaussian_kernel(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
    """Return exp(-|x - y|^2 / (2 sigma^2))."""
    return _gaussian(_squared_distances(x, y), sigma)


def multi_kernel(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
    """Return the mean of five Gaussian kernels, of bandwidth sigma times 1/4, 1/2, 1, 2 and 4."""
    distances = _squared_distances(x, y)
    kernels = [_gaussian(distances, sigma * factor) for factor in BANDWIDTH_FACTORS]
    return torch.stack(kernels).mean(dim=0)


def median_bandwidth(x: Tensor, y: Tensor) -> Tensor:
    """Return the median distance between different points of x and y together, detached.

    Pairs at distance 0 do not count; a set of equal points gives 1.
    """
    points = torch.cat([x, y]).detach()
    rows, columns = torch.triu_indices(len(points), len(points), offset=1, device=points.device)
    distances = _squared_distances(points, points)[rows, columns].sqrt()
    positive = distances[distances > 0]
    return positive.median() if len(positive) else distances.new_ones(())


def mmd(
    x: Tensor,
    y: Tensor,
    kernel: str | Kernel = "gaussian",
    unbiased: bool = True,
    sigma: float | Tensor | None = None,
) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples (Gretton et al. 2012, JMLR 13).

    x: (n, d); y: (m, d). Unbiased leaves out each sample's pair with itself (U-statistic, equation 3) and can
    be below 0; biased keeps it (V-statistic, equation 5). `kernel` is "linear", "gaussian", "multi" or a
    callable; `sigma` is the bandwidth of "gaussian" and "multi", by default `median_bandwidth`.
    Raises ValueError for shapes that do not fit and for an unbiased estimate of fewer than two samples.
    """
    _check_samples(x, y, unbiased)
    with torch.autocast(x.device.type, enabled=False):
        x, y = _full_precision(x), _full_precision(y)
        k = _choose_kernel(kernel, x, y, sigma)
        return _mean(k(x, x), unbiased) + _mean(k(y, y), unbiased) - 2 * k(x, y).mean()


def mean_pair_distance(
    x: Tensor, y: Tensor, kernel: str | Kernel = "gaussian", sigma: float | Tensor | None = None
) -> Tensor:
    """Return k(x, x) + k(y, y) - 2 k(x, y) of single samples, averaged over all pairs of x and y.

    The biased MMD of one sample against one, as a batch of 1 has it: a distance of points that is 0 only
    where all of them are one point, not where the distributions agree. Arguments as of `mmd`.
    """
    _check_samples(x, y, unbiased=False)
    with torch.autocast(x.device.type, enabled=False):
        x, y = _full_precision(x), _full_precision(y)
        k = _choose_kernel(kernel, x, y, sigma)
        return k(x, x).diagonal().mean() + k(y, y).diagonal().mean() - 2 * k(x, y).mean()


def _mean(k: Tensor, off_diagonal: bool) -> Tensor:
    if not off_diagonal:
        return k.mean()
    n = len(k)
    return (k.sum() - k.diagonal().sum()) / (n * (n - 1))


def _choose_kernel(kernel: str | Kernel, x: Tensor, y: Tensor, sigma: float | Tensor | None) -> Kernel:
    if callable(kernel):
        return kernel
    if kernel == "linear":
        return linear_kernel
    gaussians = {"gaussian": gaussian_kernel, "multi": multi_kernel}
    if kernel not in gaussians:
        raise ValueError(f"There is no kernel {kernel!r}; choose linear, gaussian, multi or a callable.")
    bandwidth = median_bandwidth(x, y) if sigma is None else sigma
    if not bandwidth > 0:
        raise ValueError(f"sigma is {bandwidth}; a bandwidth must be above 0.")
    return lambda a, b: gaussians[kernel](a, b, bandwidth)


def _gaussian(squared_distances: Tensor, sigma: float | Tensor) -> Tensor:
    return torch.exp(-squared_distances / (2 * sigma**2))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # |x|^2 + |y|^2 - 2xy would cancel for features far from the origin
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _check_samples(x: Tensor, y: Tensor, unbiased: bool) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"MMD compares samples (n, d) and (m, d), not {tuple(x.shape)} and {tuple(y.shape)}."
        )
    least = 2 if unbiased else 1
    if min(len(x), len(y)) < least:
        kind, what = ("unbiased", "two samples") if unbiased else ("biased", "one sample")
        raise ValueError(f"The {kind} MMD needs at least {what} of each set, not {len(x)} and {len(y)}.")
