"""The losses: noise prediction, MMD, and DASD's objective, L = L_noise + lambda_align * MMD^2.

Pure functions of tensors first, then the pass of a batch through the UNet, the objective of DASD, and the
choice of a config's objective, which is called as (parts, batch, config) -> (loss, logs).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dasd_utils import models
from dasd_utils.config import AlignmentConfig, Config, method_module
from dasd_utils.runtime import processes

if TYPE_CHECKING:
    from dasd_utils.latents import Batch

Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, d), (m, d) -> (n, m)
Objective = Callable[[models.Parts, "Batch", Config], tuple[Tensor, dict[str, float]]]
ALL = slice(None)
BANDWIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
TIME_SCALE = 10.0  # with `match_timesteps`: 1 / 10 of the time range counts as much as the median distance


def noise_prediction(
    eps: Tensor, noise: Tensor, timesteps: Tensor | None = None, alphas_cumprod: Tensor | None = None,
    min_snr_gamma: float | None = None,
) -> Tensor:  # fmt: skip
    """Return the mean of (eps - noise)^2 in fp32, with `min_snr_weights` for the samples if gamma is given.

    eps, noise: (B, ...); timesteps: (B,); alphas_cumprod: (T,). The weights need the last two.
    """
    if eps.shape != noise.shape:  # would be broadcast
        raise ValueError(f"eps has the shape {tuple(eps.shape)}, noise {tuple(noise.shape)}.")
    losses = (eps.float() - noise.float()).square().flatten(1).mean(dim=1)  # (B,)
    if min_snr_gamma is not None:
        losses = losses * min_snr_weights(alphas_cumprod, timesteps, min_snr_gamma)
    return losses.mean()


def min_snr_weights(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float = 5.0) -> Tensor:
    """Return min(SNR, gamma) / SNR, where SNR = a / (1 - a) (arXiv 2303.09556); (T,), (B,) -> (B,)."""
    a = alphas_cumprod.to(timesteps.device)[timesteps].float()
    return (gamma / (a / (1 - a))).clamp(max=1.0)  # 1, not 0 / 0, where the SNR is 0


def mmd(
    x: Tensor, y: Tensor, kernel: str | Kernel = "gaussian", unbiased: bool = True,
    sigma: float | Tensor | None = None, pairs: bool = False,
) -> Tensor:  # fmt: skip
    """Return the squared maximum mean discrepancy of two samples (Gretton et al. 2012, JMLR 13).

    x: (n, d); y: (m, d). The unbiased estimate leaves out each sample's pair with itself (U-statistic,
    equation 3) and can be negative; the biased one keeps it (V-statistic, equation 5). `kernel` is "linear",
    "gaussian", "multi" or a callable; `sigma` is the bandwidth of "gaussian" and "multi", by default
    `median_bandwidth`. With `pairs`: the mean of the biased MMD of all ({x_i}, {y_j}), a distance of points
    that is 0 only where all are equal. Raises ValueError for too few samples.
    """
    least = 2 if unbiased and not pairs else 1
    if min(len(x), len(y)) < least:
        raise ValueError(f"This MMD needs {least} or more samples of each set, not {len(x)} and {len(y)}.")
    x, y = (z if z.dtype == torch.float64 else z.float() for z in (x, y))

    def within(k: Tensor) -> Tensor:
        if pairs:
            return k.diagonal().mean()
        n = len(k)
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1)) if unbiased else k.mean()

    with torch.autocast(x.device.type, enabled=False):
        k = _choose_kernel(kernel, x, y, sigma)
        return within(k(x, x)) + within(k(y, y)) - 2 * k(x, y).mean()


def gaussian_kernel(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
    """Return exp(-|x - y|^2 / (2 sigma^2))."""
    return torch.exp(-_squared_distances(x, y) / (2 * sigma**2))


def multi_kernel(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
    """Return the mean of five Gaussian kernels, of bandwidth sigma times 1/4, 1/2, 1, 2 and 4."""
    distances = _squared_distances(x, y)
    kernels = [torch.exp(-distances / (2 * (sigma * factor) ** 2)) for factor in BANDWIDTH_FACTORS]
    return torch.stack(kernels).mean(dim=0)


def median_bandwidth(x: Tensor, y: Tensor) -> Tensor:
    """Return the median distance above 0 of points of x and y together, detached; 1 for equal points."""
    points = torch.cat([x, y]).detach()
    rows, columns = torch.triu_indices(len(points), len(points), offset=1, device=points.device)
    distances = _squared_distances(points, points)[rows, columns].sqrt()
    positive = distances[distances > 0]
    return positive.median() if len(positive) else distances.new_ones(())


def _choose_kernel(kernel: str | Kernel, x: Tensor, y: Tensor, sigma: float | Tensor | None) -> Kernel:
    if callable(kernel):
        return kernel
    if kernel == "linear":
        return lambda x, y: x @ y.T  # its biased MMD is the squared distance of the two means
    bandwidth = median_bandwidth(x, y) if sigma is None else sigma
    return functools.partial({"gaussian": gaussian_kernel, "multi": multi_kernel}[kernel], sigma=bandwidth)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # |x|^2 + |y|^2 - 2xy would cancel for features far from the origin
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


# The pass: what the UNet predicts for a batch, and the losses of that prediction.


def predict_batch(parts: models.Parts, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
    """Return (predicted noise, features after the aligned block), as far as the config's loss needs them.

    Source rows leave the UNet after that block, unless prior preservation needs their noise prediction, and
    do not enter it where nothing needs them. With `source_features` "frozen" their features are the base's,
    and with "bank" if the batch brings none.
    """
    alignment = config.alignment
    frozen = alignment.lambda_align > 0 and alignment.source_features != "adapted"
    prior = config.training.prior_loss_weight > 0
    with_source = prior or (needs_source(config) and not frozen)
    eps, features = predict_noise(parts, batch, with_source, prior, alignment.layer)
    if frozen and batch.source_prompts and batch.source_features is None:
        source = frozen_features(parts, batch, alignment.layer)
        features = torch.cat([features[: len(batch.target_latents)], source])
    return eps, features


def predict_noise(
    parts: models.Parts, batch: Batch, with_source: bool, source_noise: bool = False, layer: str = "mid"
) -> tuple[Tensor, Tensor]:
    """Return (predicted noise, features after the block `layer`), targets first, then sources.

    Noise (Bt, C, h, w), with `source_noise` Bt + Bs rows; features (Bt + Bs, C', h', w'), without source Bt.
    """
    inputs = _unet_inputs(parts, batch, "target")
    if with_source and batch.source_prompts:
        with torch.no_grad():  # source prompts hold no token that learns, and may be cached
            source = _unet_inputs(parts, batch, "source")
        inputs = [torch.cat(pair) for pair in zip(inputs, source, strict=True)]
    num_target = None if source_noise else len(batch.target_latents)
    return models.unet_pass(parts.unet, *inputs, num_target, layer)


@torch.no_grad()
def frozen_features(parts: models.Parts, batch: Batch, layer: str = "mid") -> Tensor:
    """Return the source features (Bs, C', h', w') of the base model, with LoRA off."""
    inputs = _unet_inputs(parts, batch, "source")
    with models.lora_disabled(parts):
        return models.unet_pass(parts.unet, *inputs, num_target=0, layer=layer)[1]


def bank_features(parts: models.Parts, batch: Batch, config: Config) -> Tensor:
    """Return the rows (Bs, d) that a bank keeps of source samples: features of the base, pooled."""
    features = frozen_features(parts, batch, config.alignment.layer)
    return pool_features(features.float(), config.alignment.pooling)


def uses_bank(config: Config) -> bool:
    """Return whether source features come from a bank; for prior preservation sources pass the UNet."""
    aligned = config.alignment.lambda_align > 0 and config.alignment.source_features == "bank"
    return aligned and config.training.prior_loss_weight == 0


def _unet_inputs(parts: models.Parts, batch: Batch, kind: str) -> list[Tensor]:
    """Return [noisy latents, timesteps, text condition] of the "target" or "source" samples."""
    names = ("latents", "noise", "timesteps", "prompts")
    latents, noise, timesteps, prompts = (getattr(batch, f"{kind}_{name}") for name in names)
    noisy = parts.noise_scheduler.add_noise(latents, noise, timesteps)
    return [noisy, timesteps, models.encode_prompts(parts, prompts)]


def needs_source(config: Config) -> bool:
    """Return whether any part of the loss uses source samples."""
    return config.alignment.lambda_align > 0 or config.training.prior_loss_weight > 0


def noise_loss(
    parts: models.Parts, batch: Batch, eps: Tensor, config: Config, rows: Any = ALL, kind: str = "target"
) -> Tensor:
    """Return the weighted noise prediction loss of `rows`, by default all, of targets or sources; or 0."""
    count = len(batch.target_latents)
    eps = (eps[:count] if kind == "target" else eps[count:])[rows]
    noise, timesteps = (getattr(batch, f"{kind}_{name}")[rows] for name in ("noise", "timesteps"))
    if not len(noise):
        return eps.new_zeros(())
    alphas = parts.noise_scheduler.alphas_cumprod
    return noise_prediction(eps, noise, timesteps, alphas, config.training.min_snr_gamma)


def denoising_losses(
    parts: models.Parts, part: Batch, eps: Tensor, batch: Batch, config: Config
) -> tuple[Tensor, dict[str, float]]:
    """Return L_noise + prior_loss_weight * L_prior, and both by name; L_prior only if it has a weight.

    L_prior is the sources' own noise prediction (prior preservation, arXiv 2208.12242). part: this process's
    share of the batch; eps: the noise predicted for it.
    """
    loss = noise_loss(parts, part, eps, config)
    # times the share of all samples here: the mean over processes is then the mean of all samples
    loss = loss * (len(part.target_latents) / len(batch.target_latents) * processes.count())
    logs = {"loss_noise": loss.item()}
    if config.training.prior_loss_weight > 0 and len(batch.source_latents):
        prior = noise_loss(parts, part, eps, config, kind="source")
        prior = prior * (len(part.source_latents) / len(batch.source_latents) * processes.count())
        loss = loss + config.training.prior_loss_weight * prior
        logs["loss_prior"] = prior.item()
    return loss, logs


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
    return {f"validation_{name}": loss / count for name, loss, count in found if count}


def domain_rows(batch: Batch, config: Config) -> dict[str, Tensor]:
    """Return for each target domain in the batch its row indices among the targets."""
    found = {d.name: (batch.target_domains == i).nonzero().flatten() for i, d in enumerate(config.domains)}
    return {name: rows for name, rows in found.items() if len(rows)}


# The objective of DASD.


class DasdObjective:
    """L = L_noise + lambda_align * mean over targets of MMD^2(source, target) of a block's features."""

    def __init__(self, config: Config) -> None:
        self.queue = FeatureQueue(config.alignment.queue_size)

    def __call__(self, parts: models.Parts, batch: Batch, config: Config) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and its terms: loss_noise, mmd, mmd_<domain>, and loss_prior if it has a weight.

        Of several processes each passes its share of the batch; the MMD is that of the complete batch.
        """
        part, places = batch.share()
        eps, features = predict_batch(parts, part, config)
        loss, logs = denoising_losses(parts, part, eps, batch, config)
        if config.alignment.lambda_align == 0:
            return loss, logs
        own = alignment_features(features, part, parts, config)
        distances = self.distances(processes.gather_rows(own, places, len(batch)), batch, config)
        if distances:
            mmd = torch.stack(list(distances.values())).mean()
            loss = loss + config.alignment.lambda_align * mmd
            logs |= {"mmd": mmd.item()} | {f"mmd_{name}": value.item() for name, value in distances.items()}
        return loss, logs

    def distances(self, features: Tensor, batch: Batch, config: Config) -> dict[str, Tensor]:
        """Return the squared MMD of each target domain from the source, then queue the features.

        features: (Bt + Bs, d), the targets first. A domain with too few for the estimator is left out.
        """
        settings = config.alignment
        groups = {config.source.name: features[len(batch.target_latents) :]}
        groups |= {name: features[rows] for name, rows in domain_rows(batch, config).items()}
        samples = {name: self.queue.extend(name, group) for name, group in groups.items()}
        source = samples.pop(config.source.name)
        least = 2 if settings.unbiased else 1
        usable = {name: x for name, x in samples.items() if min(len(x), len(source)) >= least}
        for name, group in groups.items():
            self.queue.push(name, group)
        return {name: alignment_distance(source, x, settings) for name, x in usable.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the queue: domain -> features, the oldest first."""
        return dict(self.queue.rows)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put the queue back as `state_dict` returned it."""
        self.queue.rows = dict(state)


class FeatureQueue:
    """The newest `size` features of each domain, detached: more samples for the MMD of a small batch."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[str, Tensor] = {}  # domain -> (at most size, d), the oldest first

    def extend(self, name: str, features: Tensor) -> Tensor:
        """Return the domain's queued features followed by these (n, d), whose gradient counts for all.

        Else the MMD would pull n / (n + queued) as strongly: less as the queue fills, and in smaller batches.
        """
        queued = self.rows.get(name)
        if queued is None:
            return features
        times = 1 + len(queued) / max(len(features), 1)
        constant = features.detach()
        return torch.cat([queued.to(features.device), constant + times * (features - constant)])

    def push(self, name: str, features: Tensor) -> None:
        """Queue the features (n, d) and drop the oldest; rows that are not finite never enter."""
        new = features.detach()
        new = new[new.isfinite().all(dim=1)]
        if self.size > 0 and len(new):
            self.rows[name] = self.extend(name, new)[-self.size :]


def alignment_features(features: Tensor, batch: Batch, parts: models.Parts, config: Config) -> Tensor:
    """Return the rows (Bt + Bs, d) that the MMD compares; `match_timesteps` adds t / T as a last column."""
    rows = pool_features(features.float(), config.alignment.pooling)
    if batch.source_features is not None:
        rows = torch.cat([rows, batch.source_features])
    if not config.alignment.match_timesteps:
        return rows
    times = torch.cat([batch.target_timesteps, batch.source_timesteps]).to(rows)
    return torch.cat([rows, times[:, None] / parts.noise_scheduler.config.num_train_timesteps], dim=1)


def pool_features(features: Tensor, pooling: str) -> Tensor:
    """Return (B, C, h, w) as rows: "mean" over space gives (B, C), "flat" (B, C * h * w)."""
    return features.mean(dim=(2, 3)) if pooling == "mean" else features.flatten(1)


def alignment_distance(source: Tensor, target: Tensor, settings: AlignmentConfig) -> Tensor:
    """Return the squared MMD of two sets of rows as the settings say; (n, d), (m, d) -> ()."""
    if settings.pairs:
        return mmd(source, target, settings.kernel, pairs=True)
    if settings.match_timesteps:  # a Gaussian with one more coordinate is the product of two Gaussians
        sigma = median_bandwidth(source[:, :-1], target[:, :-1])  # of the features alone
        source, target = (torch.cat([x[:, :-1], TIME_SCALE * sigma * x[:, -1:]], 1) for x in (source, target))
        return mmd(source, target, settings.kernel, settings.unbiased, sigma)
    return mmd(source, target, settings.kernel, settings.unbiased)


# Which objective trains: DASD's, or that of the method's file in `papers`.


def make_objective(config: Config) -> Objective:
    """Return the objective of the config's method."""
    module = method_module(config.method)
    return DasdObjective(config) if module is None else module.make_objective(config)


def whole_unet(config: Config) -> dict[str, Any]:
    """Return the config changes with which every weight of the UNet learns, at a tenth of LoRA's rate."""
    return {"whole_unet": True, "learning_rate": config.training.learning_rate / 10}
