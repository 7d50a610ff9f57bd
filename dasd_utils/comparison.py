"""The fair comparison: base, base with style words and DASD, on the same prompts, seeds and settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from dasd_utils import data, evaluation
from dasd_utils.config import Calibration, Config, DasdError, DomainConfig
from dasd_utils.runtime import bars
from dasd_utils.sampling import DasdPipeline

BASE, STYLED = "base", "base + style words"
METHODS = (BASE, STYLED, "DASD")


def compared(config: Config) -> tuple[str, ...]:
    """Return the methods that are compared: the base, with style words too, and the one that trained."""
    return METHODS if config.method == "dasd" else (BASE, STYLED, config.method)


def sample_method(
    config: Config, pipeline: DasdPipeline, method: str, domain: DomainConfig, prompts: Sequence[str]
) -> list[Image.Image]:
    """Return `images_per_prompt` images of each prompt, prompt by prompt, with the evaluation's settings.

    The methods differ in nothing but what is compared: adapter off, words added, or adapter and token on.
    Each prompt starts from noise of its own, the same for all methods, so that prompts are independent.
    Raises DasdError for an unknown method.
    """
    known = compared(config)
    if method not in known:
        raise DasdError(f"There is no method {method!r}. Methods: {', '.join(known)}.")
    protocol = config.evaluation
    words = [f"{p}, {domain.style_suffix}" for p in prompts] if method == STYLED else list(prompts)
    images, *_ = pipeline.generate(
        words,
        domain=domain.name if method == known[-1] else None,
        num_images=protocol.images_per_prompt,
        seed=[1000 * config.seed + number for number in range(len(prompts))],
        settings=Calibration(protocol.guidance_scale, protocol.num_inference_steps, protocol.scheduler),
    )
    if protocol.images_per_prompt == 1:
        return list(images)
    return [image for group in images for image in group]


def evaluate(
    config: Config, pipeline: DasdPipeline, methods: Sequence[str] | None = None, progress: bool = True
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], list[Image.Image]]]:
    """Sample and score every method (of `compared` if None) on every domain; return rows and images by
    (method, domain)."""
    judge = evaluation.load_judge(config)
    rows, images = [], {}
    for domain in config.domains:
        prompts = evaluation.load_prompts(config, domain.name)
        told = evaluation.load_told(config, domain.name)
        evaluation.check_told(judge, domain.name, told)  # before hours of sampling
        heldout = data.load_domain(domain, config, "test")
        count = min(config.evaluation.num_heldout, len(heldout))
        real = [heldout[i]["image"] for i in range(count)]
        for method in bars.bar(methods or compared(config), domain.name, shown=progress, unit="method"):
            made = sample_method(config, pipeline, method, domain, prompts)
            asked = _repeated(prompts, config), _repeated(told, config)
            rows += evaluation.score_method(
                method, domain.name, made, asked[0], real, judge, config, told=asked[1]
            )
            images[method, domain.name] = made
    return rows, images


def _repeated(values: Sequence | None, config: Config) -> list | None:
    """Return each value `images_per_prompt` times, as the images of one prompt follow each other."""
    return values and [value for value in values for _ in range(config.evaluation.images_per_prompt)]
