"""Stamps: the notebook's code, the rooms it reaches and the data it names make it stale; prose does not."""

import functools
import re
import shutil
import sys

import freshness
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dasd_utils.apps import notebooks
from dasd_utils.config import ROOT, DasdError

USED = '''"""Docs."""
from dasd_utils.runtime import inner


def f(x):
    """Say."""
    return x  # why
'''
INNER = """from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dasd_utils import typed


def g():
    from dasd_utils import toyworld

    return toyworld, "dasd_utils.apps.started", "data/weights"
"""
OTHERS = ["toyworld/__init__", "apps/started", "apps/unused", "papers/domainstudio", "typed/only"]
FILES = {
    "dasd_utils/__init__.py": "",
    "dasd_utils/used.py": USED,
    "dasd_utils/runtime/inner.py": INNER,
    **{f"dasd_utils/{name}.py": "VALUE = 1\n" for name in (*OTHERS, "study/charts")},
    "dasd_utils/toyworld/words.json": '{"one": ["ship"]}',
    "data/weights/a.bin": "1",
    "data/weights/README.md": "1",
    "data/results/bench_speed.json": "1",
    "data/results/bench_other.json": "1",
}
CODE = 'from dasd_utils import used\nrows = "data/results/bench_speed.json"'
SETUP = 'import sys\nif "google.colab" in sys.modules:\n    version = "v1"'


