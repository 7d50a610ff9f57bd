"""The largest micro-batch that fits in memory, at an unchanged number of samples to an optimiser step."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from dasd_utils import losses, models, training
from dasd_utils.config import Config, DasdError, method_module, resolve
from dasd_utils.latents import Batch
from dasd_utils.runtime import checkpoints, processes

SPARE = 0.1  # share of the free memory that stays free: fragments, workspaces, validation
# Peak of a step over what it keeps for the backward pass, by gradient_checkpointing: measured on a CPU, at
# 24 + 8 and 48 + 16 samples of the tiny base, 1.3 to 1.4 and 2.1 to 2.4.
PEAK_OVER_KEPT = {False: 1.5, True: 2.5}
SIZES = ("target_batch_size", "source_batch_size", "source_every", "gradient_accumulation_steps")
Sizes = dict[str, int]  # those fields of TrainingConfig
log = logging.getLogger(__name__)


def largest_batch(config: Config, parts: models.Parts) -> Config:
    """Return the config with as few micro-batches to a step as memory allows, of as many samples in all.

    On a GPU each size is tried by a step, the largest first; on a CPU, where too much memory ends the
    process, it is foretold from what small steps keep. The weights are not changed.
    Raises DasdError if not even the smallest fits, and in several processes, whose shares differ.
    """
    if processes.count() > 1:
        raise DasdError("The batch size is found in one process: run it without the launcher, then write its "
                        "sizes, times the number of processes, into the config.")  # fmt: skip
    method = method_module(config.method)
    if getattr(method, "COMPARES_SAMPLES", False):
        raise DasdError(f"auto_batch_size is made for DASD's step; the method {config.method!r} compares the "
                        "samples of a micro-batch, so that its size is part of the loss: set "
                        "target_batch_size and gradient_accumulation_steps yourself.")  # fmt: skip
    if not getattr(method, "ACCUMULATES", True):
        raise DasdError(f"auto_batch_size divides a step into micro-batches; the method {config.method!r} "
                        "takes one batch through several steps: set target_batch_size yourself.")  # fmt: skip
    updater = training.Updater(config.replace(compile_blocks=False), parts)
    fits = _tried if updater.device.type == "cuda" else _foretold(updater)
    try:
        for sizes in candidates(config):
            chosen = config.replace(**sizes)
            if fits(updater, chosen):
                log.info("Batch: %s", ", ".join(f"{name} {value}" for name, value in sizes.items()))
                return chosen
    finally:
        updater.release()
    raise DasdError(
        f"Not even {sizes['target_batch_size']} + {sizes['source_batch_size']} samples of "
        f"{config.model.resolution} px fit in the free memory of this {updater.device.type} device. "
        "Set gradient_checkpointing to true, or lower resolution or rank."
    )


def of_checkpoint(config: Config) -> Config | None:
    """Return the config with the sizes that the run in its folder was begun with, None if there is none."""
    path = checkpoints.newest_checkpoint(resolve(config.output_dir) / "checkpoints")
    if path is None:
        return None
    training = checkpoints.read_state(path).get("config", {}).get("training", {})
    return config.replace(**{name: training[name] for name in SIZES if name in training})


def candidates(config: Config) -> Iterator[Sizes]:
    """Yield the sizes that keep targets to a step and sources to a target as they are, the largest first."""
    training = config.training
    total = training.target_batch_size * training.gradient_accumulation_steps
    ratio = Fraction(training.source_batch_size, training.target_batch_size * training.source_every)
    for count in (k for k in range(1, total + 1) if total % k == 0):
        sources = ratio * (total // count)  # 2: two in each micro-batch; 1 / 3: one in every third
        sizes = dict(zip(SIZES, (total // count, *sources.as_integer_ratio(), count), strict=True))
        if count == training.gradient_accumulation_steps:
            sizes = {name: getattr(training, name) for name in SIZES}  # as they are, whatever they are
        elif sources and 1 not in sources.as_integer_ratio():
            continue
        try:
            config.replace(**sizes)
        except DasdError:  # too few of a domain for the MMD
            continue
        yield sizes


def _tried(updater: training.Updater, config: Config) -> bool:
    """Take a step's memory for a moment; False if there is not enough."""
    try:
        _take(updater, config)
        return True
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        updater.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)


