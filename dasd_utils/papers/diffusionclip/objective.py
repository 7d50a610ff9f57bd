"""DiffusionCLIP (arXiv 2110.02711): images translated into a domain that words alone describe.

The frozen base inverts an image to noise by deterministic DDIM, up to `return_step`; the adapted model
denoises it, and learns to change it in the direction that the words point to in CLIP's space:
L = direction_weight L_dir + l1_weight |predicted_x0 - x0|,
L_dir = 1 - cos(E_I(predicted_x0) - E_I(x0), E_T(target) - E_T(reference)).
A cosine ignores length. The form "offset", which is this project's own, includes it:
L_dir = |E_I(predicted_x0) - E_I(x0) - d|^2 / |d|^2, d the words' difference.
With `every_step` the loss is computed at every denoising step, of the x0 predicted there, and no gradient
passes to the next (the paper's GPU-efficient mode): a batch stays for `generation_steps` calls. The identity
term for faces is left out. The domain's images are those to be translated; none of the target is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dasd_utils import config as cfg
from dasd_utils import models
from dasd_utils.config import Config, DasdError, check_promptless, section
from dasd_utils.runtime import files
from dasd_utils.sampling import clean_latents, decode

if TYPE_CHECKING:
    from dasd_utils.guidance import Prediction
    from dasd_utils.latents import Batch

CHANGES: dict[str, Any] = {
    "caption_dropout": 1.0, "lambda_align": 0.0, "prior_loss_weight": 0.0, "gradient_accumulation_steps": 1,
    "validation_every": 0}  # fmt: skip
BY_PROFILE: dict[str, dict[str, Any]] = {
    "tiny": {"target_batch_size": 8, "learning_rate": 5e-4},
    "sd15": {"target_batch_size": 1, "whole_unet": True, "learning_rate": 4e-6},
}
LADDER: dict[str, dict[str, Any]] = {}  # it takes no prompt, so it has no place on the ladder
Steps = Annotated[cfg.Positive, Field(le=1000)]  # of a noise schedule of 1000
ACCUMULATES = False  # every call is an update, with `every_step` several of one batch
TRAINED_WITH = ("model.clip", "model.clip_revision")  # config fields that a resumed run keeps too
NOISY = "far/"  # before the id of an inverted sample, in a checkpoint
MIN_LENGTH = 1e-3  # of a direction: below it the sentences are the same to CLIP


@section
class Settings:
    """The numbers of the method, as in the released code."""

    target: cfg.Texts = ()  # sentences of the target domain, of which the mean is taken
    reference: cfg.Texts = ()  # the same of the images as they are
    return_step: Steps = 500  # t0: how far into the noise, 300 to 600 of 1000
    forward_steps: Steps = 40  # S_for, to the noise
    generation_steps: Steps = 6  # S_gen, back
    # of L_dir: -log((2 - L_dir) / 2); "paper": L_dir itself; "offset": as above
    form: Literal["released", "paper", "offset"] = "released"
    direction_weight: cfg.Weight = 3.0
    l1_weight: cfg.Weight = 0.3
    every_step: cfg.Flag = True  # GPU-efficient mode; False: one loss after all steps, with their gradient
    # of a translation; of several the one whose result is nearest to the words
    strengths: Annotated[tuple[cfg.Number, ...], Field(min_length=1)] = (1.0,)


def settings(config: Config) -> Settings:
    """Return the config's `method_settings` over the defaults."""
    return Settings(**config.method_settings)


def check(config: Config) -> None:
    """Raise DasdError for prompts, settings that do not fit, and accumulated steps."""
    check_promptless(config, "The method diffusionclip")
    own = settings(config)
    for name in ("target", "reference"):
        if not getattr(own, name):
            raise DasdError(f"method_settings lacks {name}: describe the images and the target, as "
                            '{"reference": ["a photo"], "target": ["a sketch"]}.')  # fmt: skip
    if max(own.forward_steps, own.generation_steps) > own.return_step:
        raise DasdError(f"return_step in method_settings is {own.return_step}, fewer than forward_steps "
                        f"({own.forward_steps}) or generation_steps ({own.generation_steps}).")  # fmt: skip
    if config.training.gradient_accumulation_steps > 1:
        raise DasdError("gradient_accumulation_steps is above 1, but diffusionclip updates at every "
                        "denoising step: set it to 1.")  # fmt: skip


