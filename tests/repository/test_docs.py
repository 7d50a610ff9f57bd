"""The site holds every module, notebook and page; its links lead somewhere. `make docs` builds it."""

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dasd_utils"
NAMES = ("api", "check_links", "collect", "report", "repository")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
REMOTE = ("http://", "https://", "attachment:")


@pytest.fixture(scope="module")
def site():
    """The modules of the site by name, without leaving them where other tests would find them."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "docs"))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path[:] = before
    for name in (*NAMES, "make_numbers"):
        del sys.modules[name]


def test_every_module_is_in_the_api_once(site):
    listed = [site["api"].full_name(name) for names in site["api"].GROUPS.values() for name in names]
    assert len(listed) == len(set(listed))
    missing, gone = site["api"].modules() - set(listed), set(listed) - site["api"].modules()
    assert not missing and not gone, f"CORE of docs/api.py: add {sorted(missing)}, remove {sorted(gone)}"


@pytest.mark.parametrize(
    "room", [path.parent for path in PACKAGE.rglob("*/__init__.py")], ids=lambda path: path.name
)
def test_a_folder_lists_its_files_in_reading_order(site, room):
    files = {module.name for module in pkgutil.iter_modules([str(room)])}
    listed = site["api"].listed(room.relative_to(PACKAGE))
    assert set(listed) <= files and len(listed) == len(set(listed))
    assert set(listed) == files or room.name == "pretrain"


def test_every_group_of_modules_and_every_notebook_has_its_page(site):
    page = site["api"].page("Losses", ["losses", "papers.indomain"])
    assert page.startswith("Losses\n======\n")
    assert re.findall(r"automodule:: (\S+)", page) == ["dasd_utils.losses", "dasd_utils.papers.indomain"]
    assert "\nnotebooks/*\n" in (ROOT / "docs" / "_contents.md").read_text(encoding="utf8")
    assert "notebooks/*.ipynb" in site["collect"].COPIED
    assert all(list(ROOT.glob(path)) for path in site["collect"].COPIED if path != "Report/main.pdf")


def test_every_page_is_in_the_contents_and_in_the_list_of_pages(site):
    pages = {path.stem for path in (ROOT / "docs").glob("[!_]*.md")}
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    first = site["collect"].index(readme)
    assert readme in first and "<!-- api -->" not in first
    assert set(re.findall(r"^docs/(\w+)$", first, re.MULTILINE)) == pages
    listed = LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf8"))
    assert {f"{page}.md" for page in pages - {"index"}} <= set(listed)
    assert len(readme.encode()) <= 8192


def test_a_file_that_is_no_page_is_linked_at_the_repository(site):
    url = site["repository"].url
    assert url("README", "Report/reference.bib").endswith("/blob/main/Report/reference.bib")
    assert url("notebooks/00_start", "../data/configs").endswith("/tree/main/data/configs")
    assert url("README", "Report/lost.bib") is url("README", "../elsewhere") is None


def test_every_link_of_pages_and_notebooks_leads_to_a_file():
    pages = (ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/[!_]*.md"))
    texts = {path: path.read_text(encoding="utf8") for path in pages}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf8"))["cells"]
        texts[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for path, text in texts.items():
        for target in LINK.findall(text):
            assert target.startswith(REMOTE) or (path.parent / target).exists(), (path.name, target)


def test_the_report_is_filled_with_numbers_before_pandoc_reads_it(site):
    text = site["report"].filled((ROOT / "Report" / "main.tex").read_text(encoding="utf8"))
    body = text.split(r"\begin{document}")[1]
    assert not re.search(r"\\(res|ladder|real|csname)\b", body)
    assert body.count(r"\begin{tabular}") == body.count(r"\end{tabular}") == body.count(r"\begin{table}")
    assert body.count("DASD, calibrated &") == 4  # two domains of the ladder, two of real images
    assert body.count(r"\pm") > 100


def test_the_pins_of_the_site_leave_those_of_the_lock_alone():
    lock, pins = ((ROOT / path / "requirements.txt").read_text().splitlines() for path in (".", "docs"))
    pins = [line for line in pins if not line.startswith("#")]
    assert all("==" in line for line in pins)
    names = ({line.split("==")[0].lower().replace("_", "-") for line in lines} for lines in (lock, pins))
    assert not set.intersection(*names)


def test_broken_links_and_other_hosts_are_found(site, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.html").write_text('<h1 id="top">b</h1><a href="../a.html#here">up</a>')
    page = '<p id="here"></p><a href="sub/b.html#top">b</a><a href="https://x.org">x</a>'
    (tmp_path / "a.html").write_text(page)
    assert site["check_links"].check(tmp_path) == ([], {"https://x.org": {"a.html"}})
    (tmp_path / "a.html").write_text(
        '<a href="lost.html"></a><a href="sub/b.html#lost"></a><a href="#gone"></a><img src="no.png">'
        '<script src="https://cdn.org/x.js"></script><img srcset="//cdn.org/x.png 2x">'
    )
    (tmp_path / "a.css").write_text("@import 'https://fonts.org/f.css'; a {background: url(//cdn.org/i.png)}")
    problems, _ = site["check_links"].check(tmp_path)
    parts = ("lost.html is", "b.html#lost has", "#gone has", "no.png is", "x.js", "//cdn.org/x.png", "f.css",
             "i.png", "../a.html#here has")  # fmt: skip
    assert {part: sum(part in each for each in problems) for part in parts} == dict.fromkeys(parts, 1)
    assert len(problems) == 9


def test_every_page_ends_with_a_line_end():
    pages = [
        page for place in (".", "docs", "benchmarks", "data", "data/*") for page in ROOT.glob(f"{place}/*.md")
    ]
    assert len(pages) > 15 and [page for page in pages if not page.read_bytes().endswith(b"\n")] == []
