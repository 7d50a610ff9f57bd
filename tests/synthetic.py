"""Stand-ins for data: images, batches of noise, a sampler without images, parts that are loaded once."""

import copy
import dataclasses
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from dasd_utils import data, latents, models, training
from dasd_utils.config import Config, DomainConfig, ModelConfig
from dasd_utils.latents import Batch

DOMAINS = (0, 1, 0, 1, 0, 1)  # of the six targets that the narrow config asks for


def make_batch(config: Config, seed: int = 0, domains: tuple[int, ...] = DOMAINS, sources: int = 2) -> Batch:
    """Return random latents of 8 x 8 with prompts that hold the tokens."""
    generator = torch.Generator().manual_seed(seed)

    def noise(count: int) -> torch.Tensor:
        return torch.randn(count, 4, 8, 8, generator=generator)

    timesteps = torch.randint(0, 1000, (len(domains),), generator=generator)
    return Batch(
        target_latents=noise(len(domains)),
        source_latents=noise(sources),
        target_prompts=[f"{config.domains[d].token} a village" for d in domains],
        source_prompts=["a painting of a house"] * sources,
        target_domains=torch.tensor(domains),
        target_timesteps=timesteps,
        source_timesteps=timesteps[:sources],
        target_noise=noise(len(domains)),
        source_noise=noise(sources),
        sample_ids=[f"id{seed}-{i}" for i in range(len(domains) + sources)],
    )


def saved(image: Image.Image, kind: str, **options) -> dict:
    """Return the image as a file in memory, as a `datasets` image column holds it."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def plain(mode: str, colour, size=(6, 4)) -> Image.Image:
    """Return an image of one colour."""
    return Image.new(mode, size, colour)


def pictures(count: int) -> list[Image.Image]:
    """Return smooth random images of 32 px, the same at each call."""
    small = np.random.default_rng(0).integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC) for each in small]


def picture(number: int, size=(24, 20), mode="RGB") -> Image.Image:
    """Return a picture of its own for each number: soft patches, so that a copy of another size is alike."""
    patches = np.random.default_rng(number).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).convert(mode)


def write_images(folder: Path, numbers, rows: dict | None = None) -> Path:
    """Save images, and metadata.jsonl with the given columns (name -> number -> value)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        picture(number).save(folder / f"{number}.png")
    if rows:
        lines = [{"file_name": f"{n}.png"} | {key: make(n) for key, make in rows.items()} for n in numbers]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf8")
    return folder


def domain(source, **settings) -> DomainConfig:
    return DomainConfig(**({"name": "thing", "data": str(source), "token": "<thing>"} | settings))


def same_batch(one: Batch, two: Batch) -> bool:
    """Return whether two batches are equal in every bit."""
    pairs = zip(vars(one).values(), vars(two).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def make_sampler(config: Config, vae: AutoencoderKL) -> latents.Sampler:
    """Return an encoded sampler over the config's domains."""
    source, *targets = (data.load_domain(domain, config) for domain in (config.source, *config.domains))
    sampler = latents.Sampler(config, source, targets)
    sampler.encode(vae, progress=False)
    return sampler


class Words:
    """A tokenizer that takes words for tokens."""

    def __init__(self, limit: int = 77) -> None:
        self.model_max_length = limit

    def __call__(self, texts: list[str], **options) -> dict[str, list[list[str]]]:
        return {"input_ids": [text.split() for text in texts]}


class NoiseSampler(latents.Sampler):
    """A sampler whose batch is a function of (step, micro); notes what was asked of it."""

    def __init__(self, config: Config, fingerprint: str = "noise") -> None:
        self.config, self.fingerprint = config, fingerprint
        self.encoded, self.asked = 0, []

    def encode(self, vae, device="cpu", progress=True) -> None:
        self.encoded += 1

    def open_bank(self, *arguments) -> None:
        """Leave the features out of the batches: the base computes them in each step."""

    def source_prompts(self) -> list[str]:
        return [""]

    def batch(self, step: int, micro: int = 0) -> Batch:
        self.asked.append((step, micro))
        return make_batch(self.config, seed=10 * step + micro)

    def validation_batches(self) -> list[Batch]:
        return [make_batch(self.config, seed=1000 + i) for i in range(2)]


class SpoiltSampler(NoiseSampler):
    """A sampler with latents that are not finite in some steps."""

    def __init__(self, config: Config, spoilt: set[int]) -> None:
        super().__init__(config)
        self.spoilt = spoilt

    def batch(self, step: int, micro: int = 0) -> Batch:
        batch = super().batch(step, micro)
        if step + 1 not in self.spoilt:
            return batch
        return dataclasses.replace(batch, target_latents=batch.target_latents * float("nan"))


class OfOneDomain(NoiseSampler):
    """A sampler of the first domain alone, without text."""

    def batch(self, step: int, micro: int = 0) -> Batch:
        batch = make_batch(self.config, seed=10 * step + micro, domains=(0,) * 6)
        return dataclasses.replace(batch, target_prompts=[""] * 6)

    def validation_batches(self) -> list[Batch]:
        return [self.batch(1000)]


def stop_at(step: int) -> Callable[[dict], None]:
    """Return an on_step callback that stops a run behind the loop's back, as a crash would."""

    def look(row: dict) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return look


@functools.cache
def _load(model: ModelConfig, rank: int, whole_unet: bool) -> models.Parts:
    return training.setup_training(
        Config.setup("tiny", rank=rank, whole_unet=whole_unet, lambda_align=0.0).replace(model=model)
    )


def make_parts(config: Config) -> models.Parts:
    """Return what setup_training(config) returns for the tiny profile's domains and seed, but quickly."""
    parts = copy.deepcopy(_load(config.model, config.lora.rank, config.training.whole_unet))
    parts.config = config
    return parts
