"""Streaming a logit bank from disk, without training and with it, in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import Target, compare, interleave, summary
from logit_products import bound, fastest, layouts, stepper

__all__ = ["streaming"]

GIB = 2**30
MEMORY = 2 * GIB
STREAM, STEP = 1.0, 1.5


def write_bank(folder: Path, rows: int, classes: int) -> None:
    """A bank of random logits, clean and under one attack, in the files of `unperturb bank`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from unperturb.banks.bank import FORMAT, MANIFEST, PLAN, ROWS, open_bank, shard_path
    from unperturb.banks.settings import CLEAN, BankSettings
    from unperturb.files import write_json

    settings = BankSettings(
        classifier="0" * 64, data="0" * 64, num_classes=classes, count=rows, norm="linf",
        eps=16 / 255, seed=0,
    )  # fmt: skip
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for source in (CLEAN, "pgd-10"):
        for number, (start, stop) in enumerate(settings.shards):
            path = shard_path(folder, source, number)
            path.parent.mkdir(exist_ok=True)
            np.save(path, random.standard_normal((stop - start, classes), np.float32))
            write_json(path.with_suffix(".json"), {"rows": stop - start})
        sources[source] = {"correct": 0, "rounding": 0.0, "other_answers": 0, "sha256": []}
    labels = random.integers(0, classes, rows)
    pq.write_table(pa.table({"id": list(map(str, range(rows))), "label": labels}), folder / ROWS)
    plan = {
        "format": FORMAT,
        "settings": settings.to_dict(),
        "settings_hash": settings.hash(),
        "attacks": [{"name": "pgd-10"}],
        "classes": [],
        "arch": "none",
        "source": "random numbers",
        "split": "train",
    }
    write_json(folder / PLAN, plan)
    write_json(folder / MANIFEST, {"digest": "0" * 64, "sources": sources, "weak": []})
    assert len(open_bank(folder)) == rows


def forget(folder: Path) -> None:
    """Let the system drop its copies of the bank's files, so that they are read from disk."""
    os.sync()
    for path in folder.rglob("*.npy"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def peak() -> int:
    """Most bytes that ever lay in this process's memory (getrusage would count its parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def worker(folder: str, given: str) -> None:
    """Stream and train in this process alone; print what was found as JSON."""
    from unperturb.banks import open_bank
    from unperturb.correction.config import CorrectionConfig
    from unperturb.correction.fit import RECORD, fit_correction
    from unperturb.correction.stream import LogitStream

    args = Namespace(**json.loads(given))
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    began = {"imports": peak()}
    bank = open_bank(folder)
    config = CorrectionConfig(batch_size=args.batch, width=args.width, epochs=1)
    everything = torch.ones(len(bank), dtype=torch.bool)
    stream = LogitStream(bank, bank.attacks, everything, config)

    def stream_alone() -> None:
        rows = 0
        for logits, labels in stream.batches(0):
            logits.sum()  # Each number is looked at once, as training would.
            rows += len(labels)
        assert rows == len(bank)

    def stream_cold() -> None:
        forget(Path(folder))
        stream_alone()

    stream_alone()
    began["stream"] = peak()
    # A whole epoch as users have it: held-out rows, checkpoints and all.
    out = Path(folder).with_name("fit")
    corrector = fit_correction(bank, config, out=out, show=False)
    began["training"] = peak()
    fitted = corrector.card["rows"]["trained"]
    epoch = json.loads((out / RECORD).read_text(encoding="utf-8"))["epochs"][0]["seconds"]
    step = stepper(args.batch, args.classes, args.width)
    steps = min(args.steps, stream.steps)

    def train() -> None:
        for number, (logits, labels) in enumerate(islice(stream.batches(0), steps)):
            step(logits, labels, number)

    # What is compared with needs memory of its own, which is not counted.
    layout, bare = fastest(layouts(args), args.clock)

    def multiply() -> None:
        for _ in range(steps):
            bare()

    jobs: dict[str, Callable[[], object]] = {
        "five products": multiply,
        "training through the stream": train,
        "stream alone": stream_alone,
    }
    seconds = interleave(jobs, repeats=args.repeats, clock=args.clock, warmups=0)
    # Reading from disk waits, which no processor's clock counts.
    start = time.perf_counter()
    stream_cold()
    cold = time.perf_counter() - start
    found = {
        "steps": steps,
        "epoch_steps": stream.steps,
        "layout": layout,
        "cold": cold,
        "fit": {"rows": fitted, "seconds": epoch},
        "peaks": began,
        "seconds": {
            # Of one step each: the stream alone goes through the whole bank.
            name: [t / (stream.steps if name == "stream alone" else steps) for t in times]
            for name, times in seconds.items()
        },
    }
    print(json.dumps(found))


def streaming(args: Namespace) -> dict[str, Any]:
    case = f"streaming a bank of {args.rows:,} x {args.classes:,}, D = {args.width:,}"
    need = 8 * args.rows * args.classes
    place = Path(args.folder or tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if free < 1.1 * need:
        reason = f"the bank takes {need / GIB:.1f} GiB, {place} has {free / GIB:.1f} GiB left"
        return {"case": case, "skipped": reason}
    given = {name: getattr(args, name) for name in (
        "batch", "classes", "width", "threads", "clock", "repeats", "steps",
    )}  # fmt: skip
    given["repeats"] = min(3, args.repeats)
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        folder = Path(temporary) / "bank"
        write_bank(folder, args.rows, args.classes)
        command = [sys.executable, __file__, str(folder), json.dumps(given)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    seconds, peaks = found["seconds"], found["peaks"]
    rates = {name: round(args.batch / min(times)) for name, times in seconds.items()}
    cold = round(args.rows / found["cold"])
    fit = round(found["fit"]["rows"] / found["fit"]["seconds"])
    targets = [
        Target("stream alone", "five products", bound(args, STREAM, "batch"),
               note=f"{rates['stream alone']:,} rows a second, {cold:,} from disk; the products "
               f"take {rates['five products']:,}"),
        Target("training through the stream", "five products", bound(args, STEP, "batch"),
               note=f"{rates['training through the stream']:,} rows a second, "
               f"{found['steps']} of {found['epoch_steps']} steps of an epoch; a whole one of fit "
               f"{fit:,}"),
    ]  # fmt: skip
    grown = peaks["training"] - peaks["imports"]
    return {
        "case": case,
        "layout": found["layout"],
        "rows_a_second": {**rates, "stream alone, from disk": cold, "an epoch of fit": fit},
        "peak_bytes": peaks,
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
        "checks": [
            {
                "what": "peak resident memory of a fit over the bank",
                "value": round(peaks["training"] / GIB, 3),
                "unit": "GiB",
                "at_most": MEMORY / GIB,
                "holds": peaks["training"] <= MEMORY,
                "note": f"{grown / GIB:.2f} GiB above that of the imports, of which the stream "
                f"{(peaks['stream'] - peaks['imports']) / GIB:.2f} GiB",
            }
        ],
    }


if __name__ == "__main__":
    worker(*sys.argv[1:3])
