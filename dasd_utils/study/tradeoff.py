"""Fit against control: ways of guidance over their scales, each point a method of the ladder.

A scale of guidance is one compromise between the look of a domain and what a prompt asks for. A method is all
its compromises; of two methods the better one shows more of what was asked for at the same distance from the
domain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dasd_utils import evaluation
from dasd_utils.config import Config, DasdError, nearest
from dasd_utils.evaluation import Row
from dasd_utils.metrics import Estimate
from dasd_utils.study import ladder
from dasd_utils.study.ladder import NOTHING, Method

FIT = "cmmd"  # lower is nearer to the domain
CONTROL = (
    "attribute_accuracy",
    "clip_score",
)  # higher is more of the prompt; the first a scorer knows
Scales = Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """One method: a method's training, asked with one kind of guidance at several scales."""

    name: str
    method: str  # whose training
    guidance: str  # as a method's settings
    scales: Sequence[Scales]  # one point each
    changes: Mapping[str, Any] = field(default_factory=lambda: NOTHING)  # of the method's training

    def points(self) -> list[Method]:
        """Return a method for each point; DasdError for a method that is none."""
        (method,) = ladder.find_methods([self.method])
        changes = _more(method.changes, self.changes) if self.changes else method.changes
        method = dataclasses.replace(method, settings=self.guidance, after="", changes=changes)
        return [dataclasses.replace(method, name=self.point(each), scales=each) for each in self.scales]

    def point(self, scales: Scales) -> str:
        """Return the name of a point."""
        numbers = {**self.changes, **scales}
        words = [f"{name.removesuffix('_scale')} {value:g}" for name, value in numbers.items()]
        return ", ".join([self.name, *words])


def _more(before: Any, changes: Mapping[str, Any]) -> Any:
    """A method's changes and these."""
    return lambda config: {**(before(config) if callable(before) else before), **changes}


def _along(*scales: float) -> list[Scales]:
    return [{"guidance_scale": scale} for scale in scales]


def _plane(domain: Sequence[float], control: Sequence[float]) -> list[Scales]:
    return [{"domain_scale": d, "guidance_scale": c} for d in domain for c in control]


CFG, DOMAIN = _along(1.0, 1.5, 2.5, 5.0), _along(1.5, 2.5, 5.0)
FINE_TUNED, LEARNER = "captions", "images alone"
PLANE = f"{LEARNER}, decoupled"
LEARNING, TEXT_FREE = "decoupled guidance", "decoupled guidance, text-free"  # methods whose training is meant
FRONT = (
    Curve(f"{FINE_TUNED}, classifier-free", ladder.PLAIN, ladder.PROTOCOL, CFG),
    Curve(f"{FINE_TUNED}, Domain Guidance", ladder.PLAIN, ladder.DOMAIN, DOMAIN),
    Curve("DASD, classifier-free", ladder.DASD, ladder.PROTOCOL, CFG),
    Curve("DASD, Domain Guidance", ladder.DASD, ladder.DOMAIN, DOMAIN),
    Curve(f"{LEARNER}, classifier-free", LEARNING, ladder.PROTOCOL, CFG),
    Curve(f"{LEARNER}, Domain Guidance", LEARNING, ladder.DOMAIN, DOMAIN),
    Curve(PLANE, LEARNING, ladder.DECOUPLED, _plane((0.0, 1.0, 2.0, 4.0), (0.0, 2.0, 4.0, 8.0, 16.0))),
    Curve(
        "text-free copy, decoupled",
        TEXT_FREE,
        ladder.DECOUPLED,
        _plane((1.0, 2.0), (2.0, 4.0, 8.0)) + _plane((4.0,), (4.0, 8.0, 16.0)),
    ),
)
LENGTHS = (25, 100, 200)  # steps
GUIDED = (f"{FINE_TUNED}, classifier-free", f"{LEARNER}, classifier-free")  # what others are compared with
MIDDLE = {"domain_scale": 2.0, "guidance_scale": 4.0}
LONGER = (
    (f"{FINE_TUNED}, no prompt", ladder.PLAIN, ladder.UNCONDITIONAL, NOTHING),
    (f"{FINE_TUNED}, classifier-free", ladder.PLAIN, ladder.PROTOCOL, CFG[2]),
    (f"{FINE_TUNED}, Domain Guidance", ladder.PLAIN, ladder.DOMAIN, DOMAIN[1]),
    (f"{LEARNER}, no prompt", LEARNING, ladder.UNCONDITIONAL, NOTHING),
    (f"{LEARNER}, Domain Guidance", LEARNING, ladder.DOMAIN, DOMAIN[1]),
    (PLANE, LEARNING, ladder.DECOUPLED, MIDDLE),
)
LENGTHENED = tuple(  # the same question after trainings of other lengths, each with its own schedule
    Curve(f"{name}, over training", method, kind, [scales], {"max_train_steps": steps})
    for name, method, kind, scales in LONGER
    for steps in LENGTHS
)
CURVES = (*FRONT, *LENGTHENED)


