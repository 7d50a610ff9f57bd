"""DomainStudio (arXiv 2306.14153): keep the distances between samples, restore their detail.

Two networks see the same x_t: the adapted one and the frozen source, here the same UNet without its adapter.
Each predicts x0 = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t), and
L = L_noise + prior_loss_weight L_prior + image_weight L_img + detail_weight L_hf + detail_mse_weight L_hfmse.
L_img is the KL divergence between the two networks' softmax over cosines between samples, L_hf the same of
their high frequencies, L_hfmse the squared distance of these from those of the sample itself.

Here it is as in the paper. The released code never uses the frozen network, decodes latents without undoing
their scale, and compares L_hfmse with another image; it also has the other direction of the `divergence`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dasd_utils import losses, models, sampling
from dasd_utils.config import Config, DasdError, Weight, section, without_tokens
from dasd_utils.runtime import processes

if TYPE_CHECKING:
    from dasd_utils.latents import Batch

NAME = "DomainStudio"
MIN_SAMPLES = 3
COMPARES_SAMPLES = True
# Prior preservation as in DreamBooth, on images that the base generates, instead of the MMD of DASD.
CHANGES: dict[str, Any] = {"lambda_align": 0.0, "prior_loss_weight": 1.0, "source_images": "generated"}
BY_PROFILE: dict[str, dict[str, Any]] = {  # four of each domain in a batch
    "sd15": {"target_batch_size": 8, "source_batch_size": 4, "gradient_accumulation_steps": 2}
}


@section
class Settings:
    """The numbers of the method, as in the released text-to-image code, and its variants by name."""

    image_weight: Weight = 100.0  # of L_img
    detail_weight: Weight = 100.0  # of L_hf
    detail_mse_weight: Weight = 0.1  # of L_hfmse
    # of each domain that a step compares: the published batch; more cost more decoding
    samples: Annotated[int, Field(ge=MIN_SAMPLES)] = 4
    space: Literal["pixels", "latents"] = "pixels"  # in which x0 is compared
    similarity: Literal["cosine", "euclidean"] = "cosine"  # euclidean: minus the root mean square distance
    detail: Literal["haar", "laplacian"] = "haar"
    divergence: Literal["adapted", "base"] = "adapted"  # KL(adapted || base), or KL(base || adapted)
    timesteps: Literal["shared", "own"] = "shared"  # one for the whole batch, or each sample's own


PARTS = {"L_img": "image_weight", "L_hf": "detail_weight", "L_hfmse": "detail_mse_weight"}
NO_LOSSES = dict.fromkeys(PARTS.values(), 0.0)
# of the unconditional models: the middle of the published ranges [0.1, 1] and [0.01, 0.08]
MILD = {"image_weight": 0.5, "detail_weight": 0.5, "detail_mse_weight": 0.05}
TENTH = {"image_weight": 10.0, "detail_weight": 10.0, "detail_mse_weight": 0.1}  # of the pairwise weights
# What summaries of the paper claim, and it does not: Euclidean, Laplacian, two weights of one half.
CIRCULATING = {
    "similarity": "euclidean", "detail": "laplacian", "image_weight": 0.5, "detail_weight": 0.5,
    "detail_mse_weight": 0.0}  # fmt: skip


def only(weight: str) -> dict[str, float]:
    """Return the published weights with all but one set to 0."""
    return NO_LOSSES | {weight: getattr(Settings(), weight)}


def _row(own: dict[str, Any], after: str, **changes: Any) -> dict[str, Any]:
    return {"changes": changes | {"method_settings": own}, "after": after}


def _unconditional(own: dict[str, Any], after: str) -> dict[str, Any]:
    """Few images, no text: the UNet with the empty prompt is the unconditional source model."""
    changes = {"caption_dropout": 1.0, "prior_loss_weight": 0.0, "source_images": "real"}
    row = _row(own, f"{after}, unconditional", **changes)
    return row | {"tokens": False, "settings": "unconditional"}


_NONE = f"{NAME}, no losses"
VARIANTS = {f"{NAME}, {name}": only(weight) for name, weight in PARTS.items()}
LADDER: dict[str, dict[str, Any]] = {
    NAME: {"after": _NONE},
    _NONE: _row(NO_LOSSES, "LoRA + token"),
    **{name: _row(own, _NONE) for name, own in VARIANTS.items()},
    f"{NAME}, latents": _row({"space": "latents"}, _NONE),
    f"{NAME}, as it circulates": _row(CIRCULATING, _NONE),
    f"{NAME}, a tenth": _row(TENTH, _NONE),
    f"{NAME}, mild": _row(MILD, _NONE),
    f"{NAME}, whole UNet": {"changes": losses.whole_unet, "after": NAME},
    f"{_NONE}, whole UNet": {
        "changes": lambda config: losses.whole_unet(config) | {"method_settings": NO_LOSSES},
        "after": _NONE,
    },
    "base, unconditional": {"trained": False, "settings": "unconditional", "after": "base"},
    f"{NAME}, unconditional": _unconditional({}, _NONE),
    f"{_NONE}, unconditional": _unconditional(NO_LOSSES, "base"),
    **{f"{name}, unconditional": _unconditional(own, _NONE) for name, own in VARIANTS.items()},
    f"{NAME}, mild, unconditional": _unconditional(MILD, _NONE),
}


def settings(config: Config) -> Settings:
    """Return the config's `method_settings` over the defaults."""
    return Settings(**config.method_settings)


