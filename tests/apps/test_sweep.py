"""A sweep is a list of parameters for one notebook; what is there is not run again."""

import pytest
from conftest import dasd, write_notebook

from dasd_utils import evaluation
from dasd_utils.apps import notebooks, workers
from dasd_utils.config import DasdError

CODE = """
import json, pathlib
rows = [{"metric": "sum", "value": a + b, "low": a, "high": b, "n": 2, "seed": 0}]
place = pathlib.Path(output_dir) / "results" / "90_sum.json"
place.parent.mkdir(parents=True, exist_ok=True)
place.write_text(json.dumps({"config": {"profile": profile}, "rows": rows}))
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Return the name of a notebook that adds two parameters."""
    parameters = 'a = 1\nb = 2\noutput_dir = "."\nprofile = "tiny"'
    path = write_notebook(tmp_path / "notebooks" / "90_sum.ipynb", parameters, CODE)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", path.parent)
    monkeypatch.setattr(notebooks.find_notebooks, "__defaults__", (None, path.parent))
    return "90_sum"


def test_lists_as_values_stand_for_each_item_and_a_bad_list_is_refused(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"a": 0}, {"a": [1, 2], "b": ["x", "y"]}]')
    four = [{"a": a, "b": b} for a in (1, 2) for b in "xy"]
    assert workers.read_sweep(path) == [{"a": 0}, *four]
    for text in ("[", "{}", "[]", "[3]", '[{"a": 1}, {"a": [2, 1]}]'):
        path.write_text(text)
        with pytest.raises(DasdError, match=r"is no JSON|must be a list of objects|an entry twice: {'a': 1}"):
            workers.read_sweep(path)


def test_one_notebook_is_meant(tmp_path):
    with pytest.raises(DasdError, match="'0' begins several notebooks"):
        workers.sweep_cells("0", [{"seed": 1}], tmp_path)
    for name in ("01", "solutions"):
        with pytest.raises(DasdError, match=f"{name}.* writes no results"):
            workers.sweep_cells(name, [{"seed": 1}], tmp_path)


def test_cells_are_named_by_parameters_that_the_notebook_has(notebook, tmp_path):
    with pytest.raises(DasdError, match="No notebook has a parameter 'c'"):
        workers.sweep_cells(notebook, [{"a": 1}, {"c": 1}], tmp_path)
    entries = [{"a": 1, "b": 2}, {"a": 2, "b": 2}, {"b": 2, "a": 1}]
    one, two, same = workers.sweep_cells(notebook, entries, tmp_path)
    assert one.folder == same.folder != two.folder
    assert one.command()[:5] == ["notebooks", "--only", notebook, "--output_dir", str(one.folder)]


def test_only_what_is_missing_runs_and_rows_carry_their_parameters(notebook, tmp_path, monkeypatch):
    path, ran = tmp_path / "list.json", []
    path.write_text('[{"a": [1], "b": 10}]')

    def in_this_process(commands, workers, scheduler):
        ran.extend(commands)
        for command in commands:
            dasd(*command)

    monkeypatch.setattr(workers, "run_all", in_this_process)
    words = ["sweep", path, "--notebook", notebook, "--output_dir", tmp_path / "out"]
    assert len(dasd(*words)["rows"]) == len(ran) == 1
    path.write_text('[{"a": [1, 5], "b": 10}]')
    printed = dasd(*words)
    assert [(row["a"], row["b"], row["value"]) for row in printed["rows"]] == [(1, 10, 11), (5, 10, 15)]
    stored = evaluation.load_results(printed["results"])
    assert stored["rows"] == printed["rows"] and stored["config"]["profile"] == "tiny" and len(ran) == 2