def make_objective(config: Config) -> DirectionObjective:
    """Return the objective of a config."""
    return DirectionObjective(config)


# DDIM with eta 0 (arXiv 2010.02502) between any two times: to the noise or back from it.
def ddim_times(last: int, steps: int) -> list[int]:
    """Return [-1, ..., last - 1]: timesteps of DDIM from the clean image (-1) to the `last`-th timestep."""
    return [round(last * step / steps) - 1 for step in range(steps + 1)]


def alpha_at(alphas_cumprod: Tensor, time: int) -> Tensor:
    """Return alpha_bar at a timestep, (); 1 for the clean image, -1."""
    return torch.ones(()) if time < 0 else alphas_cumprod[time].float()


def ddim_step(x: Tensor, eps: Tensor, now: int, after: int, alphas_cumprod: Tensor) -> Tensor:
    """Return x (B, C, h, w) at the time `after`: predicted_x0 and eps mixed by that time's share."""
    a, b = (alpha_at(alphas_cumprod, time).to(x.device) for time in (now, after))
    predicted_x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    return b.sqrt() * predicted_x0 + (1 - b).sqrt() * eps


def follow(predict: Prediction, x: Tensor, times: Sequence[int], alphas_cumprod: Tensor) -> Tensor:
    """Return x (B, C, h, w) after steps through these times, in either direction."""
    for now, after in itertools.pairwise(times):
        eps = predict(x, torch.tensor(max(now, 0), device=x.device)).float()
        x = ddim_step(x, eps, now, after, alphas_cumprod)
    return x


# The loss, and the objective
def direction_loss(images: Tensor, before: Tensor, direction: Tensor, form: str = "paper") -> Tensor:
    """Return L_dir of features (B, d) against those before, and a direction (d,): the mean over images.

    "paper": 1 - cos, from 0 to 2; "released": -log((2 - L_dir) / 2), which grows without bound towards 2;
    "offset": the squared distance from where the direction ends, in squares of its length.
    """
    if form == "offset":
        return (images - before - direction).square().sum(dim=1).mean() / direction.square().sum()
    apart = 1 - F.cosine_similarity(images - before, direction[None], dim=1)
    return (apart if form == "paper" else -torch.log((2 - apart).clamp_min(1e-6) / 2)).mean()


class Words:
    """A frozen CLIP, and its direction from the reference's sentences to the target's."""

    def __init__(self, config: Config, own: Settings, device: torch.device) -> None:
        clip, tokenizer, self.processor = files.load_clip(config)
        self.clip = clip.to(device).eval().requires_grad_(False)
        with torch.autocast(device.type, enabled=False):
            target, reference = (
                F.normalize(files.embed_texts(self.clip, tokenizer, words).mean(dim=0), dim=0)
                for words in (own.target, own.reference)
            )
        self.direction = (target - reference).to(device)
        if self.direction.norm() < MIN_LENGTH:
            raise DasdError(f"To the CLIP in {config.model.clip}, target {own.target} and reference "
                            f"{own.reference} are the same: there is no direction between them.")  # fmt: skip

    def embed(self, pixels: Tensor) -> Tensor:
        """Return unit-norm features (B, d) of pixels (B, 3, H, W) in [-1, 1]; gradients pass."""
        side = self.clip.config.vision_config.image_size
        mean, deviation = (
            torch.tensor(values, device=pixels.device)[:, None, None]
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        with torch.autocast(pixels.device.type, enabled=False):
            fitting = F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True)
            normal = ((fitting.clamp(-1, 1) + 1) / 2 - mean) / deviation
            pooled = self.clip.vision_model(pixel_values=normal).pooler_output
            return F.normalize(self.clip.visual_projection(pooled), dim=1)


