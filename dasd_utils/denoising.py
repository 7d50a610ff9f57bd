"""Noise -> images: schedulers, counted noise, and the loop over any scheduler."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import numbers
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dasd_utils.checks import GUIDANCE, check_choice
from dasd_utils.config import Calibration, DasdError
from dasd_utils.guidance import Prediction
from dasd_utils.runtime import bars, images

SCHEDULERS: dict[str, type] = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}
DECODED_PIXELS = 2 * 512**2  # at once: Stable Diffusion's decoder takes 0.8 GB an image of 512 px, in fp32
MAX_SEED = 2**128  # what numpy's seed sequence holds


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Switch dropout off inside: a LoRA added to a model in eval mode starts in training mode."""
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def fresh_seed() -> int:
    """Return a random seed; the global generators stay untouched."""
    return secrets.randbits(32)


def seeds_for(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return one seed a prompt: those given, the same for all, or, for None, the same fresh one."""
    seed = fresh_seed() if seed is None else seed
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * count
    if len(seeds) != count:
        raise DasdError(
            f"There are {len(seeds)} seeds for {count} prompts: give one for all, or one a prompt."
        )
    for number in seeds:
        if not isinstance(number, numbers.Integral):
            raise DasdError(f"A seed is a whole number, not {number!r}.")
        if not 0 <= number < MAX_SEED:
            raise DasdError(f"A seed must be 0 or more, not {number}, and below 2**128.")
    return [int(number) for number in seeds]


def _generator(seed: int, index: int, stream: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, index, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def initial_noise(shape: Sequence[int], seed: int, index: int) -> Tensor:
    """Return standard normal noise of one image (C, h, w): counted, so it depends on (seed, index) alone."""
    return torch.randn(tuple(shape), generator=_generator(seed, index, 0))


def step_generator(seed: int, index: int) -> torch.Generator:
    """Return the generator of the noise that a stochastic scheduler adds to one image at each step."""
    return _generator(seed, index, 1)


def make_scheduler(name: str, base_scheduler: Any) -> Any:
    """Return the scheduler of that name with the noise schedule of the base's own scheduler.

    Latents have no bounds, so they are never clipped, whatever the scheduler's default says.
    """
    _check_scheduler(name)
    return SCHEDULERS[name].from_config(base_scheduler.config, clip_sample=False)


def _check_scheduler(name: str) -> None:
    if name not in SCHEDULERS:
        raise DasdError(f"There is no scheduler {name!r}. Schedulers: {', '.join(SCHEDULERS)}.")


def check_calibration(calibration: Calibration, base_scheduler: Any) -> None:
    """Raise DasdError for an unknown scheduler, a negative guidance scale, and too few or many steps."""
    steps = calibration.num_inference_steps
    _check_scheduler(calibration.scheduler)
    check_choice("guidance", calibration.guidance, GUIDANCE)
    for name in ("guidance_scale", "domain_scale"):
        if not 0 <= getattr(calibration, name) < float("inf"):
            raise DasdError(f"{name} is {getattr(calibration, name)}; it must be 0 or more.")
    limit = base_scheduler.config.num_train_timesteps
    if not 1 <= steps <= limit:
        raise DasdError(f"num_inference_steps is {steps}; it must be from 1 to {limit}.")


@dataclass(frozen=True)
class Start:
    """Where the denoising of a picture begins, and what of it stays."""

    begin: int  # the first of the scheduler's steps that is done
    at: Callable[[int], Tensor]  # step -> the picture before it, (B, C, h, w) in the scheduler's scale
    kept: Tensor | None = None  # (1, 1, h, w): 1 where the picture stays


@torch.no_grad()
def denoise(
    predict: Prediction,
    scheduler: Any,
    noise: Tensor | Start,
    num_inference_steps: int,
    generators: list[torch.Generator] | None = None,
    progress: bool = False,
) -> Tensor:
    """Return latents (B, C, h, w) denoised from standard normal noise of that shape, or from a picture.

    generators: one an image, for schedulers that add noise at each step. Raises DasdError for numbers that
    grow beyond all bounds.
    """
    start = noise if isinstance(noise, Start) else Start(0, lambda step: noise)
    latents = start.at(start.begin)
    scheduler.set_timesteps(num_inference_steps, device=latents.device)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if takes_generator else {}
    latents = latents if start is noise else latents * scheduler.init_noise_sigma
    steps = list(enumerate(scheduler.timesteps))[start.begin :]
    for step, timestep in bars.brief(steps, "sampling", shown=progress, unit="step"):
        eps = predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(eps, timestep, latents, **extra).prev_sample
        if start.kept is not None:
            latents = torch.lerp(latents, start.at(step + 1), start.kept)
    if not torch.isfinite(latents).all():
        raise DasdError("The sampled latents are not finite: lower guidance_scale, or set mixed_precision to "
                        "'no'.")  # fmt: skip
    return latents


# DDIM between any two times (arXiv 2010.02502, eta 0): to the noise or back from it


def ddim_times(last: int, steps: int) -> list[int]:
    """Return the times from a clean image, -1, in so many steps to the last one: [-1, ..., last - 1]."""
    return [round(last * step / steps) - 1 for step in range(steps + 1)]


def alpha_at(alphas_cumprod: Tensor, time: int) -> Tensor:
    """Return the share of the image at a time, (); 1 for a clean one, -1."""
    return torch.ones(()) if time < 0 else alphas_cumprod[time].float()


def ddim_step(x: Tensor, eps: Tensor, now: int, after: int, alphas_cumprod: Tensor) -> Tensor:
    """Return x at the time `after`: the image and the noise that eps says, mixed anew; (B, C, h, w)."""
    a, b = (alpha_at(alphas_cumprod, time).to(x.device) for time in (now, after))
    clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
    return b.sqrt() * clean + (1 - b).sqrt() * eps


def follow(predict: Prediction, x: Tensor, times: Sequence[int], alphas_cumprod: Tensor) -> Tensor:
    """Return x (B, C, h, w) taken through these times, one after the other, in either direction."""
    for now, after in itertools.pairwise(times):
        eps = predict(x, torch.tensor(max(now, 0), device=x.device)).float()
        x = ddim_step(x, eps, now, after, alphas_cumprod)
    return x


@torch.no_grad()
def decode_images(vae: Any, latents: Tensor) -> list[Image.Image]:
    """Return RGB images of latents (B, C, h, w) in the scaling of the UNet, decoded a few at a time."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels to a latent's side
    count = max(1, DECODED_PIXELS // (scale**2 * latents.shape[-2] * latents.shape[-1]))
    found: list[Image.Image] = []
    for few in (latents / vae.config.scaling_factor).to(vae.device, vae.dtype).split(count):
        found += images.from_pixels(vae.decode(few).sample)
    return found
