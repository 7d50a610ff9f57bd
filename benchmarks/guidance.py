"""Time an image under each kind of guidance against plain classifier-free guidance, on the tiny base.

python benchmarks/guidance.py
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import common
import torch
import typer

from dasd_utils import models, sampling
from dasd_utils.config import Calibration, Config, resolve
from dasd_utils.guidance import BASE, EMPTY, GIVEN, Term, rule
from dasd_utils.papers import text_free
from dasd_utils.pretrain.evaluate import heldout

PLAIN, COPY = "classifier-free", "decoupled, text-free copy"
HOW = Calibration(guidance_scale=2.5, num_inference_steps=10, scheduler="dpm++")
RULES = {
    PLAIN: rule(HOW),
    "Domain Guidance": rule(dataclasses.replace(HOW, guidance="domain")),
    "decoupled": rule(dataclasses.replace(HOW, guidance="decoupled")),
    COPY: (Term(BASE, EMPTY), Term("copy", EMPTY, 2.5), Term(BASE, GIVEN, 2.5)),
    "unconditional": rule(dataclasses.replace(HOW, guidance="unconditional")),
}


def factory(name: str, precision: str, batch_size: int) -> common.Operations:
    """Return `images`, which samples a batch of the shipped run's first domain under a rule."""
    config = Config.setup("tiny")
    pipeline = sampling.load_trained_pipeline(resolve(config.shipped_run), config)
    pipeline.config = config.replace(mixed_precision=precision)
    domain = config.domains[0]
    if name == COPY:
        parts = models.load_parts(config)
        text_free.open_text_free(parts)
        pipeline.learners["copy"] = parts.unet.to(pipeline.parts.unet.device)
    prompts = heldout(domain.name, batch_size).texts
    seeds, how = list(range(batch_size)), {"domain": domain.name, "settings": HOW, "guidance": RULES[name]}
    return {"images": lambda: pipeline.generate(list(prompts), seed=seeds, **how)}


def main(
    precision: Annotated[str, typer.Option(help="no, bf16, fp16 or auto, the same for all")] = "auto",
    threads: int = 2,
    batch_size: int = 8,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print a table and write data/results/bench_guidance.json: seconds an image, and the ratio."""
    torch.set_num_threads(threads)
    options = {"precision": precision, "batch_size": batch_size}
    workers = {name: common.Worker(factory, threads, name=name, **options) for name in RULES}
    times = common.alternate(workers, dict.fromkeys(workers, ("images",)), repeats)
    rows = []
    for name, worker in workers.items():
        worker.close()
        own, plain = times[name]["images"], times[PLAIN]["images"]
        row = {"guidance": name, "branches": len(RULES[name]), "calls": len({t.model for t in RULES[name]})}
        row |= {**options, "threads": threads, "steps": HOW.num_inference_steps, "n": repeats}
        row["seconds_an_image"] = common.spread([seconds / batch_size for seconds in own])
        row["times_as_long"] = common.spread([a / b for a, b in zip(own, plain, strict=True)])
        rows.append(row)
    columns = {"guidance": "", "branches": "", "calls": "", "seconds_an_image": ".3f", "times_as_long": ".2f"}
    print(common.table(rows, columns))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(common.save("guidance", {"machine": common.machine(threads, device)}, rows))


if __name__ == "__main__":
    typer.run(main)
