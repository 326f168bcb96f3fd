"""Run every benchmark, each in a process of its own, and write one record for each topic."""

from __future__ import annotations

import argparse
import json
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
    "pgd100": ("trained", "data"),
    "standard_suite": ("trained", "data"),
    "records": (),
    "training_step": (),
    "training_precision": ("start", "data"),
    "logit_correction": (),
    "alu": ("vae", "data"),
    "atop": (),
}


def page(folder: Path) -> str:
    """All ratios of the records in a folder, as Markdown."""
    lines = ["# Speed", "", "Written by `python -m benchmarks` from the records beside it.", ""]
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        lines += [
            f"## {path.stem}",
            "",
            f"{record['processor']}, {record['instructions']}, {record['threads']} threads, torch "
            f"{record['torch']}, {record['repeats']} interleaved repeats, {record['clock']} clock. "
            "Ratios are medians of ratios within one run."
            + "".join(f" {name}={value}" for name, value in record["allocator"].items()),
            "",
        ]
        for case in record["cases"]:
            lines += [
                f"**{case['case']}**",
                "",
                "| measured | value | target | |",
                "|---|---|---|---|",
            ]
            for ratio in case.get("ratios", []):
                lines.append(
                    f"| {ratio['numerator']} / {ratio['denominator']} | "
                    f"{ratio['median_of_ratios']:.2f} | {ratio.get('target', '')} | "
                    f"{_verdict(ratio)} |"
                )
            for check in case.get("checks", []):
                unit = check.get("unit", "s")
                limit = f"at most {check['at_most']} {unit}"
                value = f"{check.get('value', check.get('seconds')):.3f} {unit}"
                lines.append(f"| {check['what']} | {value} | {limit} | {_verdict(check)} |")
            if "skipped" in case:
                lines.append(f"| not run: {case['skipped']} | | | |")
            lines.append("")
    return "\n".join(lines)


def _verdict(entry: dict[str, object]) -> str:
    words = {True: "holds", False: "**missed**"}.get(entry.get("holds"), "")  # type: ignore[call-overload]
    return ", ".join(filter(None, (words, str(entry.get("note", "")))))


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure speed, as ratios within one run")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the records")
    parser.add_argument("--quick", action="store_true", help="minutes rather than half an hour")
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=list(TOPICS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--robust", metavar="SPEC", help="cifar-robust-resnet-4b@FILE")
    parser.add_argument("--trained", metavar="SPEC", help="an adversarially trained network")
    parser.add_argument("--start", metavar="SPEC", help="standard-trained weights to train on from")
    parser.add_argument("--vae", metavar="FOLDER", help="a trained VAE")
    parser.add_argument("--data", metavar="DATA", help="images for these networks")
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
    (args.out / "README.md").write_text(page(args.out), encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
