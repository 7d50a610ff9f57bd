"""What the Tab key offers behind an option: names that are found without loading torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from dasd_utils.config import DASD, ROOT, DasdError, known_methods, resolve

RUNS = "data/runs"


def profiles(incomplete: str) -> list[str]:
    """Return the profiles, and auto."""
    from dasd_utils.profiles import PROFILES

    return _begin(["auto", *PROFILES], incomplete)


def methods(incomplete: str) -> list[str]:
    """Return the methods: DASD's own and a module of `papers` each."""
    return _begin([DASD, *known_methods()], incomplete)


def guidances(incomplete: str) -> list[str]:
    """Return the rules of guidance that have a name."""
    from dasd_utils.config import GUIDANCE

    return _begin(GUIDANCE, incomplete)


def domains(context: typer.Context, incomplete: str) -> list[str]:
    """Return the target domains of the config or run named before, else those of the profiles."""
    from dasd_utils.profiles import PROFILES

    for file in _configs(context.params):
        try:
            found = json.loads(file.read_text(encoding="utf8"))["domains"]
            return _begin([domain["name"] for domain in found], incomplete)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    known = [domain["name"] for profile in PROFILES.values() for domain in profile["domains"]]
    return _begin(dict.fromkeys(known), incomplete)


def runs(incomplete: str) -> list[str]:
    """Return the run folders below data/runs, newest first; without one that fits, folders."""
    found = [
        file.parent for depth in ("*", "*/*", "*/*/*") for file in resolve(RUNS).glob(f"{depth}/config.json")
    ]
    newest = sorted(found, key=lambda run: run.stat().st_mtime, reverse=True)
    return _begin(map(_shown, newest), incomplete) or folders(incomplete)


def folders(incomplete: str) -> list[str]:
    """Return the folders that a path begins."""
    try:
        inside = Path(incomplete[: incomplete.rfind("/") + 1] or ".").expanduser().iterdir()
        return _begin(sorted(str(place) for place in inside if place.is_dir()), incomplete)
    except (OSError, RuntimeError):
        return []


def notebooks(incomplete: str) -> list[str]:
    """Return the numbers of the notebooks, as far as they have one."""
    return _begin(sorted(path.name[:2] for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")), incomplete)


def trackers(incomplete: str) -> list[str]:
    """Return what `tracking` may be."""
    return _begin(["auto", "none", "tensorboard", "wandb", "mlflow", "trackio"], incomplete)


def _begin(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _configs(given: dict[str, Any]) -> list[Path]:
    """The config files that the words before name."""
    files = [Path(given["config"])] if given.get("config") else []
    folders = [given[name] for name in ("checkpoint", "output_dir") if given.get(name)]
    try:
        return files + [resolve(folder) / "config.json" for folder in folders]
    except DasdError:
        return files


def _shown(path: Path) -> str:
    """Return a path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
