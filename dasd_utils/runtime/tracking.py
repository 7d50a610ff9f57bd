"""What trackers are told of a run: config, losses, pictures and scores, by accelerate's trackers.

Nothing here decides a step: a tracker reads numbers that are there anyway, and one that fails on the way is
left out with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import tracking as known
from PIL import Image

from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import checkpoints, processes

FOLDER = "tracking"  # in the run folder: what TensorBoard reads
PROJECT = "dasd"  # where runs are together that a service keeps
TENSORBOARD = "tensorboard"
log = logging.getLogger(__name__)


def tracker_names(config: Config) -> list[str]:
    """Return the names of the trackers that the config asks for: of "auto", TensorBoard if it is there."""
    asked = config.training.tracking.strip()
    if asked == "auto":
        return [TENSORBOARD] if _is_installed(TENSORBOARD) else []
    return [] if asked == "none" else [name.strip() for name in asked.split(",")]


def check_tracking(config: Config) -> None:
    """Raise DasdError for a tracker that is not installed or, as far as one can know, not logged in."""
    for name in tracker_names(config):
        if not _is_installed(name):
            raise DasdError(f"tracking asks for {name}, which is not installed: `pip install {name}`, or set "
                            "tracking to none.")  # fmt: skip
        if name == "wandb" and not _wandb_is_ready():
            raise DasdError("tracking asks for wandb, which is not logged in: `wandb login`, or "
                            "set WANDB_MODE=offline, or set tracking to none.")  # fmt: skip


class Trackers:
    """Trackers that are told the same; of several processes those of the first, the others have none."""

    def __init__(self, started: Sequence[known.GeneralTracker] = ()) -> None:
        self._told = list(started)

    def add(self, tracker: known.GeneralTracker) -> None:
        """Tell this one too, from now on."""
        self._told.append(tracker)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Tell numbers of a step; what is none, or not finite, is left out."""
        numbers = {name: value for name, value in checkpoints.finite(values).items() if _is_number(value)}
        if numbers:
            self._tell("log", numbers, step=step)

    def show(self, pictures: Mapping[str, Sequence[Image.Image]], step: int) -> None:
        """Tell pictures of a step, several of one size under each name."""
        if not self._told or not pictures:
            return
        arrays = {
            name: np.stack([np.asarray(picture.convert("RGB")) for picture in each])
            for name, each in pictures.items()
        }
        self._tell("log_images", arrays, step=step)

    def end(self) -> None:
        """Have each write what it still holds, and close."""
        self._tell("finish")
        self._told.clear()

    def _tell(self, what: str, *values: Any, **options: Any) -> None:
        for tracker in list(self._told):
            layout = what == "log_images" and tracker.name == TENSORBOARD
            more = {"dataformats": "NHWC"} if layout else {}  # (images, height, width, colours)
            try:
                getattr(tracker, what, lambda *_, **__: None)(*values, **options, **more)
            except Exception as error:  # a full disk, a network that is gone: no reason to lose a run
                self._told.remove(tracker)
                log.warning("The tracker %s is told no more of this run: %s", tracker.name, error)


@contextlib.contextmanager
def open_trackers(config: Config, done: int | None = None) -> Iterator[Trackers]:
    """Yield the config's trackers and end them whatever happens.

    done: the steps a training has done; from there the old curves go on, and 0 tells the config first. None:
    something is added to a run that is there. Raises DasdError for a tracker that cannot start.
    """
    trackers = Trackers()
    try:
        for name in tracker_names(config) if processes.is_main() else ():
            trackers.add(_started(name, config, done))
        yield trackers
    finally:
        trackers.end()


def _started(name: str, config: Config, done: int | None) -> known.GeneralTracker:
    run = checkpoints.writable(config.output_dir)
    kind = known.LOGGER_TYPE_TO_CLASS[name]
    if name == TENSORBOARD:
        # what an interrupted run told of later steps is hidden: they are done again
        tracker = kind(FOLDER, str(run), **({"purge_step": done + 1} if done else {}))
    else:
        place = (str(checkpoints.writable(run / FOLDER)),) if kind.requires_logging_directory else ()
        tracker = kind(PROJECT, *place, **(_wandb_options(run) if name == "wandb" else {}))
    try:
        tracker.start()
        if done == 0:
            tracker.store_init_configuration(flat_config(config))
    except Exception as error:  # each has its own kinds
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DasdError(f"The tracker {name} cannot start: {first.rstrip('.')}. Mend that, or set tracking "
                        "to none.") from error  # fmt: skip
    return tracker


def flat_config(config: Config) -> dict[str, bool | int | float | str]:
    """Return the config as names with dots and values that every tracker takes; None is left out."""
    values = checkpoints.flatten(config.to_dict())
    told = {name: ", ".join(map(str, v)) if isinstance(v, list) else v for name, v in values.items()}
    return {name: value for name, value in told.items() if value is not None}


def row_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a history row under the names that trackers show: train/loss, validation/satellite."""
    found = {}
    for name, value in row.items():
        if name.startswith("validation_"):
            found[f"validation/{name.removeprefix('validation_')}"] = value
        elif name != "step":
            found[f"train/{name}"] = value
    return found


def score_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rows of an evaluation as evaluation/<domain>/<metric>/<method>."""
    return {f"evaluation/{row['domain']}/{row['metric']}/{row['method']}": row["value"] for row in rows}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_installed(name: str) -> bool:
    return name in {str(tracker) for tracker in known.get_available_trackers()}


def _wandb_is_ready() -> bool:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    try:
        import wandb
    except ImportError as error:  # installed in part
        raise DasdError(f"wandb cannot be imported: {error}. Install it anew, or set tracking to "
                        "none.") from None  # fmt: skip
    return bool(wandb.api.api_key)


def _wandb_options(run: Path) -> dict[str, str]:
    """A resumed run goes on under the identity that it was given at first."""
    folder = checkpoints.writable(run / FOLDER)
    file = folder / "wandb_id"
    if not file.is_file():
        file.write_text(secrets.token_hex(8), encoding="utf8")
    return {"dir": str(folder), "id": file.read_text(encoding="utf8"), "name": run.name, "resume": "allow"}
