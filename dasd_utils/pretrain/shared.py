"""What every stage shares: sizes and budgets, the rendered images, and one training loop.

The loop has a constant learning rate and then a linear decay. Until the decay a run does not depend on its
planned length, so a finished stage can be made longer: with more planned steps it goes on from the checkpoint
that was kept where its decay began.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dasd_utils import toyworld
from dasd_utils.config import DasdError
from dasd_utils.runtime import checkpoints, files
from dasd_utils.runtime.images import to_pixels

WORLD_SEED = 100  # data sets of the course use other seeds, so their images are new to every part


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes and budgets; the values are those that made the shipped weights."""

    seed: int = 0
    output_dir: str = "data/tiny-sd"
    work_dir: str = "data/cache/pretrain"
    resolution: int = 64  # pixels
    paintings: int = 60_000  # rendered images
    others: int = 24_000  # of each other domain
    vae_channels: tuple[int, ...] = (32, 64, 96)
    vae_steps: int = 9_000
    vae_batch_size: int = 8  # whole images; twice as many 32 px crops before the decay
    kl_weight: float = 2e-4
    clip_width: tuple[int, int] = (128, 160)  # channels of the text and the vision tower
    clip_steps: int = 3_000
    clip_batch_size: int = 96  # pairs
    everyday: int = 16  # texts a batch that match no image
    vocab_size: int = 2_000
    unet_channels: tuple[int, ...] = (64, 128, 160)
    unet_steps: int = 4_200
    unet_batch_size: int = 64
    caption_dropout: float = 0.1
    reader_steps: int = 1_500
    reader_batch_size: int = 64
    learning_rate: float = 1e-3
    decay: float = 0.2  # the share of a stage's steps, at its end, in which the learning rate falls to 0
    ema_decay: float = 0.998
    log_every: int = 50  # steps
    checkpoint_every: int = 250  # steps

    def images(self, domain: str) -> int:
        """Return how many images of a domain are rendered."""
        return self.paintings if domain == "painting" else self.others

    def decay_starts(self, steps: int) -> int:
        """Return the first step of a stage's decay."""
        return steps - max(1, round(self.decay * steps))


# The rendered images and captions that every stage reads.


def _render_chunk(job: tuple[str, int, int, int]) -> np.ndarray:
    domain, start, stop, size = job
    return np.stack([np.asarray(toyworld.draw(domain, WORLD_SEED, i, size)) for i in range(start, stop)])


def _describe_chunk(job: tuple[str, int, int]) -> list[dict]:
    domain, *ends = job
    scenes = [(domain, WORLD_SEED, i) for i in range(*ends)]
    texts = [toyworld.captions_with_mentions(*scene, 6) for scene in scenes]
    shown = [toyworld.attributes(*scene) for scene in scenes]
    return [{"captions": t, "attributes": a} for t, a in zip(texts, shown, strict=True)]


def _in_parallel(work: Callable, domain: str, count: int, *extra: int, progress: bool = True) -> Iterator:
    """Yield the results of chunks of 250 scenes, in order, made on all cores."""
    jobs = [(domain, i, min(i + 250, count), *extra) for i in range(0, count, 250)]
    with Pool() as pool:
        yield from files.bar(pool.imap(work, jobs), domain, len(jobs), shown=progress, unit="chunk")


def render_images(config: PretrainConfig, work: Path, progress: bool = True) -> None:
    """Write <domain>.npy, uint8 (n, size, size, 3)."""
    size = config.resolution
    for domain in toyworld.DOMAINS:
        if (work / f"{domain}.npy").exists():
            continue
        count = config.images(domain)
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
        with files.atomic_write(work / f"{domain}.npy", "The images") as new, new.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in _in_parallel(_render_chunk, domain, count, size, progress=progress):
                file.write(chunk)  # a full disk kills what writes into mapped memory


def describe_images(config: PretrainConfig, work: Path, progress: bool = True) -> None:
    """Write <domain>.json: captions of every image with what each mentions, and all attributes."""
    for domain in toyworld.DOMAINS:
        if not (work / f"{domain}.json").exists():
            chunks = _in_parallel(_describe_chunk, domain, config.images(domain), progress=progress)
            rows = [row for chunk in chunks for row in chunk]
            files.write_json(work / f"{domain}.json", rows, "The captions", indent=None)


def read_rows(work: Path, domain: str) -> list[dict[str, Any]]:
    """Return {"captions": [[text, mentioned], ...], "attributes": {...}} of every image of a domain."""
    return files.read_json(_present(work / f"{domain}.json", "describe"), "The captions")


def _present(path: Path, stage: str) -> Path:
    if not path.exists():
        raise DasdError(f"{path} is missing: run the stage {stage!r} first (dasd pretrain --stage {stage}).")
    return path


