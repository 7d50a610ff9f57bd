"""Training: one loop of named steps for every objective, and one optimiser step, with exact resume.

Samples, noise and dropout of step k are functions of (seed, k), its learning rate of (k, max_train_steps): a
resumed run repeats, bit for bit on a CPU, what an uninterrupted one does.
"""

import contextlib
import logging
import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, is_bnb_available
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from dasd_utils import adapters, latents, losses, models
from dasd_utils.config import Config, DasdError, TrainingConfig, check_types, paper, resolve
from dasd_utils.runtime import checkpoints, files, processes, tracking

HISTORY = "history.jsonl"  # one row a step: what a second run repeats
SPEED = "speed.jsonl"  # and what it does not
# beginnings of the config fields that parts and sampler bring into a training
OF_PARTS = ("seed", "domains.", "model.", "lora.", "training.whole_unet", "training.text_free")
OF_SAMPLER = ("seed", "source.", "domains.", "data.", "model.", "alignment.bank_size", "training.target_",
              "training.source_", "training.gradient_acc", "training.caption_")  # fmt: skip
MAX_SKIPPED = 20  # steps in a row without a finite loss and gradient; fp16 may skip 16 to find its scale
HistoryRow = dict[str, Any]  # step, loss, its terms, grad_norm, learning rates, validation_<domain>
log = logging.getLogger(__name__)


@dataclass
class Callbacks:
    """What a caller may attach to the loop."""

    on_step: Callable[[HistoryRow], None] | None = None  # after each step, with its history row
    # every `sample_every` steps, without dropout; {"satellite": [image, ...]} that it returns is tracked
    on_sample: Callable[[int], Any] | None = None
    progress: bool = True
    stop: threading.Event | None = None  # set by another thread, it ends the run as Ctrl-C does


def check_training(config: Config) -> None:
    """Raise DasdError for settings that training cannot follow here, before model and data are read."""
    size = config.training.target_batch_size
    if size < processes.count():
        raise DasdError(f"target_batch_size is {size}, too little for {processes.count()} processes to "
                        "share: enlarge it, with fewer accumulation steps, or launch fewer.")  # fmt: skip
    processes.choose_precision(config.training.mixed_precision, processes.default_device())
    tracking.tracker_names(config)  # or an error
    if config.training.optimizer == "adamw_8bit" and not is_bnb_available():
        raise DasdError("optimizer is 'adamw_8bit', which needs `pip install bitsandbytes`; or set 'adamw'.")


def check_folder(config: Config, resume: bool, force: bool = False) -> None:
    """Raise DasdError for a folder that cannot be written, or whose run is neither resumed nor replaced."""
    folder = files.output_folder(config.output_dir)
    adapters.check_place(folder / "adapter")
    has_adapter, has_steps = (folder / "adapter").is_dir(), any(folder.glob("checkpoints/step-*"))
    begun = has_adapter or has_steps or (folder / HISTORY).is_file()
    is_whole = has_adapter and not has_steps
    if begun and not force and (not resume or is_whole):
        found = "no checkpoint to go on from" if is_whole else "go on with resume=True (`--resume`)"
        raise DasdError(f"{folder} holds a run: {found}. To train anew in its place give force=True "
                        "(`--force`), or set output_dir to another folder.")  # fmt: skip


def setup_training(config: Config) -> models.Parts:
    """Return the frozen base with seeded LoRA weights and domain tokens; with `whole_unet` the UNet trains.

    Raises DasdError if the base is missing, already has a token, or lacks the block to align at.
    """
    check_types(config=(config, Config))
    torch.manual_seed(config.seed)
    whole_unet = config.training.whole_unet
    parts = models.load_parts(config, unet_dtype=None if whole_unet else processes.frozen_dtype(config))
    models.blocks(parts.unet, config.alignment.layer)
    if whole_unet:
        models.unfreeze_unet(parts)
        if config.training.text_free:
            paper("text_free").open_text_free(parts.to(processes.default_device()))
    elif config.lora.rank > 0:
        models.add_lora(parts.unet, config.lora)
    models.add_domain_tokens(parts, config.domains)
    models.trainable_parameters(parts)
    base = {f"unet.{name}": weight.cpu() for name, weight in parts.base_weights.items()}  # not held twice
    for name, value in adapters.trained(parts).items():
        own = value.detach().cpu()
        parts.start[name] = base[name] if name in base and own.equal(base[name]) else own.clone()
    return parts


