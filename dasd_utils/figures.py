"""One style for every figure: grids, curves, bars, a confusion matrix. Functions return a Figure."""

import base64
import contextlib
import io
import textwrap
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.ndimage import gaussian_filter1d

INK, MUTED, LINE = "#1f2933", "#66727f", "#d5dbe1"
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito
BLUES = LinearSegmentedColormap.from_list("dasd", ["#f1f4f7", "#0072b2"])
STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
}


class Metric(NamedTuple):
    """How a metric is written in tables and charts."""

    title: str
    better: str = ""  # "higher" or "lower", where one is
    decimals: int = 3
    short: str = ""  # for charts, where the title is long


METRICS = {  # name in a result row -> how it is written; the order is that of the columns of a table
    "clip_score": Metric("CLIP score", "higher"),
    "clip_floor": Metric("CLIP score of shuffled captions"),
    "attribute_accuracy": Metric("attributes shown, of those asked for", "higher", 2, "attributes shown"),
    "cmmd": Metric("CMMD", "lower", 2),
    "kid": Metric("KID on CLIP features", "lower"),
    "fid": Metric("FID", "lower", 1),
    "domain_accuracy": Metric("taken for its domain", "higher", 2),
    "precision": Metric("precision", "higher", 2),
    "recall": Metric("recall", "higher", 2),
    "density": Metric("density", "higher", 2),
    "coverage": Metric("coverage", "higher", 2),
    "intra_cluster": Metric("distance inside clusters", "higher"),
    "copy_rank": Metric("distance to training images, 0.5 as new ones", "", 2),
    "synthetic_to_real": Metric(
        "trained on samples, right on real images", "higher", 2, "right on real images"
    ),
}
SHARES = ("accuracy", "attribute_accuracy", "domain_accuracy", "precision", "recall", "coverage", "copy_rank",
          "synthetic_to_real", "constant_answer", "retrieval_r1", "zero_shot_domain", "reader_on_renders",
          "base_attribute_accuracy", "adapted_attribute_accuracy", "share of houses")  # fmt: skip
COVERAGE = {2: 87, 3: 92}  # training seeds -> % of 95 % intervals that hold the truth, where seeds vary most
Row = Mapping[str, Any]  # of results, or of a history
Rows = Sequence[Row]
Images, Texts = Sequence[Image.Image], Sequence[str]
_STYLING = threading.RLock()


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows where it ends a cell, and that no global list keeps alive."""

    def _ipython_display_(self) -> None:
        from IPython.display import display  # only notebooks get here

        png, jpeg = self.encode("png"), self.encode("jpeg")
        if 2 * len(jpeg) < len(png):  # pictures; curves stay sharp as PNG
            kind, content = "image/jpeg", jpeg
        else:  # a palette of its own: charts look the same in a third of the size
            buffer, image = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
            image.quantize(256, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
            kind, content = "image/png", buffer.getvalue()
        display({kind: base64.b64encode(content).decode(), "text/plain": repr(self)}, raw=True)

    def encode(self, kind: str, dpi: int = 100) -> bytes:
        """Return the figure as a "png" without date or version, a "jpeg", or another kind of matplotlib's."""
        options = {"png": {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}},
                   "jpeg": {"pil_kwargs": {"quality": 82, "optimize": True}}}  # fmt: skip
        buffer = io.BytesIO()
        self.savefig(buffer, format=kind, dpi=dpi, **options.get(kind, {}))
        return buffer.getvalue()


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The style as a context, for own plots, in one thread at a time: `with figures.style(): ...`."""
    with _STYLING, matplotlib.rc_context(STYLE):  # settings of the whole process
        yield


def save(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write the figure in the kind of the path's suffix; return the path. Equal figures are equal PNGs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")  # one that a killed process left is written over
    try:
        temporary.write_bytes(figure.encode(path.suffix[1:], dpi))
        temporary.replace(path)
    finally:  # nothing half-written stays, on a full disk for example
        temporary.unlink(missing_ok=True)
    return path


def metric_title(name: str) -> str:
    """Return a metric's title for a table, with an arrow towards what is better."""
    metric = METRICS.get(name, Metric(name))
    return metric.title + {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]


def metric_label(name: str, break_line: bool = False) -> str:
    """Return a metric's label for a chart, which says what is better, on a line of its own if wanted."""
    metric, gap = METRICS.get(name, Metric(name)), "\n" if break_line else " "
    return (metric.short or metric.title) + (f"{gap}({metric.better} is better)" if metric.better else "")


def is_share(row: Row) -> bool:
    """Return whether a row's value is a share, from 0 to 1, and no difference of shares."""
    return row.get("metric", "").split(": ")[-1] in SHARES and not row.get("against")


def interval(row: Row) -> tuple[float, float]:
    """Return the ends of a row's interval, those of a share no further than 0 and 1."""
    low, high = row["low"], row["high"]
    return (max(low, 0.0), min(high, 1.0)) if is_share(row) else (low, high)


