"""Imports run one way: in the core in the order of the data flow, among rooms as ROOMS says, in no circle."""

import ast
import graphlib
from pathlib import Path

import pytest

import dasd_utils
from dasd_utils.apps.notebooks import read_code

FLOW = ("data", "latents", "models", "adapters", "losses", "training", "guidance", "classifier", "sampling",
        "metrics", "evaluation")  # fmt: skip
BASE = {"profiles", "config", "figures", "runtime"}
CORE = BASE | {*FLOW}
ROOMS = {  # what each room, or file of the core, may import beside itself
    **{"toyworld": set(), "profiles": set(), "figures": set(), "config": {"profiles"}, "runtime": {"config"}},
    **{name: BASE | {"toyworld", *FLOW[:place]} for place, name in enumerate(FLOW)},
    **{"papers": CORE, "pretrain": CORE | {"toyworld"}, "study": CORE | {"papers"}, "dasd_utils": set()},
    "__main__": {"apps"},
    "apps": CORE | {"toyworld", "papers", "pretrain", "study"},
}
ROOT = Path(dasd_utils.__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("dasd_utils/**/*.py")
}
CODE = {name.removesuffix(".__init__"): path.read_text(encoding="utf8") for name, path in FILES.items()}
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
