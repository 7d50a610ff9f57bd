"""A classifier for a domain without labels: trained on translated images, tested on real ones of the target.

`Study` compares sets of training images: the source's, their translations, both, plain edges of the source,
and labelled target images. The result is the share of the gap from the first to the last that is closed.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as structural_similarity

from dasd_utils import data, evaluation, figures, metrics
from dasd_utils.config import Config, DasdError, DomainConfig, resolve
from dasd_utils.evaluation import ResultRow
from dasd_utils.metrics import Estimate
from dasd_utils.papers.diffusionclip import translation
from dasd_utils.runtime import checkpoints, files, images, small_cnn

SOURCE, TRANSLATED, BOTH = "source images", "translated", "source + translated"
EDGES, REAL = "edges of the source", "labelled target images"
BACK = "brought back unchanged"  # inverted and denoised by the base
ORDER = (SOURCE, BACK, TRANSLATED, BOTH, EDGES, REAL)
MIN_TEST_IMAGES = 10  # of the target
STRONGEST = 98  # percentile of the gradient that is drawn black
DRAWS = 1000  # of test images, for intervals
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Images as the small classifier takes them, and the label of each."""

    pixels: Tensor  # (n, 3, 32, 32)
    labels: list[str]

    @classmethod
    def of(cls, images: Sequence[Image.Image], labels: Sequence[str]) -> Self:
        """Return images with their labels."""
        return cls(small_cnn.pixels(images), list(labels))

    def __add__(self, other: Self) -> Self:
        """Return both together."""
        return Labelled(torch.cat([self.pixels, other.pixels]), self.labels + other.labels)


def edges(picture: Image.Image) -> Image.Image:
    """Return the outlines of a picture, black on white: the baseline of a translation to drawings."""
    grey = ndimage.gaussian_filter(np.asarray(picture.convert("L"), np.float32), 0.7)
    strength = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    most = np.percentile(strength, STRONGEST)
    ink = np.clip(strength / most, 0, 1) if most > 0 else np.zeros_like(strength)
    return Image.fromarray((255 * (1 - ink)).astype(np.uint8)).convert("RGB")


def correct_by_epoch(
    train: Mapping[str, Labelled], test: Mapping[str, Labelled], seed: int, epochs: int = small_cnn.EPOCHS
) -> dict[tuple[str, str], Tensor]:
    """Return (trained on, tested on) -> (E, n): 1 for each image that is classified right after an epoch."""
    correct: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in itertools.product(train, test)}
    for name, own in train.items():

        def watch(_epoch: int, classifier: small_cnn.SmallCNN, name: str = name) -> None:
            for place, tested in test.items():
                found = zip(classifier.classify(tested.pixels), tested.labels, strict=True)
                correct[name, place].append(torch.tensor([float(a == b) for a, b in found]))

        small_cnn.train(own.pixels, own.labels, seed, epochs, watch)
    return {pair: torch.stack(epochs) for pair, epochs in correct.items()}


def estimate(right: Tensor, share: bool = True) -> Estimate:
    """Return the mean of (S, n), S seeds and n images, with its draws over images."""
    count = right.shape[1]
    return metrics.mean_estimate(right.double(), metrics.bootstrap_counts(count, DRAWS, seed=0), count, share)


def share_of_the_gap(own: Tensor, low: Tensor, high: Tensor) -> tuple[float, float, float]:
    """Return how much of the gap from `low` to `high` is closed, with its 95 % interval; (S, n) each, 1 or 0.

    0: no better than the source; 1: as good as labelled target images. The ratio of mean differences; its
    variance is that over seeds, each left out once, plus that over draws of images. All nan where `high` is
    not above `low` beyond its interval: there is no gap.
    """
    counted = [estimate(each) for each in (own, low, high)]
    if not counted[2].minus(counted[1]).interval()[1] > 0:
        return math.nan, math.nan, math.nan

    def share(values: Sequence[Tensor]) -> Tensor:
        return (values[0] - values[1]).mean(dim=-1) / (values[2] - values[1]).mean(dim=-1)

    seeds, images = own.shape
    value, of_seeds = metrics.jackknife_variance(
        lambda rows: share([each.values[rows] for each in counted]).item(), seeds
    )
    of_images = share([each.draws for each in counted]).var().item() * images / (images - 1)
    half = metrics.half_width(((of_images, images - 1), (of_seeds, seeds - 1)))
    return value, value - half, value + half


