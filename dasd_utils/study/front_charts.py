"""Charts of guidance: fit against control, the plane of two scales, and what a longer training costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dasd_utils.figures import BLUES, INK, METRIC_TITLES, PALETTE, Figure, style

Rows = Sequence[Mapping[str, Any]]
MARKERS = "os^Dvp"


Point = dict[str, Any]  # its scales, and metric -> row in "metrics"


def points(
    rows: Rows, lines: Sequence[str], metrics: Sequence[str] = (), scales: Sequence[str] = ()
) -> dict[str, list[Point]]:
    """Return line -> its points, in the order of these scales.

    Raises ValueError where a line, or a metric or scale of a point, is missing, and for rows of more than one
    domain.
    """
    found: dict[str, dict[str, Point]] = {line: {} for line in lines}
    own = [row for row in rows if row.get("line") in found]
    for row in own:
        found[row["line"]].setdefault(row["method"], {**row, "metrics": {}})["metrics"][row["metric"]] = row
    if len(domains := {row["domain"] for row in own}) > 1:
        raise ValueError(f"The rows are of several domains: {', '.join(sorted(domains))}. Choose one.")
    for line, table in found.items():
        if not table:
            raise ValueError(f"No row is of the line {line}.")
        for name, point in table.items():
            lacking = [each for each in metrics if each not in point["metrics"]]
            lacking += [each for each in scales if each not in point]
            if lacking:
                raise ValueError(f"The point {name!r} has no {', '.join(lacking)}.")
    return {
        line: sorted(table.values(), key=lambda point: [point[scale] for scale in scales])
        for line, table in found.items()
    }


@style()
def fit_chart(rows: Rows, lines: Sequence[str], x: str = "cmmd", y: str = "attribute_accuracy") -> Figure:
    """Return one panel: a score over another, a line for each way of guidance, a point for each scale.

    A line of one scale is drawn in the scale's order, with the scale at both ends; one of two scales as its
    points alone. Intervals are thin. Raises ValueError where `points` does.
    """
    found = points(rows, lines, (x, y), ("guidance_scale",))
    figure = Figure(figsize=(5.8, 3.9), layout="constrained")
    axes = figure.subplots()
    for number, (name, own) in enumerate(found.items()):
        color, marker = PALETTE[number % len(PALETTE)], MARKERS[number // len(PALETTE)]
        across, up = ([point["metrics"][metric] for point in own] for metric in (x, y))
        _crosses(axes, across, up, color)
        joined = "none" if "domain_scale" in own[0] else "-"
        at = [row["value"] for row in across], [row["value"] for row in up]
        axes.plot(*at, marker=marker, linestyle=joined, linewidth=1.2, markersize=4, color=color, label=name)
        for i in (0, -1) if joined == "-" else ():
            beside = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7, "color": color}
            axes.annotate(f"{own[i]['guidance_scale']:g}", (at[0][i], at[1][i]), **beside)
    axes.set(xlabel=METRIC_TITLES.get(x, x), ylabel=METRIC_TITLES.get(y, y))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _crosses(axes: Axes, across: Rows, up: Rows, color: str) -> None:
    for one, other in zip(across, up, strict=True):
        axes.plot([one["low"], one["high"]], [other["value"]] * 2, color=color, linewidth=0.5)
        axes.plot([one["value"]] * 2, [other["low"], other["high"]], color=color, linewidth=0.5)


@style()
def plane_chart(rows: Rows, line: str, metrics: Sequence[str] = ("cmmd", "attribute_accuracy")) -> Figure:
    """Return a heat map per metric over the two scales of decoupled guidance, each value written in its cell.

    Raises ValueError where `points` does, and where the line is not one point for each two scales.
    """
    (cells,) = points(rows, [line], metrics, ("domain_scale", "guidance_scale")).values()
    across = sorted({each["guidance_scale"] for each in cells})
    up = sorted({each["domain_scale"] for each in cells})
    if len(cells) != len(across) * len(up):
        raise ValueError(f"The line {line} has {len(cells)} points, not {len(across)} x {len(up)}.")
    figure = Figure(figsize=(0.8 + 2.4 * len(metrics), 2.5), layout="constrained")
    for axes, metric in zip(np.ravel(figure.subplots(1, len(metrics))), metrics, strict=True):
        values = np.full((len(up), len(across)), np.nan)
        for each in cells:
            place = up.index(each["domain_scale"]), across.index(each["guidance_scale"])
            values[place] = each["metrics"][metric]["value"]
        _heat(axes, values)
        axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
        axes.set_yticks(range(len(up)), [f"{value:g}" for value in up])
        axes.set(title=METRIC_TITLES.get(metric, metric).replace(" (", "\n("), xlabel="$w_c$, to the prompt")
        axes.set_ylabel("$w_d$, to the domain" if metric == metrics[0] else "")
    return figure


def _heat(axes: Axes, values: np.ndarray) -> None:
    axes.imshow(values, cmap=BLUES, origin="lower", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > middle else INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


@style()
def length_chart(rows: Rows, metrics: Sequence[str], lines: Sequence[str]) -> Figure:
    """Return a panel per metric: scores with intervals over the length of training, a line for each name.

    A line without a metric is left out of its panel. Raises ValueError where `points` does.
    """
    found = points(rows, lines, (), ("max_train_steps",))
    figure = Figure(figsize=(0.6 + 2.8 * len(metrics), 3.2), layout="constrained")
    for axes, metric in zip(np.ravel(figure.subplots(1, len(metrics))), metrics, strict=True):
        for number, (name, own) in enumerate(found.items()):
            beside = 1 + 0.04 * (number - (len(lines) - 1) / 2)
            label = name.removesuffix(", over training")
            _over_steps(axes, [p for p in own if metric in p["metrics"]], metric, beside, label, number)
        title = METRIC_TITLES.get(metric, metric).replace(" (", "\n(")
        axes.set(xlabel="training steps", xscale="log", title=title)
        axes.set_xticks(sorted({point["max_train_steps"] for own in found.values() for point in own}))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8
    )
    return figure


def _over_steps(axes: Axes, own: Sequence[Point], metric: str, beside: float, name: str, number: int) -> None:
    """One line with its intervals, a little beside the others so that none is hidden."""
    rows = [point["metrics"][metric] for point in own]
    values = [row["value"] for row in rows]
    errors = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
    look = dict(color=PALETTE[number % len(PALETTE)], marker="o", markersize=3, linewidth=1.2, elinewidth=0.6)
    axes.errorbar([point["max_train_steps"] * beside for point in own], values, errors, label=name, **look)
