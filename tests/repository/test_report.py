"""Numbers in README and report come from data/results, and both are up to date."""

import importlib.util
import re
from pathlib import Path

import pytest

from dasd_utils import evaluation
from dasd_utils.apps import workers
from dasd_utils.study import ladder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def numbers():
    spec = importlib.util.spec_from_file_location("make_numbers", ROOT / "Report" / "make_numbers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_the_stored_results(numbers):
    found = numbers.blocks()
    assert len(found) == len({(file, name) for file, name, _ in found}) == 6
    for file, name, text in found:
        start, end = numbers.START.format(name), numbers.END.format(name)
        assert f"{start}\n\n{text}\n\n{end}" in (ROOT / file).read_text(encoding="utf8"), (file, name)


def test_report_quotes_numbers_as_they_are_stored(numbers):
    report = (ROOT / "Report" / "main.tex").read_text(encoding="utf8")
    written = numbers.latex_macros(report)
    assert written.count("csname res:") > 20
    row = next(r for r in numbers.rows("ladder") if (r["method"], r["metric"]) == ("base", "cmmd"))
    half = (row["high"] - row["low"]) / 2
    assert f"ladder/base/{row['domain']}/cmmd\\endcsname{{${row['value']:.2f}\\pm{half:.2f}$}}" in written
    power = {
        "metric": "prompts_needed",
        "method": "base",
        "domain": "satellite",
        "seeds": 3,
        "against": "DASD",
    }
    (needed,) = (row["value"] for row in numbers.rows("ladder") if power.items() <= row.items())
    assert f"power/base/satellite/3\\endcsname{{{needed:,}}}" in written  # not that of another study
    with pytest.raises(SystemExit, match="does not hold: ladder/DASD/moon/cmmd"):
        numbers.latex_macros(report + r"\res{ladder/DASD/moon/cmmd}")


def test_the_report_quotes_only_differences_that_the_ladder_would_compare_now():
    report = (ROOT / "Report" / "main.tex").read_text(encoding="utf8")
    quoted = re.findall(r"\\res\{ladder/([^/}]+?) - ([^/}]+)/", report)
    found = {method.name: {method.after, ladder.DASD} for method in ladder.METHODS}
    assert len(quoted) > 10
    assert [pair for pair in quoted if pair[1] not in found[pair[0]]] == []


def test_the_report_quotes_only_forms_that_the_sweep_would_train_now(numbers):
    report = (ROOT / "Report" / "main.tex").read_text(encoding="utf8")
    quoted = re.findall(r"\\res\{sweep/(?!count/)(?:own/)?([^}]+)/[^/}]+/[^/}]+\}", report)
    entries = workers.read_sweep(ROOT / "data" / "configs" / "alignment_sweep.json")
    forms = {"/".join(str(entry[name]) for name in numbers.SWEPT if name in entry) for entry in entries}
    assert len(set(quoted)) > 5 and set(quoted) <= forms


def test_every_source_that_the_report_cites_is_in_its_list():
    report = ROOT / "Report"
    cited = re.findall(r"\\cite\{([^}]+)\}", (report / "main.tex").read_text(encoding="utf8"))
    listed = set(re.findall(r"@\w+\{([^,]+),", (report / "reference.bib").read_text(encoding="utf8")))
    assert {key.strip() for keys in cited for key in keys.split(",")} <= listed


def test_every_picture_of_readme_and_report_is_there():
    readme = re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", (ROOT / "README.md").read_text(encoding="utf8"))
    report = re.findall(r"\\includegraphics.*?\{([^}]+)\}", (ROOT / "Report" / "main.tex").read_text())
    for path in [*readme, *(f"figures/{name}" for name in report)]:
        assert (ROOT / path).is_file(), path


def test_every_row_carries_its_uncertainty():
    for path in (ROOT / "data" / "results").glob("*.json"):
        for row in evaluation.load_results(path)["rows"]:
            assert "seed" in row or "seeds" in row, (path.name, row)
            if row["metric"] != "prompts_needed":  # a plan, not a measurement
                inside = row["low"] - 1e-12 <= row["value"] <= row["high"] + 1e-12  # a zero is rounded
                assert inside and row["n"] > 0, (path.name, row)


def test_readme_says_what_the_shipped_run_shows(numbers):
    found = {(row["metric"], row["domain"]): row for row in numbers.rows("pretrain")}
    shown = [found["adapted_attribute_accuracy", domain]["value"] for domain in ("satellite", "xray")]
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    assert "[{:.2f} and {:.2f}](data/tiny-sd/README.md)".format(*shown) in readme
    counts = [row for (name, _), row in found.items() if name.startswith("adapted: count")]
    right = sum(row["value"] * row["n"] for row in counts) / sum(row["n"] for row in counts)
    assert 0.45 < right < 0.55 and "half of the counts" in readme
    assert 0.55 < found["adapted: bridge: river", "satellite"]["value"] < 0.65
    assert "two of five bridges" in readme
    assert (
        0.5 < found["adapted: scene: nodule", "xray"]["value"] < 0.6
        and "nearly half of the nodules" in readme
    )
