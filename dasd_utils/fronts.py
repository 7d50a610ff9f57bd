"""Fit against control: ways of guidance over their scales, each point a rung of the ladder.

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

from dasd_utils import ladder, scores, standings
from dasd_utils.config import DasdError, nearest
from dasd_utils.evaluation import Row
from dasd_utils.ladder import NOTHING, Rung
from dasd_utils.uncertainty import Estimate

FIT = "cmmd"  # lower is nearer to the domain
CONTROL = (
    "attribute_accuracy",
    "clip_score",
)  # higher is more of the prompt; the first a judge knows
Scales = Mapping[str, float]


@dataclass(frozen=True)
class Line:
    """One method: a rung's training, asked with one kind of guidance at several scales."""

    name: str
    rung: str  # whose training
    guidance: str  # as a rung's settings
    scales: Sequence[Scales]  # one point each
    changes: Mapping[str, Any] = field(default_factory=lambda: NOTHING)  # of the rung's training

    def points(self) -> list[Rung]:
        """Return a rung for each point; DasdError for a rung that is none."""
        (rung,) = ladder.find([self.rung])
        changes = _more(rung.changes, self.changes) if self.changes else rung.changes
        rung = dataclasses.replace(rung, settings=self.guidance, after="", changes=changes)
        return [dataclasses.replace(rung, name=self.point(each), scales=each) for each in self.scales]

    def point(self, scales: Scales) -> str:
        """Return the name of a point."""
        numbers = {**self.changes, **scales}
        words = [f"{name.removesuffix('_scale')} {value:g}" for name, value in numbers.items()]
        return ", ".join([self.name, *words])


def _more(before: Any, changes: Mapping[str, Any]) -> Any:
    """A rung's changes and these."""
    return lambda config: {**(before(config) if callable(before) else before), **changes}


def _along(*scales: float) -> list[Scales]:
    return [{"guidance_scale": scale} for scale in scales]


def _plane(domain: Sequence[float], control: Sequence[float]) -> list[Scales]:
    return [{"domain_scale": d, "guidance_scale": c} for d in domain for c in control]


CFG, DOMAIN = _along(1.0, 1.5, 2.5, 5.0), _along(1.5, 2.5, 5.0)
FINE_TUNED, LEARNER = "captions", "images alone"
PLANE = f"{LEARNER}, decoupled"
LEARNING, TEXT_FREE = "decoupled guidance", "decoupled guidance, text-free"  # rungs whose training is meant
FRONT = (
    Line(f"{FINE_TUNED}, classifier-free", ladder.PLAIN, ladder.PROTOCOL, CFG),
    Line(f"{FINE_TUNED}, Domain Guidance", ladder.PLAIN, ladder.DOMAIN, DOMAIN),
    Line("DASD, classifier-free", ladder.DASD, ladder.PROTOCOL, CFG),
    Line("DASD, Domain Guidance", ladder.DASD, ladder.DOMAIN, DOMAIN),
    Line(f"{LEARNER}, classifier-free", LEARNING, ladder.PROTOCOL, CFG),
    Line(f"{LEARNER}, Domain Guidance", LEARNING, ladder.DOMAIN, DOMAIN),
    Line(PLANE, LEARNING, ladder.DECOUPLED, _plane((0.0, 1.0, 2.0, 4.0), (0.0, 2.0, 4.0, 8.0))),
    Line("text-free copy, decoupled", TEXT_FREE, ladder.DECOUPLED, _plane((1.0, 2.0), (2.0, 4.0, 8.0))),
)
LENGTHS = (25, 100, 200, 400)  # steps
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
LENGTHENED = tuple(  # the same question after shorter and longer trainings
    Line(f"{name}, over training", rung, kind, [scales], {"max_train_steps": steps})
    for name, rung, kind, scales in LONGER
    for steps in LENGTHS
)
LINES = (*FRONT, *LENGTHENED)


def find(names: Sequence[str] | None) -> list[Line]:
    """Return the lines of these names, all if None; DasdError for an unknown one."""
    known = dict.fromkeys(line.name for line in LINES)
    for name in names or ():
        if name not in known:
            raise DasdError(f"There is no line {name!r}. {nearest(name, known)}")
    return [line for line in LINES if names is None or line.name in names]


def points(lines: Sequence[Line] = LINES) -> list[Rung]:
    """Return the rungs of all lines."""
    return [point for line in lines for point in line.points()]


def table(judging: ladder.Judging, seeds: Sequence[int], lines: Sequence[Line] = LINES) -> list[Row]:
    """Return the scores of every point that is done for all seeds, and what each line gains at equal fit.

    A row has method, line, the point's scales, domain, metric, value, low, high, n (images of all seeds) and
    seeds; the gains are those of `gains`.
    """
    config, rows = judging.config, []
    for domain in config.domains:
        wanted, found = judging.references[domain.name], {}
        for line, point in ((each, point) for each in lines for point in each.points()):
            if all(ladder.is_done(config, point, seed) for seed in seeds):
                stored = standings.stored(config, point, seeds, domain)
                estimates = scores.estimates(stored, wanted, config.evaluation.num_bootstrap)
                size = {"n": sum(len(each["features"]) for each in stored), "seeds": list(seeds)}
                what = {"line": line.name, **line.changes, **point.scales, "domain": domain.name}
                rows += [row | size for row in scores.rows({point.name: estimates}, what)]
                if not line.changes:
                    found.setdefault(line.name, {})[point.name] = estimates
        for against in GUIDED:
            for name in (name for name in found if name != against):
                gained = gains(found[name], found.get(against, {}))
                rows += [
                    {"method": name, "domain": domain.name, **row, "seeds": list(seeds)} for row in gained
                ]
    return rows


Points = Mapping[str, Mapping[str, Estimate]]  # point -> metric -> estimate


def gains(own: Points, against: Points) -> list[Row]:
    """Return how much more of the prompt a line shows than each point of another, no further from the domain.

    For each training seed the line's point is chosen by the other seeds: the most control among those that
    fit at least as well as the point it is compared with. A point that none fits as well as has no row.
    """
    rows = []
    for name, point in against.items():
        control = next(metric for metric in CONTROL if metric in point)
        chosen = [_choose(own, point, control, seed) for seed in range(len(point[FIT].values))]
        if None in chosen:
            continue
        for metric in (FIT, control):
            value, low, high = _mixed(own, chosen, metric).minus(point[metric]).interval()
            row = {"against": name, "metric": metric, "value": value, "low": low, "high": high}
            rows.append(row | {"separable": low > 0 or high < 0, "points": chosen})
    return rows


def _choose(own: Points, point: Mapping[str, Estimate], control: str, seed: int) -> str | None:
    """The point of a line that seeds other than this one would choose; None without one, or without seeds."""
    others = [i for i in range(len(point[FIT].values)) if i != seed]
    if not others:
        return None
    limit = point[FIT].values[others].mean()
    fits = {name: each for name, each in own.items() if each[FIT].values[others].mean() <= limit}
    return max(fits, key=lambda name: fits[name][control].values[others].mean().item(), default=None)


def _mixed(own: Points, chosen: Sequence[str], metric: str) -> Estimate:
    """The estimate whose seed i is that of the i-th chosen point."""
    parts = [own[name][metric] for name in chosen]
    values = torch.stack([each.values[i] for i, each in enumerate(parts)])
    draws = torch.stack([each.draws[:, i] for i, each in enumerate(parts)], dim=1)
    return Estimate(values, draws, parts[0].units)
