"""Charts of the study: a sweep, differences of methods, what is gained and lost, the price of quality."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dasd_utils.figures import BLUES, INK, MUTED, PALETTE, Figure, metric_label, style

Rows = Sequence[Mapping[str, Any]]


@style()
def sweep_chart(rows: Rows, x: str, metrics: Sequence[str], by: Sequence[str]) -> Figure:
    """Return a panel per metric and domain: a score over a parameter, a line for each combination of others.

    rows: scores or differences of a sweep, with the parameters `x` and `by` in each. A row without `by`
    (nothing to choose where x is 0) starts every line. x is on a logarithmic scale with 0 at its left end.
    Raises ValueError where no row has a metric.
    """
    found = [row for row in rows if row["metric"] in metrics]
    if missing := set(metrics) - {row["metric"] for row in found}:
        raise ValueError(f"No row holds the metric {', '.join(sorted(missing))}.")
    domains = list(dict.fromkeys(row["domain"] for row in found))
    lines = sorted({tuple(row[name] for name in by) for row in found if all(name in row for name in by)})
    size = (3.2 * len(domains), 2.5 * len(metrics) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), len(domains), squeeze=False, sharex=True, sharey="row")
    for (metric, domain), axes in zip(itertools.product(metrics, domains), panels.flat, strict=True):
        own = [row for row in found if (row["metric"], row["domain"]) == (metric, domain)]
        for number, line in enumerate(lines):
            _line(axes, own, x, dict(zip(by, line, strict=True)), number, len(lines))
        if any("against" in row for row in own):
            axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xscale("symlog", linthresh=min((row[x] for row in found if row[x] > 0), default=1))
        axes.set_title(domain if metric == metrics[0] else "")
        axes.set_ylabel(metric_label(metric) if domain == domains[0] else "")
        axes.set_xlabel(x if metric == metrics[-1] else "")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(lines), 3))
    return figure


def _line(axes: Axes, rows: Rows, x: str, chosen: Mapping[str, Any], number: int, count: int) -> None:
    """One line with its intervals, a little beside the others so that none is hidden."""
    own = [row for row in rows if all(row.get(name, value) == value for name, value in chosen.items())]
    own = sorted(own, key=lambda row: row[x])
    beside = 1 + 0.06 * (number - (count - 1) / 2)
    values = [row["value"] for row in own]
    errors = [[row["value"] - row["low"] for row in own], [row["high"] - row["value"] for row in own]]
    label = ", ".join(f"{name} {value}" for name, value in chosen.items())
    style_of = dict(color=PALETTE[number % len(PALETTE)], marker="o", markersize=3, linewidth=1.2, capsize=0)
    axes.errorbar([row[x] * beside for row in own], values, errors, label=label, elinewidth=0.6, **style_of)


@style()
def curve_chart(rows: Rows, x: str, ylabel: str, marker: str = "") -> Figure:
    """Return a panel per domain: a value over x with the band of its interval, a line for each method."""
    domains, methods = (list(dict.fromkeys(row[name] for row in rows)) for name in ("domain", "method"))
    figure = Figure(figsize=(3.4 * len(domains), 2.9 + 0.15 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(domains), squeeze=False, sharey=True)[0]
    for domain, axes in zip(domains, panels, strict=True):
        for number, method in enumerate(methods):
            own = [row for row in rows if (row["domain"], row["method"]) == (domain, method)]
            own = sorted(own, key=lambda row: row[x])
            places, color = [row[x] for row in own], PALETTE[number % len(PALETTE)]
            axes.plot(places, [row["value"] for row in own], color=color, label=method, marker=marker)
            band = ([row[end] for row in own] for end in ("low", "high"))
            axes.fill_between(places, *band, color=color, alpha=0.15, linewidth=0)
        axes.set(title=domain, xlabel=x)
    panels[0].set_ylabel(ylabel)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(methods), 1 + len(domains)))
    return figure


@style()
def difference_chart(rows: Rows, metrics: Sequence[str], domain: str) -> Figure:
    """Return a panel per metric: each method's paired difference to the first it is taken to, with intervals.

    Filled where the interval leaves out 0, hollow where the two cannot be told apart. Raises ValueError where
    the domain has no differences of a metric.
    """
    found = [row for row in rows if "against" in row and "separable" in row and row["domain"] == domain]
    found = [row for row in found if row["against"] == found[0]["against"]]
    methods = list(dict.fromkeys(row["method"] for row in found))
    if not all(any(row["metric"] == metric for row in found) for metric in metrics):
        raise ValueError(f"{domain} has no differences of {', '.join(metrics)}.")
    figure = Figure(figsize=(1.6 + 2.3 * len(metrics), 1.1 + 0.27 * len(methods)), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(metrics), sharey=True))
    for axes, metric in zip(panels, metrics, strict=True):
        for row in (row for row in found if row["metric"] == metric):
            place = methods.index(row["method"])
            axes.plot([row["low"], row["high"]], [place, place], color=PALETTE[0], linewidth=1.2)
            face = PALETTE[0] if row["separable"] else "white"
            axes.plot(row["value"], place, "o", color=PALETTE[0], markerfacecolor=face, markersize=5)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_title(metric_label(metric, break_line=True), fontsize=9)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel(f"{domain}: difference to {found[0]['against']}, 95 %", fontsize=9)
    return figure


@style()
def trade_chart(rows: Rows, source: str, metric: str = "cmmd") -> Figure:
    """Return a panel per target domain: a metric there against the same of the source, a point a method.

    Both with their intervals: what adaptation gives, and what it takes from the source.
    """
    scored = {(r["method"], r["domain"]): r for r in rows if "against" not in r and r["metric"] == metric}
    domains = [d for d in dict.fromkeys(domain for _, domain in scored) if d != source]
    figure = Figure(figsize=(4.0 * len(domains), 3.6), layout="constrained")
    for axes, domain in zip(np.ravel(figure.subplots(1, len(domains))), domains, strict=True):
        methods = [m for m, d in scored if d == domain and (m, source) in scored]
        for number, method in enumerate(methods):
            x, y = scored[method, source], scored[method, domain]
            color = PALETTE[number % len(PALETTE)]
            axes.plot([x["low"], x["high"]], [y["value"]] * 2, color=color, linewidth=0.8)
            axes.plot([x["value"]] * 2, [y["low"], y["high"]], color=color, linewidth=0.8)
            marker = "os^Dvp"[number // len(PALETTE) % 6]
            axes.plot(x["value"], y["value"], marker, color=color, markersize=6, label=method)
        title = metric_label(metric)
        axes.set(title=domain, xlabel=f"{source}, adapter on: {title}", ylabel=f"{domain}: {title}")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


@style()
def front_chart(rows: Rows, metrics: Mapping[str, str]) -> Figure:
    """Return a panel per metric and domain: every way of sampling that was tried, quality against its price.

    rows: those of a calibration's search. metrics: name -> "lower" or "higher", what is better. The price is
    the network's predictions an image; a step line joins what no other beats in both, a ring is round what
    was chosen.
    """
    domains, names = list(dict.fromkeys(row["domain"] for row in rows)), list(metrics)
    size = (3.5 * len(domains), 2.6 * len(metrics) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), len(domains), squeeze=False, sharex=True, sharey="row")
    for (metric, domain), axes in zip(itertools.product(names, domains), panels.flat, strict=True):
        own = [row for row in rows if (row["metric"], row["domain"]) == (metric, domain)]
        _candidates(axes, own)
        best = _front(own, metrics[metric])
        axes.step(
            [r["calls"] for r in best], [r["value"] for r in best], where="post", color=MUTED, linewidth=1.2
        )
        axes.set_title(domain if metric == names[0] else "")
        axes.set_xlabel("predictions of the network an image" if metric == names[-1] else "")
        axes.set_ylabel(metric_label(metric) if domain == domains[0] else "")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _candidates(axes: Axes, rows: Rows) -> None:
    kinds = dict.fromkeys((row["guidance"], row["scheduler"]) for row in rows)
    for number, (guidance, scheduler) in enumerate(kinds):
        own = [row for row in rows if (row["guidance"], row["scheduler"]) == (guidance, scheduler)]
        label = f"Domain Guidance, {scheduler}" if guidance == "domain" else scheduler
        color = PALETTE[number % len(PALETTE)]
        places = [row["calls"] + number - 1.5 for row in own]  # a little beside the others
        for place, row in zip(places, own, strict=True):
            axes.plot([place] * 2, [row["low"], row["high"]], color=color, linewidth=0.4, alpha=0.6)
        values = [row["value"] for row in own]
        axes.plot(places, values, "o", color=color, markersize=3.5, label=label)
        for place, row in zip(places, own, strict=True):
            if row["chosen"]:
                axes.plot(place, row["value"], "o", markersize=10, color=INK, markerfacecolor="none")


def _front(rows: Rows, better: str) -> list[Mapping[str, Any]]:
    """Those that no other beats in both value and predictions, the cheapest first."""
    sign = 1 if better == "lower" else -1
    kept: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["calls"], sign * row["value"])):
        if not kept or sign * row["value"] < sign * kept[-1]["value"]:
            kept.append(row)
    return kept


# Charts of guidance: fit against control, the plane of two scales, and what a longer training costs.


MARKERS = "os^Dvp"


Point = dict[str, Any]  # its scales, and metric -> row in "metrics"


def chart_points(
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
    found = chart_points(rows, lines, (x, y), ("guidance_scale",))
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
    axes.set(xlabel=metric_label(x), ylabel=metric_label(y))
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
    (cells,) = chart_points(rows, [line], metrics, ("domain_scale", "guidance_scale")).values()
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
        axes.set(title=metric_label(metric, break_line=True), xlabel="$w_c$, to the prompt")
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
    found = chart_points(rows, lines, (), ("max_train_steps",))
    figure = Figure(figsize=(0.6 + 2.8 * len(metrics), 3.2), layout="constrained")
    for axes, metric in zip(np.ravel(figure.subplots(1, len(metrics))), metrics, strict=True):
        for number, (name, own) in enumerate(found.items()):
            beside = 1 + 0.04 * (number - (len(lines) - 1) / 2)
            label = name.removesuffix(", over training")
            _over_steps(axes, [p for p in own if metric in p["metrics"]], metric, beside, label, number)
        title = metric_label(metric, break_line=True)
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
