"""One training loop for every objective, with checkpoints and exact resume."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unperturb.checks import check_enough
from unperturb.data import ImageSet
from unperturb.errors import ConfigError
from unperturb.files import check_writable
from unperturb.progress import progress
from unperturb.training.augment import augment, epoch_generator, step_generator
from unperturb.training.checkpoint import CHECKPOINT, Checkpoint, Epoch, Score
from unperturb.training.config import TrainConfig
from unperturb.training.objectives import OBJECTIVES, Step
from unperturb.training.processes import Alone, launched, statistics
from unperturb.training.twin import Twin, make_twin

__all__ = ["CHECKPOINT", "Epoch", "Trained", "train"]

Monitor = Callable[[nn.Module], dict[str, Any]]

_CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Trained:
    """What a training run leaves.

    Attributes:
        state: State dictionary of the kept epoch; of the average, where ``ema_decay`` is set.
        kept_epoch: Number of that epoch, from 1.
        epochs: One record for each epoch.
    """

    state: dict[str, Tensor]
    kept_epoch: int
    epochs: list[Epoch]


def _fingerprint(
    config: TrainConfig, data: ImageSet, start: dict[str, Tensor], processes: int
) -> str:
    settings: dict[str, Any] = {**config.to_dict(), "processes": processes}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
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
    depth: Score | None = None,
    stop_after: int | None = None,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    show: bool = True,
) -> Trained:
    """Train ``network`` in place and return the epoch that is kept.

    Examples are made against a copy of the network whose batch norms are folded into its
    convolutions, where that can be done (``make_twin``): the same examples up to rounding, sooner.

    Under ``accelerate launch`` the processes share each batch, and each returns the same weights.

    Args:
        network: Images in [0, 1] to logits; its parameters are updated.
        data: Training images. The last ``config.holdout`` of them are never trained on.
        config: The settings.
        out: Folder of the checkpoint. A run that finds its own checkpoint there goes on from it, in
            the middle of an epoch too, and ends with the same weights as an uninterrupted one on
            the same number of threads.
        device: Where to train.
        monitor: Called after every epoch with the network, or its average, in eval mode.
        depth: Score of an epoch's record; the epoch with the greatest is kept. None keeps the last.
        stop_after: Stop after this many epochs of the whole run, leaving the checkpoint (for tests
            and time limits).
        checkpoint_seconds: A checkpoint is written after each epoch, and when this much time has
            passed since the last.
        show: Show a progress bar.

    Raises:
        DataError: Fewer images than the held-out part and one batch need.
        RecordError: The checkpoint in ``out`` belongs to another run, or is damaged.
        OutputError: ``out`` cannot be written.
        ConfigError: The loss is not finite, or the processes do not divide the batch, or begin
            with different weights.
    """
    check_enough(len(data), holdout=config.holdout, batch_size=config.batch_size)
    device = torch.device(device)
    processes = launched(device)
    _check_division(config, processes.count)
    if out is not None and processes.main:
        check_writable(out)
    processes.wait()
    network.to(device)
    if device.type == "cpu" or torch.backends.cudnn.is_available():
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    fingerprint = _fingerprint(config, data, network.state_dict(), processes.count)
    if processes.tell(fingerprint) != fingerprint:
        raise ConfigError(
            "The processes begin with different weights, images or settings",
            expected="the same in all of them",
            fix="build the network from one seed, or load its weights",
        )
    run = Checkpoint(
        network,
        optimizer,
        fingerprint,
        out / CHECKPOINT if out else None,
        _average(network, config),
    )
    run.read()
    processes.wait()

    twin = None
    if config.objective != "standard":
        twin = make_twin(network, data.images(slice(0, 2)).to(device))
    loop = _Loop(network, twin, optimizer, data, config, run, device, processes)
    loop.checkpoint_seconds = checkpoint_seconds
    first, last = len(run.epochs), min(config.epochs, stop_after or config.epochs)
    bar = progress(
        total=loop.steps * config.epochs,
        initial=first * loop.steps + run.step,
        desc=f"train {config.objective}",
        show=show and processes.main,
    )
    with bar:
        for epoch in range(first, last):
            record = loop.epoch(epoch, bar)
            if monitor is not None:
                run.kept.eval()
                record.update(processes.tell(monitor(run.kept) if processes.main else None))
            run.finish_epoch(record, depth) if processes.main else _keep(run, record, depth)
            bar.set_postfix_str(_summary(record))
    processes.wait()
    return Trained(run.best_state, run.best_epoch, run.epochs)


def _average(network: nn.Module, config: TrainConfig) -> AveragedModel | None:
    if not config.ema_decay:
        return None
    average = get_ema_multi_avg_fn(config.ema_decay)
    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def _keep(run: Checkpoint, record: Epoch, depth: Score | None) -> None:
    """The same bookkeeping in the processes that do not write."""
    path, run.path = run.path, None
    run.finish_epoch(record, depth)
    run.path = path


def _check_division(config: TrainConfig, processes: int) -> None:
    shares = processes * config.accumulate
    if config.batch_size % shares and shares > 1:
        raise ConfigError(
            f"A batch of {config.batch_size} for {processes} processes, in "
            f"{config.accumulate} parts each",
            expected=f"a multiple of {shares}",
            fix="change --batch-size, --accumulate or the number of processes",
        )


class _Loop:
    """The steps of a run, given all that they work on."""

    def __init__(
        self,
        network: nn.Module,
        twin: Twin | None,
        optimizer: torch.optim.Optimizer,
        data: ImageSet,
        config: TrainConfig,
        run: Checkpoint,
        device: torch.device,
        processes: Alone,
    ) -> None:
        self.network, self.twin, self.optimizer = network, twin, optimizer
        self.data, self.config, self.run = data, config, run
        self.device, self.processes = device, processes
        self.steps = (len(data) - config.holdout) // config.batch_size
        self.checkpoint_seconds = _CHECKPOINT_SECONDS

    def epoch(self, epoch: int, bar: Any) -> Epoch:
        """Run what is left of one epoch; order and draws depend on (seed, epoch, step) alone."""
        config, run = self.config, self.run
        began = written = time.perf_counter()
        before = run.seconds
        generator = epoch_generator(config.seed, epoch)
        order = torch.from_numpy(generator.permutation(len(self.data) - config.holdout))
        self.network.train()
        rate = config.lr
        while run.step < self.steps:
            step = run.step
            index = order[step * config.batch_size : (step + 1) * config.batch_size]
            rate = config.rate(epoch * self.steps + step, self.steps * config.epochs)
            loss = self.step(epoch, step, index[self.processes.rank :: self.processes.count], rate)
            if not math.isfinite(loss):
                raise ConfigError(
                    f"The training loss is {loss} in epoch {epoch + 1}, step {step + 1}",
                    expected="a finite loss",
                    fix="lower lr; the last checkpoint is kept",
                )
            run.loss += loss
            run.step += 1
            bar.update(1)
            now = time.perf_counter()
            run.seconds = before + now - began
            due = now - written >= self.checkpoint_seconds and run.step < self.steps
            if due and self.processes.main:
                run.write()
                written = now
        return {
            "epoch": epoch + 1,
            "loss": run.loss / self.steps,
            "lr": rate,
            "seconds": run.seconds,
        }

    def step(self, epoch: int, step: int, index: Tensor, rate: float) -> float:
        """One update; returns the loss."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.twin is not None:
            self.twin.refresh()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part, rows in enumerate(index.chunk(config.accumulate)):
            with self._draws(epoch, step, part):
                loss = self._loss(epoch, step, part, rows) * (len(rows) / len(index))
                loss.backward()
            total += loss.detach()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        self.processes.average([*gradients, *statistics(self.network), total])
        self.optimizer.step()
        if self.run.average is not None:
            self.run.average.update_parameters(self.network)
        return float(total)

    @contextmanager
    def _draws(self, epoch: int, step: int, part: int) -> Iterator[None]:
        """Seed the global generators, from which dropout draws, and put them back."""
        rank = self.processes.rank
        generator = step_generator(
            self.config.seed, epoch, step, process=rank, part=part, layers=True
        )
        seed = int(generator.integers(2**63))
        cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            torch.default_generator.manual_seed(seed)
            if cuda:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            yield

    def _loss(self, epoch: int, step: int, part: int, rows: Tensor) -> Tensor:
        config = self.config
        generator = step_generator(config.seed, epoch, step, process=self.processes.rank, part=part)
        images = augment(self.data.images(rows).to(self.device), config.augment, generator)
        half = config.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            return OBJECTIVES[config.objective](
                Step(
                    network=self.network,
                    attacked=self.network if self.twin is None else self.twin,
                    images=images.contiguous(memory_format=torch.channels_last),
                    labels=self.data.labels[rows].to(self.device),
                    settings=config,
                    generator=generator,
                    done=(epoch * self.steps + step) / (self.steps * config.epochs),
                )
            )


def _summary(record: Epoch) -> str:
    shown = [f"loss {record['loss']:.3f}"]
    for key in ("heldout_clean", "heldout_fgsm", "train_fgsm", "train_pgd", "heldout_tpap_pgd"):
        if key in record:
            shown.append(f"{key.replace('_', ' ')} {record[key]:.1%}")
    if record.get("robust_overfitting"):
        shown.append("robust overfitting")
    return ", ".join(shown)
