"""Figures hold what they were given, stay inside their canvas, and leave nothing behind."""

import base64
import io
import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from dasd_utils import figures, toyworld


@pytest.fixture(autouse=True)
def every_glyph():
    """A character that the font lacks is a warning of matplotlib; here it fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def red(n):
    return [Image.new("RGB", (32, 32), (200, 0, 0))] * n


def results():
    values = {("base", "clip_score"): 0.2, ("base", "clip_floor"): 0.15, ("base", "cmmd"): 30.0}
    values |= {("DASD", "clip_score"): 0.3, ("DASD", "clip_floor"): 0.18, ("DASD", "cmmd"): 5.0}
    return [
        {"method": m, "domain": d, "metric": k, "value": v, "low": 0.9 * v, "high": 1.1 * v}
        for d in ("satellite", "xray")
        for (m, k), v in values.items()
        if (d, m, k) != ("xray", "base", "cmmd")  # one is missing
    ]


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def extents(figure):
    """Return (text, its box in pixels) of every text that is drawn."""
    FigureCanvasAgg(figure).draw()
    hidden = set()  # tick labels that stand beyond the axes, or of axes that are off
    for axes in figure.axes:
        for axis, limits in (axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()):
            beyond = lambda tick, ends=limits: not min(ends) <= tick.get_loc() <= max(ends)  # noqa: E731
            hidden |= {t.label1 for t in axis.get_major_ticks() if not axes.axison or beyond(t)}
    texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent()) for t in texts if t not in hidden]


def assert_readable(figure):
    """No text leaves the canvas, and no two touch."""
    width, height = figure.canvas.get_width_height()
    found = extents(figure)
    for text, box in found:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for (a, first), (b, second) in itertools.combinations(found, 2):
        assert not first.overlaps(second), f"{a!r} and {b!r}"


def test_image_grid_shows_every_image_in_rows():
    figure = figures.image_grid(red(7), columns=3)
    tops = [round(axes.get_position().y1, 3) for axes in figure.axes]
    assert [len(list(row)) for _, row in itertools.groupby(tops)] == [3, 3, 1]
    assert tops == sorted(tops, reverse=True)
    image = pixels(figure)
    share = (np.abs(image - (200, 0, 0)).max(axis=-1) < 8).mean()
    assert share == pytest.approx(7 / 9, abs=0.1)


def test_captions_are_wrapped_cut_and_taken_literally():
    captions = [r"$\price$ list", "a " * 5, "a chest x-ray of a child " * 6, "short"]
    figure = figures.image_grid(red(4), captions, columns=2, title="Four pictures")
    texts = [text for text, _ in extents(figure)]
    assert r"$\price$ list" in texts  # no formula, and no error of one
    longest = max(texts, key=len)
    assert longest.count("\n") == 3 and longest.endswith("…")
    assert_readable(figure)
    assert_readable(figures.image_grid(red(1), title="A title that is longer than its one picture"))


def test_comparison_grid_has_labels_left_and_captions_on_top():
    rows = {"base": red(3), "base + style words": red(2), "DASD": red(3)}
    figure = figures.comparison_grid(rows, ["an airport", "a harbor with two ships", "c"], "Same seeds")
    assert len(figure.axes) == 8
    assert_readable(figure)
    place, pictures = dict(extents(figure)), [axes.get_window_extent() for axes in figure.axes]
    assert all(place[label].x1 < min(box.x0 for box in pictures) for label in rows)
    assert place["an airport"].y0 > max(box.y1 for box in pictures)
    assert place["base"].y0 > place["DASD"].y1


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (figures.image_grid, ([],), "no images"),
        (figures.image_grid, (red(2), ["one"]), "2 images came with 1 captions"),
        (figures.comparison_grid, ({"base": []},), "no images"),
        (figures.comparison_grid, ({"base": red(2)}, ["a", "b", "c"]), "2 columns came with 3 captions"),
        (figures.plot_losses, ([],), "no rows"),
        (figures.bar_chart, (results(), ["fid"]), "hold the metrics"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)


def test_loss_curves_draw_what_the_history_holds():
    rates = {"learning_rate": 1e-3, "token_learning_rate": 5e-3, "grad_norm": 1.0, "mmd": 0.1}
    rows = [{"step": k, "loss": 1 / k, "mmd_satellite": 0.2} | rates for k in range(1, 61)]
    rows[29]["validation_satellite"], rows[59]["validation_satellite"] = 0.3, 0.2
    rows[5]["loss"] = None  # a skipped step
    figure = figures.loss_curves(rows)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["Loss", "MMD of features", "Gradient norm", "Learning rate"]
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    np.testing.assert_allclose(lines["validation, satellite"].get_xydata(), [[30, 0.3], [60, 0.2]])
    assert len(lines["loss"].get_xdata()) == 59
    assert_readable(figure)


def test_the_average_follows_without_lag_and_plain_numbers_are_losses():
    faint, average = figures.plot_losses([float(k) for k in range(200)]).axes[0].lines
    np.testing.assert_allclose(faint.get_xydata()[:2], [[1, 0], [2, 1]])
    np.testing.assert_allclose(average.get_ydata()[30:170], faint.get_ydata()[30:170], atol=1e-6)


def test_bar_chart_draws_values_intervals_and_floor():
    figure = figures.bar_chart(results())
    scores, distances = figure.axes
    assert sorted(bar.get_height() for bar in scores.patches) == [0.2, 0.2, 0.3, 0.3]
    assert sorted(bar.get_height() for bar in distances.patches) == [5, 5, 30]
    intervals = sorted(tuple(line.get_ydata()) for line in distances.lines[:3])
    np.testing.assert_allclose(intervals, [(4.5, 5.5), (4.5, 5.5), (27, 33)])
    assert len(scores.collections) == 4 and not distances.collections  # the floors
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["base", "DASD", "CLIP score with shuffled captions"]
    assert_readable(figure)


def test_bar_chart_dashes_the_reference_of_each_domain():
    values = ("xray", "cmmd", 0.1), ("satellite", "clip_score", 0.4), ("sketch", "cmmd", 9)
    held_out = [{"method": "held out", "domain": d, "metric": m, "value": v} for d, m, v in values]
    figure = figures.bar_chart(results(), metrics=["cmmd"], reference=held_out)
    (dashes,) = figure.axes[0].collections
    np.testing.assert_allclose(dashes.get_segments()[0], [(0.55, 0.1), (1.45, 0.1)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "DASD", "held out"]
    assert [axes.get_title("left") for axes in figure.axes] == ["CMMD (lower is better)"]


def test_histograms_have_a_panel_for_each_title_and_bars_for_each_label():
    panels = {"left": {"x": [0, 0, 1], "y": [1]}, "right": {"x": [2, 2], "y": [0]}}
    left, right = figures.histograms(panels, "value", "count", bins=[-0.5, 0.5, 1.5, 2.5]).axes
    assert [bar.get_height() for bar in left.patches] == [2, 1, 0, 0, 1, 0]
    assert [bar.get_height() for bar in right.patches] == [0, 0, 2, 1, 0, 0]
    assert (left.get_title("left"), left.get_xlabel(), left.get_ylabel()) == ("left", "value", "count")
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["x", "y"]
    colours = [to_hex(bar.get_facecolor()) for axes in (left, right) for bar in axes.patches[::3]]
    assert colours == [*figures.PALETTE[:2]] * 2  # of a label, in every panel
    dense = figures.histograms(panels, "", "", bins=[0, 0.5, 2.5], density=True).axes[0].patches
    assert [bar.get_height() for bar in dense[:2]] == pytest.approx([4 / 3, 1 / 6])


def test_heat_writes_each_value_and_is_dark_where_it_is_high():
    axes = figures.Figure().subplots()
    figures.draw_heat(axes, np.array([[1, 0], [0.25, 0.75]]), [[40, 0], [1, 3]])
    found = [(text.get_text(), text.get_color() == "white") for text in axes.texts]
    assert found == [("40", True), ("0", False), ("1", False), ("3", True)]


def test_style_and_figures_leave_nothing_behind():
    before = dict(matplotlib.rcParams)
    figures.bar_chart(results())
    with figures.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert dict(matplotlib.rcParams) == before and pyplot.get_fignums() == []


def test_saved_figures_are_equal_files(tmp_path):
    curve = [3.0, 2.0, 1.5]
    places = [tmp_path / "new" / name for name in ("a.png", "b.png")]
    first, second = (figures.save(figures.loss_curves(curve), place) for place in places)
    assert first.read_bytes() == second.read_bytes() and sorted(first.parent.iterdir()) == places
    with Image.open(first) as image:
        assert image.size == (396, 324)
    assert figures.save(figures.loss_curves(curve), tmp_path / "c.pdf").stat().st_size > 1000


def test_a_notebook_gets_one_small_picture_that_looks_like_the_file(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    chart = figures.bar_chart(results())
    chart._ipython_display_()
    figures.image_grid([toyworld.render("painting", 0, i).image for i in range(4)])._ipython_display_()
    assert [next(iter(data)) for data in shown] == ["image/png", "image/jpeg"]
    assert all(data["text/plain"].startswith("<Figure size") for data in shown)
    full, small = chart.encode("png"), base64.b64decode(shown[0]["image/png"])
    a, b = (np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), float) for file in (full, small))
    assert len(small) < len(full) / 2 and a.shape == b.shape
    assert np.abs(a - b).max() <= 24 and np.abs(a - b).mean() < 0.5