def check(config: Config) -> None:
    """Raise DasdError for settings that do not fit, and for batches of fewer than three a domain."""
    own, count = settings(config), max(len(config.domains), 1)
    if config.alignment.lambda_align > 0:
        raise DasdError(f"lambda_align is {config.alignment.lambda_align}, but DomainStudio aligns no "
                        "features: set it to 0, or method to 'dasd'.")  # fmt: skip
    size = config.training.target_batch_size
    if own.image_weight + own.detail_weight > 0 and size // count < MIN_SAMPLES:
        raise DasdError(f"target_batch_size is {size} over {count} domains, {size // count} of each at once; "
                        "DomainStudio compares the samples of a domain with each other: of two, each has one "
                        "other, so that the softmax is 1 and the loss 0. Set target_batch_size to "
                        f"{MIN_SAMPLES * count} or more.")  # fmt: skip


def make_objective(config: Config) -> DomainStudioObjective:
    """Return the objective of a config."""
    return DomainStudioObjective(config)


class DomainStudioObjective:
    """The loss of the module's docstring, called as (parts, batch, config) -> (loss, logs)."""

    def __init__(self, config: Config) -> None:
        self.settings = settings(config)

    def __call__(self, parts: models.Parts, batch: Batch, config: Config) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and its parts: loss_noise, loss_prior, loss_img, loss_hf and loss_hfmse.

        The first `samples` of each domain are compared; of several processes each passes its share of the
        batch through the network, and all compare the same samples.
        """
        batch = one_timestep(batch) if self.settings.timesteps == "shared" else batch
        part, places = batch.share()
        eps, _ = losses.predict_batch(parts, part, config)
        loss, logs = losses.denoising_losses(parts, part, eps, batch, config)
        if not any(getattr(self.settings, weight) for weight in PARTS.values()):
            return loss, logs
        own = len(part.target_latents)
        eps = processes.gather_rows(eps[:own], places[:own], len(batch.target_latents))
        groups = [rows[: self.settings.samples] for rows in losses.domain_rows(batch, config).values()]
        rows = torch.cat(groups)
        samples = self.predicted_x0(parts, targets(batch, rows), eps[rows], config)
        among = torch.arange(len(rows)).split([len(group) for group in groups])
        terms = relations(*samples, among, self.settings)
        for (name, term), weight in zip(terms.items(), PARTS.values(), strict=True):
            loss = loss + getattr(self.settings, weight) * term
            logs[name] = term.item()
        return loss, logs

    def predicted_x0(
        self, parts: models.Parts, batch: Batch, eps: Tensor, config: Config
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x0 of the targets by adapted model and source, and the true one; (B, C, h, w) each."""
        noisy = noisy_targets(parts, batch)
        a = parts.noise_scheduler.alphas_cumprod.to(noisy.device)[batch.target_timesteps]
        base = sampling.clean_latents(noisy, base_prediction(parts, batch, config), a)
        samples = (sampling.clean_latents(noisy, eps, a), base, batch.target_latents)
        if self.settings.space == "latents":
            return samples
        step_by_step = config.training.gradient_checkpointing
        return tuple(sampling.decode(parts, latents, step_by_step) for latents in samples)


def targets(batch: Batch, rows: Tensor) -> Batch:
    """Return the batch with these of its targets; the sources stay."""
    names = ("target_latents", "target_noise", "target_timesteps", "target_domains")
    taken = {name: getattr(batch, name)[rows] for name in names}
    return dataclasses.replace(batch, **taken, target_prompts=[batch.target_prompts[i] for i in rows])


def one_timestep(batch: Batch) -> Batch:
    """Return the batch with the first target's timestep for all: only x0 predicted at one time compare."""
    first = batch.target_timesteps[0]
    times = {name: first.expand_as(getattr(batch, name)) for name in ("target_timesteps", "source_timesteps")}
    return dataclasses.replace(batch, **times)


