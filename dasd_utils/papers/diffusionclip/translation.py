"""Images of one domain -> images of another: to noise by the frozen base, back by a model that learned to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from dasd_utils import denoising
from dasd_utils.config import DasdError
from dasd_utils.guidance import ADAPTED, BASE, EMPTY, Term
from dasd_utils.papers import editing
from dasd_utils.runtime import bars, images
from dasd_utils.sampling import DasdPipeline

UNSAID = "a picture"  # no term of a translation is told it


@torch.no_grad()
def invert(
    pipeline: DasdPipeline, pictures: Sequence[Image.Image], return_step: int = 500, steps: int = 200
) -> Tensor:
    """Return the latents (B, C, h, w) that the base, told nothing, takes pictures to at a time (0 to 999).

    Raises DasdError for more steps than there are times up to `return_step`.
    """
    _check(pipeline, return_step, steps)
    squares = [images.center_crop(picture, pipeline.config.model.resolution) for picture in pictures]
    times, told_nothing = denoising.ddim_times(return_step, steps), (Term(BASE, EMPTY),)
    found = [
        _followed(pipeline, editing.encode(pipeline.parts, chunk), times, told_nothing)
        for chunk in bars.brief(_chunks(squares, pipeline.batch_size), "inverting", unit="batch")
    ]
    return torch.cat(found)


@torch.no_grad()
def generate(
    pipeline: DasdPipeline,
    latents: Tensor,
    return_step: int = 500,
    steps: int = 40,
    terms: Sequence[Term] = (Term(ADAPTED, EMPTY),),
) -> list[Image.Image]:
    """Return the images that a rule of guidance brings back from latents (B, C, h, w) at `return_step`."""
    _check(pipeline, return_step, steps)
    times, found = denoising.ddim_times(return_step, steps)[::-1], []
    for chunk in bars.brief(latents.split(pipeline.batch_size), "translating", unit="batch"):
        clean = _followed(pipeline, chunk, times, tuple(terms))
        found += denoising.decode_images(pipeline.parts.vae, clean)
    return found


def translate(
    pipeline: DasdPipeline,
    pictures: Sequence[Image.Image],
    return_step: int = 500,
    forward_steps: int = 200,
    generation_steps: int = 40,
    strength: float = 1.0,
    others: Sequence[Term] = (),
) -> list[Image.Image]:
    """Return the pictures translated by what the pipeline's adapter has learned (arXiv 2110.02711).

    strength: 1 is the adapter's own prediction, 0 the base's, which gives the picture back; between them and
    beyond they are mixed. others: terms of further learners of the pipeline, with their weights: several
    targets at once. Raises DasdError for steps that do not fit the return step.
    """
    far = invert(pipeline, pictures, return_step, forward_steps)
    return generate(pipeline, far, return_step, generation_steps, rule(strength, others))


def rule(strength: float = 1.0, others: Sequence[Term] = ()) -> tuple[Term, ...]:
    """Return the rule of a translation so strong, and of further learners' terms with their weights."""
    if strength == 1 and not others:
        return (Term(ADAPTED, EMPTY),)
    return Term(BASE, EMPTY), Term(ADAPTED, EMPTY, float(strength)), *others


def _chunks(squares: Sequence[Image.Image], size: int) -> list[Sequence[Image.Image]]:
    return [squares[start : start + size] for start in range(0, len(squares), size)]


def _followed(
    pipeline: DasdPipeline, latents: Tensor, times: Sequence[int], rule: tuple[Term, ...]
) -> Tensor:
    """The latents taken through these times under a rule that needs no prompt."""
    plans = pipeline.plan(
        [UNSAID] * len(latents), domain=pipeline.config.domains[0].name, seed=0, guidance=rule
    )
    jobs, parts = [jobs[0] for jobs in plans], pipeline.parts
    with (
        denoising.evaluating(parts.unet, parts.text_encoder, *pipeline.learners.values()),
        pipeline.predicting(jobs) as predict,
    ):
        found = denoising.follow(predict, latents, times, parts.noise_scheduler.alphas_cumprod)
    if not torch.isfinite(found).all():
        raise DasdError("The latents on the way are not finite: translate less strongly, or set "
                        "mixed_precision to 'no'.")  # fmt: skip
    return found


def _check(pipeline: DasdPipeline, return_step: int, steps: int) -> None:
    most = pipeline.parts.noise_scheduler.config.num_train_timesteps
    if not 1 <= steps <= return_step <= most:
        raise DasdError(f"{steps} steps to return_step {return_step}: it takes 1 step or more, as many times "
                        f"as steps, and at most {most} times.")  # fmt: skip
