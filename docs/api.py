"""The modules of the package, a page of the site for each room: the core, then the folders."""

import ast
import itertools
import pkgutil
import re

from repository import ROOT

import dasd_utils

CORE = [
    "config", "profiles", "data", "latents", "models", "adapters", "losses", "training", "guidance",
    "classifier", "sampling", "metrics", "evaluation", "figures",
]  # fmt: skip
ROOMS = {"Runtime": "runtime", "Toy world": "toyworld", "Pretraining": "pretrain", "Papers": "papers",
         "Study": "study", "Apps": "apps"}  # fmt: skip


def listed(room: str) -> list[str]:
    """Return the names that the `__init__` of a folder lists: its files in reading order."""
    text = (ROOT / "dasd_utils" / room / "__init__.py").read_text(encoding="utf8")
    return re.findall(r"^- (\w+): ", ast.get_docstring(ast.parse(text)), re.MULTILINE)


def found(room: str) -> list[str]:
    """Return the modules of a folder in reading order, those that its `__init__` does not list at the end."""
    folder = ROOT / "dasd_utils" / room
    here = {module.name: module.ispkg for module in pkgutil.iter_modules([str(folder)])}
    names = dict.fromkeys([*(name for name in listed(room) if name in here), *here])
    below = [found(f"{room}/{name}") if here[name] else [f"{room}/{name}"] for name in names]
    return [room, *itertools.chain.from_iterable(below)]


GROUPS = {
    "Core": ["dasd_utils", *CORE],
    **{title: [name.replace("/", ".") for name in found(room)] for title, room in ROOMS.items()},
}


def modules() -> set[str]:
    """Return the name of every public module of the package, in its full form."""
    found = pkgutil.walk_packages(dasd_utils.__path__, "dasd_utils.")
    names = {module.name for module in found}
    return {"dasd_utils", *(name for name in names if "._" not in name)}


def full_name(module: str) -> str:
    """Return the name by which a module of GROUPS is imported."""
    return module if module == "dasd_utils" else f"dasd_utils.{module}"


def slug(title: str) -> str:
    """Return a title as the name of a page: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def page(title: str, names: list[str]) -> str:
    """Return the page of one group, in reStructuredText."""
    parts = [_heading(title, "=")]
    for name in map(full_name, names):
        parts += [_heading(name, "-"), f".. automodule:: {name}\n   :members:\n   :ignore-module-all:\n"]
        if name == "dasd_utils":
            parts += [f"- :py:obj:`~dasd_utils.{home}.{name}`" for name, home in dasd_utils._HOME.items()]
            parts += [""]
    return "\n".join(parts)


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"
