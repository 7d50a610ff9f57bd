"""Charts and tables of the study show each row once, where it belongs."""

import itertools

import pytest
import torch

from dasd_utils import evaluation, figures
from dasd_utils.config import Config
from dasd_utils.study import charts, tables
from dasd_utils.study.tables import Records, table


def swept(value=1.0, **more):
    start = {"domain": "satellite", "metric": "cmmd", "value": value, "low": value - 0.1, "high": value + 0.2}
    return start | more


def test_a_sweep_has_a_line_for_each_combination_and_0_is_on_all():
    rows = [swept(9.0, weight=0.0)]
    every = itertools.product((0.1, 1.0), (1, 2), (0, 64))
    rows += [swept(k + w, weight=w, kernel=f"k{k}", queue=q) for w, k, q in every]
    figure = charts.sweep_chart([*rows, swept(metric="kid")], "weight", ["cmmd"], ("kernel", "queue"))
    (axes,) = figure.axes
    lines = {one.get_label(): one.lines[0].get_ydata().tolist() for one in axes.containers}
    assert lines["kernel k1, queue 0"] == [9.0, 1.1, 2.0] and len(lines) == 4
    places = [one.lines[0].get_xdata()[1] for one in axes.containers]
    assert len(set(places)) == 4  # beside each other


