"""Records of 10,000 images under 20 attacks: bytes on disk, and seconds to read and report them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import finish, parse
from unperturb.audit.plan import Plan, Unit
from unperturb.audit.run import complete
from unperturb.audit.store import Rows, Store
from unperturb.networks.registry import network_names

BYTES, SECONDS = 50_000_000, 5.0


def plan(images: int, attacks: int) -> Plan:
    facts = {"access": "gradients", "bound": "threat", "rules": ["fixed", "first-success"]}
    describe = {"arch": sorted(network_names())[0], "num_classes": 10}
    subject = {"fingerprint": "f" * 64, "name": "net", "title": "net", "describe": describe}
    return Plan(
        attacks=tuple(
            {"name": f"attack-{k:02d}", "steps": 100, "restarts": 1, "gradients": 100, **facts}
            for k in range(attacks)
        ),
        attackers=("adaptive",), norm="linf", eps=8 / 255, seed=0, batch_size=128,
        scoring_draws=1, backwards=("exact",), keep_images="none",
        ids=tuple(f"test-{k:06d}" for k in range(images)), target=subject, baseline=subject,
        has_defense=False, data={"fingerprint": "d" * 64, "source": "made up", "classes": []},
    )  # fmt: skip


def rows(unit: Unit, ids: tuple[str, ...], random: np.random.Generator) -> Rows:
    """Made-up rows that compress no better than real ones: random where real ones are."""
    count = unit.stop - unit.start
    attacked = unit.kind != "clean"
    right = random.random(count) < (0.4 if attacked else 0.9)

    def text(value: str) -> Any:
        return np.full(count, value, dtype=object)

    def real(scale: float) -> Any:
        return (random.random(count) * scale).astype(np.float32)

    def nothing() -> Any:
        return np.full(count, np.nan, dtype=np.float32)

    zeros = np.zeros(count, dtype=np.int32)
    hashes = [hashlib.sha256(random.bytes(8)).hexdigest()[:32] for _ in range(count)]
    return {
        "image_id": np.array(ids[unit.start : unit.stop], dtype=object),
        "subject": text("target"), "attack": text(unit.attack), "attacker": text(unit.attacker),
        "backward": text(unit.backward), "rule": text(unit.rule), "goal": text(unit.goal),
        "eps": np.full(count, unit.eps), "purpose": text("score"), "draw": zeros,
        "label": random.integers(0, 10, count).astype(np.int32),
        "prediction": random.integers(0, 10, count).astype(np.int32),
        "correct": right, "flagged": np.zeros(count, dtype=bool), "correct_8bit": right,
        "inside": np.ones(count, dtype=bool), "margin": real(5.0), "detector": nothing(),
        "linf": real(0.03), "l2": real(1.5), "measure": nothing(),
        "queries": random.integers(1, 100, count).astype(np.int32),
        "gradients": random.integers(1, 100, count).astype(np.int32), "zero_gradients": zeros,
        "nan_gradients": zeros,
        "pixels": np.array(hashes, dtype=object),
    }  # fmt: skip


READ = """
import sys, time
import numpy, pyarrow.parquet, scipy.stats, torch  # imports are no part of reading
from unperturb.audit import read_result
import unperturb.audit.report
began = time.perf_counter()
read_result(sys.argv[1]).save_report()
print(time.perf_counter() - began)
"""


def main() -> None:
    args = parse(
        "Size and reading of large records",
        repeats=3,
        images={"type": int, "default": 10_000},
        attacks={"type": int, "default": 20},
    )
    settings = plan(args.images, args.attacks)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(Path(temporary))
        store.begin(settings, [0] * args.images, {"threads": 1})
        for unit in settings.units():
            seconds = {"unit": 1.0, "attack": 0.9, "scoring": 0.1}
            store.write(unit, rows(unit, settings.ids, random), {}, seconds)
        complete(store)
        weighed = sum(p.stat().st_size for p in Path(temporary).rglob("*") if p.is_file())
        times = [
            float(
                subprocess.run(
                    [sys.executable, "-c", READ, temporary],
                    check=True, capture_output=True, text=True,
                ).stdout
            )
            for _ in range(args.repeats)
        ]  # fmt: skip
    print(f"{weighed / 1e6:.1f} MB; read and reported in {min(times):.2f} s")
    case = {
        "case": f"{args.images:,} images, {args.attacks} attacks",
        "bytes": weighed,
        "seconds": times,
        "checks": [
            {
                "what": "read and reported",
                "seconds": min(times),
                "at_most": SECONDS,
                "holds": min(times) <= SECONDS,
                "note": f"{weighed / 1e6:.1f} MB on disk, at most {BYTES / 1e6:.0f}: "
                f"{'holds' if weighed <= BYTES else 'missed'}",
            }
        ],
    }
    finish("records", args, [case])


if __name__ == "__main__":
    main()
