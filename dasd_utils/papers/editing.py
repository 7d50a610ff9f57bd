"""Images -> images, under any guidance: from partial noise, from inverted noise, and inside a mask.

Partial noise is SDEdit (arXiv 2108.01073), inversion that of DDIM (arXiv 2010.02502): the sampler's steps run
backwards. Both start where `strength` says, and what is done from there is what `generate` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dasd_utils import models, sampling
from dasd_utils.config import DasdError
from dasd_utils.guidance import BASE, EMPTY, GIVEN, Job, Term
from dasd_utils.runtime import images
from dasd_utils.sampling import DasdPipeline

AS_IT_IS = (Term(BASE, EMPTY),)  # how an image is inverted: by the base, told nothing
TOLD = (Term(BASE, EMPTY), Term(BASE, GIVEN, 1.0))  # or told what the image shows


def edit(
    pipeline: DasdPipeline,
    pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    strength: float = 0.6,
    mask: Image.Image | np.ndarray | None = None,
    invert: bool = False,
    shown: Sequence[str] | None = None,
    **options: Any,
) -> list[Image.Image]:
    """Return each picture changed towards its prompt.

    strength: the share of the denoising steps that are done, from 0 (nothing) to 1 (from noise). mask: white
    where the picture may change, black where it stays; one for all. invert: start from the noise that the
    base itself takes the picture for, told nothing or what each picture has `shown`; else from counted noise.
    `options` are those of `generate`: domain, seed, settings, guidance, adapter.
    Raises DasdError for numbers that do not fit together, a strength outside (0, 1], and an inversion
    under another scheduler than ddim.
    """
    _check(pictures, prompts, shown, strength)
    jobs = [job for jobs in pipeline.plan(list(prompts), **options) for job in jobs]
    size = pipeline.config.model.resolution
    squares = [images.center_crop(picture, size) for picture in pictures]
    kept = None if mask is None else _kept(mask, pipeline.latent_shape)
    changed: list[Image.Image] = []
    for start in range(0, len(jobs), pipeline.batch_size):
        rows = slice(start, start + pipeline.batch_size)
        told = None if shown is None else list(shown[rows])
        latents = _edited(pipeline, jobs[rows], squares[rows], strength, kept, invert, told)
        changed += sampling.decode_images(pipeline.parts.vae, latents)
    return changed


@torch.no_grad()
def encode(parts: models.Parts, pictures: Sequence[Image.Image]) -> Tensor:
    """Return scaled latents (B, C, h, w) of RGB images: the mean of what the VAE makes of each."""
    pixels = images.to_pixels(pictures).to(parts.vae.device, parts.vae.dtype)
    return parts.vae.encode(pixels).latent_dist.mean.float() * parts.vae.config.scaling_factor


def _check(
    pictures: Sequence[Any], prompts: Sequence[str], shown: Sequence[str] | None, strength: float
) -> None:
    if len(pictures) != len(prompts) or (shown is not None and len(shown) != len(prompts)):
        texts = "no" if shown is None else len(shown)
        raise DasdError(f"There are {len(pictures)} pictures, {len(prompts)} prompts and {texts} texts of "
                        "what is shown: give one of each.")  # fmt: skip
    if not 0 < strength <= 1:
        raise DasdError(f"strength is {strength}; it must be above 0, and at most 1.")


def _kept(mask: Image.Image | np.ndarray, shape: Sequence[int]) -> Tensor:
    """Where the picture stays, (1, 1, h, w) from 0 to 1, of a mask that is white where it may change."""
    grey = torch.from_numpy(np.asarray(Image.fromarray(np.asarray(mask)).convert("L"), np.float32) / 255)
    return 1 - F.interpolate(grey[None, None], size=tuple(shape[1:]), mode="area")


@torch.no_grad()
def _edited(
    pipeline: DasdPipeline,
    jobs: list[Job],
    squares: list[Image.Image],
    strength: float,
    kept: Tensor | None,
    invert: bool,
    shown: list[str] | None,
) -> Tensor:
    """The latents of one batch of pictures, changed."""
    calibration, parts = jobs[0].calibration, pipeline.parts
    if any(job.batch_key != jobs[0].batch_key for job in jobs):
        raise DasdError("Pictures that are changed together need one domain and one kind of settings.")
    scheduler, steps = pipeline.scheduler(calibration.scheduler), calibration.num_inference_steps
    clean = encode(parts, squares)
    scheduler.set_timesteps(steps, device=clean.device)
    begin = len(scheduler.timesteps) - max(round(strength * len(scheduler.timesteps)), 1)
    if invert:
        at = _inverted(pipeline, jobs, clean, begin, shown)
    else:
        at = _noised(scheduler, clean, pipeline.noise(jobs))
    start = sampling.Start(begin, at, None if kept is None else kept.to(clean))
    generators = [sampling.step_generator(job.seed, job.index) for job in jobs]
    with pipeline.predicting(jobs) as predict:
        return sampling.denoise(predict, scheduler, start, steps, generators, pipeline.progress)


def _noised(scheduler: Any, clean: Tensor, noise: Tensor) -> Callable[[int], Tensor]:
    """What the pictures are before step i of the scheduler, with this noise; after the last, themselves."""

    def at(step: int) -> Tensor:
        if step == len(scheduler.timesteps):
            return clean
        return scheduler.add_noise(clean, noise, scheduler.timesteps[step].expand(len(clean)))

    return at


def _inverted(
    pipeline: DasdPipeline, jobs: list[Job], clean: Tensor, begin: int, shown: list[str] | None
) -> Callable[[int], Tensor]:
    """The same with the noise that the base takes the pictures for, step by step."""
    calibration = jobs[0].calibration
    if calibration.scheduler != "ddim":
        raise DasdError(f"An inversion runs the steps of ddim backwards; the scheduler is "
                        f"{calibration.scheduler!r}: set scheduler to 'ddim'.")  # fmt: skip
    texts = [""] * len(jobs) if shown is None else shown
    terms = AS_IT_IS if shown is None else TOLD
    asked = [dataclasses.replace(job, rule=terms, plain=text) for job, text in zip(jobs, texts, strict=True)]
    steps = calibration.num_inference_steps
    inverse = diffusers.DDIMInverseScheduler.from_config(pipeline.scheduler("ddim").config, clip_sample=False)
    inverse.set_timesteps(steps, device=clean.device)
    trail = [clean]
    with pipeline.predicting(asked) as predict:
        for timestep in inverse.timesteps[: steps - begin]:
            eps = predict(trail[-1], timestep)
            trail.append(inverse.step(eps, timestep, trail[-1]).prev_sample)
    return lambda step: trail[steps - step]
