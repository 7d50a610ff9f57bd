"""The model card of an export: what it is, how it was trained and measured, how it is used, its licence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dasd_utils import adapters, evaluation
from dasd_utils.config import Config, DomainConfig, resolve

TEMPLATE = Path(__file__).with_name("model_card.md")
SAMPLES = "samples.png"
UPLOAD = "hf upload OWNER/NAME {folder}"
STABLE_DIFFUSION = ("stable-diffusion-v1-5/", "CompVis/stable-diffusion-v1")  # owners' names of 1.x
LICENCES = {
    "creativeml-openrail-m": "It changes Stable Diffusion, so the base's licence (CreativeML OpenRAIL-M) and "
    "its rules of use hold for it too.",
    "mit": "MIT, as the base model's.",
    "other": "The base model's licence holds for it too: look it up, and name it in this card.",
}


@dataclass(frozen=True)
class Exported:
    """What was written: files by their place in the folder, and the word that calls each learned token."""

    kind: str  # of export.FORMATS
    name: str
    files: tuple[str, ...]
    words: dict[str, str]  # "<satellite>" -> what a prompt says in that program


def card(
    exported: Exported,
    config: Config,
    adapter: str | Path,
    rows: Sequence[dict[str, Any]] = (),
    prompts: Sequence[str] = (),
) -> ModelCard:
    """Return the card. rows: of the run's `evaluation.json`, if there is one; prompts: of the sample grid."""
    summary = adapters.read_summary(adapter)
    base = config.model.base
    is_folder = resolve(base).is_dir()
    licence_name = licence(base)
    first_word = list(exported.words.values())[:1]
    return ModelCard.from_template(
        _metadata(exported, licence_name, None if is_folder else base, bool(summary["lora"]), rows),
        str(TEMPLATE),
        **vars(exported),
        config=config,
        address=address(),
        base=_link(base, config.model.base_revision),
        base_name=resolve(base).name if is_folder else base,
        revision=None if is_folder else config.model.base_revision,
        unet=f"{adapters.UNET}/config.json" in exported.files,
        lora_file=adapters.LORA_FILE,
        prompt=" ".join([*first_word, "a small village near a river"]),
        samples=SAMPLES,
        prompts=prompts,
        domains=(config.source, *config.domains),
        place=_place,
        lora=summary["lora"],
        trained_unet=bool(summary.get("unet")),
        rows=rows,
        results=evaluation.table(rows) if rows else "",
        counts=sorted({min(row["n"] for row in rows), max(row["n"] for row in rows)}) if rows else [],
        seeds=sorted({row["seed"] for row in rows}),
        licence=LICENCES.get(licence_name, LICENCES["other"]),
        upload=UPLOAD.format(folder="FOLDER"),
    )


def licence(base: str) -> str:
    """Return the licence of a base model: the hub's name for it, or "other" where it is not known."""
    if base.startswith(STABLE_DIFFUSION):
        return "creativeml-openrail-m"
    readme = resolve(base) / "README.md"
    found = ModelCard.load(readme).data.license if readme.is_file() else None
    return found if isinstance(found, str) else "other"


def address() -> str:
    """Return where this project is published, as `pyproject.toml` says."""
    named = dict(line.split(", ", 1) for line in metadata("dasd-utils").get_all("Project-URL"))
    return named["Repository"]


def _metadata(
    exported: Exported, licence_name: str, base: str | None, lora: bool, rows: Sequence[dict[str, Any]]
) -> ModelCardData:
    tags = ["stable-diffusion", "text-to-image", "domain-adaptation"]
    own = [row for row in rows if row["method"] not in (evaluation.BASE, evaluation.STYLED)]
    return ModelCardData(
        license=licence_name,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base,
        tags=[*tags, "lora"] if lora else tags,
        model_name=exported.name,
        eval_results=[_result(row) for row in own] or None,
    )


def _result(row: dict[str, Any]) -> EvalResult:
    return EvalResult(
        task_type="text-to-image",
        dataset_type="custom",
        dataset_name=f"{row['domain']}, held-out images",
        metric_type=row["metric"],
        metric_name=f"{row['metric']}, n = {row['n']}, seed {row['seed']}",
        metric_value=round(row["value"], 4),
    )


def _link(base: str, revision: str | None) -> str:
    """Return a link to a model of the hub; of a folder the name alone: its path means nothing elsewhere."""
    if resolve(base).is_dir():
        return f"The base model `{resolve(base).name}`"
    return f"[{base}](https://huggingface.co/{base}) (revision `{revision or 'main'}`)"


def _place(domain: DomainConfig) -> str:
    folder = resolve(domain.data)
    return f"{folder.name} (a folder)" if folder.is_dir() else domain.data