class Study:
    """One config of diffusionclip, whose domain is translated, and the real images of the target.

    The config's `num_images` teach the translation; this one's are translated and labelled. Classifiers are
    trained where both domains have the `label_column`.
    """

    def __init__(
        self, config: Config, target: str, num_images: int | None = None, epochs: int = small_cnn.EPOCHS
    ) -> None:
        self.config, self.epochs = config, epochs
        name = Path(target).name.rpartition(":")[2]
        count = num_images or config.domains[0].num_images
        self.source = dataclasses.replace(config.domains[0], num_images=count)
        self.target: DomainConfig = dataclasses.replace(self.source, name=name, data=target, revision=None)
        if self.source.name == name:
            raise DasdError(f"The target is named {name}, as the domain that is translated: rename one.")

    @functools.cached_property
    def scorer(self) -> evaluation.Scorer:
        """The CLIP that scores: the one that also taught, so that CMMD flatters translations."""
        return evaluation.load_scorer(self.config)

    @functools.cached_property
    def images(self) -> dict[tuple[str, str], data.DomainData]:
        """(domain, split) -> images; test splits have at most `num_heldout`."""
        counts = {"train": self.source.num_images, "test": self.config.evaluation.num_heldout}
        found = {}
        for domain, (split, count) in itertools.product((self.source, self.target), counts.items()):
            loaded = data.load_domain(domain, self.config, split)
            found[domain.name, split] = translation.first_images(loaded, count)
        return found

    def check(self) -> None:
        """Raise DasdError for what cannot be classified or translated, before anything is trained."""
        translation.run_config(self.config, 0)
        if (count := len(self.images[self.target.name, "test"])) < MIN_TEST_IMAGES:
            raise DasdError(f"The test split of {self.target.name} has {count} images; scores need "
                            f"{MIN_TEST_IMAGES}.")  # fmt: skip
        if self.source.label_column is None:
            return
        labels = {" ".join(key): sorted(set(members.labels)) for key, members in self.images.items()}
        first, *others = labels.values()
        if len(first) < 2 or any(other != first for other in others):
            raise DasdError(f"The labels must be the same everywhere, two or more; there are {labels}.")

    @functools.cached_property
    def reference(self) -> evaluation.Reference:
        """The held-out images of the target, with which translations are compared."""
        count = self.config.evaluation.num_heldout
        return evaluation.load_reference(self.target, self.config, self.scorer, count)

    def path(self, seed: int) -> Path:
        """Return the file of a seed's measurements, named by all that decides them but the run."""
        named = [(*key, each.ids, each.labels) for key, each in self.images.items()]
        named += [self.config.model.clip, self.config.model.clip_revision, self.epochs]
        run = resolve(translation.run_config(self.config, seed).output_dir)
        return run / f"answers-{files.short_hash(named)}.safetensors"


def run_study(study: Study, seeds: Sequence[int]) -> list[int]:
    """Train, translate, classify and measure what is missing; return the seeds that other processes do."""
    study.check()
    while left := [seed for seed in seeds if not study.path(seed).is_file()]:
        done = 0
        for seed in files.bar(left, "seeds", unit="seed"):
            with checkpoints.lock_run(translation.run_config(study.config, seed), required=False) as mine:
                done += mine
                if mine and not study.path(seed).is_file():
                    log.info("Seed %d", seed)
                    found = {name: value.contiguous() for name, value in measure_seed(study, seed).items()}
                    with files.atomic_write(study.path(seed), "The answers") as temporary:
                        save_file(found, temporary)
        if not done:
            break
    return left


