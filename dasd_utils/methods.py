"""Whose objective trains: DASD's own, or that of a paper, which is one module of `papers`.

A paper's module has `CHANGES`, the config fields that it changes in every profile, and `BY_PROFILE`, those of
one; `check(config)`; `make_objective(config)`; `RUNGS`, its rows of the ladder; and, where it has them,
`Settings`, what `method_settings` may hold, `COMPARES_SAMPLES`, for a loss that the batch size changes, and
`ACCUMULATES`, false where a step cannot be made of several micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from dasd_utils import objectives
from dasd_utils.config import Config, DasdError, nearest
from dasd_utils.papers import domainstudio, indomain
from dasd_utils.papers.diffusionclip import objective as diffusionclip

DASD = "dasd"
PAPERS: dict[str, ModuleType] = {
    "domainstudio": domainstudio,
    "indomain": indomain,
    "diffusionclip": diffusionclip,
}


def _paper(name: Any) -> ModuleType | None:
    """Return the module of a method, None for DASD; DasdError for a name that is none."""
    if name == DASD:
        return None
    if not isinstance(name, str) or name not in PAPERS:
        known = [DASD, *PAPERS]
        raise DasdError(f"There is no method {name!r}. {nearest(name, known)} Methods: {', '.join(known)}.")
    return PAPERS[name]


def changes(name: str, profile: str | None = None) -> dict[str, Any]:
    """Return the config fields that a method changes, in a profile or, for None, whatever the profile.

    Raises DasdError for an unknown method.
    """
    paper = _paper(name)
    return {} if paper is None else {**paper.CHANGES, **paper.BY_PROFILE.get(profile, {})}


def check(config: Config) -> None:
    """Raise DasdError for an unknown method, settings that it does not have, and what it cannot work with."""
    paper = _paper(config.method)
    if config.method_settings and not hasattr(paper, "Settings"):
        name = sorted(config.method_settings)[0]
        raise DasdError(
            f"method_settings has {name!r}, but the method {config.method} has none: its "
            "settings are the sections of the config. Set method, or leave method_settings out."
        )
    if paper is not None:
        paper.check(config)


def compares_samples(config: Config) -> bool:
    """Return whether the method's loss is of samples together, so that a smaller batch is another loss.

    DASD's is too, but its queue keeps what a smaller batch lacks.
    """
    return getattr(_paper(config.method), "COMPARES_SAMPLES", False)


def accumulates(config: Config) -> bool:
    """Return whether a step may be made of several micro-batches."""
    return getattr(_paper(config.method), "ACCUMULATES", True)


def make_objective(config: Config) -> objectives.Objective:
    """Return the objective of the config's method."""
    paper = _paper(config.method)
    return objectives.DasdObjective(config) if paper is None else paper.make_objective(config)


def rungs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (method, name, fields) of each paper's rows of the ladder."""
    for method, paper in PAPERS.items():
        for name, fields in paper.RUNGS.items():
            yield method, name, fields
