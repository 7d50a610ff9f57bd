"""The model card of an export: what it is, how it was trained and measured, how it is used, its licence."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dasd_utils import adapters, evaluation
from dasd_utils.apps.export import SAMPLES, Exported
from dasd_utils.config import Config, DomainConfig, resolve

STABLE_DIFFUSION = ("stable-diffusion-v1-5/", "CompVis/stable-diffusion-v1")  # owners' names of 1.x
LICENCES = {
    "creativeml-openrail-m": "It changes Stable Diffusion, so the base's licence (CreativeML OpenRAIL-M) and "
    "its rules of use hold for it too.",
    "mit": "MIT, as the base model's.",
    "other": "The base model's licence holds for it too: look it up, and name it in this card.",
}
ALIGNED = ("lambda_align", "kernel", "layer")
TRAINED = (
    "max_train_steps", "target_batch_size", "source_batch_size", "gradient_accumulation_steps",
    "learning_rate", "token_learning_rate", "min_snr_gamma", "caption_dropout",
)  # fmt: skip


def licence(base: str) -> str:
    """Return the licence of a base model: the hub's name for it, or "other" where it is not known."""
    if base.startswith(STABLE_DIFFUSION):
        return "creativeml-openrail-m"
    readme = resolve(base) / "README.md"
    found = ModelCard.load(readme).data.license if readme.is_file() else None
    return found if isinstance(found, str) else "other"


def card(
    exported: Exported,
    config: Config,
    adapter: str | Path,
    rows: Sequence[dict[str, Any]] = (),
    prompts: Sequence[str] = (),
) -> ModelCard:
    """Return the card. rows: of the run's `evaluation.json`, if there is one; prompts: of the sample grid."""
    summary, kept = adapters.read_summary(adapter), licence(config.model.base)
    own = [row for row in rows if row["method"] not in ("base", "base + style words")]
    data = ModelCardData(
        license=kept,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=None if resolve(config.model.base).is_dir() else config.model.base,
        tags=[
            "stable-diffusion",
            "text-to-image",
            "domain-adaptation",
            *(["lora"] if summary["lora"] else []),
        ],
        model_name=exported.name,
        eval_results=[_result(row) for row in own] or None,
    )
    parts = (
        f"---\n{data.to_yaml()}\n---",
        f"# {exported.name}",
        _what(config),
        _samples(prompts) if SAMPLES in exported.files else "",
        f"## Use\n\n{_use(exported, config)}",
        f"## Data\n\n{_data(config)}",
        f"## Training\n\n{_training(config, summary)}",
        f"## Results\n\n{_results(rows)}",
        "## Limits\n\nWhat this model draws looks like its domains and shows nothing that was. Pictures of a "
        "medical domain are for research on methods, never for clinical use.",
        f"## Licence\n\n{LICENCES.get(kept, LICENCES['other'])}",
    )
    return ModelCard("\n\n".join(part for part in parts if part) + "\n")


def _result(row: dict[str, Any]) -> EvalResult:
    return EvalResult(
        task_type="text-to-image",
        dataset_type="custom",
        dataset_name=f"{row['domain']}, held-out images",
        metric_type=row["metric"],
        metric_name=f"{row['metric']}, n = {row['n']}, seed {row['seed']}",
        metric_value=round(row["value"], 4),
    )


def _what(config: Config) -> str:
    names = ", ".join(domain.name for domain in config.domains)
    base = _named(config.model.base, config.model.base_revision)
    return (
        f"{base}, adapted to {names} by the method `{config.method}` of "
        f"[DASD]({address()}), domain-adaptive Stable Diffusion."
    )


def address() -> str:
    """Return where this project is published, as `pyproject.toml` says."""
    named = dict(line.split(", ", 1) for line in metadata("dasd-utils").get_all("Project-URL"))
    return named["Repository"]


def _named(base: str, revision: str | None) -> str:
    """A folder by its name alone: where it lies on a machine says nothing elsewhere."""
    if resolve(base).is_dir():
        return f"The base model `{resolve(base).name}`"
    return f"[{base}](https://huggingface.co/{base}) (revision `{revision or 'main'}`)"


def _samples(prompts: Sequence[str]) -> str:
    said = "; ".join(f"“{prompt}”" for prompt in prompts)
    return f"![Base and adapted model, same prompts and noise]({SAMPLES})\n\n*Prompts: {said}.*"


