"""The largest micro-batch that fits in the memory of a GPU, found by steps on trial."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from fractions import Fraction

import torch
from accelerate.utils import find_executable_batch_size

from dasd_utils import losses, training
from dasd_utils.config import Config, DasdError, method_module, resolve
from dasd_utils.latents import Batch
from dasd_utils.runtime import checkpoints, processes

SPARE = 0.1  # share of the free memory that stays free: fragments, workspaces, validation
SIZES = ("target_batch_size", "source_batch_size", "source_every", "gradient_accumulation_steps")
log = logging.getLogger(__name__)


def largest_batch(config: Config, parts: training.models.Parts) -> Config:
    """Return the config with as few micro-batches to a step as memory allows, of as many samples in all.

    Each size is tried by a step, the largest first; the weights are not changed. Raises DasdError without a
    GPU, if not even the smallest fits, for a method whose batches must not be divided, in several processes.
    """
    method = method_module(config.method)
    if processes.count() > 1:
        raise DasdError("The batch size is found in one process: run it without the launcher.")
    if getattr(method, "COMPARES_SAMPLES", False) or not getattr(method, "ACCUMULATES", True):
        raise DasdError(f"auto_batch_size is made for DASD's step, which divides. In {config.method!r} "
                        "a micro-batch's size decides the loss: set target_batch_size yourself.")  # fmt: skip
    if not has_gpu():
        raise DasdError("auto_batch_size tries steps on a GPU, and there is none here: set target_batch_size "
                        "and gradient_accumulation_steps yourself.")  # fmt: skip
    configs = {each.training.target_batch_size: each for each in candidates(config)}
    updater = training.Updater(config.replace(compile_blocks=False), parts)
    try:
        chosen = _find_by_trial(updater, configs)
    finally:
        updater.release()
    if chosen is None:
        raise DasdError(f"Not even {min(configs)} target samples fit in memory: set gradient_checkpointing, "
                        "or lower resolution or rank.")  # fmt: skip
    log.info("Batch: %s", ", ".join(f"{name} {getattr(chosen.training, name)}" for name in SIZES))
    return chosen


def has_gpu() -> bool:
    """Return whether training takes a GPU."""
    return processes.default_device().type == "cuda"


def of_checkpoint(config: Config) -> Config | None:
    """Return the config with the sizes that the run in its folder was begun with, None if there is none."""
    path = checkpoints.newest_checkpoint(resolve(config.output_dir) / "checkpoints")
    if path is None:
        return None
    _, state = checkpoints.read_checkpoint(path)
    sizes = {name: size for name, size in state["config"]["training"].items() if name in SIZES}
    log.info("Batch, as the run began: %s", ", ".join(f"{name} {size}" for name, size in sizes.items()))
    return config.replace(**sizes)


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
            _pass(updater, _batch(updater, configs[size]), configs[size])
        finally:
            updater.optimizer.zero_grad()
        return configs[size]

    return find()


def _pass(updater: training.Updater, batch: Batch, config: Config) -> None:
    """Do forward and backward pass of one micro-batch as training does, of no picture in particular."""
    updater.parts.unet.train()
    with updater.autocast():
        loss, _ = losses.make_objective(config)(updater.parts, batch, config)
    updater.backward(loss)
    updater.parts.unet.eval()


def _batch(updater: training.Updater, config: Config) -> Batch:
    parts = updater.parts
    targets, sources = config.training.target_batch_size, config.training.source_batch_size
    side = config.model.resolution // 2 ** (len(parts.vae.config.block_out_channels) - 1)
    target = torch.zeros(targets, parts.unet.config.in_channels, side, side)
    source = target.new_zeros(sources, *target.shape[1:])
    batch = Batch(
        target_latents=target, source_latents=source, target_noise=target, source_noise=source,
        target_prompts=[f"{config.domains[0].token or ''} a picture".strip()] * targets,
        source_prompts=["a picture"] * sources,
        target_domains=torch.arange(targets) % len(config.domains),
        target_timesteps=torch.full((targets,), 500), source_timesteps=torch.full((sources,), 500),
    ).to(updater.device, torch.float32)  # fmt: skip
    if not losses.uses_bank(config):
        return batch
    with updater.autocast():  # as training's own bank
        return dataclasses.replace(batch, source_features=losses.bank_features(parts, batch, config))
