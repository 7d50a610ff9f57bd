"""Whether a run is as it says: its files against their hashes, its first steps against its history."""

import math
import tempfile
from pathlib import Path
from typing import Any

from dasd_utils import latents, training
from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.runtime import checkpoints

TOLERANCE = 1e-3  # relative: another machine rounds otherwise, the same one gives the same bits
COMPARED = ("loss", "loss_noise", "grad_norm")
Row = dict[str, Any]  # what, ok, found


def verify(folder: str | Path, steps: int = 3) -> list[Row]:
    """Return a row for a finished run's files, each checkpoint, and each step that is done again."""
    folder = resolve(folder)
    if not (folder / checkpoints.MANIFEST).is_file() or not (folder / "config.json").is_file():
        raise DasdError(f"There is no finished run in {folder}, with a manifest and config.json.")
    rows = [_files("the run's files", folder)]
    rows += [_files(path.name, path) for path in sorted((folder / "checkpoints").glob("step-*"))]
    history = training.load_history(folder)[:steps]
    repeated = repeat_steps(Config.load(folder / "config.json"), len(history))
    for stored, again in zip(history, repeated, strict=True):
        difference = max(_difference(stored[name], again[name]) for name in COMPARED if name in again)
        text = "the same bits" if difference == 0 else f"{difference:.1e} apart, relative"
        rows.append({"what": f"step {again['step']}", "ok": difference <= TOLERANCE, "found": text})
    return rows


def _files(what: str, folder: Path) -> Row:
    try:
        count = len(checkpoints.verify_manifest(folder))
        return {"what": what, "ok": True, "found": f"{count} files as they were written"}
    except DasdError as error:
        return {"what": what, "ok": False, "found": str(error)}


def repeat_steps(config: Config, steps: int) -> list[Row]:
    """Return the history rows of the first steps of a run, repeated in a temporary folder."""
    parts = training.setup_training(config)
    *_, sampler = latents.create_datasets(config, parts.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        config = config.replace(output_dir=folder)
        run = training.Run(config, parts, sampler)
        try:
            run.encode()
            return [run.optimise(step) for step in range(1, steps + 1)]
        finally:
            run.release()


def _difference(stored: float | None, repeated: float) -> float:
    if stored is None or not math.isfinite(repeated):  # a step that was skipped
        return 0.0 if stored is None and not math.isfinite(repeated) else math.inf
    return abs(stored - repeated) / max(abs(stored), 1e-12)
