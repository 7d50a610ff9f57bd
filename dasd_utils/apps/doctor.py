"""What of this machine a run would meet: packages, devices, memory, disk, caches, and what can be reached."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import shutil
import textwrap
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dasd_utils import profiles
from dasd_utils.config import ROOT, Config, DomainConfig, is_pinned, resolve

OK, NOTE, MISSING = "ok", "note", "missing"  # note: worth knowing, and nothing that stops the tiny profile
MARKS = {OK: "  ", NOTE: "~ ", MISSING: "! "}
PATIENCE = 3.0  # seconds that the hub has to answer, the look-up of its address included
LITTLE_MEMORY, LITTLE_DISK = 2e9, 2e9  # bytes: what the tiny course needs, rounded up
TOOLS = {
    "git": ("git",),
    "LaTeX": ("latexmk",),
    "Chromium": ("chromium", "chromium-browser", "google-chrome"),
}
FOR = {"git": "to clone and to publish", "LaTeX": "for `make report`", "Chromium": "for pictures of pages"}


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    part: str  # the heading it stands under
    what: str
    found: str
    state: str = OK


def examine(patience: float = PATIENCE) -> list[Row]:
    """Return what was found, part by part, within about `patience` seconds of asking the hub.

    Nothing is written, downloaded or started. A Hugging Face token is named as set or not, never shown.
    """
    hub = ask_hub(patience)
    tiny = Config.setup("tiny")
    rows = [*packages(), *devices(), *room(tiny), *hugging_face(hub)]
    for name in profiles.PROFILES:
        rows += sources(name, Config.setup(name), hub)
    return [*rows, *tools(), chosen()]


def can_run(rows: list[Row]) -> bool:
    """Return whether the tiny profile can run here."""
    return all(row.state != MISSING for row in rows)


def report(rows: list[Row], width: int = 79) -> list[str]:
    """Return the lines that a person reads: `!` marks what is missing, `~` what is worth knowing."""
    lines, left = [], 2 + max(len(row.what) for row in rows) + 2
    for part, found in itertools.groupby(rows, lambda row: row.part):
        lines += ["", part] if lines else [part]
        for row in found:
            start = MARKS[row.state] + row.what.ljust(left - 2)
            wrapped = textwrap.wrap(row.found, width - left, break_long_words=False) or [""]
            lines += [start + wrapped[0], *(" " * left + more for more in wrapped[1:])]
    return lines


# packages


def packages(pyproject: Path = ROOT / "pyproject.toml") -> Iterator[Row]:
    """Yield Python and each package with its version, against the lower bounds of the project."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads(pyproject.read_text(encoding="utf8"))["project"]
    wanted, version = project["requires-python"], platform.python_version()
    fits = SpecifierSet(wanted).contains(version, prereleases=True)
    said = version if fits else f"{version}, needs {wanted}"
    yield Row("packages", "Python", said, OK if fits else MISSING)
    for text in project["dependencies"]:
        yield _package(Requirement(text), MISSING, "pip install -r requirements.txt")
    extras = project.get("optional-dependencies", {})
    for extra, texts in extras.items():
        for text in texts if extra != "test" else ():
            yield _package(Requirement(text), NOTE, f"optional: pip install {Requirement(text).name}")


def _package(wanted: object, state: str, advice: str) -> Row:
    """`wanted` is a Requirement of the library packaging."""
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return Row("packages", wanted.name, f"not installed; {advice}", state)
    if not wanted.specifier.contains(version, prereleases=True):
        return Row("packages", wanted.name, f"{version}, needs {wanted.specifier}; {advice}", state)
    return Row("packages", wanted.name, f"{version} ({wanted.specifier})" if wanted.specifier else version)


# the machine


def devices() -> Iterator[Row]:
    """Yield the CPU and each GPU, with the precision that "auto" computes in there."""
    try:
        import torch

        from dasd_utils.runtime import processes
    except ImportError as error:
        yield Row("devices", "PyTorch", f"cannot be imported: {error}", MISSING)
        return
    cpu = processes.choose_precision("auto", torch.device("cpu"))
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} in use by PyTorch"
    yield Row("devices", "CPU", f"{threads}, {_computes(cpu)}")
    for number in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(number)
        chosen = processes.choose_precision("auto", torch.device("cuda", number))
        yield Row(
            "devices", f"CUDA {number}", f"{known.name}, {gigabytes(known.total_memory)}, {_computes(chosen)}"
        )
    if torch.backends.mps.is_available():
        yield Row("devices", "MPS", "an Apple GPU, which this project does not use", NOTE)


def _computes(chosen: str) -> str:
    return {"no": "computes in fp32: no fast bf16 here"}.get(chosen, f"computes in {chosen}")