def seeds_note(rows: Rows) -> str:
    """Return what is said under rows: what two or three training seeds make of intervals; another profile."""
    few = sorted({len(row["seeds"]) for row in rows if {"low", "seeds"} <= row.keys()} & COVERAGE.keys())
    held = " and ".join(f"{COVERAGE[count]} % of studies with {count} seeds" for count in few)
    held = held and f"In simulations where seeds vary most, 95 % intervals hold the truth in {held}."
    other = " and ".join(sorted({row["profile"] for row in rows if "profile" in row}))
    return f"{held} {f'Measured with the profile {other}.' if other else ''}".strip()


# pictures
def image_grid(
    images: Images, captions: Texts | None = None, columns: int = 6, title: str = "", cell: float = 1.25
) -> Figure:
    """Return the images row by row, each over its caption; `cell` is the width of one in inches."""
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} images came with {len(captions)} captions.")
    columns = min(columns, len(images) or 1)
    starts = range(0, len(images), columns)
    below = [captions[s : s + columns] for s in starts] if captions else [()] * len(starts)
    return _grid([images[s : s + columns] for s in starts], cell, title, (), (), below)


def comparison_grid(
    rows: Mapping[str, Images], captions: Texts | None = None, title: str = "", cell: float = 1.25
) -> Figure:
    """Return one row of images per label, with a caption over each column, for example its prompt."""
    columns = max(map(len, rows.values()), default=0)
    if captions is not None and len(captions) != columns:
        raise ValueError(f"{columns} columns came with {len(captions)} captions.")
    return _grid(list(rows.values()), cell, title, list(rows), captions or (), [()] * len(rows))


@style()
def _grid(
    rows: Sequence[Images], cell: float, title: str, labels: Texts, above: Texts, below: Sequence[Texts]
) -> Figure:
    """Lay the images out: columns `cell` inches wide, rows of captions as high as the longest of them."""
    if not rows or not all(map(len, rows)):
        raise ValueError("There are no images to show.")
    gap, line = 0.06, 0.125
    names, heads = [_wrap(text, 1.1) for text in labels], [_wrap(text, cell) for text in above]
    feet = [[_wrap(text, cell) for text in texts] for texts in below]
    depths = [max((len(text) * line + 0.07 for text in texts), default=0) for texts in feet]
    left = gap + max((0.085 * len(part) for parts in names for part in parts), default=0)
    top = (0.34 if title else gap) + max((len(text) * line + gap for text in heads), default=0)
    xs = [left + column * (cell + gap) for column in range(max(map(len, rows)))]
    width = max(xs[-1] + cell + gap, 0.1 * len(title))
    height = top + sum(depths) + len(rows) * (cell + gap)
    figure = Figure(figsize=(width, height))

    def write(x: float, y: float, lines: Texts, **settings: Any) -> None:
        """x, y: inches from the upper left."""
        plain = {"size": 7, "linespacing": 1.25, "parse_math": False}  # a prompt may hold a dollar sign
        figure.text(x / width, 1 - y / height, "\n".join(lines), **plain | settings)

    write(gap, 0.07, [title], va="top", weight="bold", size=10)
    for x, text in zip(xs, heads, strict=False):
        write(x + cell / 2, top - gap, text, ha="center", va="bottom")
    y = top
    for r, images in enumerate(rows):
        if names:
            write(left - 2 * gap, y + cell / 2, names[r], ha="right", va="center", weight="bold", size=8)
        for x, image in zip(xs, images, strict=False):
            axes = figure.add_axes((x / width, 1 - (y + cell) / height, cell / width, cell / height))
            axes.imshow(np.asarray(image.convert("RGB")), interpolation="lanczos")
            axes.set_axis_off()
        for x, text in zip(xs, feet[r], strict=False):
            write(x + cell / 2, y + cell + 0.04, text, ha="center", va="top")
        y += cell + gap + depths[r]
    return figure


def _wrap(text: str, inches: float) -> list[str]:
    """Return at most four lines of 7 point text that fit the width."""
    return textwrap.wrap(text, int(inches / 0.056), max_lines=4, placeholder=" …") or [""]


