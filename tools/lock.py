"""Write the lock: every package of the development environment, at the version pip resolves now.

Usage: python tools/lock.py requirements.lock
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = """\
# Everything the development environment installs, at exact versions; 'make lock' rewrites this.
# Versions carry no local part (+cpu, +cu126) and no CUDA packages are listed, so that the file
# serves every build of torch: torch itself names the exact CUDA packages of its build.
"""
PLATFORM_BOUND = re.compile(r"nvidia-|cuda-|triton")
BUILD_TOOLS = ("setuptools>=77",)  # The editable install builds without isolation.


def resolve(project: Path) -> dict[str, str]:
    """Name and version of everything ``.[dev]`` needs, by a dry run of pip."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report)]
        subprocess.run([*command, f"{project}[dev]", *BUILD_TOOLS], check=True)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in items}


def lines(found: dict[str, str]) -> list[str]:
    """The pins, sorted, without the project itself and what depends on the platform."""
    kept = {
        name: version.partition("+")[0]
        for name, version in found.items()
        if name.lower() != "unperturb" and not PLATFORM_BOUND.match(name.lower())
    }
    return [f"{name}=={kept[name]}\n" for name in sorted(kept, key=str.lower)]


def main(target: Path) -> None:
    """Resolve first, write last: a failed resolution leaves the old lock as it was."""
    pins = lines(resolve(Path(__file__).resolve().parents[1]))
    target.write_text(HEADER + "".join(pins), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