def _take(updater: training.Updater, config: Config) -> None:
    """Do a pass beside what the optimiser will hold, and beside what is to stay free."""
    free, _ = torch.cuda.mem_get_info()
    _spare = torch.empty(int(SPARE * free), dtype=torch.uint8, device=updater.device)
    _moments = [torch.empty_like(p) for p in updater.parameters for _ in range(2)]
    _pass(updater, config)


def _foretold(updater: training.Updater) -> Any:
    """Return a judge of sizes: a step keeps a constant, and so much for each target and each source."""
    learned = 16 * sum(p.numel() for p in updater.parameters)  # gradient, two moments, one to spare
    free = (1 - SPARE) * psutil.virtual_memory().available - learned

    def kept(targets: int, sources: int) -> int:
        sizes = {"target_batch_size": targets, "source_batch_size": sources}
        config = updater.config.replace(**sizes, unbiased=False, source_every=1)
        with Kept(updater.parts.unet, updater.parts.text_encoder) as record:
            _pass(updater, config)
        updater.optimizer.zero_grad()
        return record.peak

    factor = PEAK_OVER_KEPT[updater.config.training.gradient_checkpointing]
    base = kept(1, 1)
    target, source = kept(2, 1) - base, kept(1, 2) - base

    def fits(_updater: training.Updater, config: Config) -> bool:
        targets, sources = config.training.target_batch_size, config.training.source_batch_size
        needed = factor * (base + (targets - 1) * target + (sources - 1) * source)
        log.info("%d + %d samples take about %.1f GB.", targets, sources, (needed + learned) / 1e9)
        return needed <= free

    return fits


class Kept:
    """Counts, inside its `with`, the most bytes that autograd keeps at a time, weights left out."""

    def __init__(self, *networks: torch.nn.Module, weights: Sequence[Tensor] = ()) -> None:
        """weights: tensors beside those of the networks that do not count."""
        known = [*weights, *(p for network in networks for p in network.parameters())]
        self._weights = {tensor.untyped_storage()._cdata for tensor in known}
        self._holders: dict[int, int] = {}  # storage -> how many saved tensors share it
        self.bytes = self.peak = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x: _Held(self, x), lambda held: held.tensor
        )

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def count(self, tensor: Tensor, change: int) -> None:
        """Add a holder of the tensor's storage, or with -1 take one away."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._weights:
            return
        holders = self._holders.get(storage._cdata, 0)
        self._holders[storage._cdata] = holders + change
        if holders == 0 or holders + change == 0:
            self.bytes += change * storage.nbytes()
        self.peak = max(self.peak, self.bytes)


class _Held:
    """A saved tensor for as long as the graph holds it."""

    def __init__(self, record: Kept, tensor: Tensor) -> None:
        self.record, self.tensor = record, tensor
        record.count(tensor, 1)

    def __del__(self) -> None:
        self.record.count(self.tensor, -1)


def _pass(updater: training.Updater, config: Config) -> None:
    """Do forward and backward pass of one micro-batch as training does, of no picture in particular."""
    updater.parts.unet.train()
    with updater.autocast():
        loss, _ = losses.make_objective(config)(updater.parts, _batch(updater, config), config)
    updater.backward(loss)
    updater.parts.unet.eval()


def _batch(updater: training.Updater, config: Config) -> Batch:
    sizes, parts = config.training, updater.parts
    side = config.model.resolution // 2 ** (len(parts.vae.config.block_out_channels) - 1)
    targets, sources = sizes.target_batch_size, sizes.source_batch_size
    channels = parts.unet.config.in_channels
    target, source = torch.zeros(targets, channels, side, side), torch.zeros(sources, channels, side, side)
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
