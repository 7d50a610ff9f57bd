"""Time this project's training step against the published one and a plain LoRA step; see README.md.

python benchmarks/train_step.py --model sd15 --resolution 256 --precision no
python benchmarks/train_step.py --against adapted,frozen,published,plain --targets 4
python benchmarks/train_step.py --model sd15 --resolution 256 --against "LoRA on attention,no LoRA"
"""

from __future__ import annotations

from typing import Annotated, Any

import common
import steps
import torch
import typer

from dasd_utils import losses
from dasd_utils.config import Config
from dasd_utils.runtime import latent_cache


def seconds_a_sample(name: str, times: dict[str, list[float]], config: Config) -> list[float]:
    """Return seconds per target sample of each repeat, with its share of update, latents and bank."""
    if name == "published":
        return [s + u / 4 for s, u in zip(times["sample"], times["update"], strict=True)]
    if name == "plain":
        return [s / steps.PLAIN_BATCH for s in times["step"]]
    return [sum(share * times[name][i] for name, share in shares(config).items())
            for i in range(len(times["step"]))]  # fmt: skip


def shares(config: Config) -> dict[str, float]:
    """Return how often each operation of ours is done for a target sample."""
    done = {"step": 1 / batch_of(config), "encode": steps.IMAGES / steps.PUBLISHED_SAMPLES}
    if losses.uses_bank(config):
        calls = config.alignment.bank_size / latent_cache.images_at_once(*[config.model.resolution] * 2)
        done["bank"] = calls / steps.PUBLISHED_SAMPLES
    return done


def batch_of(config: Config) -> int:
    """Return the target samples of an optimiser step of ours."""
    return config.training.target_batch_size * config.training.gradient_accumulation_steps


def gflop_a_sample(name: str, worker: common.Worker, config: Config) -> float:
    """Return counted work per target sample, the share of the latent cache and the bank included."""
    if name == "published":
        return worker.ask("gflop", "sample")
    if name == "plain":
        return worker.ask("gflop", "step") / steps.PLAIN_BATCH
    return sum(share * worker.ask("gflop", name) for name, share in shares(config).items())


def seconds_of_parts(
    name: str, worker: common.Worker, config: Config, repeats: int, times: dict[str, list[float]]
) -> dict[str, common.Measure]:
    """Return seconds per target sample of VAE, text, target, source, backward and optimiser."""
    seen = [worker.ask("value", "parts") for _ in range(min(repeats, 2))]
    size = 1 if name == "published" else batch_of(config)
    parts = {f"part_{label}": common.spread([each[label] / size for each in seen]) for label in seen[0]}
    if name != "published":
        for label, operation in {"VAE": "encode", "bank": "bank"}.items():
            if share := shares(config).get(operation):
                parts[f"part_{label}"] = common.spread([share * seconds for seconds in times[operation]])
    return parts


FORMS = {  # of ours, that it is compared with
    "adapted": {"source_features": "adapted"},
    "frozen": {"source_features": "frozen"},
    "LoRA on attention": {"convolutions": "none"},
    "no LoRA": {"rank": 0},  # the tokens alone are trained
}
OPERATIONS = {"published": ("sample", "update"), "plain": ("step",)}


def measure(
    other: str, options: dict[str, Any], threads: int, repeats: int, at_once: int
) -> list[common.Row]:
    """Return a row for this project's step and one for the other, timed in turns.

    other: "published", "plain" or one of FORMS.
    """
    plain = {k: options[k] for k in ("model", "resolution", "precision")}
    changes = {k: v for k, v in options.items() if k not in plain}
    configs = {"ours": steps.settings(**plain, **changes)}
    workers = {"ours": common.Worker(steps.ours, threads, **plain, **changes)}
    if other in steps.FACTORIES:
        own = {"at_once": at_once} if other == "plain" else {}
    else:
        own = changes | FORMS[other]
        configs[other] = steps.settings(**plain, **own)
    workers[other] = common.Worker(steps.FACTORIES.get(other, steps.ours), threads, **plain, **own)
    done = {name: tuple(shares(config)) for name, config in configs.items()} | OPERATIONS
    times, rows = common.alternate(workers, done, repeats), []
    for name, worker in workers.items():
        config = configs.get(name, configs["ours"])
        each = seconds_a_sample(name, times[name], config)
        peak = worker.ask("peak") / 1e9
        gflop = gflop_a_sample(name, worker, config)
        row = {"step": name, "against": other, **options, "threads": threads, "n": repeats}
        row |= {"plain_at_once": at_once} if other == "plain" else {}
        row |= {"seconds": common.spread(each), "gflop": common.exactly(gflop)}
        row |= {"peak_gb": common.exactly(peak), "each": each}
        if name != "plain":
            row |= seconds_of_parts(name, worker, config, repeats, times[name])
        rows.append(row)
        worker.close()
    return rows


def main(
    model: Annotated[str, typer.Option(help="sd15 (random weights in true shapes) or tiny")] = "tiny",
    resolution: Annotated[int, typer.Option(help="pixels")] = 64,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16")] = "no",
    threads: int = 1,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    against: Annotated[
        str,
        typer.Option(help=f"of {', '.join([*steps.FACTORIES, *FORMS])}, with commas"),
    ] = "published,plain",
    checkpointing: Annotated[bool, typer.Option(help="recompute activations in ours")] = False,
    targets: Annotated[int, typer.Option(help="ours, in a micro-batch; 1: with a source in every third")] = 3,
    at_once: Annotated[int, typer.Option(help="images in a micro-batch of plain: 1, 2 or 4")] = 4,
    source: Annotated[str, typer.Option(help="source features of ours: bank, frozen or adapted")] = "bank",
) -> None:
    """Print a table and write data/results/bench_train_step_<what>.json."""
    options: dict[str, Any] = {"model": model, "resolution": resolution, "precision": precision}
    if checkpointing:
        options["gradient_checkpointing"] = True
    options |= {"target_batch_size": targets, "source_batch_size": max(targets // 3, 1)}
    if targets == 1:
        options |= {"source_every": 3, "gradient_accumulation_steps": 3}
    options["source_features"] = source
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for other in against.split(","):
        rate = common.matmul_gflops(steps.dtype_of(precision), device)
        pair = measure(other, options, threads, repeats, at_once)
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
    name += f"_{source}" * (source != "adapted") + f"_plain_{at_once}" * (at_once != steps.PLAIN_BATCH)
    name += "_forms" * all(other in FORMS for other in against.split(","))
    print(common.save(name, settings | {"samples": steps.PUBLISHED_SAMPLES}, rows))


if __name__ == "__main__":
    typer.run(main)
