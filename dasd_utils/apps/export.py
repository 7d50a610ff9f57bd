"""A run's adapter in files that other programs read, with a model card."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from dasd_utils import adapters, evaluation, figures
from dasd_utils.config import Config, DasdError, check_choice, resolve
from dasd_utils.runtime import checkpoints, files

CARD = "README.md"
SAMPLES = "samples.png"
TEMPLATE = Path(__file__).with_name("model_card.md")
STABLE_DIFFUSION = ("stable-diffusion-v1-5/", "CompVis/stable-diffusion-v1")  # owners' names of 1.x
SHOWN = ("method", "domain", "metric", "n", "seed", "value")  # of a result, in the card
NUM_SAMPLES = 4  # a domain, in the picture of the card
FOLDERS = {  # program -> where it looks for LoRAs and for embeddings, from its own folder
    "a1111": ("models/Lora", "embeddings"),
    "comfyui": ("models/loras", "models/embeddings"),
}
FORMATS = ("diffusers", *FOLDERS, "pipeline")
Samples = tuple[Image.Image, Sequence[str]]  # a grid and its prompts
Rows = Sequence[dict[str, Any]]  # of `evaluation.json`


class Exported(NamedTuple):
    """What was written: files by their place in the folder, and the word that calls each learned token."""

    kind: str  # of FORMATS
    name: str
    files: tuple[str, ...]
    words: dict[str, str]  # "<satellite>" -> what a prompt says in that program


def check_export(adapter: str | Path, out: str | Path, kind: str, name: str) -> None:
    """Raise DasdError for a format, name, adapter or place that `export` cannot use."""
    check_choice("format", kind, FORMATS)
    if not name.replace("-", "").replace("_", "").isalnum():
        raise DasdError(f"{name!r} cannot name the files: use letters, digits, - and _ (--name).")
    if adapters.read_summary(adapter).get("unet") and kind in FOLDERS:
        raise DasdError(f"The UNet in {adapter} was trained in full, and {kind} has no file for that beside "
                        "a checkpoint. Export it with --format diffusers or pipeline.")  # fmt: skip
    found = {*_files(Path(out))}
    manifest = Path(out) / checkpoints.MANIFEST
    earlier = files.read_object(manifest, "The manifest") if manifest.is_file() else {}
    own = {checkpoints.MANIFEST, *earlier["files"]} if "export" in earlier else set()  # a run has none
    if found - own or Path(out).is_file():
        raise DasdError(f"{out} is a file or holds files that no export wrote: name a new or empty folder.")


def export(
    adapter: str | Path, out: str | Path, kind: str, config: Config, name: str,
    rows: Rows = (), samples: Samples | None = None,
) -> Exported:  # fmt: skip
    """Write the adapter to the folder `out`, completely or not at all; an earlier export there is replaced.

    kind "diffusers": `load_lora_weights(out)` and `load_textual_inversion(out/<token>.safetensors)`;
    "a1111", "comfyui": LoRA in kohya's keys with its true alpha and embeddings, in that program's folders;
    "pipeline": the base with the adapter in its weights, `from_pretrained(out)`. `name`: that of the two
    programs' LoRA, and before the embeddings' words. For the card: rows of `evaluation.json`, `draw_samples`.
    """
    check_export(adapter, out, kind, name)
    summary = adapters.read_summary(adapter)
    base = public_base(config)
    words = {token: token for token in summary["tokens"]}
    with files.atomic_folder(Path(out).absolute(), "The export") as new:
        if kind == "pipeline":
            _write_pipeline(Path(adapter), summary, config, new)
        elif kind in FOLDERS:
            words = _write_for_program(Path(adapter), summary, config, new, kind, name)
        else:
            for file in (path for name in adapters.FILES for path in Path(adapter).glob(name)):
                copy = new / file.relative_to(adapter)
                copy.parent.mkdir(exist_ok=True)
                shutil.copy2(file, copy)  # one by one: what copytree raises names no reason
            for path in new.rglob("*.safetensors"):
                adapters.read_tensors(path)  # refuses what is damaged or not finite
            files.write_json(new / adapters.SUMMARY_FILE, summary | {"base": base}, "The export")
        if samples:
            samples[0].save(new / SAMPLES)
        exported = Exported(kind, name, (CARD, *_files(new)), words)
        text = card(exported, config, summary, rows, samples[1] if samples else ())
        (new / CARD).write_text(str(text), encoding="utf8")
        facts = {"export": kind, "name": name, "base": base, "words": words}
        checkpoints.write_manifest(new, [new / file for file in _files(new)], **facts)
    return exported


def draw_samples(pipeline: Any) -> Samples:
    """Return a grid of images by base and adapted model, with the same prompts and noise, and the prompts."""
    grid = {"base": [], "adapted": []}
    prompts = []
    for domain in pipeline.config.domains:
        try:
            every = evaluation.load_prompts(pipeline.config, domain.name)
        except DasdError:  # no list: what describes the domain
            every = domain.descriptions[:NUM_SAMPLES] or [domain.name]
        own = every[:: max(len(every) // NUM_SAMPLES, 1)][:NUM_SAMPLES]  # from all over the list
        options = {"domain": domain.name, "seed": list(range(len(own)))}
        with pipeline.base():
            grid["base"] += pipeline.generate(own, **options)[0]
        grid["adapted"] += pipeline.generate(own, **options)[0]
        prompts += own
    buffer = io.BytesIO()
    figures.comparison_grid(grid).savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return Image.open(buffer), prompts


def public_base(config: Config) -> str:
    """Return the base's name for others: the last part of a path on this machine."""
    base = config.model.base
    return Path(base).name if Path(base).expanduser().is_absolute() else base


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _write_for_program(
    adapter: Path, summary: dict[str, Any], config: Config, out: Path, kind: str, name: str
) -> dict[str, str]:
    """Write LoRA and embeddings for A1111 or ComfyUI; return the word of each token."""
    loras, embeddings = (out / folder for folder in FOLDERS[kind])
    if lora := summary["lora"]:
        loras.mkdir(parents=True)
        convolutions = {"conv_dim": str(lora["rank"]), "conv_alpha": str(lora["alpha"])}
        shown = {  # by A1111; text alone is allowed
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(lora["rank"]),
            "ss_network_alpha": str(lora["alpha"]),
            "ss_network_args": json.dumps(convolutions if lora["convolutions"] != "none" else {}),
            "ss_base_model_version": "sd_v1",
            "ss_sd_model_name": public_base(config),
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.title": name,
        }
        state = kohya_state(adapters.read_tensors(adapter / adapters.LORA_FILE), lora["alpha"])
        save_file(state, loras / f"{name}.safetensors", shown)
    words = {}
    for token, file in summary["tokens"].items():
        embeddings.mkdir(parents=True, exist_ok=True)
        # a word of its own: `<...>` belongs to A1111's syntax, and "satellite" may stand in any prompt
        called = f"{name}-{Path(file).stem}"
        row = adapters.read_tensors(adapter / file)[token]
        save_file({"emb_params": row[None]}, embeddings / f"{called}.safetensors")  # (1, d): one vector
        words[token] = f"embedding:{called}" if kind == "comfyui" else called
    return words


