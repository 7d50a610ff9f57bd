"""Charts of studies: sweeps, differences, gain and loss, quality and its price, kinds of guidance."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import SymmetricalLogLocator

from dasd_utils import figures
from dasd_utils.figures import INK, MUTED, PALETTE, Figure, Row, Rows, draw_heat, metric_label, style

MARKERS = "os^Dvp"


def unique(rows: Rows, name: str) -> list[Any]:
    """Return the different values of a field, in the rows' order."""
    return list(dict.fromkeys(row[name] for row in rows))


def look(number: int) -> dict[str, str]:
    """Return the colour and, after all colours, another marker of the chart's line of this number."""
    return {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number // len(PALETTE) % len(MARKERS)]}


def legend_below(figure: Figure, rows: Rows, ncols: int) -> None:
    """Write the labels of the first panel beneath all panels, and what few seeds make of the intervals."""
    named = figure.axes[0].get_legend_handles_labels()
    note = {"title": figures.seeds_note(rows) or None, "title_fontsize": 7}
    figure.legend(*named, loc="outside lower center", ncols=ncols, fontsize=8, **note)


def ends(rows: Rows) -> np.ndarray:
    """Return the lower and the upper ends of the rows' intervals, (2, n)."""
    return np.array([figures.interval(row) for row in rows]).reshape(-1, 2).T


def metric_panels(
    rows: Rows, metrics: Sequence[str], x: str, width: float
) -> tuple[Figure, Iterator[tuple[Axes, str, Rows]]]:
    """Return a figure, a row of panels per metric and a column per domain, and what to draw in each panel."""
    domains = unique(rows, "domain")
    size = (width * len(domains), 2.5 * len(metrics) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(metrics), len(domains), squeeze=False, sharex=True, sharey="row")
    for axes, domain in zip(grid[0], domains, strict=True):
        axes.set_title(domain)
    for axes in grid[-1]:
        axes.set_xlabel(x.replace("_", " "))
    for axes, metric in zip(grid[:, 0], metrics, strict=True):
        axes.set_ylabel(metric_label(metric))
    chosen = (
        (axes, metric, [row for row in rows if (row["metric"], row["domain"]) == (metric, domain)])
        for axes, (metric, domain) in zip(grid.flat, itertools.product(metrics, domains), strict=True)
    )
    return figure, chosen


# one chart each
@style()
def sweep_chart(rows: Rows, x: str, metrics: Sequence[str], by: Sequence[str]) -> Figure:
    """Return a panel per metric and domain: a score over a parameter, a line for each combination of others.

    rows: scores or differences of a sweep, with the parameters `x` and `by` in each. A row without `by`
    (nothing to choose where x is 0) starts every line. x is on a logarithmic scale with 0 at its left end.
    """
    found = [row for row in rows if row["metric"] in metrics]
    lines = sorted({tuple(row[name] for name in by) for row in found if all(name in row for name in by)})
    figure, panels = metric_panels(found, metrics, x, 3.2)
    for axes, _, own in panels:
        for number, line in enumerate(lines):
            chosen = dict(zip(by, line, strict=True))
            part = [row for row in own if chosen.items() <= {**chosen, **row}.items()]
            part.sort(key=lambda row: row[x])
            beside = 1 + 0.06 * (number - (len(lines) - 1) / 2)  # so that no line hides another
            xs, values = [row[x] * beside for row in part], [row["value"] for row in part]
            looks = {"color": look(number)["color"], "marker": "o", "markersize": 3, "linewidth": 1.2}
            looks["label"] = ", ".join(f"{name} {value}" for name, value in chosen.items())
            axes.errorbar(xs, values, np.abs(ends(part) - values), elinewidth=0.6, **looks)
        if any("against" in row for row in own):
            axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xscale("symlog", linthresh=min((row[x] for row in found if row[x] > 0), default=1))
    legend_below(figure, rows, min(len(lines), 3))
    return figure


@style()
def curve_chart(
    rows: Rows, x: str, ylabel: str, marker: str = "", panel: str = "domain", line: str = "method"
) -> Figure:
    """Return panels by one field and lines by another: a value over x with the band of its interval."""
    names, lines = unique(rows, panel), unique(rows, line)
    figure = Figure(figsize=(3.4 * len(names), 2.9 + 0.15 * len(lines)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=panel != "metric")[0]
    for axes, name in zip(panels, names, strict=True):
        for number, each in enumerate(lines):
            own = [row for row in rows if (row[panel], row[line]) == (name, each)]
            own.sort(key=lambda row: row[x])
            xs, color = [row[x] for row in own], look(number)["color"]
            axes.plot(xs, [row["value"] for row in own], color=color, label=each, marker=marker)
            axes.fill_between(xs, *ends(own), color=color, alpha=0.15, linewidth=0)
        title = metric_label(name, break_line=True) if panel == "metric" else name
        axes.set(title=title, xlabel=x.replace("_", " "))
    panels[0].set_ylabel(ylabel)
    legend_below(figure, rows, min(len(lines), 1 + len(names)))
    return figure


def method_dots(axes: Axes, rows: Rows, methods: Sequence[str]) -> None:
    """Draw a row's value and interval beside its method's name; hollow where a difference may be 0."""
    for row in rows:
        place = methods.index(row["method"])
        axes.plot(figures.interval(row), [place, place], color=PALETTE[0], linewidth=1.2)
        face = PALETTE[0] if row.get("separable", True) else "white"
        axes.plot(row["value"], place, "o", color=PALETTE[0], markerfacecolor=face, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods, fontsize=8)


@style()
def difference_chart(rows: Rows, metrics: Sequence[str], domain: str) -> Figure:
    """Return a panel per metric of differences to the first `against`; hollow where the interval holds 0."""
    found = [row for row in rows if "against" in row and "separable" in row and row["domain"] == domain]
    found = [row for row in found if row["against"] == found[0]["against"]]
    methods = unique(found, "method")
    figure = Figure(figsize=(1.6 + 2.3 * len(metrics), 1.1 + 0.27 * len(methods)), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(metrics), sharey=True))
    for axes, metric in zip(panels, metrics, strict=True):
        method_dots(axes, [row for row in found if row["metric"] == metric], methods)
        axes.set_title(metric_label(metric, break_line=True), fontsize=9)
    panels[0].invert_yaxis()
    label = f"{domain}: difference to {found[0]['against']}, 95 %\n{figures.seeds_note(found)}"
    figure.supxlabel(label.strip(), fontsize=9)
    return figure


@style()
def trade_chart(rows: Rows, source: str, metric: str = "cmmd") -> Figure:
    """Return a panel per domain, the source first: a metric of each method that samples the source, too."""
    scored = [row for row in rows if "against" not in row and row["metric"] == metric]
    methods = unique([row for row in scored if row["domain"] == source], "method")
    scored = [row for row in scored if row["method"] in methods]
    domains = [source, *(domain for domain in unique(scored, "domain") if domain != source)]
    figure = Figure(figsize=(1.6 + 2.3 * len(domains), 1.1 + 0.27 * len(methods)), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(domains), sharey=True))
    for axes, domain in zip(panels, domains, strict=True):
        method_dots(axes, [row for row in scored if row["domain"] == domain], methods)
        axes.set_title(f"{domain}, adapter on" if domain == source else domain, fontsize=9)
    panels[0].invert_yaxis()
    figure.supxlabel(f"{metric_label(metric)}, 95 %\n{figures.seeds_note(scored)}".strip(), fontsize=9)
    return figure