def room(config: Config) -> Iterator[Row]:
    """Yield memory, disk where runs and caches go, and how large the latent cache is."""
    import psutil

    memory = psutil.virtual_memory()
    little = memory.available < LITTLE_MEMORY
    found = f"{gigabytes(memory.available)} free of {gigabytes(memory.total)}"
    yield Row("room", "memory", found + (", the course needs 2 GB" if little else ""), NOTE if little else OK)
    cache = resolve(config.data.cache_dir)
    for what, place in (("runs", resolve("data/runs")), ("cache", cache)):
        there = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK):
            yield Row("room", f"disk for {what}", f"{there} cannot be written", MISSING)
        else:
            found, little = f"{gigabytes(free)} free: {place}", free < LITTLE_DISK
            yield Row("room", f"disk for {what}", found, NOTE if little else OK)
    shards = [file for file in cache.glob("*.npy") if file.is_file()]
    size = gigabytes(sum(file.stat().st_size for file in shards))
    yield Row("room", "latent cache", f"{len(shards)} files, {size}: {cache}")


def gigabytes(count: float) -> str:
    """Return bytes as GB (10^9), or as MB where they are few."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


# Hugging Face and what profiles need of it


def hugging_face(hub: Callable[[], str]) -> Iterator[Row]:
    """Yield where the hub's files are kept, whether it answers, and whether a token is set."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError:
        return  # `packages` says so
    cache = Path(constants.HF_HUB_CACHE)
    size = sum(file.lstat().st_size for file in cache.rglob("*") if file.is_file() and not file.is_symlink())
    yield Row("Hugging Face", "cache", f"{gigabytes(size)}: {cache}")
    reason = hub()
    said = f"cannot be asked ({reason})" if reason else "answers"
    yield Row("Hugging Face", "hub", f"{constants.ENDPOINT} {said}", NOTE if reason else OK)
    yield Row("Hugging Face", "token", "set" if huggingface_hub.get_token() else "none, and none is needed")


def ask_hub(patience: float = PATIENCE) -> Callable[[], str]:
    """Ask the hub in the background; the function returned waits for it and says why it cannot be reached.

    It says "" where the hub answers, and never waits longer than until `patience` seconds from now.
    """
    answer, deadline = ["it does not answer"], time.monotonic() + patience

    def ask() -> None:
        try:
            import huggingface_hub

            huggingface_hub.HfApi().model_info("openai/clip-vit-base-patch32", timeout=patience)
            answer[0] = ""
        except Exception as error:  # offline mode, no network, no library
            first = next(iter(str(error).strip().splitlines()), "")
            answer[0] = f"{type(error).__name__}: {first[:80]}".rstrip(": ")

    # a look-up of an address knows no time limit: nothing waits for a daemon
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()

    def wait() -> str:
        asking.join(max(deadline - time.monotonic(), 0))
        return answer[0]

    return wait


def sources(profile: str, config: Config, hub: Callable[[], str]) -> Iterator[Row]:
    """Yield where the base, CLIP, data and prompts of a profile are, or why they are nowhere."""
    part, model = f"profile {profile}", config.model
    needed = MISSING if profile == "tiny" else NOTE
    yield Row(part, "base", *_place(model.base, model.base_revision, "models", hub, needed))
    yield Row(part, "CLIP", *_place(model.clip, model.clip_revision, "models", hub, needed))
    for domain in (config.source, *config.domains):
        yield Row(part, f"data, {domain.name}", *_data(domain, hub, needed))
    for what, place in (
        ("prompts", config.evaluation.prompts_dir),
        ("classifier", config.classifier.prompts),
    ):
        there = resolve(place).exists()
        yield Row(part, what, f"{resolve(place)}" + ("" if there else " is missing"), OK if there else needed)


def _data(domain: DomainConfig, hub: Callable[[], str], needed: str) -> tuple[str, str]:
    if domain.data.startswith("toyworld:"):
        return f"{domain.data}, drawn here", OK
    return _place(domain.data, domain.revision, "datasets", hub, needed)


def _place(
    name: str, revision: str | None, kind: str, hub: Callable[[], str], needed: str
) -> tuple[str, str]:
    """Return where a folder or hub id is found, and the state of that."""
    if resolve(name).is_dir():
        return f"folder {resolve(name)}", OK
    if "/" not in name.strip("/") or name.startswith(("/", ".")):
        return f"there is no folder {resolve(name)}", needed
    if _is_cached(name, revision, kind):
        return f"{name}, in the hub's cache", OK
    if not hub():
        return f"{name}, to be fetched from the hub", OK
    return f"{name}: no folder, not cached, and the hub cannot be asked", needed


def _is_cached(name: str, revision: str | None, kind: str) -> bool:
    try:
        from huggingface_hub import constants
    except ImportError:
        return False
    snapshots = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    wanted = snapshots.glob(f"{revision if is_pinned(revision) else '*'}/*")
    return next(wanted, None) is not None


def tools() -> Iterator[Row]:
    """Yield the programs beside Python."""
    for name, programs in TOOLS.items():
        found = next(filter(None, map(shutil.which, programs)), None)
        yield Row("programs", name, found or f"not found; only {FOR[name]}", OK if found else NOTE)


def chosen() -> Row:
    """Return the profile that auto picks here, and why."""
    try:
        found = profiles.choose_profile()
    except ImportError:
        return Row("profile auto", "would be", "unknown without PyTorch", MISSING)
    return Row("profile auto", "would be", f"{found.profile}: {found.reason}")
