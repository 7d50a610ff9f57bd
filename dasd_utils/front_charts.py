"""Charts of guidance: fit against control, the plane of two scales, and what a longer training costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dasd_utils.figures import BLUES, INK, METRIC_TITLES, PALETTE, Figure, style

Rows = Sequence[Mapping[str, Any]]
MARKERS = "os^Dvp"


def points(rows: Rows, lines: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return line -> its points in order, each with its scales and its row of every metric in "metrics"."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in (row for row in rows if "line" in row and (lines is None or row["line"] in lines)):
        own = table.setdefault(row["line"], {}).setdefault(row["method"], {**row, "metrics": {}})
        own["metrics"][row["metric"]] = row
    return {line: list(found.values()) for line, found in table.items()}


@style()
def fit_chart(rows: Rows, lines: Sequence[str], x: str = "cmmd", y: str = "attribute_accuracy") -> Figure:
    """Return one panel: a score over another, a line for each way of guidance, a point for each scale.

    A line of one scale is drawn in the scale's order, with the scale at both ends; one of two scales as its
    points alone. Intervals are thin. Raises ValueError where no row is of a line.
    """
    found = points(rows, lines)
    if missing := set(lines) - set(found):
        raise ValueError(f"No row is of the line {', '.join(sorted(missing))}.")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(lines):
        color, marker = PALETTE[number % len(PALETTE)], MARKERS[number // len(PALETTE)]
        own = [(each, each["metrics"][x], each["metrics"][y]) for each in found[name]]
        for _, across, up in own:
            axes.plot([across["low"], across["high"]], [up["value"]] * 2, color=color, linewidth=0.5)
            axes.plot([across["value"]] * 2, [up["low"], up["high"]], color=color, linewidth=0.5)
        joined = "none" if "domain_scale" in own[0][0] else "-"
        at = [across["value"] for _, across, _ in own], [up["value"] for *_, up in own]
        axes.plot(*at, marker=marker, linestyle=joined, linewidth=1.2, markersize=4, color=color, label=name)
        if joined == "-":
            _name_ends(axes, own, color)
    axes.set(xlabel=METRIC_TITLES.get(x, x), ylabel=METRIC_TITLES.get(y, y))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _name_ends(axes: Axes, own: Sequence[tuple], color: str) -> None:
    for each, across, up in (own[0], own[-1]):
        beside = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7}
        axes.annotate(f"{each['guidance_scale']:g}", (across["value"], up["value"]), color=color, **beside)


@style()
def plane_chart(rows: Rows, line: str, metrics: Sequence[str] = ("cmmd", "attribute_accuracy")) -> Figure:
    """Return a heat map per metric over the two scales of decoupled guidance, each value written in its cell.

    Raises ValueError where the line has no row, or a cell none.
    """
    cells = points(rows, [line]).get(line, [])
    across = sorted({each["guidance_scale"] for each in cells})
    up = sorted({each["domain_scale"] for each in cells})
    if not cells or len(cells) < len(across) * len(up):
        raise ValueError(f"The line {line} has {len(cells)} points of {len(across)} x {len(up)}.")
    figure = Figure(figsize=(1.2 + 2.9 * len(metrics), 3.0), layout="constrained")
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

    Raises ValueError where no row is of a line.
    """
    found = points(rows, lines)
    if missing := set(lines) - set(found):
        raise ValueError(f"No row is of the line {', '.join(sorted(missing))}.")
    figure = Figure(figsize=(0.6 + 3.1 * len(metrics), 3.2), layout="constrained")
    for axes, metric in zip(np.ravel(figure.subplots(1, len(metrics))), metrics, strict=True):
        for number, name in enumerate(lines):
            own = [(each["max_train_steps"], each["metrics"].get(metric)) for each in found[name]]
            own = sorted((steps, row) for steps, row in own if row is not None)
            beside = 1 + 0.04 * (number - (len(lines) - 1) / 2)
            values = [row["value"] for _, row in own]
            errors = [
                [row["value"] - row["low"] for _, row in own],
                [row["high"] - row["value"] for _, row in own],
            ]
            color = PALETTE[number % len(PALETTE)]
            axes.errorbar([steps * beside for steps, _ in own], values, errors, color=color, marker="o",
                          markersize=3, linewidth=1.2, elinewidth=0.6, label=name)  # fmt: skip
        axes.set(
            xlabel="training steps",
            xscale="log",
            title=METRIC_TITLES.get(metric, metric).replace(" (", "\n("),
        )
        axes.set_xticks(sorted({each["max_train_steps"] for own in found.values() for each in own}))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8
    )
    return figure
