"""Known vulnerabilities of pinned packages, for `make audit`: an answer that was not given is not "none"."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

OPTIONS = ("--format", "json", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "15")
SERVICES = ("pypi", "osv")  # the databases that pip-audit can ask


def ask(service: str, requirements: str) -> list[dict] | str:
    """Return pip-audit's row of every package, or why there is no answer."""
    command = [Path(sys.executable).with_name("pip-audit"), "--vulnerability-service", service, *OPTIONS]
    command += ["--requirement", requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        rows = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return (done.stderr.strip().splitlines() or ["no output"])[-1]
    skipped = [row["skip_reason"] for row in rows if "skip_reason" in row]
    return skipped[0] if skipped and len(skipped) == len(rows) else rows


def report(rows: list[dict]) -> tuple[list[str], bool]:
    """Return what to print, and whether a package has a known vulnerability."""
    found = [(row, one) for row in rows for one in row.get("vulns", ())]
    unknown = [row["name"] for row in rows if "skip_reason" in row]
    lines = [f"{len(rows) - len(unknown)} of {len(rows)} packages looked up: {len(found)} vulnerabilities"]
    for row, one in found:
        mended = ", ".join(one["fix_versions"]) or "no version yet"
        lines.append(f"{row['name']} {row['version']}: {one['id']}, mended in {mended}")
    if unknown:
        lines.append(f"not in the database: {', '.join(unknown)}")
    return lines, bool(found)


def main(requirements: str) -> int:
    """Ask one database after the other; return 1 for known vulnerabilities, 0 also where none answers."""
    for service in SERVICES:
        answer = ask(service, requirements)
        if isinstance(answer, list):
            lines, vulnerable = report(answer)
            print(f"pip-audit ({service}):", *lines, sep="\n  ")
            return int(vulnerable)
        print(f"pip-audit: no answer from the database {service}: {textwrap.shorten(answer, 120)}")
    print(f"pip-audit: {requirements} was NOT checked. Run `make audit` where a database can be reached.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
