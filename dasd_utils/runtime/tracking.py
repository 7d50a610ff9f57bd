"""Trackers of accelerate: one that fails during the run is dropped with a warning; none affects a step."""

import contextlib
import logging
import math
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import tracking as accelerate_tracking
from PIL import Image

from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import files, processes

FOLDER = "tracking"  # in the run folder: what TensorBoard reads
TENSORBOARD = "tensorboard"
log = logging.getLogger(__name__)


def tracker_names(config: Config) -> list[str]:
    """Return the names of the config's trackers; DasdError for one that is not installed."""
    installed = [str(tracker) for tracker in accelerate_tracking.get_available_trackers()]
    setting = config.training.tracking.strip()
    if setting == "auto":
        return [TENSORBOARD] if TENSORBOARD in installed else []
    names = [] if setting == "none" else [name.strip() for name in setting.split(",")]
    for name in names:
        if name not in installed:
            raise DasdError(f"tracking names {name}, which is not installed: `pip install {name}`.")
    return names


class Trackers(list[accelerate_tracking.GeneralTracker]):
    """Several trackers that receive the same; only the first process has any."""

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the numbers of a step; None and what is not finite are left out."""
        sent = {k: v for k, v in values.items() if v is not None and v is not True and math.isfinite(v)}
        if sent:
            self._send("log", sent, step=step)

    def show(self, pictures: Mapping[str, Sequence[Image.Image]], step: int) -> None:
        """Send pictures of a step, several of one size under each name."""
        arrays = {name: np.stack([image.convert("RGB") for image in each]) for name, each in pictures.items()}
        if arrays:
            self._send("log_images", arrays, step=step)

    def _send(self, method: str, *values: Any, **options: Any) -> None:
        for tracker in list(self):
            layout = method == "log_images" and tracker.name == TENSORBOARD
            more = {"dataformats": "NHWC"} if layout else {}  # (images, height, width, colours)
            try:
                getattr(tracker, method, lambda *_, **__: None)(*values, **options, **more)
            except Exception as error:  # a full disk or a lost network is no reason to lose a run
                self.remove(tracker)
                log.warning("The tracker %s gets nothing more of this run: %s", tracker.name, error)


@contextlib.contextmanager
def open_trackers(config: Config, done: int | None = None) -> Iterator[Trackers]:
    """Yield the config's trackers and close them whatever happens; DasdError for one that cannot start.

    done: the steps done; at 0 old records go, and the config is sent first. None adds to a run that exists.
    """
    trackers = Trackers()
    if done == 0 and processes.is_main():
        shutil.rmtree(files.output_folder(config.output_dir) / FOLDER, ignore_errors=True)
    try:
        for name in tracker_names(config) if processes.is_main() else ():
            trackers.append(_start(name, config, done))
        yield trackers
    finally:
        trackers._send("finish")


def _start(name: str, config: Config, done: int | None) -> accelerate_tracking.GeneralTracker:
    run = files.output_folder(config.output_dir)
    kind = accelerate_tracking.LOGGER_TYPE_TO_CLASS[name]
    try:
        if name == TENSORBOARD:
            # later steps, which an interrupted run sent, are hidden: they are done again
            tracker = kind(FOLDER, str(run), **({"purge_step": done + 1} if done else {}))
        else:
            folder = files.output_folder(run / FOLDER)
            options = {}
            if name == "wandb":  # a resumed run goes on under the identity that it got at first
                identity = folder / "wandb_id"
                if not identity.is_file():
                    identity.write_text(secrets.token_hex(8))
                options = dict(dir=str(folder), id=identity.read_text(), name=run.name, resume="allow")
            place = [str(folder)] if kind.requires_logging_directory else []
            tracker = kind("dasd", *place, **options)
        tracker.start()
        if done == 0:
            tracker.store_init_configuration(flat_config(config))
    except Exception as error:  # each has its own kinds
        raise DasdError(f"The tracker {name} cannot start: {error}. Set tracking to none.") from error
    return tracker


def flat_config(config: Config) -> dict[str, bool | int | float | str]:
    """Return the config as names with dots and values that every tracker takes; None is left out."""
    values = files.flatten(config.to_dict()).items()
    return {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in values if v is not None}


def row_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a history row under the names that trackers show: train/loss, validation/satellite."""
    named = {name: name.partition("validation_")[2] for name in row if name != "step"}
    return {f"validation/{d}" if d else f"train/{name}": row[name] for name, d in named.items()}


def score_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rows of an evaluation as evaluation/<domain>/<metric>/<method>."""
    return {f"evaluation/{row['domain']}/{row['metric']}/{row['method']}": row["value"] for row in rows}
