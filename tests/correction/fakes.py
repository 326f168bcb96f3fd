"""A bank in memory, with what fits read of one, logits that can be corrected by a rule; fits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unperturb.correction import Corrector
from unperturb.correction.config import CorrectionConfig
from unperturb.correction.fit import RECORD, fit_correction

SWAP, FLIP = "swap", "flip-3?strength=2"


class FakeBank:
    """Stands in for a ``LogitBank``; counts what is read of it."""

    def __init__(
        self,
        logits: dict[str, Tensor],
        labels: Tensor,
        *,
        shard: int = 16,
        weak: tuple[str, ...] = (),
    ) -> None:
        self._logits = logits
        self.labels = labels
        self.ids = tuple(f"image {i}" for i in range(len(labels)))
        self.attacks = tuple(name for name in logits if name != "clean")
        self.num_classes = logits["clean"].shape[1]
        self.classes = tuple(f"class {i}" for i in range(self.num_classes))
        self.classifier, self.arch = "c" * 64, "a net"
        self.split, self.source, self.dtype = "train", "some/where/images", "float32"
        self.weak = weak
        count = len(labels)
        self.shards = [(i, min(i + shard, count)) for i in range(0, count, shard)]
        digest = hashlib.sha256()
        for name, value in logits.items():
            digest.update(name.encode() + value.numpy().tobytes())
        self.digest = digest.hexdigest()
        self.reads: list[tuple[str, int, int]] = []

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, source: str, start: int, stop: int) -> Tensor:
        self.reads.append((source, start, stop))
        return self._logits[source][start:stop].clone()

    def logits(self, source: str) -> Tensor:
        return self._logits[source].clone()


def numbered(count: int = 100, classes: int = 3, attacks: int = 2, **more: Any) -> Any:
    """Logits that say which row and which source they are: (row, source, 0, ...)."""
    names = ["clean", *(f"attack-{i}" for i in range(attacks))]
    logits = {}
    for number, name in enumerate(names):
        logits[name] = torch.zeros(count, classes)
        logits[name][:, 0] = torch.arange(count)
        logits[name][:, 1] = number
    return FakeBank(logits, torch.arange(count) % classes, **more)


def swapped(count: int = 1200, classes: int = 5, seed: int = 0, **more: Any) -> Any:
    """Clean logits that are right, and two attacks that leave nothing right but a trace.

    ``swap`` exchanges the true class's logit with that of the next class, and lifts all logits by
    4; ``flip`` negates them, and lowers all by 4.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    clean = 0.5 * torch.randn(count, classes, generator=generator)
    clean[torch.arange(count), labels] += 4.0
    swap = clean.clone()
    rows, other = torch.arange(count), (labels + 1) % classes
    swap[rows, labels], swap[rows, other] = clean[rows, other], clean[rows, labels]
    return FakeBank({"clean": clean, SWAP: swap + 4.0, FLIP: -clean - 4.0}, labels, **more)


def config(**changes: Any) -> CorrectionConfig:
    """A small network that learns in a second."""
    found: dict[str, Any] = {
        "width": 48, "lr": 5e-3, "batch_size": 32, "epochs": 2, "holdout": 0.2, "seed": 3,
    }  # fmt: skip
    return CorrectionConfig(**{**found, **changes})


def fit(bank: Any, settings: Any, **options: Any) -> Corrector:
    return fit_correction(bank, settings, **{"show": False, **options})


def state(corrector: Corrector) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in corrector.network.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def epochs(folder: Path) -> list[dict[str, Any]]:
    """Records of the epochs without their times."""
    listed = json.loads((folder / RECORD).read_text())["epochs"]
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in listed]
