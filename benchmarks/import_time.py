"""What importing the package costs beyond importing torch, and how long ``--help`` takes."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import finish, parse, summary

BEYOND_TORCH, HELP = 0.3, 0.5


def once(arguments: list[str], clock: str) -> float:
    """Seconds of a fresh process: on the wall, or of processor time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return cpu if clock == "cpu" else wall


def measure(args: Any) -> dict[str, Any]:
    command = Path(sys.executable).with_name("unperturb")
    show = [str(command)] if command.exists() else ["-c", "from unperturb.cli import main; main()"]
    jobs = {
        "python": ["-c", "pass"],
        "import torch": ["-c", "import torch"],
        "import torch, unperturb": ["-c", "import torch, unperturb"],
        "use Defense and audit": [
            "-c", "import torch, unperturb; unperturb.Defense; unperturb.audit"
        ],
        "unperturb --help": [*show, "--help"],
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(args.repeats + 1):
        for name, arguments in jobs.items():
            took = once(arguments, args.clock)
            if turn:
                seconds[name].append(took)
    added = statistics.median(
        a - b
        for a, b in zip(seconds["import torch, unperturb"], seconds["import torch"], strict=True)
    )
    shown = statistics.median(seconds["unperturb --help"])
    checks = [
        {"what": "import unperturb beyond import torch", "seconds": added, "at_most": BEYOND_TORCH},
        {"what": "unperturb --help", "seconds": shown, "at_most": HELP},
    ]
    for check in checks:
        check["holds"] = check["seconds"] <= check["at_most"]
        check["seconds"] = round(check["seconds"], 3)
        verdict = "holds" if check["holds"] else "MISSED"
        print(f"{check['what']}: {check['seconds']} s, at most {check['at_most']}: {verdict}")
    return {"case": "fresh processes", "times": summary(seconds), "checks": checks}


def main() -> None:
    args = parse("Import time and the time of --help", repeats=9)
    finish("import_time", args, [measure(args)])


if __name__ == "__main__":
    main()
