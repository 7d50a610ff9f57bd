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
        environment = os.environ | {
            "PYTHONPATH": str(site),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, *words]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert [path.name for path in site.iterdir()] == ["dasd_utils"]
        return done, folder

    return run


def test_a_wheel_holds_every_file_of_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {f"{package.replace('.', '/')}/{name}" for package, names in patterns.items() for name in names}
    files = [
        path
        for path in (ROOT / "dasd_utils").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".py"} == shipped
    assert all((path.parent / "__init__.py").is_file() for path in files)


def test_paths_start_at_the_present_folder(away):
    done, folder = away("-c", "from dasd_utils.config import resolve; print(resolve('data/runs'))")
    assert Path(done.stdout.strip()) == folder / "data/runs"


@pytest.mark.parametrize(
    ("words", "missing"),
    [("notebooks", "holds no notebook"), ("train --profile tiny", "data/tiny-sd")],
)
def test_what_a_wheel_lacks_is_said_to_be_in_the_repository(away, words, missing):
    done, folder = away("-m", "dasd_utils", *words.split())
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and missing in said and "git clone https://" in said, done.stderr
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_the_doctor_knows_what_the_package_needs(away):
    done, _ = away("-c", "from dasd_utils.apps import doctor; print([row.what for row in doctor.packages()])")
    assert "'diffusers'" in done.stdout and "'pytest'" not in done.stdout, done.stderr
