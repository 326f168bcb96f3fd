"""One training loop for every objective: checkpoints after each epoch, and exact resume."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.data import ImageSet
from unperturb.errors import ConfigError, DataError, OutputError, RecordError
from unperturb.files import write_tensors
from unperturb.progress import progress
from unperturb.training.augment import augment, epoch_generator
from unperturb.training.config import TrainConfig
from unperturb.training.objectives import OBJECTIVES

__all__ = ["Epoch", "Trained", "train"]

CHECKPOINT = "checkpoint.safetensors"

Epoch = dict[str, Any]
"""What is recorded of one epoch: number, loss, rate, seconds, and the monitor's figures."""

Monitor = Callable[[nn.Module], dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """What a training run leaves.

    Attributes:
        state: State dictionary of the kept epoch.
        kept_epoch: Number of that epoch, from 1.
        epochs: One record for each epoch.
    """

    state: dict[str, Tensor]
    kept_epoch: int
    epochs: list[Epoch]


def _fingerprint(config: TrainConfig, data: ImageSet, start: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    digest.update(data.fingerprint().encode())
    for name in sorted(start):
        digest.update(name.encode() + start[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(
    network: nn.Module,
    data: ImageSet,
    config: TrainConfig,
    *,
    out: Path | None = None,
    device: torch.device | str = "cpu",
    monitor: Monitor | None = None,
    depth: Callable[[dict[str, Any]], float] | None = None,
    stop_after: int | None = None,
    show: bool = True,
) -> Trained:
    """Train ``network`` in place and return the epoch that is kept.

    Args:
        network: Images in [0, 1] to logits; its parameters are updated.
        data: Training images. The last ``config.holdout`` of them are never trained on.
        config: The settings.
        out: Folder of the checkpoint. A run that finds its own checkpoint there goes on from it,
            and ends with the same weights as an uninterrupted one.
        device: Where to train.
        monitor: Called after every epoch with the network in eval mode.
        depth: Score of an epoch's record; the epoch with the greatest is kept. None keeps the last.
        stop_after: Stop after this many epochs of the whole run, leaving the checkpoint (for tests
            and time limits).
        show: Show a progress bar.

    Raises:
        DataError: Fewer images than the held-out part and one batch need.
        RecordError: The checkpoint in ``out`` belongs to another run, or is damaged.
        OutputError: ``out`` cannot be written.
        ConfigError: The loss is not finite.
    """
    count = len(data) - config.holdout
    if count < config.batch_size:
        raise DataError(
            f"{len(data)} training images less {config.holdout} held out leave {max(count, 0)}",
            expected=f"at least one batch of {config.batch_size}",
            fix="lower holdout or batch_size, or give more images",
        )
    if out is not None:
        _check_writable(out)
    device = torch.device(device)
    network.to(device)
    if device.type == "cpu" or torch.backends.cudnn.is_available():
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    fingerprint = _fingerprint(config, data, network.state_dict())
    run = _Run(network, optimizer, fingerprint, out / CHECKPOINT if out else None)
    run.resume()

    steps_each = count // config.batch_size
    steps = steps_each * config.epochs
    last = min(config.epochs, stop_after or config.epochs)
    first = len(run.epochs)
    bar = progress(
        total=steps, initial=first * steps_each, desc=f"train {config.objective}", show=show
    )
    with bar:
        for epoch in range(first, last):
            record = _epoch(network, optimizer, data, config, epoch, steps_each, device, bar)
            if monitor is not None:
                network.eval()
                record.update(monitor(network))
            run.finish(record, depth)
            bar.set_postfix_str(_summary(record))
    return Trained(run.best_state, run.best_epoch, run.epochs)


def _check_writable(out: Path) -> None:
    """Find out before the first epoch and not after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write into {out}: {error.strerror or error}",
            expected="a folder that can be written to",
            fix="choose another --out",
        ) from error


def _epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: ImageSet,
    config: TrainConfig,
    epoch: int,
    steps: int,
    device: torch.device,
    bar: Any,
) -> Epoch:
    """Run one epoch; order and augmentation depend on (seed, epoch) alone."""
    began = time.perf_counter()
    objective = OBJECTIVES[config.objective]
    generator = epoch_generator(config.seed, epoch)
    order = torch.from_numpy(generator.permutation(len(data) - config.holdout))
    network.train()
    total = torch.zeros((), device=device)
    for step in range(steps):
        index = order[step * config.batch_size : (step + 1) * config.batch_size]
        images = augment(data.images(index).to(device), config.augment, generator)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = data.labels[index].to(device)
        rate = config.rate(epoch * steps + step, steps * config.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        half = config.precision == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            loss = objective(network, images, labels, config, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        bar.update(1)
    loss_mean = float(total) / steps
    if not loss_mean == loss_mean or loss_mean == float("inf"):
        raise ConfigError(
            f"The training loss is {loss_mean} in epoch {epoch + 1}",
            expected="a finite loss",
            fix="lower lr",
        )
    return {
        "epoch": epoch + 1,
        "loss": loss_mean,
        "lr": rate,
        "seconds": time.perf_counter() - began,
    }


def _summary(record: Epoch) -> str:
    shown = [f"loss {record['loss']:.3f}"]
    for key in ("heldout_clean", "train_fgsm", "train_pgd"):
        if key in record:
            shown.append(f"{key.replace('_', ' ')} {record[key]:.1%}")
    return ", ".join(shown)


class _Run:
    """State of a run between epochs: what a checkpoint holds."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        fingerprint: str,
        path: Path | None,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.fingerprint, self.path = fingerprint, path
        self.epochs: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.best_depth = float("-inf")

    def _momenta(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def resume(self) -> None:
        if self.path is None or not self.path.exists():
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as stored:
                meta = json.loads((stored.metadata() or {})["run"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as error:
            raise RecordError(
                f"{self.path} is damaged: {error}",
                expected="the checkpoint that a training run wrote",
                fix="choose another --out, or delete that checkpoint and begin anew",
            ) from error
        if meta["fingerprint"] != self.fingerprint:
            raise RecordError(
                f"{self.path} belongs to another training run "
                f"({meta['fingerprint'][:12]}, this one is {self.fingerprint[:12]})",
                expected="the same settings, images and start weights",
                fix="choose another --out, or delete that checkpoint",
            )
        self.epochs, self.best_epoch = meta["epochs"], meta["best_epoch"]
        self.best_depth = meta["best_depth"] if meta["best_depth"] is not None else float("-inf")
        self.network.load_state_dict(_under(tensors, "network."))
        self.best_state = _under(tensors, "best.") or _snapshot(self.network)
        for index, parameter in enumerate(self._momenta()):
            buffer = tensors[f"momentum.{index}"]
            self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(
                buffer
            )

    def finish(self, record: Epoch, depth: Callable[[dict[str, Any]], float] | None) -> None:
        self.epochs.append(record)
        score = depth(record) if depth is not None else float(record["epoch"])
        if score >= self.best_depth:
            self.best_depth, self.best_epoch = score, record["epoch"]
            self.best_state = _snapshot(self.network)
        if self.path is None:
            return
        tensors = {f"network.{k}": v for k, v in _snapshot(self.network).items()}
        if self.best_epoch != record["epoch"]:
            tensors |= {f"best.{k}": v for k, v in self.best_state.items()}
        for index, parameter in enumerate(self._momenta()):
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            stored = torch.zeros_like(parameter) if buffer is None else buffer
            tensors[f"momentum.{index}"] = stored.detach().cpu().contiguous()
        meta = {
            "fingerprint": self.fingerprint,
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "best_depth": self.best_depth,
        }
        write_tensors(self.path, tensors, {"run": json.dumps(meta)})


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
