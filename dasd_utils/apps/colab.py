"""Set the course up in Colab: add what is missing, and leave torch, numpy and transformers as they are.

The first cell of every notebook runs this file in its own kernel, where the package is not yet to be had:
until it is, only the standard library is.
"""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Colab builds these to fit each other, its drivers and its other packages; the kernel runs by the last two.
KEPT = ("torch", "torchvision", "torchaudio", "triton", "numpy", "transformers", "tokenizers", "ipykernel",
        "ipython")  # fmt: skip
SHOWN = ("torch", "numpy", "transformers", "diffusers", "peft", "accelerate", "datasets")


def main() -> None:
    """Install, let the running kernel see the package, say what changed and which profile fits the machine.

    Raises RuntimeError, with nothing changed, where no set of packages leaves those of KEPT as they are.
    """
    before = installed()
    install(before)
    after = installed()
    check_kept(before, after)
    sys.path.insert(0, str(ROOT))  # a kernel reads the paths of editable installs only when it starts
    importlib.invalidate_caches()
    print("\n".join([*report(before, after), *about_machine()]))


def installed() -> dict[str, str]:
    """Return the version of each installed distribution, by its normalised name."""
    importlib.invalidate_caches()
    named = [(each.metadata["Name"], each.version) for each in metadata.distributions()]
    found: dict[str, str] = {}
    for name, version in named:
        found.setdefault(normalised(name or ""), version)  # the first on the path is the one imported
    return found


def normalised(name: str) -> str:
    """Return a distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(root: Path = ROOT) -> list[str]:
    """Return what the package needs, as pyproject.toml says."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf8"))["project"]["dependencies"]


def tested(before: Iterable[str], root: Path = ROOT) -> list[str]:
    """Return the pins of requirements.txt for those packages that are needed and missing."""
    names = {normalised(re.split(r"[^\w.-]", each)[0]) for each in requirements(root)} - set(before)
    lines = (root / "requirements.txt").read_text(encoding="utf8").split()
    return [line for line in lines if normalised(line.split("==")[0]) in names]


def kept(before: dict[str, str]) -> list[str]:
    """Return the pins that hold what is not to be touched."""
    return [f"{name}=={before[name]}" for name in KEPT if name in before]


def install(before: dict[str, str]) -> None:
    """Add what is missing, at the versions of requirements.txt if these fit, then the package itself.

    Raises RuntimeError with pip's words where nothing fits; pip then has changed nothing.
    """
    for pins in ([*kept(before), *tested(before)], kept(before)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "constraints.txt"
            path.write_text("\n".join(pins) + "\n", encoding="utf8")
            said = pip("install", "--constraint", str(path), *requirements())
        if not said:
            break
    else:
        if "conflict" not in said.lower():  # no network, say, or a full disk
            raise RuntimeError(said)
        raise RuntimeError(
            f"{said}\n\nNothing was changed. The course needs {', '.join(requirements())}; here are "
            f"{', '.join(kept(before))}, which are left as they are. Choose another runtime version (Runtime "
            "> Change runtime type), or run the course on a machine of your own: README."
        )
    said = pip("install", "--no-deps", "--editable", str(ROOT))  # without dependencies it touches no other
    if said:
        raise RuntimeError(said)


def pip(*words: str) -> str:
    """Run pip; return why it failed, or nothing."""
    command = [sys.executable, "-m", "pip", *words, "--disable-pip-version-check", "--progress-bar", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
    _, mark, causes = done.stdout.partition("The conflict is caused by:")
    causes = causes.partition("To fix this")[0]  # general advice follows
    return "\n".join([*errors, (mark + causes).strip()]).strip() or "pip failed."


def check_kept(before: dict[str, str], after: dict[str, str]) -> None:
    """Raise RuntimeError if one of KEPT is not what it was."""
    for name in KEPT:
        if before.get(name) not in (None, after.get(name)):
            raise RuntimeError(
                f"{name} was {before[name]} and is {after.get(name)}. Please report this, with what `pip "
                "list` prints, and start anew: Runtime > Disconnect and delete runtime."
            )


def report(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return lines on what was kept, added and changed, and whether the kernel holds an old version."""
    added = [f"{name} {version}" for name, version in sorted(after.items()) if name not in before]
    changed = {name for name, version in before.items() if after.get(name) != version}
    lines = [
        f"Python {platform.python_version()}, " + ", ".join(f"{n} {after[n]}" for n in SHOWN if n in after),
        f"left as they were: {', '.join(kept(before)) or 'nothing was there'}",
        f"added: {', '.join(added) or 'nothing'}",
        f"changed: {', '.join(f'{n} {before[n]} -> {after.get(n)}' for n in sorted(changed)) or 'nothing'}",
    ]
    modules = metadata.packages_distributions()
    loaded = {normalised(n) for module in modules.keys() & sys.modules.keys() for n in modules[module]}
    if old := sorted(loaded & changed):
        lines.append(f"The kernel still holds the former {', '.join(old)}: Runtime > Restart session.")
    return lines


def about_machine() -> list[str]:
    """Return a line on the GPU, the profile that `auto` picks, and its sizes."""
    from dasd_utils import profiles

    choice = profiles.choose_profile()
    return [f'profile "auto" is {choice.profile!r} here: {choice.reason}']


if __name__ == "__main__":
    main()
