"""What of this machine a run would meet: packages, devices, memory, disk, caches, and what can be reached."""

import importlib.metadata
import itertools
import os
import platform
import re
import shutil
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import huggingface_hub
import psutil
from huggingface_hub import constants
from packaging.requirements import Requirement

from dasd_utils import profiles
from dasd_utils.config import Config, is_pinned, resolve

OK, NOTE, MISSING = "ok", "note", "missing"  # note: worth knowing, and nothing that stops the tiny profile
MARKS = {OK: "  ", NOTE: "~ ", MISSING: "! "}
PATIENCE = 3.0  # seconds that the hub has to answer, the look-up of its address included
LITTLE = 2e9  # bytes of memory or disk: what the tiny course needs, rounded up


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    part: str  # the heading it stands under
    what: str
    found: str
    state: str = OK


def examine(patience: float = PATIENCE) -> list[Row]:
    """Return what was found, with nothing written or downloaded; the hub has `patience` seconds to answer."""
    offline = ask_hub(patience)
    rows = [*packages(), *devices(), *room(Config.setup("tiny")), *hugging_face(offline)]
    for name in profiles.PROFILES:
        rows += sources(name, Config.setup(name), offline)
    return [*rows, chosen()]


def report(rows: list[Row], width: int = 79) -> list[str]:
    """Return the lines that a person reads: `!` marks what is missing, `~` what is worth knowing."""
    lines, left = [], 2 + max(len(row.what) for row in rows) + 2
    for part, found in itertools.groupby(rows, lambda row: row.part):
        lines += ["", part] if lines else [part]
        for row in found:
            start = MARKS[row.state] + row.what.ljust(left - 2)
            lines += textwrap.fill(
                row.found, width, initial_indent=start, subsequent_indent=" " * left, break_long_words=False
            ).splitlines()
    return lines


def packages(about: Message | None = None) -> Iterator[Row]:
    """Yield Python and each package with its version, against the lower bounds of the installed project."""
    about = about or importlib.metadata.metadata("dasd-utils")
    yield _package(f"Python{about['Requires-Python']}", platform.python_version(), MISSING, "install it")
    for wanted in map(Requirement, about.get_all("Requires-Dist")):
        state, advice = MISSING, "pip install -r requirements.txt"
        if extra := re.search(r'extra == "(\w+)"', str(wanted.marker)):
            state, advice = NOTE, f"optional: pip install dasd-utils[{extra[1]}]"
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if not (extra and extra[1] == "test"):
            yield _package(f"{wanted.name}{wanted.specifier}", version, state, advice)


def _package(text: str, version: str, state: str, advice: str) -> Row:
    wanted = Requirement(text)
    if not version:
        return Row("packages", wanted.name, f"not installed; {advice}", state)
    if not wanted.specifier.contains(version, prereleases=True):
        return Row("packages", wanted.name, f"{version}, needs {wanted.specifier}; {advice}", state)
    return Row("packages", wanted.name, f"{version} ({wanted.specifier})" if wanted.specifier else version)


def devices() -> Iterator[Row]:
    """Yield the CPU and each GPU, with the precision that "auto" computes in there."""
    try:
        import torch

        from dasd_utils.runtime import processes
    except ImportError as error:
        yield Row("devices", "PyTorch", f"cannot be imported: {error}", MISSING)
        return
    known = {"CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} in use by PyTorch"}
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        known[f"CUDA {number}"] = f"{card.name}, {gigabytes(card.total_memory)}"
    for name, text in known.items():
        precision = processes.choose_precision("auto", torch.device(name.lower().replace(" ", ":")))
        computes = "fp32: no fast bf16 here" if precision == "no" else precision
        yield Row("devices", name, f"{text}, computes in {computes}")
    busy, cores = psutil.getloadavg()[0], os.cpu_count() or 1  # the mean of the last minute
    if busy > 0.75 * cores and torch.get_num_threads() > 1:
        advice = "several threads wait for each other then; OMP_NUM_THREADS=1 is faster"
        yield Row("devices", "load", f"programs keep {busy:.1f} of {cores} cores busy: {advice}", NOTE)


