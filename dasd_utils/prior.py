"""What the base draws of its own source domain: the images that prior preservation holds on to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from pathlib import Path

import numpy as np

from dasd_utils import adapters, checkpoints, data, images, locks, models, precision, samples, sampling
from dasd_utils.config import Calibration, Config, resolve

POLL = 0.5  # seconds between two looks at a file that another process makes
log = logging.getLogger(__name__)


def source_images(config: Config) -> data.DomainData:
    """Return the source's training split with what the base draws for its captions (arXiv 2208.12242).

    They are drawn once, with the evaluation's settings and one seed a caption, and kept as a parquet file in
    the cache folder, named by base, captions and settings. Of several
    processes one draws. Raises DasdError where that folder cannot be written.
    """
    real = data.load_domain(config.source, config)
    parts = models.load_parts(config)
    prompts = [captions[0] for captions in real.captions]
    protocol = config.evaluation
    calibration = Calibration(protocol.guidance_scale, protocol.num_inference_steps, protocol.scheduler)
    settings = [config.model.resolution, dataclasses.asdict(calibration)]
    path = _file(config, json.dumps([adapters.base_fingerprint(parts), *settings, prompts]))
    while not path.is_file():
        with locks.held(_lock(path)) as mine:
            if mine and not path.is_file():
                _draw(path, parts, config, prompts, calibration)
        if not mine:
            log.info("Waiting for another process that draws %s.", path)
            time.sleep(POLL)
    pictures = samples.load(path)
    ids, thumbnails = [images.content_hash(p) for p in pictures], [images.thumbnail(p) for p in pictures]
    return dataclasses.replace(
        real, images=pictures, captions=[[prompt] for prompt in prompts], ids=ids,
        thumbnails=np.stack(thumbnails), sizes=[picture.size for picture in pictures],
        attributes=None, told=None,
    )  # fmt: skip


def _file(config: Config, named: str) -> Path:
    key = hashlib.sha256(named.encode()).hexdigest()[:24]
    return resolve(config.data.cache_dir) / f"generated-{config.source.name}-{key}.parquet"


def _lock(path: Path) -> Path:
    checkpoints.writable(path.parent)
    return path.with_suffix(".lock")


def _draw(
    path: Path, parts: models.Parts, config: Config, prompts: list[str], calibration: Calibration
) -> None:
    log.info("The base draws %d images of %s, once: %s", len(prompts), config.source.name, path)
    pipeline = sampling.DasdPipeline(parts.to(precision.default_device()), config)
    asked = [prompt or config.source.name for prompt in prompts]  # an image may have no caption
    pictures, *_ = pipeline.generate(asked, seed=list(range(len(prompts))), settings=calibration)
    samples.save(path, pictures, asked, list(range(len(prompts))))
