"""The same training run in 1, 2 and 4 processes: how far apart are losses and weights? See README.md.

python benchmarks/several_processes.py
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import common
import torch
import typer
from safetensors.torch import load_file

from dasd_utils import training
from dasd_utils.config import Config

STEPS = 20
LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no", "--main_process_port", "0"]
COLUMNS = ("processes", "loss_apart", "weights_apart", "largest_weight_apart", "seconds")


def settings(folder: Path, images: int) -> Config:
    """Return a run of the tiny profile in fp32 with the alignment strongly on, in batches of 24 + 8."""
    tiny = Config.setup("tiny")
    few = [dataclasses.replace(domain, num_images=images) for domain in (tiny.source, *tiny.domains)]
    changes = dict(max_train_steps=STEPS, lambda_align=1.0, mixed_precision="no", validation_every=10)
    return tiny.replace(source=few[0], domains=tuple(few[1:]), cache_dir=folder.parent / "cache",
                        output_dir=folder, validation_images=8, **changes)  # fmt: skip


def trained(folder: Path, count: int, images: int) -> tuple[torch.Tensor, list[dict], float]:
    """Train in `count` processes; return (all weights, history, seconds)."""
    path = settings(folder, images).save(folder.parent / f"{count}.json")
    launcher = [*LAUNCH, "--num_processes", str(count), "-m"] if count > 1 else []
    command = [sys.executable, "-m", *launcher, "dasd_utils.apps.cli.main", "train", "--config", path]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)
    tensors = load_file(folder / "checkpoints" / f"step-{STEPS:06d}" / "adapter.safetensors")
    weights = torch.cat([tensors[name].flatten() for name in sorted(tensors)])
    return weights, training.load_history(folder), time.perf_counter() - started


def compare(count: int, alone: tuple, other: tuple) -> common.Row:
    """Return how far a run is from that of one process: its losses, relative to them, and its weights."""
    pairs = [(a[k], b[k]) for a, b in zip(alone[1], other[1], strict=True) for k in ("loss", "loss_noise")]
    change = other[0] - alone[0]
    return {
        "processes": count,
        "n": STEPS,
        "loss_apart": common.exactly(max(abs(b - a) / abs(a) for a, b in pairs)),
        "weights_apart": common.exactly((change.norm() / alone[0].norm()).item()),
        "largest_weight_apart": common.exactly(change.abs().max().item()),
        "seconds": common.exactly(other[2]),
    }


def main(
    counts: Annotated[str, typer.Option(help="processes, with commas")] = "1,2,4",
    images: Annotated[int, typer.Option(help="of each domain")] = 60,
) -> None:
    """Print a table and write data/results/bench_several_processes.json."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {n: trained(Path(folder) / str(n), n, images) for n in map(int, counts.split(","))}
    alone = next(iter(runs.values()))
    rows = [compare(count, alone, run) for count, run in runs.items()]
    print(common.table(rows, dict.fromkeys(COLUMNS, ".1e") | {"processes": "", "seconds": ".0f"}))
    print(common.save("several_processes", {"machine": common.machine(1), "steps": STEPS}, rows))


if __name__ == "__main__":
    typer.run(main)
