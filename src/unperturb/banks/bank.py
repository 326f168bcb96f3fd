"""Reading a logit bank: memory-mapped, a piece at a time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unperturb.banks.settings import (
    CLEAN,
    DTYPES,
    SCHEMA_VERSION,
    BankSettings,
    decode,
    folder_of,
)
from unperturb.errors import RecordError, SpecError, unknown_name

__all__ = ["LogitBank", "is_bank", "open_bank", "read_plan"]

FORMAT = "unperturb-bank"
PLAN, MANIFEST, ROWS = "plan.json", "manifest.json", "rows.parquet"

_REDO = "delete that file and run the same unperturb bank command again: only it is redone"


class LogitBank:
    """Clean and adversarial logits of a data set.

    ``rows`` copies what is asked for and closes the memory map again, so that the memory of a
    process that streams through a bank does not grow with the bank.

    Attributes:
        folder: Where it is.
        settings: What decided its contents.
        manifest: Facts: attacks and their settings, accuracies, rounding errors, environment.
        attacks: Names of the attacks, in order.
        labels: True labels (N,) int64.
        ids: Image ids, N of them.
        classes: Names of the classes; empty if they are not known.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.settings = _settings(plan, folder)
        self.attacks: tuple[str, ...] = tuple(attack["name"] for attack in plan["attacks"])
        self.classes: tuple[str, ...] = tuple(plan["classes"])
        self.arch, self.source, self.split = plan["arch"], plan["source"], plan["split"]
        self.ids, self.labels = _rows(folder / ROWS, self.settings.count)

    def __len__(self) -> int:
        return self.settings.count

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.settings.num_classes

    @property
    def classifier(self) -> str:
        """Fingerprint of the classifier."""
        return self.settings.classifier

    @property
    def dtype(self) -> str:
        """How logits are stored."""
        return self.settings.dtype

    @property
    def digest(self) -> str:
        """SHA-256 over settings, rows and all logits; the same after any number of kills."""
        return str(self.manifest["digest"])

    @property
    def shards(self) -> list[tuple[int, int]]:
        """First row and one past the last row of each file."""
        return self.settings.shards

    @property
    def weak(self) -> tuple[str, ...]:
        """Sentences about attacks that failed to hurt the classifier; empty where all did."""
        return tuple(self.manifest["weak"])

    def accuracy(self, source: str) -> float:
        """The classifier's accuracy on ``clean`` rows or under an attack."""
        self._check(source)
        return float(self.manifest["sources"][source]["correct"]) / len(self)

    def rows(self, source: str, start: int, stop: int) -> Tensor:
        """Logits of some rows, as a copy in memory.

        Args:
            source: ``clean``, or the name of an attack.
            start: First row.
            stop: One past the last row.

        Returns:
            (stop - start, K) float32.

        Raises:
            SpecError: The bank has no such source.
            RecordError: A file is missing or damaged.
        """
        self._check(source)
        start, stop = max(start, 0), min(stop, len(self))
        parts = []
        size = self.settings.shard_size
        for number in range(start // size, -(-stop // size)):
            first, last = self.shards[number]
            piece = self._open(source, number, last - first)
            parts.append(decode(piece[max(start - first, 0) : min(stop, last) - first], self.dtype))
        return torch.cat(parts) if parts else torch.empty(0, self.num_classes)

    def logits(self, source: str) -> Tensor:
        """All logits of a source, (N, K) float32, in memory."""
        return self.rows(source, 0, len(self))

    def verify(self) -> None:
        """Read every file and compare it with the hash that was written with it.

        Raises:
            RecordError: A file is missing or was changed.
        """
        for source in (CLEAN, *self.attacks):
            for number, known in enumerate(self.manifest["sources"][source]["sha256"]):
                path = shard_path(self.folder, source, number)
                if not path.is_file() or file_hash(path) != known:
                    raise RecordError(
                        f"{path} is {'changed' if path.is_file() else 'missing'}",
                        expected=f"the file with SHA-256 {known[:12]}",
                        fix=_REDO,
                    )

    def _check(self, source: str) -> None:
        if source != CLEAN and source not in self.attacks:
            raise unknown_name("source of this bank", source, (CLEAN, *self.attacks))

    def _open(self, source: str, number: int, count: int) -> np.ndarray[Any, Any]:
        path = shard_path(self.folder, source, number)
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RecordError(
                f"{path} cannot be read: {error}", expected="a file of logits", fix=_REDO
            ) from error
        kind = "uint16" if self.dtype == "bfloat16" else self.dtype
        if found.shape != (count, self.num_classes) or found.dtype != np.dtype(kind):
            raise RecordError(
                f"{path} has shape {found.shape} and dtype {found.dtype}",
                expected=f"{(count, self.num_classes)} and {kind}",
                fix=_REDO,
            )
        return found  # type: ignore[no-any-return]


def shard_path(folder: Path, source: str, number: int) -> Path:
    """File of a shard's logits."""
    return folder / folder_of(source) / f"{number:05d}.npy"


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_bank(folder: str | Path) -> bool:
    """Whether a folder holds a bank, finished or not."""
    try:
        plan = json.loads((Path(folder) / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(plan, dict) and plan.get("format") == FORMAT


def open_bank(folder: str | Path) -> LogitBank:
    """Open a finished bank.

    Raises:
        SpecError: The folder holds no bank.
        RecordError: The bank is unfinished, damaged, or of another version.
    """
    folder = Path(folder)
    if not is_bank(folder):
        raise SpecError(
            f"There is no logit bank in {str(folder)!r}",
            expected="the --out folder of unperturb bank",
            fix="make one: unperturb bank --classifier ... --data ... --attacks pgd-10 --out "
            f"{folder}",
        )
    plan = read_plan(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise RecordError(
            f"The bank {str(folder)!r} is not finished",
            expected="a bank whose every attack is through",
            fix="run the same unperturb bank command again: it goes on where it stopped",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        missing = [a["name"] for a in plan["attacks"] if a["name"] not in manifest["sources"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is damaged: {error}", expected="JSON", fix=_REDO) from error
    if missing:
        raise RecordError(
            f"The bank {str(folder)!r} is not finished: {', '.join(missing)}",
            expected="a bank whose every attack is through",
            fix="run the same unperturb bank command again: it goes on where it stopped",
        )
    return LogitBank(folder, plan, manifest)


def read_plan(folder: Path) -> dict[str, Any]:
    """What was to be computed.

    Raises:
        RecordError: It is damaged or of another version.
    """
    path = folder / PLAN
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = plan["settings"]["schema_version"]
        names = [attack["name"] for attack in plan["attacks"]]
        found = [plan[key] for key in ("classes", "arch", "source", "split", "settings_hash")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path} is damaged: {error}", expected="the plan of a logit bank"
        ) from error
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {version!r}",
            expected=f"schema version {SCHEMA_VERSION}",
            fix="read it with the version of unperturb that wrote it",
        )
    assert len(found) == 5
    assert all(isinstance(name, str) for name in names)
    return plan


def _settings(plan: dict[str, Any], folder: Path) -> BankSettings:
    values = {k: v for k, v in plan["settings"].items() if k != "schema_version"}
    try:
        settings = BankSettings(**values)
    except TypeError as error:
        raise RecordError(f"{folder / PLAN} is damaged: {error}", expected="a plan") from error
    if settings.dtype not in DTYPES or settings.hash() != plan["settings_hash"]:
        raise RecordError(
            f"{folder / PLAN} was changed: its settings do not have the hash it states",
            expected=f"the hash {plan['settings_hash'][:12]}",
            fix="make the bank again",
        )
    return settings


def _rows(path: Path, count: int) -> tuple[tuple[str, ...], Tensor]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["id", "label"])
    except (OSError, pa.ArrowException) as error:
        raise RecordError(
            f"{path} cannot be read: {error}", expected="ids and labels", fix="make the bank again"
        ) from error
    if len(table) != count:
        raise RecordError(
            f"{path} has {len(table)} rows", expected=str(count), fix="make the bank again"
        )
    labels = torch.from_numpy(np.array(table["label"].to_numpy(), dtype=np.int64))
    return tuple(table["id"].to_pylist()), labels
