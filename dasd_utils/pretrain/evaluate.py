"""How good the embedded base is: every number with n, seed and interval, on renders that no training saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dasd_utils import evaluation, metrics, runs, sampling, toyworld
from dasd_utils.config import Calibration, Config
from dasd_utils.toyworld import captions

WORLD_SEED = 200  # no data set of the course, and no stage of the pretraining, uses it
GUIDANCE, STEPS = 4.0, 30
Row = dict[str, Any]


@dataclass(frozen=True)
class Heldout:
    """Renders of one domain with one caption each, the one of several that tells most."""

    domain: str
    images: list[Image.Image]
    texts: list[str]
    told: list[dict[str, str]]


def heldout(domain: str, count: int, start: int = 0) -> Heldout:
    """Return scenes `start` to `start + count` of the world kept for this evaluation."""
    places = range(start, start + count)
    wordings = [
        max(toyworld.told_variants(domain, WORLD_SEED, i, 8), key=lambda w: len(w[1])) for i in places
    ]
    images = [toyworld.draw(domain, WORLD_SEED, i) for i in places]
    return Heldout(domain, images, [text for text, _ in wordings], [told for _, told in wordings])


def evaluate(config: Config, num_images: int = 500, progress: bool = True) -> list[Row]:
    """Return the rows of `data/results/pretrain.json` for the base of `config` and its adapter.

    num_images: renders and samples a domain. Retrieval is among 200 captions.
    """
    pipeline = sampling.load_trained_pipeline(runs.find_run(config), config)
    pipeline.progress = progress
    judge = evaluation.load_judge(config)
    worlds = {domain: heldout(domain, num_images) for domain in toyworld.DOMAINS}
    features = {domain: judge.embed(world.images) for domain, world in worlds.items()}
    table = _Table(config.seed, config.evaluation.num_bootstrap)
    with torch.no_grad():
        for world in worlds.values():
            table.mean("psnr", world.domain, psnr(pipeline.parts.vae, world.images))
            table.mean("retrieval_r1", world.domain, retrieval(judge, heldout(world.domain, 200)))
            table.mean(
                "zero_shot_domain", world.domain, zero_shot(judge, features[world.domain]) == world.domain
            )
            table.mean("reader_on_renders", world.domain, _shown(judge, world.images, world))
        table.add("latent_deviation_ratio", "all", *_deviations(pipeline.parts.vae, worlds), num_images)
    for domain in ("satellite", "xray", "sketch"):
        table.cmmd("yardstick", f"painting-{domain}", features["painting"], features[domain])
    samples: list[tuple[str, str, str | None]] = [
        ("base", domain, None) for domain in worlds if domain != "sketch"
    ]
    samples += [("adapted", domain.name, domain.name) for domain in config.domains]
    for method, domain, adapter in samples:
        world = worlds[domain]
        images, *_ = pipeline.generate(
            world.texts,
            domain=adapter,
            seed=list(range(num_images)),
            settings=Calibration(GUIDANCE, STEPS, "ddim"),
        )
        table.mean(f"{method}_attribute_accuracy", domain, _shown(judge, images, world))
        table.cmmd(f"{method}_cmmd", domain, judge.embed(images), features[domain])
    return table.rows


class _Table:
    """Rows with bootstrap intervals, all drawn with one seed."""

    def __init__(self, seed: int, num_bootstrap: int) -> None:
        self.rows: list[Row] = []
        self.draws = {"seed": seed, "num_bootstrap": num_bootstrap}

    def add(self, metric: str, domain: str, value: float, low: float, high: float, n: int) -> None:
        ends = {"value": value, "low": low, "high": high}
        self.rows.append({"metric": metric, "domain": domain, **ends, "n": n, "seed": self.draws["seed"]})

    def mean(self, metric: str, domain: str, values: Tensor | np.ndarray) -> None:
        scores = torch.as_tensor(values).double()
        interval = metrics.bootstrap_interval(scores, **self.draws)
        self.add(metric, domain, scores.mean().item(), *interval, len(scores))

    def cmmd(self, metric: str, domain: str, one: Tensor, two: Tensor) -> None:
        interval = metrics.cmmd_interval(one, two, **self.draws)
        self.add(metric, domain, metrics.cmmd(one, two), *interval, len(one))


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """Return (n, 3, h, w) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32) for image in images]))
    return stacked.permute(0, 3, 1, 2) / 127.5 - 1


def _batched(function: Callable[[Tensor], Tensor], images: Sequence[Image.Image]) -> Tensor:
    return torch.cat([function(part) for part in _pixels(images).split(50)])


def psnr(vae: Any, images: Sequence[Image.Image]) -> Tensor:
    """Return 10 log10(1 / MSE) of each reconstruction, on pixels in [0, 1]; (n,) dB."""

    def of_batch(pixels: Tensor) -> Tensor:
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        return -10 * ((decoded - pixels) / 2).square().mean((1, 2, 3)).log10()

    return _batched(of_batch, images)


def _deviations(vae: Any, worlds: dict[str, Heldout]) -> tuple[float, float, float]:
    """Return the largest standard deviation of a latent channel over the smallest; no interval is needed."""
    latents = [_batched(lambda x: vae.encode(x).latent_dist.mean, world.images) for world in worlds.values()]
    deviations = torch.cat(latents).std((0, 2, 3))
    return ((deviations.max() / deviations.min()).item(),) * 3


def retrieval(judge: evaluation.Judge, world: Heldout) -> Tensor:
    """Return whether the caption nearest to each image tells nothing false of it; (n,)."""
    texts = metrics.embed_texts(judge.clip, judge.tokenizer, world.texts)
    found = (judge.embed(world.images) @ texts.T).argmax(dim=1).tolist()
    shown = [toyworld.attributes(world.domain, WORLD_SEED, i) for i in range(len(world.images))]
    right = [world.told[j].items() <= shown[i].items() for i, j in enumerate(found)]
    return torch.tensor(right)


def zero_shot(judge: evaluation.Judge, features: Tensor) -> np.ndarray:
    """Return the domain whose bare prompts are nearest to each image; (n,) names."""
    rng = np.random.default_rng(0)
    means = []
    for domain in toyworld.DOMAINS:
        prompts = [captions.bare_prompt(domain, rng) for _ in range(20)]
        means.append(metrics.embed_texts(judge.clip, judge.tokenizer, prompts).mean(dim=0))
    return np.array(toyworld.DOMAINS)[(features @ torch.stack(means).T).argmax(dim=1)]


def _shown(judge: evaluation.Judge, images: Sequence[Image.Image], world: Heldout) -> Tensor:
    """Return the share of the caption's attributes that each image shows, as the reader sees it; (n,)."""
    return metrics.attribute_accuracy(judge.reader.read(images, world.domain), world.told)
