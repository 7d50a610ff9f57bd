"""Code inside texts, such as the cells that a browser test types, imports what the package has."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKES = {"test_freshness.py"}  # its texts are of a small package of its own
FILES = [p for folder in ("tests", "benchmarks", "book") for p in sorted((ROOT / folder).rglob("*.py"))]
IMPORT = re.compile(r"^\s*from (dasd_utils[\w.]*) import ([\w, ]+)", re.MULTILINE)


@pytest.mark.parametrize("path", [p for p in FILES if p.name not in FAKES], ids=lambda p: p.name)
def test_imports_inside_texts_are_there(path):
    tree = ast.parse(path.read_text(encoding="utf8"))
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    for module, names in (found for text in texts for found in IMPORT.findall(text)):
        for name in (each.split(" as ")[0].strip() for each in names.split(",")):
            if not hasattr(importlib.import_module(module), name):
                importlib.import_module(f"{module}.{name}")
