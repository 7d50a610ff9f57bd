"""Stamps: code, what it reaches and the data it names make outputs stale; prose does not."""

import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dasd_utils.apps import notebooks
from dasd_utils.config import ROOT, DasdError

USED = '''"""Docs."""
from dasd_utils.pack import inner


def f(x):
    """Say."""
    return x  # why
'''
INNER = """from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dasd_utils import typed


def g():
    from dasd_utils import late

    return late, "dasd_utils.started", "data/weights"
"""
MODULES = {
    "__init__.py": '_HOME = {"Published": "published"}\n',
    "used.py": USED,
    "pack/__init__.py": "",
    "pack/inner.py": INNER,
    **{f"{name}.py": "VALUE = 1\n" for name in ("late", "unused", "typed", "started", "published")},
}
REACHED = ("__init__.py", "used.py", "pack/__init__.py", "pack/inner.py", "late.py", "started.py")
CODE = """from dasd_utils import used
names = ("speed",)
rows = [f"data/results/bench_{name}.json" for name in names]"""


@pytest.fixture
def repository(tmp_path):
    """Return a small repository whose notebook is fresh."""
    for name, text in MODULES.items():
        path = tmp_path / "dasd_utils" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in (
        "weights/a.bin",
        "weights/README.md",
        "results/bench_speed.json",
        "results/bench_other.json",
    ):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("1")
    setup = notebooks.Repository("https://github.com/a/b", "v1").setup()
    cells = [new_markdown_cell("# Title"), new_code_cell(setup), new_code_cell(CODE)]
    for number, cell in enumerate(cells[1:], 1):
        cell.execution_count = number
    notebook = new_notebook(cells=cells)
    notebook.metadata["dasd"] = notebooks.stamp(notebook, tmp_path)
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "00_small.ipynb")
    return tmp_path


def stale(root):
    return notebooks.stale(root / "notebooks" / "00_small.ipynb", root)


def test_a_stamp_holds_what_the_notebook_reaches_and_no_more(repository):
    assert stale(repository) == []
    made = nbformat.read(repository / "notebooks/00_small.ipynb", as_version=4).metadata["dasd"]
    assert made["package"].keys() == {f"dasd_utils/{name}" for name in REACHED}
    assert made["data"].keys() == {"data/weights", "data/results/bench_speed.json"}


@pytest.mark.parametrize(
    ("name", "before", "after", "changed"),
    [
        ("dasd_utils/used.py", "return x", "return x + 1", ["dasd_utils/used.py"]),
        ("dasd_utils/late.py", "1", "2", ["dasd_utils/late.py"]),
        ("dasd_utils/started.py", "1", "2", ["dasd_utils/started.py"]),
        ("dasd_utils/pack/inner.py", "weights", "other", ["dasd_utils/pack/inner.py", "data/weights"]),
        ("data/weights/a.bin", "1", "2", ["data/weights"]),
        ("data/results/bench_speed.json", "1", "2", ["data/results/bench_speed.json"]),
        (
            "notebooks/00_small.ipynb",
            '(\\"speed',
            '(\\"slow',
            ["its code cells", "data/results/bench_speed.json"],
        ),
        ("dasd_utils/used.py", "Docs", "More docs", []),
        ("dasd_utils/used.py", "Say", "Tell", []),
        ("dasd_utils/used.py", "# why", "# because", []),
        ("dasd_utils/used.py", "return x  #", "return (\n        x\n    )  #", []),
        ("dasd_utils/unused.py", "1", "2", []),
        ("dasd_utils/typed.py", "1", "2", []),
        ("data/weights/README.md", "1", "2", []),
        ("data/results/bench_other.json", "1", "2", []),
        ("notebooks/00_small.ipynb", "# Title", "# Another title", []),
        ("notebooks/00_small.ipynb", '\\"v1\\"', '\\"v2\\"', []),  # the setup cell, which acts in Colab alone
    ],
)
def test_code_and_data_make_it_stale_and_prose_does_not(repository, name, before, after, changed):
    path = repository / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    assert stale(repository) == changed


def test_a_new_module_that_is_imported_is_named(repository):
    (repository / "dasd_utils/new.py").write_text("VALUE = 1\n")
    with (repository / "dasd_utils/late.py").open("a") as file:
        file.write("import dasd_utils.new\n")
    assert stale(repository) == ["dasd_utils/late.py", "dasd_utils/new.py"]


def test_a_published_name_reaches_the_module_that_holds_it(repository):
    reached = notebooks.reached_modules([notebooks.facts("from dasd_utils import Published")], repository)
    assert reached.keys() == {"dasd_utils/__init__.py", "dasd_utils/published.py"}


def test_what_a_whole_run_would_not_leave_is_named(repository):
    path = repository / "notebooks" / "00_small.ipynb"
    assert notebooks.faults(path) == []
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["widgets"] = {}
    notebook.cells[1].execution_count = 7
    notebook.cells[2].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    nbformat.write(notebook, path)
    assert notebooks.faults(path) == [
        "widget states",
        "execution counts out of order: [7, 2]",
        "an error in code cell 2",
    ]
    del notebook.metadata["dasd"]
    nbformat.write(notebook, path)
    assert stale(repository) == ["no stamp: its outputs are not of a whole run"]


def test_magic_is_refused():
    with pytest.raises(DasdError, match="magic"):
        notebooks.facts("%matplotlib inline")


def test_the_package_itself_is_followed(tmp_path):
    shutil.copytree(ROOT / "dasd_utils", tmp_path / "dasd_utils")
    cells = [notebooks.facts("from dasd_utils import training")]
    before = notebooks.reached_modules(cells, tmp_path)
    assert {"dasd_utils/papers/domainstudio.py", "dasd_utils/profiles.py"} <= before.keys()
    assert "dasd_utils/apps/cli/main.py" not in before
    path = tmp_path / "dasd_utils" / "losses.py"
    path.write_text(path.read_text().replace("def mmd(", "def mmd_(", 1))
    after = notebooks.reached_modules(cells, tmp_path)
    assert [name for name in after if after[name].hash != before[name].hash] == ["dasd_utils/losses.py"]


@pytest.mark.parametrize("path", notebooks.find_notebooks(), ids=lambda path: path.stem)
def test_committed_outputs_were_made_by_the_committed_code(path):
    changed = notebooks.faults(path) + notebooks.stale(path)
    assert not changed, (
        f"{path.name}: {', '.join(changed)}. `make notebooks` renews all notebooks, "
        "`dasd notebooks --profile tiny --stale --update` those that need it."
    )


def test_of_a_run_its_manifest_counts_and_nothing_that_lies_beside(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"files": {}}')
    before = notebooks._content(folder)
    (folder / "evaluation.json").write_text("{}")
    assert notebooks._content(folder) == before
    (folder / "manifest.json").write_text('{"files": {"a": 1}}')
    assert notebooks._content(folder) != before


def test_files_of_the_machine_are_no_data(tmp_path):
    (tmp_path / "a.bin").write_text("1")
    before = notebooks._content(tmp_path)
    (tmp_path / ".DS_Store").write_text("finder")
    assert notebooks._content(tmp_path) == before
    (tmp_path / "b.bin").write_text("1")
    assert notebooks._content(tmp_path) != before
