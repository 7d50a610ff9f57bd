"""Stored result rows as tables: Markdown for a ladder, a data frame for a notebook; a notebook's own rows."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from dasd_utils import evaluation, metrics
from dasd_utils.config import Config, resolve
from dasd_utils.evaluation import ResultRow, interval_text, markdown_table
from dasd_utils.figures import METRICS, is_share, metric_title, seeds_note


def stored_rows(path: str | Path, config: Config, command: str = "") -> list[ResultRow]:
    """Return the rows of a results file of the project; [] where it is missing.

    Where another profile measured them each row has its "profile", and a line with the command is printed.
    """
    where = resolve(path)
    if not where.exists():
        print(f"There is no {path}." + f" To make it: {command}" * bool(command))
        return []
    found = evaluation.load_results(where)
    profile = found["config"].get("profile", config.profile)
    if profile == config.profile:
        return found["rows"]
    own = f" To measure them with {config.profile}: {command}" if command else ""
    print(f"Measured with the profile {profile}, not {config.profile}: {path}.{own}")
    return [row | {"profile": profile} for row in found["rows"]]


def ladder_table(rows: Sequence[ResultRow], metrics: Sequence[str] | None = None) -> str:
    """Return rows as Markdown tables, one a domain: a line per method, a column per metric of METRICS.

    ≈: no significant paired difference to the main method, which the first difference names.
    """
    main = next((row["against"] for row in rows if "against" in row), None)
    key_of = operator.itemgetter("domain", "method", "metric")
    same = {key_of(row) for row in rows if row.get("separable") is False and row["against"] == main}
    found = {key_of(row): row for row in rows if "against" not in row}
    parts = []
    for domain in dict.fromkeys(row["domain"] for row in rows):
        methods = dict.fromkeys(method for place, method, _ in found if place == domain)
        columns = [m for m in metrics or METRICS if any((domain, name, m) in found for name in methods)]
        if not columns:
            continue
        lines = []
        for method in methods:
            keys = [(domain, method, metric) for metric in columns]
            cells = (estimate_text(found[key]) + " ≈" * (key in same) if key in found else "" for key in keys)
            lines.append([method, *cells])
        parts.append(markdown_table([domain, *map(metric_title, columns)], lines))
    return "\n\n".join([*parts, *filter(None, [seeds_note(rows)])])


def estimate_text(row: ResultRow, digits: int | None = None) -> str:
    """Return "value ± half of the interval" of a row, or "value [low, high]" where that passes 0 or 1."""
    digits = METRICS[row["metric"]].decimals if digits is None else digits
    value = round(row["value"], digits) + 0.0  # no -0.0
    half = round((row["high"] - row["low"]) / 2, digits)
    passes = round(value - half, digits) < 0 or round(value + half, digits) > 1
    text = f"{value:.{digits}f} ± {half:.{digits}f}"
    return interval_text(row, digits) if is_share(row) and passes else text


def table(
    rows: Iterable[ResultRow], titles: Mapping[str, str] | None = None, digits: int = 2
) -> pd.DataFrame:
    """Return "value [low, high]" by method and metric, in the rows' order; titles: metric -> its column."""
    rows = [row for row in rows if titles is None or row["metric"] in titles]
    titles = titles or {row["metric"]: row["metric"] for row in rows}
    cells = {(row["method"], row["metric"]): interval_text(row, digits) for row in rows}
    methods = list(dict.fromkeys(method for method, _ in cells))
    present = [name for name in titles if any(name == metric for _, metric in cells)]
    columns = {titles[name]: [cells.get((method, name), "-") for method in methods] for name in present}
    return pd.DataFrame(columns, index=methods)


class Records:
    """Result rows of one domain and one training seed, noted one after the other."""

    def __init__(self, domain: str, seed: int) -> None:
        self.start, self.seed = {"domain": domain}, seed
        self.rows: list[ResultRow] = []

    def note(self, method: str, metric: str, estimate: tuple[float, float, float], n: int) -> ResultRow:
        """Keep (value, low, high) of n samples, and return the row."""
        named = dict(zip(("value", "low", "high"), estimate, strict=True))
        row = {"method": method, **self.start, "metric": metric, **named, "n": n, "seed": self.seed}
        self.rows.append(row)
        return row

    def mean(self, method: str, metric: str, each: Tensor) -> ResultRow:
        """Keep the mean of (n,) with its 95 % interval, and return the row."""
        interval = metrics.bootstrap_interval(each, seed=self.seed, share=is_share({"metric": metric}))
        return self.note(method, metric, (each.mean().item(), *interval), len(each))

    def jackknife(self, method: str, metric: str, statistic: Callable[[Tensor], float], n: int) -> ResultRow:
        """Keep a statistic of n samples with its interval by leaving each out once, and return the row."""
        return self.note(method, metric, metrics.jackknife(statistic, n), n)

    def table(self, about: str, digits: int = 2) -> pd.DataFrame:
        """Return the rows whose metric begins with "<about>: ", a line a method, a column a metric."""
        start = f"{about}: "
        own = (row for row in self.rows if row["metric"].startswith(start))
        return table([row | {"metric": row["metric"].removeprefix(start)} for row in own], digits=digits)
