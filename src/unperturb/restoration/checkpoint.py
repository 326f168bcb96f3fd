"""Where a training of several networks stands: all it needs to go on as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unperturb.checkpoints import CHECKPOINT, Epoch, check_run, read_state, under
from unperturb.files import write_tensors

__all__ = ["CHECKPOINT", "Checkpoint", "Epoch"]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Checkpoint:
    """State of a run, on disk after each epoch and now and then within one.

    Args:
        modules: What is trained, by name.
        optimizers: Adam optimizers, by name.
        fingerprint: Of settings, images and start weights.
        path: The file; None keeps nothing on disk.

    Attributes:
        epochs: Records of the epochs that are done.
        step: Steps done of the epoch after those.
        sums: Sums of the losses of these steps, by name.
        seconds: Time they took.
        before: Held-out figures before the first step; none where nobody looked.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        fingerprint: str,
        path: Path | None,
    ) -> None:
        self.modules, self.optimizers = modules, optimizers
        self.fingerprint, self.path = fingerprint, path
        self.epochs: list[Epoch] = []
        self.step, self.seconds = 0, 0.0
        self.sums: dict[str, float] = {}
        self.before: Epoch = {}

    def read(self) -> bool:
        """Go on from the file, if there is one; says whether there is.

        Raises:
            RecordError: It is damaged, or belongs to another run.
        """
        if self.path is None or not self.path.exists():
            return False
        meta, tensors = read_state(self.path)
        check_run(
            self.path, meta["fingerprint"], self.fingerprint,
            "the same settings, images and start weights",
        )  # fmt: skip
        self.epochs, self.step = meta["epochs"], meta["step"]
        self.sums, self.seconds = meta["sums"], meta["seconds"]
        self.before = meta.get("before", {})
        for name, module in self.modules.items():
            module.load_state_dict(under(tensors, f"{name}."))
        for name, parameter, index in self._parameters():
            kept = under(tensors, f"adam.{name}.{index}.")
            if kept:
                state = {key: _like(kept[key], parameter) for key in _MOMENTS}
                self.optimizers[name].state[parameter] = state
        return True

    def _parameters(self) -> list[tuple[str, nn.Parameter, int]]:
        return [
            (name, parameter, index)
            for name, optimizer in self.optimizers.items()
            for index, parameter in enumerate(optimizer.param_groups[0]["params"])
        ]

    def finish_epoch(self, record: Epoch) -> None:
        """Take in an epoch; the next one begins. The first keeps what was before it."""
        if self.before and not self.epochs:
            record = {**record, "before": self.before}
        self.epochs.append(record)
        self.step, self.sums, self.seconds = 0, {}, 0.0

    def write(self) -> None:
        """Replace the file by the present state, whole or not at all."""
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {
            f"{name}.{key}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        for name, parameter, index in self._parameters():
            state = self.optimizers[name].state.get(parameter, {})
            tensors |= {f"adam.{name}.{index}.{key}": state[key] for key in _MOMENTS if state}
        meta = {
            "fingerprint": self.fingerprint,
            "epochs": self.epochs,
            "step": self.step,
            "sums": self.sums,
            "seconds": self.seconds,
            "before": self.before,
        }
        write_tensors(self.path, tensors, {"run": json.dumps(meta)})


def _like(stored: Tensor, parameter: nn.Parameter) -> Tensor:
    # Adam counts its steps on the CPU; its averages lie as the parameter does.
    if not stored.ndim:
        return stored.clone()
    return torch.empty_like(parameter).copy_(stored)
