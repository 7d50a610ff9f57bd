"""What the bottleneck of the UNet knows of a picture: a linear classifier on its features (h-space).

The base is asked what it makes of a noised picture, and the features of its mid block, averaged over space
and over draws of noise, are read by a straight line (arXiv 2210.10960 found them to be linear in meaning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dasd_utils import losses, models
from dasd_utils.papers import editing
from dasd_utils.papers.diffusionclip import adaptation
from dasd_utils.papers.diffusionclip.adaptation import Labelled
from dasd_utils.runtime import images, precision
from dasd_utils.sampling import DasdPipeline

DECAY = 1e-2  # of the weights of a linear classifier, whose features have deviation 1


@torch.no_grad()
def features(
    pipeline: DasdPipeline, pictures: Sequence[Image.Image], timestep: int, draws: int = 4, seed: int = 0
) -> Tensor:
    """Return the base's features (n, C) of pictures noised to a timestep, the mean over draws of noise."""
    parts, found = pipeline.parts, []
    squares = [images.center_crop(picture, pipeline.config.model.resolution) for picture in pictures]
    generator = torch.Generator().manual_seed(seed)
    computing = precision.autocast(pipeline.config.training.mixed_precision, parts.unet.device)
    with models.lora_disabled(parts), computing:
        empty = models.encode_prompts(parts, [""]).to(parts.unet.dtype)
        for start in range(0, len(squares), pipeline.batch_size):
            clean = editing.encode(parts, squares[start : start + pipeline.batch_size])
            times, rows = torch.full((len(clean),), timestep), []
            for _ in range(draws):
                noise = torch.randn(clean.shape, generator=generator).to(clean)
                noisy = parts.noise_scheduler.add_noise(clean, noise, times.to(clean.device))
                text = empty.expand(len(clean), -1, -1)
                _, mid = models.unet_pass(parts.unet, noisy.to(text), times.to(clean.device), text)
                rows.append(losses.pool_features(mid.float(), "mean"))
            found.append(torch.stack(rows).mean(dim=0))
    return torch.cat(found).cpu()


@dataclass(frozen=True)
class Linear:
    """A linear classifier of features, each shifted and scaled as those it was trained on."""

    names: list[str]
    mean: Tensor  # (C,)
    deviation: Tensor  # (C,)
    weights: Tensor  # (C + 1, classes), the last row is the bias

    def scores(self, x: Tensor, mean: Tensor | None = None) -> Tensor:
        """Return logits (n, classes). mean: (C,) of x's own domain, which takes a shift of all of it away."""
        normal = (x - (self.mean if mean is None else mean)) / self.deviation
        return _with_one(normal) @ self.weights

    def classify(self, x: Tensor, mean: Tensor | None = None) -> list[str]:
        """Return the likeliest class of each row."""
        return [self.names[i] for i in self.scores(x, mean).argmax(dim=1).tolist()]


