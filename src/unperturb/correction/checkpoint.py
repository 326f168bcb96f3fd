"""Where a fit stands: everything it needs to go on as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from unperturb.checkpoints import CHECKPOINT, Epoch, read_state, under
from unperturb.correction.step import TrainingStep
from unperturb.errors import RecordError
from unperturb.files import write_tensors
from unperturb.networks.corrector import CorrectionNetwork

__all__ = ["CHECKPOINT", "Epoch", "FitCheckpoint"]


class FitCheckpoint:
    """State of a fit, on disk after each epoch and now and then within one.

    Args:
        step: What is trained: weights and the moments of Adam.
        network: A network of the same shape, into which the weights of an epoch are copied.
        identity: What the fit is a function of: settings, bank, classifier, attacks.
        path: The file; None keeps nothing on disk.
        keep: ``best`` or ``last``.

    Attributes:
        epochs: Records of the epochs that are done.
        steps: Steps done of the epoch after those.
        loss: Sum of the losses of these steps.
        seconds: Time they took.
        best_epoch: Number of the epoch with the greatest score, from 1; 0 as long as none is done.
    """

    def __init__(
        self,
        step: TrainingStep,
        network: CorrectionNetwork,
        identity: dict[str, Any],
        path: Path | None,
        keep: str,
    ) -> None:
        self.step, self.network, self.path, self.keep = step, network, path, keep
        # As it reads when it comes back from a file.
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.epochs: list[Epoch] = []
        self.steps, self.loss, self.seconds = 0, 0.0, 0.0
        self.best_epoch, self.best_score = 0, float("-inf")
        self._best: dict[str, Tensor] = {}

    @property
    def kept_epoch(self) -> int:
        """Number of the epoch whose weights are kept."""
        return self.best_epoch if self.keep == "best" else len(self.epochs)

    def read(self) -> None:
        """Go on from the file, if there is one.

        Raises:
            RecordError: It is damaged, or belongs to another fit.
        """
        if self.path is None or not self.path.exists():
            return
        meta, tensors = read_state(self.path, key="fit", required="identity", words="fit")
        theirs = meta["identity"]
        if theirs != self.identity:
            raise RecordError(
                f"{self.path} belongs to another fit ({_difference(theirs, self.identity)})",
                expected="the same settings and the same bank",
                fix="choose another --out, or delete that checkpoint",
            )
        self.epochs, self.steps = meta["epochs"], meta["steps"]
        self.loss, self.seconds = meta["loss"], meta["seconds"]
        self.best_epoch = meta["best_epoch"]
        self.best_score = float("-inf") if meta["best_score"] is None else meta["best_score"]
        self.step.load(under(tensors, "step."))
        self._best = under(tensors, "best.")
        if self.keep == "best" and self.best_epoch and not self._best:
            self._best = self._snapshot()

    def finish_epoch(self, record: Epoch) -> None:
        """Take in an epoch, whose weights the network holds, and write."""
        self.epochs.append(record)
        # Without held-out rows there is nothing to choose by.
        score = record.get("score", float(record["epoch"]))
        if score > self.best_score:
            self.best_score, self.best_epoch = score, record["epoch"]
            if self.keep == "best":
                self._best = self._snapshot()
        self.steps, self.loss, self.seconds = 0, 0.0, 0.0
        self.write()

    def restore_kept(self) -> None:
        """Put the weights of the kept epoch into the network."""
        if self.keep == "best" and self._best:
            self.network.load_state_dict(self._best)
        else:
            self.step.export(self.network)

    def write(self) -> None:
        """Replace the file by the present state, whole or not at all."""
        if self.path is None:
            return
        tensors = {f"step.{name}": value for name, value in self.step.state().items()}
        # Right after its epoch the best state is the present one, and is not stored twice.
        if self._best and (self.steps or self.best_epoch != len(self.epochs)):
            tensors |= {f"best.{name}": value for name, value in self._best.items()}
        meta = {
            "identity": self.identity,
            "epochs": self.epochs,
            "steps": self.steps,
            "loss": self.loss,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "best_score": None if self.best_score == float("-inf") else self.best_score,
        }
        write_tensors(self.path, tensors, {"fit": json.dumps(meta)})

    def _snapshot(self) -> dict[str, Tensor]:
        self.step.export(self.network)
        return {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """What differs between two fits, at most three things of it."""
    pairs = []
    for name in ours:
        one, two = theirs.get(name), ours[name]
        if isinstance(one, dict) and isinstance(two, dict):
            pairs += [(key, one.get(key), two[key]) for key in two]
        else:
            pairs.append((name, one, two))
    changed = [f"{n}: {_short(a)} there, {_short(b)} here" for n, a, b in pairs if a != b]
    return "; ".join(changed[:3]) or "written by another version"


def _short(value: Any) -> str:
    """A hash by its beginning, anything else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
