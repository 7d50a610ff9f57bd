"""Time and memory of a method's training step against DASD's, at equal batches; see README.md.

python benchmarks/method_step.py --method domainstudio
"""

from __future__ import annotations

from typing import Annotated, Any

import common
import steps
import torch
import typer

from dasd_utils.config import DASD
from dasd_utils.papers import domainstudio

VARIANTS: dict[str, dict[str, Any]] = {
    DASD: {},
    "DomainStudio": {"method": "domainstudio"},
    "DomainStudio, latents": {"method": "domainstudio", "method_settings": {"space": "latents"}},
    "DomainStudio, no losses": {"method": "domainstudio", "method_settings": domainstudio.NO_LOSSES},
    "null text, LoRA": {"method": "indomain"},
    "null text, whole UNet": {"method": "indomain", "whole_unet": True},
    "null text, text-free copy": {"method": "indomain", "whole_unet": True, "text_free": True},
}
COPY = "null text, text-free copy"
PAIRS = {  # method -> (variant, what it is timed against)
    "domainstudio": [(name, DASD) for name in VARIANTS if name.startswith("DomainStudio")],
    "indomain": [("null text, LoRA", DASD), (COPY, "null text, whole UNet"), (COPY, "null text, LoRA")],
}


def compare(name: str, against: str, options: dict[str, Any], threads: int, repeats: int) -> common.Row:
    """Return a row of two variants, timed in turns: seconds, peak memory, and both as ratios."""
    workers = {
        each: common.Worker(steps.ours, threads, **options, **VARIANTS[each]) for each in (name, against)
    }
    times = common.alternate(workers, dict.fromkeys(workers, ("step",)), repeats)
    own, other = (times[each]["step"] for each in workers)
    peaks = [worker.ask("peak") / 1e9 for worker in workers.values()]
    for worker in workers.values():
        worker.close()
    return {
        "step": name,
        "against": against,
        **options,
        "threads": threads,
        "n": repeats,
        "seconds": common.spread(own),
        "seconds_of_the_other": common.spread(other),
        "times_as_long": common.spread([a / b for a, b in zip(own, other, strict=True)]),
        "peak_gb": common.exactly(peaks[0]),
        "share_of_memory": common.exactly(peaks[0] / peaks[1]),
    }


def main(
    method: Annotated[str, typer.Option(help=f"one of {', '.join(PAIRS)}")] = "domainstudio",
    model: Annotated[str, typer.Option(help="sd15 (random weights in true shapes) or tiny")] = "tiny",
    resolution: Annotated[int, typer.Option(help="pixels")] = 64,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16")] = "bf16",
    threads: int = 1,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    targets: Annotated[int, typer.Option(help="of one step, all domains together")] = 24,
) -> None:
    """Print a table and write data/results/bench_method_step_<what>.json."""
    if method not in PAIRS:
        raise typer.BadParameter(f"--method is {method!r}; it must be one of {', '.join(PAIRS)}.")
    options: dict[str, Any] = {"model": model, "resolution": resolution, "precision": precision}
    options |= {"target_batch_size": targets, "source_batch_size": max(targets // 3, 1)}
    torch.set_num_threads(threads)
    rows = [compare(name, against, options, threads, repeats) for name, against in PAIRS[method]]
    columns = {"step": "", "against": "", "seconds": ".3g", "seconds_of_the_other": ".3g"}
    print(common.table(rows, columns | {"times_as_long": ".2f", "peak_gb": ".2f", "share_of_memory": ".2f"}))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = f"method_step_{method}_{model}_{resolution}_{precision}"
    print(common.save(name, {"machine": common.machine(threads, device)}, rows))


if __name__ == "__main__":
    typer.run(main)