@style()
def front_chart(rows: Rows, metrics: Mapping[str, str]) -> Figure:
    """Return a panel per metric and domain: every candidate of a calibration's search, quality against price.

    metrics: name -> "lower" or "higher", what is better. The price is how often the network predicts per
    image; a step line joins what no other beats in both, a ring is round what was chosen.
    """
    figure, panels = metric_panels(rows, list(metrics), "network predictions per image", 3.5)
    for axes, metric, own in panels:
        kinds = dict.fromkeys((row["guidance"], row["scheduler"]) for row in own)
        for number, kind in enumerate(kinds):
            label = f"Domain Guidance, {kind[1]}" if kind[0] == "domain" else kind[1]
            color = look(number)["color"]
            part = [row for row in own if (row["guidance"], row["scheduler"]) == kind]
            xs = [row["calls"] + number - 1.5 for row in part]  # a little beside the others
            axes.plot(xs, [row["value"] for row in part], "o", color=color, markersize=3.5, label=label)
            for x, row in zip(xs, part, strict=True):
                axes.plot([x] * 2, figures.interval(row), color=color, linewidth=0.4, alpha=0.6)
                if row["chosen"]:
                    axes.plot(x, row["value"], "o", markersize=10, color=INK, markerfacecolor="none")
        sign = 1 if metrics[metric] == "lower" else -1
        best: list[Row] = []  # those that no other beats in both value and price, the cheapest first
        for row in sorted(own, key=lambda row, sign=sign: (row["calls"], sign * row["value"])):
            if not best or sign * row["value"] < sign * best[-1]["value"]:
                best.append(row)
        calls, values = [row["calls"] for row in best], [row["value"] for row in best]
        axes.step(calls, values, where="post", color=MUTED, linewidth=1.2)
    legend_below(figure, rows, 5)
    return figure