def _use(exported: Exported, config: Config) -> str:
    ways = {"diffusers": _by_diffusers, "pipeline": _by_pipeline, "a1111": _by_a1111, "comfyui": _by_comfyui}
    calibrated = [f"| {d.name} | {_word(exported, d)} | {_sampled(d)} |" for d in config.domains]
    head = "| domain | word, first in the prompt | sampling it was calibrated for |\n|---|---|---|"
    return f"{ways[exported.kind](exported, config)}\n\n" + "\n".join([head, *calibrated])


def _word(exported: Exported, domain: DomainConfig) -> str:
    word = exported.words.get(domain.token or "")
    return f"`{word}`" if word else "none"


def _sampled(domain: DomainConfig) -> str:
    used = domain.calibration
    guided = f"guidance {used.guidance_scale:g}" + (f" ({used.guidance})" if used.guidance != "cfg" else "")
    return f"{used.scheduler}, {used.num_inference_steps} steps, {guided}"


def _prompt(exported: Exported) -> str:
    return " ".join([*list(exported.words.values())[:1], "a small village near a river"])


def _by_diffusers(exported: Exported, config: Config) -> str:
    base, options = config.model.base, ""
    if resolve(base).is_dir():
        base = resolve(base).name
    elif config.model.base_revision:
        options = f', revision="{config.model.base_revision}"'
    lines = ["from diffusers import StableDiffusionPipeline", ""]
    if f"{adapters.UNET}/config.json" in exported.files:
        lines[0] += ", UNet2DConditionModel"
        lines.append(f'unet = UNet2DConditionModel.from_pretrained(folder, subfolder="{adapters.UNET}")')
        options += ", unet=unet"
    lines.append(f'pipe = StableDiffusionPipeline.from_pretrained("{base}"{options})')
    if adapters.LORA_FILE in exported.files:
        lines.append("pipe.load_lora_weights(folder)  # this repository, or where it is kept")
    for token in exported.words:
        lines.append(f'pipe.load_textual_inversion(f"{{folder}}/{token[1:-1]}.safetensors", token="{token}")')
    return _code([*lines, f'image = pipe("{_prompt(exported)}").images[0]'])


def _by_pipeline(exported: Exported, config: Config) -> str:
    lines = [
        "from diffusers import StableDiffusionPipeline",
        "",
        "pipe = StableDiffusionPipeline.from_pretrained(folder)  # this repository, or where it is kept",
        f'image = pipe("{_prompt(exported)}").images[0]',
    ]
    return f"{_code(lines)}\n\nIt is without the base's safety checker, if that has one."


def _by_a1111(exported: Exported, config: Config) -> str:
    return (
        "Copy `models` and `embeddings` into the folder of the web UI, then write:\n\n"
        f"```\n{_prompt(exported)} <lora:{exported.name}:1>\n```"
    )


def _by_comfyui(exported: Exported, config: Config) -> str:
    return (
        f"Copy `models` into ComfyUI's folder. A *Load LoRA* node takes `{exported.name}.safetensors` at "
        f"strength 1 for the model; the prompt is:\n\n```\n{_prompt(exported)}\n```"
    )


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _data(config: Config) -> str:
    lines = ["| domain | images | at most | token starts at |", "|---|---|---|---|"]
    for domain in (config.source, *config.domains):
        place = domain.data
        if resolve(place).is_dir():
            place = f"{resolve(place).name} (a folder)"
        start = f"“{domain.initial_word}”" if domain.token else ""
        name = f"{domain.name} (source)" if domain is config.source else domain.name
        lines.append(f"| {name} | {place} | {domain.num_images} | {start} |")
    return "\n".join(lines)


def _training(config: Config, summary: dict[str, Any]) -> str:
    lora = summary["lora"]
    rows = {"method": config.method, "seed": config.seed, "resolution": f"{config.model.resolution} px"}
    rows |= {name: getattr(config.training, name) for name in TRAINED}
    rows |= {name: getattr(config.alignment, name) for name in ALIGNED}
    what = {"LoRA": "none: all of the UNet learned" if summary.get("unet") else "none"}
    if lora:
        what["LoRA"] = f"rank {lora['rank']}, alpha {lora['alpha']:g}, convolutions: {lora['convolutions']}"
    return "\n".join(
        ["| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in (what | rows).items())]
    )


def _results(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "Not measured: `dasd evaluate` writes results into the run, and the next export tells them."
    counts = sorted({row["n"] for row in rows})
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"{evaluation.table(rows)}\n\n{n} images a method and domain, training seed {seeds}; in brackets "
        "95 % intervals over prompts. CMMD and KID: distance to held-out images, lower is better."
    )
