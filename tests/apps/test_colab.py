"""The setup cell, run as in Colab against empty wheels: torch, numpy and transformers stay as they are."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import badges
import nbformat
import pytest

from dasd_utils.apps import colab, notebooks
from dasd_utils.config import ROOT

THERE = {"torch": "2.7.1", "numpy": "1.25.2", "transformers": "5.0.0", "tokenizers": "0.22.2"}
ASKS = ["tokenizers<=0.23.0,>=0.22.0"]
OTHERS = [  # older releases that go with what is there, with what they ask for
    *((name, version, ASKS if name == "transformers" else []) for name, version in THERE.items()),
    ("transformers", "4.57.1", ASKS),
    ("scipy", "1.11.4", ["numpy<1.28.0,>=1.21.6"]),
    ("pandas", "2.2.2", ["numpy>=1.22.4"]),
    ("imagecodecs", "2024.9.22", ["numpy"]),
    ("datasets", "4.0.0", ["pyarrow>=15.0.0", "pandas", "numpy>=1.17"]),
    ("accelerate", "1.14.0", ["numpy<3.0.0,>=1.17"]),
    ("diffusers", "0.39.0", []),
    ("pandas", "2.2.3", ["numpy>=1.22.4"]),
    ("peft", "0.20.0", ["numpy>=1.17"]),
    ("pyarrow", "18.1.0", []),
    ("pillow", "11.3.0", []),
    ("psutil", "5.9.5", []),
]
ADDRESS = "https://github.com/somebody/far-domains"
TORCH = "class cuda:\n    is_available = staticmethod(lambda: False)\n"
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
PROGRAM = """import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
import psutil
{cell}
import dasd_utils.profiles, importlib.metadata  # the packages are empty: a module that needs none
print("FOUND", dasd_utils.__file__, importlib.metadata.version("dasd-utils"))"""


def write_wheel(folder, name, version, needs, code=""):
    """Write a wheel of one module of that code."""
    module, info = re.sub(r"\W+", "_", name), f"{re.sub(r'[-_.]+', '_', name)}-{version}.dist-info"
    asks = "".join(f"Requires-Dist: {each}\n" for each in needs)
    files = {
        f"{module}/__init__.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{asks}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    zip_wheel(folder, info, files)


def zip_wheel(folder, info, files):
    """Write the files of a wheel, and the list of them, without hashes."""
    name = f"{info.removesuffix('.dist-info')}-py3-none-any.whl"
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for path, content in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(path, content)


def write_setuptools(folder):
    """Write the installed setuptools as the wheel that it came from: the package is built by it."""
    found = metadata.distribution("setuptools")
    own = [file for file in found.files if ".." not in file.parts and file.suffix != ".pyc"]
    kept = [file for file in own if file.name not in ("RECORD", "INSTALLER")]
    info = next(file.parts[0] for file in kept if file.parts[0].endswith(".dist-info"))
    zip_wheel(folder, info, {file.as_posix(): Path(file.locate()).read_bytes() for file in kept})


def needed(names):
    """Yield (name, version, what it asks for) of installed packages and all that they need."""
    seen, left = set(), [colab.name_of(name) for name in names]
    while left:
        name = left.pop()
        try:
            asks = [ask for ask in metadata.requires(name) or () if "extra ==" not in ask]
        except metadata.PackageNotFoundError:  # of another system
            continue
        if name not in seen:
            seen.add(name)
            yield name, metadata.version(name), asks
            left += [colab.name_of(ask) for ask in asks]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Return a folder of wheels: what the lock installs, and what is in the environment."""
    folder = tmp_path_factory.mktemp("wheels")
    lock = [(n, version.partition("+")[0], asks) for n, version, asks in needed(colab.requirements())]
    for name, version, asks in [*lock, *OTHERS]:
        write_wheel(folder, name, version, asks, TORCH if name == "torch" else "")
    write_setuptools(folder)
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Return (folder, setup cell) of a repository with a tag, whose cell benchmarks/badges.py wrote."""
    folder = tmp_path_factory.mktemp("published") / "dasd"
    shutil.copytree(ROOT / "dasd_utils", folder / "dasd_utils", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", folder)
    (folder / "README.md").write_text("# DASD\n")
    text = (ROOT / "pyproject.toml").read_text().replace(badges.repository()[0], ADDRESS)
    (folder / "pyproject.toml").write_text(text)
    notebook = folder / "notebooks" / "00_start.ipynb"
    notebook.parent.mkdir()
    shutil.copy(ROOT / "notebooks" / notebook.name, notebook)
    badges.renew_badges([notebook], folder)
    cell = next(c for c in nbformat.read(notebook, as_version=4).cells if notebooks.is_setup(c))
    options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    git = ["git", "-C", str(folder), *options]
    bare = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    bare |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}  # no hooks, no signature
    for words in (["init"], ["add", "."], ["commit", "-m", "all"], ["tag", badges.repository()[1]]):
        subprocess.run([*git, *words], check=True, capture_output=True, env=bare, stdin=subprocess.DEVNULL)
    return folder, cell.source


class Environment:
    """A virtual environment whose pip sees the wheels and nothing else, and git the repository."""

    def __init__(self, folder, wheels, repository, there):
        venv.create(folder)
        scripts, library = ("Scripts", "Lib") if os.name == "nt" else ("bin", f"lib/{VERSION}")
        self.python, site = folder / scripts / "python", folder / library / "site-packages"
        for name in ("pip", f"pip-{metadata.version('pip')}.dist-info"):
            shutil.copytree(metadata.distribution("pip").locate_file(name), site / name)
        for name, version in there.items():
            with zipfile.ZipFile(wheels / f"{name}-{version}-py3-none-any.whl") as wheel:
                wheel.extractall(site)
        self.variables = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "GIT_"))}
        self.variables |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
        self.variables |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": ADDRESS}
        self.variables |= {"GIT_CONFIG_KEY_0": f"url.{repository[0].as_uri()}.insteadOf"}

    def run(self, *words, cwd=None):
        """Run its python; return the finished process."""
        words = [str(self.python), *words]
        return subprocess.run(words, cwd=cwd, env=self.variables, capture_output=True, text=True, check=False)

    def installed(self):
        """Return versions by name."""
        program = "import importlib.metadata as m, json; d = m.distributions()\n"
        program += "print(json.dumps({each.metadata['Name']: each.version for each in d}))"
        rows = json.loads(self.run("-c", program).stdout)
        return {colab.name_of(name): version for name, version in rows.items()}


@pytest.fixture(scope="module")
def in_colab(wheels, repository, tmp_path_factory):
    """Return (environment, before, what the setup cell did) with packages at other versions."""
    there = THERE | {"psutil": "5.9.5", "pillow": "11.3.0"}
    environment = Environment(tmp_path_factory.mktemp("colab") / "venv", wheels, repository, there)
    before = environment.installed()
    place = tmp_path_factory.mktemp("content")
    return environment, before, environment.run("-c", PROGRAM.format(cell=repository[1]), cwd=place)


def test_torch_numpy_and_transformers_are_not_touched(in_colab):
    environment, before, done = in_colab
    assert done.returncode == 0, done.stderr
    after = environment.installed()
    assert {name for name in before if after[name] != before[name]} == {"psutil"}  # IPython asks for a newer
    assert before.items() >= THERE.items()
    needs = {colab.name_of(each) for each in colab.requirements()}
    assert needs < after.keys()
    lock = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split())
    assert after["diffusers"] == lock["diffusers"] and after["scipy"] == "1.11.4"  # numpy's, not the lock's


def test_the_running_kernel_sees_the_package_and_it_says_what_changed(in_colab):
    _, _, done = in_colab
    version = badges.repository()[1]
    place, found = done.stdout.rpartition("FOUND ")[2].split()
    assert Path(place).parts[-3:] == (f"dasd-{version}", "dasd_utils", "__init__.py") and found == version[1:]

    assert "left as they were: torch==2.7.1, numpy==1.25.2, transformers==5.0.0" in done.stdout
    assert re.search(r"added: .*diffusers \d", done.stdout) and "changed: psutil 5.9.5 -> " in done.stdout
    assert "still holds the former psutil: Runtime > Restart session" in done.stdout  # it was imported before
    assert "profile \"auto\" is 'tiny' here: no CUDA device here" in done.stdout


NEWEST = {
    "pandas": "2.2.3",
    "pyarrow": "18.1.0",
    "datasets": "4.0.0",
    "accelerate": "1.14.0",
    "peft": "0.20.0",
}


def test_the_newest_runtime_keeps_its_tables_and_gets_another_diffusers(wheels, repository, tmp_path):
    there = THERE | NEWEST | {"diffusers": "0.39.0"}
    environment = Environment(tmp_path / "venv", wheels, repository, there)
    program = "import pandas, pyarrow\n" + PROGRAM.format(cell=repository[1]).replace("import psutil\n", "")
    done = environment.run("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert environment.installed().items() >= NEWEST.items()
    assert re.search(r"changed: diffusers 0\.39\.0 -> \S+\n", done.stdout) and "Restart" not in done.stdout


def test_too_old_a_transformers_is_said_and_nothing_changes(wheels, repository, tmp_path):
    environment = Environment(tmp_path / "venv", wheels, repository, THERE | {"transformers": "4.57.1"})
    before = environment.installed()
    program = PROGRAM.format(cell=repository[1]).replace("import psutil\n", "")
    done = environment.run("-c", program, cwd=tmp_path)
    assert done.returncode == 1
    said = done.stderr[done.stderr.index("RuntimeError") :]
    assert "transformers==4.57.1" in said and "transformers>=5" in said and "Nothing was changed" in said
    assert environment.installed() == before
