"""Time and memory of preparing, caching and training on more and more toy images; see README.md.

python benchmarks/scale.py --sizes 1000,10000,100000
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any
from unittest import mock

import common
import numpy as np
import torch
import typer

from dasd_utils import latents, training
from dasd_utils.config import Config
from dasd_utils.runtime import latent_cache, processes

STEPS = 20  # timed training steps
LARGEST = 10_000_000  # images of the rows that are extrapolated
SHARED = 10_000  # images that several workers encode together
STAGES = ("prepare", "encode", "train")
FORMATS = {"images": "", "workers": "", "stage": "", "seconds": ".0f", "peak_gb": ".2f", "disk_gb": ".3f"}


def stages(images: int, folder: str) -> common.Operations:
    """Return `prepare` (draw, hash, audit), `encode` (fill the latent cache) and `train`, in this order.

    `encode` returns the numbers of images that each shard encoded here has.
    """
    config = settings(images, folder)
    parts = training.setup_training(config)
    made: dict[str, Any] = {}

    def prepare() -> None:
        made["sampler"] = latents.create_datasets(config, parts.tokenizer)[-1]

    def encode() -> list[int]:
        with mock.patch.object(
            latent_cache, "_encode_shard", side_effect=latent_cache._encode_shard
        ) as encoded:
            made["sampler"].encode(parts.vae, processes.default_device(), progress=False)
        return [min(latent_cache.SHARD, len(call.args[0]) - call.args[1]) for call in encoded.call_args_list]

    def train() -> None:
        training.train(config, parts, made["sampler"], progress=False)

    return {"prepare": prepare, "encode": encode, "train": train}


def settings(images: int, folder: str) -> Config:
    """Return the tiny profile with that many satellite images; checkpoints and validation off."""
    base = Config.setup("tiny")
    satellite = dataclasses.replace(base.domain("satellite"), num_images=images)
    return base.replace(
        domains=(satellite,),
        cache_dir=f"{folder}/cache",
        output_dir=f"{folder}/run",
        max_train_steps=STEPS,
        checkpoint_every=0,
        validation_every=0,
        lr_warmup_steps=1,
    )


def measure(images: int, threads: int, names: tuple[str, ...] = STAGES) -> list[common.Row]:
    """Return a row for each stage: seconds, peak memory of the process by then, and the cache's size."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        worker = common.Worker(stages, threads, images=images, folder=folder)
        for stage in names:
            seconds, peak = worker.ask("seconds", stage), worker.ask("peak") / 1e9
            row = {"images": images, "workers": 1, "stage": stage, "n": 1}
            row |= {"seconds": common.exactly(seconds), "peak_gb": common.exactly(peak)}
            if stage == "encode":
                row["disk_gb"] = common.exactly(latent_cache.stored(settings(images, folder))[1] / 1e9)
            rows.append(row)
        worker.close()
    return rows


def shared(images: int, count: int) -> common.Row:
    """Return seconds until `count` processes have filled one cache together; each shard made once."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(count) as pool:
        workers = [common.Worker(stages, 1, images=images, folder=folder) for _ in range(count)]
        list(pool.map(lambda worker: worker.ask("seconds", "prepare"), workers))
        started = time.perf_counter()
        encoded = list(pool.map(lambda worker: worker.ask("value", "encode"), workers))
        seconds = time.perf_counter() - started
        for worker in workers:
            worker.close()
    total, source = sum(map(sum, encoded)), settings(images, folder).source.num_images
    if total != images + source:
        raise SystemExit(f"{total} images were encoded, of {images + source}: a shard was made twice.")
    print(f"{count} workers made shards of {' and '.join(map(str, encoded))} images")
    row = {"images": images, "workers": count, "stage": "encode", "n": 1}
    return row | {"seconds": common.exactly(seconds)}


def extrapolated(rows: list[common.Row]) -> list[common.Row]:
    """Return rows for LARGEST images: the line through the two largest measurements of what grows by a line.

    The time of preparing does not: each image is compared with all others.
    """
    result = []
    for stage, names in {"prepare": ("peak_gb",), "encode": ("seconds", "disk_gb")}.items():
        sizes = sorted({row["images"] for row in rows if row["stage"] == stage})[-2:]
        if len(sizes) < 2:
            continue
        pair = [r for size in sizes for r in rows if (r["images"], r["stage"]) == (size, stage)]
        row = {"images": LARGEST, "workers": 1, "stage": stage, "n": 2, "made": "extrapolated"}
        for name in names:
            slope, start = np.polyfit(sizes, [each[name].value for each in pair], 1)
            row[name] = common.exactly(float(start + slope * LARGEST))
        result.append(row)
    return result


def sd15_disk() -> common.Row:
    """Return the cache of LARGEST images of 512 px for SD 1.5: mean and deviation in float16."""
    size = 2 * 4 * 64 * 64 * 2
    row = {"images": LARGEST, "workers": 1, "stage": "encode, SD 1.5 at 512 px", "n": 1, "made": "counted"}
    return row | {"disk_gb": common.exactly(size * LARGEST / 1e9)}


def main(
    sizes: Annotated[str, typer.Option(help="images, with commas")] = "1000,10000,100000",
    prepared: Annotated[str, typer.Option(help="further sizes, of which only preparing is measured")] = "",
    workers: Annotated[int, typer.Option(help="processes that fill one cache together")] = 2,
    threads: int = 1,
) -> None:
    """Print a table and write data/results/bench_scale.json."""
    torch.set_num_threads(threads)
    rows: list[common.Row] = []
    for images in map(int, sizes.split(",")):
        rows += measure(images, threads)
        print(common.table(rows[-len(STAGES) :], FORMATS), flush=True)
    for images in map(int, filter(None, prepared.split(","))):
        rows += measure(images, threads, STAGES[:1])
        print(common.table(rows[-1:], FORMATS), flush=True)
    alone = [row for row in rows if row["images"] == SHARED]
    extra = [shared(SHARED, workers)] if workers > 1 and alone else []
    rows += [*extra, *extrapolated(rows), sd15_disk()]
    print(common.table(rows, FORMATS))
    print(common.save("scale", {"machine": common.machine(threads), "train_steps": STEPS}, rows))


if __name__ == "__main__":
    typer.run(main)
