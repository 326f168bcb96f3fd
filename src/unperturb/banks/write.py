"""Writing a logit bank: a fixed-step run of each attack over a data set, resumable."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unperturb.attacks import Attack, Surface, describe_attack, resolve_attacks
from unperturb.banks.bank import (
    FORMAT,
    MANIFEST,
    PLAN,
    ROWS,
    LogitBank,
    file_hash,
    is_bank,
    open_bank,
    read_plan,
    shard_path,
)
from unperturb.banks.settings import CLEAN, BankSettings, decode, encode, folder_of
from unperturb.checks import check_labels
from unperturb.classifiers import Classifier
from unperturb.data import ImageSet
from unperturb.errors import ConfigError, OutputError, RecordError
from unperturb.files import short_paths, write_atomic, write_json
from unperturb.progress import progress
from unperturb.randomness import Keys
from unperturb.threat import Threat
from unperturb.training.twin import make_twin

__all__ = ["HURT", "make_bank"]

HURT = 0.5
"""An attack has hurt a classifier if it leaves less than this share of its clean accuracy."""


def make_bank(
    classifier: Classifier,
    data: ImageSet,
    *,
    attacks: str | Sequence[str | Attack],
    threat: Threat,
    out: str | Path,
    seed: int = 0,
    dtype: str = "float32",
    shard_size: int = 2048,
    batch_size: int = 128,
    labels: str = "true",
    precision: str = "float32",
    device: torch.device | str = "cpu",
    show: bool = False,
) -> LogitBank:
    """Run attacks over a data set and keep clean and adversarial logits.

    Attacks differentiate a copy of the classifier with its batch norms folded into the
    convolutions, where that can be done: equal up to rounding, and faster. Each attack runs with
    all its steps against the undefended classifier (the papers' rule: an
    image that stopped at the boundary is a weaker perturbation; minimal-norm attacks keep their
    own rule), and the logits of its images are those of a fresh forward pass. The same call goes
    on after a kill, which loses at most one file of ``shard_size`` rows; called with further
    attacks, it adds them to the bank.

    Args:
        classifier: The classifier.
        data: Images and true labels.
        attacks: A suite, names with commas, or a list.
        threat: Norm and size; minimal-norm attacks are not bounded by it.
        out: The bank's folder.
        seed: Seed of the attacks.
        dtype: ``float32``; ``float16`` and ``bfloat16`` halve the size, and the manifest states
            the largest rounding error.
        shard_size: Rows of a file.
        batch_size: Images at a time.
        labels: ``true``: attacks step away from the true label, as in the paper; ``predicted``:
            from the predicted one, the control for label leaking.
        precision: Arithmetic of the attacks' gradients. ``bfloat16`` takes about half the time;
            minimal-norm attacks, whose images lie at the boundary, keep float32. Images are
            clipped and judged, and logits recorded, in float32 either way.
        device: Where to compute.
        show: Show progress.

    Returns:
        The bank, opened.

    Raises:
        ConfigError: A setting is out of range, or a logit does not fit the dtype.
        InputError: The images or labels do not fit the classifier, or it gives NaN.
        RecordError: The folder holds another bank, or something else.
        OutputError: The folder cannot be written or the disk is full; what is there stays, and
            the same call goes on.
    """
    chosen = resolve_attacks(attacks)
    for attack in chosen:
        if attack.name == CLEAN:
            raise ConfigError("An attack is named 'clean'", expected="another name")
        check = getattr(attack, "check", None)
        if check is not None:
            check(Surface(classifier), threat)
    classifier.check(data.images(slice(0, 2)))
    check_labels(data.labels, count=len(data), num_classes=classifier.num_classes)
    settings = BankSettings(
        classifier=classifier.fingerprint(),
        data=data.fingerprint(),
        num_classes=classifier.num_classes,
        count=len(data),
        norm=threat.norm,
        eps=threat.eps,
        seed=seed,
        dtype=dtype,
        shard_size=shard_size,
        batch_size=batch_size,
        labels=labels,
        precision=precision,
    )
    folder = Path(out)
    with _locked(folder):
        plan = _begin(folder, settings, chosen, classifier, data)
        run = _Run(classifier.to(device), data, settings, threat, folder, torch.device(device))
        # Those of an earlier call with fewer attacks come first and are whole.
        known = {attack.name: attack for attack in chosen}
        sources = [(CLEAN, None), *((a["name"], known.get(a["name"])) for a in plan["attacks"])]
        with progress(total=len(data) * len(sources), desc="bank", show=show, unit="image") as bar:
            for source, method in sources:
                for number, (start, stop) in enumerate(settings.shards):
                    if not _finished(folder, source, number):
                        if source != CLEAN and method is None:
                            raise RecordError(
                                f"The bank {folder} was begun with the attack {source!r}, which is "
                                "not finished",
                                expected="the same attacks, or more",
                                fix=f"name {source} too",
                            )
                        bar.set_description(f"bank {source}")
                        run.piece(source, method, number)
                    bar.update(stop - start)
        _finish(folder, plan, settings)
    return open_bank(folder)


class _Run:
    """What computing a piece needs."""

    def __init__(
        self,
        classifier: Classifier,
        data: ImageSet,
        settings: BankSettings,
        threat: Threat,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.classifier, self.data, self.settings = classifier, data, settings
        self.threat, self.folder, self.device = threat, folder, device
        few = data.images(slice(0, 2)).to(device)
        self.exact = make_twin(classifier, few) or classifier
        self.quick = _Rounded(self.exact) if settings.precision == "bfloat16" else self.exact

    def piece(self, source: str, attack: Attack | None, number: int) -> None:
        """Compute and write one file, and then what ends it."""
        start, stop = self.settings.shards[number]
        size = self.settings.batch_size
        parts = [
            self._batch(source, attack, slice(first, min(first + size, stop)))
            for first in range(start, stop, size)
        ]
        logits = torch.cat(parts)
        array = encode(logits, self.settings.dtype)
        stored = decode(array, self.settings.dtype)
        path = shard_path(self.folder, source, number)
        _save_array(path, array)
        labels = self.data.labels[start:stop]
        write_json(
            path.with_suffix(".json"),
            {
                "sha256": file_hash(path),
                "rows": stop - start,
                "correct": int((logits.argmax(1) == labels).sum()),
                "rounding": float((stored - logits).abs().max()),
                "other_answers": int((stored.argmax(1) != logits.argmax(1)).sum()),
            },
        )

    def _batch(self, source: str, attack: Attack | None, rows: slice) -> Tensor:
        images = self.data.images(rows).to(self.device)
        if attack is not None:
            goal = self.data.labels[rows].to(self.device)
            if self.settings.labels == "predicted":
                goal = self._logits(images).argmax(1)
            keys = Keys.of(self.settings.seed, self.data.ids[rows], domain=f"bank/{source}")
            near = getattr(attack, "bound", "threat") == "minimal"
            surface = Surface(self.exact if near else self.quick)
            images = attack.run(
                surface, images, goal, threat=self.threat, keys=keys, stop="fixed"
            ).images
        logits = self._logits(images).float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise RecordError(
                f"The classifier gives NaN or infinite logits ({source}, rows {rows.start} to "
                f"{rows.stop})",
                expected="finite logits",
                fix="another classifier, or a smaller eps",
            )
        return logits

    @torch.no_grad()
    def _logits(self, images: Tensor) -> Tensor:
        found: Tensor = self.classifier(images.contiguous(memory_format=torch.channels_last))
        return found


class _Rounded(nn.Module):
    """A network in bfloat16 arithmetic that takes and gives float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.network(images)
        return logits.float()


