"""One training loop for every objective: named steps, history, checkpoints, resume.

All randomness is counted: sample choice, noise and dropout of step k are functions of (seed, k), and so is
the learning rate. A resumed run therefore repeats, bit for bit on a CPU, what an uninterrupted one does.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from dasd_utils import adapters, checkpoints, data, models, objectives, optimization, precision
from dasd_utils.config import Config, DasdError, resolve

MAX_SKIPPED = 5  # steps in a row without a finite loss and gradient
log = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass
class Watch:
    """What looks on while the loop runs."""

    on_step: Callable[[Row], None] | None = None  # after each step, with its history row
    # every `sample_every` steps, dropout off, EMA weights in; a DasdPipeline brings its own precision
    on_sample: Callable[[int], None] | None = None
    progress: bool = True  # the bar hides itself where the output is neither a terminal nor a notebook


def setup_training(config: Config) -> models.Parts:
    """Return the frozen base with fresh, seeded LoRA weights and domain tokens; nothing else trains.

    Raises DasdError if the base is not there or already has a token.
    """
    torch.manual_seed(config.seed)
    parts = models.load_parts(config, unet_dtype=precision.frozen_dtype(config, PartialState().device))
    models.add_lora(parts.unet, config.lora)
    models.add_domain_tokens(parts, config.domains)
    models.trainable_parameters(parts)
    return parts


def train(
    config: Config,
    parts: models.Parts,
    sampler: data.Sampler,
    token_ids: Mapping[str, int] | None = None,
    *,
    objective: objectives.Objective | None = None,
    resume: bool = False,
    **watch: Any,
) -> list[Row]:
    """Train LoRA and tokens in place and return the history: one row a step.

    `objective` is DasdObjective(config) by default; `watch` are the fields of `Watch`, all optional.
    With `resume` the run in `config.output_dir` goes on from its newest whole checkpoint, from the start if
    there is none, and returns at once if it is finished. Without, history and checkpoints of an earlier run
    in that folder are replaced; its `adapter/` and `config.json` stay until `save_training_results`.
    Ctrl-C ends the present step, writes a checkpoint and raises KeyboardInterrupt.
    Raises DasdError before any work for a folder that cannot be written or a checkpoint of another config,
    base or data; later after MAX_SKIPPED steps in a row whose loss or gradient is not finite.
    """
    onlooker = Watch(**watch)
    _check(config, parts, token_ids)
    run = Run(config, parts, sampler, objective or objectives.DasdObjective(config), onlooker)
    try:
        first = run.restore() if resume else run.start_anew()
        if first < config.training.max_train_steps:
            _loop(run, first)
        run.updater.keep_average()
    finally:
        run.release()
    return run.history


def save_training_results(config: Config, parts: models.Parts, losses: Sequence[Row]) -> Path:
    """Write `adapter/`, `history.jsonl` and `config.json` into the run's folder and return it.

    `config.json` comes last: a new run folder that has it is complete.
    """
    folder = checkpoints.writable(config.output_dir)
    adapters.save_adapter(parts, folder / "adapter")
    checkpoints.write_rows(folder / "history.jsonl", losses)
    config.save(folder / "config.json")
    return folder


def load_history(folder: str | Path) -> list[Row]:
    """Return the rows of `<folder>/history.jsonl`; DasdError if there is none."""
    path = resolve(folder) / "history.jsonl"
    if not path.is_file():
        raise DasdError(f"There is no history {path}: train first, or name another run folder.")
    return checkpoints.load_rows(path)


@dataclass
class Run:
    """One training run: the parts, the history, the folder, and the steps the loop is made of."""

    config: Config
    parts: models.Parts
    sampler: data.Sampler
    objective: objectives.Objective
    watch: Watch

    def __post_init__(self) -> None:
        self.folder = checkpoints.writable(self.config.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.base_fingerprint = adapters.base_fingerprint(self.parts)
        self.updater = optimization.Updater(self.config, self.parts)
        self.history: list[Row] = []
        self.sample_ids: list[str] = []  # of the present step, for the message of a run that fails
        self.held_out: list[data.Batch] | None = None

    def start_anew(self) -> int:
        """Remove history and checkpoints of an earlier run in the folder; return 0, the steps done."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        (self.folder / "history.jsonl").unlink(missing_ok=True)
        return 0

    def restore(self) -> int:
        """Take up the newest whole checkpoint and return the number of steps done."""
        path = checkpoints.newest(self.checkpoints)
        if path is None:
            log.info("There is no checkpoint in %s: training starts at step 0.", self.checkpoints)
            return self.start_anew()
        tensors, state = checkpoints.read(path)
        self._check_same(path, state)
        self.updater.load(tensors, state["updater"])
        if hasattr(self.objective, "load_state_dict"):
            self.objective.load_state_dict(tensors.get("objective", {}))
        self.history = checkpoints.truncate_rows(self.folder / "history.jsonl", state["step"])
        log.info("Training goes on from %s.", path)
        return state["step"]

    def optimise(self, step: int) -> Row:
        """Do one optimiser step and return its history row."""
        training, begun = self.config.training, time.perf_counter()
        if not self.parts.unet.training:  # switching thousands of modules costs a tenth of a tiny step
            self.parts.unet.train()
        rates = self.updater.set_rates(step - 1)
        self.sample_ids, logs = [], []
        for micro in range(training.gradient_accumulation_steps):
            logs.append(self._accumulate(step, micro))
        row = {"step": step, **objectives.mean_logs(logs)}
        norm, stepped = self.updater.update(math.isfinite(row["loss"]))
        row |= {"grad_norm": norm, **rates} | ({} if stepped else {"skipped": True})
        row["samples_per_second"] = len(self.sample_ids) / (time.perf_counter() - begun)
        return row

    def _accumulate(self, step: int, micro: int) -> Row:
        self.updater.seed_dropout(step, micro)
        batch = self.sampler.batch(step - 1, micro).to(self.updater.device, torch.float32)
        self.sample_ids += batch.sample_ids
        with self.updater.autocast():
            loss, logs = self.objective(self.parts, batch, self.config)
        self.updater.backward(loss)
        return {"loss": loss.item(), **logs}

    def validate(self, row: Row) -> None:
        """Add the loss of each domain's held-out samples to the row, every `validation_every` steps."""
        if not _due(row["step"], self.config.training.validation_every):
            return
        if self.held_out is None:
            self.held_out = self.sampler.fixed_batch("validation")
        with self.updater.evaluating(), self.updater.autocast():
            batches = [batch.to(self.updater.device, torch.float32) for batch in self.held_out]
            row |= objectives.validation_losses(self.parts, batches, self.config)

    def sample(self, step: int) -> None:
        """Have the onlooker draw samples, every `sample_every` steps."""
        if self.watch.on_sample and _due(step, self.config.training.sample_every):
            self._move_vae(self.updater.device)
            with self.updater.evaluating():
                self.watch.on_sample(step)
            self._move_vae("cpu")

    def record(self, row: Row) -> None:
        """Append the row to the history; DasdError after MAX_SKIPPED skipped steps in a row."""
        self.history.append(checkpoints.finite(row))
        checkpoints.append_row(self.folder / "history.jsonl", row)
        last = self.history[-MAX_SKIPPED:]
        if len(last) == MAX_SKIPPED and all(r.get("skipped") for r in last):
            saved = checkpoints.newest(self.checkpoints)
            raise DasdError(
                f"Loss or gradient was not finite in {MAX_SKIPPED} steps in a row, last in step "
                f"{row['step']} with the samples {', '.join(self.sample_ids)}. The last checkpoint is "
                f"{saved or 'none'}. Lower learning_rate, or set mixed_precision to 'no'."
            )

    def save(self, step: int) -> None:
        """Write the checkpoint of this step."""
        tensors, values = self.updater.state()
        if hasattr(self.objective, "state_dict"):
            tensors["objective"] = self.objective.state_dict()
        state = {"step": step, "updater": values, "config": self.config.to_dict(), **self._fingerprints()}
        checkpoints.write(self.checkpoints, step, tensors, state, self.config.training.checkpoints_kept)

    def release(self) -> None:
        """Leave the parts ready for use: dropout off, all on one device."""
        self.parts.kept_texts.clear()
        self.updater.release()
        self.parts.unet.eval()
        self._move_vae(self.updater.device)

    def encode(self) -> None:
        """Encode once what never changes: images, so that the VAE leaves the memory, and source prompts."""
        if self.parts.vae is not None:
            self.sampler.encode(self.parts.vae, self.updater.device, self.watch.progress)
            self._move_vae("cpu")
        if self.config.alignment.lambda_align > 0:
            with self.updater.autocast():
                models.keep_texts(self.parts, self.sampler.source_prompts())

    def _move_vae(self, device: torch.device | str) -> None:
        if self.parts.vae is not None:
            self.parts.vae.to(device)

    def _fingerprints(self) -> dict[str, str | None]:
        return {"base": self.base_fingerprint, "data": self.sampler.fingerprint}

    def _check_same(self, path: Path, state: Mapping[str, Any]) -> None:
        earlier = Config.from_dict(state["config"]).to_dict()  # with the fields that are newer than it
        found = checkpoints.differences(earlier, self.config.to_dict())
        names = {"base": "base model", "data": "training data"}
        present = self._fingerprints()
        found += [f"{what}: another one" for key, what in names.items() if state[key] != present[key]]
        if found:
            raise DasdError(
                f"The checkpoint {path} is of another run. Different: {'; '.join(found)}. "
                f"Resume with the settings it had, or choose another output_dir."
            )


