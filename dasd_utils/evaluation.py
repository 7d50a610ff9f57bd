"""The protocol: images of a method in, rows of scores with 95 % intervals out. It never samples images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from dasd_utils import metrics
from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.runtime import bars, files, pretrained
from dasd_utils.toyworld.attribute_classifier import AttributeReader

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
class Judge:
    """The CLIP that scores, a copy of its own in which nothing is trained, and the toy world's reader."""

    clip: transformers.CLIPModel
    tokenizer: transformers.CLIPTokenizer
    processor: Any  # its CLIPImageProcessor
    reader: AttributeReader | None = None  # beside a base of the toy world only
    inception: Any = None  # where the config names its file

    def embed(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit-norm features (n, d) of images."""
        return metrics.embed_images(self.clip, self.processor, images)

    @torch.no_grad()
    def embed_inception(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return Inception-v3 features (n, 2048) of images, which the file itself brings to its size."""
        found = []
        for image in bars.brief(images, "Inception features", unit="image"):  # of any size
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
            found.append(self.inception(pixels.to(self.clip.device), return_features=True).float().cpu())
        return torch.cat(found)


def load_judge(config: Config, device: str | None = None) -> Judge:
    """Return the CLIP of `config.model.clip`, frozen; on the GPU if there is one and no device is named.

    Raises DasdError if it is missing or unreachable.
    """
    source = pretrained.find(config.model.clip, config.model.clip_revision)
    kinds = transformers.CLIPModel, transformers.CLIPTokenizer, pretrained.CLIP_PROCESSOR
    clip, tokenizer, processor = (source.load(kind) for kind in kinds)
    if clip.config.text_config.vocab_size != len(tokenizer):  # absent tokenizer files raise no error
        raise DasdError(
            f"The CLIP for evaluation, {config.model.clip!r}, does not fit together: its tokenizer has "
            f"{len(tokenizer)} tokens, its text tower {clip.config.text_config.vocab_size}."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    reader = AttributeReader.load(resolve(config.model.base) / "reader")
    inception = _load_inception(config.evaluation.inception, device)
    return Judge(clip.to(device).eval().requires_grad_(False), tokenizer, processor, reader, inception)


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


def load_told(config: Config, domain: str) -> list[dict[str, str]] | None:
    """Return the "attributes" that each evaluation prompt tells, None unless every prompt has some.

    Raises DasdError where they are no object of texts.
    """
    path, entries = _prompt_entries(config, domain)
    told = [entry.get("attributes") if isinstance(entry, dict) else None for entry in entries]
    if not told or not all(told):
        return None
    for values in told:
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            raise DasdError(f'{path}: "attributes" must be an object of texts, not {values!r}.')
    return told


def check_told(judge: Judge, domain: str, told: Sequence[dict[str, str]] | None) -> None:
    """Raise DasdError for an attribute or value that the judge's reader, if it has one, does not know."""
    known = judge.reader.table.values.get(domain, {}) if judge.reader else {}
    for values in told if told and judge.reader else ():
        for name, value in values.items():
            if value not in known.get(name, ()):
                raise DasdError(
                    f"The attribute reader knows no {name} = {value!r} of the domain {domain!r}: correct the "
                    f'"attributes" of its evaluation prompts, or leave them out of all.'
                )


def _prompt_entries(config: Config, domain: str) -> tuple[Path, list]:
    path = resolve(config.evaluation.prompts_dir) / f"{domain}.json"
    values = _read_json(path, f"The evaluation prompts of domain {domain!r}")
    entries = values.get("prompts") if isinstance(values, dict) else None
    return path, entries if isinstance(entries, list) else []


def score_method(
    method: str,
    domain: str,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    heldout: Sequence[Image.Image] | torch.Tensor,
    judge: Judge,
    config: Config,
    told: Sequence[dict[str, str]] | None = None,
) -> list[Row]:
    """Return one row per metric for the images that a method made in a domain.

    prompts[i] made images[i], given without token or style words so that all methods answer one question;
    images of one prompt count as one independent sample in the intervals. heldout: images of the domain that
    no training saw, or `judge.embed` of them. told[i]: the attributes that prompts[i] tells, for a judge that
    can read them. Seed and number of bootstrap draws come from config.
    Raises DasdError for too few images or prompts, before anything is computed.
    """
    _check_sizes(images, prompts, heldout)
    told = told if judge.reader and told and all(told) else None
    check_told(judge, domain, told)
    texts = sorted(set(prompts))
    groups = [texts.index(p) for p in prompts]
    image_features = judge.embed(images)
    text_features = metrics.embed_texts(judge.clip, judge.tokenizer, texts)[groups]
    real = heldout if isinstance(heldout, torch.Tensor) else judge.embed(heldout)
    draws = {"num_bootstrap": config.evaluation.num_bootstrap, "seed": config.seed, "groups": groups}
    per_image = {
        "clip_score": metrics.clip_scores(image_features, text_features),
        "clip_floor": metrics.shuffled_scores(image_features, text_features, groups, seed=config.seed),
    }
    if told:
        per_image["attribute_accuracy"] = metrics.attribute_accuracy(judge.reader.read(images, domain), told)
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
    with files.whole(path, "The results") as temporary:
        temporary.write_text(text, encoding="utf8")
    return path


def load_results(path: str | Path) -> dict[str, Any]:
    """Return {"config": dict, "rows": list} that `save_results` wrote; DasdError if there is none."""
    values = _read_json(Path(path), "The results file")
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
    difference is to cannot be told from 0.
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


def _read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise DasdError(f"{what} cannot be read from {path}: {error.strerror}.") from None
    except ValueError as error:
        raise DasdError(f"{path} is no JSON: {error}.") from None
