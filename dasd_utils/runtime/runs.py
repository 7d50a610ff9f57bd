"""Run folders: which one a lesson should use, and one run at a time in each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.runtime import checkpoints, locks, processes

LOCK = ".lock"
_held: set[tuple[int, Path]] = set()  # (thread, folder) of the runs at work in this process

# What may differ between a run and the config that asks for it, without the weights being others.
NOT_TRAINED = ("output_dir", "shipped_run", "classifier", "evaluation")
NOT_TRAINED_DATA = ("cache_dir",)  # the rest decides which images are held out
NOT_TRAINED_DOMAIN = ("calibration", "descriptions", "style_suffix")
NOT_TRAINED_TRAINING = ("checkpoint_every", "checkpoints_kept", "validation_every", "validation_images",
                        "sample_every", "tracking")  # fmt: skip

JOINED = {  # fields younger than stored runs, whose names stay as they were; "" is the config itself
    "": {"method": "dasd", "method_settings": {}},
    "alignment": {"layer": "mid"},
    "data": {"source_images": "real"},
    "training": {"whole_unet": False, "text_free": False},
}
JOINED_DOMAIN = {"caption_file": None}  # and of a domain


def trained_part(config: Config) -> dict[str, Any]:
    """Return the fields that decide which weights a run ends with."""
    values = {name: value for name, value in config.to_dict().items() if name not in NOT_TRAINED}
    drawn = values["data"]["source_images"] == "generated"  # by the source's calibration
    for domain in (values["source"], *values["domains"]):
        for name in NOT_TRAINED_DOMAIN:
            if not (drawn and name == "calibration" and domain is values["source"]):
                del domain[name]
    for section, names in (("training", NOT_TRAINED_TRAINING), ("data", NOT_TRAINED_DATA)):
        for name in names:
            del values[section][name]
    return values


def key(config: Config) -> str:
    """Return 12 hex digits that name a run: equal for configs that end with the same weights."""
    values = trained_part(config)
    if "calibration" in values["source"]:
        values["source"]["calibration"] = config.source.calibration.settings()
    for section, fields in JOINED.items():
        part = values[section] if section else values
        for name, default in fields.items():
            if part[name] == default:
                del part[name]
    for domain in (values["source"], *values["domains"]):
        drop_joined(domain)
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def drop_joined(domain: dict[str, Any]) -> dict[str, Any]:
    """Take out of a domain's values, which name files, the fields that are younger than the names."""
    for name, default in JOINED_DOMAIN.items():
        if domain[name] == default:
            del domain[name]
    return domain


def is_complete(config: Config) -> bool:
    """Return whether the run of this config was saved whole."""
    folder = resolve(config.output_dir)
    return (folder / checkpoints.MANIFEST).is_file() and (folder / "adapter").is_dir()


def find_run(config: Config) -> Path:
    """Return the run folder with an adapter for this config: its own, else the shipped one.

    The config's own run is used if its `config.json` agrees in all that decides the weights. Raises
    DasdError, naming the field that differs, where neither folder fits.
    """
    problems = []
    for place in (config.output_dir, config.shipped_run):
        if place is None:
            continue
        folder = resolve(place)
        problem = _misfit(folder, config)
        if problem is None:
            return folder
        problems.append(f"{folder}: {problem}")
    raise DasdError(
        f"No trained run fits this config ({'; '.join(problems)}). "
        f"Train one first: notebook 03, or `dasd train --output_dir {config.output_dir}`."
    )


def _misfit(folder: Path, config: Config) -> str | None:
    """Return why the run cannot be used, None if it can."""
    if not (folder / "adapter").is_dir() or not (folder / "config.json").exists():
        return "no adapter there"
    return difference(_undivided(Config.load(folder / "config.json")), _undivided(config))


def _undivided(config: Config) -> dict[str, Any]:
    """Return `trained_part` with the samples of a step in the place of its micro-batches: "auto" divides a
    step by the memory of the GPU, and a run is found on another machine too."""
    values = trained_part(config)
    training = values["training"]
    count = training.pop("gradient_accumulation_steps")
    for name in ("target_batch_size", "source_batch_size"):
        training[name] *= count
    del training["gradient_checkpointing"]
    return values


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """Return the first field in which two nested configs differ, with both values; None if equal."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        found = (difference(a[name], b[name], f"{where}.{name}".lstrip(".")) for name in a)
        return next((text for text in found if text), None)
    return None if a == b else f"{where} is {a!r} there and {b!r} here"


@contextlib.contextmanager
def taken(config: Config) -> Iterator[bool]:
    """Yield whether the run's folder is this process's inside the `with`; other runs are then kept out."""
    folder = checkpoints.writable(config.output_dir)
    key = threading.get_ident(), folder
    if key in _held:  # as `save_training_results` inside the lock of the command
        yield True
        return
    with locks.held(folder / LOCK) if processes.is_main() else contextlib.nullcontext(True) as mine:
        if processes.any_of(not mine):
            yield False
            return
        _held.add(key)
        try:
            yield True
        finally:
            _held.discard(key)


@contextlib.contextmanager
def alone(config: Config) -> Iterator[None]:
    """Keep other runs out of the run's folder inside the `with`; DasdError if one is at work there."""
    with taken(config) as mine:
        if not mine:
            raise DasdError(f"Another run is at work in {resolve(config.output_dir)}: wait for its end, or "
                            "set output_dir to another folder.")  # fmt: skip
        yield
