"""Run every benchmark, each in a process of its own, and write one record for each topic."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# By topic: the options that it knows beyond those all have.
TOPICS = {
    "import_time": (),
    "tpap_forward": ("compile",),
    "pgd20": ("robust", "data"),
    "audit_overhead": ("robust", "data"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure speed, as ratios within one run")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the records")
    parser.add_argument("--quick", action="store_true", help="minutes rather than half an hour")
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=list(TOPICS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--robust", metavar="SPEC", help="cifar-robust-resnet-4b@FILE")
    parser.add_argument("--data", metavar="DATA", help="images for the robust network")
    args = parser.parse_args()
    failed = []
    for topic in args.only:
        command = [sys.executable, str(HERE / f"{topic}.py")]
        command += ["--out", str(args.out / f"{topic}.json"), "--clock", args.clock]
        command += ["--quick"] if args.quick else []
        command += ["--threads", str(args.threads)] if args.threads else []
        for option in TOPICS[topic]:
            value = getattr(args, option)
            if value is True:
                command.append(f"--{option}")
            elif value:
                command += [f"--{option}", value]
        if subprocess.run(command, check=False).returncode:
            failed.append(topic)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
