"""A run's adapter in the files of other programs: diffusers, A1111, ComfyUI, or one complete pipeline."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dasd_utils import adapters, evaluation, figures
from dasd_utils.apps import model_card
from dasd_utils.apps.model_card import Exported
from dasd_utils.config import Config, DasdError, nearest
from dasd_utils.runtime import checkpoints, files

if TYPE_CHECKING:
    from dasd_utils.sampling import DasdPipeline

CARD = "README.md"
UPLOAD = "hf upload OWNER/NAME {folder}"
NUM_SAMPLES = 4  # a domain, in the picture of the card
FOLDERS = {  # program -> where it looks for LoRAs and for embeddings, from its own folder
    "a1111": ("models/Lora", "embeddings"),
    "comfyui": ("models/loras", "models/embeddings"),
}
FORMATS = ("diffusers", *FOLDERS, "pipeline")
Samples = tuple[Image.Image, Sequence[str]]  # a grid and its prompts


def check_export(adapter: str | Path, out: str | Path, kind: str, name: str) -> None:
    """Raise DasdError for an unknown format, a name that no prompt can hold, a folder without an adapter, an
    adapter that the format has no file for, and a place that holds other files."""
    if kind not in FORMATS:
        raise DasdError(f"There is no format {kind!r}. {nearest(kind, FORMATS)}")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise DasdError(f"{name!r} cannot name the files: use letters, digits, - and _ (--name).")
    summary = adapters.read_summary(adapter)
    if kind in FOLDERS and summary.get("unet"):
        raise DasdError(f"The UNet in {adapter} was trained in full, and {kind} has no file for that beside "
                        "a checkpoint. Export it with --format diffusers or pipeline.")  # fmt: skip
    out = Path(out)
    if out.exists() and not _is_replaceable(out):
        raise DasdError(f"{out} holds files that no export wrote: name a folder that is new or empty.")


def _is_replaceable(out: Path) -> bool:
    """Whether a folder is empty, or holds an export and nothing else: a run has a manifest too."""
    if not out.is_dir() or not any(out.iterdir()):
        return out.is_dir()
    try:
        manifest = files.read_object(out / checkpoints.MANIFEST, "The manifest")
        return manifest["export"] in FORMATS and {*_files(out)} == {checkpoints.MANIFEST, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def export(
    adapter: str | Path,
    out: str | Path,
    kind: str,
    config: Config,
    name: str,
    rows: Sequence[dict[str, Any]] = (),
    samples: Samples | None = None,
) -> Exported:
    """Write the adapter to the folder `out`, completely or not at all; an earlier export there is replaced.

    kind "diffusers": `load_lora_weights(out)` and `load_textual_inversion(out/<domain>.safetensors)`;
    "a1111", "comfyui": LoRA in kohya's keys with its true alpha and embeddings, in that program's folders;
    "pipeline": the base with the adapter in its weights, `from_pretrained(out)`. `name` names the LoRA's file
    and leads the words of the embeddings. rows, samples: of `evaluation_rows`, `draw_samples`, for the card.
    """
    check_export(adapter, out, kind, name)
    adapter = Path(adapter)
    out = Path(out).absolute()
    picture, prompts = samples or (None, ())
    try:
        with files.atomic_folder(out, "The export") as new:
            if kind == "pipeline":
                words = _write_pipeline(adapter, new, config)
            elif kind in FOLDERS:
                words = _write_for_program(adapter, new, kind, config, name)
            else:
                words = _write_for_diffusers(adapter, new, config)
            if picture is not None:
                picture.save(new / model_card.SAMPLES)
            exported = Exported(kind, name, (CARD, *_files(new)), words)
            card = model_card.card(exported, config, adapters.read_summary(adapter), rows, prompts)
            (new / CARD).write_text(str(card), encoding="utf8")
            facts = {"export": kind, "name": name, "base": public_base(config), "words": words}
            checkpoints.write_manifest(new, [new / file for file in _files(new)], **facts)
    except SafetensorError as error:
        raise DasdError(f"The export cannot be written to {out}: {error}.") from None
    return exported


def evaluation_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's `evaluation.json`, none if it has not been evaluated."""
    path = run / "evaluation.json"
    rows = evaluation.load_results(path)["rows"] if path.exists() else []
    for row in rows:
        lacks = {"method", "domain", "metric", "n", "seed", "value"} - row.keys()
        if lacks or not isinstance(row["value"], int | float):
            raise DasdError(
                f"A row of {path} lacks {min(lacks, default='a number')}: evaluate the run again."
            )
    return rows


def draw_samples(pipeline: DasdPipeline) -> Samples:
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


def _write_for_diffusers(adapter: Path, out: Path, config: Config) -> dict[str, str]:
    """Write a copy of the adapter; return the word of each token."""
    for file in _files(adapter):  # one by one: what copytree raises names no reason
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(adapter / file, out / file)
        if file.endswith(".safetensors"):
            adapters.read_tensors(out / file)  # refuses what is damaged or not finite
    summary = adapters.read_summary(adapter) | {"base": public_base(config)}
    files.write_json(out / adapters.SUMMARY_FILE, summary, "The export")
    return {token: token for token in summary["tokens"]}


def _write_for_program(adapter: Path, out: Path, kind: str, config: Config, name: str) -> dict[str, str]:
    """Write LoRA and embeddings for A1111 or ComfyUI; return the word of each token."""
    summary = adapters.read_summary(adapter)
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

    Those are read by A1111 and ComfyUI: `lora_down` (r, in, ...) and `lora_up` (out, r, ...) of each module,
    and its `alpha`, without which a reader takes the rank: the update is alpha / r * up @ down.
    """
    factors = {"lora_A": "lora_down", "lora_B": "lora_up"}
    renamed = {}
    for name, value in state.items():
        module, factor = name.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
        key = f"lora_unet_{module.replace('.', '_')}"
        renamed[f"{key}.{factors[factor]}.weight"] = value
        renamed[f"{key}.alpha"] = torch.tensor(float(alpha))
    return renamed


def _write_pipeline(adapter: Path, out: Path, config: Config) -> dict[str, str]:
    """Write the complete base, float32, with what was learned added into its weights; return the words."""
    model = config.model
    summary = adapters.read_summary(adapter)
    base = files.find_weights(model.base, model.base_revision, model.base_variant)
    unchecked = {"safety_checker": None, "requires_safety_checker": False}  # nothing here has looked at it
    pipeline = base.load(
        StableDiffusionPipeline, variant=model.base_variant, dtype=torch.float32, **unchecked
    )
    if summary["lora"]:
        pipeline.load_lora_weights(adapter)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    if summary.get("unet"):
        pipeline.unet = UNet2DConditionModel.from_pretrained(
            adapter, subfolder=adapters.UNET, dtype=torch.float32
        )
    for token, file in summary["tokens"].items():
        pipeline.load_textual_inversion(adapter / file, token=token)
    pipeline.save_pretrained(out)
    for path in list(out.rglob("*.json")):  # without where the parts were on this machine
        values = json.loads(path.read_text(encoding="utf8"))
        if isinstance(values, dict) and values.keys() & {"_name_or_path", "name_or_path"}:
            kept = {name: value for name, value in values.items() if not name.endswith("name_or_path")}
            files.write_json(path, kept, "The export")
    return {token: token for token in summary["tokens"]}
