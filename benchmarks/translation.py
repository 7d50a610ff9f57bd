"""Time and memory of learning to translate, and of translating a picture, on the tiny base; see README.md.

python benchmarks/translation.py
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import common
import steps
import torch
import typer

from dasd_utils import losses, models, sampling, training
from dasd_utils.config import Config
from dasd_utils.papers.diffusionclip import objective as diffusionclip
from dasd_utils.papers.diffusionclip import translation
from dasd_utils.toyworld import draw

EACH, ALL = "a loss at each step back", "through all steps back"
WORDS = {"reference": ("a painting",), "target": ("a sketch",)}
WALKS = {"40 + 6 steps": (40, 6), "200 + 40 steps": (200, 40)}


def factory(every_step: bool, batch_size: int, precision: str) -> common.Operations:
    """Return `way`, which takes one batch all the way back with its updates, and the walks of pictures."""
    domain = dataclasses.replace(Config.setup("tiny").domains[0], token=None)
    own = WORDS | {"every_step": every_step}
    config = Config.setup(
        "tiny", method="diffusionclip", domains=(domain,), method_settings=own, mixed_precision=precision,
        target_batch_size=batch_size, lr_warmup_steps=1,
    )  # fmt: skip
    parts = training.setup_training(config)
    updater, objective = training.Updater(config, parts), losses.make_objective(config)
    batch = steps.RandomSampler(config, models.latent_shape(parts)[-1]).batch(0)
    batch = dataclasses.replace(batch, sample_ids=[str(i) for i in range(len(batch.sample_ids))])
    batch = batch.to(updater.device, torch.float32)
    settings = diffusionclip.settings(config)

    def way() -> None:
        parts.unet.train()
        for _ in range(settings.generation_steps if every_step else 1):
            with updater.autocast():
                loss, _ = objective(parts, batch, config)
            updater.backward(loss)
            updater.update(finite_loss=True)

    pipeline = sampling.DasdPipeline(parts, config, batch_size=batch_size)
    pictures = [draw("painting", 0, i) for i in range(batch_size)]
    found: dict[str, Any] = {"invert": lambda: objective.begin(parts, batch), "way": way}
    for name, (there, back) in WALKS.items():
        found[name] = lambda there=there, back=back: translation.translate(
            pipeline, pictures, forward_steps=there, generation_steps=back
        )
    return found


def main(
    precision: Annotated[str, typer.Option(help="no, bf16, fp16 or auto, the same for all")] = "auto",
    threads: int = 2,
    batch_size: int = 8,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print a table and write data/results/bench_translation.json: seconds and memory."""
    torch.set_num_threads(threads)
    options = {"batch_size": batch_size, "precision": precision}
    workers = {
        name: common.Worker(factory, threads, every_step=name == EACH, **options) for name in (EACH, ALL)
    }
    before = {name: worker.ask("value", "invert") and worker.ask("peak") for name, worker in workers.items()}
    times = common.alternate(workers, dict.fromkeys(workers, ("way",)), repeats)
    memory = {name: (worker.ask("peak") - before[name]) / 1e9 for name, worker in workers.items()}
    shared = options | {"threads": threads, "n": repeats}
    own, other = (times[name]["way"] for name in (EACH, ALL))
    rows: list[common.Row] = []
    for name in workers:
        row = {"operation": f"learning: a batch, {name}", "against": "" if name == ALL else ALL, **shared}
        row["seconds"] = common.spread(times[name]["way"])
        ratios = [a / b for a, b in zip(own, other, strict=True)] if name == EACH else [1.0]
        row["times_as_long"] = common.spread(ratios)
        row["peak_gb"] = common.exactly(memory[name])
        rows.append(row | {"share_of_memory": common.exactly(memory[name] / memory[ALL])})
    walks = common.alternate({EACH: workers[EACH]}, {EACH: tuple(WALKS)}, repeats)[EACH]
    for name, taken in walks.items():
        row = {"operation": f"translating a picture, {name}", "against": "", **shared}
        rows.append(row | {"seconds": common.spread([seconds / batch_size for seconds in taken])})
    for worker in workers.values():
        worker.close()
    print(common.table(rows[:2], {"operation": "", "seconds": ".3g", "times_as_long": ".2f", "peak_gb": ".2f",
                                  "share_of_memory": ".2f"}))  # fmt: skip
    print(common.table(rows[2:], {"operation": "", "seconds": ".3g"}))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(common.save("translation", {"machine": common.machine(threads, device)}, rows))


if __name__ == "__main__":
    typer.run(main)
