"""Images that the base generates of its source domain, for prior preservation (arXiv 2208.12242)."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dasd_utils import adapters, data, models, sampling
from dasd_utils.config import Config, resolve
from dasd_utils.runtime import files, images, latent_cache, processes

log = logging.getLogger(__name__)


def source_images(config: Config) -> data.DomainData:
    """Return the source's training split with images that the base generates for its captions.

    They are generated once, by one process, with one seed a caption, and kept in the cache in a file named by
    all that decides them. Ids are made of that name and not of pixels: another machine rounds otherwise.
    """
    real = data.load_domain(config.source, config)
    parts = models.load_parts(config)
    prompts = [captions[0] for captions in real.captions]
    own = image_key(config, parts, processes.default_device())
    key = files.short_hash([*own, config.source.calibration.settings(), prompts], 24)
    folder = files.check_writable(
        resolve(config.data.cache_dir), "The cache folder", "Set another cache_dir."
    )
    path = folder / f"generated-{config.source.name}-{key}.parquet"
    while not path.is_file():
        if not latent_cache.make_if_free(path, lambda: _generate(path, parts, config, prompts)):
            log.info("Waiting for another process that generates %s.", path)
            time.sleep(latent_cache.POLL)
    pictures = images.load_samples(path)
    return dataclasses.replace(
        real,
        images=pictures,
        captions=[[prompt] for prompt in prompts],
        ids=[files.short_hash([path.stem, number], 64) for number in range(len(pictures))],
        thumbnails=np.stack([images.thumbnail(picture) for picture in pictures]),
        sizes=[picture.size for picture in pictures],
        attributes=None,
        mentioned=None,
    )


def image_key(config: Config, parts: models.Parts, device: torch.device) -> list[Any]:
    """Return what decides the base's images beside prompts: weights, schedule, resolution, precision."""
    base = [adapters.base_fingerprint(parts), latent_cache.vae_fingerprint(parts.vae)]
    schedule = {k: v for k, v in parts.noise_scheduler.config.items() if not k.startswith("_")}
    computing = processes.sampling_precision(config.training.mixed_precision, device)
    return [*base, schedule, config.model.resolution, computing]


def _generate(path: Path, parts: models.Parts, config: Config, captions: list[str]) -> None:
    log.info("The base generates %d images of %s, once: %s", len(captions), config.source.name, path)
    pipeline = sampling.DasdPipeline(parts.to(processes.default_device()), config)
    prompts = [caption or config.source.name for caption in captions]
    seeds = list(range(len(prompts)))
    pictures, *_ = pipeline.generate(prompts, seed=seeds, settings=config.source.calibration)
    images.save_samples(path, pictures, prompts, seeds)