def measure_seed(study: Study, seed: int) -> dict[str, Tensor]:
    """Return how a seed's translations score, and what classifiers of each set get right, by name."""
    config, source, target = study.config, study.source.name, study.target.name
    own = study.images[source, "test"]
    splits = ("train", "test")
    new = {split: translation.pictures(config, seed, study.images[source, split]) for split in splits}
    pipeline = translation.trained(config, seed)
    shown = {
        SOURCE: own.images,
        BACK: translation.denoised(pipeline, config, translation.inverted(pipeline, config, own), 0),
        TRANSLATED: new["test"],
        EDGES: [edges(picture) for picture in own.images],
        REAL: study.images[target, "train"].images[: len(own)],
    }
    found = {}
    for method, pictures in shown.items():
        scores = likeness(study, pictures, paired=method != REAL)
        found |= {f"{method}|{metric}": value for metric, value in scores.items()}
    if study.source.label_column:
        answers = classified(study, seed, new)
        found |= {f"{method}|right|{place}": right for (method, place), right in answers.items()}
    return found


def likeness(study: Study, pictures: Sequence[Image.Image], paired: bool) -> dict[str, Tensor]:
    """Return the CLIP features of pictures and, where each has a twin in the target, the distance from it."""
    found = {"features": study.scorer.embed(pictures)}
    own, other = (study.images[name, "test"] for name in (study.source.name, study.target.name))
    both = zip(own.attributes or (), other.attributes or (), strict=False)
    if not (paired and own.attributes and other.attributes and all(b.items() <= a.items() for a, b in both)):
        return found
    found |= {f"twin_{name}": value for name, value in difference(pictures, list(other.images)).items()}
    if mentioned := study.reference.prompts.mentioned:
        found["attribute_accuracy"] = study.scorer.attributes_shown(pictures, study.target.name, mentioned)
    return found


