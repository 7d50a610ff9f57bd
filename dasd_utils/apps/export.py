"""A run's adapter in the files of other programs: diffusers, A1111, ComfyUI, or one whole pipeline."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx  # what huggingface_hub asks with
import huggingface_hub
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dasd_utils import adapters
from dasd_utils.config import Config, DasdError, nearest
from dasd_utils.runtime import checkpoints, files, pretrained

CARD, SAMPLES = "README.md", "samples.png"
LORA_KEY = re.compile(r"unet\.(.+)\.lora_(A|B)\.weight")
FOLDERS = {  # program -> where it looks for LoRAs and for embeddings, from its own folder
    "a1111": ("models/Lora", "embeddings"),
    "comfyui": ("models/loras", "models/embeddings"),
}
FORMATS = ("diffusers", *FOLDERS, "pipeline")


@dataclass(frozen=True)
class Exported:
    """What was written: files by their place in the folder, and the word that calls each learned token."""

    kind: str  # of FORMATS
    name: str
    files: tuple[str, ...]
    words: dict[str, str]  # "<satellite>" -> what a prompt says in that program


def check(adapter: str | Path, out: str | Path, kind: str) -> None:
    """Raise DasdError for an unknown format, a run that has no file in it, and a place that is taken."""
    if kind not in FORMATS:
        raise DasdError(f"There is no format {kind!r}. {nearest(kind, FORMATS)}")
    summary = adapters.read_summary(adapter)
    if kind in FOLDERS and summary.get("unet"):
        raise DasdError(f"All of the UNet learned in {adapter}, and {kind} has no file for that beside a "
                        "checkpoint. Export it with --format diffusers or pipeline.")  # fmt: skip
    out = Path(out)
    if out.exists() and not _replaceable(out):
        raise DasdError(f"{out} holds files that no export wrote: name a folder that is new or empty.")


def _replaceable(out: Path) -> bool:
    """Whether a folder is empty, or holds an export and nothing else: a run has a manifest too."""
    if not out.is_dir() or not any(out.iterdir()):
        return out.is_dir()
    try:
        facts = read_facts(out)
    except DasdError:
        return False
    return set(_files(out)) == {checkpoints.MANIFEST, *facts["files"]}


def read_facts(folder: str | Path) -> dict[str, Any]:
    """Return what the manifest of an export says: export (its format), name, base, words, files.

    Raises DasdError where there is no export.
    """
    path = Path(folder) / checkpoints.MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf8"))
        if facts["export"] in FORMATS and isinstance(facts["files"], dict):
            return facts
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DasdError(f"There is no export in {folder}. Make one: dasd export RUN {folder}")


def export(
    adapter: str | Path,
    out: str | Path,
    kind: str,
    config: Config,
    name: str,
    card: Callable[[Exported], ModelCard],
    samples: Image.Image | None = None,
) -> Exported:
    """Write the adapter to the folder `out`, whole or not at all; an earlier export there is replaced.

    kind "diffusers": `load_lora_weights(out)` and `load_textual_inversion(out/<domain>.safetensors)`;
    "a1111", "comfyui": LoRA in kohya's keys with its true alpha and embeddings, in that program's folders;
    "pipeline": the base with the adapter in its weights, `from_pretrained(out)`. `name` is that of the LoRA's
    file and leads the words of the embeddings. `card` writes the README of what was exported.
    Raises DasdError as `check` does, for a base that cannot be had, and for a folder that cannot be written.
    """
    check(adapter, out, kind)
    adapter, out = Path(adapter), Path(out).absolute()
    try:
        with files.atomic_folder(out, "The export") as new:
            words = _write(adapter, new, kind, config, name)
            if samples is not None:
                samples.save(new / SAMPLES)
            exported = Exported(kind, name, (CARD, *_files(new)), words)
            (new / CARD).write_text(str(card(exported)), encoding="utf8")
            checkpoints.write_manifest(new, [new / file for file in _files(new)], **_facts(config, exported))
    except SafetensorError as error:
        raise DasdError(f"The export cannot be written to {out}: {error}.") from None
    return exported


def told_base(config: Config) -> str:
    """Return the base's name for strangers: of a folder somewhere on this machine the last part."""
    base = config.model.base
    return Path(base).name if Path(base).expanduser().is_absolute() else base


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _facts(config: Config, exported: Exported) -> dict[str, Any]:
    return {
        "export": exported.kind,
        "name": exported.name,
        "base": told_base(config),
        "words": exported.words,
    }


def _write(adapter: Path, out: Path, kind: str, config: Config, name: str) -> dict[str, str]:
    """Write the files of a format; return the word of each token."""
    summary = adapters.read_summary(adapter)
    if kind == "pipeline":
        _write_pipeline(adapter, out, config, summary)
        return {token: token for token in summary["tokens"]}
    if kind == "diffusers":
        shutil.copytree(adapter, out, dirs_exist_ok=True)
        told = json.dumps(summary | {"base": told_base(config)}, indent=2) + "\n"
        (out / adapters.SUMMARY_FILE).write_text(told, encoding="utf8")
        return {token: token for token in summary["tokens"]}
    loras, embeddings = (out / folder for folder in FOLDERS[kind])
    if summary["lora"]:
        loras.mkdir(parents=True)
        state = kohya_state(load_file(adapter / adapters.LORA_FILE), summary["lora"]["alpha"])
        save_file(state, loras / f"{name}.safetensors", _kohya_metadata(summary, config, name))
    words = {}
    for token, file in summary["tokens"].items():
        embeddings.mkdir(parents=True, exist_ok=True)
        # a word of its own: `<...>` belongs to A1111's syntax, and "satellite" may stand in any prompt
        called = f"{name}-{Path(file).stem}"
        row = load_file(adapter / file)[token]
        save_file({"emb_params": row[None]}, embeddings / f"{called}.safetensors")  # (1, d): one vector
        words[token] = f"embedding:{called}" if kind == "comfyui" else called
    return words


