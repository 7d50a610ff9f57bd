"""Sphinx: the site in one look, offline."""

import inspect
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import repository  # noqa: E402

MATHJAX = (
    Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0]) / "static/mathjax/tex-svg.js"
)

project = "DASD"
version = release = repository.PROJECT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # names in prose
    ("py:.*", r"(?!dasd_utils\.).*"),  # other packages
    ("py:class", r"dasd_utils\.config\.(Kind|_.*)"),  # a type variable, a validator
]

nb_execution_mode = "off"  # notebooks are shown as they are stored
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables of outputs are tables
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 120  # counted with the full names of types
numfig = True
numfig_secnum_depth = 0
numfig_format = {"figure": "Figure %s:", "table": "Table %s:"}

html_theme = "furo"
html_title = "DASD"
html_static_path = ["_static", str(MATHJAX)]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
mathjax_path = "tex-svg.js"  # glyphs are in the file: no font, no other host
mathjax3_config = {"options": {"enableMenu": False}}  # the menu would load further files
html_theme_options = {"source_repository": f"{repository.ADDRESS}/", "navigation_with_keys": True}


def link_repository(app, doctree):
    """Point a link to a file of the repository that is no page of the site to the repository's address."""
    for node in list(doctree.findall(addnodes.pending_xref)):
        unknown = node["reftype"] == "myst" and not node.get("refdomain")
        if unknown and (url := repository.url(node["refdoc"], node["reftarget"])):
            node.replace_self(nodes.reference("", "", *node.children, refuri=url))


def without_remote_images(app, doctree):
    """Put the words of an image of another host in its place: opening a page asks nobody for anything."""
    for image in list(doctree.findall(nodes.image)):
        if "://" in image["uri"]:
            image.replace_self(nodes.Text(image.get("alt") or image["uri"]))


def plain_docstring(app, what, name, obj, options, lines):
    """Take * and | in docstrings as they stand: these are formulas, and only backticks are markup."""
    lines[:] = [re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", re.sub(r"([*|])", r"\\\1", line)) for line in lines]


def skip_foreign(app, what, name, obj, skip, options):
    """Leave out methods that a class of another package makes in its subclasses, as matplotlib does."""
    foreign = inspect.isfunction(obj) and not obj.__module__.startswith("dasd_utils")
    return True if foreign else None


def setup(app):
    """Connect the handlers above."""
    app.connect("doctree-read", link_repository)
    app.connect("doctree-read", without_remote_images)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-skip-member", skip_foreign)
