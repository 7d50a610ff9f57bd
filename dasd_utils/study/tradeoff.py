"""Fit against control: kinds of guidance over their scales, each point a method of the ladder.

A curve joins what one training and one kind of guidance reach at several scales; of two curves the better one
shows more of the prompt at the same distance from the domain.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dasd_utils import evaluation
from dasd_utils.evaluation import Estimate
from dasd_utils.study import ladder
from dasd_utils.study.ladder import Config

FIT = "cmmd"  # lower is nearer to the domain
CONTROL = ("attribute_accuracy", "clip_score")  # higher is more of the prompt; the first that all have
Scales = Mapping[str, float]
Estimates = Mapping[str, Estimate]  # by metric


@dataclass(frozen=True)
class Curve:
    """One training, sampled with one kind of guidance at several scales."""

    name: str
    method: str  # of the ladder, whose training it is
    guidance: str  # as in Method.settings
    scales: Sequence[Scales]  # one point each
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the method's training

    def points(self) -> list[ladder.Method]:
        """Return a method of the ladder for each point."""
        (method,) = ladder.find_methods([self.method])
        before = method.changes

        def changes(config: Config) -> dict[str, Any]:
            return {**(before(config) if callable(before) else before), **self.changes}

        own = {"changes": changes, "settings": self.guidance, "after": ""}
        found = []
        for scales in self.scales:
            words = [f"{name.removesuffix('_scale')} {x:g}" for name, x in {**self.changes, **scales}.items()]
            named = {"name": ", ".join([self.name, *words]), "scales": scales}
            found.append(dataclasses.replace(method, **own, **named))
        return found


def _plane(domain: Sequence[float], control: Sequence[float]) -> list[Scales]:
    return [{"domain_scale": d, "guidance_scale": c} for d in domain for c in control]


CFG = [{"guidance_scale": scale} for scale in (1.0, 1.5, 2.5, 5.0)]
DOMAIN = [{"guidance_scale": scale} for scale in (1.5, 2.5, 5.0)]
FINE_TUNED, LEARNER = "captions", "images alone"
PLANE = f"{LEARNER}, decoupled"
LEARNING = "decoupled guidance"  # the method whose training is meant
FRONT = (
    Curve(f"{FINE_TUNED}, classifier-free", ladder.PLAIN, ladder.PROTOCOL, CFG),
    Curve(f"{FINE_TUNED}, Domain Guidance", ladder.PLAIN, ladder.DOMAIN, DOMAIN),
    Curve("DASD, classifier-free", ladder.DASD, ladder.PROTOCOL, CFG),
    Curve("DASD, Domain Guidance", ladder.DASD, ladder.DOMAIN, DOMAIN),
    Curve(f"{LEARNER}, classifier-free", LEARNING, ladder.PROTOCOL, CFG),
    Curve(f"{LEARNER}, Domain Guidance", LEARNING, ladder.DOMAIN, DOMAIN),
    Curve(PLANE, LEARNING, ladder.DECOUPLED, _plane((0.0, 1.0, 2.0, 4.0), (0.0, 2.0, 4.0, 8.0, 16.0))),
    Curve("text-free copy, decoupled", "decoupled guidance, text-free", ladder.DECOUPLED,
          _plane((1.0, 2.0), (2.0, 4.0, 8.0)) + _plane((4.0,), (4.0, 8.0, 16.0))))  # fmt: skip
LENGTHS = (25, 100, 200)  # steps
GUIDED = (f"{FINE_TUNED}, classifier-free", f"{LEARNER}, classifier-free")  # what others are compared with
LONGER = (
    (f"{FINE_TUNED}, no prompt", ladder.PLAIN, ladder.UNCONDITIONAL, {}),
    (f"{FINE_TUNED}, classifier-free", ladder.PLAIN, ladder.PROTOCOL, CFG[2]),
    (f"{FINE_TUNED}, Domain Guidance", ladder.PLAIN, ladder.DOMAIN, DOMAIN[1]),
    (f"{LEARNER}, no prompt", LEARNING, ladder.UNCONDITIONAL, {}),
    (f"{LEARNER}, Domain Guidance", LEARNING, ladder.DOMAIN, DOMAIN[1]),
    (PLANE, LEARNING, ladder.DECOUPLED, {"domain_scale": 2.0, "guidance_scale": 4.0}),
)
LENGTHENED = tuple(  # the same question after trainings of other lengths, each with its own schedule
    Curve(f"{name}, over training", method, kind, [scales], {"max_train_steps": steps})
    for name, method, kind, scales in LONGER
    for steps in LENGTHS
)
CURVES = (*FRONT, *LENGTHENED)


def find_curves(names: Sequence[str] | None) -> list[Curve]:
    """Return the curves of these names, all if None."""
    return list(CURVES) if names is None else ladder.find_named(CURVES, names, "curve")


def points(curves: Sequence[Curve] = CURVES) -> list[ladder.Method]:
    """Return the methods of all curves."""
    return [point for curve in curves for point in curve.points()]


def tradeoff_rows(
    scoring: ladder.Scoring, seeds: Sequence[int], curves: Sequence[Curve] = CURVES
) -> list[evaluation.ResultRow]:
    """Return the scores of every point that is done for all seeds, and the `gains` of each curve."""
    config, rows = scoring.config, []
    for domain in config.domains:
        size = {"n": len(seeds) * config.evaluation.num_heldout, "seeds": list(seeds)}
        found: dict[str, dict[str, Estimates]] = {}  # curve -> point, of the config's length of training
        for curve, point in ((each, point) for each in curves for point in each.points()):
            if not all(ladder.is_done(config, point, seed) for seed in seeds):
                continue
            scores, reference = ladder.stored(config, point, seeds, domain), scoring.references[domain.name]
            estimates = evaluation.estimates(scores, reference, config.evaluation.num_bootstrap)
            start = {"line": curve.name, **curve.changes, **point.scales, "domain": domain.name}
            rows += [row | size for row in evaluation.result_rows({point.name: estimates}, start)]
            if not curve.changes:
                found.setdefault(curve.name, {})[point.name] = estimates
        for against, name in itertools.product(GUIDED, found):
            if against in found and name != against:
                gained = gains(found[name], found[against])
                rows += [{"method": name, "domain": domain.name, **row, **size} for row in gained]
    return rows


def gains(own: Mapping[str, Estimates], against: Mapping[str, Estimates]) -> list[evaluation.ResultRow]:
    """Return how much more of the prompt a curve shows than another, where both lie as near to the domain.

    own, against: point -> metric -> estimate. There are rows for every point of the other curve that none of
    its own points beats and that this curve comes as near as. For each training seed, and in each draw of
    prompts, the curve's point is chosen by the other seeds: the most control among those that fit at least as
    well. As seeds share prompts, many points are a little favoured. One seed gives no row.
    """
    rows, every = [], [point for curve in (own, against) for point in curve.values()]
    control = next(name for name in CONTROL if all(name in point for point in every))
    means = {name: [point[metric].value for metric in (FIT, control)] for name, point in against.items()}
    for name, point in against.items():
        fit, shown = means[name]
        if len(point[FIT].values) < 2 or any(f < fit and c > shown for f, c in means.values()):
            continue
        limit = _all({name: point}, FIT)[0]
        chosen, reached = _choose(_all(own, FIT), _all(own, control), limit)
        for metric in (FIT, control) if reached[0].all() else ():
            picked = _all(own, metric).gather(0, chosen[None])[0]  # (1 + B, S)
            mine = dataclasses.replace(point[metric], values=picked[0], draws=picked[1:])
            two = {"own": {metric: mine}, name: {metric: point[metric]}}
            (row,) = evaluation.difference_rows(two, {}, name)
            del row["method"]
            rows.append(row | {"points": [list(own)[i] for i in chosen[0]]})
    return rows


def _all(points: Mapping[str, Estimates], metric: str) -> Tensor:
    """Return a metric of P points, as estimated and in B draws: (P, 1 + B, S)."""
    return torch.stack([torch.cat([p[metric].values[None], p[metric].draws]) for p in points.values()])


def _choose(fit: Tensor, control: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of P points (P, R, S) other seeds choose, and whether any is within the limit (R, S)."""

    def by_others(values: Tensor) -> Tensor:
        return (values.sum(dim=-1, keepdim=True) - values) / (values.shape[-1] - 1)

    fits = by_others(fit) <= by_others(limit)
    best = by_others(control).masked_fill(~fits, -torch.inf).argmax(dim=0)
    reached = fits.any(dim=0)
    return torch.where(reached, best, by_others(fit).argmin(dim=0)), reached