def fit(x: Tensor, labels: Sequence[str]) -> Linear:
    """Return the logistic regression of labels on features (n, C); ValueError for fewer than two classes."""
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"A classifier needs two classes, not {len(names)}.")
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    rows, target = _with_one((x - mean) / deviation), torch.tensor([names.index(label) for label in labels])
    weights = torch.zeros(rows.shape[1], len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(rows @ weights, target) + DECAY * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return Linear(names, mean, deviation, weights.detach())


@dataclass(frozen=True)
class Known:
    """Features and labels of one domain, to fit on and to test on."""

    train: Tensor  # (n, C)
    train_labels: list[str]
    test: Tensor  # (m, C)
    test_labels: list[str]


def transfer(source: Known, target: Known) -> dict[str, Tensor]:
    """Return which test rows are classified right, 1 or 0, by whose labels were learned and where.

    "centred": the mean of the target's training features, which need no labels, in the place of the source's.
    """
    line, ceiling = fit(source.train, source.train_labels), fit(target.train, target.train_labels)
    said = {
        "source, on source": (line.classify(source.test), source.test_labels),
        "source, on target": (line.classify(target.test), target.test_labels),
        "source, on target, centred": (
            line.classify(target.test, target.train.mean(dim=0)),
            target.test_labels,
        ),
        "ceiling, on target": (ceiling.classify(target.test), target.test_labels),
    }
    return {
        name: torch.tensor([float(a == b) for a, b in zip(own, labels, strict=True)])
        for name, (own, labels) in said.items()
    }


def label_shares(
    said: Sequence[str], told: Sequence[str], labels: Sequence[str], names: Sequence[str]
) -> Tensor:
    """Return the shares (classes,) of labels in a set without labels, of what a classifier says of it.

    told: what it says of held-out labelled images, whose labels are known; its errors there are taken off
    (arXiv 1802.03916): the shares p solve C p = q, C being how often each class is said of each label, q how
    often each is said here. Those below 0 count as 0. Raises ValueError for a class without an example.
    """
    own, other = np.asarray(told), np.asarray(labels)
    if missing := set(names) - set(labels):
        raise ValueError(f"No held-out image is labelled {', '.join(sorted(missing))}.")
    confusion = np.array([[(own[other == label] == name).mean() for label in names] for name in names])
    here = np.array([(np.asarray(said) == name).mean() for name in names])
    shares = np.clip(np.linalg.lstsq(confusion, here, rcond=None)[0], 0, None)
    return torch.from_numpy(shares / shares.sum())


def resample(labels: Sequence[str], names: Sequence[str], shares: Tensor, seed: int = 0) -> list[int]:
    """Return rows, as many as there are labels, drawn with replacement, so that classes have these shares.

    Each class is drawn once at least: a classifier needs to have seen it.
    """
    random, own = np.random.default_rng(seed), np.asarray(labels)
    wanted = shares.double().numpy()
    drawn = random.choice(len(names), len(own), p=wanted / wanted.sum())
    counts = np.maximum(np.bincount(drawn, minlength=len(names)), 1)
    counts[counts.argmax()] -= counts.sum() - len(own)
    rows = [
        random.choice(np.flatnonzero(own == name), count) for name, count in zip(names, counts, strict=True)
    ]
    return [int(row) for row in np.concatenate(rows)]


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


# A label that is rare in the source and common in a target without labels: does drawing anew help?


AS_IT_IS, ESTIMATED, TRUE = "as it is", "balanced by the bottleneck", "balanced by true labels"
SHARE = "estimated share"


def label_shift_trial(
    source: Known,
    target: Known,
    teach: Labelled,
    real: Labelled,
    shares: Mapping[str, Sequence[float]],
    seed: int,
) -> dict[str, float]:
    """Return how often classifiers are right on the target, by how their training set was drawn.

    teach: what `source.train` became, picture by picture; real: the pictures of `target.test`. shares: of the
    classes in alphabetical order, "source" for training and "target" for the test, where the drawing does not
    know them: a line through features of the source says them. Also what it says of the last class.
    """
    names = sorted(set(source.train_labels))
    wanted = {where: torch.tensor(values) for where, values in shares.items()}
    mine = resample(source.train_labels, names, wanted["source"], seed)
    asked = resample(target.test_labels, names, wanted["target"], 100 + seed)
    small, where = _of(teach, mine), _of(real, asked)
    line = fit(source.train[mine], small.labels)
    told, here = line.classify(source.test), line.classify(target.test[asked])
    found = label_shares(here, told, source.test_labels, names)
    train = {
        AS_IT_IS: small,
        ESTIMATED: _of(small, resample(small.labels, names, found, seed)),
        TRUE: _of(small, resample(small.labels, names, wanted["target"], seed)),
    }
    right = adaptation.answers(train, {"target": where}, seed)
    return {name: right[name, "target"][-1].mean().item() for name in train} | {SHARE: found[-1].item()}


def label_shift_estimates(trials: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
    """Return (S,) of each number of S trials."""
    return {name: torch.tensor([each[name] for each in trials]) for name in trials[0]}


def _of(images: Labelled, rows: Sequence[int]) -> Labelled:
    return Labelled(images.pixels[rows], [images.labels[row] for row in rows])