@pytest.fixture
def repository(tmp_path):
    """Return a small repository whose notebook is fresh."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cells = [new_code_cell(source, execution_count=n) for n, source in enumerate((SETUP, CODE), 1)]
    notebook = new_notebook(
        cells=[new_markdown_cell("# Title"), *cells], metadata={"language_info": {"name": "python"}}
    )
    notebook.metadata["dasd"] = freshness.stamp(notebook, tmp_path)
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "00_small.ipynb")
    return tmp_path


def stale(root):
    return freshness.stale(root / "notebooks" / "00_small.ipynb", root)


def test_a_stamp_holds_what_the_notebook_reaches_and_no_more(repository):
    assert stale(repository) == []
    made = nbformat.read(repository / "notebooks/00_small.ipynb", 4).metadata["dasd"]
    assert made["rooms"].keys() == {"core", "runtime", "toyworld", "apps/started"}
    assert made["data"].keys() == {"data/weights", "data/results/bench_speed.json"}


CHANGES = [  # of a file, one text by another; what is said to have changed
    ("dasd_utils/used.py", "return x", "return x + 1", ["core"]),
    ("dasd_utils/toyworld/__init__.py", "1", "2", ["toyworld"]),
    ("dasd_utils/toyworld/words.json", "ship", "boat", ["toyworld"]),
    ("dasd_utils/apps/started.py", "1", "2", ["apps/started"]),
    ("dasd_utils/runtime/inner.py", "weights", "other", ["runtime", "data/weights"]),
    ("dasd_utils/used.py", "runtime import inner", "study import charts",
     ["apps/started", "core", "runtime", "study", "toyworld", "data/weights"]),
    ("data/weights/a.bin", "1", "2", ["data/weights"]),
    ("data/results/bench_speed.json", "1", "2", ["data/results/bench_speed.json"]),
    ("notebooks/00_small.ipynb", "speed.json\\", "slow.json\\",
     ["its code cells", "data/results/bench_speed.json"]),
    ("dasd_utils/used.py", "Docs", "More docs", []),
    ("dasd_utils/used.py", "Say", "Tell", []),
    ("dasd_utils/used.py", "# why", "# because", []),
    ("dasd_utils/used.py", "return x  #", "return (\n        x\n    )  #", []),
    ("dasd_utils/apps/unused.py", "1", "2", []),
    ("dasd_utils/papers/domainstudio.py", "1", "2", []),
    ("dasd_utils/typed/only.py", "1", "2", []),
    ("data/weights/README.md", "1", "2", []),
    ("data/results/bench_other.json", "1", "2", []),
    ("notebooks/00_small.ipynb", "# Title", "# Another title", []),
    ("notebooks/00_small.ipynb", '\\"v1\\"', '\\"v2\\"', []),  # the setup cell, which acts in Colab alone
]  # fmt: skip


@pytest.mark.parametrize(("name", "before", "after", "changed"), CHANGES)
def test_code_and_data_make_it_stale_and_prose_does_not(repository, name, before, after, changed):
    path = repository / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    assert stale(repository) == changed


@pytest.mark.parametrize(("code", "counts"), [("checkpoints.find_trained(config)", True), ("config", False)])
def test_the_shipped_run_counts_where_a_cell_loads_it(repository, code, counts):
    (repository / freshness.SHIPPED).mkdir()
    (repository / freshness.SHIPPED / "manifest.json").write_text("{}")
    cells = [new_code_cell(f'profile = "{freshness.SHIPPED}"\n{code}')]
    made = freshness.stamp(new_notebook(cells=cells), repository)
    assert (freshness.SHIPPED in made["data"]) is counts


def test_what_a_complete_run_would_not_leave_is_named(repository):
    path = repository / "notebooks" / "00_small.ipynb"
    assert freshness.faults(path) == []
    notebook = nbformat.read(path, 4)
    notebook.metadata["widgets"] = {}
    notebook.cells[1].execution_count = 7
    notebook.cells[2].outputs = [new_output("error", ename="E", evalue="", traceback=[])]
    del notebook.metadata["dasd"]
    nbformat.write(notebook, path)
    wrong = ["widget states", "execution counts out of order: [7, 2]", "an error in code cell 2"]
    assert freshness.faults(path) == wrong
    assert stale(repository) == ["no stamp: its outputs are not of a complete run"]


def test_the_command_lists_what_is_stale_and_renews_it(repository, monkeypatch, capsys, tmp_path):
    path = repository / "notebooks" / "00_small.ipynb"
    asked = []
    monkeypatch.setattr(notebooks, "find_notebooks", lambda names: asked.append(names) or [path])

    def said(*words):
        monkeypatch.setattr(sys, "argv", ["freshness.py", "--output_dir", f"{tmp_path}/out", *words])
        return freshness.main(repository), *capsys.readouterr()

    assert said() == (0, "0 of 1 notebooks are to be run again: python tests/freshness.py --renew\n", "")
    notebook = nbformat.read(path, 4)
    notebook.metadata["widgets"] = {}
    nbformat.write(notebook, path)
    status, listed, _ = said("00")
    assert status == 1 and listed.startswith("00_small: widget states\n1 of 1 ") and asked == [None, ["00"]]

    def run(paths, folder, parameters, error=""):
        (folder / "results").mkdir(parents=True)
        (folder / "results" / "00_small.json").write_text("made")
        return [notebooks.Executed(shutil.copy(path, folder) and folder / path.name, 1.0, 1.0, error)]

    monkeypatch.setattr(notebooks, "run_notebooks", functools.partial(run, error="cell 2 failed"))
    assert said("--renew") == (1, "", "cell 2 failed") and freshness.faults(path)
    monkeypatch.setattr(notebooks, "run_notebooks", run)
    assert said("--renew") == (0, "", "") and not freshness.faults(path)
    assert (repository / "data/results/00_small.json").read_text() == "made"


def test_magic_is_refused():
    with pytest.raises(DasdError, match="magic lines"):
        freshness.read_code("x = 1\n%matplotlib inline")


ALL = "00 01 02 03 04 05 06 07 08 09 10 11 12 so"
REACHED = {
    "core": ALL,
    "runtime": ALL,
    "toyworld": ALL,
    "study": "05 08 09 10 11 12 so",
    "papers/domainstudio": "08 so",
    "papers/prior_images": "08 10 so",  # found by the core too, for source images that are generated
    "papers/indomain": "09",  # named by its rows of the ladder alone
    "papers/text_free": "09",
    "papers/editing": "09 10 so",
    "papers/diffusionclip": "10 so",
    "apps/animation": "01 04 05 09 12",
    "apps/monitor": "04",
    "apps/playground": "05",
}


def test_the_notebooks_reach_the_rooms_that_they_use():
    rooms = {path.stem[:2]: freshness.stamp(notebooks.load_notebook(path))["rooms"]
             for path in notebooks.find_notebooks()}  # fmt: skip
    names = {name for reached in rooms.values() for name in reached}
    assert {name: " ".join(n for n in rooms if name in rooms[n]) for name in names} == REACHED
    sources = {name: room.hash for name, room in freshness.rooms_of().items()}
    assert {"apps/cli", "pretrain"} <= sources.keys() - names


@pytest.mark.parametrize(("source", "reached"), [
    ('Config.setup("tiny", method="indomain")', {"indomain", "text_free"}),
    ('ladder.find_methods([f"DomainStudio, {title}"])', {"domainstudio", "prior_images"}),
    ("Config.setup(text_free=True)", {"text_free"}),
    ('Config.load("data/configs/diffusionclip.json")', {"diffusionclip", "editing", "prior_images"}),
    ('Calibration(7.0, 30, "ddim", "decoupled")', set()),
])  # fmt: skip
def test_papers_are_reached_by_the_names_that_the_core_finds_them_by(source, reached):
    found = freshness.reached_rooms(freshness.read_code(source))
    assert {name.removeprefix("papers/") for name in found if name.startswith("papers/")} == reached


def test_every_paper_that_the_core_asks_for_by_name_is_known():
    core = "".join(path.read_text() for path in (ROOT / "dasd_utils").glob("*.py"))
    asked = re.findall(r"""paper\(["'](\w+)["']\)""", core)
    assert asked and {f"papers/{name}" for name in asked} <= set(freshness.NAMED.values())


@pytest.mark.parametrize("path", notebooks.find_notebooks(), ids=lambda path: path.stem)
def test_committed_outputs_were_made_by_the_committed_code(path):
    changed = freshness.faults(path) + freshness.stale(path)
    assert not changed, (
        f"{path.name}: {', '.join(changed)}. `make notebooks` renews all notebooks, "
        "`python tests/freshness.py --renew` those that need it."
    )


@pytest.mark.parametrize("path", notebooks.find_notebooks(), ids=lambda path: path.stem)
def test_a_notebook_that_shows_the_shipped_run_is_stale_with_it(path):
    notebook = nbformat.read(path, 4)
    printed = [out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", [])]
    shown = any(f"The run in {freshness.SHIPPED}" in text for text in printed)
    assert shown == (freshness.SHIPPED in notebook.metadata["dasd"]["data"])


def test_of_a_folder_its_manifest_or_its_visible_files_count(tmp_path):
    contents = {}
    for name, text in [("a.bin", "1"), (".DS_Store", "finder"), ("b.bin", "1"), ("manifest.json", "{}"),
                       ("c.bin", "later"), ("manifest.json", '{"files": {}}')]:  # fmt: skip
        (tmp_path / name).write_text(text)
        contents[name, text] = freshness._content(tmp_path)
    first, hidden, second, manifest, beside, other = contents.values()
    assert first == hidden and manifest == beside and len({first, second, manifest, other}) == 4
    (tmp_path / "manifest.json").unlink()
    before = freshness._content(tmp_path)
    (tmp_path / "c.bin").write_text("changed")
    changed = freshness._content(tmp_path)
    (tmp_path / "c.bin").rename(tmp_path / "d.bin")
    assert len({before, changed, freshness._content(tmp_path)}) == 3
