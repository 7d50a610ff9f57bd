"""Set the course up in Colab: add what is missing, and leave torch, numpy and transformers as they are.

The first cell of every notebook runs this file in its own kernel, where the package is not yet to be had:
until it is, only the standard library is.
"""

import importlib
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Colab builds these to fit each other, its drivers and its other packages; the kernel runs by the last two.
# A kernel that has loaded pandas with one pyarrow cannot load datasets with another.
KEPT = ("torch", "torchvision", "torchaudio", "triton", "numpy", "pandas", "pyarrow", "transformers",
        "tokenizers", "ipykernel", "ipython")  # fmt: skip


def main() -> None:
    """Install, let the running kernel see the package, say what changed and which profile fits the machine.

    Raises RuntimeError, with nothing changed, where no set of packages leaves those of KEPT as they are.
    """
    before = installed()
    kept = [f"{name}=={before[name]}" for name in KEPT if name in before]
    install(kept, before)
    after = installed()
    sys.path.insert(0, str(ROOT))  # a kernel reads the paths of editable installs only when it starts
    added = [f"{name} {version}" for name, version in sorted(after.items()) if name not in before]
    changed = [name for name in sorted(before) if after.get(name) != before[name]]
    print("left as they were:", ", ".join(kept) or "nothing was there")
    print("added:", ", ".join(added) or "nothing")
    print("changed:", ", ".join(f"{n} {before[n]} -> {after.get(n)}" for n in changed) or "nothing")
    modules = metadata.packages_distributions()
    loaded = {name_of(each) for module in modules.keys() & sys.modules.keys() for each in modules[module]}
    if old := loaded.intersection(changed):
        print(f"The kernel still holds the former {', '.join(sorted(old))}: Runtime > Restart session.")
    from dasd_utils import profiles

    choice = profiles.choose_profile()
    print(f'profile "auto" is {choice.profile!r} here: {choice.reason}')


def installed() -> dict[str, str]:
    """Return the version of each installed distribution, by its normalised name."""
    importlib.invalidate_caches()
    found = [(name_of(each.metadata["Name"] or ""), each.version) for each in metadata.distributions()]
    return dict(reversed(found))  # of two the first on the path, which is the one imported


def name_of(requirement: str) -> str:
    """Return the name in "Some_name>=1", as PyPI compares it: "some-name"."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def requirements() -> list[str]:
    """Return what the package needs, as pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["dependencies"]


def install(kept: list[str], before: dict[str, str]) -> None:
    """Install the package, with what is missing at the versions of requirements.txt if these fit."""
    missing = {name_of(each) for each in requirements()} - before.keys()
    lock = (ROOT / "requirements.txt").read_text(encoding="utf8").split()
    tested = [line for line in lock if name_of(line) in missing]
    said = pip_install([*kept, *tested]) and pip_install(kept)
    if said:
        raise RuntimeError(
            f"{said}\n\nNothing was changed. The course needs {', '.join(requirements())}; here are "
            f"{', '.join(kept)}, which stay. If these do not go together, choose another runtime version "
            "(Runtime > Change runtime type)."
        )


def pip_install(pins: list[str]) -> str:
    """Let pip install the package under constraints; return why it failed, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text("\n".join(pins) + "\n", encoding="utf8")
        options = ["--progress-bar", "off", "--constraint", str(path), "--editable", str(ROOT)]
        command = [sys.executable, "-m", "pip", "install", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return done.stdout.partition("The conflict is caused by:")[2] + done.stderr or "pip failed."


if __name__ == "__main__":
    main()
