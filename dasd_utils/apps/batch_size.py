"""The largest micro-batch that fits in memory, found by steps on trial."""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import psutil
import torch
from accelerate.utils import find_executable_batch_size
from torch import Tensor

from dasd_utils import losses, training
from dasd_utils.config import Config, DasdError, method_module, resolve
from dasd_utils.latents import Batch
from dasd_utils.runtime import checkpoints, processes

if TYPE_CHECKING:
    from dasd_utils import models

SPARE = 0.1  # share of the free memory that stays free: fragments, workspaces, validation
# peak of a step over what it keeps for the backward pass, by gradient_checkpointing; measured at 24 + 8 and
# 48 + 16 samples of the tiny base on a CPU: 1.3 to 1.4, and 2.1 to 2.4
PEAK_OVER_KEPT = {False: 1.5, True: 2.5}
SIZES = ("target_batch_size", "source_batch_size", "source_every", "gradient_accumulation_steps")
log = logging.getLogger(__name__)


def largest_batch(config: Config, parts: models.Parts) -> Config:
    """Return the config with as few micro-batches to a step as memory allows, of as many samples in all.

    On a GPU each size is tried by a step, the largest first; on a CPU, where too much memory ends the
    process, what it takes is predicted from small steps. The weights are not changed. Raises DasdError if
    not even the smallest fits, for a method whose batches must not be divided, and in several processes.
    """
    method = method_module(config.method)
    if processes.count() > 1:
        raise DasdError("The batch size is found in one process: run it without the launcher.")
    if getattr(method, "COMPARES_SAMPLES", False) or not getattr(method, "ACCUMULATES", True):
        raise DasdError(f"auto_batch_size is made for DASD's step, which divides. In {config.method!r} "
                        "a micro-batch's size decides the loss: set target_batch_size yourself.")  # fmt: skip
    configs = {each.training.target_batch_size: each for each in candidates(config)}
    updater = training.Updater(config.replace(compile_blocks=False), parts)
    try:
        find = _find_by_trial if updater.device.type == "cuda" else _find_by_prediction
        chosen = find(updater, configs)
    finally:
        updater.release()
    if chosen is None:
        raise DasdError(f"Not even {min(configs)} target samples fit in memory: set gradient_checkpointing, "
                        "or lower resolution or rank.")  # fmt: skip
    log.info("Batch: %s", ", ".join(f"{name} {getattr(chosen.training, name)}" for name in SIZES))
    return chosen


def of_checkpoint(config: Config) -> Config | None:
    """Return the config with the sizes that the run in its folder was begun with, None if there is none."""
    path = checkpoints.newest_checkpoint(resolve(config.output_dir) / "checkpoints")
    if path is None:
        return None
    _, state = checkpoints.read_checkpoint(path)
    training = state["config"]["training"]
    return config.replace(**{name: training[name] for name in SIZES if name in training})


def candidates(config: Config) -> Iterator[Config]:
    """Yield configs that keep targets to a step and sources to a target as they are, the largest first."""
    given = config.training
    total = given.target_batch_size * given.gradient_accumulation_steps
    ratio = Fraction(given.source_batch_size, given.target_batch_size * given.source_every)
    for count in (k for k in range(1, total + 1) if total % k == 0):
        # 2 / 1: two in each; 1 / 3: one in every third
        sources = (ratio * (total // count)).as_integer_ratio()
        if count == given.gradient_accumulation_steps:
            yield config
        elif not sources[0] or 1 in sources:
            with contextlib.suppress(DasdError):  # too few of a domain for the MMD
                yield config.replace(**dict(zip(SIZES, (total // count, *sources, count), strict=True)))


def _find_by_trial(updater: training.Updater, configs: dict[int, Config]) -> Config | None:
    """Return the first config whose pass a GPU can do beside what the optimiser and others will need."""
    smaller = iter([*configs, None])
    spare = int(SPARE * torch.cuda.mem_get_info()[0])

    @find_executable_batch_size(starting_batch_size=next(smaller), reduce_batch_size_fn=lambda: next(smaller))
    def find(size: int | None) -> Config | None:
        if size is None:
            return None
        _spare = torch.empty(spare, dtype=torch.uint8, device=updater.device)
        _moments = [torch.empty_like(p) for p in updater.parameters for _ in range(2)]
        try:
            _pass(updater, configs[size])
        finally:
            updater.optimizer.zero_grad()
        return configs[size]

    return find()


def _find_by_prediction(updater: training.Updater, configs: dict[int, Config]) -> Config | None:
    """Return the first config whose step fits: it keeps a constant, and more for each target and source."""
    learned = 16 * sum(p.numel() for p in updater.parameters)  # gradient, two moments, one to spare
    free = (1 - SPARE) * psutil.virtual_memory().available - learned
    kept = free / PEAK_OVER_KEPT[updater.config.training.gradient_checkpointing]
    base = _kept(updater, 1, 1)
    target = _kept(updater, 2, 1) - base
    source = _kept(updater, 1, 2) - base
    for size, config in configs.items():
        if base + (size - 1) * target + (config.training.source_batch_size - 1) * source <= kept:
            return config
    return None


def _kept(updater: training.Updater, targets: int, sources: int) -> int:
    """Return the bytes that a pass of so many samples keeps for its backward pass."""
    changes = {"unbiased": False, "source_every": 1}
    config = updater.config.replace(target_batch_size=targets, source_batch_size=sources, **changes)
    record = Kept(updater.parts.unet, updater.parts.text_encoder)
    with record:
        _pass(updater, config)
    updater.optimizer.zero_grad()
    return record.peak


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts, inside its `with`, the most bytes that autograd keeps at a time, weights left out."""

    def __init__(self, *networks: torch.nn.Module) -> None:
        weights = [p for network in networks for p in network.parameters()]
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}
        self._users: Counter[int] = Counter()  # storage -> how many saved tensors share it
        self.bytes = self.peak = 0
        super().__init__(self._save, lambda saved: saved())

    def _save(self, tensor: Tensor) -> Callable[[], Tensor]:
        saved = functools.partial(lambda kept: kept, tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._count(storage, 1)
            weakref.finalize(saved, self._count, storage, -1)
        return saved

    def _count(self, storage: torch.UntypedStorage, change: int) -> None:
        before = self._users[storage._cdata]
        self._users[storage._cdata] += change
        if 0 in (before, before + change):
            self.bytes += change * storage.nbytes()
        self.peak = max(self.peak, self.bytes)


def _pass(updater: training.Updater, config: Config) -> None:
    """Do forward and backward pass of one micro-batch as training does, of no picture in particular."""
    updater.parts.unet.train()
    with updater.autocast():
        loss, _ = losses.make_objective(config)(updater.parts, _batch(updater, config), config)
    updater.backward(loss)
    updater.parts.unet.eval()


def _batch(updater: training.Updater, config: Config) -> Batch:
    parts = updater.parts
    targets, sources = config.training.target_batch_size, config.training.source_batch_size
    side = config.model.resolution // 2 ** (len(parts.vae.config.block_out_channels) - 1)
    target = torch.zeros(targets, parts.unet.config.in_channels, side, side)
    source = target.new_zeros(sources, *target.shape[1:])
    return Batch(
        target_latents=target,
        source_latents=source,
        target_prompts=[f"{config.domains[0].token or ''} a picture".strip()] * targets,
        source_prompts=["a picture"] * sources,
        target_domains=torch.arange(targets) % len(config.domains),
        target_timesteps=torch.full((targets,), 500),
        source_timesteps=torch.full((sources,), 500),
        target_noise=target,
        source_noise=source,
    ).to(updater.device, torch.float32)