def test_differences_are_hollow_where_they_cannot_be_told_from_0():
    start = {"domain": "xray", "metric": "cmmd", "against": "DASD"}
    rows = [
        start | {"method": "a", "value": 1.0, "low": 0.5, "high": 1.5, "separable": True},
        start | {"method": "b", "value": 0.1, "low": -0.5, "high": 0.7, "separable": False},
        start | {"method": "a", "metric": "prompts_needed", "value": 7},
    ]
    (axes,) = charts.difference_chart(rows, ["cmmd"], "xray").axes
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [point.get_markerfacecolor() == "white" for point in points] == [False, True]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_the_trade_has_a_point_for_each_method_that_saw_the_source():
    rows = [
        {"method": m, "domain": d, "metric": "cmmd", "value": v, "low": v - 0.1, "high": v + 0.1}
        for m, d, v in (("a", "x", 1.0), ("a", "s", 2.0), ("b", "x", 3.0), ("c", "x", 4.0), ("c", "s", 0.5))
    ]
    panels = charts.trade_chart(rows, "s").axes
    assert [axes.get_title("left") for axes in panels] == ["s, adapter on", "x"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["a", "c"]
    points = [
        [(p.get_xdata()[0], p.get_ydata()[0]) for p in a.lines if p.get_marker() == "o"] for a in panels
    ]
    assert points == [[(2.0, 0), (0.5, 1)], [(1.0, 0), (4.0, 1)]]


def tried(steps, value, **more):
    start = {"domain": "satellite", "metric": "cmmd", "guidance": "cfg", "scheduler": "ddim", "chosen": False}
    return start | {"calls": steps, "value": value, "low": value - 1, "high": value + 1} | more


@pytest.mark.parametrize(
    ("better", "expected"), [("lower", [(5, 3.0), (10, 2.0), (20, 1.0)]), ("higher", [(5, 3.0), (8, 3.5)])]
)
def test_the_front_is_what_nothing_beats_and_a_ring_is_round_what_was_chosen(better, expected):
    rows = [tried(s, v) for s, v in ((30, 1.0), (5, 3.0), (8, 3.5), (10, 2.5), (10, 2.0), (20, 1.0))]
    rows.append(tried(40, 2.0, chosen=True, guidance="domain", scheduler="unipc"))
    (axes,) = charts.front_chart(rows, {"cmmd": better}).axes
    (line,) = (line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == expected
    (ring,) = (line for line in axes.lines if line.get_markersize() == 10)
    assert ring.get_ydata()[0] == 2.0
    points = {line.get_label(): len(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"}
    assert points["ddim"] == 6 and points["Domain Guidance, unipc"] == 1 and len(points) == 3


def test_curves_have_a_panel_a_domain_and_a_band_a_method():
    rows = [
        {"method": method, "domain": domain, "epoch": epoch, "value": value, "low": value - 0.1, "high": 1}
        for method, value in (("source", 0.6), ("translated", 0.8))
        for domain in ("sketch", "painting")
        for epoch in (3, 1, 2)
    ]
    figure = charts.curve_chart(rows, "epoch", "accuracy")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["sketch", "painting"]
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["source", "translated"]
    assert list(lines[1].get_xdata()) == [1, 2, 3] and list(lines[1].get_ydata()) == [0.8] * 3
    assert len(figure.axes[0].collections) == 2
    longer = [swept(n / 10, method=f"a {n}", line="a", max_train_steps=n) for n in (200, 25)]
    figure = charts.curve_chart(longer, "max_train_steps", "", "o", "metric", "line")
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[25, 2.5], [200, 20.0]]
    assert axes.get_title(loc="left") == "CMMD\n(lower is better)"


# tables


def test_rows_hold_all_that_results_need():
    records = Records("sketch", seed=3)
    row = records.mean("edges", "twin: mae", torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert row["value"] == pytest.approx(0.25) and row["low"] <= 0.25 <= row["high"]
    assert {"method", "domain", "metric", "n", "seed"} <= set(row) and row["n"] == 4
    value = torch.arange(5.0)
    other = records.jackknife("edges", "way: length", lambda rows: value[rows].mean().item(), 5)
    assert other["value"] == 2.0 and records.rows == [row, other]


def test_a_table_shows_methods_in_order_and_only_what_it_is_about():
    records = Records("sketch", seed=0)
    for method, value in (("zebra", 0.125), ("ant", 0.5)):
        records.note(method, "twin: mae", (value, value - 0.1, value + 0.1), 9)
    records.note("zebra", "twin: ssim", (0.3, 0.2, 0.4), 9)
    records.note("zebra", "other: mae", (0.9, 0.8, 1.0), 9)
    found = records.table("twin")
    assert list(found.index) == ["zebra", "ant"] and list(found.columns) == ["mae", "ssim"]
    assert found.loc["ant", "mae"] == "0.50 [0.40, 0.60]" and found.loc["ant", "ssim"] == "-"
    assert records.table("twin", digits=3).loc["zebra", "mae"] == "0.125 [0.025, 0.225]"
    named = table(records.rows, {"other: mae": "M", "absent": "A"})
    assert list(named.columns) == ["M"] and list(named.index) == ["zebra"]


def test_a_ladder_marks_what_cannot_be_told_from_its_main_method():
    start = {"domain": "xray", "metric": "recall", "value": 0.5, "low": 0.4, "high": 0.7}
    rows = [start | {"method": name} for name in ("a", "b", "DASD")]
    rows += [start | {"method": name, "against": "DASD", "separable": name == "a"} for name in ("a", "b")]
    rows += [start | {"method": "a", "against": "b", "separable": False}]
    lines = tables.ladder_table(rows).splitlines()
    assert lines[0] == "| xray | recall ↑ |"
    assert lines[2:] == ["| a | 0.50 ± 0.15 |", "| b | 0.50 ± 0.15 ≈ |", "| DASD | 0.50 ± 0.15 |"]


def test_intervals_of_a_share_end_at_0_and_1():
    start = {"domain": "xray", "method": "a", "metric": "recall", "seed": 0}

    def row(value=0.9, low=0.7, high=1.1, **more):
        return {**start, "value": value, "low": low, "high": high, **more}

    assert evaluation.interval_text(row()) == "0.90 [0.70, 1.00]"
    small = {"metric": "cmmd", "value": -0.001, "low": -0.004, "high": 0.002}
    assert evaluation.interval_text(small) == "0.00 [0.00, 0.00]"  # no -0.00
    assert "| a | 0.90 [0.70, 1.00] |" in tables.ladder_table([row()])  # no ±, which would pass 1
    assert "| a | 1.00 ± 0.00 |" in tables.ladder_table([row(1.0, 0.999, 1.001)])
    assert tables.estimate_text(row(0.94, 0.87, 1.003)) == "0.94 [0.87, 1.00]"
    assert tables.estimate_text(row(0.0, -0.1, 0.1, against="b")) == "0.00 ± 0.10"
    assert figures.interval(row(low=-0.2, metric="bottleneck: accuracy")) == (0.0, 1.0)
    assert figures.interval(row(metric="cmmd")) == (0.7, 1.1)
    assert figures.interval(row(0.1, -0.1, against="DASD")) == (-0.1, 1.1)
    (axes,) = figures.bar_chart([row()]).axes
    assert list(axes.lines[0].get_ydata()) == [0.7, 1.0]
    (axes,) = charts.curve_chart([row(epoch=n) for n in (1, 2)], "epoch", "recall").axes
    assert axes.collections[0].get_paths()[0].get_extents().y1 == 1.0
    others = set(figures.METRICS) - set(figures.SHARES)
    assert others <= {"clip_score", "clip_floor", "cmmd", "kid", "fid", "density", "intra_cluster"}


@pytest.mark.parametrize(
    ("seeds", "text"), [([0, 1], "87 %"), ([0, 1, 2], "92 %"), ([0], ""), ([0, 1, 2, 3], "")]
)
def test_intervals_over_few_seeds_say_how_often_they_hold(seeds, text):
    start = {"domain": "xray", "metric": "cmmd", "value": 0.5, "low": 0.4, "high": 0.7, "seeds": seeds}
    rows = [start | {"method": name} for name in "ab"]
    rows += [start | {"method": "a", "against": "b", "separable": False}]
    shown = tables.ladder_table(rows).splitlines()[-1], charts.difference_chart(rows, ["cmmd"], "xray")
    shown += (charts.trade_chart([*rows, *(r | {"domain": "s"} for r in rows)], "s"),)
    for each in shown:
        titles = [] if isinstance(each, str) else [legend.get_title().get_text() for legend in each.legends]
        words = each if isinstance(each, str) else " ".join([each.get_supxlabel(), *titles])
        assert (text in words and "hold the truth in" in words) if text else "hold" not in words


def test_stored_rows_say_which_profile_measured_them(tiny_config, tmp_path, capsys):
    path = evaluation.save_results(tmp_path / "ladder.json", tiny_config, [{"method": "base", "value": 1.0}])
    assert tables.stored_rows(path, tiny_config) and not capsys.readouterr().out
    [row] = tables.stored_rows(path, Config.setup("sd15"), "dasd ladder --profile sd15")
    assert figures.seeds_note([row]) == "Measured with the profile tiny."
    said = capsys.readouterr().out
    assert "Measured with the profile tiny, not sd15" in said and "dasd ladder --profile sd15" in said
    assert tables.stored_rows(tmp_path / "none.json", tiny_config) == [] and "no " in capsys.readouterr().out
