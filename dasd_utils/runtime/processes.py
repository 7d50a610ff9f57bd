"""What several processes exchange, each with its share of every batch; one process exchanges nothing.

Averages are means over processes, as in distributed data parallel training: a process whose share of a batch
is larger or smaller weights its loss by that share, so that the mean is that of the complete batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from dasd_utils.config import DasdError

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
    found = dict(zip(names, means.tolist(), strict=True))
    return {name: found[name] for name in values}


def sum_tensor(own: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, all of one shape."""
    return own if count() == 1 else _reduce(own, "sum")


def from_main(value: int) -> int:
    """Return the first process's number."""
    return int(sum_tensor(torch.tensor([value * is_main()])).item())


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
    everyone = torch.zeros(count(), dtype=torch.float64)
    everyone[index()] = value
    found = [int(number) for number in sum_tensor(everyone).tolist()]
    if len(set(found)) > 1:
        raise DasdError(f"The processes differ in {what}: {', '.join(map(str, found))}. They need one config "
                        "and one output_dir that all of them see.")  # fmt: skip


def end() -> None:
    """Leave together: a process that only exits tears the connection of the others."""
    if count() > 1:
        wait()
        state().destroy_process_group()


def _reduce(tensor: Tensor, how: str) -> Tensor:
    """Return the "sum" or "mean" over processes; DasdError if one of them is gone."""
    device = tensor.device
    try:
        return reduce(tensor.to(state().device), how).to(device)
    except RuntimeError as error:  # gloo and NCCL have their own kinds
        reason = str(error).partition("\n")[0][:120]
        # logged at once: the launcher, which ends all processes now, may not leave time for it later
        log.error("Another of the %d processes ended or cannot be reached (%s). What stopped it stands "
                  "above; go on from the last checkpoint with `--resume`.", count(), reason)  # fmt: skip
        raise DasdError("Stopped, as another process did.") from error