def kohya_state(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return a LoRA of diffusers, "unet.<module>.lora_A.weight", under the keys of kohya's scripts.

    Those are read by A1111 and ComfyUI: `lora_down` (r, in, ...) and `lora_up` (out, r, ...) of each module,
    and its `alpha`, without which a reader takes the rank: the update is alpha / r * up @ down.
    """
    renamed = {}
    for name, value in state.items():
        match = LORA_KEY.fullmatch(name)
        if match is None:
            raise DasdError(f"The LoRA holds {name!r}, which is no weight of a UNet's LoRA. Save it again.")
        module = f"lora_unet_{match[1].replace('.', '_')}"
        renamed[f"{module}.lora_{'down' if match[2] == 'A' else 'up'}.weight"] = value
        renamed[f"{module}.alpha"] = torch.tensor(float(alpha))
    return renamed


def _kohya_metadata(summary: dict[str, Any], config: Config, name: str) -> dict[str, str]:
    """Return what A1111 shows of a LoRA; text alone is allowed."""
    rank, alpha = summary["lora"]["rank"], summary["lora"]["alpha"]
    convolutions = {"conv_dim": str(rank), "conv_alpha": str(alpha)}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(convolutions if summary["lora"]["convolutions"] != "none" else {}),
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": told_base(config),
        "ss_output_name": name,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": name,
        "modelspec.resolution": f"{config.model.resolution}x{config.model.resolution}",
    }


def _write_pipeline(adapter: Path, out: Path, config: Config, summary: dict[str, Any]) -> None:
    """Write the whole base, float32, with what was learned added into its weights."""
    model = config.model
    base = pretrained.find_weights(model.base, model.base_revision, model.base_variant)
    unchecked = {"safety_checker": None, "requires_safety_checker": False}  # nothing here has looked at it
    pipeline = base.load(
        StableDiffusionPipeline, variant=model.base_variant, dtype=torch.float32, **unchecked
    )
    if summary["lora"]:
        pipeline.load_lora_weights(adapter)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    if summary.get("unet"):
        pipeline.unet = UNet2DConditionModel.from_pretrained(adapter, subfolder=adapters.UNET)
    for token, file in summary["tokens"].items():
        pipeline.load_textual_inversion(adapter / file, token=token)
    pipeline.save_pretrained(out)
    for path in out.rglob("*.json"):
        _forget_places(path)


def _forget_places(path: Path) -> None:
    """Take out where parts were on this machine."""
    values = json.loads(path.read_text(encoding="utf8"))
    if isinstance(values, dict) and values.keys() & {"_name_or_path", "name_or_path"}:
        kept = {name: value for name, value in values.items() if not name.endswith("name_or_path")}
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


# Upload an export to the Hugging Face hub.


def planned_files(folder: str | Path, repo_id: str) -> list[dict[str, Any]]:
    """Return what would go, {"file", "bytes"} each; DasdError for no or a changed export, or an odd name."""
    try:
        huggingface_hub.utils.validate_repo_id(repo_id)
        named = repo_id.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise DasdError(f"{repo_id!r} is no repository of the hub: name it owner/name.")
    read_facts(folder)
    folder = Path(folder)
    files = [*checkpoints.verify_manifest(folder), checkpoints.MANIFEST]
    return [{"file": name, "bytes": (folder / name).stat().st_size} for name in sorted(files)]


def push(folder: str | Path, repo_id: str, private: bool = True, revision: str | None = None) -> str:
    """Upload the files that `planned` names in one commit and return the repository's address.

    The repository is made if it is not there. Raises DasdError where `planned` does, without a token, and
    with the hub's reason where it refuses or cannot be reached.
    """
    files = [row["file"] for row in planned_files(folder, repo_id)]
    try:
        return _upload(Path(folder), repo_id, files, private, revision)
    except LocalTokenNotFoundError:
        raise DasdError(
            "The hub wants to know who uploads: log in with `hf auth login`, or set HF_TOKEN."
        ) from None
    except HfHubHTTPError as error:
        said = error.server_message or str(error).split("\n")[0]
        raise DasdError(
            f"The hub refused {repo_id}: {said} Check the name, and that your token may write."
        ) from None
    except (OSError, httpx.HTTPError, OfflineModeIsEnabled) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise DasdError(
            f"The hub cannot be reached: {said} Files go in one commit, so none is there."
        ) from None


def _upload(folder: Path, repo_id: str, files: Sequence[str], private: bool, revision: str | None) -> str:
    api = huggingface_hub.HfApi(library_name="dasd-utils")
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=list(files),
        revision=revision,
        commit_message=f"Adapter as {read_facts(folder)['export']} files",
    )
    return str(address)