def _save_array(path: Path, array: NDArray[Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)

    write_atomic(path, write)


def _finished(folder: Path, source: str, number: int) -> bool:
    path = shard_path(folder, source, number)
    return path.is_file() and path.with_suffix(".json").is_file()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder: two commands never write into one bank."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"Another process is writing into {folder}",
            expected="one at a time in a folder",
            fix="wait for it, or choose another --out",
        ) from None
    except OSError as error:
        raise OutputError(
            f"Cannot write into {folder}: {error.strerror or error}",
            expected="a folder that can be written to",
            fix="choose another --out",
        ) from error
    try:
        # What a killed writer left; nobody else writes while the lock is held.
        for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
            path.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _begin(
    folder: Path,
    settings: BankSettings,
    attacks: Sequence[Attack],
    classifier: Classifier,
    data: ImageSet,
) -> dict[str, Any]:
    """Write the plan, or take the one that is there, with our attacks added."""
    told = [describe_attack(attack) for attack in attacks]
    if not is_bank(folder):
        strangers = sorted(p.name for p in folder.iterdir() if p.name != ".lock")
        if strangers:
            raise RecordError(
                f"{folder} is not empty and holds no logit bank ({', '.join(strangers[:4])})",
                expected="a new or empty folder, or a bank of the same settings",
                fix="choose another --out",
            )
        _save_rows(folder / ROWS, data)
        plan: dict[str, Any] = {
            "format": FORMAT,
            "settings": settings.to_dict(),
            "settings_hash": settings.hash(),
            "attacks": told,
            "classes": list(data.classes),
            "arch": classifier.origin.arch,
            "source": short_paths(data.source),
            "split": data.split,
            "environment": {
                "torch": torch.__version__,
                "machine": platform.machine(),
                "threads": torch.get_num_threads(),
            },
        }
        write_json(folder / PLAN, plan)
        return plan
    plan = read_plan(folder)
    _check_same(folder, plan, settings)
    there = {attack["name"]: attack for attack in plan["attacks"]}
    for attack in told:
        known = there.get(attack["name"])
        if known is not None and known != json.loads(json.dumps(attack)):
            raise RecordError(
                f"The bank {folder} holds {attack['name']} with other settings",
                expected="the same settings under one name",
                fix="choose another --out",
            )
    new = [attack for attack in told if attack["name"] not in there]
    if new:
        plan["attacks"] += new
        write_json(folder / PLAN, plan)
    return plan


