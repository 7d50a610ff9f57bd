"""Stable Diffusion 1.5 at 512 px on a GPU: speed and memory by batch; predicted where there is no GPU.

python benchmarks/gpu.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import common
import counting
import steps
import torch
import typer

from dasd_utils.config import Calibration
from dasd_utils.sampling import DasdPipeline

RESOLUTION, LATENT = 512, 64  # pixels, and a latent's side
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)  # targets; a third as many sources, or one
LIMITS = (8, 16, 24)  # GB
REPEATS = 5
PREDICTED_FOR = "NVIDIA L4"
PEAK_TFLOPS = 121.0  # its dense bf16 products a second, from its data sheet
SHARE = (0.18, 0.10, 0.25)  # of that peak which is reached: expected, least, most; an assumption
WORKSPACE_GB = (1.0, 0.6, 1.5)  # CUDA context, workspaces, fragments; an assumption
FORMATS = {
    "limit_gb": "",
    "target_batch_size": "",
    "source_batch_size": "",
    "gradient_checkpointing": "",
    "samples_per_second": ".2f",
    "peak_gb": ".1f",
}


def batches(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the changes of the config for each batch size, with and without gradient checkpointing."""
    for checkpointing in (False, True):
        for targets in sizes:
            sizes_of_both = {"target_batch_size": targets, "source_batch_size": max(targets // 3, 1)}
            yield {**sizes_of_both, "gradient_checkpointing": checkpointing}


def measured(changes: dict[str, Any]) -> common.Row:
    """Return samples a second and peak memory on the GPU, neither if the batch does not fit."""
    worker = common.Worker(steps.ours, 4, model="sd15", resolution=RESOLUTION, precision="bf16", **changes)
    try:
        seconds = [worker.ask("seconds", "step") for _ in range(REPEATS + 2)][2:]
        peak = worker.ask("peak") / 1e9
    except RuntimeError as error:
        if "OutOfMemoryError" not in str(error):
            raise
        return {}
    finally:
        worker.close()
    speed = common.spread([changes["target_batch_size"] / each for each in seconds])
    return {"samples_per_second": speed, "peak_gb": common.exactly(peak)}


def predicted(changes: dict[str, Any]) -> common.Row:
    """Return speed from counted work and the assumed share, and memory; see counting.py."""
    work = counting.step(steps.settings("sd15", RESOLUTION, "bf16", **changes))
    targets = changes["target_batch_size"]
    speed = [targets * 1e3 * PEAK_TFLOPS * share / work.gflop for share in SHARE]
    return {
        "samples_per_second": common.Measure(*speed),
        "peak_gb": common.Measure(*(work.peak / 1e9 + workspace for workspace in WORKSPACE_GB)),
        "gflop": common.exactly(work.gflop / targets),
    }


def sampling_seconds(on_gpu: bool) -> common.Measure:
    """Return seconds of one image, 30 steps of DDIM with guidance, decoder included."""
    options = {"model": "sd15", "resolution": RESOLUTION, "precision": "bf16"}
    if on_gpu:
        worker = common.Worker(sampler, 4, **options)
        seconds = [worker.ask("seconds", "image") for _ in range(REPEATS + 1)][1:]
        worker.close()
        return common.spread(seconds)
    gflop = 30 * counting.prediction(steps.settings(**options), 1).gflop + counting.vae_pass(1).gflop
    return common.Measure(*(gflop / (1e3 * PEAK_TFLOPS * SHARE[i]) for i in (0, 2, 1)))


def sampler(model: str, resolution: int, precision: str) -> common.Operations:
    """Return `image`: one image of the adapted model, with the published settings."""
    config = steps.settings(model, resolution, precision)
    pipeline = DasdPipeline(steps.base(model, config).to("cuda"), config)
    settings = Calibration(7.0, 30, "ddim")
    return {"image": lambda: pipeline.generate(steps.PROMPT, domain="satellite", seed=0, settings=settings)}


def largest(rows: list[common.Row]) -> list[common.Row]:
    """Return the largest batch that fits in each limit, with and without checkpointing."""
    found = []
    for limit in LIMITS:
        for checkpointing in (False, True):
            measured = [r for r in rows if r["gradient_checkpointing"] == checkpointing and "peak_gb" in r]
            fitting = [row for row in measured if row["peak_gb"].high <= limit]
            found += [{**row, "limit_gb": limit} for row in fitting[-1:]]
    return found


def main(sizes: Annotated[str, typer.Option(help="targets in a micro-batch, with commas")] = "") -> None:
    """Print a table and write data/results/bench_gpu.json; `made` says measured or predicted."""
    on_gpu, rows = torch.cuda.is_available(), []
    made = {"made": "measured" if on_gpu else "predicted", "n": REPEATS if on_gpu else 1}
    for changes in batches([int(size) for size in sizes.split(",")] if sizes else BATCHES):
        rows.append({**changes, **made, **(measured(changes) if on_gpu else predicted(changes))})
        print(rows[-1], flush=True)
    fitting = largest(rows)
    seconds = {"seconds_an_image": sampling_seconds(on_gpu), **made}
    print(common.table(fitting, FORMATS))
    print(f"{made['made']}: {seconds['seconds_an_image']:.2f} seconds an image, 30 steps with guidance")
    device = torch.cuda.get_device_name(0) if on_gpu else PREDICTED_FOR
    settings = {"machine": common.machine(1, "cuda" if on_gpu else "cpu"), "for": device}
    if not on_gpu:
        settings |= {"peak_tflops": PEAK_TFLOPS, "share": SHARE, "workspace_gb": WORKSPACE_GB}
    print(common.save("gpu", settings, [*rows, *fitting, seconds]))


if __name__ == "__main__":
    typer.run(main)