def train(
    config: Config, parts: models.Parts, sampler: latents.Sampler,
    token_ids: Mapping[str, int] | None = None, *, objective: losses.Objective | None = None,
    resume: bool = False, force: bool = False, **callbacks: Any,
) -> list[HistoryRow]:  # fmt: skip
    """Train LoRA and tokens in place and return the history: one row a step.

    `objective` is that of the config's method by default; `callbacks` are the fields of `Callbacks`. `resume`
    goes on from the newest complete checkpoint in `config.output_dir`, or from the start; `force` deletes the
    run there and what was drawn of it. Ctrl-C, SIGTERM or `stop` ends the present step, writes a checkpoint
    and raises KeyboardInterrupt. Of several processes each trains on its share of every batch.
    Raises DasdError before any work for parts, sampler, folder or checkpoint that do not fit, and after
    MAX_SKIPPED steps in a row whose loss or gradient is not finite.
    """
    check_types(config=(config, Config), parts=(parts, models.Parts), sampler=(sampler, latents.Sampler))
    attached = Callbacks(**callbacks)
    missing = {domain.token for domain in config.domains if domain.token} - parts.token_ids.keys()
    if missing or token_ids not in (None, parts.token_ids):
        raise DasdError(f"The parts have the token_ids {parts.token_ids}, which are not those of this call: "
                        "make them with setup_training(config).")  # fmt: skip
    for given, fields in ((parts, OF_PARTS), (sampler, OF_SAMPLER)):
        for each in checkpoints.differences(given.config.to_dict(), config.to_dict()):
            if each.startswith(fields):
                raise DasdError(f"Parts or sampler are of another config ({each}): make both anew by it.")
    check_training(config)
    with checkpoints.lock_run(config):
        check_folder(config, resume, force)  # inside the lock: a run at work is said to be at work
        if parts.start:  # they may have trained
            adapters.load_adapter_state(parts, parts.start)
        run = Run(config, parts, sampler, objective, attached)
        try:
            first = run.restore() if resume else 0
            if first < config.training.max_train_steps:
                with tracking.open_trackers(config, first) as run.trackers:
                    run.encode()
                    checkpoints.clear_run(run.folder, first, HISTORY, SPEED)  # when all is ready to train
                    _loop(run, first)
            run.updater.keep_average()
        finally:
            run.release()
    return run.history


def train_or_resume(config: Config, name: str, progress: bool = True) -> None:
    """Train and save what is left of a config's run: nothing, the steps after its checkpoint, or all."""
    if not checkpoints.is_complete(config):
        log.info("%s: training in %s", name, config.output_dir)
        parts = setup_training(config)
        *_, sampler = latents.create_datasets(config, parts.tokenizer)
        history = train(config, parts, sampler, resume=True, progress=progress)
        save_training_results(config, parts, history)


def save_training_results(config: Config, parts: models.Parts, losses: Sequence[HistoryRow]) -> Path:
    """Write `adapter/`, `history.jsonl`, `config.json`, at last their manifest; return the run's folder."""
    check_types(config=(config, Config), parts=(parts, models.Parts))
    folder = files.output_folder(config.output_dir)
    with checkpoints.lock_run(config):
        if processes.is_main():
            (folder / checkpoints.MANIFEST).unlink(missing_ok=True)
            adapters.save_adapter(parts, folder / "adapter")
            checkpoints.write_rows(folder / HISTORY, losses)
            adapter_files = [path for path in (folder / "adapter").rglob("*") if path.is_file()]
            written = [config.save(folder / "config.json"), folder / HISTORY, *adapter_files]
            checkpoints.write_manifest(folder, written)
        processes.wait()
    return folder


def load_history(folder: str | Path) -> list[HistoryRow]:
    """Return the rows of `<folder>/history.jsonl`; DasdError if there is none."""
    path = resolve(folder) / HISTORY
    if not path.is_file():
        raise DasdError(f"There is no history {path}: train first, or name another run folder.")
    return checkpoints.load_rows(path)


# The loop, and the steps that it is made of.


def _loop(run: "Run", first: int) -> None:
    """Train from step `first` + 1 to the last; `run` holds history and checkpoints also if it is stopped."""
    total = run.config.training.max_train_steps
    every = run.config.training.checkpoint_every
    bar = files.bar(None, "training", total, shown=run.callbacks.progress, unit="step", initial=first)
    with _interruption(run.callbacks.stop) as stop_requested, bar:
        for step in range(first + 1, total + 1):
            bar.set_postfix(loss=run.step(step)["loss"], refresh=False)
            bar.update()
            stop = processes.any_of(stop_requested.is_set())
            if stop or step == total or (every and step % every == 0):
                run.save(step)
            if stop and step < total:
                raise KeyboardInterrupt(f"Stopped after step {step} of {total}, with a checkpoint. Go on by "
                                        "train(..., resume=True) or `dasd train --resume`.")  # fmt: skip