class DirectionObjective:
    """The loss of the module's docstring, called as (parts, batch, config) -> (loss, logs).

    With `every_step` a batch stays for `generation_steps` calls, a denoising step each. Each of several
    processes takes the complete batch, so their mean is the loss itself, and they save no time.
    """

    def __init__(self, config: Config) -> None:
        self.settings = settings(config)
        own = self.settings
        self._inversion_times = ddim_times(own.return_step, own.forward_steps)
        self._denoising_times = ddim_times(own.return_step, own.generation_steps)[::-1]
        self.trajectory: dict[str, Tensor] = {}  # x: latents now; clean: the images'; done: number of steps
        self.inverted: dict[str, Tensor] = {}  # id -> (2, C, h, w): latents of its first epoch, inverted ones
        self._words: Words | None = None

    def __call__(self, parts: models.Parts, batch: Batch, config: Config) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and its parts, loss_direction and loss_l1."""
        own, device = self.settings, batch.target_latents.device  # tensors of a checkpoint are on the CPU
        words = self._words = self._words or Words(config, own, device)
        now = {name: value.to(device) for name, value in self.trajectory.items()} or self.begin(parts, batch)
        if own.every_step:
            predicted_x0, self.trajectory = self.step(parts, now)
        else:  # gradients pass through all steps
            alphas = parts.noise_scheduler.alphas_cumprod
            predicted_x0 = follow(unprompted(parts), now["x"], self._denoising_times, alphas)
        pixels = decode(parts, predicted_x0, config.training.gradient_checkpointing)
        with torch.no_grad():
            clean_pixels = decode(parts, now["clean"])
            before = words.embed(clean_pixels)
        direction = direction_loss(words.embed(pixels), before, words.direction, own.form)
        l1 = F.l1_loss(pixels.float(), clean_pixels.float())
        logs = {"loss_direction": direction.item(), "loss_l1": l1.item()}
        return own.direction_weight * direction + own.l1_weight * l1, logs

    @torch.no_grad()
    def begin(self, parts: models.Parts, batch: Batch) -> dict[str, Tensor]:
        """Return a batch's trajectory before its first step; each image is inverted once in a training."""
        names = batch.sample_ids[: len(batch.target_latents)]
        missing = [i for i, name in enumerate(names) if name not in self.inverted]
        if missing:
            clean, alphas = batch.target_latents[missing], parts.noise_scheduler.alphas_cumprod
            with models.lora_disabled(parts):
                noisy = follow(unprompted(parts), clean, self._inversion_times, alphas)
            pairs = torch.stack([clean, noisy], dim=1).cpu()
            self.inverted |= {names[i]: pair for i, pair in zip(missing, pairs, strict=True)}
        clean, x = torch.stack([self.inverted[name] for name in names], 1).to(batch.target_latents)
        return {"x": x, "clean": clean, "done": torch.tensor(0)}

    def step(self, parts: models.Parts, trajectory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the x0 latents predicted at this step, and the trajectory after it, without its gradient."""
        x, done, alphas = trajectory["x"], int(trajectory["done"]), parts.noise_scheduler.alphas_cumprod
        now, after = self._denoising_times[done : done + 2]
        eps = unprompted(parts)(x, torch.tensor(now))
        predicted_x0 = clean_latents(x, eps, alpha_at(alphas, now).to(eps.device).expand(len(eps)))
        if done + 1 == self.settings.generation_steps:
            return predicted_x0, {}
        x = ddim_step(x, eps.detach(), now, after, alphas)
        return predicted_x0, {**trajectory, "x": x, "done": torch.tensor(done + 1)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the present batch's trajectory and all inverted latents, for a checkpoint."""
        return self.trajectory | {f"{NOISY}{name}": x for name, x in self.inverted.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.trajectory = {name: value for name, value in state.items() if not name.startswith(NOISY)}
        self.inverted = {k.removeprefix(NOISY): x for k, x in state.items() if k.startswith(NOISY)}


def unprompted(parts: models.Parts) -> Prediction:
    """Return the function that predicts the noise for the empty prompt."""
    with torch.no_grad():
        empty = models.encode_prompts(parts, [""])

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        text = empty.expand(len(latents), -1, -1)
        return parts.unet(latents, timestep.to(latents.device), encoder_hidden_states=text).sample

    return predict
