"""Kill a training run at many moments and resume it: is it, bit for bit, the run that was never killed?

python benchmarks/kill_resume.py --kills 20
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import common
import torch
import typer
from forked import Command

from dasd_utils import sampling, training
from dasd_utils.config import Calibration, Config
from dasd_utils.runtime import checkpoints, latent_cache

STEPS = 12
PHASES: dict[str, tuple[Any, str]] = {  # what a kill interrupts
    "step": (training.Run, "optimise"),
    "checkpoint": (checkpoints, "write_checkpoint"),
    "latent cache": (latent_cache, "make_if_free"),
    "sample grid": (sampling.DasdPipeline, "generate"),
}
NOT_REPEATED = training.SPEED  # the one file that two equal runs do not share


def settings(folder: Path, base: str | None = None) -> Config:
    """Return a short run with all that a resume could get wrong: dropout, moving average, queue, samples."""
    changes: dict[str, Any] = dict(max_train_steps=STEPS, checkpoint_every=3, sample_every=4, ema_decay=0.9)
    changes |= dict(target_batch_size=4, source_batch_size=2, validation_every=5, validation_images=4)
    changes |= dict(dropout=0.1, queue_size=8, lr_warmup_steps=2, output_dir=folder / "run", tracking="none")
    domain: dict[str, Any] = dict(num_images=40)
    if base:  # of a test
        changes |= dict(base=base, clip=f"{base}/clip", resolution=32)
        domain = dict(num_images=12, calibration=Calibration(num_inference_steps=3))
    tiny = Config.setup("tiny")
    few = [dataclasses.replace(each, **domain) for each in (tiny.source, *tiny.domains)]
    return tiny.replace(source=few[0], domains=tuple(few[1:]), cache_dir=folder / "cache", **changes)


def train(config: Path, *options: str, kill: dict[str, Any] | None = None) -> tuple[int, str]:
    """Run `dasd train` in a process of its own, killed where `kill` says; return exit status, last words."""
    prepare = functools.partial(arm, **kill) if kill else None
    command = Command(["train", "--config", config, *options], config.parent / "said", prepare=prepare)
    return command.finish()[0], command.text("err")[-300:]


def arm(phase: str, entry: int, after: float) -> None:
    """Have this process killed `after` seconds into the `entry`-th visit of a phase."""
    owner, name = PHASES[phase]
    setattr(owner, name, _armed(getattr(owner, name), entry, after))


def _armed(function: Callable, entry: int, after: float) -> Callable:
    visits = itertools.count(1)

    def visited(*arguments: Any, **options: Any) -> Any:
        if next(visits) == entry:
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return function(*arguments, **options)

    return visited


def moments(kills: int, seconds: dict[str, float], visits: dict[str, int]) -> list[dict[str, Any]]:
    """Return where each kill strikes: phases in turns, a random visit, a random moment of it."""
    draw = random.Random(0)  # nosec B311  # no secret is drawn
    places = []
    for phase in itertools.islice(itertools.cycle(PHASES), kills):
        entry = draw.randint(1, visits[phase])
        places.append({"phase": phase, "entry": entry, "after": draw.uniform(0, seconds[phase])})
    return places


def files(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a run, but of the speed."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != NOT_REPEATED]
    return {path.relative_to(folder).as_posix(): checkpoints.describe_file(path)["sha256"] for path in found}


def attempt(folder: Path, place: dict[str, Any], base: str | None, expected: dict[str, str]) -> common.Row:
    """Kill a run there, resume it, and return what came of it."""
    config = settings(folder, base)
    path = config.save(folder / "config.json")
    killed, _ = train(path, kill=place)
    rows = checkpoints.load_rows(folder / "run" / training.HISTORY)
    saved = checkpoints.newest_checkpoint(folder / "run" / "checkpoints")
    resumed, said = train(path, "--resume")
    history = checkpoints.load_rows(folder / "run" / training.HISTORY)
    return {
        **place,
        "after": round(place["after"], 4),
        "killed": killed == -signal.SIGKILL,
        "step": len(rows),
        "resumed_from": checkpoints.checkpoint_step(saved),
        "resumed": resumed == 0,
        "each_step_once": [row["step"] for row in history] == list(range(1, STEPS + 1)),
        "equal": files(folder / "run") == expected,
        "error": said if resumed else "",
    }


def undisturbed(folder: Path, base: str | None) -> dict[str, str]:
    """Return the hashes of a run that is not killed, in the folder where the others will be."""
    failed, said = train(settings(folder, base).save(folder / "config.json"))
    if failed:
        raise SystemExit(said)
    return files(folder / "run")


def lengths(base: str | None) -> tuple[dict[str, float], dict[str, int]]:
    """Return how long each phase takes, and how often it comes, in a run here."""
    from dasd_utils.apps.cli import runs

    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    with tempfile.TemporaryDirectory() as folder, common.Stopwatch() as watch:
        for phase, (owner, name) in PHASES.items():
            _listen(watch, owner, name, seconds[phase])
        runs.run_training(settings(Path(folder), base), False, False)
    return {p: max(each) for p, each in seconds.items()}, {p: len(each) for p, each in seconds.items()}


def _listen(watch: common.Stopwatch, owner: Any, name: str, seconds: list[float]) -> None:
    plain = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return plain(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - started)

    watch.enter_context(mock.patch.object(owner, name, timed))


def main(
    kills: Annotated[int, typer.Option(help="how many, the phases in turns")] = 20,
    base: Annotated[str, typer.Option(help="a base model's folder; the embedded one if empty")] = "",
) -> None:
    """Print a table and write data/results/bench_kill_resume.json."""
    rows = measure(kills, base or None)
    columns = ("phase", "entry", "after", "step", "resumed_from", "resumed", "equal")
    print(common.table(rows, dict.fromkeys(columns, "")))
    good = [row["killed"] and row["each_step_once"] and row["equal"] for row in rows]
    print(f"{sum(good)} of {len(rows)} equal to the run that was never killed")
    machine = {"machine": common.machine(torch.get_num_threads()), "steps": STEPS}
    flat = [{**row, "n": 1, "good": common.exactly(float(ok))} for row, ok in zip(rows, good, strict=True)]
    share = common.exactly(sum(good) / len(rows))
    print(common.save("kill_resume", machine, [*flat, {"phase": "all", "n": len(rows), "good": share}]))


def measure(kills: int, base: str | None) -> list[common.Row]:
    """Return a row for each kill."""
    places = moments(kills, *lengths(base))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "here"  # one place for all: its name stands in config.json
        place.mkdir()
        expected = undisturbed(place, base)
        for each in places:
            place.rename(Path(folder) / str(len(rows)))
            place.mkdir()
            rows.append(attempt(place, each, base, expected))
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    typer.run(main)
