"""Time and memory of a method's training step against DASD's, at equal batches; see README.md.

python benchmarks/method_step.py --model sd15 --resolution 256 --precision bf16
"""

from __future__ import annotations

from typing import Annotated, Any

import common
import steps
import torch
import typer

from dasd_utils.methods import DASD
from dasd_utils.papers import domainstudio

VARIANTS: dict[str, dict[str, Any]] = {
    "DomainStudio": {"method": "domainstudio"},
    "DomainStudio, latents": {"method": "domainstudio", "method_settings": {"space": "latents"}},
    "DomainStudio, no losses": {"method": "domainstudio", "method_settings": domainstudio.NO_LOSSES},
}


def compare(name: str, options: dict[str, Any], threads: int, repeats: int) -> common.Row:
    """Return a row of one variant and DASD, timed in turns: seconds, peak memory, and both as ratios."""
    workers = {
        name: common.Worker(steps.ours, threads, **options, **VARIANTS[name]),
        DASD: common.Worker(steps.ours, threads, **options),
    }
    times = common.alternate(workers, dict.fromkeys(workers, ("step",)), repeats)
    own, other = (times[each]["step"] for each in workers)
    peaks = [worker.ask("peak") / 1e9 for worker in workers.values()]
    for worker in workers.values():
        worker.close()
    return {
        "step": name,
        "against": DASD,
        **options,
        "threads": threads,
        "n": repeats,
        "seconds": common.spread(own),
        "seconds_of_dasd": common.spread(other),
        "times_as_long": common.spread([a / b for a, b in zip(own, other, strict=True)]),
        "peak_gb": common.exactly(peaks[0]),
        "share_of_memory": common.exactly(peaks[0] / peaks[1]),
    }


def main(
    model: Annotated[str, typer.Option(help="sd15 (random weights in true shapes) or tiny")] = "tiny",
    resolution: Annotated[int, typer.Option(help="pixels")] = 64,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16")] = "bf16",
    threads: int = 1,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    targets: Annotated[int, typer.Option(help="of one step, both domains together")] = 24,
) -> None:
    """Print a table and write data/results/bench_method_step_<what>.json."""
    options: dict[str, Any] = {"model": model, "resolution": resolution, "precision": precision}
    options |= {"target_batch_size": targets, "source_batch_size": max(targets // 3, 1)}
    torch.set_num_threads(threads)
    rows = [compare(name, options, threads, repeats) for name in VARIANTS]
    columns = {"step": "", "seconds": ".3g", "seconds_of_dasd": ".3g", "times_as_long": ".2f"}
    print(common.table(rows, columns | {"peak_gb": ".2f", "share_of_memory": ".2f"}))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = f"method_step_{model}_{resolution}_{precision}"
    print(common.save(name, {"machine": common.machine(threads, device)}, rows))


if __name__ == "__main__":
    typer.run(main)