def room(config: Config) -> Iterator[Row]:
    """Yield memory, disk where runs and caches go, and how large the latent cache is."""
    memory = psutil.virtual_memory()
    found = f"{gigabytes(memory.available)} free of {gigabytes(memory.total)}, the course needs 2 GB"
    yield Row("room", "memory", found, NOTE if memory.available < LITTLE else OK)
    cache = resolve(config.data.cache_dir)
    for what, place in (("runs", resolve("data/runs")), ("cache", cache)):
        there = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(there).free
        found, state = f"{gigabytes(free)} free: {place}", NOTE if free < LITTLE else OK
        if not os.access(there, os.W_OK):
            found, state = f"{there} cannot be written", MISSING
        yield Row("room", f"disk for {what}", found, state)
    shards = [file.stat().st_size for file in cache.glob("*.npy") if file.is_file()]
    yield Row("room", "latent cache", f"{len(shards)} files, {gigabytes(sum(shards))}: {cache}")


def gigabytes(count: float) -> str:
    """Return bytes as GB (10^9), or as MB where they are few."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def hugging_face(offline: str) -> Iterator[Row]:
    """Yield where the hub's files are kept, whether it answers, and whether a token is set."""
    cache = Path(constants.HF_HUB_CACHE)
    size = sum(file.lstat().st_size for file in cache.rglob("*") if file.is_file() and not file.is_symlink())
    yield Row("Hugging Face", "cache", f"{gigabytes(size)}: {cache}")
    said = f"cannot be asked ({offline})" if offline else "answers"
    yield Row("Hugging Face", "hub", f"{constants.ENDPOINT} {said}", NOTE if offline else OK)
    yield Row("Hugging Face", "token", "set" if huggingface_hub.get_token() else "none, and none is needed")


def ask_hub(patience: float = PATIENCE) -> str:
    """Return why the hub cannot be reached, "" where it answers, within `patience` seconds."""
    answer = ["it does not answer"]

    def ask() -> None:
        try:
            huggingface_hub.HfApi().model_info("openai/clip-vit-base-patch32", timeout=patience)
            answer[0] = ""
        except Exception as error:  # offline mode, no network
            answer[0] = f"{type(error).__name__}: {str(error).strip():.80}".partition("\n")[0].rstrip(": ")

    # a look-up of an address knows no time limit: nothing waits for a daemon
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return answer[0]


def sources(profile: str, config: Config, offline: str) -> Iterator[Row]:
    """Yield where the base, CLIP and data of a profile are, or why they are nowhere."""
    model = config.model
    places = {"base": (model.base, model.base_revision, "models")}
    places["CLIP"] = (model.clip, model.clip_revision, "models")
    places |= {f"data, {d.name}": (d.data, d.revision, "datasets") for d in (config.source, *config.domains)}
    for what, (name, revision, kind) in places.items():
        found, state = _place(name, revision, kind, offline, MISSING if profile == "tiny" else NOTE)
        yield Row(f"profile {profile}", what, found, state)


def _place(name: str, revision: str | None, kind: str, offline: str, needed: str) -> tuple[str, str]:
    if name.startswith("toyworld:"):
        return f"{name}, drawn here", OK
    if resolve(name).is_dir():
        return f"folder {resolve(name)}", OK
    if "/" not in name.strip("/") or name.startswith(("/", ".")):
        return f"there is no folder {resolve(name)}", needed
    snapshots = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    if any(snapshots.glob(f"{revision if is_pinned(revision) else '*'}/*")):
        return f"{name}, in the hub's cache", OK
    if not offline:
        return f"{name}, to be fetched from the hub", OK
    return f"{name}: no folder, not cached, and the hub cannot be asked", needed


def chosen() -> Row:
    """Return the profile that auto picks here, and why."""
    try:
        found = profiles.choose_profile()
    except ImportError:
        return Row("profile auto", "would be", "unknown without PyTorch", MISSING)
    return Row("profile auto", "would be", f"{found.profile}: {found.reason}")
