"""The numbers of a notebook: rows with intervals, as results are stored, and as tables that can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from dasd_utils import metrics

Row = dict[str, Any]


class Records:
    """Rows of one domain and one training seed, noted one after the other."""

    def __init__(self, domain: str, seed: int) -> None:
        self.start, self.seed = {"domain": domain}, seed
        self.rows: list[Row] = []

    def note(
        self, method: str, metric: str, estimate: tuple[float, float, float], n: int, **more: Any
    ) -> Row:
        """Keep (value, low, high) of n samples, and return the row."""
        named = dict(zip(("value", "low", "high"), estimate, strict=True))
        row = {"method": method, **self.start, "metric": metric, **named, "n": n, "seed": self.seed, **more}
        self.rows.append(row)
        return row

    def mean(self, method: str, metric: str, each: Tensor, **more: Any) -> Row:
        """Keep the mean of (n,) with its bootstrap interval, and return the row."""
        interval = metrics.bootstrap_interval(each, seed=self.seed)
        return self.note(method, metric, (each.mean().item(), *interval), len(each), **more)

    def left_out(self, method: str, metric: str, statistic: Callable[[Tensor], float], n: int) -> Row:
        """Keep a statistic of n samples with its interval by leaving each out once, and return the row."""
        return self.note(method, metric, metrics.jackknife(statistic, n), n)

    def table(self, about: str, digits: int = 2) -> pd.DataFrame:
        """Return the rows whose metric begins with "<about>: ", a line a method, a column a metric."""
        start = f"{about}: "
        found = [
            r | {"metric": r["metric"][len(start) :]} for r in self.rows if r["metric"].startswith(start)
        ]
        return table(found, digits=digits)


def table(
    rows: Iterable[Mapping[str, Any]], titles: Mapping[str, str] | None = None, digits: int = 2
) -> pd.DataFrame:
    """Return "value [low, high]" by method and metric, in the rows' order; titles: metric -> its column."""
    rows = [row for row in rows if titles is None or row["metric"] in titles]
    methods, names = (list(dict.fromkeys(row[name] for row in rows)) for name in ("method", "metric"))
    names = names if titles is None else [name for name in titles if name in names]
    said = {
        (r["method"], r["metric"]): f"{r['value']:.{digits}f} [{r['low']:.{digits}f}, {r['high']:.{digits}f}]"
        for r in rows
    }
    columns = {
        (titles or {}).get(name, name): [said.get((method, name), "-") for method in methods]
        for name in names
    }
    return pd.DataFrame(columns, index=methods)