def find_curves(names: Sequence[str] | None) -> list[Curve]:
    """Return the lines of these names, all if None; DasdError for an unknown one."""
    known = dict.fromkeys(line.name for line in CURVES)
    for name in names or ():
        if name not in known:
            raise DasdError(f"There is no line {name!r}. {nearest(name, known)}")
    return [line for line in CURVES if names is None or line.name in names]


def points(lines: Sequence[Curve] = CURVES) -> list[Method]:
    """Return the methods of all lines."""
    return [point for line in lines for point in line.points()]


def check_curves(config: Config, lines: Sequence[Curve]) -> None:
    """Raise DasdError for a line whose training does not go with the config, before any work."""
    for line in lines:
        try:
            line.points()[0].config(config)
        except DasdError as error:
            raise DasdError(f"The line {line.name!r}: {error} Or name other lines by --only; "
                            "data/configs/guidance.json is a config for all.") from None  # fmt: skip


def tradeoff_rows(
    scoring: ladder.Scoring, seeds: Sequence[int], lines: Sequence[Curve] = CURVES
) -> list[Row]:
    """Return the scores of every point that is done for all seeds, and what each line gains at equal fit.

    A row has method, line, the point's scales, domain, metric, value, low, high, n (images of all seeds) and
    seeds; the gains are those of `gains`.
    """
    config, rows = scoring.config, []
    for domain in config.domains:
        wanted, found = scoring.references[domain.name], {}
        size = {"n": len(seeds) * config.evaluation.num_heldout, "seeds": list(seeds)}
        for line, point in ((each, point) for each in lines for point in each.points()):
            if all(ladder.is_done(config, point, seed) for seed in seeds):
                stored = ladder.stored(config, point, seeds, domain)
                estimates = evaluation.estimates(stored, wanted, config.evaluation.num_bootstrap)
                what = {"line": line.name, **line.changes, **point.scales, "domain": domain.name}
                rows += [row | size for row in evaluation.result_rows({point.name: estimates}, what)]
                if not line.changes:
                    found.setdefault(line.name, {})[point.name] = estimates
        for against in (name for name in GUIDED if name in found):
            for name in (name for name in found if name != against):
                gained = gains(found[name], found[against])
                rows += [{"method": name, "domain": domain.name, **row, **size} for row in gained]
    return rows


Points = Mapping[str, Mapping[str, Estimate]]  # point -> metric -> estimate


def gains(own: Points, against: Points) -> list[Row]:
    """Return how much more of the prompt a line shows than another, where both lie as near to the domain.

    That is asked at every point of the other line that none of its own beats. For each training seed the
    line's point is chosen by the other seeds: the most control among those that fit at least as well. In each
    draw of prompts it is chosen anew, so that the interval holds the choice too; seeds share their prompts,
    so that a line of many points is still a little favoured. A point that the line never comes as near as has
    no row, and one seed, which would choose for itself, gives none.
    """
    every, rows = (*own.values(), *against.values()), []
    control = next(name for name in CONTROL if all(name in point for point in every))
    for name, point in against.items():
        if len(point[FIT].values) < 2 or _is_beaten(point, against, control):
            continue
        chosen, reached = _choose(_all(own, FIT), _all(own, control), _all({name: point}, FIT)[0])
        if not reached[0].all():
            continue
        for metric in (FIT, control):
            found = _all(own, metric).gather(0, chosen[None])[0]  # (1 + B, S)
            mine = Estimate(found[0], found[1:], point[metric].units)
            value, low, high = mine.minus(point[metric]).interval()
            row = {"against": name, "metric": metric, "value": value, "low": low, "high": high}
            rows.append(row | {"separable": low > 0 or high < 0, "points": [list(own)[i] for i in chosen[0]]})
    return rows


def _is_beaten(point: Mapping[str, Estimate], line: Points, control: str) -> bool:
    """Whether another point of the same line is nearer to the domain and shows more."""
    fit, shown = point[FIT].values.mean(), point[control].values.mean()
    return any(o[FIT].values.mean() < fit and o[control].values.mean() > shown for o in line.values())


def _all(points: Points, metric: str) -> Tensor:
    """A metric of P points, as found and in B draws: (P, 1 + B, S)."""
    return torch.stack([torch.cat([p[metric].values[None], p[metric].draws]) for p in points.values()])


def _choose(fit: Tensor, control: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Which of P points the other seeds choose for each, and whether any fits; else the nearest.

    (P, R, S) twice and (R, S) -> (R, S) twice.
    """

    def by_others(values: Tensor) -> Tensor:
        return (values.sum(dim=-1, keepdim=True) - values) / (values.shape[-1] - 1)

    fits = by_others(fit) <= by_others(limit)
    best = by_others(control).masked_fill(~fits, -torch.inf).argmax(dim=0)
    reached = fits.any(dim=0)
    return torch.where(reached, best, by_others(fit).argmin(dim=0)), reached
