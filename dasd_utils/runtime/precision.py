"""Device and precision of the networks: what is here, what it computes well, and the context for it."""

from __future__ import annotations

import contextlib

import torch

from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import processes

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def default_device() -> torch.device:
    """Return CUDA if there is one, else the CPU; of several processes each has its own GPU."""
    return processes.state().device


def usable_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device, `default_device()` for None; DasdError if there is no such device here."""
    try:
        found = default_device() if device is None else torch.device(device)
        torch.empty(1, device=found)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
        raise DasdError(f"The device {str(device)!r} cannot be used: {reason}. Name another one, such as "
                        "'cpu'.") from None  # fmt: skip
    return found


def choose_precision(setting: str, device: torch.device) -> str:
    """Return "no", "bf16" or "fp16"; "auto" is bf16 where the device has it, else fp16 on CUDA, else fp32.

    Raises DasdError for fp16 without CUDA: its gradients need a scaler.
    """
    if setting == "fp16" and device.type != "cuda":
        raise DasdError(f"mixed_precision 'fp16' needs a CUDA device, here is {device.type!r}. Use 'bf16' or "
                        "'no'.")  # fmt: skip
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "no"


def sampling_precision(setting: str, device: torch.device) -> str:
    """Return the precision without gradients: as `choose_precision`, but fp16 is "auto" without CUDA.

    A run that was trained in fp16 on a GPU can so be sampled anywhere.
    """
    return choose_precision("auto" if setting == "fp16" and device.type != "cuda" else setting, device)


def autocast(setting: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context in which networks compute on the device, without gradients."""
    chosen = sampling_precision(setting, device)
    return torch.autocast(device.type, DTYPES.get(chosen), enabled=chosen in DTYPES)


def frozen_dtype(config: Config, device: torch.device | None = None) -> torch.dtype | None:
    """Return the half precision of the frozen UNet where the config wants it, None for that of its files.

    The network computes in that precision anyway. The device is `default_device()` by default.
    """
    if not config.model.half_weights:
        return None
    return DTYPES.get(sampling_precision(config.training.mixed_precision, device or default_device()))


def _cpu_has_bf16() -> bool:
    """Return whether bf16 is native: emulated, it is many times slower than fp32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older than torch 2.11
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