def noisy_targets(parts: models.Parts, batch: Batch) -> Tensor:
    """Return x_t of the targets, (B, C, h, w)."""
    return parts.noise_scheduler.add_noise(batch.target_latents, batch.target_noise, batch.target_timesteps)


@torch.no_grad()
def base_prediction(parts: models.Parts, batch: Batch, config: Config) -> Tensor:
    """Return the noise that the base predicts for the targets, (B, C, h, w), without the token in prompts."""
    prompts = [without_tokens(prompt, config.domains) for prompt in batch.target_prompts]
    text = models.encode_prompts(parts, prompts)
    with models.lora_disabled(parts):
        eps = parts.unet(noisy_targets(parts, batch), batch.target_timesteps, encoder_hidden_states=text)
    return eps.sample


def relations(
    adapted: Tensor, base: Tensor, clean: Tensor, groups: Sequence[Tensor], settings: Settings
) -> dict[str, Tensor]:
    """Return the losses by name, of the x0 (B, C, h, w) that adapted model and base predict, and the true."""
    with torch.autocast(adapted.device.type, enabled=False):  # bf16 keeps two digits
        adapted, base, clean = adapted.float(), base.float(), clean.float()
        high, base_high, clean_high = (high_frequencies(x, settings.detail) for x in (adapted, base, clean))
        return {
            "loss_img": pair_loss(adapted, base, groups, settings),
            "loss_hf": pair_loss(high, base_high, groups, settings),
            "loss_hfmse": (high - clean_high).square().mean(),
        }


def pair_loss(adapted: Tensor, base: Tensor, groups: Sequence[Tensor], settings: Settings) -> Tensor:
    """Return the mean over groups of the divergence of their similarities; 0 where none has three rows."""
    found = []
    for rows in (rows for rows in groups if len(rows) >= MIN_SAMPLES):
        own, other = (log_similarities(x[rows], settings.similarity) for x in (adapted, base))
        found.append(divergence(own, other) if settings.divergence == "adapted" else divergence(other, own))
    return torch.stack(found).mean() if found else adapted.new_zeros(())


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the mean over rows of KL(p || q) = sum p (log p - log q); (n, k), (n, k) -> ()."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def log_similarities(x: Tensor, similarity: str = "cosine") -> Tensor:
    """Return the log of each row's softmax over its similarities to the others, (n, ...) -> (n, n - 1)."""
    n = len(x)  # above 2
    others = ~torch.eye(n, dtype=torch.bool, device=x.device)  # the diagonal left out
    return similarities(x, similarity)[others].view(n, n - 1).log_softmax(dim=1)


def similarities(x: Tensor, similarity: str = "cosine") -> Tensor:
    """Return cosines of the flattened rows, or minus their root mean square distances; (n, ...) -> (n, n)."""
    rows = x.flatten(1)
    if similarity == "cosine":
        rows = F.normalize(rows, dim=1)
        return rows @ rows.T
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return -distances / rows.shape[1] ** 0.5


def high_frequencies(x: Tensor, detail: str = "haar") -> Tensor:
    """Return LH + HL + HH of a one-level Haar transform, (B, C, h, w) -> (B, C, h / 2, w / 2).

    Or, for "laplacian", the sum of the four neighbours less four times the pixel, (B, C, h, w).
    """
    if detail == "haar":
        low, high = x.new_tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
        kernel = torch.outer(low, high) + torch.outer(high, low) + torch.outer(high, high)
    else:
        kernel = x.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    channels, stride = x.shape[1], 2 if detail == "haar" else 1
    return F.conv2d(x, kernel.expand(channels, 1, *kernel.shape), stride=stride, groups=channels)


def radial_spectrum(pixels: Tensor) -> Tensor:
    """Return the mean power at 0 to s / 2 cycles, (n, 3, s, s) in [0, 1] -> (n, s // 2 + 1), in grey."""
    grey = pixels.double().mean(dim=1)
    side = grey.shape[-1]
    # without the jump between opposite borders
    window = torch.hann_window(side, periodic=False, dtype=grey.dtype, device=grey.device)
    grey = (grey - grey.mean(dim=(1, 2), keepdim=True)) * window[:, None] * window[None]
    power = torch.fft.fft2(grey, norm="forward").abs().square()
    cycles = torch.fft.fftfreq(side, 1 / side, dtype=grey.dtype, device=grey.device)
    radius = torch.hypot(cycles[:, None], cycles[None]).round().long().flatten()
    inside = radius <= side // 2
    bins = F.one_hot(radius[inside], side // 2 + 1).to(grey.dtype)  # (pixels, bins)
    return power.flatten(1)[:, inside] @ bins / bins.sum(dim=0)
