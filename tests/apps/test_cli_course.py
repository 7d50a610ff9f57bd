"""The course as a command and as stored: notebooks by papermill, and which are stale."""

import json
import sys
from pathlib import Path

import freshness
import pytest
from conftest import write_notebook

from dasd_utils.apps import notebooks
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import study
from dasd_utils.config import ROOT, DasdError


def test_parameters_are_read_as_json(tmp_path, monkeypatch):
    assert study.read_parameters(["-p", "steps", "3", "-p", "name", "x"]) == {"steps": 3, "name": "x"}
    with pytest.raises(DasdError, match="NAME VALUE"):
        study.read_parameters(["-p", "steps"])
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text("{}")
    here = study.read_parameters(["-p", "config", "mine.json"])
    assert here == {"config": str(Path.cwd() / "mine.json")}  # the kernel runs in another folder
    elsewhere = {"config": "data/configs/ten_shots.json"}  # in the repository, where it is looked up next
    assert study.read_parameters(["-p", "config", elsewhere["config"]]) == elsewhere
    assert study.read_parameters(["-p", "config", '{"seed": 1}']) == {"config": {"seed": 1}}


def test_what_a_command_sets_itself_is_no_parameter(notebook, tmp_path):
    with pytest.raises(DasdError, match="set it by --output_dir"):
        notebooks.run_notebooks([notebook], tmp_path, {"output_dir": "elsewhere"})
    for entry in ("", "99"):
        with pytest.raises(DasdError, match=f"No notebook starts with '{entry}'"):
            notebooks.find_notebooks(["00", entry], notebook.parent)


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
            notebooks.load_notebook(notebook)
    with pytest.raises(DasdError, match=r"nowhere\.ipynb is no notebook: .*No such file"):
        notebooks.load_notebook(tmp_path / "nowhere.ipynb")


def test_a_notebook_runs_with_parameters_and_a_failing_one_names_cell_and_error(notebook, tmp_path):
    (done,) = notebooks.run_notebooks([notebook], tmp_path / "out", {"value": 3})
    assert f"3 in {tmp_path}/out by {sys.executable}" in done.path.read_text()
    assert not done.error and 0.01 < done.peak_gb < 1
    for keep_going in (False, True):
        ran = notebooks.run_notebooks([notebook, notebook], tmp_path, {"value": 7}, keep_going=keep_going)
        assert len(ran) == 1 + keep_going
        assert "00_small.ipynb failed in cell 3 with AssertionError: too large. The exec" in ran[-1].error


@pytest.mark.parametrize("name", ["00_start", "05_sampling"])
def test_too_few_prompts_are_named_before_anything_is_loaded(name):
    cells = notebooks.load_notebook(ROOT / "notebooks" / f"{name}.ipynb").cells
    check = next(cell.source for cell in cells if "if num_prompts < 2" in cell.source)
    with pytest.raises(DasdError, match="num_prompts is 1"):
        exec(check, {"num_prompts": 1})  # it knows no profile and no config, so it stops before them


@pytest.mark.parametrize("metadata", [{}, {"kernelspec": KERNEL, "language_info": {"name": "py"}}])
def test_what_is_stored_ran_with_the_kernel_of_this_environment_in_a_folder_of_its_own(tmp_path, metadata):
    draws = "from pathlib import Path\n(folder := Path(output_dir) / 'figures').mkdir(parents=True)\n"
    draws += "(folder / '00_new.png').write_bytes(b'of this one')\n"
    notebook = write_notebook(tmp_path / "00_small.ipynb", DECLARED, draws + SHOWN, **metadata)
    (old := tmp_path / "out" / "00_small" / "figures" / "old.png").parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier run with other settings")
    (tmp_path / "repo" / "notebooks").mkdir(parents=True)
    assert freshness.renew([notebook], tmp_path / "out", tmp_path / "repo") == ""
    assert [file.name for file in (tmp_path / "repo" / "figures").iterdir()] == ["00_new.png"]
    path = tmp_path / "repo" / "notebooks" / "00_small.ipynb"
    assert f"1 in {tmp_path}/out/00_small by {sys.executable}" in path.read_text()
    stored = json.loads(path.read_text())
    assert len(stored["cells"]) == 2  # without the injected one
    assert set(stored["metadata"]) == {"kernelspec", "language_info", "dasd"}
    assert stored["metadata"]["kernelspec"]["name"] == "python3"
    assert freshness.stale(path, tmp_path / "repo") == [] and freshness.faults(path) == []


@pytest.fixture
def course(notebook, monkeypatch):
    """Return `course(*words)`: the exit status of a command in a repository of one small notebook."""
    monkeypatch.setattr(notebooks, "find_notebooks", lambda only=None: [notebook])

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


def test_only_stale_notebooks_are_run_again(notebook, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(notebooks, "find_notebooks", lambda only=None: [notebook])

    def asked(*words):
        monkeypatch.setattr(sys, "argv", ["freshness.py", *words, "--output_dir", str(tmp_path / "out")])
        return freshness.main(notebook.parents[1]), capsys.readouterr().out

    status, said = asked()
    assert status == 1 and "no stamp" in said
    assert asked("--renew")[0] == 0 and asked()[0] == 0
    before = notebook.stat().st_mtime_ns
    assert asked("--renew")[0] == 0 and notebook.stat().st_mtime_ns == before
    assert asked("--renew", "--all")[0] == 0 and notebook.stat().st_mtime_ns > before
    notebook.write_text(notebook.read_text().replace("value < 5", "value < 0"))
    status, said = asked()
    assert status == 1 and said.startswith("00_small: its code cells")
    assert asked("--renew")[0] == 1  # it fails, and stays stale
    assert asked()[0] == 1


def test_a_copy_that_is_there_stays(course, notebook, tmp_path, capsys):
    place = ("--profile", "tiny", "--output_dir", str(tmp_path / "out"), "--json")
    assert (course("notebooks", *place) or 0) == 0
    assert [row["notebook"] for row in json.loads(capsys.readouterr().out)] == ["00_small"]
    assert course("notebooks", *place) == 1
    assert "00_small.ipynb is there already: replace it by --force" in capsys.readouterr().err
