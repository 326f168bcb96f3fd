"""Where a training run stands: everything it needs to go on as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from unperturb.checkpoints import CHECKPOINT, Epoch, check_run, read_state, under
from unperturb.files import write_tensors

__all__ = ["CHECKPOINT", "Checkpoint", "Epoch", "Score"]

Score = Callable[[Epoch], float]


class Checkpoint:
    """State of a run, on disk after each epoch and now and then within one.

    Args:
        network: What is trained.
        optimizer: SGD, or any other whose state is tensors (Adam).
        fingerprint: Of settings, images, start weights and number of processes.
        path: The file; None keeps nothing on disk.
        average: Moving average of the network, where that is what is kept.

    Attributes:
        epochs: Records of the epochs that are done.
        step: Steps done of the epoch after those.
        loss: Sum of the losses of these steps.
        seconds: Time they took.
        best_state: State dictionary of the kept epoch; its number is ``best_epoch``.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        fingerprint: str,
        path: Path | None,
        average: AveragedModel | None = None,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.fingerprint, self.path, self.average = fingerprint, path, average
        self.epochs: list[Epoch] = []
        self.step, self.loss, self.seconds = 0, 0.0, 0.0
        self.best_state: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.best_score = float("-inf")

    @property
    def kept(self) -> nn.Module:
        """What an epoch is judged by, and kept: the network, or its average."""
        return self.network if self.average is None else self.average.module

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def read(self) -> None:
        """Go on from the file, if there is one.

        Raises:
            RecordError: It is damaged, or belongs to another run.
        """
        if self.path is None or not self.path.exists():
            return
        meta, tensors = read_state(self.path)
        check_run(
            self.path, meta["fingerprint"], self.fingerprint,
            "the same settings, images, start weights and number of processes",
        )  # fmt: skip
        self.epochs, self.best_epoch = meta["epochs"], meta["best_epoch"]
        self.step, self.loss, self.seconds = meta["step"], meta["loss"], meta["seconds"]
        self.best_score = meta["best_score"] if meta["best_score"] is not None else float("-inf")
        self.network.load_state_dict(under(tensors, "network."))
        if self.average is not None:
            self.average.load_state_dict(under(tensors, "average."))
        self.best_state = under(tensors, "best.")
        if self.best_epoch and not self.best_state:
            self.best_state = _snapshot(self.kept)
        for index, parameter in enumerate(self._parameters()):
            if (buffer := tensors.get(f"momentum.{index}")) is not None:
                state = torch.empty_like(parameter).copy_(buffer)
                self.optimizer.state[parameter]["momentum_buffer"] = state
            for key, value in under(tensors, f"optimizer.{index}.").items():
                # Averages lie as their parameter does; a count of steps is one number.
                like = parameter if value.shape == parameter.shape else value
                state = torch.empty_like(like, dtype=value.dtype).copy_(value)
                self.optimizer.state[parameter][key] = state

    def finish_epoch(self, record: Epoch, score: Score | None) -> None:
        """Take in an epoch, keep it if it scores best, and write."""
        self.epochs.append(record)
        found = score(record) if score is not None else float(record["epoch"])
        if found >= self.best_score:
            self.best_score, self.best_epoch = found, record["epoch"]
            self.best_state = _snapshot(self.kept)
        self.step, self.loss, self.seconds = 0, 0.0, 0.0
        self.write()

    def write(self) -> None:
        """Replace the file by the present state, whole or not at all."""
        if self.path is None:
            return
        tensors = {f"network.{k}": v for k, v in _snapshot(self.network).items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in _snapshot(self.average).items()}
        # Right after its epoch the best state is the present one, and is not stored twice.
        if self.best_epoch and (self.step or self.best_epoch != self.epochs[-1]["epoch"]):
            tensors |= {f"best.{k}": v for k, v in self.best_state.items()}
        for index, parameter in enumerate(self._parameters()):
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{index}"] = buffer.detach().cpu().contiguous()
            for key, value in self.optimizer.state[parameter].items():
                if key != "momentum_buffer" and isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().contiguous()
        meta = {
            "fingerprint": self.fingerprint,
            "epochs": self.epochs,
            "step": self.step,
            "loss": self.loss,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "best_score": None if self.best_score == float("-inf") else self.best_score,
        }
        write_tensors(self.path, tensors, {"run": json.dumps(meta)})


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}
