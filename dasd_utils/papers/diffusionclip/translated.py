"""The pictures of a config's domain, translated: trained, inverted and drawn where missing, and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dasd_utils import adapters, data, sampling
from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.papers.diffusionclip import objective as diffusionclip
from dasd_utils.papers.diffusionclip import translation
from dasd_utils.runtime import checkpoints, files, images, latent_cache, precision, runs, samples
from dasd_utils.study import ladder

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
    return asked.replace(output_dir=str(Path(config.output_dir) / "trained" / runs.key(asked)))


def train(config: Config, seed: int, progress: bool = True) -> Config:
    """Train a seed unless its run is complete, going on from its last checkpoint; return its config."""
    wanted = run_config(config, seed)
    ladder.finish(wanted, f"{METHOD}, seed {seed}", progress)
    return wanted


def pictures(config: Config, seed: int, found: data.DomainData) -> list[Image.Image]:
    """Return the translations of images by a seed's training, in their order; made if they are missing."""
    wanted, own = train(config, seed), diffusionclip.settings(config)
    name = _hash([found.ids, own.return_step, own.forward_steps, own.generation_steps, own.strengths])
    path = resolve(wanted.output_dir) / f"translated-{found.split}-{name}.parquet"
    if not path.is_file():
        pipeline = sampling.load_trained_pipeline(wanted.output_dir, wanted)
        far, chosen = inverted(pipeline, config, found), strength(pipeline, config)
        rule = translation.rule(chosen)
        new = translation.generate(pipeline, far, own.return_step, own.generation_steps, rule)
        said = f"{'; '.join(own.target)} (strength {chosen:g})"
        samples.save(path, new, [said] * len(new), [seed] * len(new))
    return samples.load(path)


def strength(pipeline: sampling.DasdPipeline, config: Config) -> float:
    """Return that of the settings' strengths whose translations lie nearest to where the words point.

    Told on the first training images by the loss "offset", so that no image of the target is asked.
    """
    own = diffusionclip.settings(config)
    if len(own.strengths) == 1:
        return own.strengths[0]
    found = first(data.load_domain(config.domains[0], config), JUDGED)
    far = inverted(pipeline, config, found)
    words = diffusionclip.Words(config, own, far.device)
    before = words.embed(images.to_pixels(found.images).to(far.device))

    def distance(candidate: float) -> float:
        rule = translation.rule(candidate)
        new = translation.generate(pipeline, far, own.return_step, own.generation_steps, rule)
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
    return translation.translate(pipeline, pictures, own.return_step, strength=amount, **steps)


def reconstructed(
    pipeline: sampling.DasdPipeline, config: Config, found: data.DomainData
) -> list[Image.Image]:
    """Return what the base alone brings back from where it took the images."""
    own, far = diffusionclip.settings(config), inverted(pipeline, config, found)
    return translation.generate(pipeline, far, own.return_step, own.generation_steps, translation.rule(0))


def inverted(pipeline: sampling.DasdPipeline, config: Config, found: data.DomainData) -> Tensor:
    """Return the latents (n, C, h, w) of images at the return step, by the base: one file for all seeds."""
    own = diffusionclip.settings(config)
    base = [adapters.base_fingerprint(pipeline.parts), latent_cache.vae_fingerprint(pipeline.parts.vae)]
    computing = precision.possible(config.training.mixed_precision, pipeline.parts.unet.device)
    how = [config.model.resolution, computing, own.return_step, own.forward_steps]
    key = _hash([*base, found.ids, *how])
    path = checkpoints.writable(config.output_dir) / f"inverted-{found.split}-{key}.safetensors"
    if not path.is_file():
        log.info("The base inverts %d pictures, once: %s", len(found), path)
        far = translation.invert(pipeline, found.images, own.return_step, own.forward_steps)
        with files.whole(path, "The inverted latents") as temporary:
            save_file({"latents": far.cpu().contiguous()}, temporary)
    return load_file(path)["latents"].to(pipeline.parts.unet.device)


def first(found: data.DomainData, count: int) -> data.DomainData:
    """Return the first images of a split, at most so many, with all that is known of them."""
    count = min(count, len(found))
    lists = ("captions", "ids", "sizes", "labels", "attributes", "told")
    cut = {name: getattr(found, name) and getattr(found, name)[:count] for name in lists}
    chosen = [found.images[i] for i in range(count)]
    return dataclasses.replace(found, images=chosen, thumbnails=found.thumbnails[:count], **cut)


def _hash(named: list) -> str:
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:12]