@contextlib.contextmanager
def _interruption(stop: threading.Event | None) -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; the second one stops at once, as usual."""
    requested = stop or threading.Event()

    def handle(_number: int, _frame: Any) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        log.warning("Training stops after this step; ask once more to stop without a checkpoint.")

    # only the main thread can catch signals
    caught = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM) if caught}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python


class Run:
    """One training run: the parts, the history, the folder, and the steps that the loop is made of."""

    def __init__(
        self, config: Config, parts: models.Parts, sampler: latents.Sampler,
        objective: losses.Objective | None = None, callbacks: Callbacks | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.parts = parts
        self.sampler = sampler
        self.objective = objective or losses.make_objective(config)
        self.callbacks = callbacks or Callbacks()
        self.folder = files.output_folder(config.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.fingerprints = {"base": adapters.base_fingerprint(parts), "data": sampler.fingerprint}
        self.base = adapters.exact_fingerprint(parts)
        self.updater = Updater(config, parts)
        self.history: list[HistoryRow] = []
        self.sample_ids: list[str] = []  # of the present step, for the message of a run that fails
        self.trackers = tracking.Trackers()

    def encode(self) -> None:
        """Compute once what never changes: latents, after which the VAE goes, and source texts or bank."""
        if self.parts.vae is not None:
            self.sampler.encode(self.parts.vae, self.updater.device, self.callbacks.progress)
            self._move_vae("cpu")
        with self.updater.autocast():
            if losses.uses_bank(self.config):
                alignment, accelerator = self.config.alignment, self.updater.accelerator
                schedule = self.parts.noise_scheduler.alphas_cumprod.tolist()
                of_latents = processes.frozen_dtype(self.config, self.updater.device)
                used = [accelerator.mixed_precision, alignment.layer, alignment.pooling, schedule, of_latents]
                mark = repr([*self.base, *used])
                self.sampler.open_bank(self._bank_features, mark, self.callbacks.progress)
            elif losses.needs_source(self.config):
                models.cache_texts(self.parts, self.sampler.source_prompts())

    def _bank_features(self, batch: latents.Batch) -> Tensor:
        batch = batch.to(self.updater.device, torch.float32)
        return losses.bank_features(self.parts, batch, self.config)

    def step(self, step: int) -> HistoryRow:
        """Do one step, with all that belongs to it but the checkpoint; return its history row."""
        begun = time.perf_counter()
        row = self.optimise(step)
        seconds = time.perf_counter() - begun
        self.validate(row)
        self.record(row, seconds)
        self.sample(step)
        if self.callbacks.on_step:
            self.callbacks.on_step(self.history[-1])
        return row

    def optimise(self, step: int) -> HistoryRow:
        """Do one optimiser step and return its history row."""
        if not self.parts.unet.training:  # switching thousands of modules costs a tenth of a tiny step
            self.parts.unet.train()
        rates = self.updater.set_rates(step - 1)
        self.sample_ids = []
        logs: dict[str, list[float]] = defaultdict(list)
        for micro in range(self.config.training.gradient_accumulation_steps):
            self.updater.seed_dropout(step, micro)
            batch = self.sampler.batch(step - 1, micro).to(self.updater.device, torch.float32)
            self.sample_ids += batch.sample_ids
            with self.updater.autocast():
                loss, terms = self.objective(self.parts, batch, self.config)
            self.updater.backward(loss)
            for name, value in {"loss": loss.item(), **terms}.items():
                logs[name].append(value)
        means = {name: sum(values) / len(values) for name, values in logs.items()}
        row = {"step": step, **processes.mean_values(means)}
        norm, stepped = self.updater.update(math.isfinite(row["loss"]))
        return row | {"grad_norm": norm, **rates} | ({} if stepped else {"skipped": True})

    def validate(self, row: HistoryRow) -> None:
        """Add the loss of each domain's held-out samples to the row, every `validation_every` steps."""
        every = self.config.training.validation_every
        if every and row["step"] % every == 0:
            held_out = self.sampler.validation_batches()
            with self.updater.evaluating(), self.updater.autocast():
                batches = [batch.to(self.updater.device, torch.float32) for batch in held_out]
                row |= losses.validation_losses(self.parts, batches, self.config)

    def record(self, row: HistoryRow, seconds: float) -> None:
        """Append the row to the history; DasdError after MAX_SKIPPED skipped steps in a row."""
        self.history.append(checkpoints.finite(row))
        if processes.is_main():
            speed = {"step": row["step"], "samples_per_second": len(self.sample_ids) / seconds}
            checkpoints.append_row(self.folder / HISTORY, row)
            checkpoints.append_row(self.folder / SPEED, speed)
            self.trackers.log(tracking.row_values(row | speed), row["step"])
        if [r.get("skipped") for r in self.history[-MAX_SKIPPED:]] == [True] * MAX_SKIPPED:
            raise DasdError(f"Loss or gradient was not finite in {MAX_SKIPPED} steps in a row, last in step "
                            f"{row['step']} with the samples {', '.join(self.sample_ids)}. Lower "
                            "learning_rate, or set mixed_precision to 'no'.")  # fmt: skip

    def sample(self, step: int) -> None:
        """Let `on_sample` draw samples in the first process, every `sample_every` steps."""
        every = self.config.training.sample_every
        if not (self.callbacks.on_sample and every and step % every == 0):
            return
        if processes.is_main():
            try:
                self._move_vae(self.updater.device)
                with self.updater.evaluating():
                    pictures = self.callbacks.on_sample(step)
                self.trackers.show(pictures if isinstance(pictures, Mapping) else {}, step)
            except Exception:  # no picture is worth the steps since the last checkpoint
                log.exception("The samples of step %d cannot be drawn.", step)
            self._move_vae("cpu")
        processes.wait()

    def save(self, step: int) -> None:
        """Write the checkpoint of this step."""
        tensors, values = self.updater.state()
        if hasattr(self.objective, "state_dict"):
            tensors["objective"] = self.objective.state_dict()
        state = {"step": step, "updater": values, "config": self.config.to_dict(), **self.fingerprints}
        state |= {"objective": checkpoints.objective_version(self.config), "base_weights": self.base}
        if processes.is_main():
            files.sync(self.folder / HISTORY)  # before what depends on it
            kept = self.config.training.checkpoints_kept
            checkpoints.write_checkpoint(self.checkpoints, step, tensors, state, kept)
        processes.wait()

    def restore(self) -> int:
        """Load the newest complete checkpoint and return the number of steps done, 0 without one."""
        path = checkpoints.newest_checkpoint(self.checkpoints)
        processes.same(checkpoints.checkpoint_step(path), "the newest checkpoint's step")
        if path is None:
            log.info("There is no checkpoint in %s: training starts at step 0.", self.checkpoints)
            return 0
        tensors, state = checkpoints.read_checkpoint(path)
        if state.get("step", 0) > self.config.training.max_train_steps:
            raise DasdError(f"{path} is beyond max_train_steps: raise it (`--max_steps`), or train anew.")
        if missing := sorted({"base", "config", "data", "step", "updater"} - state.keys()):
            raise DasdError(f"{path / 'state.json'} lacks {', '.join(missing)}: train anew by force=True "
                            "(`--force`), not resume.")  # fmt: skip
        earlier = Config.from_dict(state["config"]).to_dict()  # with the fields that are newer than it
        found = checkpoints.differences(earlier, self.config.to_dict())
        names = {"base": "base model", "data": "training data"}
        if state["base"] == adapters.base_fingerprint(self.parts, adapters.FEW):  # of an earlier version
            state["base"] = self.fingerprints["base"]
        types, weights = state.get("base_weights", self.base)
        if types == self.base[0] and weights != self.base[1]:  # with other types it ran on another device
            found.append("base model: other weights")
        found += [f"{names[key]}: another one" for key, now in self.fingerprints.items() if state[key] != now]
        if found:
            raise DasdError(f"The checkpoint {path} is of another run. Different: {'; '.join(found)}. Resume "
                            "with the settings it had, or choose another output_dir.")  # fmt: skip
        if checkpoints.objective_version(self.config) > state.get("objective", 1):
            log.warning("%s is of an earlier version, in which the queue weakened the alignment: the steps "
                        "from here on pull more. Train anew for one objective throughout.", path)  # fmt: skip
        length, steps = earlier["training"]["max_train_steps"], self.config.training.max_train_steps
        if length != steps and not self.config.training.lr_scheduler.startswith("constant"):
            log.warning("The run was begun for %d steps: for %d its learning rate jumps.", length, steps)
        self.updater.load(tensors, state["updater"])
        if hasattr(self.objective, "load_state_dict"):
            self.objective.load_state_dict(tensors.get("objective", {}))
        self.history = checkpoints.rows_until(self.folder / HISTORY, state["step"])
        processes.wait()  # all have read
        if processes.is_main():
            for name in (HISTORY, SPEED):
                rows = checkpoints.rows_until(self.folder / name, state["step"])
                checkpoints.write_rows(self.folder / name, rows)
        log.info("Training goes on from %s.", path)
        return state["step"]

    def release(self) -> None:
        """Leave the parts ready for use: dropout off, all on one device."""
        self.parts.text_cache.clear()
        self.updater.release()
        self.parts.unet.eval()
        self._move_vae(self.updater.device)

    def _move_vae(self, device: torch.device | str) -> None:
        if self.parts.vae is not None:
            self.parts.vae.to(device)


