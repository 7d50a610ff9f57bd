"""What several processes exchange, each with its share of every batch; one process exchanges nothing.

Whatever is averaged here is the mean over processes, as in distributed data parallel training: a process
whose share of a batch is larger or smaller weighs its loss by that share, so that the mean is the whole's.
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
    """Return which of `total` things are this process's: a stretch as long as the others', give or take 1."""
    return slice(total * index() // count(), total * (index() + 1) // count())


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        _exchanged(torch.zeros(1), "sum")


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    return flag if count() == 1 else bool(_exchanged(torch.tensor([float(flag)]), "sum").item())


def mean_values(values: Mapping[str, float]) -> dict[str, float]:
    """Return each number's mean; every process has the same names."""
    if count() == 1:
        return dict(values)
    names = sorted(values)
    means = _exchanged(torch.tensor([values[name] for name in names], dtype=torch.float64), "mean")
    found = dict(zip(names, means.tolist(), strict=True))
    return {name: found[name] for name in values}


def sum_tensor(own: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, all of one shape."""
    return own if count() == 1 else _exchanged(own, "sum")


def from_main(value: int) -> int:
    """Return the first process's number."""
    return value if count() == 1 else int(_exchanged(torch.tensor([value * is_main()]), "sum").item())


def gather_rows(own: Tensor, places: Sequence[int], total: int) -> Tensor:
    """Return (total, ...): the rows of all processes, those of this one, (n, ...), at `places`.

    The gradient of its own rows counts for every process, which all compute the same from the whole: the mean
    of the gradients is then that of one process with all rows.
    """
    if count() == 1:
        return own
    whole = own.new_zeros(total, *own.shape[1:])
    whole[list(places)] = own.detach()
    whole = _exchanged(whole, "sum")
    if own.requires_grad:
        mine = own.clone()
        mine.register_hook(lambda gradient: gradient * count())
        whole[list(places)] = mine
    return whole


@torch.no_grad()
def mean_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of the gradients."""
    if count() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    means = _exchanged(torch.cat([g.flatten() for g in gradients]), "mean")
    for parameter, mean in zip(parameters, means.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter)


def same(value: int, what: str) -> None:
    """Raise DasdError unless all processes hold the same number."""
    if count() == 1:
        return
    everyone = torch.zeros(count(), dtype=torch.float64)
    everyone[index()] = value
    found = [int(number) for number in _exchanged(everyone, "sum").tolist()]
    if len(set(found)) > 1:
        raise DasdError(f"The processes differ in {what}: {', '.join(map(str, found))}. They need one config "
                        "and one output_dir that all of them see.")  # fmt: skip


def _exchanged(tensor: Tensor, how: str) -> Tensor:
    device = tensor.device
    try:
        return reduce(tensor.to(state().device), how).to(device)
    except RuntimeError as error:  # gloo and NCCL have their own kinds
        reason = str(error).partition("\n")[0][:120]
        # said at once: the launcher, which ends all processes now, may not leave time for it later
        log.error("Another of the %d processes ended or cannot be reached (%s). What stopped it stands "
                  "above; go on from the last checkpoint with `--resume`.", count(), reason)  # fmt: skip
        raise DasdError("Stopped, as another process did.") from error


def end() -> None:
    """Leave together: a process that only exits tears the connection of the others."""
    if count() > 1:
        wait()
        state().destroy_process_group()
