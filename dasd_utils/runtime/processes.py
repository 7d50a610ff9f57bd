"""Devices, their precision, and what several processes exchange; one process exchanges nothing.

Averages are means over processes: each weights its loss by its share of a batch, so that the mean is that of
the complete batch.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn

from dasd_utils.config import Config, DasdError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
log = logging.getLogger(__name__)


def state() -> PartialState:
    """Return accelerate's view of this process: CUDA if there is one, else the CPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def count() -> int:
    """Return how many processes there are."""
    return state().num_processes


def index() -> int:
    """Return which of them this one is."""
    return state().process_index


def is_main() -> bool:
    """Return whether this process writes what is written once."""
    return state().is_main_process


def share(total: int) -> slice:
    """Return which of `total` things this process takes: consecutive ones, equally many give or take one."""
    return slice(total * index() // count(), total * (index() + 1) // count())


def wait() -> None:
    """Wait until every process is here."""
    sum_tensor(torch.zeros(1))


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    return bool(sum_tensor(torch.tensor([float(flag)])).item())


def mean_values(values: Mapping[str, float]) -> dict[str, float]:
    """Return the mean over processes of each number; every process has the same names."""
    if count() == 1:
        return dict(values)
    names = sorted(values)
    means = _reduce(torch.tensor([values[name] for name in names], dtype=torch.float64), "mean")
    return dict(zip(names, means.tolist(), strict=True))


def sum_tensor(own: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, all of one shape."""
    return own if count() == 1 else _reduce(own, "sum")


def gather_rows(own: Tensor, places: Sequence[int], total: int) -> Tensor:
    """Return (total, ...): the rows of all processes, those of this one, (n, ...), at `places`.

    The gradient of a process's own rows is multiplied by the number of processes, which all compute the same
    loss from all rows: the mean of the gradients is then that of one process with all rows.
    """
    if count() == 1:
        return own
    rows = own.new_zeros(total, *own.shape[1:])
    rows[list(places)] = own.detach()
    rows = _reduce(rows, "sum")
    if own.requires_grad:
        mine = own.clone()
        mine.register_hook(lambda gradient: gradient * count())
        rows[list(places)] = mine
    return rows


@torch.no_grad()
def mean_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of the gradients."""
    if count() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    means = _reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for parameter, mean in zip(parameters, means.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter)


def same(value: int, what: str) -> None:
    """Raise DasdError unless all processes hold the same number."""
    found = gather_object([value])
    if len(set(found)) > 1:
        raise DasdError(f"The processes differ in {what}: {found}. They need one config and one output_dir.")


def end() -> None:
    """Leave together: a process that only exits tears the connection of the others."""
    if count() > 1:
        wait()
        state().destroy_process_group()


def _reduce(tensor: Tensor, how: str) -> Tensor:
    """Return the "sum" or "mean" over processes; DasdError if one of them is gone."""
    try:
        return reduce(tensor.to(state().device), how).to(tensor.device)
    except RuntimeError as error:  # gloo and NCCL have their own kinds
        if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):  # of this process
            raise
        # logged at once: the launcher, which ends all processes now, may not leave time for it later
        log.error(
            "Another of the %d processes ended (%.120s): see above. Go on with `--resume`.", count(), error
        )
        raise DasdError("Stopped, as another process did.") from error


def default_device() -> torch.device:
    """Return CUDA if there is one, else the CPU; of several processes each has its own GPU."""
    return state().device


def choose_precision(setting: str, device: torch.device) -> str:
    """Return "no", "bf16" or "fp16"; "auto" is bf16 where the device has it, else fp16 on CUDA, else fp32."""
    if setting == "fp16" and device.type != "cuda":
        raise DasdError(f"mixed_precision 'fp16' needs CUDA, here is {device.type!r}. Use 'bf16' or 'no'.")
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # emulated, bf16 is many times slower than fp32; torch before 2.11 cannot tell
    found = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "no"


def sampling_precision(setting: str, device: torch.device) -> str:
    """Return the precision without gradients: fp16 is "auto" without CUDA, so that any run can be sampled."""
    return choose_precision("auto" if setting == "fp16" and device.type != "cuda" else setting, device)


def autocast(setting: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which networks compute on the device, without gradients."""
    chosen = sampling_precision(setting, device)
    return torch.autocast(device.type, DTYPES.get(chosen), enabled=chosen in DTYPES)


def frozen_dtype(config: Config, device: torch.device | None = None) -> torch.dtype | None:
    """Return the half precision of the frozen UNet where the config wants it, None for float32."""
    if not config.model.half_weights:
        return None
    return DTYPES.get(sampling_precision(config.training.mixed_precision, device or default_device()))
