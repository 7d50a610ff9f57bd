"""Profiles (fields that differ from the defaults in `config`), published settings, what `auto` picks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SATELLITE: dict[str, Any] = {  # the same in both profiles
    "name": "satellite",
    "token": "<satellite>",
    "initial_word": "aerial",
    "descriptions": ["a satellite image", "an aerial view",
                     "an overhead photograph from above", "a top-down remote sensing image"],
    "style_suffix": "satellite image from above"}  # fmt: skip
XRAY: dict[str, Any] = {
    "name": "xray",
    "token": "<xray>",
    "initial_word": "radiograph",
    "descriptions": ["a chest x-ray", "a medical radiograph",
                     "a scan of the lungs", "a frontal radiograph of the thorax"],
    "style_suffix": "chest x-ray radiograph"}  # fmt: skip


def _sampling(guidance_scale: float, steps: int, scheduler: str) -> dict[str, Any]:
    return {"guidance_scale": guidance_scale, "num_inference_steps": steps, "scheduler": scheduler}


# The embedded default: a small latent diffusion model and the toy world, on a CPU in minutes.
TINY: dict[str, Any] = {
    "profile": "tiny",
    "shipped_run": "data/tiny-run",
    "model": {"attention": "plain", "half_weights": False},
    "lora": {"rank": 32, "alpha": 128.0, "dropout": 0.0},  # dropout is slow on a CPU
    "source": {
        "name": "painting",
        "data": "toyworld:painting",
        "num_images": 300,
        "calibration": _sampling(4.0, 15, "dpm++"),
    },
    "domains": [
        SATELLITE | {"data": "toyworld:satellite", "calibration": _sampling(4.0, 15, "dpm++")},
        XRAY | {"data": "toyworld:xray", "calibration": _sampling(5.0, 15, "dpm++")},
    ],
    "evaluation": {"num_inference_steps": 15, "scheduler": "dpm++"},
}

PUBLISHED_CALIBRATION = {
    "satellite": _sampling(7.0, 30, "ddim"),
    "xray": _sampling(7.5, 30, "ddim"),
    "default": _sampling(7.5, 30, "ddpm"),
}

# Stable Diffusion 1.5 and the three hub data sets; better defaults than the published ones.
SD15: dict[str, Any] = {
    "profile": "sd15",
    "model": {
        "base": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "base_revision": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "base_variant": "fp16",
        "clip": "openai/clip-vit-base-patch32",
        "clip_revision": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        "resolution": 512,
    },
    "source": {
        "name": "painting",
        "data": "huggan/few-shot-art-painting",
        "caption": "a painting",
        "num_images": 300,
    },
    "domains": [
        SATELLITE
        | {
            "data": "arampacha/rsicd",
            "caption_column": "captions",
            "test_split": "test",
            "calibration": PUBLISHED_CALIBRATION["satellite"],
        },
        XRAY
        | {
            "data": "hf-vision/chest-xray-pneumonia",
            "label_column": "label",
            "label_captions": {
                "NORMAL": "a chest x-ray of a child with clear lungs",
                "PNEUMONIA": "a chest x-ray of a child with pneumonia",
            },
            "test_split": "test",
            "calibration": PUBLISHED_CALIBRATION["xray"],
        },
    ],
    "lora": {"dropout": 0.0},  # it would keep a copy of each layer's input for the backward pass
    "training": {
        "max_train_steps": 1500,
        "target_batch_size": 3,
        "source_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-4,
        "token_learning_rate": 5e-4,
        "gradient_checkpointing": True,
    },
    "evaluation": {"guidance_scale": 7.5, "prompts_dir": "data/prompts/sd15"},
}

PROFILES = {"tiny": TINY, "sd15": SD15}
# The published settings by name: Config.setup("sd15", **PUBLISHED).
PUBLISHED: dict[str, Any] = {
    "dropout": 0.1,
    "learning_rate": 1e-5,
    "token_learning_rate": 5e-5,
    "target_batch_size": 1,
    "source_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "max_train_steps": 1500,
    "lambda_align": 0.01,
    "kernel": "gaussian",
    "unbiased": False,
    "pooling": "flat",
    "queue_size": 0,
    "source_features": "adapted",
    "min_snr_gamma": None,
    "caption_dropout": 0.0,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
}


def _sizes(targets: int, sources: int, micro_batches: int) -> dict[str, Any]:
    return {"target_batch_size": targets, "source_batch_size": sources,
            "gradient_accumulation_steps": micro_batches, "gradient_checkpointing": False}  # fmt: skip


# (a GPU of at least so many GB, the fields of sd15 that fit it), the largest first; a smaller one gets the
# profile as it is. An optimiser step has 12 + 4 samples in each. The peaks are those of notebook 04 in
# data/results/notebook_memory.json, counted for bf16, of which fp16 takes as many bytes; a tenth stays free.
FITTED_SIZES = ((23.5, _sizes(12, 4, 1)), (14.0, _sizes(6, 2, 2)))

# Fields that change what a micro-batch takes, or that are the sizes themselves: who sets one sets all.
SIZE_FIELDS = {
    "attention", "base", "gradient_accumulation_steps", "gradient_checkpointing", "half_weights",
    "mixed_precision", "resolution", "source_batch_size", "source_every", "target_batch_size", "whole_unet",
}  # fmt: skip


class AutoChoice(NamedTuple):
    """What `auto` picks: a profile, the fields that fit it to this machine, and why."""

    profile: str
    changes: dict[str, Any]
    reason: str


def choose_profile(given: Mapping[str, Any] | None = None) -> AutoChoice:
    """Return what `auto` picks: Stable Diffusion where CUDA has at least 8 GB, else `tiny`.

    given: the fields that the user sets. The profile's sizes stay where one of these is a size, or names a
    method, as its loss may depend on them.
    """
    import torch  # takes seconds, and only this choice needs it

    if not torch.cuda.is_available():
        return AutoChoice("tiny", {}, "no CUDA device here")
    size = torch.cuda.get_device_properties(0).total_memory
    name = torch.cuda.get_device_name(0)
    if size / 2**30 < 7.5:  # an "8 GB" card reports a little less than 8
        return AutoChoice("tiny", {}, f"{name} has {size / 2**30:.1f} GB, Stable Diffusion 1.5 needs 8")
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    reason = f"{name} with {size / 2**30:.0f} GB, which computes in {'bf16' if native else 'fp16'}"
    given = given or {}
    own = sorted(SIZE_FIELDS & given.keys())
    if given.get("method", "dasd") != "dasd":
        own.append("method")
    if own:
        return AutoChoice("sd15", {}, f"{reason}; sizes are not fitted to it, as {', '.join(own)} is given")
    changes = next((changes for least, changes in FITTED_SIZES if size / 1e9 >= least), {})
    sizes = ", ".join(f"{name} {value}" for name, value in changes.items()) or "sizes of the profile"
    return AutoChoice("sd15", dict(changes), f"{reason}; {sizes}")
