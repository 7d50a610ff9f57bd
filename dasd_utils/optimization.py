"""One optimiser step: precision, backward, clipping, AdamW, learning rates, token norm, moving average.

What it carries from step to step is the moments of AdamW, the moving average and the scale of fp16; the
learning rates are functions of the step.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from dasd_utils import adapters, models
from dasd_utils.config import Config, DasdError, TrainingConfig
from dasd_utils.runtime import checkpoints, processes
from dasd_utils.runtime.precision import choose_precision

BY_STEP_ALONE = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


def check(training: TrainingConfig) -> None:
    """Raise DasdError for a schedule or a precision that cannot work here."""
    if training.lr_scheduler not in BY_STEP_ALONE:
        raise DasdError(f"lr_scheduler is {training.lr_scheduler!r}. Choices: {', '.join(BY_STEP_ALONE)}.")
    if training.target_batch_size < processes.count():
        raise DasdError(f"target_batch_size is {training.target_batch_size}, too little for "
                        f"{processes.count()} processes to share: enlarge it, with fewer accumulation "
                        "steps, or launch fewer.")  # fmt: skip
    choose_precision(training.mixed_precision, processes.state().device)
    if training.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise DasdError("optimizer 'adamw_8bit' needs the package bitsandbytes, which is not installed: "
                        "`pip install bitsandbytes`, or set optimizer to 'adamw'.")  # fmt: skip


class Updater:
    """Turns losses into updates of LoRA, or of the whole UNet, and token rows."""

    def __init__(self, config: Config, parts: models.Parts) -> None:
        self.config, self.parts = config, parts
        training = config.training
        self.accelerator = _accelerator(training)
        groups = models.trainable_parameters(parts)
        for module in (parts.unet, parts.text_encoder, parts.tokens):
            if module is not None:
                module.to(self.accelerator.device)
        if training.gradient_checkpointing:
            parts.unet.enable_gradient_checkpointing()
        self.parameters = [parameter for group in groups.values() for parameter in group]
        if training.compile_blocks:
            parts.unet.compile_repeated_blocks()
        optimizer = _optimizer(_groups(groups, training), training)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.rate_factor = _rate_factor(optimizer, training)  # step -> factor of the base rates
        self.optimizer = self.accelerator.prepare(optimizer)
        self.ema = None if training.ema_decay is None else EMAModel(self.parameters, decay=training.ema_decay)
        vocabulary = parts.text_encoder.get_input_embeddings().weight.detach()
        self.vocabulary_norm = vocabulary.float().norm(dim=1).mean()

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.accelerator.device

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which the network computes at the chosen precision."""
        return self.accelerator.autocast()

    def set_rates(self, step: int) -> dict[str, float]:
        """Set the learning rates of the step that follows `step` done ones and return them by name."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.rate_factor(step)
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    def seed_dropout(self, step: int, micro: int) -> None:
        """Make what torch draws from here on a function of the seed and the step."""
        place = [processes.index()] if processes.index() else []  # other samples, other dropout
        counter = np.random.SeedSequence([self.config.seed, step, micro, *place])
        torch.manual_seed(int(counter.generate_state(1, np.uint64)[0]))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one of `gradient_accumulation_steps` micro-batches."""
        self.accelerator.backward(loss)  # divides by their number

    def update(self, finite_loss: bool) -> tuple[float, bool]:
        """Clip, step, and clear the gradients; return (their norm before clipping, whether it stepped).

        Without a finite loss and norm nothing changes but the scale of fp16.
        """
        processes.mean_gradients(self.parameters)
        limit = self.config.training.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit if limit > 0 else float("inf")).item()
        stepped = finite_loss and norm < float("inf")  # False for nan too
        if stepped:
            self.optimizer.step()
            self._restore_token_norm()
            if self.ema is not None:
                self.ema.step(self.parameters)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self.optimizer.zero_grad()
        return norm, stepped

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside the `with`: no dropout, and the moving average as weights, if there is one."""
        self.parts.unet.eval()
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore(self.parameters)

    def keep_average(self) -> None:
        """Leave the moving average, if there is one, in the weights for good."""
        if self.ema is not None:
            self.ema.copy_to(self.parameters)

    def release(self) -> None:
        """Leave the network as it was before training, but for what trained."""
        self.parts.unet.disable_gradient_checkpointing()
        for module in self.parts.unet.modules():
            module._compiled_call_impl = None  # undoes `compile_repeated_blocks`, as torch has no other way

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return (groups of tensors, JSON values) from which `load` goes on exactly."""
        tensors = {
            "adapter": adapters.adapter_state(self.parts),
            "optimizer": checkpoints.optimizer_tensors(self.optimizer.optimizer),
        }
        scaler = self.accelerator.scaler
        values = {"scaler": scaler.state_dict() if scaler is not None else None}
        if self.ema is not None:
            tensors["ema"] = {str(i): value for i, value in enumerate(self.ema.shadow_params)}
            values["ema_steps"] = self.ema.optimization_step
        return tensors, values

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        adapters.load_adapter_state(self.parts, tensors["adapter"])
        checkpoints.load_optimizer(self.optimizer.optimizer, tensors.get("optimizer", {}))
        if self.accelerator.scaler is not None and values["scaler"]:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        if self.ema is not None:
            shadows = [tensors["ema"][str(i)] for i in range(len(self.parameters))]
            self.ema.load_state_dict({"shadow_params": shadows, "optimization_step": values["ema_steps"]})
            self.ema.to(self.device)

    @torch.no_grad()
    def _restore_token_norm(self) -> None:
        """Pivotal tuning: a new row keeps the mean norm of the vocabulary's, only its direction learns."""
        if self.parts.tokens is None:
            return
        rows = self.parts.tokens.weight
        rows.mul_(self.vocabulary_norm / rows.norm(dim=1, keepdim=True))


def _accelerator(training: TrainingConfig) -> Accelerator:
    precision = choose_precision(training.mixed_precision, processes.state().device)
    shared = AcceleratorState._shared_state  # one for the process, and it refuses a second precision
    if shared and shared.get("_mixed_precision") != precision:
        AcceleratorState._reset_state()
    # as a plugin, since `accelerate launch` overrides the plain number through the environment
    accumulation = GradientAccumulationPlugin(num_steps=training.gradient_accumulation_steps)
    cpu = processes.state().device.type == "cpu"
    return Accelerator(cpu=cpu, mixed_precision=precision, gradient_accumulation_plugin=accumulation)


def _groups(groups: Mapping[str, list[torch.nn.Parameter]], training: TrainingConfig) -> list[dict[str, Any]]:
    """The UNet's weights decay, LoRA or all of them; tokens do not: they keep their norm instead."""
    inner = {"name": "learning_rate", "lr": training.learning_rate, "weight_decay": training.weight_decay}
    tokens = {"name": "token_learning_rate", "lr": training.token_learning_rate, "weight_decay": 0.0}
    settings = {"lora": inner, "unet": inner, "tokens": tokens}
    return [{"params": found, **settings[kind]} for kind, found in groups.items() if found]


def _optimizer(groups: list[dict[str, Any]], training: TrainingConfig) -> torch.optim.Optimizer:
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    from bitsandbytes.optim import AdamW8bit  # optional, and slow to import

    return AdamW8bit(groups)


def _rate_factor(optimizer: torch.optim.Optimizer, training: TrainingConfig) -> Any:
    schedule = get_scheduler(
        SchedulerType(training.lr_scheduler),
        optimizer,
        num_warmup_steps=training.lr_warmup_steps,
        num_training_steps=training.max_train_steps,
    )
    return schedule.lr_lambdas[0]
