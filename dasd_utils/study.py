"""The fair comparison: base, base with style words and DASD, on the same prompts, seeds and settings."""

from __future__ import annotations

import logging
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from dasd_utils import data, evaluation
from dasd_utils.config import Calibration, Config, DomainConfig
from dasd_utils.sampling import DasdPipeline

log = logging.getLogger(__name__)
METHODS = ("base", "base + style words", "DASD")


def sample_method(
    pipeline: DasdPipeline, method: str, domain: DomainConfig, prompts: list[str], seed: int
) -> list[Image.Image]:
    """Return `images_per_prompt` images of each prompt, prompt by prompt, with the evaluation's settings.

    The methods differ in nothing but what is compared: adapter off, words added, or adapter and token on.
    """
    protocol = pipeline.config.evaluation
    settings = Calibration(protocol.guidance_scale, protocol.num_inference_steps, protocol.scheduler)
    words = [f"{p}, {domain.style_suffix}" for p in prompts] if "style" in method else prompts
    images, *_ = pipeline.generate(
        words,
        domain=domain.name if method == "DASD" else None,
        num_images=protocol.images_per_prompt,
        seed=seed,
        settings=settings,
    )
    if protocol.images_per_prompt == 1:
        return list(images)
    return [image for group in images for image in group]


def evaluate(
    config: Config, pipeline: DasdPipeline, methods: tuple[str, ...] = METHODS, progress: bool = True
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], list[Image.Image]]]:
    """Sample and score every method on every domain; return rows and images by (method, domain)."""
    judge = evaluation.load_judge(config)
    rows, images = [], {}
    for domain in config.domains:
        prompts = evaluation.load_prompts(config, domain.name)
        heldout = data.load_domain(domain, config, "test")
        count = min(config.evaluation.num_heldout, len(heldout))
        real = [heldout[i]["image"] for i in range(count)]
        for method in tqdm(methods, f"{domain.name}", disable=not progress):
            made = sample_method(pipeline, method, domain, prompts, config.seed)
            repeated = [p for p in prompts for _ in range(config.evaluation.images_per_prompt)]
            rows += evaluation.score_method(method, domain.name, made, repeated, real, judge, config)
            images[method, domain.name] = made
    return rows, images
