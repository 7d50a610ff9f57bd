"""What `auto` means on this machine: the profile, and the micro-batches that its GPU has memory for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST_GIB = 7.5  # of Stable Diffusion 1.5; an "8 GB" card reports a little less

# profile -> (a GPU of at least so many GB, fields), the largest first; a smaller one gets the profile as it
# is. Samples to an optimiser step are the profile's, 12 + 4 in sd15. The peaks are those of
# data/results/bench_gpu.json, counted for bf16, of which fp16 takes as many bytes; a tenth stays free.
FITTING: dict[str, tuple[tuple[float, dict[str, Any]], ...]] = {
    "sd15": (
        (20.0, {"target_batch_size": 12, "source_batch_size": 4, "gradient_accumulation_steps": 1,
                "gradient_checkpointing": False}),
        (12.0, {"target_batch_size": 6, "source_batch_size": 2, "gradient_accumulation_steps": 2,
                "gradient_checkpointing": False}),
    ),
}  # fmt: skip

# Fields that change what a micro-batch takes, or that are the sizes themselves: who sets one sets all.
OWN = {
    "attention", "base", "gradient_accumulation_steps", "gradient_checkpointing", "half_weights",
    "mixed_precision", "resolution", "source_batch_size", "source_every", "target_batch_size", "whole_unet",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What `auto` picks: a profile, the fields that fit it to this machine, and why."""

    profile: str
    changes: dict[str, Any]
    reason: str


def choose(given: Mapping[str, Any] | None = None) -> Choice:
    """Return what `auto` picks: Stable Diffusion where CUDA has at least 8 GB, else `tiny`.

    given: the fields that the user sets. Sizes are left alone where these decide them, or name a method:
    its loss may depend on them.
    """
    import torch

    if not torch.cuda.is_available():
        return Choice("tiny", {}, "no CUDA device here")
    size, name = torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    if size / 2**30 < LEAST_GIB:
        return Choice("tiny", {}, f"{name} has {size / 2**30:.1f} GB, Stable Diffusion 1.5 needs 8")
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    reason = f"{name} with {size / 2**30:.0f} GB, which computes in {'bf16' if native else 'fp16'}"
    own = sorted(OWN & set(given or ()))
    if (given or {}).get("method", "dasd") != "dasd":
        own.append("method")
    if own:
        return Choice("sd15", {}, f"{reason}; sizes are not fitted to it, as {', '.join(own)} is given")
    changes = fitting("sd15", size / 1e9)
    return Choice("sd15", changes, f"{reason}; {_said(changes)}")


def fitting(profile: str, gigabytes: float) -> dict[str, Any]:
    """Return the fields that fit a profile to a GPU of so many GB; none where it is to stay as it is."""
    for least, changes in FITTING.get(profile, ()):
        if gigabytes >= least:
            return dict(changes)
    return {}


def _said(changes: Mapping[str, Any]) -> str:
    if not changes:
        return "micro-batches are those of the profile"
    targets, sources, count = (changes[n] for n in ("target_batch_size", "source_batch_size",
                                                    "gradient_accumulation_steps"))  # fmt: skip
    return (f"{targets} + {sources} images at once, {count} times a step, "
            f"gradient checkpointing {'on' if changes['gradient_checkpointing'] else 'off'}")  # fmt: skip