# curves, bars, heat
@style()
def loss_curves(history: Rows | Sequence[float]) -> Figure:
    """Return loss, MMD, gradient norm and learning rates over steps, noisy ones under a Gaussian average."""
    if not isinstance(history, Iterable) or not len(history):
        raise ValueError(f"The history has no rows to draw: it is {history!r}.")
    if not isinstance(history[0], Mapping):
        history = [{"step": i + 1, "loss": value} for i, value in enumerate(history)]
    names = list(dict.fromkeys(n for row in history for n, value in row.items() if value is not None))
    panels = {
        "Loss": ["loss", *(n for n in names if n.startswith("validation_"))],
        "MMD of features": [n for n in names if n.startswith("mmd_")] or ["mmd"],
        "Gradient norm": ["grad_norm"],
        "Learning rate": ["learning_rate", "token_learning_rate"],
    }
    panels = {t: found for t, wanted in panels.items() if (found := [n for n in wanted if n in names])}
    if not panels:
        raise ValueError("The history has nothing that is drawn: loss, grad_norm or learning_rate.")
    figure = Figure(figsize=(3.3 * len(panels), 2.7), layout="constrained")
    for axes, (name, keys) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for color, key in zip(cycle(PALETTE), keys, strict=False):
            found = [(row["step"], row[key]) for row in history if row.get(key) is not None]
            steps, values = np.array(found, dtype=float).T
            label = key.replace("validation_", "validation, ").replace("mmd_", "").replace("_", " ")
            looks = {"marker": "o", "markersize": 3.5} if key.startswith("validation_") else {}
            if not looks and not key.endswith("learning_rate") and len(values) >= 20:
                axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                values = gaussian_filter1d(values, len(values) / 40)
            axes.plot(steps, values, color=color, label=label, **looks)
        axes.set(title=name, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(keys) > 1:
            axes.legend()
    return figure


plot_losses = loss_curves  # its name in the published project


@style()
def bar_chart(rows: Rows, metrics: Sequence[str] | None = None, reference: Rows = ()) -> Figure:
    """Return a panel per metric: a bar per method and domain with its interval; `clip_floor` is dotted.

    The rows of `reference`, all of one method, are dashed lines across the bars of their domain.
    """
    present = list(dict.fromkeys(row["metric"] for row in rows if row["metric"] != "clip_floor"))
    metrics = present if metrics is None else list(metrics)
    if not metrics or not set(metrics) <= set(present):
        raise ValueError(f"The rows hold the metrics {present}, not {metrics}.")
    methods = dict.fromkeys(row["method"] for row in rows)
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    colors = dict(zip(methods, cycle(("#9aa5b1", *PALETTE)), strict=False))  # the first is the baseline
    figure = Figure(figsize=(0.3 + 3.3 * len(metrics), 3.1), layout="constrained")
    for axes, metric in zip(np.ravel(figure.subplots(1, len(metrics))), metrics, strict=True):
        _bars(axes, rows, metric, domains, colors)
        for row in reference:
            if row["metric"] == metric and row["domain"] in domains:
                place = domains.index(row["domain"])
                dashes = {"color": PALETTE[-1], "linestyles": "--", "zorder": 3}
                axes.hlines(row["value"], place - 0.45, place + 0.45, **dashes)
        axes.set_title(metric_label(metric))
    handles = [Patch(color=color, label=method) for method, color in colors.items()]
    if "clip_score" in metrics and any(row["metric"] == "clip_floor" for row in rows):
        handles.append(Line2D([], [], color=INK, linestyle=":", label="CLIP score with shuffled captions"))
    if reference:
        handles.append(Line2D([], [], color=PALETTE[-1], linestyle="--", label=reference[0]["method"]))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _bars(axes: Axes, rows: Rows, metric: str, domains: Texts, colors: Mapping[str, str]) -> None:
    methods, width = list(colors), 0.8 / len(colors)
    largest = max(abs(row["value"]) for row in rows if row["metric"] == metric)
    digits = 1 if largest >= 10 else 2 if largest >= 1 else 3
    for row in rows:
        place = methods.index(row["method"]) - (len(methods) - 1) / 2
        x, value = domains.index(row["domain"]) + place * width, row["value"]
        if row["metric"] == metric:
            axes.bar(x, value, 0.9 * width, color=colors[row["method"]])
            axes.plot([x, x], interval(row), color=INK, linewidth=1.2)
            above = {"xy": (x, max(*interval(row), 0)), "xytext": (0, 2), "textcoords": "offset points"}
            axes.annotate(f"{value:z.{digits}f}", **above, ha="center", fontsize=7)
        elif row["metric"] == "clip_floor" and metric == "clip_score":
            axes.hlines(value, x - 0.45 * width, x + 0.45 * width, color=INK, linestyles=":", zorder=3)
    axes.set_xticks(range(len(domains)), domains, fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.axhline(0, color=MUTED, linewidth=0.8)


@style()
def histograms(
    panels: Mapping[str, Mapping[str, Any]], xlabel: str, ylabel: str, bins: Any = 30, **settings: Any
) -> Figure:
    """Return a panel per title with a histogram per label, one over the other; settings: of `Axes.hist`."""
    figure = Figure(figsize=(max(3.1 * len(panels), 4.5), 2.6), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for axes, (title, parts) in zip(grid, panels.items(), strict=True):
        for color, (label, values) in zip(cycle(PALETTE), parts.items(), strict=False):
            axes.hist(values, bins, color=color, alpha=0.6, label=label, **settings)
        axes.set(title=title, xlabel=xlabel)
    grid[0].set_ylabel(ylabel)
    grid[-1].legend()
    return figure


def draw_heat(axes: Axes, values: np.ndarray, texts: Any, **settings: Any) -> None:
    """Draw a matrix as shades of blue with a text in each cell."""
    image = axes.imshow(values, cmap=BLUES, aspect="auto", **settings)
    middle = sum(image.get_clim()) / 2
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > middle else INK
        axes.text(column, row, str(texts[row][column]), ha="center", va="center", color=color, fontsize=9)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
