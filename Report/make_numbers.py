"""Write what the report and the README quote, from data/results, and draw the method: nothing by hand.

Usage: python Report/make_numbers.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from dasd_utils import diagram, evaluation, figures

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
START, END = (
    "<!-- results: written by Report/make_numbers.py from data/results -->",
    "<!-- end of results -->",
)
METHODS = {"base": "Base", "base + style words": "Style", "DASD": "Dasd"}
DOMAINS = {"satellite": "Satellite", "xray": "Xray"}
METRIC = {
    "clip_score": "Clip",
    "clip_floor": "Floor",
    "attribute_accuracy": "Attributes",
    "cmmd": "Cmmd",
    "kid": "Kid",
}


def rows(name: str) -> list[dict]:
    """Return the rows of data/results/<name>.json."""
    return evaluation.load_results(RESULTS / f"{name}.json")["rows"]


def readme_block() -> str:
    """Return the results table of the README."""
    judged = [r for r in rows("06_evaluation") if r["method"] in METHODS]
    found = next(r for r in rows("05_classifier") if r["metric"] == "accuracy")
    counts = sorted({r["n"] for r in judged})
    sizes = " and ".join(map(str, counts))
    return (
        f"{evaluation.table(judged)}\n\n"
        f"n = {sizes} images a method and domain, seed {judged[0]['seed']}. Prompt classifier: accuracy "
        f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] on {found['n']} labelled prompts."
    )


def latex_macros() -> str:
    r"""Return one \newcommand per number: \SatelliteDasdCmmd is "value [low, high]"."""
    lines = []
    for row in rows("06_evaluation"):
        if row["method"] in METHODS and row["metric"] in METRIC:
            name = DOMAINS[row["domain"]] + METHODS[row["method"]] + METRIC[row["metric"]]
            digits = evaluation.METRICS[row["metric"]][1]
            text = f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
            lines.append(rf"\newcommand{{\{name}}}{{{text}}}")
            lines.append(rf"\newcommand{{\{name}N}}{{{row['n']}}}")
    found = next(r for r in rows("05_classifier") if r["metric"] == "accuracy")
    text = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    return "\n".join([*lines, rf"\newcommand{{\ClassifierAccuracy}}{{{text}}}"]) + "\n"


def main() -> None:
    """Write both files, or only check that the README is up to date."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf8")
    head, rest = text.split(START)
    fresh = f"{head}{START}\n\n{readme_block()}\n\n{END}{rest.split(END)[1]}"
    if "--check" in sys.argv:
        sys.exit("README.md is out of date: run python Report/make_numbers.py" if fresh != text else 0)
    readme.write_text(fresh, encoding="utf8")
    (ROOT / "Report" / "numbers.tex").write_text(latex_macros(), encoding="utf8")
    figures.save(diagram.method_diagram(), ROOT / "figures" / "method.png", dpi=110)


if __name__ == "__main__":
    main()