class Images:
    """The rendered images and captions of some domains, as one indexed set."""

    def __init__(self, work: Path, domains: tuple[str, ...]) -> None:
        self.arrays = [np.load(_present(work / f"{d}.npy", "render"), mmap_mode="r") for d in domains]
        self.domains = domains

    def draw(self, rng: np.random.Generator, count: int, only: int | None = None) -> list[tuple[int, int]]:
        """Return (domain number, index) pairs, every domain equally often, or those of one domain."""
        if only is None:
            which = rng.permutation(np.arange(count) % len(self.domains))
        else:
            which = np.full(count, only)
        return [(int(d), int(rng.integers(len(self.arrays[d])))) for d in which]

    def pixels(self, picks: list[tuple[int, int]]) -> Tensor:
        """Return the images as float32 (B, 3, size, size) in [-1, 1]."""
        return to_pixels([self.arrays[d][i] for d, i in picks])


# The training loop.

Loss = Callable[[int], Tensor]  # step -> scalar
LAST, STABLE = "last.safetensors", "stable.safetensors"


@dataclass(frozen=True)
class Stage:
    """One training: its folder, its length, and what its losses are made of."""

    folder: Path
    steps: int
    inputs: str = ""  # fingerprint of the stages that the losses are made of


def fit(
    model: nn.Module, loss_at: Loss, stage: Stage, config: PretrainConfig, progress: bool = True
) -> nn.Module:
    """Train with AdamW, going on where the stage's folder left off; return the model with averaged weights.

    Writes log.jsonl, last.safetensors and stable.safetensors (where the decay began).
    Raises DasdError for a checkpoint of other inputs or of a longer plan, and for a gradient that is not
    finite.
    """
    folder, steps = stage.folder, stage.steps
    options = dict(lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    decay_starts = config.decay_starts(steps)
    plan = {"steps": str(steps), "decay_starts": str(decay_starts), "inputs": stage.inputs}
    start = _resume(folder, plan, model, optimizer, ema)
    log = [row for row in checkpoints.load_rows(folder / "log.jsonl") if row["step"] <= start]
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_rows(folder / "log.jsonl", log)
    left = range(start, steps)
    bar = files.bar(left, folder.name, steps, shown=progress, unit="step", initial=start, mininterval=5)
    for step in bar:
        factor = min((step + 1) / 100, (steps - step) / (steps - decay_starts), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        loss = loss_at(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise DasdError(f"{folder.name}, step {step}: the gradient is {norm}; lower "
                            "PretrainConfig.learning_rate.")  # fmt: skip
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        done = step + 1
        if done % config.log_every == 0:
            row = {"step": done, "loss": loss.item(), "time": round(time.time(), 1)}
            checkpoints.append_row(folder / "log.jsonl", row)
            bar.set_postfix(loss=f"{row['loss']:.3f}")
        if done % config.checkpoint_every == 0 or done in (decay_starts, steps):
            _checkpoint(folder, {"step": str(done), **plan}, model, optimizer, ema)
    ema.copy_to(model.parameters())
    return model.eval().requires_grad_(False)


def fingerprint(*folders: Path) -> str:
    """Return the SHA-256 of the newest checkpoints of stages: the same for the same weights."""
    digest = hashlib.sha256()
    for folder in folders:
        digest.update((folder / LAST).read_bytes())
    return digest.hexdigest()


def _checkpoint(
    folder: Path, plan: dict[str, str], model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel
) -> None:
    """Write one safetensors file: a broken write leaves the old one.

    Where the decay begins, the kept copy comes first: the file that says "done so far" is never without it.
    """
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for i, (shadow, parameter) in enumerate(zip(ema.shadow_params, model.parameters(), strict=True)):
        tensors[f"ema.{i}"] = shadow.contiguous()
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{i}.{name}"] = value.contiguous()
    for name in (STABLE, LAST) if plan["step"] == plan["decay_starts"] else (LAST,):
        with files.atomic_write(folder / name, "The checkpoint") as part:
            save_file(tensors, part, metadata=plan)


def _newest(folder: Path, plan: dict[str, str]) -> tuple[Path, int] | None:
    """Return the newest checkpoint of this plan, or of another one from before the decay of both."""
    found = [folder / name for name in (LAST, STABLE) if (folder / name).exists()]
    for path in found:
        with safe_open(path, framework="pt") as file:
            made = file.metadata() or {}
        if made.get("inputs", "") != plan["inputs"]:
            raise DasdError(f"{path} was trained with other parts than those it would now be joined with. "
                            f"Delete the folder {folder} to train this stage again.")  # fmt: skip
        step = int(made["step"])
        first_decay = min(int(made["decay_starts"]), int(plan["decay_starts"]))
        if made["steps"] == plan["steps"] or step <= first_decay:
            return path, step
    if found:
        raise DasdError(f"{folder} holds a run of {made['steps']} steps, longer than the {plan['steps']} "
                        "planned now: delete the folder to train anew, or plan as many steps.")  # fmt: skip
    return None


def _resume(
    folder: Path, plan: dict[str, str], model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel
) -> int:
    """Load the newest checkpoint that fits; return the number of steps done."""
    found = _newest(folder, plan)
    if not found:
        return 0
    tensors = checkpoints.read_tensors(found[0])
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for i, parameter in enumerate(model.parameters()):
        ema.shadow_params[i] = tensors[f"ema.{i}"]
        prefix = f"optimizer.{i}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizer.state[parameter] = state
    ema.optimization_step = found[1]
    return found[1]
