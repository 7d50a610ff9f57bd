"""Images of one domain to images of another: to noise by the frozen base, back by an adapted model.

The functions above `run_config` work on any pipeline; those below it on a config of the method: they train,
invert and translate what is missing, and keep it as files in the run's folder.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from dasd_utils import data, sampling, training
from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.guidance import ADAPTED, BASE, EMPTY, Term
from dasd_utils.papers import editing, prior_images
from dasd_utils.papers.diffusionclip import objective
from dasd_utils.runtime import checkpoints, files, images
from dasd_utils.sampling import DasdPipeline

METHOD = "diffusionclip"
NUM_SCORED = 32  # pictures that a strength is chosen by
log = logging.getLogger(__name__)


@torch.no_grad()
def invert(
    pipeline: DasdPipeline, pictures: Sequence[Image.Image], return_step: int = 500, steps: int = 200
) -> Tensor:
    """Return the noisy latents (B, C, h, w) at `return_step` to which the base inverts pictures."""
    times, size = _times(pipeline, return_step, steps), pipeline.batch_size
    noisy = []
    for start in files.short_bar(range(0, len(pictures), size), "inverting", unit="batch"):
        clean = editing.encode(pipeline.parts, pictures[start : start + size])
        noisy.append(_follow(pipeline, clean, times, (Term(BASE, EMPTY),)))
    return torch.cat(noisy)


@torch.no_grad()
def generate(
    pipeline: DasdPipeline,
    latents: Tensor,
    return_step: int = 500,
    steps: int = 40,
    terms: Sequence[Term] = (Term(ADAPTED, EMPTY),),
) -> list[Image.Image]:
    """Return the images to which a guidance rule denoises latents (B, C, h, w) from `return_step`."""
    times = _times(pipeline, return_step, steps)[::-1]
    found: list[Image.Image] = []
    for batch in files.short_bar(latents.split(pipeline.batch_size), "translating", unit="batch"):
        clean = _follow(pipeline, batch, times, tuple(terms))
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

    strength: 1 is the adapter's own prediction, 0 the base's. others: terms of further learners.
    """
    _times(pipeline, return_step, generation_steps)  # refused before the inversion
    noisy = invert(pipeline, pictures, return_step, forward_steps)
    return generate(pipeline, noisy, return_step, generation_steps, translation_rule(strength, others))


def translation_rule(strength: float = 1.0, others: Sequence[Term] = ()) -> tuple[Term, ...]:
    """Return the guidance rule of a translation of that strength, with the terms of further learners."""
    if strength == 1 and not others:
        return (Term(ADAPTED, EMPTY),)
    return Term(BASE, EMPTY), Term(ADAPTED, EMPTY, float(strength)), *others


def _follow(pipeline: DasdPipeline, latents: Tensor, times: Sequence[int], rule: tuple[Term, ...]) -> Tensor:
    """Return the latents after DDIM steps through these times, under a rule that needs no prompt."""
    domain = pipeline.config.domains[0].name
    plans = pipeline.plan(["any"] * len(latents), domain=domain, seed=0, guidance=rule)
    with pipeline.predicting([jobs[0] for jobs in plans]) as predict:
        found = objective.follow(predict, latents, times, pipeline.parts.noise_scheduler.alphas_cumprod)
    if not torch.isfinite(found).all():
        raise DasdError("The latents of a translation are not finite: lower its strength, or set "
                        "mixed_precision to 'no'.")  # fmt: skip
    return found


def _times(pipeline: DasdPipeline, return_step: int, steps: int) -> list[int]:
    limit = pipeline.parts.noise_scheduler.config.num_train_timesteps
    if not 1 <= steps <= return_step <= limit:
        raise DasdError(f"{steps} steps do not fit return_step {return_step}: set steps from 1 to "
                        f"return_step, and return_step to {limit} at most.")  # fmt: skip
    return objective.ddim_times(return_step, steps)


def run_config(config: Config, seed: int) -> Config:
    """Return the config of a seed's training; its output_dir is named by what decides the weights."""
    if config.method != METHOD:
        raise DasdError(f"The config names the method {config.method!r}; only {METHOD} translates pictures.")
    wanted = config.replace(seed=seed, validation_every=0)
    return wanted.replace(output_dir=str(Path(config.output_dir) / "trained" / checkpoints.run_key(wanted)))


