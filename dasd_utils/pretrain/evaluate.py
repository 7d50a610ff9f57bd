"""How good the embedded base is: every number with n, seed and interval, on renders that no training saw."""

import functools
import logging
import timeit
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dasd_utils import evaluation, metrics, sampling, toyworld
from dasd_utils.config import Calibration, Config, DasdError, portable, resolve
from dasd_utils.evaluation import Scorer
from dasd_utils.runtime import checkpoints
from dasd_utils.runtime.images import to_pixels

log = logging.getLogger(__name__)
WORLD_SEED = 200  # no data set of the course, and no stage of the pretraining, uses it
RETRIEVAL = 200  # captions to choose from
SPEED_IMAGES, SPEED_STEPS, SPEED_RUNS = 8, 30, 5
Row = dict[str, Any]
Attributes = dict[str, str]  # name -> value


@dataclass(frozen=True)
class Heldout:
    """Renders of one domain with one caption each, the one of several that mentions most."""

    domain: str
    images: list[Image.Image]
    shown: list[Attributes]  # all of each image
    texts: list[str]
    mentioned: list[Attributes]  # those of `shown` that the text mentions


def heldout(domain: str, count: int) -> Heldout:
    """Return the first `count` scenes of the world kept for this evaluation."""
    scenes = [(domain, WORLD_SEED, i) for i in range(count)]
    wordings = [max(toyworld.captions_with_mentions(*scene, 8), key=lambda w: len(w[1])) for scene in scenes]
    texts, mentioned = zip(*wordings, strict=True)
    images = [toyworld.draw(*scene) for scene in scenes]
    return Heldout(domain, images, [toyworld.attributes(*s) for s in scenes], list(texts), list(mentioned))


class _Table:
    """Rows with bootstrap intervals, all drawn with one seed."""

    def __init__(self, seed: int, num_bootstrap: int) -> None:
        self.rows: list[Row] = []
        self.draws = {"seed": seed, "num_bootstrap": num_bootstrap}

    def add(self, metric: str, domain: str, value: float, low: float, high: float, n: int) -> None:
        """Add one row."""
        ends = {"value": value, "low": low, "high": high}
        self.rows.append({"metric": metric, "domain": domain, **ends, "n": n, "seed": self.draws["seed"]})

    def mean(self, metric: str, domain: str, values: Tensor | np.ndarray) -> None:
        """Add the mean of independent values, (n,)."""
        scores = torch.as_tensor(values).double()
        interval = metrics.bootstrap_interval(scores, **self.draws, share=metric != "psnr")
        self.add(metric, domain, scores.mean().item(), *interval, len(scores))

    def cmmd(self, metric: str, domain: str, one: Tensor, two: Tensor) -> None:
        """Add the CMMD of two sets of features, (n, d) each, row i of one caption or scene in both."""
        estimate = metrics.mmd_estimate(one, two, metrics.cmmd_kernel, **self.draws, own=range(len(two)))
        self.add(metric, domain, *estimate.interval(), len(one))


def evaluate(config: Config, num_images: int = 500) -> list[Row]:
    """Return the rows of `data/results/pretrain.json`: of the base, and of those of two runs that are there.

    "adapted" is the shipped run, "lesson" that of `output_dir`. num_images: renders and samples a domain, at
    least 2, sampled with the domain's calibration (the base with that of the source). Raises DasdError for a
    base without an attribute classifier.
    """
    scorer = evaluation.load_scorer(config, "cpu")
    if scorer.attribute_classifier is None:
        raise DasdError(f"{config.model.base} has no attribute classifier: `dasd pretrain` has not made it.")
    pipeline = sampling.load_base_pipeline(config, "cpu")
    worlds = {domain: heldout(domain, num_images) for domain in toyworld.DOMAINS}
    features = {domain: scorer.embed(world.images) for domain, world in worlds.items()}
    table = _Table(config.seed, config.evaluation.num_bootstrap)
    _score_parts(table, pipeline.parts.vae, scorer, worlds, features)
    sizes = [path.stat().st_size / 1e6 for path in resolve(config.model.base).rglob("*.safetensors")]
    table.add("weights_mb", "all", sum(sizes), sum(sizes), sum(sizes), len(sizes))  # megabytes of 10^6 bytes
    prompts, calibration = worlds["painting"].texts[:SPEED_IMAGES], Calibration(4.0, SPEED_STEPS, "ddim")
    sample = functools.partial(pipeline.generate, prompts, seed=0, settings=calibration)
    times = timeit.repeat(sample, number=1, repeat=SPEED_RUNS)
    table.add("sampling_seconds", "painting", np.median(times).item(), min(times), max(times), SPEED_RUNS)
    table.rows[-1]["threads"] = torch.get_num_threads()
    for domain in toyworld.DOMAINS[1:]:
        table.cmmd("yardstick", f"painting-{domain}", features["painting"], features[domain])
    samples = [("base", pipeline, domain) for domain in worlds if domain != "sketch"]
    for name, place in {"adapted": config.shipped_run, "lesson": config.output_dir}.items():
        if problem := checkpoints.describe_run(resolve(place), config)[0] if place else "none is given":
            log.warning("The %s run is not measured: %s.", name, problem)
        else:
            trained = sampling.load_trained_pipeline(place, config, device="cpu")
            samples += [(name, trained, domain.name) for domain in config.domains]
    seeds = [1000 * config.seed + i for i in range(num_images)]
    for method, sampled, domain in samples:
        images, *_ = sampled.generate(worlds[domain].texts, None if method == "base" else domain, seed=seeds)
        _score_samples(table, method, worlds[domain], images, scorer, features[domain])
    return table.rows


