"""Badges and setup cells: one address, one version, and nothing else changes."""

import ast
import json
import shutil

import nbformat
import pytest

import dasd_utils
from dasd_utils.apps import notebooks
from dasd_utils.config import ROOT, DasdError

NEW = ("https://github.com/somebody/far-domains", "v2.3.4")


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """Return a copy of the repository's notebooks and pyproject.toml with another address and version."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    text = (ROOT / "pyproject.toml").read_text()
    old = notebooks.repository()
    text = text.replace(old.address, NEW[0] + ".git").replace(f'"{old.tag[1:]}"', f'"{NEW[1][1:]}"')
    (root / "pyproject.toml").write_text(text)
    notebooks.write_badges(notebooks.find_notebooks(folder=root / "notebooks"), root)
    return root


def test_a_new_address_is_written_everywhere_and_nothing_else_changes(moved):
    for path in notebooks.find_notebooks():
        before, after = (json.loads((root / "notebooks" / path.name).read_text()) for root in (ROOT, moved))
        assert "dasd-course" not in json.dumps(after)
        titles = ["".join(each["cells"][0].pop("source")) for each in (before, after)]
        setup = "".join([each["cells"][1].pop("source") for each in (before, after)][1])
        assert all(part in setup for part in NEW)
        assert f"somebody/far-domains/blob/{NEW[1]}/notebooks/{path.name})" in titles[1]
        assert notebooks.BADGE.sub("", titles[0]) == notebooks.BADGE.sub("", titles[1])
        assert before == after
    assert notebooks.write_badges(notebooks.find_notebooks(folder=moved / "notebooks"), moved) == []


def test_committed_notebooks_say_what_pyproject_says():
    assert notebooks.repository().tag == f"v{dasd_utils.__version__}"
    old = [path.name for path in notebooks.outdated_badges(notebooks.find_notebooks())]
    assert not old, f"`dasd badges` writes them anew: {old}"


def test_the_setup_cell_is_the_first_code_cell_of_at_most_six_lines():
    cell = notebooks.Repository("https://github.com/a/b", "v1").setup()
    ast.parse(cell)  # no magic: it is read as Python
    assert len(cell.splitlines()) <= 6 and max(map(len, cell.splitlines())) <= 110
    assert notebooks.is_setup(nbformat.v4.new_code_cell(cell))


def test_a_notebook_without_badge_is_named_and_none_is_written(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    good, bad = tmp_path / "00_good.ipynb", tmp_path / "01_bad.ipynb"
    shutil.copy(ROOT / "notebooks" / "00_start.ipynb", good)
    good.write_text(good.read_text().replace("00_start.ipynb)", "00_started.ipynb)"))
    bad.write_text(good.read_text().replace("Open In Colab", "Open"))
    before = good.read_bytes()
    with pytest.raises(DasdError, match=r"01_bad\.ipynb must begin"):
        notebooks.write_badges([good, bad], tmp_path)
    assert good.read_bytes() == before


def test_pyproject_without_address_is_named(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1"\n')
    with pytest.raises(DasdError, match="Repository"):
        notebooks.repository(tmp_path)
