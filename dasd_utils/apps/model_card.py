"""The model card of an export: what it is, how it was trained and measured, how it is used, its licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dasd_utils import evaluation
from dasd_utils.config import Config, address, resolve

TEMPLATE = Path(__file__).with_name("model_card.md")
SAMPLES = "samples.png"
STABLE_DIFFUSION = ("stable-diffusion-v1-5/", "CompVis/stable-diffusion-v1")  # owners' names of 1.x


class Exported(NamedTuple):
    """What was written: files by their place in the folder, and the word that calls each learned token."""

    kind: str  # of export.FORMATS
    name: str
    files: tuple[str, ...]
    words: dict[str, str]  # "<satellite>" -> what a prompt says in that program


def card(
    exported: Exported,
    config: Config,
    summary: dict[str, Any],
    rows: Sequence[dict[str, Any]] = (),
    prompts: Sequence[str] = (),
) -> ModelCard:
    """Return the card. summary: the adapter's; rows: of `evaluation.json`; prompts: of the grid."""
    base = config.model.base
    on_hub = not resolve(base).is_dir()
    data = ModelCardData(
        license=licence(base),
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base if on_hub else None,
        tags=[
            "stable-diffusion",
            "text-to-image",
            "domain-adaptation",
            *(["lora"] if summary["lora"] else []),
        ],
        model_name=exported.name,
        eval_results=_results(rows) or None,
    )
    places = {each.name: resolve(each.data) for each in (config.source, *config.domains)}
    return ModelCard.from_template(
        data,
        str(TEMPLATE),
        **exported._asdict(),
        config=config,
        summary=summary,
        address=address(),
        on_hub=on_hub,
        base=base if on_hub else resolve(base).name,
        samples=SAMPLES,
        prompts=prompts,
        folders={name: path.name for name, path in places.items() if path.is_dir()},
        rows=rows,
        results=evaluation.table(rows) if rows else "",
        licence=data.license,
    )


def _results(rows: Sequence[dict[str, Any]]) -> list[EvalResult]:
    """Return the scores of the run itself as the hub shows them."""
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type="custom",
            dataset_name=f"{row['domain']}, held-out images",
            metric_type=row["metric"],
            metric_name=f"{row['metric']}, n = {row['n']}, seed {row['seed']}",
            metric_value=round(row["value"], 4),
        )
        for row in rows
        if row["method"] not in (evaluation.BASE, evaluation.STYLED)
    ]


def licence(base: str) -> str:
    """Return the licence of a base model: the hub's name for it, or "other" where it is not known."""
    if base.startswith(STABLE_DIFFUSION):
        return "creativeml-openrail-m"
    readme = resolve(base) / "README.md"
    found = ModelCard.load(readme).data.license if readme.is_file() else None
    return found if isinstance(found, str) else "other"
