"""Pictures edited under any guidance: from partial noise, from inverted noise, and inside a mask.

Partial noise is SDEdit (arXiv 2108.01073); inversion runs the steps of DDIM (arXiv 2010.02502) backwards.
Both begin at the step that `strength` gives; from there on pictures are sampled as by `generate`.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from dasd_utils import sampling
from dasd_utils.config import DasdError
from dasd_utils.guidance import BASE, EMPTY, GIVEN, Job, Term
from dasd_utils.runtime import images
from dasd_utils.sampling import DasdPipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dasd_utils import models

WHITE = (1, 255, 65535)  # of masks: the least that no value exceeds
log = logging.getLogger(__name__)


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

    strength: the share of the denoising steps that are done, above 0, to 1 (from noise). mask: white
    where the picture may change, black where it stays; one for all, of their shape or square. invert: begin
    at the noise to which the base inverts the picture, with the empty prompt or what each has `shown`; else
    at counted noise. `options` are those of `generate`, but `num_images`.
    """
    if len(pictures) != len(prompts) or (shown is not None and len(shown) != len(prompts)):
        texts = "no" if shown is None else len(shown)
        raise DasdError(f"There are {len(pictures)} pictures, {len(prompts)} prompts and {texts} texts of "
                        "what is shown: give one of each.")  # fmt: skip
    if not 0 < strength <= 1:
        raise DasdError(f"strength is {strength}; it must be above 0, and at most 1.")
    jobs = [job for jobs in pipeline.plan(list(prompts), **options) for job in jobs]
    if any(job.batch_key != jobs[0].batch_key for job in jobs):
        raise DasdError("Pictures that are changed together need one domain and one kind of settings.")
    grey_mask = None if mask is None else _square_mask(mask, pictures)
    edited: list[Image.Image] = []
    for first in range(0, len(jobs), pipeline.batch_size):
        rows = slice(first, first + pipeline.batch_size)
        clean = encode(pipeline.parts, pictures[rows])
        keep = None if mask is None else 1 - F.interpolate(grey_mask, size=clean.shape[2:], mode="area")
        texts = None if shown is None else shown[rows]
        latents = _edited(pipeline, jobs[rows], clean, strength, keep, invert, texts)
        edited += sampling.decode_images(pipeline.parts.vae, latents)
    return edited


@torch.no_grad()
def encode(parts: models.Parts, pictures: Sequence[Image.Image]) -> Tensor:
    """Return scaled latents (B, C, h, w) of images' centre squares: the mean of the VAE's distribution."""
    side, means = parts.config.model.resolution, []
    squares = [images.center_crop(picture, side) for picture in pictures]
    for few in images.to_pixels(squares).split(max(1, sampling.DECODED_PIXELS // side**2)):
        means.append(parts.vae.encode(few.to(parts.vae.device, parts.vae.dtype)).latent_dist.mean.float())
    return torch.cat(means) * parts.vae.config.scaling_factor


def _square_mask(mask: Image.Image | np.ndarray, pictures: Sequence[Image.Image]) -> Tensor:
    """Return a mask's square (1, 1, s, s) from 0 to 1, cropped as the pictures are; see WHITE."""
    if isinstance(mask, Image.Image):
        mask = ImageOps.exif_transpose(mask if mask.mode[0] in "IF" else mask.convert("L"))
    values = np.asarray(mask, np.float32)
    values = values[..., :3].mean(axis=2) if values.ndim == 3 else values
    if values.ndim != 2 or not values.size or not (values.min() >= 0 and values.max() <= WHITE[-1]):
        raise DasdError(f"The mask is no picture of values from 0 to {WHITE[-1]}: give a grey image, black "
                        "where the picture stays and white where it may change.")  # fmt: skip
    height, width = values.shape
    side = min(height, width)
    for size in (ImageOps.exif_transpose(picture).size for picture in pictures if height != width):
        if abs(width / height * size[1] - size[0]) > max(1, size[0] / side):
            raise DasdError(f"The mask is {width} x {height} pixels and a picture {size[0]} x {size[1]}: "
                            "give one of the pictures' shape, or a square one for their centre.")  # fmt: skip
    top, left = (height - side) // 2, (width - side) // 2
    white = next(level for level in WHITE if values.max() <= level)
    square = values[None, None, top : top + side, left : left + side]
    if not square.any():
        log.warning("The mask is black wherever the pictures are seen: nothing changes.")
    return torch.from_numpy(square / white)


@torch.no_grad()
def _edited(
    pipeline: DasdPipeline,
    jobs: Sequence[Job],
    clean: Tensor,  # (B, C, h, w)
    strength: float,
    keep: Tensor | None,
    invert: bool,
    shown: Sequence[str] | None,
) -> Tensor:
    calibration = jobs[0].calibration
    scheduler, steps = pipeline.scheduler(calibration.scheduler), calibration.num_inference_steps
    begin = steps - max(round(strength * steps), 1)
    noise = pipeline.noise(jobs)

    def noised(timestep: Tensor | None) -> Tensor:
        return clean if timestep is None else scheduler.add_noise(clean, noise, timestep.expand(len(clean)))

    latents_at = _inverted(pipeline, jobs, clean, begin, shown) if invert else noised
    start = sampling.Start(begin, latents_at, None if keep is None else keep.to(clean))
    generators = [sampling.step_generator(job.seed, job.index) for job in jobs]
    with pipeline.predicting(jobs) as predict:
        return sampling.denoise(predict, scheduler, start, steps, generators, pipeline.progress)


def _inverted(
    pipeline: DasdPipeline, jobs: Sequence[Job], clean: Tensor, begin: int, shown: Sequence[str] | None
) -> Callable[[Tensor | None], Tensor]:
    """Return the function timestep -> noisy picture, by the base's inversion."""
    calibration = jobs[0].calibration
    if calibration.scheduler != "ddim":
        raise DasdError(f"An inversion runs the steps of ddim backwards; the scheduler is "
                        f"{calibration.scheduler!r}: set scheduler to 'ddim'.")  # fmt: skip
    rule = (Term(BASE, EMPTY),) if shown is None else (Term(BASE, EMPTY), Term(BASE, GIVEN, 1.0))
    inversions = [
        dataclasses.replace(job, rule=rule, prompt=text, plain=text, negative="")
        for job, text in zip(jobs, shown or [""] * len(jobs), strict=True)
    ]
    steps, forward = calibration.num_inference_steps, pipeline.scheduler("ddim")
    forward.set_timesteps(steps)
    inverse = diffusers.DDIMInverseScheduler.from_config(forward.config, clip_sample=False)
    inverse.set_timesteps(steps, device=clean.device)
    trajectory = [clean]
    with pipeline.predicting(inversions) as predict:
        for timestep in inverse.timesteps[: steps - begin]:
            eps = predict(trajectory[-1], timestep)
            trajectory.append(inverse.step(eps, timestep, trajectory[-1]).prev_sample)
    places = [*forward.timesteps[begin:].tolist(), None]
    known = dict(zip(places, reversed(trajectory), strict=True))
    return lambda timestep: known[None if timestep is None else int(timestep)]
