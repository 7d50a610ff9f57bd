"""Time this project's training step against the published one and a plain LoRA step; see README.md.

python benchmarks/train_step.py --model sd15 --resolution 256 --precision no
"""

from __future__ import annotations

from typing import Annotated, Any

import common
import steps
import torch
import typer


def seconds_a_sample(name: str, times: dict[str, list[float]], batch: int) -> list[float]:
    """Return seconds per target sample of each repeat, the share of update and latent cache included."""
    if name == "published":
        return [s + u / 4 for s, u in zip(times["sample"], times["update"], strict=True)]
    if name == "plain":
        return [s / steps.PLAIN_BATCH for s in times["step"]]
    share = steps.IMAGES / steps.PUBLISHED_SAMPLES
    return [s / batch + share * e for s, e in zip(times["step"], times["encode"], strict=True)]


def gflop_a_sample(name: str, worker: common.Worker, batch: int) -> float:
    """Return counted work per target sample, the share of the latent cache included."""
    if name == "published":
        return worker.ask("gflop", "sample")
    if name == "plain":
        return worker.ask("gflop", "step") / steps.PLAIN_BATCH
    share = steps.IMAGES / steps.PUBLISHED_SAMPLES
    return worker.ask("gflop", "step") / batch + share * worker.ask("gflop", "encode")


def seconds_of_parts(
    name: str, worker: common.Worker, batch: int, repeats: int, times: dict[str, list[float]]
) -> dict[str, common.Measure]:
    """Return seconds per target sample of VAE, text, target, source, backward and optimiser."""
    seen = [worker.ask("value", "parts") for _ in range(min(repeats, 2))]
    size = batch if name == "ours" else 1
    parts = {f"part_{label}": common.spread([each[label] / size for each in seen]) for label in seen[0]}
    if name == "ours":
        share = steps.IMAGES / steps.PUBLISHED_SAMPLES
        parts["part_VAE"] = common.spread([share * seconds for seconds in times["encode"]])
    return parts


OPERATIONS = {"ours": ("step", "encode"), "published": ("sample", "update"), "plain": ("step",)}


def measure(other: str, options: dict[str, Any], threads: int, repeats: int) -> list[common.Row]:
    """Return a row for this project's step and one for the other, timed in turns."""
    plain = {k: options[k] for k in ("model", "resolution", "precision")}
    changes = {k: v for k, v in options.items() if k not in plain}
    training = steps.settings(**plain, **changes).training
    batch = training.target_batch_size * training.gradient_accumulation_steps
    workers = {
        "ours": common.Worker(steps.ours, threads, **plain, **changes),
        other: common.Worker(steps.FACTORIES[other], threads, **plain),
    }
    times, rows = common.alternate(workers, OPERATIONS, repeats), []
    for name, worker in workers.items():
        each = seconds_a_sample(name, times[name], batch)
        peak = worker.ask("peak") / 1e9
        gflop = gflop_a_sample(name, worker, batch)
        row = {"step": name, "against": other, **options, "threads": threads, "n": repeats}
        row |= {"seconds": common.spread(each), "gflop": common.exactly(gflop)}
        row |= {"peak_gb": common.exactly(peak), "each": each}
        if name != "plain":
            row |= seconds_of_parts(name, worker, batch, repeats, times[name])
        rows.append(row)
        worker.close()
    return rows


def main(
    model: Annotated[str, typer.Option(help="sd15 (random weights in true shapes) or tiny")] = "tiny",
    resolution: Annotated[int, typer.Option(help="pixels")] = 64,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16")] = "no",
    threads: int = 1,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    against: Annotated[str, typer.Option(help="published, plain, or both with a comma")] = "published,plain",
    checkpointing: Annotated[bool, typer.Option(help="recompute activations in ours")] = False,
    targets: Annotated[int, typer.Option(help="ours, in a micro-batch; 1: with a source in every third")] = 3,
) -> None:
    """Print a table and write data/results/bench_train_step_<what>.json."""
    options: dict[str, Any] = {"model": model, "resolution": resolution, "precision": precision}
    if checkpointing:
        options["gradient_checkpointing"] = True
    options |= {"target_batch_size": targets, "source_batch_size": max(targets // 3, 1)}
    if targets == 1:
        options |= {"source_every": 3, "gradient_accumulation_steps": 3}
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for other in against.split(","):
        rate = common.matmul_gflops(steps.dtype_of(precision), device)
        pair = measure(other, options, threads, repeats)
        for row in pair:
            seconds = row["seconds"]
            share = row["gflop"].value / rate  # seconds, at the rate of a matrix product
            row["samples_per_second"] = common.Measure(*(1 / seconds[i] for i in (0, 2, 1)))
            row["share_of_matmul"] = common.Measure(*(share / seconds[i] for i in (0, 2, 1)))
            row["ratio"] = common.spread([b / a for a, b in zip(row["each"], pair[1]["each"], strict=True)])
            row["memory_ratio"] = common.exactly(row["peak_gb"].value / pair[1]["peak_gb"].value)
            row["matmul_gflops"] = rate
        rows += [{key: value for key, value in row.items() if key != "each"} for row in pair]
    columns = {"step": "", "samples_per_second": ".3g", "gflop": ".0f", "share_of_matmul": ".2f"}
    print(common.table(rows, columns | {"peak_gb": ".2f", "ratio": ".2f", "memory_ratio": ".2f"}))
    settings = {"machine": common.machine(threads, device), "images": steps.IMAGES}
    name = f"train_step_{model}_{resolution}_{precision}_batch_{targets}" + "_again" * checkpointing
    print(common.save(name, settings | {"samples": steps.PUBLISHED_SAMPLES}, rows))


if __name__ == "__main__":
    typer.run(main)