def difference(pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> dict[str, Tensor]:
    """Return mean absolute difference (of 1) and structural similarity of pairs, (n,) each."""
    a, b = ((images.to_pixels([p.convert("RGB") for p in each]) + 1) / 2 for each in (pictures, others))
    similar = structural_similarity(a, b, data_range=1.0, reduction="none")
    return {"mae": (a - b).abs().mean(dim=(1, 2, 3)), "ssim": similar}


def classified(
    study: Study, seed: int, new: dict[str, Sequence[Image.Image]]
) -> dict[tuple[str, str], Tensor]:
    """Return which test images each set's classifiers get right, (E, n); new: the translated splits."""
    source, target = study.source.name, study.target.name
    sets = {key: Labelled.of(list(each.images), each.labels) for key, each in study.images.items()}
    own, translated = sets[source, "train"], Labelled.of(new["train"], sets[source, "train"].labels)
    edged = Labelled.of([edges(picture) for picture in study.images[source, "train"].images], own.labels)
    train = {SOURCE: own, TRANSLATED: translated, BOTH: own + translated, EDGES: edged}
    train[REAL] = sets[target, "train"]
    test = {target: sets[target, "test"], source: sets[source, "test"]}
    test[TRANSLATED] = Labelled.of(new["test"], test[source].labels)  # do translations still show the label?
    return correct_by_epoch(train, test, seed, study.epochs)


def table(study: Study, seeds: Sequence[int]) -> list[ResultRow]:
    """Return the rows of seeds that are done: method, metric, domain, value, low, high, n and seeds.

    "accuracy" by trained on (method), tested on (domain) and epoch; "constant_answer", the best that one
    answer to all images reaches; "share_of_gap" of the last epoch; the scores of each set's images.
    """
    by_seed = [checkpoints.read_tensors(study.path(seed)) for seed in seeds]
    rows = _scores(study, by_seed)
    rows += _accuracies(study, by_seed) if study.source.label_column else []
    return [row | {"seeds": list(seeds)} for row in rows]


def _scores(study: Study, by_seed: Sequence[dict[str, Tensor]]) -> list[ResultRow]:
    rows = []
    for method in (name for name in ORDER if f"{name}|features" in by_seed[0]):
        start = f"{method}|"
        own = [{k.removeprefix(start): v for k, v in each.items() if k.startswith(start)} for each in by_seed]
        reference = dataclasses.replace(study.reference, paired="twin_mae" in own[0])  # twins share a scene
        found = evaluation.estimates(own, reference, study.config.evaluation.num_bootstrap)
        for metric in ("twin_mae", "twin_ssim"):
            if metric in own[0]:
                found[metric] = estimate(torch.stack([each[metric] for each in own]), share=False)
        wanted = ("cmmd", "attribute_accuracy", "twin_mae", "twin_ssim")
        chosen = {method: {metric: found[metric] for metric in wanted if metric in found}}
        count = {"n": len(own[0]["features"])}  # images of each seed
        rows += [row | count for row in evaluation.result_rows(chosen, {"domain": study.target.name})]
    return rows


def _accuracies(study: Study, by_seed: Sequence[dict[str, Tensor]]) -> list[ResultRow]:
    target = study.target.name
    rows, last = [], {}
    tested = (target, study.source.name, TRANSLATED)
    for method, place in itertools.product((SOURCE, TRANSLATED, BOTH, EDGES, REAL), tested):
        right = torch.stack([each[f"{method}|right|{place}"] for each in by_seed])  # (S, E, n)
        last[method, place] = right[:, -1]
        for epoch in range(right.shape[1]):
            row = {"method": method, "domain": place, "metric": "accuracy", "epoch": epoch + 1}
            found = evaluation.with_interval(estimate(right[:, epoch]))
            rows.append(row | found | {"n": right.shape[2]})
    labels = study.images[target, "test"].labels
    answer = max(sorted(set(labels)), key=labels.count)
    constant = estimate(torch.tensor([[float(label == answer) for label in labels]]))
    row = {"method": f"always {answer!r}", "domain": target, "metric": "constant_answer"}
    rows.append(row | evaluation.with_interval(constant) | {"n": len(labels)})
    for method in (TRANSLATED, BOTH, EDGES) if len(by_seed) >= 3 else ():
        ends = [last[each, target] for each in (method, SOURCE, REAL)]
        value, low, high = share_of_the_gap(*ends)
        if math.isfinite(value):  # else labelled target images teach no more than the source's
            row = {"method": method, "domain": target, "metric": "share_of_gap"}
            rows.append(row | {"value": value, "low": low, "high": high, "n": ends[0].shape[1]})
    return rows


def summary(rows: Sequence[ResultRow]) -> str:
    """Return a Markdown table: trained on, accuracy at the end in each domain, share of the gap."""
    curves = [row for row in rows if row["metric"] == "accuracy" and row["domain"] != TRANSLATED]
    places, methods = (list(dict.fromkeys(row[name] for row in curves)) for name in ("domain", "method"))
    last = max(row["epoch"] for row in curves)
    found = {(r["method"], r["metric"], r["domain"]): r for r in rows if r.get("epoch", last) == last}
    keys = [*(("accuracy", place) for place in places), ("share_of_gap", places[0])]  # the target
    cells = [[found.get((method, *key)) for key in keys] for method in methods]
    lines = [[name, *(evaluation.interval_text(row, 2) if row else "" for row in line)]
             for name, line in zip(methods, cells, strict=True)]  # fmt: skip
    head = ["trained on", *(f"right on {place}" for place in places), "share of the gap"]
    return f"{evaluation.markdown_table(head, lines)}\n\n{figures.seeds_note(rows)}".strip()
