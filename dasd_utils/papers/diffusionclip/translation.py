"""Images of one domain -> images of another: to noise by the frozen base, back by a model that learned to."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dasd_utils import adapters, data, sampling, training
from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.guidance import ADAPTED, BASE, EMPTY, Term
from dasd_utils.papers import ddim, editing
from dasd_utils.papers.diffusionclip import objective as diffusionclip
from dasd_utils.runtime import bars, checkpoints, files, images, latent_cache, precision
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
    times, told_nothing = ddim.ddim_times(return_step, steps), (Term(BASE, EMPTY),)
    found = [
        _followed(pipeline, editing.encode(pipeline.parts, chunk), times, told_nothing)
        for chunk in bars.short_bar(_chunks(squares, pipeline.batch_size), "inverting", unit="batch")
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
    times, found = ddim.ddim_times(return_step, steps)[::-1], []
    for chunk in bars.short_bar(latents.split(pipeline.batch_size), "translating", unit="batch"):
        clean = _followed(pipeline, chunk, times, tuple(terms))
        found += sampling.decode_images(pipeline.parts.vae, clean)
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
    return generate(pipeline, far, return_step, generation_steps, translation_rule(strength, others))


def translation_rule(strength: float = 1.0, others: Sequence[Term] = ()) -> tuple[Term, ...]:
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
        sampling.evaluating(parts.unet, parts.text_encoder, *pipeline.learners.values()),
        pipeline.predicting(jobs) as predict,
    ):
        found = ddim.follow(predict, latents, times, parts.noise_scheduler.alphas_cumprod)
    if not torch.isfinite(found).all():
        raise DasdError("The latents on the way are not finite: translate less strongly, or set "
                        "mixed_precision to 'no'.")  # fmt: skip
    return found


def _check(pipeline: DasdPipeline, return_step: int, steps: int) -> None:
    most = pipeline.parts.noise_scheduler.config.num_train_timesteps
    if not 1 <= steps <= return_step <= most:
        raise DasdError(f"{steps} steps to return_step {return_step}: it takes 1 step or more, as many times "
                        f"as steps, and at most {most} times.")  # fmt: skip


# The pictures of a config's domain, translated: trained, inverted and drawn where missing, and kept.


METHOD = "diffusionclip"
JUDGED = 32  # pictures that a strength is chosen by
log = logging.getLogger(__name__)


def run_config(config: Config, seed: int) -> Config:
    """Return the config of a seed's training; its output_dir is named by what decides the weights.

    Raises DasdError for a config of another method.
    """
    if config.method != METHOD:
        raise DasdError(f"The config names the method {config.method!r}; only {METHOD} translates pictures.")
    asked = config.replace(seed=seed, validation_every=0)
    return asked.replace(output_dir=str(Path(config.output_dir) / "trained" / checkpoints.run_key(asked)))


def train(config: Config, seed: int, progress: bool = True) -> Config:
    """Train a seed unless its run is complete, going on from its last checkpoint; return its config."""
    wanted = run_config(config, seed)
    training.train_or_resume(wanted, f"{METHOD}, seed {seed}", progress)
    return wanted


def pictures(config: Config, seed: int, found: data.DomainData) -> list[Image.Image]:
    """Return the translations of images by a seed's training, in their order; made if they are missing."""
    wanted, own = train(config, seed), diffusionclip.settings(config)
    name = files.short_hash(
        [found.ids, own.return_step, own.forward_steps, own.generation_steps, own.strengths]
    )
    path = resolve(wanted.output_dir) / f"translated-{found.split}-{name}.parquet"
    if not path.is_file():
        pipeline = sampling.load_trained_pipeline(wanted.output_dir, wanted)
        far, chosen = inverted(pipeline, config, found), strength(pipeline, config)
        rule = translation_rule(chosen)
        new = generate(pipeline, far, own.return_step, own.generation_steps, rule)
        said = f"{'; '.join(own.target)} (strength {chosen:g})"
        images.save_samples(path, new, [said] * len(new), [seed] * len(new))
    return images.load_samples(path)


def strength(pipeline: sampling.DasdPipeline, config: Config) -> float:
    """Return that of the settings' strengths whose translations lie nearest to where the words point.

    Told on the first training images by the loss "offset", so that no image of the target is asked.
    """
    own = diffusionclip.settings(config)
    if len(own.strengths) == 1:
        return own.strengths[0]
    found = first_images(data.load_domain(config.domains[0], config), JUDGED)
    far = inverted(pipeline, config, found)
    words = diffusionclip.Words(config, own, far.device)
    before = words.embed(images.to_pixels(found.images).to(far.device))

    def distance(candidate: float) -> float:
        rule = translation_rule(candidate)
        new = generate(pipeline, far, own.return_step, own.generation_steps, rule)
        after = words.embed(images.to_pixels(new).to(far.device))
        return diffusionclip.direction_loss(after, before, words.direction, "offset").item()

    return min(own.strengths, key=distance)


def by_settings(
    pipeline: sampling.DasdPipeline, pictures: Sequence[Image.Image], amount: float | None = None
) -> list[Image.Image]:
    """Return pictures translated as the settings of the pipeline's run say, or so strong as is asked.

    Raises DasdError for a run of another method.
    """
    run_config(pipeline.config, 0)
    own = diffusionclip.settings(pipeline.config)
    amount = strength(pipeline, pipeline.config) if amount is None else amount
    steps = {"forward_steps": own.forward_steps, "generation_steps": own.generation_steps}
    return translate(pipeline, pictures, own.return_step, strength=amount, **steps)


def reconstructed(
    pipeline: sampling.DasdPipeline, config: Config, found: data.DomainData
) -> list[Image.Image]:
    """Return what the base alone brings back from where it took the images."""
    own, far = diffusionclip.settings(config), inverted(pipeline, config, found)
    return generate(pipeline, far, own.return_step, own.generation_steps, translation_rule(0))


def inverted(pipeline: sampling.DasdPipeline, config: Config, found: data.DomainData) -> Tensor:
    """Return the latents (n, C, h, w) of images at the return step, by the base: one file for all seeds."""
    own = diffusionclip.settings(config)
    base = [adapters.base_fingerprint(pipeline.parts), latent_cache.vae_fingerprint(pipeline.parts.vae)]
    computing = precision.sampling_precision(config.training.mixed_precision, pipeline.parts.unet.device)
    how = [config.model.resolution, computing, own.return_step, own.forward_steps]
    key = files.short_hash([*base, found.ids, *how])
    path = checkpoints.writable(config.output_dir) / f"inverted-{found.split}-{key}.safetensors"
    if not path.is_file():
        log.info("The base inverts %d pictures, once: %s", len(found), path)
        far = invert(pipeline, found.images, own.return_step, own.forward_steps)
        with files.atomic_write(path, "The inverted latents") as temporary:
            save_file({"latents": far.cpu().contiguous()}, temporary)
    return load_file(path)["latents"].to(pipeline.parts.unet.device)


def first_images(found: data.DomainData, count: int) -> data.DomainData:
    """Return the first images of a split, at most so many, with all that is known of them."""
    count = min(count, len(found))
    lists = ("captions", "ids", "sizes", "labels", "attributes", "mentioned")
    cut = {name: getattr(found, name) and getattr(found, name)[:count] for name in lists}
    chosen = [found.images[i] for i in range(count)]
    return dataclasses.replace(found, images=chosen, thumbnails=found.thumbnails[:count], **cut)
