"""The protocol: images of a method in, rows of scores with 95 % intervals out. It never samples images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dasd_utils import data, figures, metrics
from dasd_utils.config import Calibration, Config, DasdError, DomainConfig, resolve
from dasd_utils.metrics import Estimate
from dasd_utils.runtime import bars, checkpoints, files, pretrained, processes, tracking
from dasd_utils.runtime.images import to_pixels
from dasd_utils.sampling import DasdPipeline
from dasd_utils.toyworld.attribute_classifier import AttributeClassifier

Row = dict[str, Any]
METRICS = {  # name in a row -> (title, decimals)
    "clip_score": ("CLIP score ↑", 3),
    "clip_floor": ("CLIP score of shuffled captions", 3),
    "attribute_accuracy": ("attributes shown, of those asked for ↑", 2),
    "cmmd": ("CMMD ↓", 2),
    "kid": ("KID on CLIP features ↓", 3),
    "fid": ("FID ↓", 1),
}
LADDER = METRICS | {  # and those of the ladder alone
    "domain_accuracy": ("taken for its domain ↑", 2),
    "precision": ("precision ↑", 2),
    "recall": ("recall ↑", 2),
    "density": ("density ↑", 2),
    "coverage": ("coverage ↑", 2),
    "intra_cluster": ("distance inside clusters ↑", 3),
    "copy_rank": ("nearness to training images, 0.5 as new ones", 2),
    "synthetic_to_real": ("trained on samples, right on real images ↑", 2),
}


@dataclass(frozen=True)
class Scorer:
    """The CLIP that scores, a copy of its own in which nothing is trained, and the toy world's reader."""

    clip: transformers.CLIPModel
    tokenizer: transformers.CLIPTokenizer
    processor: Any  # its CLIPImageProcessor
    reader: AttributeClassifier | None = None  # beside a base of the toy world only
    inception: Any = None  # where the config names its file

    def embed(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit-norm features (n, d) of images."""
        return metrics.embed_images(self.clip, self.processor, images)

    @torch.no_grad()
    def embed_inception(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return Inception-v3 features (n, 2048) of images, which the file itself brings to its size."""
        found = []
        for image in bars.short_bar(images, "Inception features", unit="image"):  # of any size
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
            found.append(self.inception(pixels.to(self.clip.device), return_features=True).float().cpu())
        return torch.cat(found)


def load_scorer(config: Config, device: str | None = None) -> Scorer:
    """Return the CLIP of `config.model.clip`, frozen; on the GPU if there is one and no device is named.

    Raises DasdError if it is missing or unreachable.
    """
    source = pretrained.find_weights(config.model.clip, config.model.clip_revision)
    kinds = transformers.CLIPModel, transformers.CLIPTokenizer, pretrained.CLIP_PROCESSOR
    clip, tokenizer, processor = (source.load(kind) for kind in kinds)
    if clip.config.text_config.vocab_size != len(tokenizer):  # absent tokenizer files raise no error
        raise DasdError(
            f"The CLIP for evaluation, {config.model.clip!r}, does not fit together: its tokenizer has "
            f"{len(tokenizer)} tokens, its text tower {clip.config.text_config.vocab_size}."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    reader = AttributeClassifier.load(resolve(config.model.base) / "reader")
    inception = _load_inception(config.evaluation.inception, device)
    return Scorer(clip.to(device).eval().requires_grad_(False), tokenizer, processor, reader, inception)


def _load_inception(path: str | None, device: str) -> Any:
    """The TorchScript Inception-v3 of the FID papers, which takes bytes (n, 3, h, w) and gives features."""
    if path is None:
        return None
    try:
        return torch.jit.load(str(resolve(path)), map_location=device).eval()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DasdError(f"inception names {path}, which is no TorchScript file: {reason}. Name another, or "
                        "leave it out: there is no FID then.") from None  # fmt: skip


def load_prompts(config: Config, domain: str) -> list[str]:
    """Return the evaluation prompts of a domain, without its token.

    `<prompts_dir>/<domain>.json` holds {"domain": ..., "prompts": [...]}; a prompt is a string, or an object
    with "text". Raises DasdError if the file is missing or holds fewer than two different prompts.
    """
    path, entries = _prompt_entries(config, domain)
    prompts = [entry.get("text") if isinstance(entry, dict) else entry for entry in entries]
    if not all(isinstance(p, str) and p.strip() for p in prompts) or len(set(prompts)) < 2:
        raise DasdError(
            f'{path} must hold {{"domain": "{domain}", "prompts": [...]}} with at least two different '
            f'prompts, each a string or an object with "text".'
        )
    return prompts


def load_mentioned(config: Config, domain: str) -> list[dict[str, str]] | None:
    """Return the "attributes" that each evaluation prompt tells, None unless every prompt has some.

    Raises DasdError where they are no object of texts.
    """
    path, entries = _prompt_entries(config, domain)
    mentioned = [entry.get("attributes") if isinstance(entry, dict) else None for entry in entries]
    if not mentioned or not all(mentioned):
        return None
    for values in mentioned:
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            raise DasdError(f'{path}: "attributes" must be an object of texts, not {values!r}.')
    return mentioned


def check_mentioned(scorer: Scorer, domain: str, mentioned: Sequence[dict[str, str]] | None) -> None:
    """Raise DasdError for an attribute or value that the scorer's reader, if it has one, does not know."""
    known = scorer.reader.table.values.get(domain, {}) if scorer.reader else {}
    for values in mentioned if mentioned and scorer.reader else ():
        for name, value in values.items():
            if value not in known.get(name, ()):
                raise DasdError(
                    f"The attribute reader knows no {name} = {value!r} of the domain {domain!r}: correct the "
                    f'"attributes" of its evaluation prompts, or leave them out of all.'
                )


def _prompt_entries(config: Config, domain: str) -> tuple[Path, list]:
    path = resolve(config.evaluation.prompts_dir) / f"{domain}.json"
    values = files.read_json(path, f"The evaluation prompts of domain {domain!r}")
    entries = values.get("prompts") if isinstance(values, dict) else None
    return path, entries if isinstance(entries, list) else []


def score_method(
    method: str,
    domain: str,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    heldout: Sequence[Image.Image] | torch.Tensor,
    scorer: Scorer,
    config: Config,
    mentioned: Sequence[dict[str, str]] | None = None,
) -> list[Row]:
    """Return one row per metric for the images that a method made in a domain.

    prompts[i] made images[i], given without token or style words so that all methods answer one question;
    images of one prompt count as one independent sample in the intervals. heldout: images of the domain that
    no training saw, or `scorer.embed` of them. mentioned[i]: the attributes that prompts[i] mentions, for a
    scorer that can read them. Seed and number of bootstrap draws come from config.
    Raises DasdError for too few images or prompts, before anything is computed.
    """
    _check_sizes(images, prompts, heldout)
    mentioned = mentioned if scorer.reader and mentioned and all(mentioned) else None
    check_mentioned(scorer, domain, mentioned)
    texts = sorted(set(prompts))
    groups = [texts.index(p) for p in prompts]
    image_features = scorer.embed(images)
    text_features = metrics.embed_texts(scorer.clip, scorer.tokenizer, texts)[groups]
    real = heldout if isinstance(heldout, torch.Tensor) else scorer.embed(heldout)
    draws = {"num_bootstrap": config.evaluation.num_bootstrap, "seed": config.seed, "groups": groups}
    per_image = {
        "clip_score": metrics.clip_scores(image_features, text_features),
        "clip_floor": metrics.shuffled_scores(image_features, text_features, groups, seed=config.seed),
    }
    if mentioned:
        per_image["attribute_accuracy"] = metrics.attribute_accuracy(
            scorer.reader.read(images, domain), mentioned
        )
    found = {
        name: (scores.double().mean().item(), *metrics.bootstrap_interval(scores, **draws))
        for name, scores in per_image.items()
    }
    pair = (image_features, real)
    found["cmmd"] = metrics.cmmd(*pair, groups), *metrics.cmmd_interval(*pair, **draws)
    found["kid"] = metrics.kid(*pair, groups), *metrics.kid_interval(*pair, **draws)
    start, end = {"method": method, "domain": domain}, {"n": len(images), "seed": config.seed}
    return [
        {**start, "metric": name, "value": value, "low": low, "high": high, **end}
        for name, (value, low, high) in found.items()
    ]


def _check_sizes(images: Sequence, prompts: Sequence[str], heldout: Sequence | torch.Tensor) -> None:
    if len(images) != len(prompts):
        raise DasdError(f"{len(images)} images came with {len(prompts)} prompts; each image needs its own.")
    if len(set(prompts)) < 2:
        raise DasdError("Scores with intervals need images of at least two different prompts.")
    if len(heldout) < 2:
        raise DasdError(f"CMMD and KID need at least two held-out images, not {len(heldout)}.")


def save_results(path: str | Path, config: Config | dict[str, Any], rows: Sequence[Row]) -> Path:
    """Write {"config": ..., "rows": [...]} as JSON, a row a line, whole or not at all, and return the path.

    Raises DasdError where the file cannot be written, ValueError for a value that is not finite.
    """
    path = Path(path)
    settings = config.to_dict() if isinstance(config, Config) else config
    options = {"allow_nan": False, "ensure_ascii": False}
    lines = ",\n".join("  " + json.dumps(row, **options) for row in rows)
    text = f'{{"config": {json.dumps(settings, indent=2, **options)},\n"rows": [\n{lines}\n]}}\n'
    with files.atomic_write(path, "The results") as temporary:
        temporary.write_text(text, encoding="utf8")
    return path


def load_results(path: str | Path) -> dict[str, Any]:
    """Return {"config": dict, "rows": list} that `save_results` wrote; DasdError if there is none."""
    values = files.read_json(Path(path), "The results file")
    if not isinstance(values, dict) or not {"config", "rows"} <= set(values):
        raise DasdError(f'{path} holds no results: it lacks "config" or "rows".')
    return values


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table: a line per domain, metric and seed, a column per method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    several_seeds = len({row["seed"] for row in rows}) > 1
    lines: dict[tuple, dict[str, str]] = {}
    for row in rows:
        title, _ = METRICS.get(row["metric"], (row["metric"], 3))
        seed = f" (seed {row['seed']})" if several_seeds else ""
        lines.setdefault((row["domain"], title + seed), {})[row["method"]] = _cell(row)
    head = ["| " + " | ".join(["domain", "metric", *methods]) + " |"]
    head.append("|---|---|" + "---|" * len(methods))
    body = [
        "| " + " | ".join([*key, *(cells.get(m, "") for m in methods)]) + " |" for key, cells in lines.items()
    ]
    return "\n".join(head + body)


def ladder_table(rows: Sequence[Row], metrics: Sequence[str] | None = None) -> str:
    """Return the rows of a ladder as Markdown tables, one a domain: a line per method, a column per metric.

    "value ± half of the 95 % interval"; ≈ follows where the paired difference to the method that the first
    difference is to cannot be mentioned from 0.
    """
    parts, main = [], next((row["against"] for row in rows if "against" in row), None)
    for domain in dict.fromkeys(row["domain"] for row in rows):
        own = [row for row in rows if row["domain"] == domain]
        scored = [row for row in own if "against" not in row]
        alike = {
            (r["method"], r["metric"]) for r in own if r.get("separable") is False and r["against"] == main
        }
        columns = [m for m in metrics or LADDER if any(row["metric"] == m for row in scored)]
        head = "| " + " | ".join([domain, *(LADDER[m][0] for m in columns)]) + " |"
        lines = [head, "|---" * (len(columns) + 1) + "|"]
        for method in dict.fromkeys(row["method"] for row in scored):
            found = {row["metric"]: row for row in scored if row["method"] == method}
            cells = [_ladder_cell(found.get(m), (method, m) in alike) for m in columns]
            lines.append("| " + " | ".join([method, *cells]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _ladder_cell(row: Row | None, alike: bool) -> str:
    if row is None:
        return ""
    digits, half = LADDER[row["metric"]][1], (row["high"] - row["low"]) / 2
    return f"{row['value']:.{digits}f} ± {half:.{digits}f}{' ≈' if alike else ''}"


def _cell(row: Row) -> str:
    digits = METRICS.get(row["metric"], ("", 3))[1]
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


# A small classifier of images, trained from nothing in seconds: what can be learned from a set of pictures.


CNN_SIZE = 32  # pixels: enough to tell scenes, a quarter of the work of 64
CNN_CHANNELS = (32, 64, 128)
CNN_EPOCHS, CNN_BATCH, CNN_LEARNING_RATE, CNN_WEIGHT_DECAY = 20, 32, 1e-3, 1e-2


def cnn_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Return images as (n, 3, 32, 32) in [-1, 1]."""
    size = (CNN_SIZE, CNN_SIZE)
    return to_pixels([image.convert("RGB").resize(size, Image.Resampling.BOX) for image in images])


class SmallCNN(nn.Module):
    """Three convolutions, each with max pooling, and two fully connected layers."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        before = (3, *CNN_CHANNELS[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(before, CNN_CHANNELS, strict=True)
        )
        self.hidden = nn.Linear(CNN_CHANNELS[-1] * (CNN_SIZE // 8) ** 2, 128)
        self.head = nn.Linear(128, len(self.names))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) of pixels (n, 3, 32, 32)."""
        for convolution in self.convolutions:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))

    @torch.no_grad()
    def classify(self, x: Tensor) -> list[str]:
        """Return the likeliest class of each image."""
        return [self.names[i] for part in x.split(256) for i in self(part).argmax(dim=1).tolist()]


def train_small_cnn(
    x: Tensor,
    labels: Sequence[str],
    seed: int = 0,
    epochs: int = CNN_EPOCHS,
    watch: Callable[[int, SmallCNN], None] = lambda epoch, probe: None,
) -> SmallCNN:
    """Return a probe trained on pixels (n, 3, 32, 32) and their labels; the global generators stay untouched.

    `watch` is shown the probe after each epoch, from 1. Of two classes the cross-entropy of two outputs is
    the binary one of a sigmoid of their difference. Raises ValueError for fewer than two classes.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"A classifier needs two classes, not {len(names)}.")
    target = torch.tensor([names.index(label) for label in labels])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        probe = SmallCNN(names)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=CNN_LEARNING_RATE, weight_decay=CNN_WEIGHT_DECAY)
        for epoch in bars.short_bar(range(1, epochs + 1), "classifier", unit="epoch"):
            for rows in torch.randperm(len(x), generator=generator).split(CNN_BATCH):
                optimizer.zero_grad()
                F.cross_entropy(probe(x[rows]), target[rows]).backward()
                optimizer.step()
            watch(epoch, probe)
    return probe.eval().requires_grad_(False)


def synthetic_to_real(
    x: Tensor, labels: Sequence[str], real: Tensor, real_labels: Sequence[str], seed: int = 0
) -> Tensor:
    """Return which real images a probe trained on x gets right; (m,) 1 or 0."""
    found = train_small_cnn(x, labels, seed).classify(real)
    return torch.tensor([float(a == b) for a, b in zip(found, real_labels, strict=True)])


# What the samples of a method are worth: every score per image, and estimates over training seeds.


Scores = dict[str, Tensor]
OF_IMAGES = ("clip_score", "clip_floor", "attribute_accuracy", "domain_accuracy", "precision", "density",
             "copy_rank")  # fmt: skip
OF_REAL = ("recall", "coverage", "synthetic_to_real")
DOMAIN_SHARE = 300  # training images a domain that teach the classifier of domains


@dataclass(frozen=True)
class Prompts:
    """What samples answer: captions without token, and what they tell."""

    texts: list[str]
    features: Tensor  # (P, d) CLIP features
    mentioned: list[dict[str, str]] | None = None  # attributes that each prompt mentions
    labels: list[str] | None = None  # of the captioned images

    def prompt_of(self, count: int) -> Tensor:
        """Return which prompt each of `count` samples answers, (count,): they take turns."""
        return torch.arange(count) % len(self.texts)


@dataclass(frozen=True)
class Reference:
    """What the samples of one domain are judged by: prompts, and real images that no training saw."""

    domain: str
    prompts: Prompts  # the captions of the held-out images
    heldout: Tensor  # (P, d) CLIP features of these images
    train: Tensor  # (k, d) CLIP features of the training images
    pixels: Tensor  # (P, 3, 32, 32) held-out images for the probe
    inception: Tensor | None = None  # (P, 2048) held-out images, where the scorer has an Inception


def prompts_of(images: data.DomainData, scorer: Scorer, count: int) -> Prompts:
    """Return the first caption of each of the first `count` images, with its attributes and label."""
    rows = range(min(count, len(images)))
    prompts = [images.captions[i][0] for i in rows]
    mentioned = [images.mentioned[i][0] for i in rows] if images.mentioned and scorer.reader else None
    check_mentioned(scorer, images.config.name, mentioned)
    labels = [images.labels[i] for i in rows] if images.labels and len(set(images.labels)) > 1 else None
    return Prompts(prompts, metrics.embed_texts(scorer.clip, scorer.tokenizer, prompts), mentioned, labels)


def load_reference(
    domain: DomainConfig, config: Config, scorer: Scorer, count: int, split: str = "test"
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
        prompts_of(heldout, scorer, count),
        scorer.embed(pictures),
        scorer.embed(list(train.images)),
        cnn_pixels(pictures),
        scorer.embed_inception(pictures) if scorer.inception else None,
    )


def train_domain_cnn(config: Config) -> SmallCNN:
    """Return a classifier of source and target domains, trained on their training images."""
    pictures, names = [], []
    for domain in (config.source, *config.domains):
        train = data.load_domain(domain, config)
        count = min(DOMAIN_SHARE, len(train))
        pictures.append(cnn_pixels([train.images[i] for i in range(count)]))
        names += [domain.name] * count
    return train_small_cnn(torch.cat(pictures), names)


def score_images(
    images: Sequence[Image.Image],
    wanted: Reference,
    scorer: Scorer,
    domains: SmallCNN,
    seed: int = 0,
    own: Prompts | None = None,
) -> Scores:
    """Return every score of a method's images, one number an image (or a held-out image), and their features.

    images[i] answers prompt i % P; `own` are the captions of real images in the place of samples. Seed: of
    the classifier that is trained on them.
    """
    asked = own or wanted.prompts
    features, prompt_of = scorer.embed(images), asked.prompt_of(len(images))
    texts, distinct = asked.features[prompt_of], sorted(set(asked.texts))
    groups = torch.tensor([distinct.index(asked.texts[i]) for i in prompt_of])
    small = cnn_pixels(images)
    found = metrics.precision_recall(features, wanted.heldout)
    scores = {
        "features": features,
        "clip_score": metrics.clip_scores(features, texts),
        "domain_accuracy": torch.tensor([float(n == wanted.domain) for n in domains.classify(small)]),
        "copy_rank": metrics.copy_rank(features, wanted.train, wanted.heldout),
        **found._asdict(),
    }
    if len(distinct) > 1:  # one caption for all images leaves no wrong one
        scores["clip_floor"] = metrics.shuffled_scores(features, texts, groups)
    if asked.mentioned and scorer.reader:
        mentioned = [asked.mentioned[i] for i in prompt_of]
        scores["attribute_accuracy"] = metrics.attribute_accuracy(
            scorer.reader.read(images, wanted.domain), mentioned
        )
    if scorer.inception:
        scores["inception"] = scorer.embed_inception(images)
    if asked.labels and wanted.prompts.labels:
        labels, real = [asked.labels[i] for i in prompt_of], wanted.prompts.labels
        scores["synthetic_to_real"] = synthetic_to_real(small, labels, wanted.pixels, real, seed)
    return {name: value.float().contiguous() for name, value in scores.items()}


def estimates(by_seed: Sequence[Scores], wanted: Reference, num_bootstrap: int = 1000) -> dict[str, Estimate]:
    """Return each metric's estimate over training seeds; prompts and held-out images are drawn again.

    The draws are the same for every method of a domain, so that estimates can be subtracted.
    """
    images, real = len(by_seed[0]["features"]), len(wanted.heldout)
    prompt_of = wanted.prompts.prompt_of(images)
    units = min(images, real)
    drawn = metrics.bootstrap_counts(units, num_bootstrap, seed=0)[:, prompt_of]
    drawn_real = metrics.bootstrap_counts(real, num_bootstrap, seed=1)
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
            inside = metrics.intra_cluster_distance(features, wanted.train, weights=weights[0])
            pairs["intra_cluster"][place].append(inside)
            if wanted.inception is not None and "inception" in scores:
                value = metrics.frechet_distance(scores["inception"], wanted.inception, *weights)
                pairs.setdefault("fid", ([], []))[place].append(value)
    found = {}
    for name, (values, resampled) in pairs.items():
        estimate = Estimate(torch.cat(values), torch.stack(resampled, dim=1), units)
        if estimate.values.isfinite().all():
            found[name] = Estimate(estimate.values, estimate.draws.nan_to_num(estimate.values.mean()), units)
    return found


def result_rows(
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


# The fair comparison: base, base with style words and DASD, on the same prompts, seeds and settings.


BASE, STYLED = "base", "base + style words"
METHODS = (BASE, STYLED, "DASD")


def compared_methods(config: Config) -> tuple[str, ...]:
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
    known = compared_methods(config)
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
    scorer = load_scorer(config)
    rows, images = [], {}
    for domain in config.domains:
        prompts = load_prompts(config, domain.name)
        mentioned = load_mentioned(config, domain.name)
        check_mentioned(scorer, domain.name, mentioned)  # before hours of sampling
        heldout = data.load_domain(domain, config, "test")
        count = min(config.evaluation.num_heldout, len(heldout))
        real = [heldout[i]["image"] for i in range(count)]
        for method in bars.bar(
            methods or compared_methods(config), domain.name, shown=progress, unit="method"
        ):
            made = sample_method(config, pipeline, method, domain, prompts)
            asked = _repeated(prompts, config), _repeated(mentioned, config)
            rows += score_method(
                method, domain.name, made, asked[0], real, scorer, config, mentioned=asked[1]
            )
            images[method, domain.name] = made
    return rows, images


def _repeated(values: Sequence | None, config: Config) -> list | None:
    """Return each value `images_per_prompt` times, as the images of one prompt follow each other."""
    return values and [value for value in values for _ in range(config.evaluation.images_per_prompt)]


def evaluate_run(pipeline: DasdPipeline) -> tuple[Path, list[Row]]:
    """Evaluate a run; write `evaluation.json` and `comparison_<domain>.png` into its folder, and track them.

    Returns the path of the table and its rows. Of several processes the first one writes.
    """
    config = pipeline.config
    checkpoints.writable(config.output_dir)
    tracking.check_tracking(config)
    main = processes.is_main()
    rows, images = evaluate(config, pipeline, progress=main)
    folder = resolve(config.output_dir)
    path = folder / "evaluation.json"
    if not main:
        return path, rows
    save_results(path, config, rows)
    with tracking.open_trackers(config) as trackers:
        step = config.training.max_train_steps
        trackers.log(tracking.score_values(rows), step)
        for domain in config.domains:
            grid = {method: images[method, domain.name][:8] for method in compared_methods(config)}
            figures.save(figures.comparison_grid(grid), folder / f"comparison_{domain.name}.png")
            trackers.show({f"comparison/{domain.name}/{method}": each for method, each in grid.items()}, step)
    return path, rows