def kohya_state(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return a LoRA of diffusers, "unet.<module>.lora_A.weight", under the keys of kohya's scripts.

    `lora_down` (r, in, ...), `lora_up` (out, r, ...) and `alpha` of each module: alpha / r * up @ down.
    """
    factors = {"lora_A": "lora_down", "lora_B": "lora_up"}
    renamed = {}
    for name, value in state.items():
        module, factor = name.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
        key = f"lora_unet_{module.replace('.', '_')}"
        renamed[f"{key}.{factors[factor]}.weight"] = value
        renamed[f"{key}.alpha"] = torch.tensor(float(alpha))
    return renamed


def _write_pipeline(adapter: Path, summary: dict[str, Any], config: Config, out: Path) -> None:
    """Write the complete base, float32, with what was learned added into its weights."""
    model = config.model
    base = files.find_weights(model.base, model.base_revision, model.base_variant)
    options = {"safety_checker": None, "requires_safety_checker": False}  # nothing here has looked at it
    options |= {"variant": model.base_variant, "dtype": torch.float32}
    pipeline = base.load(StableDiffusionPipeline, **options)
    if summary["lora"]:
        pipeline.load_lora_weights(adapter)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    if summary.get("unet"):
        pipeline.unet = UNet2DConditionModel.from_pretrained(adapter / adapters.UNET, dtype=torch.float32)
    for token, file in summary["tokens"].items():
        pipeline.load_textual_inversion(adapter / file, token=token)
    pipeline.save_pretrained(out)
    for path in list(out.rglob("*.json")):  # without where the parts were on this machine
        values = json.loads(path.read_text(encoding="utf8"))
        if isinstance(values, dict) and values.keys() & {"_name_or_path", "name_or_path"}:
            kept = {name: value for name, value in values.items() if not name.endswith("name_or_path")}
            files.write_json(path, kept, "The export")


def card(
    exported: Exported, config: Config, summary: dict[str, Any], rows: Rows = (), prompts: Sequence[str] = ()
) -> ModelCard:
    """Return the card. summary: the adapter's; prompts: of the grid."""
    base = config.model.base
    on_hub = not resolve(base).is_dir()
    tags = ["stable-diffusion", "text-to-image", "domain-adaptation"]
    data = ModelCardData(
        license=licence(base), library_name="diffusers", pipeline_tag="text-to-image",
        base_model=base if on_hub else None, tags=[*tags, "lora"] if summary["lora"] else tags,
        model_name=exported.name, eval_results=_results(rows) or None)  # fmt: skip
    places = {each.name: Path(each.data).expanduser() for each in (config.source, *config.domains)}
    return ModelCard.from_template(
        data, str(TEMPLATE), **exported._asdict(), config=config, summary=summary,
        address=files.address(), on_hub=on_hub, base=base if on_hub else resolve(base).name,
        folders={n: path.name for n, path in places.items() if path.is_absolute() or resolve(path).is_dir()},
        samples=SAMPLES, prompts=prompts, licence=data.license,
        rows=rows, results=evaluation.table(rows) if rows else "")  # fmt: skip


def _results(rows: Rows) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-to-image", metric_type=row["metric"], metric_value=round(row["value"], 4),
            dataset_type="custom", dataset_name=f"{row['domain']}, held-out images",
            metric_name=f"{row['metric']}, n = {row['n']}, seed {row['seed']}",
        )
        for row in rows
        if row["method"] not in (evaluation.BASE, evaluation.STYLED)]  # fmt: skip


def licence(base: str) -> str:
    """Return the licence of a base model: the hub's name for it, or "other" where it is not known."""
    if base.startswith(STABLE_DIFFUSION):
        return "creativeml-openrail-m"
    readme = resolve(base) / "README.md"
    found = ModelCard.load(readme).data.license if readme.is_file() else None
    return found if isinstance(found, str) else "other"
