"""Tables show the rows that they are given, in order, with their intervals."""

import pytest
import torch

from dasd_utils.study import tables
from dasd_utils.study.tables import Records, table


def test_rows_hold_all_that_results_need():
    records = Records("sketch", seed=3)
    row = records.mean("edges", "twin: mae", torch.tensor([0.1, 0.2, 0.3, 0.4]), timestep=50)
    assert row["value"] == pytest.approx(0.25) and row["low"] <= 0.25 <= row["high"]
    assert {"method", "domain", "metric", "n", "seed", "timestep"} <= set(row) and row["n"] == 4
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
