"""What the samples of a method are worth: every score per image, and estimates over training seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dasd_utils import data, evaluation, manifold, metrics, probe, uncertainty
from dasd_utils.config import Config, DasdError, DomainConfig
from dasd_utils.uncertainty import Estimate

Scores = dict[str, Tensor]
OF_IMAGES = ("clip_score", "clip_floor", "attribute_accuracy", "domain_accuracy", "precision", "density",
             "copy_rank")  # fmt: skip
OF_REAL = ("recall", "coverage", "synthetic_to_real")
DOMAIN_SHARE = 300  # training images a domain that teach the classifier of domains


@dataclass(frozen=True)
class Asked:
    """What samples answer: captions without token, and what they tell."""

    prompts: list[str]
    texts: Tensor  # (P, d) CLIP features
    told: list[dict[str, str]] | None = None  # attributes that each prompt tells
    labels: list[str] | None = None  # of the captioned images

    def prompt_of(self, count: int) -> Tensor:
        """Return which prompt each of `count` samples answers, (count,): they take turns."""
        return torch.arange(count) % len(self.prompts)


@dataclass(frozen=True)
class Reference:
    """What the samples of one domain are judged by: prompts, and real images that no training saw."""

    domain: str
    asked: Asked  # the captions of the held-out images
    heldout: Tensor  # (P, d) CLIP features of these images
    train: Tensor  # (k, d) CLIP features of the training images
    pixels: Tensor  # (P, 3, 32, 32) held-out images for the probe
    inception: Tensor | None = None  # (P, 2048) held-out images, where the judge has an Inception


def asked(images: data.DomainData, judge: evaluation.Judge, count: int) -> Asked:
    """Return the first caption of each of the first `count` images, with its attributes and label."""
    rows = range(min(count, len(images)))
    prompts = [images.captions[i][0] for i in rows]
    told = [images.told[i][0] for i in rows] if images.told and judge.reader else None
    evaluation.check_told(judge, images.config.name, told)
    labels = [images.labels[i] for i in rows] if images.labels and len(set(images.labels)) > 1 else None
    return Asked(prompts, metrics.embed_texts(judge.clip, judge.tokenizer, prompts), told, labels)


def reference(
    domain: DomainConfig, config: Config, judge: evaluation.Judge, count: int, split: str = "test"
) -> Reference:
    """Return the reference of a domain: at most `count` images of the split, and the training images.

    Raises DasdError where the split has fewer than 10 images.
    """
    sizes = {"num_heldout": count, "validation_images": count}  # what the toy world draws
    heldout, train = (
        data.load_domain(domain, config.replace(**sizes), split),
        data.load_domain(domain, config),
    )
    pictures = [heldout.images[i] for i in range(min(count, len(heldout)))]
    if len(pictures) < 10:
        raise DasdError(
            f"The {split} split of domain {domain.name} has {len(pictures)} images; scores need 10 or more."
        )
    return Reference(
        domain.name,
        asked(heldout, judge, count),
        judge.embed(pictures),
        judge.embed(list(train.images)),
        probe.pixels(pictures),
        judge.embed_inception(pictures) if judge.inception else None,
    )


def domain_probe(config: Config) -> probe.Probe:
    """Return a classifier of source and target domains, trained on their training images."""
    pictures, names = [], []
    for domain in (config.source, *config.domains):
        train = data.load_domain(domain, config)
        count = min(DOMAIN_SHARE, len(train))
        pictures.append(probe.pixels([train.images[i] for i in range(count)]))
        names += [domain.name] * count
    return probe.fit(torch.cat(pictures), names)


def score(
    images: Sequence[Image.Image],
    wanted: Reference,
    judge: evaluation.Judge,
    domains: probe.Probe,
    seed: int = 0,
    own: Asked | None = None,
) -> Scores:
    """Return every score of a method's images, one number an image (or a held-out image), and their features.

    images[i] answers prompt i % P; `own` are the captions of real images in the place of samples. Seed: of
    the classifier that is trained on them.
    """
    asked = own or wanted.asked
    features, prompt_of = judge.embed(images), asked.prompt_of(len(images))
    texts, distinct = asked.texts[prompt_of], sorted(set(asked.prompts))
    groups = torch.tensor([distinct.index(asked.prompts[i]) for i in prompt_of])
    small = probe.pixels(images)
    found = manifold.manifold(features, wanted.heldout)
    scores = {
        "features": features,
        "clip_score": metrics.clip_scores(features, texts),
        "domain_accuracy": torch.tensor([float(n == wanted.domain) for n in domains.classify(small)]),
        "copy_rank": manifold.copy_rank(features, wanted.train, wanted.heldout),
        **found._asdict(),
    }
    if len(distinct) > 1:  # one caption for all images leaves no wrong one
        scores["clip_floor"] = metrics.shuffled_scores(features, texts, groups)
    if asked.told and judge.reader:
        told = [asked.told[i] for i in prompt_of]
        scores["attribute_accuracy"] = metrics.attribute_accuracy(
            judge.reader.read(images, wanted.domain), told
        )
    if judge.inception:
        scores["inception"] = judge.embed_inception(images)
    if asked.labels and wanted.asked.labels:
        labels, real = [asked.labels[i] for i in prompt_of], wanted.asked.labels
        scores["synthetic_to_real"] = probe.transfer(small, labels, wanted.pixels, real, seed)
    return {name: value.float().contiguous() for name, value in scores.items()}


def estimates(by_seed: Sequence[Scores], wanted: Reference, num_bootstrap: int = 1000) -> dict[str, Estimate]:
    """Return each metric's estimate over training seeds; prompts and held-out images are drawn again.

    The draws are the same for every method of a domain, so that estimates can be subtracted.
    """
    images, real = len(by_seed[0]["features"]), len(wanted.heldout)
    prompt_of = wanted.asked.prompt_of(images)
    units = min(images, real)
    drawn = uncertainty.draws(units, num_bootstrap, seed=0)[:, prompt_of]
    drawn_real = uncertainty.draws(real, num_bootstrap, seed=1)
    found = {}
    for names, weights in ((OF_IMAGES, drawn), (OF_REAL, drawn_real)):
        for name in names:
            if name in by_seed[0]:
                table = torch.stack([scores[name].double() for scores in by_seed])  # (S, n)
                found[name] = Estimate(table.mean(dim=1), _weighted_mean(table, weights), units)
    found |= _of_sets(by_seed, wanted, prompt_of, (drawn, drawn_real), units)
    return found


def _weighted_mean(table: Tensor, weights: Tensor) -> Tensor:
    """(S, n) and (B, n) -> (B, S)."""
    return (weights @ table.T) / weights.sum(dim=1, keepdim=True)


def _of_sets(
    by_seed: Sequence[Scores],
    wanted: Reference,
    prompt_of: Tensor,
    drawn: tuple[Tensor, Tensor],
    units: int,
) -> dict[str, Estimate]:
    """Estimates of what no single image has: distances of distributions, and diversity."""
    pairs = {name: ([], []) for name in ("cmmd", "kid", "intra_cluster")}
    once = tuple(torch.ones(1, weights.shape[1], dtype=torch.float64) for weights in drawn)
    groups = (prompt_of, torch.arange(len(wanted.heldout)))
    for scores in by_seed:
        features = scores["features"]
        for name, kernel in (("cmmd", metrics.cmmd_kernel), ("kid", metrics.kid_kernel)):
            terms = metrics.kernel_terms(features, wanted.heldout, kernel)
            pairs[name][0].append(metrics.weighted_mmd(terms, groups, once))
            pairs[name][1].append(metrics.weighted_mmd(terms, groups, drawn))
        for place, weights in enumerate((once, drawn)):
            inside = manifold.intra_cluster_distance(features, wanted.train, weights=weights[0])
            pairs["intra_cluster"][place].append(inside)
            if wanted.inception is not None and "inception" in scores:
                value = manifold.frechet(scores["inception"], wanted.inception, *weights)
                pairs.setdefault("fid", ([], []))[place].append(value)
    found = {}
    for name, (values, resampled) in pairs.items():
        estimate = Estimate(torch.cat(values), torch.stack(resampled, dim=1), units)
        if estimate.values.isfinite().all():
            found[name] = Estimate(estimate.values, estimate.draws.nan_to_num(estimate.values.mean()), units)
    return found


def rows(
    named: Mapping[str, dict[str, Estimate]], start: Mapping[str, object], against: str | None = None
) -> list[dict]:
    """Return a row per method and metric, and per method the paired difference to `against`.

    named: method -> metric -> estimate. A difference whose interval holds 0 is not `separable`.
    """
    found = []
    for method, table in named.items():
        for metric, estimate in table.items():
            value, low, high = estimate.interval()
            found.append(
                {"method": method, **start, "metric": metric, "value": value, "low": low, "high": high}
            )
    base = named.get(against or "", {})
    for method, table in named.items():
        for metric in table if method != against else ():
            if metric in base and len(base[metric].values) == len(table[metric].values):
                value, low, high = table[metric].minus(base[metric]).interval()
                row = {"method": method, "against": against, **start, "metric": metric, "value": value}
                found.append(row | {"low": low, "high": high, "separable": low > 0 or high < 0})
    return found