def train(config: Config, seed: int, progress: bool = True) -> Config:
    """Train a seed unless its run is complete, going on from its last checkpoint; return its config."""
    wanted = run_config(config, seed)
    training.train_or_resume(wanted, f"{METHOD}, seed {seed}", progress)
    return wanted


def trained(config: Config, seed: int) -> DasdPipeline:
    """Return the pipeline of a seed's training, which is done if it is missing."""
    wanted = train(config, seed)
    return sampling.load_trained_pipeline(wanted.output_dir, wanted)


def pictures(config: Config, seed: int, found: data.DomainData) -> list[Image.Image]:
    """Return the translations of images by a seed's training, in their order; made if they are missing."""
    own = objective.settings(config)
    how = [own.return_step, own.forward_steps, own.generation_steps, own.strengths]
    name = files.short_hash([found.ids, *how])
    path = resolve(run_config(config, seed).output_dir) / f"translated-{found.split}-{name}.parquet"
    if not path.is_file():
        pipeline = trained(config, seed)
        noisy, chosen = inverted(pipeline, config, found), strength(pipeline, config)
        new = denoised(pipeline, config, noisy, chosen)
        caption = f"{'; '.join(own.target)} (strength {chosen:g})"
        images.save_samples(path, new, [caption] * len(new), [seed] * len(new))
    return images.load_samples(path)


def strength(pipeline: DasdPipeline, config: Config) -> float:
    """Return the strength of the settings that brings training images nearest to the words, by "offset"."""
    own = objective.settings(config)
    if len(own.strengths) == 1:
        return own.strengths[0]
    found = first_images(data.load_domain(config.domains[0], config), NUM_SCORED)
    noisy = inverted(pipeline, config, found)
    words = objective.Words(config, own, noisy.device)
    before = words.embed(images.to_pixels(found.images).to(noisy.device))

    def distance(candidate: float) -> float:
        new = images.to_pixels(denoised(pipeline, config, noisy, candidate))
        after = words.embed(new.to(noisy.device))
        return objective.direction_loss(after, before, words.direction, "offset").item()

    return min(own.strengths, key=distance)


def by_settings(
    pipeline: DasdPipeline, places: Sequence[Path], amount: float | None = None
) -> Iterator[tuple[Path, Image.Image]]:
    """Yield (file, its translation) for image files and folders; amount: another strength."""
    own = objective.settings(run_config(pipeline.config, 0))
    found = images.find_image_files(places)
    amount = strength(pipeline, pipeline.config) if amount is None else amount
    for start in range(0, len(found), pipeline.batch_size):
        batch = found[start : start + pipeline.batch_size]
        before = [images.open_file(file) for file in batch]
        after = translate(pipeline, before, own.return_step, own.forward_steps, own.generation_steps, amount)
        yield from zip(batch, after, strict=True)


def denoised(pipeline: DasdPipeline, config: Config, noisy: Tensor, amount: float) -> list[Image.Image]:
    """Return what inverted images become at a strength, 0 for the base alone, by the config's settings."""
    own = objective.settings(config)
    return generate(pipeline, noisy, own.return_step, own.generation_steps, translation_rule(amount))


def inverted(pipeline: DasdPipeline, config: Config, found: data.DomainData) -> Tensor:
    """Return the noisy latents (n, C, h, w) of images at the return step, kept in one file for all seeds."""
    own, device = objective.settings(config), pipeline.parts.unet.device
    base = prior_images.image_key(config, pipeline.parts, device)
    key = files.short_hash([*base, found.ids, own.return_step, own.forward_steps])
    path = files.output_folder(config.output_dir) / f"inverted-{found.split}-{key}.safetensors"
    if not path.is_file():
        log.info("The base inverts %d pictures, once: %s", len(found), path)
        noisy = invert(pipeline, found.images, own.return_step, own.forward_steps)
        with files.atomic_write(path, "The inverted latents") as temporary:
            save_file({"latents": noisy.cpu().contiguous()}, temporary)
    return checkpoints.read_tensors(path)["latents"].to(device)


def first_images(found: data.DomainData, count: int) -> data.DomainData:
    """Return the first images of a split, at most so many, with all that is known of them."""
    count = min(count, len(found))
    lists = ("captions", "ids", "sizes", "labels", "attributes", "mentioned")
    cut = {name: getattr(found, name) and getattr(found, name)[:count] for name in lists}
    chosen = [found.images[i] for i in range(count)]
    return dataclasses.replace(found, images=chosen, thumbnails=found.thumbnails[:count], **cut)
