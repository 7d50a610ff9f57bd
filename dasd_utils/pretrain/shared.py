"""What every stage shares: sizes and budgets, the rendered images, and one training loop."""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
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
PART = 250  # scenes that a process renders before it returns them
WORLD_SEED = 100  # data sets of the course use other seeds, so their images are new to every part
STRICT = {"strict": True, "output_dir": "data/cache/tiny-strict", "work_dir": "data/cache/pretrain-strict"}


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes and budgets; the values are those that made the shipped weights."""

    seed: int = 0
    strict: bool = False  # tokenizer, VAE and CLIP are trained on paintings alone, as the UNet is
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

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the domains that the parts are trained on."""
        return ("painting",) if self.strict else toyworld.DOMAINS

    def images(self, domain: str) -> int:
        """Return how many images of a domain are rendered."""
        return self.paintings if domain == "painting" else self.others

    def decay_starts(self, steps: int) -> int:
        """Return the first step of a stage's decay."""
        return steps - max(1, round(self.decay * steps))


def _render(domain: str, index: int, size: int) -> np.ndarray:
    return np.asarray(toyworld.draw(domain, WORLD_SEED, index, size))


def _describe(domain: str, index: int, _size: int) -> dict[str, Any]:
    texts = toyworld.captions_with_mentions(domain, WORLD_SEED, index, 6)
    return {"captions": texts, "attributes": toyworld.attributes(domain, WORLD_SEED, index)}


def _in_parallel(work: Callable, domain: str, config: PretrainConfig) -> Iterator:
    """Yield what `work` makes of each scene, in order; of more than a part, on all cores."""
    count = config.images(domain)
    scenes = itertools.repeat(domain), range(count), itertools.repeat(config.resolution)
    # a forked process would wait for ever on a lock that a thread of this one holds
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        made = pool.map(work, *scenes, chunksize=PART) if count > PART else map(work, *scenes)
        yield from files.bar(made, domain, count, unit="scene")


def render_images(config: PretrainConfig, work: Path) -> None:
    """Write <domain>.npy, uint8 (n, size, size, 3)."""
    for domain in (d for d in config.domains if not (work / f"{d}.npy").exists()):
        shape = (config.images(domain), config.resolution, config.resolution, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with files.atomic_write(work / f"{domain}.npy", "The images") as new, new.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for image in _in_parallel(_render, domain, config):
                file.write(image)  # a full disk kills what writes into mapped memory


def describe_images(config: PretrainConfig, work: Path) -> None:
    """Write <domain>.json: one object for every image."""
    for domain in (d for d in config.domains if not (work / f"{d}.json").exists()):
        rows = list(_in_parallel(_describe, domain, config))
        files.write_json(work / f"{domain}.json", rows, "The captions", indent=None)


def read_rows(work: Path, domain: str) -> list[dict[str, Any]]:
    """Return {"captions": [[text, mentioned], ...], "attributes": {...}} of every image of a domain."""
    return files.read_json(_present(work / f"{domain}.json", "describe"), "The captions")


def _present(path: Path, stage: str) -> Path:
    if not path.exists():
        raise DasdError(f"{path} is missing: run the stage {stage!r} first (--stage, with the same options).")
    return path


def learned_merges(words: Mapping[str, int], count: int, min_frequency: int = 1) -> list[tuple[str, str]]:
    """Return the first `count` merges of byte-pair encoding over words and how often each occurs.

    The last letter of a word carries "</w>" (Sennrich et al. 2016, arXiv 1508.07909). Of equally frequent
    pairs the shortest is merged, then the first in the alphabet. The trainer of `tokenizers` takes them in an
    order that changes with each process.
    """
    spelled = {word: " ".join(word) + "</w>" for word in words}  # pieces with spaces between them
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, text in spelled.items():
            for pair in itertools.pairwise(text.split(" ")):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], len("".join(pair)), pair), default=None)
        if best is None or pairs[best] < min_frequency:
            break
        merges.append(best)
        pair = re.compile(rf"(?<!\S){re.escape(' '.join(best))}(?!\S)")
        joined = "".join(best)
        spelled = {word: pair.sub(lambda _, to=joined: to, text) for word, text in spelled.items()}
    return merges


class Images:
    """The rendered images of some domains, as one indexed set."""

    def __init__(self, work: Path, domains: tuple[str, ...]) -> None:
        self.arrays = [np.load(_present(work / f"{d}.npy", "render"), mmap_mode="r") for d in domains]
        self.domains = domains

    def draw(self, rng: np.random.Generator, count: int, only: int | None = None) -> list[tuple[int, int]]:
        """Return (domain number, index) pairs, every domain equally often, or those of one domain."""
        which = rng.permutation(np.arange(count) % len(self.domains)) if only is None else [only] * count
        return [(int(d), int(rng.integers(len(self.arrays[d])))) for d in which]

    def pixels(self, picks: list[tuple[int, int]]) -> Tensor:
        """Return the images as float32 (B, 3, size, size) in [-1, 1]."""
        return to_pixels([self.arrays[d][i] for d, i in picks])


def fit(
    model: nn.Module, loss_at: Callable, folder: Path, steps: int, config: PretrainConfig, inputs: str = ""
) -> nn.Module:
    """Train with AdamW, going on where the folder left off; return the model with averaged weights.

    loss_at: step -> scalar; inputs: fingerprint of the stages that the losses are made of. Raises DasdError
    for a checkpoint of other inputs, and for a gradient that is not finite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    start = _resume(folder, inputs, model, optimizer, ema)
    bar = files.bar(range(start, steps), folder.name, steps, unit="step", initial=start, mininterval=5)
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
