"""What a run keeps on disk to go on after a stop: checkpoints and the history, no pickle anywhere.

A checkpoint is a folder `step-000200/` of safetensors and JSON. It is written under another name and renamed
when complete, and its manifest holds the size and SHA-256 of every file: a half-written or damaged one is
recognised and never loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.runtime import files, processes

MANIFEST = "manifest.json"
UNFINISHED = ".writing-"
MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2")  # of AdamW, of bitsandbytes
# What may differ when a run is resumed: how long, how often, where to, and what training never reads.
FREE_TO_CHANGE = (
    "output_dir",
    "training.max_train_steps",
    "training.checkpoint_every",
    "training.checkpoints_kept",
    "training.validation_every",
    "training.sample_every",
    "training.gradient_checkpointing",  # the same numbers, computed twice
    "training.tracking",
    "data.cache_dir",
    "model.clip",
    "model.clip_revision",
    "classifier",
    "evaluation",
)
TEACHERS = {"diffusionclip": ("model.clip", "model.clip_revision")}  # method -> what its loss asks
log = logging.getLogger(__name__)


def writable(output_dir: str | Path) -> Path:
    """Return the run's folder, made if need be; DasdError if nothing can be written there."""
    folder = resolve(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DasdError(
            f"The output folder {folder} cannot be written: {error.strerror}. Set output_dir to another one."
        ) from None
    return folder


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `step-<step>/` into `folder`, remove all but the newest `keep`, and return its path.

    `tensors`: file name without ending -> named tensors of any device; `state`: JSON values.
    Checkpoints of later steps are of a future that was given up, and go too.
    Raises DasdError when the disk refuses; what stood there before then still stands.
    """
    final, temporary = checkpoint_path(folder, step), folder / f"{UNFINISHED}{step:06d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        temporary.mkdir()
        _write_files(temporary, step, tensors, state)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(folder)
        _prune(folder, step, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        left = newest_checkpoint(folder) if folder.is_dir() else None
        raise DasdError(f"The checkpoint {final} cannot be written: {error}. Make room, then go on with "
                        f"resume: the newest whole checkpoint is {left or 'none'}.") from error  # fmt: skip
    return final


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return (tensors, state) as `write` got them, on the CPU; DasdError if a file is missing or changed."""
    names = sorted(
        name for name in verify_manifest(path) if name.endswith(".safetensors")
    )  # no file beside those
    try:
        tensors = {Path(name).stem: load_file(path / name) for name in names}
    except (OSError, SafetensorError) as error:
        raise DasdError(f"The checkpoint {path} cannot be read: {error}. Train without resume.") from None
    return tensors, read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """Return the JSON values of a checkpoint, without its tensors."""
    return _read_json(path / "state.json")


def verify_manifest(path: Path) -> list[str]:
    """Return the files of the folder's manifest; DasdError unless each has the size and SHA-256 it names."""
    if not path.is_dir():
        raise DasdError(f"There is no folder {path}.")
    files = _read_json(path / MANIFEST).get("files")
    if not isinstance(files, dict) or not files:
        raise DasdError(f"The manifest of {path} names no files.")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise DasdError(f"{path} lacks its file {name}.")
        if _describe(file) != expected:
            raise DasdError(f"The file {name} of {path} is not what was written.")
    return list(files)


def write_manifest(folder: Path, files: Iterable[Path], **more: Any) -> None:
    """Write the manifest of files in a folder: size and SHA-256 of each."""
    described = {file.relative_to(folder).as_posix(): _describe(file) for file in sorted(files)}
    text = json.dumps({"format": 1, **more, "files": described}, indent=1)
    manifest = folder / MANIFEST
    manifest.write_text(text + "\n", encoding="utf8")
    _sync(manifest)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, None where there is none at all.

    A broken one is passed over with a warning. Raises DasdError if every one is broken.
    """
    found = _all(folder)
    for path in found:
        try:
            verify_manifest(path)
            return path
        except DasdError as error:
            log.warning("%s It is passed over.", error)
    if found:
        raise DasdError(f"All {len(found)} checkpoints in {folder} are broken: train without resume.")
    return None


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step stands."""
    return folder / f"step-{step:06d}"


def checkpoint_step(path: Path | None) -> int:
    """Return the step of a checkpoint's folder, 0 where there is none."""
    return int(path.name.removeprefix("step-")) if path else 0


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return "field: saved -> present" for each config value that may not change when a run is resumed."""
    before, now = flatten(saved), flatten(present)
    teachers = TEACHERS.get(now.get("method"), ())
    held = [n for n in {**before, **now} if n in teachers or not _is_free(n)]
    names = [n for n in held if before.get(n) != now.get(n)]
    return [f"{n}: {before.get(n)!r} -> {now.get(n)!r}" for n in names]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as flat tensors "<index of parameter>.<name>"."""
    states = optimizer.state_dict()["state"]
    flat = {i: _unwrapped(state) for i, state in states.items()}
    return {f"{i}.{name}": torch.as_tensor(v) for i, state in flat.items() for name, v in state.items()}


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """bitsandbytes wraps what belongs to its 8-bit moments in a dictionary of their own."""
    inner = [value.items() for value in state.values() if isinstance(value, Mapping)]
    plain = {name: value for name, value in state.items() if not isinstance(value, Mapping)}
    return plain | dict(itertools.chain.from_iterable(inner))


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned; the groups' settings stay as they are.

    Raises DasdError if a moment has another shape than its parameter.
    """
    whole = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        fits = int(index) < len(parameters)
        if fits and name in MOMENTS:
            fits = value.shape == parameters[int(index)].shape
        if not fits:
            raise DasdError(f"The optimiser state {key} of shape {tuple(value.shape)} fits no parameter.")
        counted = value.ndim == 0 and not value.is_floating_point()  # a number of steps, not a tensor
        states.setdefault(int(index), {})[name] = value.item() if counted else value.clone()
    optimizer.load_state_dict({**whole, "state": states})


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON lines file and flush it; what is not finite is written as null.

    Raises DasdError when the disk refuses.
    """
    try:
        with path.open("a", encoding="utf8") as file:
            file.write(json.dumps(finite(row), allow_nan=False) + "\n")
    except OSError as error:
        raise DasdError(f"{path} cannot be written: {error.strerror}. Make room, then resume.") from error


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with None for numbers that are not finite, which JSON does not know."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON lines file ([] if there is none); a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DasdError(f"{path} cannot be read: {error}. Restore it, or train without resume.") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (TypeError, ValueError):
            if number < len(lines):
                raise DasdError(f"Line {number} of {path} is no JSON object.") from None
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON lines file anew; until it is complete the old one stands."""
    temporary = path.with_suffix(".tmp")
    lines = (json.dumps(finite(row), allow_nan=False) + "\n" for row in rows)
    try:
        temporary.write_text("".join(lines), encoding="utf8")
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the rows up to `step`, each step once (its last row)."""
    try:
        rows = {row["step"]: row for row in load_rows(path) if row["step"] <= step}
    except (KeyError, TypeError):
        raise DasdError(f"A row of {path} does not say its step. Train without resume.") from None
    if len(rows) < step:
        log.warning("%s holds %d rows for %d steps.", path, len(rows), step)
    return list(rows.values())


def truncate_rows(path: Path, step: int) -> None:
    """Keep the rows that `rows_until` returns."""
    write_rows(path, rows_until(path, step))


def _write_files(folder: Path, step: int, tensors: Mapping, state: Mapping[str, Any]) -> None:
    for name, group in tensors.items():
        if group:
            save_file({k: _portable(v) for k, v in group.items()}, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf8")
    files = list(folder.iterdir())
    for file in files:
        _sync(file)
    write_manifest(folder, files, step=step)
    _sync(folder)


def _portable(tensor: Tensor) -> Tensor:
    """A copy of its own: safetensors refuses views, shared memory and other memory formats."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _prune(folder: Path, step: int, keep: int) -> None:
    numbered = {int(path.name.removeprefix("step-")): path for path in _all(folder)}
    past = [number for number in numbered if number <= step]
    for number, path in numbered.items():
        if number not in past[: max(keep, 1)]:
            shutil.rmtree(path)


def _all(folder: Path) -> list[Path]:
    """All checkpoint folders, the newest first."""
    found = [p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    """Have the file or folder written to the disk, so that a rename never overtakes its content."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise DasdError(f"{path} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise DasdError(f"{path} holds no JSON object.")
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values as names with dots; lists of objects by their places, other lists as they are."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            flat.update(flatten({str(i): v for i, v in enumerate(value)}, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_free(name: str) -> bool:
    parts = name.split(".")
    sampling_only = any(p in ("calibration", "descriptions", "style_suffix") for p in parts[1:])
    return sampling_only or any(name == free or name.startswith(free + ".") for free in FREE_TO_CHANGE)


# Run folders: which one a lesson should use, and one run at a time in each.


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


def run_key(config: Config) -> str:
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
        drop_new_fields(domain)
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def drop_new_fields(domain: dict[str, Any]) -> dict[str, Any]:
    """Take out of a domain's values, which name files, the fields that are younger than the names."""
    for name, default in JOINED_DOMAIN.items():
        if domain[name] == default:
            del domain[name]
    return domain


def is_complete(config: Config) -> bool:
    """Return whether the run of this config was saved whole."""
    folder = resolve(config.output_dir)
    return (folder / MANIFEST).is_file() and (folder / "adapter").is_dir()


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
    return first_difference(_undivided(Config.load(folder / "config.json")), _undivided(config))


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


def first_difference(a: Any, b: Any, where: str = "") -> str | None:
    """Return the first field in which two nested configs differ, with both values; None if equal."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        found = (first_difference(a[name], b[name], f"{where}.{name}".lstrip(".")) for name in a)
        return next((text for text in found if text), None)
    return None if a == b else f"{where} is {a!r} there and {b!r} here"


@contextlib.contextmanager
def try_lock_run(config: Config) -> Iterator[bool]:
    """Yield whether the run's folder is this process's inside the `with`; other runs are then kept out."""
    folder = writable(config.output_dir)
    key = threading.get_ident(), folder
    if key in _held:  # as `save_training_results` inside the lock of the command
        yield True
        return
    with files.try_lock(folder / LOCK) if processes.is_main() else contextlib.nullcontext(True) as mine:
        if processes.any_of(not mine):
            yield False
            return
        _held.add(key)
        try:
            yield True
        finally:
            _held.discard(key)


@contextlib.contextmanager
def lock_run(config: Config) -> Iterator[None]:
    """Keep other runs out of the run's folder inside the `with`; DasdError if one is at work there."""
    with try_lock_run(config) as mine:
        if not mine:
            raise DasdError(f"Another run is at work in {resolve(config.output_dir)}: wait for its end, or "
                            "set output_dir to another folder.")  # fmt: skip
        yield
