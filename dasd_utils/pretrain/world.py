"""The rendered images and captions that every stage reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dasd_utils import toyworld
from dasd_utils.config import DasdError
from dasd_utils.pretrain.settings import WORLD_SEED, PretrainConfig
from dasd_utils.runtime import bars
from dasd_utils.runtime.images import to_pixels


def _render_chunk(job: tuple[str, int, int, int]) -> np.ndarray:
    domain, start, stop, size = job
    return np.stack([np.asarray(toyworld.draw(domain, WORLD_SEED, i, size)) for i in range(start, stop)])


def _describe_chunk(job: tuple[str, int, int]) -> list[dict]:
    domain, start, stop = job
    scenes = [(domain, WORLD_SEED, i) for i in range(start, stop)]
    return [
        {"captions": toyworld.told_variants(*s, 6), "attributes": toyworld.attributes(*s)} for s in scenes
    ]


def _in_parallel(work: Callable, domain: str, count: int, *extra: int, progress: bool = True) -> Iterator:
    """Yield the results of chunks of 250 scenes, in order, made on all cores."""
    jobs = [(domain, i, min(i + 250, count), *extra) for i in range(0, count, 250)]
    with Pool() as pool:
        yield from bars.bar(pool.imap(work, jobs), domain, len(jobs), shown=progress, unit="chunk")


def _counts(config: PretrainConfig) -> dict[str, int]:
    return {d: config.paintings if d == "painting" else config.others for d in toyworld.DOMAINS}


def render_images(config: PretrainConfig, work: Path, progress: bool = True) -> None:
    """Write <domain>.npy, uint8 (n, size, size, 3)."""
    size, part = config.resolution, work / "part.npy"
    for domain, count in _counts(config).items():
        if (work / f"{domain}.npy").exists():
            continue
        images = np.lib.format.open_memmap(part, "w+", np.uint8, (count, size, size, 3))
        for number, chunk in enumerate(_in_parallel(_render_chunk, domain, count, size, progress=progress)):
            images[250 * number : 250 * number + len(chunk)] = chunk
        images.flush()
        part.replace(work / f"{domain}.npy")


def describe_images(config: PretrainConfig, work: Path, progress: bool = True) -> None:
    """Write <domain>.json, the wordings of every image with what each tells, and its attributes."""
    for domain, count in _counts(config).items():
        if not (work / f"{domain}.json").exists():
            chunks = _in_parallel(_describe_chunk, domain, count, progress=progress)
            (work / "part.json").write_text(json.dumps([row for chunk in chunks for row in chunk]))
            (work / "part.json").replace(work / f"{domain}.json")


def read_rows(work: Path, domain: str) -> list[dict[str, Any]]:
    """Return {"captions": [[text, told], ...], "attributes": {...}} of every image of a domain."""
    return json.loads(_present(work / f"{domain}.json", "describe").read_text())


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
        which = (
            rng.permutation(np.arange(count) % len(self.domains)) if only is None else np.full(count, only)
        )
        return [(int(d), int(rng.integers(len(self.arrays[d])))) for d in which]

    def pixels(self, picks: list[tuple[int, int]]) -> Tensor:
        """Return the images as float32 (B, 3, size, size) in [-1, 1]."""
        return to_pixels([self.arrays[d][i] for d, i in picks])


def grid(images: Tensor, path: Path, columns: int, enlarge: int = 2) -> None:
    """Write (n, 3, h, w) in [-1, 1] as one picture of n / columns rows."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    rows = [torch.cat(list(row), dim=1) for row in pixels.split(columns)]
    picture = Image.fromarray(torch.cat(rows, dim=0).numpy())
    picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST).save(path)
