"""Numbers in README and report come from data/results, and both are up to date."""

import importlib.util
import re
from pathlib import Path

import pytest

from dasd_utils import evaluation

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def numbers():
    spec = importlib.util.spec_from_file_location("make_numbers", ROOT / "Report" / "make_numbers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_table_is_the_stored_result(numbers):
    assert numbers.readme_block() in (ROOT / "README.md").read_text(encoding="utf8")


def test_tables_of_speed_are_the_stored_results(numbers):
    assert numbers.speed_block() in (ROOT / "README.md").read_text(encoding="utf8")


def test_card_table_is_the_stored_result(numbers):
    assert numbers.card_block() in (ROOT / "data/tiny-sd/README.md").read_text(encoding="utf8")


def test_report_uses_only_numbers_that_exist(numbers):
    made = set(re.findall(r"\\newcommand\{\\(\w+)\}", numbers.latex_macros()))
    text = (ROOT / "Report" / "main.tex").read_text(encoding="utf8")
    used = set(re.findall(r"\\((?:Satellite|Xray|Classifier)\w+)", text))
    assert used and used <= made


def test_every_picture_of_readme_and_report_is_there():
    readme = re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", (ROOT / "README.md").read_text(encoding="utf8"))
    report = re.findall(r"\\includegraphics.*?\{([^}]+)\}", (ROOT / "Report" / "main.tex").read_text())
    for path in [*readme, *(f"figures/{name}" for name in report)]:
        assert (ROOT / path).is_file(), path


def test_every_row_carries_its_uncertainty():
    for path in (ROOT / "data" / "results").glob("*.json"):
        for row in evaluation.load_results(path)["rows"]:
            assert row["low"] <= row["value"] <= row["high"], (path.name, row)
            assert row["n"] > 0 and "seed" in row, (path.name, row)
