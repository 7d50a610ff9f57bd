"""What was trained, LoRA and token rows, as files that plain diffusers loads, and as a flat state."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dasd_utils import config as cfg
from dasd_utils import models
from dasd_utils.runtime import checkpoints, files

LORA_FILE = "pytorch_lora_weights.safetensors"  # where diffusers looks for it
SUMMARY_FILE = "adapter.json"
FEW = 1024  # values of each weight that fingerprints of earlier versions read
UNET = "unet"  # the folder of a UNet all of whose weights learned, in the layout of diffusers
FILES = (SUMMARY_FILE, "*.safetensors", f"{UNET}/*")  # patterns of all that an adapter holds
UNET_FILES = (f"{UNET}/config.json", f"{UNET}/diffusion_pytorch_model.safetensors")


@cfg.section
class Summary:
    """What adapter.json holds: the base, and what was trained on it."""

    base: cfg.Text
    base_fingerprint: cfg.Text
    tokens: dict[cfg.Token, cfg.Text]  # token -> file
    lora: cfg.LoraSettings | None
    unet: cfg.Text | None = None  # the folder of a complete UNet
    base_revision: cfg.Text | None = None


def base_fingerprint(parts: models.Parts, values: int | None = None) -> str:
    """Return 16 hex digits of the base's UNet and text encoder: names, shapes, signs of their weights.

    Signs are the same in float32, float16 and bfloat16, so that the precision of loading does not matter,
    while a base trained again has another fingerprint. `values`: how many of each weight are read, by default
    all; earlier versions read FEW of them.
    """
    digest = hashlib.sha256()
    for name, weight in _base_weights(parts):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        signs = torch.signbit(weight.flatten()[:values]).cpu().numpy()
        digest.update(signs.tobytes() if values else np.packbits(signs).tobytes())
    return digest.hexdigest()[:16]


def exact_fingerprint(parts: models.Parts) -> list[str]:
    """Return [types, SHA-256] of all weights of the base as they are loaded."""
    weights = [*_base_weights(parts), *(parts.vae.state_dict().items() if parts.vae is not None else ())]
    digest = hashlib.sha256()
    for _, weight in weights:
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return [" ".join(sorted({str(weight.dtype) for _, weight in weights})), digest.hexdigest()]


def _base_weights(parts: models.Parts) -> Iterator[tuple[str, Tensor]]:
    """Yield names, without LoRA and as every version of transformers has them, and weights of the base."""
    unet = parts.base_weights or dict(parts.unet.named_parameters())
    for named in (unet, dict(parts.text_encoder.named_parameters())):
        plain = {n.replace(".base_layer.", ".").removeprefix("text_model."): p for n, p in named.items()}
        yield from ((name, p.detach()) for name, p in sorted(plain.items()) if "lora_" not in name)


def adapter_state(parts: models.Parts) -> dict[str, Tensor]:
    """Return copies of all that trains: "unet.<parameter>" of the LoRA or of all, and "tokens.weight"."""
    return {name: p.detach().clone() for name, p in trained(parts).items()}


@torch.no_grad()
def load_adapter_state(parts: models.Parts, state: dict[str, Tensor]) -> None:
    """Copy what `adapter_state` returned into parts with the same LoRA and tokens, else DasdError."""
    parameters = trained(parts)
    if _shapes(parameters) != _shapes(state):
        raise cfg.DasdError("This adapter state is of another LoRA or of other tokens than the model has.")
    for name, parameter in parameters.items():
        parameter.copy_(state[name])


def trained(parts: models.Parts) -> dict[str, Tensor]:
    """Return what `adapter_state` copies."""
    whole_unet = bool(parts.base_weights)
    weights = parts.unet.named_parameters()
    found = {f"unet.{name}": p for name, p in weights if whole_unet or "lora_" in name}
    return found if parts.tokens is None else found | {"tokens.weight": parts.tokens.weight}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def save_adapter(parts: models.Parts, folder: str | Path) -> None:
    """Write the LoRA, one file per token, and adapter.json; an adapter already there is replaced.

    Plain diffusers reads them with `load_lora_weights(folder)` and `load_textual_inversion(file)`. A complete
    UNet is in `unet/`, for `UNet2DConditionModel.from_pretrained(folder, subfolder="unet")`.
    Raises DasdError if the folder is not an adapter's or not writable.
    """
    folder = Path(folder)
    check_place(folder)
    try:
        with files.atomic_folder(folder, "The adapter") as new:
            _write(parts, new)
    except (cfg.DasdError, SafetensorError) as error:
        raise cfg.DasdError(f"{folder} is not saved. {error} Make room, or name another folder.") from None


def check_place(folder: Path) -> None:
    """Raise DasdError where `save_adapter` would not write: a folder of other files."""
    is_adapter = (folder / SUMMARY_FILE).is_file()
    if folder.exists() and not is_adapter and (folder.is_file() or any(folder.iterdir())):
        raise cfg.DasdError(f"{folder} holds other files: name another folder for the adapter.")


def _write(parts: models.Parts, folder: Path) -> None:
    lora = getattr(parts.unet, "peft_config", {}).get("default")
    settings = None
    if lora is not None:
        state = {f"unet.{name}": p.cpu() for name, p in get_peft_model_state_dict(parts.unet).items()}
        # without it alpha would be read as the rank; one key: safetensors writes several in any order
        metadata = json.dumps({f"unet.{name}": value for name, value in lora.to_dict().items()})
        save_file(state, folder / LORA_FILE, {"lora_adapter_metadata": metadata})
        names = {pattern: name for name, pattern in models.TARGETS.items()}
        settings = {"rank": lora.r, "alpha": lora.lora_alpha, "dropout": lora.lora_dropout,
                    "convolutions": names[lora.target_modules]}  # fmt: skip
    if parts.base_weights:
        parts.unet.save_pretrained(folder / UNET)
        path = folder / UNET_FILES[0]
        values = json.loads(path.read_text(encoding="utf8"))
        values.pop("_name_or_path", None)  # where the base was on this machine
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")
    token_files = {token: _token_file(token) for token in parts.token_ids}
    for row, (token, file) in enumerate(token_files.items()):
        save_file({token: parts.tokens.weight[row].detach().cpu().clone()}, folder / file)
    summary = {
        "base": parts.config.model.base,
        "base_revision": parts.config.model.base_revision,
        "base_fingerprint": base_fingerprint(parts),
        "lora": settings,
        "tokens": token_files,
        **({"unet": UNET} if parts.base_weights else {}),
    }
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf8")


def _token_file(token: str) -> str:
    return f"{token.strip('<>')}.safetensors"


def load_adapter(parts: models.Parts, folder: str | Path) -> None:
    """Add the LoRA and the tokens that `save_adapter` wrote to fresh parts of the same base.

    Everything is read before the parts are touched. Raises DasdError for files that are missing, damaged or
    of another base, and for parts that have an adapter already.
    """
    folder = Path(folder)
    summary = read_summary(folder)
    if summary["base_fingerprint"] not in (base_fingerprint(parts), base_fingerprint(parts, FEW)):
        raise cfg.DasdError(f"The adapter in {folder} belongs to the base {summary['base']!r}, not to "
                            f"{parts.config.model.base!r} as it is now.")  # fmt: skip
    if trained(parts):
        raise cfg.DasdError("These parts already have an adapter. Load fresh parts for another one.")
    width = parts.text_encoder.get_input_embeddings().embedding_dim
    rows = []
    for token, file in summary["tokens"].items():
        found = read_tensors(folder / file)
        if _shapes(found) != {token: (width,)}:
            raise cfg.DasdError(f"{folder / file} holds no row of {token}, {width} wide. Save it again.")
        rows.append(found[token])
    state = None if summary["lora"] is None else read_tensors(folder / LORA_FILE)
    unet = read_tensors(folder / UNET_FILES[1]) if summary.get("unet") else None
    if state is not None:
        models.add_lora(parts.unet, cfg.LoraSettings(**summary["lora"]))
        state = {name.removeprefix("unet."): value for name, value in state.items()}
        if _shapes(state) != _shapes(get_peft_model_state_dict(parts.unet)):
            raise cfg.DasdError(f"{folder / LORA_FILE} does not fit the settings in {SUMMARY_FILE}.")
        set_peft_model_state_dict(parts.unet, state)
    if unet is not None:
        models.unfreeze_unet(parts)
        parts.unet.load_state_dict(unet)
    if rows:
        models.attach_tokens(parts, list(summary["tokens"]), torch.stack(rows))


def read_summary(folder: str | Path) -> dict[str, Any]:
    """Return the values of adapter.json (`Summary`); DasdError if it or a file that it names is missing."""
    path = Path(folder) / SUMMARY_FILE
    if not path.is_file():
        raise cfg.DasdError(f"There is no adapter in {folder}, as it has no {SUMMARY_FILE}. Train one first, "
                            "or name its folder.")  # fmt: skip
    try:
        values = files.read_json(path, "The adapter")
        names = [each.name for each in dataclasses.fields(Summary)]
        known = {name: values[name] for name in names if name in values}  # later versions may write more
        summary = Summary(**known)
    except (TypeError, ValueError) as error:
        raise cfg.DasdError(f"{path} is damaged: {error}") from None
    for token, file in summary.tokens.items():
        if file != _token_file(token):  # another name could lead out of the folder
            raise cfg.DasdError(f"{path} is damaged: {token} is in {_token_file(token)}, not in {file!r}.")
    needed = [*summary.tokens.values(), *([LORA_FILE] if summary.lora else [])]
    needed += UNET_FILES if summary.unet else ()
    for name in needed:
        if not (path.parent / name).is_file():
            raise cfg.DasdError(f"The adapter in {folder} lacks {name}.")
    folder = path.parent.resolve()
    if (folder.parent / checkpoints.MANIFEST).is_file():
        checkpoints.verify_manifest(folder.parent, f"{folder.name}/")
    return values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter's file; DasdError for a damaged one and for what is not finite."""
    tensors = checkpoints.read_tensors(path)
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise cfg.DasdError(f"{path} holds NaN or infinity in {name}: it would draw nothing. Train "
                                "again, with a lower learning_rate.")  # fmt: skip
    return tensors
