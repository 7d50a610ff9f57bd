"""Imports run one way: in the core in the order of the data flow, among rooms as ROOMS says, in no circle.

Code inside texts, such as the cells that a browser test types, imports what the package has.
"""

import ast
import graphlib
import importlib
import re
from pathlib import Path

import pytest
from freshness import read_code

import dasd_utils

FLOW = ("data", "latents", "models", "adapters", "losses", "training", "guidance", "classifier", "sampling",
        "metrics", "evaluation")  # fmt: skip
BASE = {"profiles", "config", "figures", "runtime"}
CORE = BASE | {*FLOW}
ROOMS = {  # what each room, or file of the core, may import beside itself
    **{
        "toyworld": set(),
        "profiles": set(),
        "figures": set(),
        "config": {"profiles", "runtime"},
        "runtime": {"config"},
    },
    **{name: BASE | {"toyworld", *FLOW[:place]} for place, name in enumerate(FLOW)},
    **{"papers": CORE, "pretrain": CORE | {"toyworld"}, "study": CORE | {"papers"}, "dasd_utils": set()},
    "__main__": {"apps"},
    "apps": CORE | {"toyworld", "papers", "pretrain", "study"},
}
ROOT = Path(dasd_utils.__file__).parents[1]
CODE = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text("utf8")
    for path in ROOT.glob("dasd_utils/**/*.py")
}
IMPORTS = {name: (read_code(code).imports & CODE.keys()) - {name} for name, code in CODE.items()}


@pytest.mark.parametrize("name", CODE)
def test_a_file_imports_at_its_top_what_its_room_may(name):
    room = name.split(".")[1] if "." in name else name
    assert {each.split(".")[1] for each in IMPORTS[name] - {"dasd_utils"}} <= ROOMS[room] | {room}
    functions = [node for node in ast.walk(ast.parse(CODE[name])) if isinstance(node, ast.FunctionDef)]
    inside = {each for node in functions for each in read_code(ast.unparse(node)).imports}
    assert room not in CORE or not inside & CODE.keys()


def test_no_circle_and_no_star():
    graphlib.TopologicalSorter(IMPORTS).prepare()
    assert not [name for name, code in CODE.items() if " import *" in code]


IN_TEXT = re.compile(r"^\s*from (dasd_utils[\w.]*) import ([\w, ]+)", re.MULTILINE)
FAKES = {"test_freshness.py"}  # its texts are of a small package of its own
OTHERS = [path for room in ("tests", "benchmarks", "docs") for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", [p for p in OTHERS if p.name not in FAKES], ids=lambda p: p.name)
def test_imports_inside_texts_are_there(path):
    tree = ast.parse(path.read_text(encoding="utf8"))
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    for module, names in (found for text in texts for found in IN_TEXT.findall(text)):
        for name in (each.split(" as ")[0].strip() for each in names.split(",")):
            if not hasattr(importlib.import_module(module), name):
                importlib.import_module(f"{module}.{name}")
