"""A run's folder: when two runs are the same, its lock, checkpoints and history; no pickle.

A checkpoint is a folder `step-000200/` of safetensors and JSON, with a manifest of each file's size and
SHA-256: a half-written or damaged one is recognised and never loaded.
"""

import contextlib
import copy
import hashlib
import json
import logging
import math
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dasd_utils.config import Config, DasdError, method_module, portable, resolve, unique_keys
from dasd_utils.runtime import files, processes

MANIFEST = "manifest.json"
LOCK = ".lock"
# what is made of a finished run's weights in its folder
MADE_OF_RUN = ("generated", "translated", "translated-*.parquet", "answers-*.safetensors", "samples.*",
               "evaluation.json", "comparison_*.png", "calibration*.json")  # fmt: skip
# Config fields and sections that no weight depends on; "domain" stands for the source and every target.
UNTRAINED = (
    "output_dir", "shipped_run", "classifier", "evaluation", "data.cache_dir", "training.checkpoint_every",
    "training.checkpoints_kept", "training.validation_every", "training.sample_every", "training.tracking",
    "domain.calibration", "domain.descriptions", "domain.style_suffix")  # fmt: skip
# Fields in which two runs may differ and yet count as the same, by purpose.
MAY_DIFFER = {
    # one goes on from the other's checkpoint; a method's TRAINED_WITH may not differ even so
    "resume": (*UNTRAINED, "training.gradient_checkpointing", "training.max_train_steps", "model.clip",
               "model.clip_revision"),
    # both end with the same weights and share a name; the names of stored runs fix this list
    "key": (*UNTRAINED, "training.validation_images"),
    # a trained run is used for the other, also where "auto" divides its steps otherwise
    "find": (*UNTRAINED, "training.validation_images", "training.gradient_checkpointing")}  # fmt: skip
# Fields that are newer than some stored names, with the value at which a name leaves them out.
NEWER = {
    "method": "dasd", "method_settings": {}, "alignment.layer": "mid", "data.source_images": "real",
    "training.whole_unet": False, "training.text_free": False, "domain.caption_file": None,
    "domain.window": None, "data.near_duplicate": 0.97, "alignment.bank_size": 1000,
    "domain.stream_rows": None}  # fmt: skip
_locked: set[tuple[int, Path]] = set()  # (thread, folder) of the runs at work in this process
log = logging.getLogger(__name__)


def compared_fields(values: Mapping[str, Any], purpose: str, kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return a config's values without the fields MAY_DIFFER[purpose] that are not in `kept`."""
    compared = copy.deepcopy(dict(values))
    for name in MAY_DIFFER[purpose]:
        for part, field in _places(compared, name):
            if name not in kept:
                part.pop(field, None)
    if purpose != "resume" and values["data"]["source_images"] == "generated":
        compared["source"]["calibration"] = values["source"]["calibration"]  # it determines the images
    return compared


def _places(values: dict[str, Any], name: str) -> list[tuple[dict[str, Any], str]]:
    """Return where a field stands in nested values: (object, the field's name in it)."""
    section, _, field = name.rpartition(".")
    if section == "domain":
        return [(domain, field) for domain in (values.get("source", {}), *values.get("domains", ()))]
    return [(values.get(section, {}) if section else values, field)]


def objective_version(config: Config) -> int:
    """Return 2 for a run whose alignment uses a queue, which weakened its gradient in version 1, else 1."""
    return 2 if config.alignment.lambda_align > 0 and config.alignment.queue_size > 0 else 1


def run_key(config: Config) -> str:
    """Return 12 hex digits that name a run: equal for configs that end with the same weights."""
    values = compared_fields(config.to_dict(), "key")
    if objective_version(config) > 1:
        values["objective"] = objective_version(config)
    if "calibration" in values["source"]:
        values["source"]["calibration"] = config.source.calibration.settings()
    return files.short_hash(without_newer_fields(values))


def without_newer_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Drop new fields that have their default, so that names hashed from older configs stay valid."""
    for name, default in NEWER.items():
        for part, field in _places(values, name):
            if part.get(field, ...) == default:
                del part[field]
    return values


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return "field: saved -> present" for each config value that may not change when a run is resumed."""
    kept = getattr(method_module(present.get("method", "dasd")), "TRAINED_WITH", ())
    return _differences(compared_fields(saved, "resume", kept), compared_fields(present, "resume", kept))


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    a, b = files.flatten(a), files.flatten(b)
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in {**a, **b} if a.get(k) != b.get(k)]


def is_complete(config: Config) -> bool:
    """Return whether the run of this config was saved to the end."""
    folder = resolve(config.output_dir)
    return (folder / MANIFEST).is_file() and (folder / "adapter").is_dir()


