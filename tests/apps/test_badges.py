"""Badges and setup cells: one address, one version, and nothing else changes."""

import ast
import json
import re
import runpy
import shutil
import sys

import badges
import nbformat
import pytest

import dasd_utils
from dasd_utils.apps import notebooks
from dasd_utils.config import ROOT, DasdError

NEW = ("https://github.com/somebody/far-domains", "v2.3.4")


def test_a_new_address_is_written_everywhere_and_nothing_else_changes(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    address, tag = badges.repository()
    text = (ROOT / "pyproject.toml").read_text().replace(address, NEW[0] + ".git")
    (tmp_path / "pyproject.toml").write_text(text.replace(f'"{tag[1:]}"', f'"{NEW[1][1:]}"'))
    paths = notebooks.find_notebooks(folder=tmp_path / "notebooks")
    assert badges.renew_badges(paths, tmp_path) == paths
    for path in notebooks.find_notebooks():
        before, after = (json.loads((at / "notebooks" / path.name).read_text()) for at in (ROOT, tmp_path))
        assert "dasd-course" not in json.dumps(after)
        titles, setups = (["".join(one["cells"][n].pop("source")) for one in (before, after)] for n in (0, 1))
        assert f'"{NEW[0]}", "{NEW[1]}", "dasd-{NEW[1]}"\n' in setups[1]
        assert f"somebody/far-domains/blob/{NEW[1]}/notebooks/{path.name})" in titles[1]
        for old, new in (titles, setups):
            old = old.replace(address.split(".com/")[1], NEW[0].split(".com/")[1])
            assert old.replace(tag, NEW[1]) == new
        assert before == after
    assert badges.renew_badges(paths, tmp_path) == []


def test_committed_notebooks_say_what_pyproject_says():
    assert badges.repository()[1] == f"v{dasd_utils.__version__}"
    old = [path.name for path in badges.renew_badges(notebooks.find_notebooks(), write=False)]
    assert not old, f"`python benchmarks/badges.py` writes them anew: {old}"


def test_a_line_that_is_no_longer_true_is_written_anew(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path, (name, sentence) = tmp_path / "04_training.ipynb", ("04_training", badges.costs()["04_training"])
    text = (ROOT / "notebooks" / path.name).read_text()
    assert re.fullmatch(
        r"Time: with `tiny` .* min and .* GB on L4 or .* on T4, estimated from operation counts\.", sentence
    )
    path.write_text(text.replace("GB on L4", "GB on L4, or 7 GB"))
    assert badges.renew_badges([path], tmp_path) == [path] and path.read_text() == text
    path.write_text(text.replace("Time: with", "It takes"))
    with pytest.raises(DasdError, match=f"first cell of {name}.ipynb must have the line: Time: with `tiny`"):
        badges.renew_badges([path], tmp_path)


def test_the_setup_cell_is_the_same_everywhere_and_of_at_most_six_lines():
    found = [nbformat.read(path, 4).cells[1] for path in notebooks.find_notebooks()]
    assert all(notebooks.is_setup(cell) for cell in found)
    (source,) = {cell.source for cell in found}
    ast.parse(source)  # no magic: it is read as Python
    assert len(source.splitlines()) <= 6 and max(map(len, source.splitlines())) <= 110


@pytest.mark.parametrize("part", ["https://colab.research.google.com/github", "address, version, folder"])
def test_a_notebook_without_badge_or_setup_is_named_and_none_is_written(tmp_path, part):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    good, bad = tmp_path / "00_good.ipynb", tmp_path / "02_bad.ipynb"
    text = (ROOT / "notebooks" / "00_start.ipynb").read_text()
    good.write_text(text.replace("00_start.ipynb)", "00_started.ipynb)"))
    bad.write_text(text.replace(part, "none"))
    before = good.read_bytes()
    with pytest.raises(DasdError, match=r"02_bad\.ipynb must begin"):
        badges.renew_badges([good, bad], tmp_path)
    assert good.read_bytes() == before


def test_the_script_checks_and_writes(tmp_path, monkeypatch, capsys):
    path = tmp_path / "04_training.ipynb"
    shutil.copy(ROOT / "notebooks" / path.name, path)
    path.write_text(path.read_text().replace("/notebooks/04_training", "/notebooks/04_trained"))
    old = path.read_text()
    monkeypatch.setattr(notebooks, "find_notebooks", lambda: [path])
    for words, status in ((["--check"], 1), ([], 0), (["--check"], 0)):
        monkeypatch.setattr(sys, "argv", ["badges.py", *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(badges.__file__, run_name="__main__")
        assert end.value.code == status and ", ".join(badges.repository()) in capsys.readouterr().out
        assert (path.read_text() == old) == (status == 1)  # checking writes nothing
    assert "/notebooks/04_training.ipynb" in path.read_text()