def _loop(run: Run, first: int) -> None:
    training, watch = run.config.training, run.watch
    run.encode()
    bar = tqdm(total=training.max_train_steps, initial=first, disable=None if watch.progress else True)
    with _interruption() as asked, bar:
        for step in range(first + 1, training.max_train_steps + 1):
            row = run.optimise(step)
            run.validate(row)
            run.record(row)
            run.sample(step)
            if watch.on_step:
                watch.on_step(run.history[-1])
            bar.set_postfix(loss=row["loss"], refresh=False)
            bar.update()
            last = step == training.max_train_steps
            if _due(step, training.checkpoint_every) or last or asked.is_set():
                run.save(step)
            if asked.is_set() and not last:
                raise KeyboardInterrupt(
                    f"Stopped after step {step} of {training.max_train_steps}; its checkpoint is in "
                    f"{run.checkpoints}. Go on with train(..., resume=True) or `dasd train --resume`."
                )


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets; the second stops at once, as ever."""
    asked = threading.Event()

    def handle(_number: int, _frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        log.warning("Training stops after this step; press Ctrl-C again to stop without a checkpoint.")

    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield asked
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check(config: Config, parts: models.Parts, token_ids: Mapping[str, int] | None) -> None:
    missing = [d.token for d in config.domains if d.token not in parts.token_ids]
    if missing:
        raise DasdError(f"The parts lack the token {missing[0]}: make them with setup_training(config).")
    if token_ids is not None and dict(token_ids) != dict(parts.token_ids):
        raise DasdError(f"token_ids are {dict(token_ids)}, those of the parts {parts.token_ids}.")
    optimization.check(config.training)
    checkpoints.writable(config.output_dir)