def find_run(config: Config, places: Sequence[str] = ()) -> Path:
    """Return the folder of a run that fits a config, its own, of `places` or the shipped, else DasdError."""
    problems = []
    known = (config.output_dir, *places, config.shipped_run)
    for folder in [resolve(place) for place in known if place is not None]:
        if not (folder / "adapter").is_dir() or not (folder / "config.json").exists():
            problems.append(f"{folder}: no adapter there")
            continue
        found = _differences(_by_step(Config.load(folder / "config.json")), _by_step(config))
        if not found:
            return folder
        problems.append(f"{folder}: another {found[0]}")
    raise DasdError(f"No trained run fits this config ({'; '.join(problems)}). Train one first: notebook 04, "
                    f"or `dasd train --output_dir {resolve(config.output_dir)}`.")  # fmt: skip


def find_trained(config: Config) -> Path:
    """Return the folder that a notebook goes on with, and print which: `output_dir`, else `shipped_run`.

    Either may be a run of any length, batch and LoRA if base and domains are the config's, or an adapter that
    `dasd export` wrote, with the config's tokens; `shipped_run` may be the hub id of one. Raises DasdError,
    with what can be done, where neither is there.
    """
    problems = []
    for place in filter(None, (resolve(config.output_dir), config.shipped_run)):
        folder = files.find_adapter(place)
        problem, said = describe_run(folder, config)
        if not problem:
            print(f"The {said}.")
            return folder
        problems.append(f"{folder}: {problem}")
    minutes = " (2 to 5 minutes on an L4, predicted)" if config.profile == "sd15" else ""
    own = resolve(config.output_dir)
    train = f"dasd train --profile {config.profile} --max_steps 100 --output_dir {own}"
    raise DasdError(f"No trained run fits this config ({'; '.join(problems)}). Train one by notebook 04, or "
                    f"a short one by `{train}`{minutes}, with the --config, --base and --data in use. Or set "
                    "output_dir to one, such as on Drive, or name a run, an exported adapter or its hub id: "
                    'config = {"shipped_run": "owner/name"}.')  # fmt: skip


def describe_run(folder: Path, config: Config) -> tuple[str, str]:
    """Return (why a lesson cannot use what was trained there, else "", what it is)."""
    if (folder / "adapter.json").is_file() and not (folder / "adapter").is_dir():  # exported
        tokens = files.read_object(folder / "adapter.json", "The adapter").get("tokens", {})
        missing = [d.token for d in config.domains if d.token is not None and d.token not in tokens]
        return f"no token {missing[0]}" if missing else "", f"exported adapter in {portable(folder)}"
    if not (folder / "adapter").is_dir() or not (folder / "config.json").exists():
        return "no adapter there", ""
    own = Config.load(folder / "config.json")
    places = [{"model.base": c.model.base} | {
        f"{d.name}.{name}": getattr(d, name) for d in (c.source, *c.domains) for name in ("data", "token")
    } for c in (own, config)]  # fmt: skip
    different = _differences(*places)
    others = [each for each in _differences(_by_step(own), _by_step(config)) if "max_train_steps" not in each]
    said = [f"run in {portable(folder)}, {own.training.max_train_steps} training steps", *others[:3]]
    return f"another {different[0]}" if different else "", "; ".join(said)


def _by_step(config: Config) -> dict[str, Any]:
    """Return the compared fields with batch sizes per optimiser step, which "auto" divides by the memory."""
    values = compared_fields(config.to_dict(), "find")
    training = values["training"]
    count = training.pop("gradient_accumulation_steps")
    for name in ("target_batch_size", "source_batch_size"):
        training[name] *= count
    return values


@contextlib.contextmanager
def lock_run(config: Config, required: bool = True) -> Iterator[bool]:
    """Lock the run's folder; where another run has it, raise DasdError or, unless `required`, yield False."""
    folder = files.output_folder(config.output_dir)
    key = threading.get_ident(), folder
    if key in _locked:  # as `save_training_results` inside the lock of the command
        yield True
        return
    with files.try_lock(folder / LOCK) if processes.is_main() else contextlib.nullcontext(True) as mine:
        if processes.any_of(not mine):
            if required:
                raise DasdError(f"Another run is at work in {folder}: wait for its end, or set output_dir.")
            yield False
            return
        _locked.add(key)
        try:
            yield True
        finally:
            _locked.discard(key)


