"""What accelerate's trackers receive of a run: config, losses, pictures and scores.

Nothing here decides a step: a tracker gets numbers that exist anyway, and one that fails during the run is
dropped with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import tracking as accelerate_tracking
from PIL import Image

from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import checkpoints, processes

FOLDER = "tracking"  # in the run folder: what TensorBoard reads
PROJECT = "dasd"  # under which a service keeps the runs
TENSORBOARD = "tensorboard"
log = logging.getLogger(__name__)


def tracker_names(config: Config) -> list[str]:
    """Return the names of the config's trackers; "auto" is TensorBoard if it is installed."""
    setting = config.training.tracking.strip()
    if setting == "auto":
        return [TENSORBOARD] if _is_installed(TENSORBOARD) else []
    return [] if setting == "none" else [name.strip() for name in setting.split(",")]


def check_tracking(config: Config) -> None:
    """Raise DasdError for a tracker that is not installed."""
    for name in tracker_names(config):
        if not _is_installed(name):
            raise DasdError(f"tracking names {name}, which is not installed: `pip install {name}`, or set "
                            "tracking to none.")  # fmt: skip


def _is_installed(name: str) -> bool:
    return name in {str(tracker) for tracker in accelerate_tracking.get_available_trackers()}


class Trackers:
    """Several trackers that receive the same; only the first process has any."""

    def __init__(self, started: Sequence[accelerate_tracking.GeneralTracker] = ()) -> None:
        self.active = list(started)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the numbers of a step; None and what is not finite are left out."""
        finite = checkpoints.finite(values)
        numbers = {k: v for k, v in finite.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        if numbers:
            self._send("log", numbers, step=step)

    def show(self, pictures: Mapping[str, Sequence[Image.Image]], step: int) -> None:
        """Send pictures of a step, several of one size under each name."""
        arrays = {name: np.stack([image.convert("RGB") for image in each]) for name, each in pictures.items()}
        if arrays:
            self._send("log_images", arrays, step=step)

    def end(self) -> None:
        """Have each tracker write what it still holds, and close it."""
        self._send("finish")
        self.active.clear()

    def _send(self, method: str, *values: Any, **options: Any) -> None:
        for tracker in list(self.active):
            layout = method == "log_images" and tracker.name == TENSORBOARD
            more = {"dataformats": "NHWC"} if layout else {}  # (images, height, width, colours)
            try:
                getattr(tracker, method, lambda *_, **__: None)(*values, **options, **more)
            except Exception as error:  # a full disk, a network that is gone: no reason to lose a run
                self.active.remove(tracker)
                log.warning("The tracker %s gets nothing more of this run: %s", tracker.name, error)


@contextlib.contextmanager
def open_trackers(config: Config, done: int | None = None) -> Iterator[Trackers]:
    """Yield the config's trackers and close them whatever happens.

    done: the steps that training has done. The curves go on from there, and at 0 the config is sent first.
    None adds to a run that exists. Raises DasdError for a tracker that cannot start.
    """
    trackers = Trackers()
    try:
        for name in tracker_names(config) if processes.is_main() else ():
            trackers.active.append(_start(name, config, done))
        yield trackers
    finally:
        trackers.end()


def _start(name: str, config: Config, done: int | None) -> accelerate_tracking.GeneralTracker:
    run = checkpoints.writable(config.output_dir)
    kind = accelerate_tracking.LOGGER_TYPE_TO_CLASS[name]
    try:
        if name == TENSORBOARD:
            # later steps, which an interrupted run sent, are hidden: they are done again
            tracker = kind(FOLDER, str(run), **({"purge_step": done + 1} if done else {}))
        else:
            folder = checkpoints.writable(run / FOLDER)
            options = {}
            if name == "wandb":  # a resumed run goes on under the identity that it got at first
                identity = folder / "wandb_id"
                if not identity.is_file():
                    identity.write_text(secrets.token_hex(8), encoding="utf8")
                own = identity.read_text(encoding="utf8")
                options = {"dir": str(folder), "id": own, "name": run.name, "resume": "allow"}
            place = [str(folder)] if kind.requires_logging_directory else []
            tracker = kind(PROJECT, *place, **options)
        tracker.start()
        if done == 0:
            tracker.store_init_configuration(flat_config(config))
    except Exception as error:  # each has its own kinds
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise DasdError(f"The tracker {name} cannot start: {reason}. Fix that, or set tracking to "
                        "none.") from error  # fmt: skip
    return tracker


def flat_config(config: Config) -> dict[str, bool | int | float | str]:
    """Return the config as names with dots and values that every tracker takes; None is left out."""
    values = checkpoints.flatten(config.to_dict())
    texts = {name: ", ".join(map(str, v)) for name, v in values.items() if isinstance(v, list)}
    return {name: value for name, value in (values | texts).items() if value is not None}


def row_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a history row under the names that trackers show: train/loss, validation/satellite."""
    named = {name: name.partition("validation_")[2] for name in row if name != "step"}
    return {f"validation/{d}" if d else f"train/{name}": row[name] for name, d in named.items()}


def score_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rows of an evaluation as evaluation/<domain>/<metric>/<method>."""
    return {f"evaluation/{row['domain']}/{row['metric']}/{row['method']}": row["value"] for row in rows}
