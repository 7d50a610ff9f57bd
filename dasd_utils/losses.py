"""Losses as pure functions of tensors: noise prediction with min-SNR weights, kernels, squared MMD."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dasd_utils import models
from dasd_utils.config import AlignmentConfig, Config, method_module
from dasd_utils.latents import Batch
from dasd_utils.runtime import processes

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


# The objective of DASD: noise prediction on the target domains, and the MMD of mid-block features.


TIMES_APART = 10.0
Objective = Callable[[models.Parts, Batch, Config], tuple[Tensor, dict[str, float]]]


class FeatureQueue:
    """The newest `size` features of each domain, detached: an MMD of small batches sees more samples."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[str, Tensor] = {}  # domain -> (at most size, d), the oldest first

    def extend(self, name: str, features: Tensor) -> Tensor:
        """Return the kept features of the domain followed by these (n, d), which keep their gradient."""
        kept = self.rows.get(name)
        return features if kept is None else torch.cat([kept.to(features.device), features])

    def push(self, name: str, features: Tensor) -> None:
        """Keep the features (n, d) and let the oldest go; rows that are not finite never enter."""
        new = features.detach()
        new = new[new.isfinite().all(dim=1)]
        if self.size > 0 and len(new):
            self.rows[name] = self.extend(name, new)[-self.size :]