def clear_run(folder: Path, done: int, *logs: str) -> None:
    """Remove what was made of a finished run in the folder and, where no step is done, the run itself."""
    finished = (folder / "adapter").is_dir()
    begun = finished or any((folder / name).exists() for name in ("checkpoints", *logs))
    names = [MANIFEST, *(MADE_OF_RUN if finished else ())]
    if done == 0:  # the adapter last: after a kill the rest is still known to be a run's
        names += ["checkpoints", *logs, *(("samples", "adapter") if begun else ())]
    for path in [path for name in names if processes.is_main() for path in folder.glob(name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    processes.wait()


# Checkpoints: folders of tensors and JSON values, and the manifest that tells whether one is complete.
def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any],
    keep: int = 2,
) -> Path:  # fmt: skip
    """Write `step-<step>/` into `folder`, remove all but the newest `keep`, and return its path.

    `tensors`: file name without ending -> named tensors of any device; `state`: JSON values. Checkpoints of
    later steps go too: the run was resumed before them. If the disk refuses, DasdError; nothing is removed.
    """
    path = folder / f"step-{step:06d}"
    for leftover in folder.glob(".step-*"):  # of a process that was killed
        shutil.rmtree(leftover)
    with files.atomic_folder(path, "The checkpoint") as new:
        for name, group in tensors.items():
            # safetensors refuses views, shared memory and other memory formats
            layout = {"memory_format": torch.contiguous_format}
            copies = {key: value.detach().cpu().clone(**layout) for key, value in group.items()}
            if copies:
                save_file(copies, new / f"{name}.safetensors")
        (new / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf8")
        write_manifest(new, list(new.iterdir()))
    files.sync(folder)
    past = [found for found in _newest_first(folder) if checkpoint_step(found) <= step]
    for found in {*_newest_first(folder)} - {*past[: max(keep, 1)]}:
        shutil.rmtree(found)
    return path


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=checkpoint_step, reverse=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file on the CPU; DasdError, naming the file, for a damaged one."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DasdError(f"{path} cannot be read: {files.first_line(error)}. Remove it: what wrote it makes "
                        "it again.") from None  # fmt: skip


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return (tensors, state) as `write_checkpoint` got them, on the CPU; DasdError for a damaged one."""
    names = sorted(name for name in verify_manifest(path) if name.endswith(".safetensors"))  # no other file
    state = files.read_object(path / "state.json", "The checkpoint")
    return {Path(name).stem: read_tensors(path / name) for name in names}, state


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, None where there is none; DasdError if every one is broken."""
    found = _newest_first(folder)
    for path in found:
        try:
            verify_manifest(path)
            return path
        except DasdError as error:
            log.warning("%s It is passed over.", error)
    if found:
        raise DasdError(f"All {len(found)} checkpoints in {folder} are broken: train anew by force=True "
                        "(`--force`), not resume.")  # fmt: skip
    return None


def checkpoint_step(path: Path | None) -> int:
    """Return the step of a checkpoint's folder, 0 where there is none."""
    return int(path.name.removeprefix("step-")) if path else 0


def write_manifest(folder: Path, written: Iterable[Path], **more: Any) -> None:
    """Write the manifest of files in a folder, size and SHA-256 of each, when these are on the disk."""
    written = sorted(written)
    for path in {*written, *(file.parent for file in written)}:
        files.sync(path)
    described = {file.relative_to(folder).as_posix(): describe_file(file) for file in written}
    files.write_json(folder / MANIFEST, {"format": 1, **more, "files": described}, "The manifest", indent=1)
    files.sync(folder)


def verify_manifest(path: Path, within: str = "") -> list[str]:
    """Return the names in a manifest; DasdError unless files that begin with `within` are as stated there."""
    named = files.read_object(path / MANIFEST, "The manifest").get("files")
    if not isinstance(named, dict) or not named:
        raise DasdError(f"{path / MANIFEST} names no files.")
    for name in (name for name in named if name.startswith(within)):
        if not (path / name).is_file() or describe_file(path / name) != named[name]:
            raise DasdError(f"The file {name} of {path} is missing or not what was written.")
    return list(named)


def describe_file(file: Path) -> dict[str, Any]:
    """Return {"size": bytes, "sha256": 64 hex digits}."""
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as flat tensors "<index of parameter>.<name>"."""
    flat = {}
    for index, state in optimizer.state_dict()["state"].items():
        # bitsandbytes wraps what belongs to its 8-bit moments in a dictionary of their own
        for name, value in state.items():
            inner = value if isinstance(value, Mapping) else {name: value}
            flat |= {f"{index}.{key}": torch.as_tensor(each) for key, each in inner.items()}
    return flat


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned; the groups' settings stay as they are."""
    states: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        counted = value.ndim == 0 and not value.is_floating_point()  # a number of steps, not a tensor
        states.setdefault(int(index), {})[name] = value.item() if counted else value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON lines file."""
    with path.open("a", encoding="utf8") as file:
        file.write(json.dumps(finite(row), allow_nan=False) + "\n")


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with None for numbers that are not finite, which JSON does not know."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON lines file ([] if there is none); a last line cut off by a crash is left out."""
    lines = files.read_text(path, "The history").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(dict(json.loads(line, object_pairs_hook=unique_keys)))
        except (TypeError, ValueError, RecursionError):
            if number < len(lines):
                raise DasdError(f"Line {number} of {path} is no JSON object.") from None
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON lines file anew; until it is complete the old one stands."""
    with files.atomic_write(path, "The history") as temporary:
        lines = [json.dumps(finite(row), allow_nan=False) + "\n" for row in rows]
        temporary.write_text("".join(lines), encoding="utf8")


def rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the rows up to `step`; of a step that was logged twice, the last."""
    rows = {row["step"]: row for row in load_rows(path) if row["step"] <= step}
    if len(rows) < step:
        log.warning("%s holds %d rows for %d steps.", path, len(rows), step)
    return list(rows.values())
