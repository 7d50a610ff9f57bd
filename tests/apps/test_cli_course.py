"""The commands of the course: notebooks by papermill, which are stale, badges."""

import json
import shutil
import sys

import nbformat
import pytest
from conftest import write_notebook

from dasd_utils.apps import notebooks
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import study
from dasd_utils.config import ROOT, DasdError


def test_parameters_are_read_as_json():
    assert study.read_parameters(["-p", "steps", "3", "-p", "name", "x"]) == {"steps": 3, "name": "x"}
    with pytest.raises(DasdError, match="NAME VALUE"):
        study.read_parameters(["-p", "steps"])


DECLARED = 'value = 1\nprofile = "tiny"\noutput_dir = "data/runs/course"'
SHOWN = "import sys\nassert value < 5, 'too large.'\nf'{value} in {output_dir} by {sys.executable}'"
KERNEL = {"name": "conda-env-torch-py", "display_name": "torch"}


@pytest.fixture
def notebook(tmp_path):
    """Return the path of a notebook that shows its parameter `value`, and fails where that is 5 or more."""
    return write_notebook(tmp_path / "notebooks" / "00_small.ipynb", DECLARED, SHOWN)


def test_what_is_no_notebook_and_a_kernel_that_dies_are_named(notebook, tmp_path):
    notebook.write_text(notebook.read_text().replace("assert value", "import os; os._exit(1); assert value"))
    (done,) = notebooks.run_notebooks([notebook], tmp_path / "out", {})
    assert done.error.startswith("00_small.ipynb: its kernel died")
    for text in ("<<<<<<< HEAD", "{}", "[]"):
        notebook.write_text(text)
        with pytest.raises(DasdError, match=r"00_small\.ipynb is no notebook"):
            notebooks.stale(notebook)


def test_a_notebook_runs_with_parameters_and_a_failing_one_names_cell_and_error(notebook, tmp_path):
    (done,) = notebooks.run_notebooks([notebook], tmp_path / "out", {"value": 3})
    assert f"3 in {tmp_path}/out by {sys.executable}" in done.path.read_text()
    assert done.folder == tmp_path / "out" and not done.error and 0.01 < done.peak_gb < 1
    for keep_going in (False, True):
        ran = notebooks.run_notebooks([notebook, notebook], tmp_path, {"value": 7}, keep_going=keep_going)
        assert len(ran) == 1 + keep_going
        assert "00_small.ipynb failed in cell 3 with AssertionError: too large. The exec" in ran[-1].error
    with pytest.raises(DasdError, match="says value = 1"):  # outputs of other values are not stored
        notebooks.run_notebooks([notebook], tmp_path / "stored", {"value": 3}, to_store=True)
    assert not (tmp_path / "stored").exists()


@pytest.mark.parametrize("name", ["00_start", "05_sampling"])
def test_too_few_prompts_are_named_before_anything_is_loaded(name):
    cells = notebooks.load_notebook(ROOT / "notebooks" / f"{name}.ipynb").cells
    check = next(cell.source for cell in cells if "if num_prompts < 2" in cell.source)
    with pytest.raises(DasdError, match="num_prompts is 1"):
        exec(check, {"num_prompts": 1})  # it knows no profile and no config, so it stops before them


@pytest.mark.parametrize("metadata", [{}, {"kernelspec": KERNEL, "language_info": {"name": "py"}}])
def test_what_is_stored_ran_with_the_kernel_of_this_environment_in_a_folder_of_its_own(tmp_path, metadata):
    notebook = write_notebook(tmp_path / "00_small.ipynb", DECLARED, SHOWN, **metadata)
    for folder in ("", "00_small"):
        (old := tmp_path / "out" / folder / "figures" / "old.png").parent.mkdir(parents=True)
        old.write_bytes(b"of an earlier run with other settings")
    (done,) = notebooks.run_notebooks([notebook], tmp_path / "out", {"value": 1}, to_store=True)
    assert done.folder == tmp_path / "out/00_small"
    assert f"1 in {done.folder} by {sys.executable}" in done.path.read_text()
    (figures := tmp_path / "out" / "00_small" / "figures").mkdir(parents=True)
    (figures / "00_new.png").write_bytes(b"of this one")
    (tmp_path / "repo" / "notebooks").mkdir(parents=True)
    notebooks.store_outputs([done], tmp_path / "repo")
    assert [file.name for file in (tmp_path / "repo" / "figures").iterdir()] == ["00_new.png"]
    path = tmp_path / "repo" / "notebooks" / "00_small.ipynb"
    stored = json.loads(path.read_text())
    assert len(stored["cells"]) == 2  # without the injected one
    assert set(stored["metadata"]) == {"kernelspec", "language_info", "dasd"}
    assert stored["metadata"]["kernelspec"]["name"] == "python3"
    assert notebooks.stale(path) == [] and notebooks.faults(path) == []


@pytest.fixture
def course(notebook, monkeypatch):
    """Return `course(*words)`: the exit status of a command in a repository of one small notebook."""
    monkeypatch.setattr(notebooks, "find_notebooks", lambda only=None: [notebook])
    store = notebooks.store_outputs
    monkeypatch.setattr(notebooks, "store_outputs", lambda done: store(done, notebook.parents[1]))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dasd", *words])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code

    return run


def test_missing_packages_are_named(course, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert course("notebooks", "--profile", "tiny") == 1
    assert "papermill is missing here: pip install papermill" in capsys.readouterr().err


def test_only_stale_notebooks_are_run_again(course, notebook, capsys, tmp_path):
    place = ("--profile", "tiny", "--output_dir", str(tmp_path / "out"), "--stale", "--update", "--json")
    assert course("fresh") == 1
    assert "no stamp" in capsys.readouterr().out
    assert course("notebooks", *place) == 0
    assert [row["notebook"] for row in json.loads(capsys.readouterr().out)] == ["00_small"]
    assert course("notebooks", *place[:4]) == 1
    assert "00_small.ipynb is there already: replace it by --force" in capsys.readouterr().err
    assert course("fresh", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"notebook": "00_small", "faults": [], "changed": []}]
    assert course("notebooks", *place) == 0
    assert json.loads(capsys.readouterr().out) == []
    notebook.write_text(notebook.read_text().replace("value < 5", "value < 6"))
    assert course("fresh") == 1
    said = capsys.readouterr()
    assert said.out.strip() == "00_small: its code cells" and "make notebooks" in said.err
    assert course("notebooks", *place, "--force") == 0
    made = nbformat.read(notebook, 4)
    made.metadata["widgets"] = {}  # a fault, which `dasd fresh` lists too
    nbformat.write(made, notebook)
    capsys.readouterr()
    assert course("notebooks", *place, "--force") == 0
    assert [row["notebook"] for row in json.loads(capsys.readouterr().out)] == ["00_small"]


def test_badges_are_checked_and_written(course, tmp_path, monkeypatch, capsys):
    path = tmp_path / "04_training.ipynb"
    shutil.copy(ROOT / "notebooks" / path.name, path)
    path.write_text(path.read_text().replace("/notebooks/04_training", "/notebooks/04_trained"))
    monkeypatch.setattr(notebooks, "find_notebooks", lambda: [path])
    for words, status in ((["--check"], 1), ([], 0), (["--check"], 0)):
        assert (course("badges", *words) or 0) == status
        assert ", ".join(notebooks.repository()) in capsys.readouterr().out
    assert "/notebooks/04_training.ipynb" in path.read_text()