class DasdObjective:
    """L = L_noise + lambda_align * mean over target domains of MMD^2(source, target).

    The features are those of the UNet's mid-block, at the same timesteps for both. With `queue_size` > 0 both
    samples of the MMD also hold features of recent steps: they carry no gradient, they steady the estimate.
    With `prior_loss_weight` > 0 that much of the sources' own noise prediction loss is added.
    """

    def __init__(self, config: Config) -> None:
        self.queue = FeatureQueue(config.alignment.queue_size)

    def __call__(self, parts: models.Parts, batch: Batch, config: Config) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and its parts: loss_noise, mmd, mmd_<domain>, and loss_prior where it is asked for.

        Target and source share one pass down to the mid-block, where the source stops unless it has a loss
        of its own; one that nothing asks for is not passed through the network at all. A domain that has
        fewer samples than the estimator needs (the unbiased one: two, the queue's included) is left out of
        this step and its logs. Of several processes each passes its share of the batch through the network;
        the MMD is of all of it.
        """
        part, places = batch.share()
        eps, mid = predict_batch(parts, part, config)
        loss, logs = denoising_losses(parts, part, eps, batch, config)
        distances = {}
        if config.alignment.lambda_align > 0:
            own = alignment_features(mid, part, parts, config)
            distances = self.distances(processes.gather_rows(own, places, len(batch)), batch, config)
        if distances:
            mmd = torch.stack(list(distances.values())).mean()
            loss = loss + config.alignment.lambda_align * mmd
            logs |= {"mmd": mmd.item()} | {f"mmd_{name}": value.item() for name, value in distances.items()}
        return loss, logs

    def distances(self, features: Tensor, batch: Batch, config: Config) -> dict[str, Tensor]:
        """Return the squared MMD of each target domain from the source, and queue the features.

        features: (Bt + Bs, d), pooled, the targets first.
        """
        settings = config.alignment
        groups = {config.source.name: features[len(batch.target_latents) :]}
        groups |= {n: features[rows] for n, rows in domain_rows(batch, config).items()}
        samples = {name: self.queue.extend(name, group) for name, group in groups.items()}
        least = 2 if settings.unbiased else 1
        source = samples.pop(config.source.name)
        usable = {n: x for n, x in samples.items() if min(len(x), len(source)) >= least}
        for name, group in groups.items():
            self.queue.push(name, group)
        return {name: alignment_distance(source, x, settings) for name, x in usable.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the queue: domain -> features, the oldest first."""
        return dict(self.queue.rows)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put the queue back as `state_dict` returned it."""
        self.queue.rows = dict(state)


def _share(own: int, total: int) -> float:
    """By how much a mean over this process' samples counts: 1 where all processes have as many."""
    return own / total * processes.count()


def denoising_losses(
    parts: models.Parts, part: Batch, eps: Tensor, batch: Batch, config: Config
) -> tuple[Tensor, dict[str, float]]:
    """Return L_noise + prior_loss_weight * L_prior of the noise predicted for this process's part of a batch.

    Also both by name: loss_noise, and loss_prior where it is asked for and the batch has sources.
    """
    loss = noise_loss(parts, part, eps, config)
    loss = loss * _share(len(part.target_latents), len(batch.target_latents))
    logs = {"loss_noise": loss.item()}
    if config.training.prior_loss_weight > 0 and len(batch.source_latents):
        prior = prior_loss(parts, part, eps, config)
        prior = prior * _share(len(part.source_latents), len(batch.source_latents))
        loss = loss + config.training.prior_loss_weight * prior
        logs["loss_prior"] = prior.item()
    return loss, logs


def needs_source(config: Config) -> bool:
    """Return whether any part of the loss looks at source samples."""
    return config.alignment.lambda_align > 0 or config.training.prior_loss_weight > 0


def predict_batch(parts: models.Parts, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
    """Return what `predict` does, the sources passed as far and by the model that the config asks for."""
    frozen = config.alignment.lambda_align > 0 and config.alignment.source_features == "frozen"
    prior = config.training.prior_loss_weight > 0
    with_source, layer = prior or (needs_source(config) and not frozen), config.alignment.layer
    eps, mid = predict_noise(parts, batch, with_source, prior, layer)
    if frozen and batch.source_prompts:
        mid = torch.cat([mid[: len(batch.target_latents)], frozen_features(parts, batch, layer)])
    return eps, mid


def predict_noise(
    parts: models.Parts, batch: Batch, with_source: bool, whole: bool = False, layer: str = "mid"
) -> tuple[Tensor, Tensor]:
    """Return (predicted noise, features after the block), both of the targets and then of the sources.

    (Bt, C, h, w) and (Bt + Bs, C', h', w'), without the source Bt features; noise is predicted for the
    sources too only if `whole`. A batch may have no source.
    """
    latents, noise, timesteps = batch.target_latents, batch.target_noise, batch.target_timesteps
    text = models.encode_prompts(parts, batch.target_prompts)
    if with_source and batch.source_prompts:
        latents = torch.cat([latents, batch.source_latents])
        noise = torch.cat([noise, batch.source_noise])
        timesteps = torch.cat([timesteps, batch.source_timesteps])
        with torch.no_grad():  # their prompts hold no token that learns, and may be kept
            source_text = models.encode_prompts(parts, batch.source_prompts)
        text = torch.cat([text, source_text])
    noisy = parts.noise_scheduler.add_noise(latents, noise, timesteps)
    num_target = None if whole else len(batch.target_latents)
    return models.unet_pass(parts.unet, noisy, timesteps, text, num_target, layer)


@torch.no_grad()
def frozen_features(parts: models.Parts, batch: Batch, layer: str = "mid") -> Tensor:
    """Return the features (Bs, C', h', w') of the sources as the base model has them, LoRA off."""
    noise, timesteps = batch.source_noise, batch.source_timesteps
    noisy = parts.noise_scheduler.add_noise(batch.source_latents, noise, timesteps)
    text = models.encode_prompts(parts, batch.source_prompts)
    with models.lora_disabled(parts):  # one row goes on to the end: attention takes no empty batch
        return models.unet_pass(parts.unet, noisy, timesteps, text, num_target=1, layer=layer)[1]


def noise_loss(
    parts: models.Parts, batch: Batch, eps: Tensor, config: Config, rows: Tensor | slice = slice(None)
) -> Tensor:
    """Return the noise prediction loss of the targets (or some rows of them), weighted as the config says."""
    alphas = parts.noise_scheduler.alphas_cumprod
    noise, timesteps = batch.target_noise[rows], batch.target_timesteps[rows]
    eps = eps[: len(batch.target_latents)][rows]
    return noise_prediction(eps, noise, timesteps, alphas, config.training.min_snr_gamma)


def prior_loss(parts: models.Parts, batch: Batch, eps: Tensor, config: Config) -> Tensor:
    """Return the same of the sources: what they were before is to stay (DreamBooth, arXiv 2208.12242).

    0 where the batch has none.
    """
    if not len(batch.source_latents):
        return eps.new_zeros(())
    alphas, timesteps = parts.noise_scheduler.alphas_cumprod, batch.source_timesteps
    eps = eps[len(batch.target_latents) :]
    return noise_prediction(eps, batch.source_noise, timesteps, alphas, config.training.min_snr_gamma)


def alignment_features(mid: Tensor, batch: Batch, parts: models.Parts, config: Config) -> Tensor:
    """Return the rows (Bt + Bs, d) that the MMD compares; `match_timesteps` adds t / T as a last column."""
    rows = pool_features(mid.float(), config.alignment.pooling)
    if not config.alignment.match_timesteps:
        return rows
    times = torch.cat([batch.target_timesteps, batch.source_timesteps]).to(rows)
    return torch.cat([rows, times[:, None] / parts.noise_scheduler.config.num_train_timesteps], dim=1)


def alignment_distance(source: Tensor, target: Tensor, settings: AlignmentConfig) -> Tensor:
    """Return the squared MMD of two sets of rows as the settings say.

    With `match_timesteps` the kernel is a product, one factor for features and one for times: times 1 / 10 of
    the range apart count as much as features the median distance apart.
    """
    if settings.pairs:
        return mean_pair_distance(source, target, settings.kernel)
    if settings.match_timesteps:
        scale = TIMES_APART * median_bandwidth(source[:, :-1], target[:, :-1])
        source, target = (torch.cat([x[:, :-1], scale * x[:, -1:]], dim=1) for x in (source, target))
    return mmd(source, target, settings.kernel, settings.unbiased)


def pool_features(features: Tensor, pooling: str) -> Tensor:
    """Return (B, C, h, w) as rows: "mean" over space gives (B, C), "flat" (B, C * h * w)."""
    return features.mean(dim=(2, 3)) if pooling == "mean" else features.flatten(1)


def domain_rows(batch: Batch, config: Config) -> dict[str, Tensor]:
    """Return for each target domain in the batch its row indices among the targets."""
    found = {d.name: (batch.target_domains == i).nonzero().flatten() for i, d in enumerate(config.domains)}
    return {name: rows for name, rows in found.items() if len(rows)}


@torch.no_grad()
def validation_losses(parts: models.Parts, batches: Sequence[Batch], config: Config) -> dict[str, float]:
    """Return each target domain's noise prediction loss over fixed batches, weighted as in training."""
    names = [domain.name for domain in config.domains]
    sums = torch.zeros(2, len(names), dtype=torch.float64)  # of losses, of samples
    for batch in batches[processes.share(len(batches))]:
        eps, _ = predict_noise(parts, batch, with_source=False)
        for name, rows in domain_rows(batch, config).items():
            value = noise_loss(parts, batch, eps, config, rows).item()
            sums[:, names.index(name)] += torch.tensor([value * len(rows), len(rows)], dtype=torch.float64)
    losses, counts = processes.sum_tensor(sums).tolist()
    found = zip(names, losses, counts, strict=True)
    return {f"validation_{name}": loss / seen for name, loss, seen in found if seen}


def mean_logs(logs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each value over the micro-batches that have it."""
    names = dict.fromkeys(name for each in logs for name in each)
    values = {name: [each[name] for each in logs if name in each] for name in names}
    return {name: sum(each) / len(each) for name, each in values.items()}


# the method of the config: DASD, or a paper's


def compares_samples(config: Config) -> bool:
    """Return whether the method's loss is of samples together, so that a smaller batch is another loss.

    DASD's is too, but its queue keeps what a smaller batch lacks.
    """
    return getattr(method_module(config.method), "COMPARES_SAMPLES", False)


def accumulates(config: Config) -> bool:
    """Return whether a step may be made of several micro-batches."""
    return getattr(method_module(config.method), "ACCUMULATES", True)


def make_objective(config: Config) -> Objective:
    """Return the objective of the config's method."""
    module = method_module(config.method)
    return DasdObjective(config) if module is None else module.make_objective(config)


def whole_unet(config: Config) -> dict[str, Any]:
    """Return the changes of a config with which all of the UNet learns, at a tenth of LoRA's rate."""
    return {"whole_unet": True, "learning_rate": config.training.learning_rate / 10}
