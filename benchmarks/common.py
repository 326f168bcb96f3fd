"""Timing shared by all benchmarks: interleaved repetitions, ratios within one run, JSON records.

Only ratios are compared with targets: they carry over to other machines far better than seconds.
Jobs are run in turn (A B C, B C A, ...), so that a busy minute of the machine hits all of them,
and the ratio of a repetition is taken between neighbors in time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unperturb.classifiers import Classifier, load_classifier, new_classifier
from unperturb.progress import progress

# What changes how often memory goes back to the system, and with it speed on CPUs.
ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Target:
    """A ratio that is promised: at most or at least ``bound``; None only reports it."""

    numerator: str
    denominator: str
    bound: float | None = None
    sense: str = "at most"
    note: str = ""


def parse(description: str, *, repeats: int, **more: dict[str, Any]) -> argparse.Namespace:
    """Command-line options that all benchmarks have, and some of their own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="JSON file to write; printed only if absent")
    parser.add_argument("--quick", action="store_true", help="few repetitions, small networks")
    parser.add_argument("--repeats", type=int, help=f"repetitions (default {repeats}, quick: 3)")
    parser.add_argument("--threads", type=int, help="threads; default: PyTorch's own choice")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu counts this process's processor time: for one thread on a busy machine",
    )
    for name, options in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    args = parser.parse_args()
    if args.repeats is None:
        args.repeats = 3 if args.quick else repeats
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.clock == "cpu" and torch.get_num_threads() > 1:
        parser.error("--clock cpu adds up all threads: use it with --threads 1")
    return args


def interleave(
    jobs: dict[str, Callable[[], object]], *, repeats: int, clock: str, warmups: int = 1
) -> dict[str, list[float]]:
    """Seconds of every job, by repetition; each repetition begins with another job."""
    now = CLOCKS[clock]
    names = list(jobs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    # The bar moves between the measured calls.
    with progress(total=(warmups + repeats) * len(names), desc="timing", unit="run") as bar:
        for _ in range(warmups):
            for job in jobs.values():
                job()
                bar.update()
        for turn in range(repeats):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                began = now()
                jobs[name]()
                seconds[name].append(now() - began)
                bar.update()
    return seconds


def compare(seconds: dict[str, list[float]], targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Median of the ratios within each repetition, ratio of the minima, and whether they hold."""
    found = []
    for target in targets:
        above, below = seconds[target.numerator], seconds[target.denominator]
        median = statistics.median(a / b for a, b in zip(above, below, strict=True))
        row: dict[str, Any] = {
            "numerator": target.numerator,
            "denominator": target.denominator,
            "median_of_ratios": round(median, 3),
            "ratio_of_minima": round(min(above) / min(below), 3),
        }
        if target.bound is not None:
            row["target"] = f"{target.sense} {target.bound:g}"
            row["holds"] = bool(
                median <= target.bound if target.sense == "at most" else median >= target.bound
            )
        if target.note:
            row["note"] = target.note
        found.append(row)
    return found


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Least and median milliseconds of every job."""
    return {
        name: {
            "min_ms": round(min(times) * 1e3, 3),
            "median_ms": round(statistics.median(times) * 1e3, 3),
        }
        for name, times in seconds.items()
    }


def finish(topic: str, args: argparse.Namespace, cases: list[dict[str, Any]]) -> None:
    """Print the ratios; write the record where ``--out`` says."""
    record = {
        "topic": topic,
        "quick": args.quick,
        "repeats": args.repeats,
        "clock": args.clock,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": processor(),
        "allocator": {n: v for n, v in sorted(os.environ.items()) if n.startswith(ALLOCATOR)},
        "cases": cases,
    }
    for case in cases:
        print(f"{topic}: {case['case']}")
        if "skipped" in case:
            print(f"  not run: {case['skipped']}")
        for row in case.get("ratios", ()):
            verdict = ""
            if "target" in row:
                verdict = f"  target {row['target']}: {'holds' if row['holds'] else 'MISSED'}"
            print(
                f"  {row['numerator']} / {row['denominator']}: "
                f"{row['median_of_ratios']:.2f}{verdict}"
            )
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def network(spec: str) -> Classifier:
    """``ARCH@WEIGHTS`` or a folder; a bare ``ARCH`` has random weights."""
    if "@" in spec or Path(spec).exists():
        return load_classifier(spec)
    return new_classifier(spec)


def pictures(
    classifier: Classifier, count: int, data: str | None, split: str
) -> tuple[Tensor, Tensor]:
    """The first test images; without data, random pixels with the classifier's own answers."""
    if data is not None:
        from unperturb.data import load_images

        loaded = load_images(data, split=split, limit=count)
        return loaded.images(), loaded.labels
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 32, 32, generator=generator)
    with torch.no_grad():
        return images, torch.cat([classifier(part).argmax(1) for part in images.split(128)])
