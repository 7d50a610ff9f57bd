"""One path from prompts to numbers: prompts, images, scores of each image, estimates, rows with intervals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dasd_utils import data, figures, metrics
from dasd_utils.config import Calibration, Config, DasdError, DomainConfig, resolve
from dasd_utils.metrics import Estimate
from dasd_utils.runtime import files, small_cnn
from dasd_utils.toyworld.attribute_classifier import AttributeClassifier

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

    from dasd_utils.sampling import DasdPipeline

ResultRow = dict[str, Any]  # method, domain, metric, value, low, high, ...
Scores = dict[str, Tensor]  # name -> a number for each image (or held-out image), or its features
# by what is drawn: prompts, held-out images; both for all others
OF_IMAGES = ("clip_score", "clip_floor", "attribute_accuracy", "domain_accuracy", "precision", "density")
OF_REAL = ("recall", "coverage", "synthetic_to_real")
BASE, STYLED = "base", "base + style words"
METHODS = (BASE, STYLED, "DASD")


@dataclass(frozen=True)
class Scorer:
    """The frozen networks that score: a CLIP of its own, and the toy world's attribute classifier."""

    clip: CLIPModel
    tokenizer: CLIPTokenizer
    processor: Any  # its CLIPImageProcessor
    attribute_classifier: AttributeClassifier | None = None  # beside a base of the toy world only
    inception: Any = None  # where the config names its file

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image], batch_size: int = 32) -> Tensor:
        """Return unit-norm CLIP features (n, d), fp32 on the CPU; its processor makes RGB, and crops."""
        clip, features = self.clip, []
        for start in files.short_bar(range(0, len(images), batch_size), "CLIP features", unit="batch"):
            batch = list(images[start : start + batch_size])
            pixels = self.processor(images=batch, return_tensors="pt")["pixel_values"]
            pooled = clip.vision_model(pixel_values=pixels.to(clip.device, clip.dtype)).pooler_output
            features.append(clip.visual_projection(pooled).float().cpu())
        return functional.normalize(torch.cat(features), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-norm CLIP features (n, d) of texts."""
        return files.embed_texts(self.clip, self.tokenizer, texts)

    @torch.no_grad()
    def embed_inception(self, images: Sequence[Image.Image]) -> Tensor:
        """Return Inception-v3 features (n, 2048) of images; the file itself resizes them."""
        found = []
        for image in files.short_bar(images, "Inception features", unit="image"):  # of any size
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
            found.append(self.inception(pixels.to(self.clip.device), return_features=True).float().cpu())
        return torch.cat(found)

    def attributes_shown(
        self, images: Sequence[Image.Image], domain: str, mentioned: Sequence[dict[str, str]]
    ) -> Tensor:
        """Return the share of the attributes mentioned by each prompt that its image shows, (n,)."""
        return metrics.attribute_accuracy(self.attribute_classifier.read(images, domain), mentioned)


def load_scorer(config: Config, device: str | None = None) -> Scorer:
    """Return the frozen networks that the config names; on the GPU if there is one and no device is named."""
    clip, tokenizer, processor = files.load_clip(config)
    if clip.config.text_config.vocab_size != len(tokenizer):  # absent tokenizer files raise no error
        raise DasdError(f"The tokenizer of {config.model.clip!r} is not that of its text tower.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    reader = resolve(config.model.base) / "reader"
    try:
        attributes = AttributeClassifier.load(reader)
    except Exception as error:  # of JSON, safetensors, torch and the file system
        raise DasdError(f"The attribute classifier {reader} cannot be read: {files.first_line(error)}. "
                        "Restore the base model.") from error  # fmt: skip
    inception, path = None, config.evaluation.inception
    try:  # TorchScript that maps bytes (n, 3, h, w) to features (n, 2048), as in the FID papers
        if path is not None:
            inception = torch.jit.load(str(resolve(path)), map_location=device).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise DasdError(f"inception names {path}, which is no TorchScript file: {files.first_line(error)}. "
                        "Name another, or leave it out: there is no FID then.") from None  # fmt: skip
    return Scorer(clip.to(device).eval().requires_grad_(False), tokenizer, processor, attributes, inception)


# prompts
@dataclass(frozen=True)
class Prompts:
    """What samples are prompted with: texts without a domain's token."""

    texts: list[str]
    features: Tensor  # (P, d) of CLIP
    mentioned: list[dict[str, str]] | None = None  # attributes that each prompt mentions
    labels: list[str] | None = None  # of the captioned images
    groups: Tensor | None = None  # (P,) equal for prompts that are one independent unit; None: each is one

    def prompt_of(self, count: int) -> Tensor:
        """Return the prompt index of each of `count` samples, (count,): sample i has prompt i % P."""
        return torch.arange(count) % len(self.texts)


def load_prompts(config: Config, domain: str) -> list[str]:
    """Return the evaluation prompts of a domain, without its token."""
    return [entry["text"] for entry in read_prompts(config, domain)]


def read_prompts(config: Config, domain: str) -> list[dict[str, Any]]:
    """Return {"text": ...} for each evaluation prompt, with the "attributes" that it mentions if any.

    `<prompts_dir>/<domain>.json` holds {"domain": ..., "prompts": [...]}; a prompt is a string or such an
    object. Raises DasdError for another form, and fewer than two different prompts.
    """
    path = resolve(config.evaluation.prompts_dir) / f"{domain}.json"
    values = files.read_object(path, f"The file with the evaluation prompts of domain {domain!r}")
    given = values["prompts"] if isinstance(values.get("prompts"), list) else []
    entries = [each if isinstance(each, dict) else {"text": each} for each in given]
    texts = [entry.get("text") for entry in entries]
    has_texts = all(isinstance(text, str) and text.strip() for text in texts)
    has_objects = all(isinstance(entry.get("attributes", {}), dict) for entry in entries)
    if not has_texts or not has_objects or len(set(texts)) < 2:
        raise DasdError(f'{path} must hold {{"prompts": [...]}}, at least two different ones, each a string '
                        'or an object with "text" and, if any, "attributes".')  # fmt: skip
    return entries


def check_mentioned(scorer: Scorer, domain: str, mentioned: Sequence[dict[str, str]] | None) -> None:
    """Raise DasdError for an attribute or value that the scorer's attribute classifier does not know."""
    if scorer.attribute_classifier is None:
        return
    known = scorer.attribute_classifier.table.values.get(domain, {})
    for name, value in (item for values in mentioned or () for item in values.items()):
        if value not in known.get(name, ()):
            raise DasdError(f"The attribute classifier knows no {name} = {value!r} of the domain {domain!r}: "
                            'correct the "attributes" of its prompts, or leave them out of all.')  # fmt: skip


def embed_prompts(
    texts: Sequence[str], scorer: Scorer, mentioned: Sequence[dict[str, str]] | None = None
) -> Prompts:
    """Embed a prompt per image, equal ones as one unit; mentioned: attributes, used if each text has some."""
    distinct = sorted(set(texts))
    groups = torch.tensor([distinct.index(text) for text in texts])
    known = list(mentioned) if scorer.attribute_classifier and mentioned and all(mentioned) else None
    return Prompts(list(texts), scorer.embed_texts(distinct)[groups], known, groups=groups)


def prompts_of(images: data.DomainData, scorer: Scorer, count: int) -> Prompts:
    """Return the first caption of the first `count` images, for none the domain's name; attributes, label."""
    rows = range(min(count, len(images)))
    texts = [images.captions[i][0] or images.config.name for i in rows]
    seen = images.mentioned and scorer.attribute_classifier
    mentioned = [images.mentioned[i][0] for i in rows] if seen else None
    check_mentioned(scorer, images.config.name, mentioned)
    labels = [images.labels[i] for i in rows] if images.labels and len(set(images.labels)) > 1 else None
    return Prompts(texts, scorer.embed_texts(texts), mentioned, labels)


# scores
@dataclass(frozen=True)
class Reference:
    """What samples of one domain are compared with: prompts, and real images that no training saw."""

    domain: str
    prompts: Prompts
    heldout: Tensor  # (m, d) CLIP features of the held-out images
    train: Tensor | None = None  # (k, d) CLIP features of the training images
    pixels: Tensor | None = None  # (m, 3, 32, 32) held-out images for the small CNN
    inception: Tensor | None = None  # (m, 2048) held-out images, where the scorer has an Inception
    paired: bool = False  # prompt i is a caption of held-out image i, and samples are made of the prompts


def load_reference(
    domain: DomainConfig, config: Config, scorer: Scorer, count: int, split: str = "test"
) -> Reference:
    """Return the reference of a domain: 10 to `count` images of the split, and the training images."""
    settings = config.replace(num_heldout=count, validation_images=count)  # what the toy world draws
    heldout, train = data.load_domain(domain, settings, split), data.load_domain(domain, config)
    count = min(count, len(heldout))
    pictures = [heldout.images[i] for i in range(count)]
    if count < 10:
        raise DasdError(f"The {split} split of {domain.name} has {count} images; scores need 10 or more.")
    prompts = prompts_of(heldout, scorer, count)
    features = scorer.embed(pictures), scorer.embed(list(train.images))
    inception = scorer.embed_inception(pictures) if scorer.inception else None
    return Reference(domain.name, prompts, *features, small_cnn.pixels(pictures), inception, paired=True)


def score_prompts(
    images: Sequence[Image.Image], prompts: Prompts, scorer: Scorer, domain: str, seed: int = 0
) -> Scores:
    """Return features and scores of images, image i with prompt i % P; seed: of the shuffled captions."""
    features = scorer.embed(images)
    prompt_of = prompts.prompt_of(len(images))
    texts = prompts.features[prompt_of]
    scores = {"features": features, "clip_score": metrics.clip_scores(features, texts)}
    distinct = sorted(set(prompts.texts))
    if len(distinct) > 1:
        same_text = [distinct.index(prompts.texts[i]) for i in prompt_of]
        scores["clip_floor"] = metrics.shuffled_scores(features, texts, same_text, seed=seed)
    if prompts.mentioned and scorer.attribute_classifier:
        mentioned = [prompts.mentioned[i] for i in prompt_of]
        scores["attribute_accuracy"] = scorer.attributes_shown(images, domain, mentioned)
    return scores


def score_images(
    images: Sequence[Image.Image],
    reference: Reference,
    scorer: Scorer,
    domains: small_cnn.SmallCNN,
    seed: int = 0,
    own: Prompts | None = None,
) -> Scores:
    """Return every score of a method's images, one number an image (or a held-out image), and their features.

    Image i has prompt i % P of the reference, or of `own`, the captions where real images are scored instead
    of samples. seed: of the small classifier that is trained on the images.
    """
    prompts, small = own or reference.prompts, small_cnn.pixels(images)
    scores = score_prompts(images, prompts, scorer, reference.domain)
    features = scores["features"]
    scores["domain_accuracy"] = torch.tensor([n == reference.domain for n in domains.classify(small)])
    scores["copy_rank"] = metrics.copy_rank(features, reference.train, reference.heldout).mean(dim=1)
    scores |= metrics.precision_recall(features, reference.heldout)
    if scorer.inception:
        scores["inception"] = scorer.embed_inception(images)
    labels = [prompts.labels[i] for i in prompts.prompt_of(len(images))] if prompts.labels else []
    if reference.prompts.labels and len(set(labels)) > 1:
        real = reference.pixels, reference.prompts.labels
        scores["synthetic_to_real"] = small_cnn.synthetic_to_real(small, labels, *real, seed)
    return {name: value.float().contiguous() for name, value in scores.items()}


# estimates and rows
def estimates(
    by_seed: Sequence[Scores], reference: Reference, num_bootstrap: int = 1000
) -> dict[str, Estimate]:
    """Return each metric's estimate over training seeds; all methods share the draws, so they are pairs."""
    prompts = reference.prompts
    prompt_of = prompts.prompt_of(len(by_seed[0]["features"]))
    group = prompt_of if prompts.groups is None else prompts.groups[prompt_of]
    count, real = int(group.max()) + 1, len(reference.heldout)
    drawn, own = metrics.bootstrap_counts(count, num_bootstrap, seed=0)[:, group], None
    drawn_real = metrics.bootstrap_counts(real, num_bootstrap, seed=1)
    if reference.paired:  # a sample is drawn with the image whose caption prompts it, and is no pair with it
        drawn, own = drawn_real[:, prompt_of], prompt_of
    found = {}
    for names, weights, units in ((OF_IMAGES, drawn, count), (OF_REAL, drawn_real, real)):
        for name in (name for name in names if name in by_seed[0]):
            values = torch.stack([scores[name].double() for scores in by_seed])  # (S, n)
            found[name] = metrics.mean_estimate(values, weights, units)
    sets = [scores["features"] for scores in by_seed]
    statistics = {
        "cmmd": [metrics.mmd_statistic(x, reference.heldout, metrics.cmmd_kernel, group, own) for x in sets],
        "kid": [metrics.mmd_statistic(x, reference.heldout, metrics.kid_kernel, group, own) for x in sets],
    }
    if reference.train is not None:
        ranks = [metrics.copy_rank(x, reference.train, reference.heldout) for x in sets]
        statistics["copy_rank"] = [metrics.pair_mean(rank, own) for rank in ranks]
        statistics["intra_cluster"] = [
            lambda weights, _, x=x: metrics.intra_cluster_distance(x, reference.train, weights) for x in sets
        ]
    if reference.inception is not None and all("inception" in scores for scores in by_seed):
        pairs = [(scores["inception"], reference.inception) for scores in by_seed]
        statistics["fid"] = [
            lambda weights, real, pair=pair: metrics.frechet_distance(*pair, weights, real) for pair in pairs
        ]
    for name, each in statistics.items():
        estimate = metrics.set_estimate(each, (drawn, drawn_real), min(count, real))
        if estimate.values.isfinite().all():
            found[name] = estimate
    return {n: replace(e, bounds=metrics.SHARE) if n in figures.SHARES else e for n, e in found.items()}


def result_rows(
    named: Mapping[str, Mapping[str, Estimate]], start: Mapping[str, object], against: str = ""
) -> list[ResultRow]:
    """Return a row with `start` per method and metric of `named`, and `difference_rows` to `against`."""
    rows = [
        {"method": method, **start, "metric": metric, **with_interval(estimate)}
        for method, table in named.items()
        for metric, estimate in table.items()
    ]
    return rows + difference_rows(named, start, against)


def difference_rows(
    named: Mapping[str, Mapping[str, Estimate]], start: Mapping[str, object], against: str
) -> list[ResultRow]:
    """Return a row for each paired difference, method - `against`; `separable`: its interval is without 0."""
    rows, base = [], named.get(against, {})
    for method, table in named.items():
        for metric in table if method != against else ():
            if metric in base and len(base[metric].values) == len(table[metric].values):
                found = with_interval(table[metric].minus(base[metric]))
                row = {"method": method, "against": against, **start, "metric": metric, **found}
                low, high = found["low"], found["high"]  # equal: no variance was seen, so nothing is known
                rows.append(row | {"separable": 0 < low < high or low < high < 0})
    return rows


def with_interval(estimate: Estimate) -> dict[str, float]:
    """Return the value and the ends of the 95 % interval, as a row holds them."""
    return dict(zip(("value", "low", "high"), estimate.interval(), strict=True))


def score_method(
    method: str,
    domain: str,
    images: Sequence[Image.Image],
    prompts: Sequence[str] | Prompts,
    heldout: Sequence[Image.Image] | Tensor,
    scorer: Scorer,
    config: Config,
) -> list[ResultRow]:
    """Return one row per metric for the images that a method made in a domain.

    prompts: one per image, without token or style words, so that every method is scored by the same text, or
    `embed_prompts` of them. heldout: images of the domain that no training saw, or `scorer.embed` of them.
    """
    given = prompts if isinstance(prompts, Prompts) else embed_prompts(prompts, scorer)
    if len(images) != len(given.texts):
        raise DasdError(f"{len(images)} images came with {len(given.texts)} prompts: each needs its own.")
    check_mentioned(scorer, domain, given.mentioned)
    scores = score_prompts(images, given, scorer, domain, config.seed)
    real = heldout if isinstance(heldout, Tensor) else scorer.embed(heldout)
    found = estimates([scores], Reference(domain, given, real), config.evaluation.num_bootstrap)
    end = {"n": len(images), "seed": config.seed}
    return [row | end for row in result_rows({method: found}, {"domain": domain})]


# the fair comparison: base, base with style words, and the trained method, on the same prompts and noise
def compared_methods(config: Config) -> tuple[str, ...]:
    """Return the compared methods: the base, the base with style words, and the one that trained."""
    return METHODS if config.method == "dasd" else (BASE, STYLED, config.method)


def sample_method(
    config: Config, pipeline: DasdPipeline, method: str, domain: DomainConfig, prompts: Sequence[str]
) -> list[Image.Image]:
    """Return `images_per_prompt` images of each prompt, prompt by prompt; DasdError for an unknown method.

    The methods differ in nothing but what is compared: adapter off, words added, or adapter and token on.
    Each prompt starts from noise of its own, the same for all methods, so that prompts are independent. A
    method trained without prompts is sampled by decoupled guidance.
    """
    known = compared_methods(config)
    if method not in known:
        raise DasdError(f"There is no method {method!r}. Methods: {', '.join(known)}.")
    protocol = config.evaluation
    images, *_ = pipeline.generate(
        [f"{p}, {domain.style_suffix}" for p in prompts] if method == STYLED else list(prompts),
        domain=domain.name if method == known[-1] else None,
        num_images=protocol.images_per_prompt,
        seed=[1000 * config.seed + number for number in range(len(prompts))],
        settings=Calibration(protocol.guidance_scale, protocol.num_inference_steps, protocol.scheduler),
    )
    return list(images) if protocol.images_per_prompt == 1 else list(itertools.chain(*images))


def evaluate(
    config: Config, pipeline: DasdPipeline, methods: Sequence[str] | None = None, progress: bool = True
) -> tuple[list[ResultRow], dict[tuple[str, str], list[Image.Image]]]:
    """Return rows, and images by (method, domain), of these methods (None: all) in every target domain."""
    scorer, copies = load_scorer(config), config.evaluation.images_per_prompt
    rows, images = [], {}
    for domain in config.domains:
        prompts = read_prompts(config, domain.name)
        each = [entry for entry in prompts for _ in range(copies)]  # images of one prompt follow each other
        mentioned = [entry.get("attributes") for entry in each]
        given = embed_prompts([entry["text"] for entry in each], scorer, mentioned)
        check_mentioned(scorer, domain.name, given.mentioned)  # before hours of sampling
        heldout = data.load_domain(domain, config, "test")
        count = min(config.evaluation.num_heldout, len(heldout))
        if count < 2:
            raise DasdError(f"CMMD and KID need two held-out images of {domain.name} or more, not {count}: "
                            "raise num_heldout or test_fraction.")  # fmt: skip
        real = scorer.embed([heldout[i]["image"] for i in range(count)])
        chosen = methods or compared_methods(config)
        for method in files.bar(chosen, domain.name, shown=progress, unit="method"):
            made = sample_method(config, pipeline, method, domain, [entry["text"] for entry in prompts])
            rows += score_method(method, domain.name, made, given, real, scorer, config)
            images[method, domain.name] = made
    return rows, images


# files and tables
def save_results(path: str | Path, config: Config | dict[str, Any], rows: Sequence[ResultRow]) -> Path:
    """Write {"config": ..., "rows": [...]} as JSON, a row a line, complete or not at all; return the path."""
    path = Path(path)
    settings = config.to_dict() if isinstance(config, Config) else config
    options = {"allow_nan": False, "ensure_ascii": False}
    lines = ",\n".join("  " + json.dumps(row, **options) for row in rows)
    text = f'{{"config": {json.dumps(settings, indent=2, **options)},\n"rows": [\n{lines}\n]}}\n'
    with files.atomic_write(path, "The results") as temporary:
        temporary.write_text(text, encoding="utf8")
    return path


def load_results(path: str | Path) -> dict[str, Any]:
    """Return {"config": dict, "rows": list} that `save_results` wrote; DasdError if it holds none."""
    found = files.read_object(Path(path), "The results file")
    if not isinstance(found.get("config"), dict) or not isinstance(found.get("rows"), list):
        raise DasdError(f'{path} holds no results: an object "config" and a list "rows".')
    return found


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table: a head and lines of cells."""
    first, *rest = ("| " + " | ".join(line) + " |" for line in (head, *lines))
    return "\n".join([first, "|---" * len(head) + "|", *rest])


def interval_text(row: Mapping[str, Any], digits: int | None = None) -> str:
    """Return "value [low, high]" of a row, with the decimals of its metric if none are given."""
    digits = figures.METRICS.get(row["metric"], figures.Metric("")).decimals if digits is None else digits
    low, high = figures.interval(row)
    return f"{row['value']:z.{digits}f} [{low:z.{digits}f}, {high:z.{digits}f}]"


def table(rows: Sequence[ResultRow]) -> str:
    """Return rows as a Markdown table: a line per domain, metric and seed, a column per method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    several_seeds = len({row["seed"] for row in rows}) > 1
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        seed = f" (seed {row['seed']})" if several_seeds else ""
        key = row["domain"], figures.metric_title(row["metric"]) + seed
        lines.setdefault(key, {})[row["method"]] = interval_text(row)
    cells = ([*key, *(found.get(method, "") for method in methods)] for key, found in lines.items())
    return markdown_table(["domain", "metric", *methods], cells)