# guidance: fit against control, the plane of two scales, and the length of training
def curve_rows(rows: Rows, curves: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of these curves; ValueError for rows of more than one domain."""
    own = [row for row in rows if row.get("line") in curves]
    if len(domains := {row["domain"] for row in own}) > 1:
        raise ValueError(f"The rows are of several domains: {', '.join(sorted(domains))}. Choose one.")
    return own


@style()
def fit_chart(rows: Rows, curves: Sequence[str], x: str = "cmmd", y: str = "attribute_accuracy") -> Figure:
    """Return one panel for the rows of a domain: a score over another, a curve for each kind of guidance.

    A curve of one scale is drawn in the scale's order, with the scale at both ends; one of two scales as its
    points alone. Intervals are thin; the axis of `x` is logarithmic above 1.
    """
    figure = Figure(figsize=(5.8, 3.9), layout="constrained")
    axes = figure.subplots()
    found = curve_rows(rows, curves)
    for number, name in enumerate(curves):
        own = sorted((row for row in found if row["line"] == name), key=lambda row: row["guidance_scale"])
        both = ([row for row in own if row["metric"] == metric] for metric in (x, y))
        pairs = list(zip(*both, strict=True))
        joined = "none" if "domain_scale" in own[0] else "-"
        for x_row, y_row in pairs:  # intervals are thin crosses
            thin = {"color": look(number)["color"], "linewidth": 0.6}
            axes.plot(figures.interval(x_row), [y_row["value"]] * 2, **thin)
            axes.plot([x_row["value"]] * 2, figures.interval(y_row), **thin)
        xs, ys = ([row["value"] for row in rows] for rows in zip(*pairs, strict=True))
        axes.plot(xs, ys, label=name, linestyle=joined, linewidth=1.2, markersize=4, **look(number))
        for i in (0, -1) if joined == "-" else ():
            beside = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7}
            scale = f"{pairs[i][0]['guidance_scale']:g}"
            axes.annotate(scale, (xs[i], ys[i]), color=look(number)["color"], **beside)
    axes.set_xscale("symlog", linthresh=1)  # linear below 1, where most curves are
    axes.xaxis.set(major_locator=SymmetricalLogLocator(None, (1, 2, 5), 1, 10), major_formatter="{x:g}")
    axes.set(xlabel=metric_label(x), ylabel=metric_label(y))
    legend_below(figure, rows, 2)
    return figure


@style()
def plane_chart(rows: Rows, curve: str, metrics: Sequence[str] = ("cmmd", "attribute_accuracy")) -> Figure:
    """Return a heat map per metric over the two scales of decoupled guidance, its values in the cells."""
    cells = curve_rows(rows, [curve])
    across, up = (sorted({row[scale] for row in cells}) for scale in ("guidance_scale", "domain_scale"))
    figure = Figure(figsize=(0.8 + 2.4 * len(metrics), 2.5), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(metrics)))
    for axes, metric in zip(panels, metrics, strict=True):
        values = np.full((len(up), len(across)), np.nan)
        for row in (row for row in cells if row["metric"] == metric):
            values[up.index(row["domain_scale"]), across.index(row["guidance_scale"])] = row["value"]
        draw_heat(axes, values, [[f"{value:z.2f}" for value in line] for line in values], origin="lower")
        axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
        axes.set_yticks(range(len(up)), [f"{value:g}" for value in up])
        axes.set(title=metric_label(metric, break_line=True), xlabel="$w_c$, to the prompt")
    panels[0].set_ylabel("$w_d$, to the domain")
    return figure
