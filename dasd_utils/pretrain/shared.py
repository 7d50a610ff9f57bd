"""What every stage shares: sizes and budgets, the rendered images, and one training loop."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dasd_utils import toyworld
from dasd_utils.config import DasdError
from dasd_utils.runtime import checkpoints, files
from dasd_utils.runtime.images import to_pixels

log = logging.getLogger(__name__)
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


def _describe_chunk(job: tuple[str, int, int, int]) -> list[dict[str, Any]]:
    """Return the captions of scenes with what each mentions, and all attributes."""
    domain, start, stop, _ = job
    scenes = [(domain, WORLD_SEED, i) for i in range(start, stop)]
    texts = [toyworld.captions_with_mentions(*scene, 6) for scene in scenes]
    shown = [toyworld.attributes(*scene) for scene in scenes]
    return [{"captions": t, "attributes": a} for t, a in zip(texts, shown, strict=True)]


def _in_parallel(work: Callable, domain: str, config: PretrainConfig) -> Iterator:
    """Yield the results of chunks of 250 scenes, in order, made on all cores."""
    count = config.images(domain)
    jobs = [(domain, i, min(i + 250, count), config.resolution) for i in range(0, count, 250)]
    with Pool() as pool:
        yield from files.bar(pool.imap(work, jobs), domain, len(jobs), unit="chunk")


def render_images(config: PretrainConfig, work: Path) -> None:
    """Write <domain>.npy, uint8 (n, size, size, 3)."""
    size = config.resolution
    for domain in (d for d in toyworld.DOMAINS if not (work / f"{d}.npy").exists()):
        shape = (config.images(domain), size, size, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with files.atomic_write(work / f"{domain}.npy", "The images") as new, new.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in _in_parallel(_render_chunk, domain, config):
                file.write(chunk)  # a full disk kills what writes into mapped memory


def describe_images(config: PretrainConfig, work: Path) -> None:
    """Write <domain>.json: one object for every image."""
    for domain in (d for d in toyworld.DOMAINS if not (work / f"{d}.json").exists()):
        rows = [row for chunk in _in_parallel(_describe_chunk, domain, config) for row in chunk]
        files.write_json(work / f"{domain}.json", rows, "The captions", indent=None)


def read_rows(work: Path, domain: str) -> list[dict[str, Any]]:
    """Return {"captions": [[text, mentioned], ...], "attributes": {...}} of every image of a domain."""
    return files.read_json(_present(work / f"{domain}.json", "describe"), "The captions")


def _present(path: Path, stage: str) -> Path:
    if not path.exists():
        raise DasdError(f"{path} is missing: run the stage {stage!r} first (dasd pretrain --stage {stage}).")
    return path


def learned_merges(words: Mapping[str, int], count: int, min_frequency: int = 1) -> list[tuple[str, str]]:
    """Return the first `count` merges of byte-pair encoding over words and how often each occurs.

    The last letter of a word carries "</w>" (Sennrich et al. 2016, arXiv 1508.07909). Of equally frequent
    pairs the shortest is merged, then the first in the alphabet. The trainer of `tokenizers` takes them in an
    order that changes with each process.
    """
    pieces = {word: [*word[:-1], f"{word[-1]}</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], len("".join(pair)), pair), default=None)
        if best is None or pairs[best] < min_frequency:
            break
        merges.append(best)
        pieces = {word: _joined(parts, best) for word, parts in pieces.items()}
    return merges


def _joined(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Return the pieces of a word with each occurrence of a pair as one."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


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
def fit(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    folder: Path,
    steps: int,
    config: PretrainConfig,
    inputs: str = "",
) -> nn.Module:
    """Train with AdamW, going on where the folder left off; return the model with averaged weights.

    loss_at: step -> scalar; inputs: fingerprint of the stages that the losses are made of. Raises DasdError
    for a checkpoint of other inputs, and for a gradient that is not finite.
    """
    options = dict(lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    start = _resume(folder, inputs, model, optimizer, ema)
    left = range(start, steps)
    bar = files.bar(left, folder.name, steps, unit="step", initial=start, mininterval=5)
    for step in bar:
        decay = (steps - step) / (steps - config.decay_starts(steps))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min((step + 1) / 100, decay, 1.0)
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
        if done % config.checkpoint_every == 0 or done == steps:
            bar.set_postfix(loss=f"{loss.item():.3f}")
            log.info("%s: step %d of %d, loss %.3f", folder.name, done, steps, loss.item())
            shadow = {str(i): value for i, value in enumerate(ema.shadow_params)}
            moments = checkpoints.optimizer_tensors(optimizer)
            tensors = {"model": model.state_dict(), "ema": shadow, "optimizer": moments}
            checkpoints.write_checkpoint(folder, done, tensors, {"inputs": inputs}, keep=1)
    ema.copy_to(model.parameters())
    return model.eval().requires_grad_(False)


def _resume(
    folder: Path, inputs: str, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel
) -> int:
    """Load the newest checkpoint if there is one; return the number of steps done."""
    newest = checkpoints.newest_checkpoint(folder)
    if newest:
        tensors, state = checkpoints.read_checkpoint(newest)
        if state["inputs"] != inputs:
            raise DasdError(f"{newest} was trained with other parts than those it would now be joined with. "
                            f"Delete the folder {folder} to train this stage again.")  # fmt: skip
        model.load_state_dict(tensors["model"])
        checkpoints.load_optimizer(optimizer, tensors["optimizer"])
        ema.shadow_params = [tensors["ema"][str(i)] for i in range(len(ema.shadow_params))]
        ema.optimization_step = checkpoints.checkpoint_step(newest)
    return checkpoints.checkpoint_step(newest)


def fingerprint(*folders: Path) -> str:
    """Return a hash of the newest checkpoints of stages: the same for the same weights."""
    manifests = [checkpoints.newest_checkpoint(folder) / checkpoints.MANIFEST for folder in folders]
    return files.short_hash([manifest.read_text() for manifest in manifests])
