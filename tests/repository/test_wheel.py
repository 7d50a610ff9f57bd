"""The package without the repository around it, as a wheel installs it."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dasd_utils.config import ROOT


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    """Return what runs a Python program with a copy of the package alone, in an empty folder."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("away")
    shutil.copytree(ROOT / "dasd_utils", site / "dasd_utils")

    def run(*words):
        env = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)
        assert [path.name for path in site.iterdir()] == ["dasd_utils"]
        return done, folder

    return run


def test_a_wheel_holds_every_file_of_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {f"{package.replace('.', '/')}/{name}" for package, names in patterns.items() for name in names}
    every = [path for path in (ROOT / "dasd_utils").rglob("*") if path.is_file()]
    files = [path for path in every if "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".py"} == shipped
    assert all((path.parent / "__init__.py").is_file() for path in files)


def test_paths_start_at_the_present_folder_and_the_doctor_knows_what_the_package_needs(away):
    code = "from dasd_utils.config import resolve; print(resolve('data/runs'))\n"
    code += "from dasd_utils.apps import doctor; print([row.what for row in doctor.packages()])"
    done, folder = away("-c", code)
    place, packages = done.stdout.splitlines()
    assert Path(place) == folder / "data/runs"
    assert "'diffusers'" in packages and "'pytest'" not in packages


@pytest.mark.parametrize(
    ("words", "missing"), [("notebooks", "holds no notebook"), ("train --profile tiny", "data/tiny-sd")]
)
def test_what_a_wheel_lacks_is_said_to_be_in_the_repository(away, words, missing):
    done, folder = away("-m", "dasd_utils", *words.split())
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and missing in said and "git clone https://" in said, done.stderr
    assert not [path for path in folder.rglob("*") if path.is_file()]