# One optimiser step: precision, backward, clipping, AdamW, learning rates, token norm, moving average.


class Updater:
    """Turns losses into updates of the LoRA, or of the complete UNet, and of the token rows."""

    def __init__(self, config: Config, parts: models.Parts) -> None:
        self.config = config
        self.parts = parts
        training = config.training
        self.accelerator = _accelerator(training)
        self.device = self.accelerator.device
        self.autocast = self.accelerator.autocast  # in its context the network has the chosen precision
        self.backward = self.accelerator.backward  # divides by the number of micro-batches
        groups = models.trainable_parameters(parts)
        for module in (parts.unet, parts.text_encoder, parts.tokens):
            if module is not None:
                module.to(self.device)
        if training.gradient_checkpointing:
            parts.unet.enable_gradient_checkpointing()
        self.parameters = [parameter for group in groups.values() for parameter in group]
        if training.compile_blocks:
            parts.unet.compile_repeated_blocks()
        optimizer = _optimizer(groups, training)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        steps = {"num_warmup_steps": training.lr_warmup_steps, "num_training_steps": training.max_train_steps}
        schedule = get_scheduler(training.lr_scheduler, optimizer, **steps)
        self.rate_factor = schedule.lr_lambdas[0]  # step -> factor of the base rates
        self.optimizer = self.accelerator.prepare(optimizer)
        self.ema = None if training.ema_decay is None else EMAModel(self.parameters, decay=training.ema_decay)
        # (n, 1): of the initial words; a mean over the vocabulary would be pulled down by rows never trained
        self.token_norms = parts.tokens and parts.tokens.weight.detach().norm(dim=1, keepdim=True)

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

    def update(self, finite_loss: bool) -> tuple[float, bool]:
        """Clip, step if loss and norm are finite, clear the gradients; return (norm, whether it stepped)."""
        processes.mean_gradients(self.parameters)
        limit = self.config.training.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit if limit > 0 else float("inf")).item()
        stepped = finite_loss and norm < float("inf")  # False for nan too
        if stepped:
            self.optimizer.step()
            if self.parts.tokens is not None:  # pivotal tuning: only the direction of a new row learns
                rows = self.parts.tokens.weight.data
                rows.mul_(self.token_norms / rows.norm(dim=1, keepdim=True))
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
        self.keep_average()
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
        """Leave the network as it was before training, except for what trained."""
        self.parts.unet.disable_gradient_checkpointing()
        for module in self.parts.unet.modules():
            module._compiled_call_impl = None  # undoes `compile_repeated_blocks`: torch has no other way

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return (groups of tensors, JSON values) from which `load` goes on exactly."""
        optimizer = checkpoints.optimizer_tensors(self.optimizer.optimizer)
        tensors = {"adapter": adapters.adapter_state(self.parts), "optimizer": optimizer}
        scaler = self.accelerator.scaler
        values = {"scaler": scaler and scaler.state_dict()}
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


def _accelerator(training: TrainingConfig) -> Accelerator:
    device = processes.default_device()
    chosen = processes.choose_precision(training.mixed_precision, device)
    # the state is one for the process, and refuses a second precision
    if AcceleratorState._shared_state.get("_mixed_precision", chosen) != chosen:
        AcceleratorState._reset_state()
    # as a plugin, since `accelerate launch` overrides the plain number through the environment
    accumulation = GradientAccumulationPlugin(num_steps=training.gradient_accumulation_steps)
    cpu = device.type == "cpu"
    return Accelerator(cpu=cpu, mixed_precision=chosen, gradient_accumulation_plugin=accumulation)


def _optimizer(groups: Mapping[str, list[torch.nn.Parameter]], training: TrainingConfig) -> Any:
    network = {"name": "learning_rate", "lr": training.learning_rate, "weight_decay": training.weight_decay}
    # tokens do not decay: they keep their norm
    tokens = {"name": "token_learning_rate", "lr": training.token_learning_rate, "weight_decay": 0.0}
    settings = {"lora": network, "unet": network, "tokens": tokens}
    given = [{"params": found, **settings[kind]} for kind, found in groups.items() if found]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(given, fused=True)
    from bitsandbytes.optim import AdamW8bit  # optional, and slow to import

    return AdamW8bit(given)