def _check_same(folder: Path, plan: dict[str, Any], settings: BankSettings) -> None:
    ours, theirs = settings.to_dict(), plan["settings"]
    changed = [
        f"{key}: {theirs.get(key)} there, {value} here"
        for key, value in ours.items()
        if theirs.get(key) != value
    ]
    if changed:
        raise RecordError(
            f"{folder} holds another bank ({'; '.join(changed[:5])})",
            expected="the same classifier, images and settings",
            fix="choose another --out, or delete that folder",
        )


def _save_rows(path: Path, data: ImageSet) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": list(data.ids), "label": data.labels.numpy()})
    write_atomic(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _finish(folder: Path, plan: dict[str, Any], settings: BankSettings) -> None:
    """The manifest, last: digest, accuracies, rounding, and attacks that failed to hurt."""
    sources: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256(settings.hash().encode())
    for source in (CLEAN, *(attack["name"] for attack in plan["attacks"])):
        pieces = [
            json.loads((folder / folder_of(source) / f"{i:05d}.json").read_text(encoding="utf-8"))
            for i in range(len(settings.shards))
        ]
        sources[source] = {
            "correct": sum(piece["correct"] for piece in pieces),
            "rounding": max(piece["rounding"] for piece in pieces),
            "other_answers": sum(piece["other_answers"] for piece in pieces),
            "sha256": [piece["sha256"] for piece in pieces],
        }
        digest.update(json.dumps([source, sources[source]["sha256"]]).encode())
    count = settings.count
    clean = sources[CLEAN]["correct"] / count
    weak = [
        f"{source} leaves {facts['correct'] / count:.1%} of the images right, of {clean:.1%} when "
        "clean: it failed to hurt the classifier, and a corrector has little to learn from it"
        for source, facts in sources.items()
        if source != CLEAN and facts["correct"] > HURT * clean * count
    ]
    write_json(
        folder / MANIFEST,
        {
            "digest": digest.hexdigest(),
            "rows": count,
            "num_classes": settings.num_classes,
            "sources": sources,
            "weak": weak,
        },
    )