def _score_samples(
    table: _Table, method: str, world: Heldout, images: list[Image.Image], scorer: Scorer, renders: Tensor
) -> None:
    """Add attributes shown, together and by kind, the share that shows another domain, and CMMD."""
    domain, features = world.domain, scorer.embed(images)
    shown = scorer.attribute_classifier.read(images, domain)
    table.mean(f"{method}_attribute_accuracy", domain, metrics.attribute_accuracy(shown, world.mentioned))
    if method != "base":
        for kind, right in shown_by_kind(shown, world.mentioned).items():
            if len(right) > 1:  # one prompt has no interval
                table.mean(f"{method}: {kind}", domain, np.array(right, dtype=float))
    table.mean(f"{method}_other_domain", domain, (zero_shot(scorer, features) != domain).astype(float))
    table.cmmd(f"{method}_cmmd", domain, features, renders)


def shown_by_kind(shown: Sequence[Attributes], mentioned: Sequence[Attributes]) -> dict[str, list[bool]]:
    """Return {kind: whether each image of a prompt that mentions it shows it}.

    Scenes are kinds of their own. Counts and bridges are kept apart by scene: "count: airport" counts planes.
    """
    kinds: dict[str, list[bool]] = {}
    for seen, wanted in zip(shown, mentioned, strict=True):
        for name, value in wanted.items():
            scene = wanted.get("scene", "any") if name in ("scene", "count", "bridge") else ""
            kinds.setdefault(f"{name}: {scene}" if scene else name, []).append(seen.get(name) == value)
    return dict(sorted(kinds.items()))


@torch.no_grad()
def _score_parts(
    table: _Table, vae: Any, scorer: Scorer, worlds: dict[str, Heldout], features: dict[str, Tensor]
) -> None:
    for domain, world in worlds.items():
        table.mean("psnr", domain, psnr(vae, world.images))
        table.mean("retrieval_r1", domain, retrieval(scorer, heldout(domain, RETRIEVAL)))
        table.mean("zero_shot_domain", domain, zero_shot(scorer, features[domain]) == domain)
        shown = scorer.attributes_shown(world.images, domain, world.mentioned)
        table.mean("reader_on_renders", domain, shown)
    images = [image for world in worlds.values() for image in world.images]
    ratio = deviation_ratio(vae, images)
    table.add("latent_deviation_ratio", "all", ratio, ratio, ratio, len(images))


def measure_base(base: str, seed: int, num_images: int) -> tuple[Path, list[Row]]:
    """Evaluate the base in a folder; return the file that its rows are written to, and the rows."""
    name = portable(resolve(base))
    lesson = "data/runs/course/dasd"  # what notebook 04 leaves
    config = Config.setup("tiny", seed=seed, base=name, clip=f"{name}/clip", output_dir=lesson)
    rows = evaluate(config, num_images)
    return evaluation.save_results(scores_file(resolve(base)), config, rows), rows


def scores_file(base: Path) -> Path:
    """Return the file of a base's scores: in its folder, for the embedded base in data/results."""
    return resolve("data/results/pretrain.json") if base == resolve("data/tiny-sd") else base / "scores.json"


def psnr(vae: Any, images: Sequence[Image.Image]) -> Tensor:
    """Return 10 log10(1 / MSE) of each reconstruction, on pixels in [0, 1]; (n,) dB."""
    values = []
    for pixels in to_pixels(images).split(50):
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        values.append(-10 * ((decoded - pixels) / 2).square().mean((1, 2, 3)).log10())
    return torch.cat(values)


def deviation_ratio(vae: Any, images: Sequence[Image.Image]) -> float:
    """Return the largest standard deviation of a latent channel over the smallest."""
    latents = [vae.encode(pixels).latent_dist.mean for pixels in to_pixels(images).split(50)]
    deviations = torch.cat(latents).std((0, 2, 3))
    return (deviations.max() / deviations.min()).item()


def retrieval(scorer: Scorer, world: Heldout) -> Tensor:
    """Return whether the caption nearest to each image mentions nothing that it does not show; (n,)."""
    found = (scorer.embed(world.images) @ scorer.embed_texts(world.texts).T).argmax(dim=1).tolist()
    pairs = zip(found, world.shown, strict=True)
    return torch.tensor([world.mentioned[j].items() <= shown.items() for j, shown in pairs])


def zero_shot(scorer: Scorer, features: Tensor) -> np.ndarray:
    """Return the domain whose bare prompts are nearest to each image; (n,) names."""
    rng = np.random.default_rng(0)
    prompts = [[toyworld.captions.bare_prompt(name, rng) for _ in range(20)] for name in toyworld.DOMAINS]
    means = torch.stack([scorer.embed_texts(each).mean(dim=0) for each in prompts])
    return np.array(toyworld.DOMAINS)[(features @ functional.normalize(means).T).argmax(dim=1)]
