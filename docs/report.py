"""The report as a page of the site: LaTeX with its numbers filled in, through pandoc, as reStructuredText."""

import re
import sys

from repository import ROOT

sys.path.insert(0, str(ROOT / "Report"))
import make_numbers

TABLE = re.compile(r"\\newcommand\{\\(\w+)\}\[1\]\{(.*?)\\csname res:(.*?)#1\\endcsname(.*?)\}\n", re.DOTALL)

BETWEEN = re.compile(
    r"\\bottomrule\\end\{tabular\}\\par\\smallskip.*?\\midrule", re.DOTALL
)  # under one caption


def filled(report: str) -> str:
    r"""Return the LaTeX of a report with \res and the macros of its tables replaced by what they stand for.

    Pandoc knows neither \csname nor numbers that LaTeX would read from a file.
    """
    macros = make_numbers.latex_macros(report)
    values = dict(re.findall(r"\\csname res:([^\\]+)\\endcsname\{(.*)\}$", macros, re.MULTILINE))
    report = re.sub(r"\\makeatletter.*?\\makeatother", "", report, flags=re.DOTALL).replace(
        r"\input{numbers}", ""
    )
    for name, head, key, tail in TABLE.findall(report):
        asked = re.compile(rf"\\{name}\{{(\w+)\}}")
        report = asked.sub(
            lambda m, head=head, key=key, tail=tail: f"{head}\n{values[key + m[1]]}{tail}", report
        )
    report = BETWEEN.sub(lambda _: r"\\", report)
    report = report.replace(r"\\+ ", r"\\+~")  # docutils takes a plus and a space for a list
    return re.sub(r"\\res\{([^}#]+)\}", lambda m: values[m[1]], report)


def page(pdf: str = "") -> str:
    """Return the report with citations, tables and figures; `pdf` is the name of its PDF if there is one."""
    import pypandoc  # the tests run without it

    report = filled((ROOT / "Report" / "main.tex").read_text(encoding="utf8"))
    title = re.search(r"\\title\{(.*?)\}\n", report, re.DOTALL)[1].replace(r"\\", "")
    report = report.replace(r"\begin{abstract}", r"\section*{Abstract}").replace(r"\end{abstract}", "")
    report = re.sub(r"(\\paragraph\{[^}]*)\.\}", r"\1}", report)
    report = re.sub(r"(\\(?:label|ref)\{\w+):", r"\1-", report)  # an id without a colon is the same in HTML
    options = ["--citeproc", f"--bibliography={ROOT / 'Report' / 'reference.bib'}", "--wrap=none"]
    options += ["-M", "link-citations=true", "-M", "reference-section-title=References"]
    text = pypandoc.convert_text(report, "rst", format="latex", extra_args=options)
    line = "=" * len(title)
    note = f":download:`As PDF <{pdf}>`" if pdf else "``make report`` typesets it as PDF."
    return f"{line}\n{title}\n{line}\n\n{note}\n\n{_mended(text)}"


def _mended(text: str) -> str:
    """Put right what pandoc writes and docutils or Sphinx read otherwise: options, labels, references."""
    text = re.sub(r"(\.\. figure:: )(\S+)\n   :?name: (\S+)", r"\1../figures/\2\n   :name: \3", text)
    text = re.sub(
        r"\.\. container::\n   :name: (tab-\w+)\n\n   \.\. table:: (.*)\n",
        r".. container::\n\n   .. table:: \2\n      :name: \1\n      :widths: auto\n",
        text,
    )
    return re.sub(r"`\d+ <#((?:fig|tab)-\w+)>`__", r":numref:`{number} <\1>`", text)
