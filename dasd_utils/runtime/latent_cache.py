"""Latents and features on disk, in shards named by what decides them; each is written once, or not at all."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.data import ConcatDataset

from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.runtime import files, processes
from dasd_utils.runtime.images import to_pixels

if TYPE_CHECKING:
    from tqdm import tqdm

    from dasd_utils.data import DomainData

VERSION = "4"  # of what the cache holds; a change here makes every older file unused
SHARD = 1024  # images a file: what is held in memory, and what an interrupted encoding can lose
ENCODE_BATCH = 8  # images at once through the VAE, fewer of large ones
ENCODE_PIXELS = 8 * 256 * 256  # at once: a gigabyte of Stable Diffusion's VAE
NAME = "*-*-" + 24 * "[0-9a-f]"  # of shards: a folder may hold other files
DIGEST = 32  # bytes of a SHA-256
POLL = 0.5  # seconds between two looks at a file that another process makes
log = logging.getLogger(__name__)


def vae_fingerprint(vae: AutoencoderKL) -> str:
    """Return the SHA-256 of everything about a VAE that decides its latents."""
    digest = hashlib.sha256(repr(vae.config.scaling_factor).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def cached_latents(
    data: DomainData, config: Config, vae: AutoencoderKL, fingerprint: str, progress: bool = True
) -> ConcatDataset:
    """Return mean and deviation of each image's scaled latents (2, C, h, w), read from disk at each access.

    float32, or float16 where the VAE computed in a half precision. A shard's name holds its images, their
    size, the VAE and its precision, so none is ever stale; see `cached_rows`. Raises DasdError for a folder
    that cannot be written and numbers that are not finite.
    """
    dtype = processes.frozen_dtype(config, vae.device) or torch.float32
    starts = range(0, len(data), SHARD)
    ids = [data.ids[start : start + SHARD] for start in starts]
    mark = f"{fingerprint} {dtype}"
    paths = [shard_path(config, data.config.name, data.split, mark, *each) for each in ids]

    def make(number: int, bar: tqdm) -> np.ndarray:
        return _encode_shard(data, starts[number], vae, dtype, bar)

    return cached_rows(paths, make, f"latents of {data.config.name}", len(data), progress)


def cached_rows(
    paths: Sequence[Path], make: Callable[[int, tqdm], np.ndarray], what: str, total: int,
    progress: bool = True, unit: str = "image",
) -> ConcatDataset:  # fmt: skip
    """Return the rows of the shards in these files, read from disk at each access.

    `make(number, bar)` returns one that is not there, or not as it was written, and counts its rows; one of
    the processes that share the folder makes it.
    """
    for path in paths:
        if path.exists() and not _is_whole(path):
            log.warning("The cached %s in %s are damaged, and made again.", what, path)
            path.unlink(missing_ok=True)
    shown = progress and not all(path.exists() for path in paths)
    with files.bar(None, what, total, shown=shown, unit=unit) as bar:
        while missing := [(path, number) for number, path in enumerate(paths) if not path.exists()]:
            if not any(
                [make_if_free(path, lambda p=path, i=i: _write(p, make(i, bar))) for path, i in missing]
            ):
                files.say_once(f"Another process makes the {what}: {missing[0][0].with_suffix('.lock')}.")
                time.sleep(POLL)
    return ConcatDataset([np.load(path, mmap_mode="r").view(np.ndarray) for path in paths])


def _is_whole(path: Path) -> bool:
    """Return whether a shard ends with the SHA-256 of what is before."""
    content = np.memmap(path, mode="r") if path.stat().st_size > DIGEST else np.zeros(DIGEST, np.uint8)
    return hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:].tobytes()


def stored(config: Config) -> tuple[int, int]:
    """Return how many shards the cache folder holds and their bytes."""
    sizes = [path.stat().st_size for path in resolve(config.data.cache_dir).glob(f"{NAME}.npy")]
    return len(sizes), sum(sizes)


def clear(config: Config) -> tuple[int, int]:
    """Remove every shard and what interrupted processes left; return the number of shards, and bytes."""
    found = stored(config)
    for path in resolve(config.data.cache_dir).glob(f"{NAME}.*"):
        if path.suffix in (".npy", ".tmp", ".lock"):
            path.unlink(missing_ok=True)
    return found


def shard_path(config: Config, domain: str, kind: str, *parts: str) -> Path:
    """Return the file of a domain's shard whose rows are decided by these parts."""
    key = hashlib.sha256("\n".join([VERSION, str(config.model.resolution), *parts]).encode()).hexdigest()
    return resolve(config.data.cache_dir) / f"{domain}-{kind}-{key[:24]}.npy"


def images_at_once(width: int, height: int) -> int:
    """Return how many images of a size pass through a network at once."""
    return max(min(ENCODE_BATCH, ENCODE_PIXELS // (width * height)), 1)


def make_if_free(path: Path, write: Callable[[], None]) -> bool:
    """Let a file of the cache be written and return True, unless another process is at it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.try_lock(path.with_suffix(".lock")) as mine:
            if mine and not path.exists():
                write()
            return mine
    except OSError as error:
        raise DasdError(f"The latent cache {path} cannot be written: {error.strerror or error}. Set "
                        "cache_dir to a folder that can be.") from error  # fmt: skip


def _encode_shard(
    data: DomainData, start: int, vae: AutoencoderKL, dtype: torch.dtype, bar: tqdm
) -> np.ndarray:
    stop = min(start + SHARD, len(data))
    size = images_at_once(*data.images[start].size)
    parts = []
    for first in range(start, stop, size):
        parts.append(_encode(vae, data.images[first : min(first + size, stop)], dtype))
        bar.update(len(parts[-1]))
    return np.concatenate(parts)


def _write(path: Path, rows: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, rows)
    content = stream.getvalue()
    unfinished = path.with_suffix(".tmp")  # one that a killed process left is written over
    try:
        unfinished.write_bytes(content + hashlib.sha256(content).digest())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@torch.no_grad()
def _encode(vae: AutoencoderKL, images: Sequence, dtype: torch.dtype) -> np.ndarray:
    """Return (B, 2, C, h, w): mean and standard deviation of q(z|x), times the VAE's scaling factor."""
    with torch.autocast(vae.device.type, dtype, enabled=dtype != torch.float32):
        posterior = vae.encode(to_pixels(images).to(vae.device, vae.dtype)).latent_dist
    moments = torch.stack([posterior.mean, posterior.std], dim=1).float() * vae.config.scaling_factor
    if dtype != torch.float32:
        moments = moments.half()  # finer than bfloat16, and all that it holds
    if not torch.isfinite(moments).all():
        raise DasdError(f"The VAE gives latents that are not finite in {dtype}: set half_weights to false, "
                        "or mixed_precision to 'no'.")  # fmt: skip
    return moments.cpu().numpy()
