"""One loop for networks that make images: a loss over batches, checkpoints, exact resume."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unperturb.checks import check_enough
from unperturb.data import ImageSet
from unperturb.errors import ConfigError, RecordError
from unperturb.files import check_writable
from unperturb.generative.config import FitConfig
from unperturb.progress import progress
from unperturb.training.augment import augment, epoch_generator, step_generator
from unperturb.training.checkpoint import CHECKPOINT, Checkpoint, Epoch

__all__ = ["RECORD", "Job", "check_unfinished", "fit"]

RECORD = "training.json"
_CHECKPOINT_SECONDS = 60.0

Objective = Callable[[Tensor, Tensor, np.random.Generator], Tensor]
"""``(images, labels, generator)`` of a step to the loss, a mean over the batch."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, and how.

    Attributes:
        name: A word for the progress bar.
        network: The network whose parameters the optimizer holds.
        optimizer: SGD or Adam.
        objective: The loss.
        monitor: Figures of the network in eval mode, after each epoch.
        facts: What decides the run beside settings, images and first weights; JSON-able.
    """

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    monitor: Callable[[], dict[str, Any]]
    facts: dict[str, Any]


def check_unfinished(folder: Path) -> None:
    """Refuse a folder that holds a finished run.

    Raises:
        RecordError: It does.
    """
    if (folder / RECORD).exists() and not (folder / CHECKPOINT).exists():
        raise RecordError(
            f"{folder} holds a finished training run",
            expected="a new folder, or one with an unfinished run of the same settings",
            fix="choose another --out, or delete that folder",
        )


def fit(
    job: Job,
    data: ImageSet,
    config: FitConfig,
    *,
    out: Path | None = None,
    device: torch.device | str = "cpu",
    stop_after: int | None = None,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    show: bool = True,
) -> list[Epoch]:
    """Train the job's network in place; the last epoch is what is kept.

    A run that finds its own checkpoint in ``out`` goes on from it, in the middle of an epoch too,
    and ends with the weights of an uninterrupted one on the same number of threads: order, crops
    and draws depend on (seed, epoch, step) alone. One process.

    Args:
        job: What is trained.
        data: Training images; the last ``config.holdout`` are never trained on.
        config: The settings.
        out: Folder of the checkpoint; None keeps nothing on disk.
        device: Where to train.
        stop_after: Stop after this many epochs of the whole run, leaving the checkpoint.
        checkpoint_seconds: A checkpoint is written after each epoch, and when this much time has
            passed since the last.
        show: Show a progress bar.

    Returns:
        One record for each epoch that is done.

    Raises:
        DataError: Fewer images than the held-out part and one batch need.
        RecordError: The checkpoint in ``out`` belongs to another run, or is damaged.
        OutputError: ``out`` cannot be written.
        ConfigError: The loss is not finite.
    """
    count = check_enough(len(data), holdout=config.holdout, batch_size=config.batch_size)
    device = torch.device(device)
    if out is not None:
        check_writable(out)
    run = Checkpoint(
        job.network, job.optimizer, _fingerprint(job, data, config), out and out / CHECKPOINT
    )
    run.read()
    steps = count // config.batch_size
    bar = progress(
        total=steps * config.epochs,
        initial=len(run.epochs) * steps + run.step,
        desc=f"train {job.name}",
        show=show,
    )
    last = min(config.epochs, stop_after or config.epochs)
    with bar:
        for epoch in range(len(run.epochs), last):
            record = _epoch(job, data, config, run, epoch, steps, device, checkpoint_seconds, bar)
            job.network.eval()
            record.update(job.monitor())
            _check_finite(record)
            run.finish_epoch(record, None)
            bar.set_postfix_str(_summary(record))
    job.network.eval()
    return run.epochs


def _fingerprint(job: Job, data: ImageSet, config: FitConfig) -> str:
    settings = {"job": job.name, "facts": job.facts, "config": config.to_dict()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(data.fingerprint().encode())
    for name, value in sorted(job.network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _epoch(
    job: Job,
    data: ImageSet,
    config: FitConfig,
    run: Checkpoint,
    epoch: int,
    steps: int,
    device: torch.device,
    checkpoint_seconds: float,
    bar: Any,
) -> Epoch:
    """Run what is left of one epoch."""
    began = written = time.perf_counter()
    before = run.seconds
    order = torch.from_numpy(
        epoch_generator(config.seed, epoch).permutation(len(data) - config.holdout)
    )
    job.network.train()
    rate = config.lr
    while run.step < steps:
        index = order[run.step * config.batch_size : (run.step + 1) * config.batch_size]
        rate = config.rate(epoch * steps + run.step, steps * config.epochs)
        for group in job.optimizer.param_groups:
            group["lr"] = rate
        generator = step_generator(config.seed, epoch, run.step)
        images = augment(data.images(index).to(device), config.augment, generator)
        images = images.contiguous(memory_format=torch.channels_last)
        job.optimizer.zero_grad(set_to_none=True)
        with _autocast(config, device):
            loss = job.objective(images, data.labels[index].to(device), generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ConfigError(
                f"The training loss is {value} in epoch {epoch + 1}, step {run.step + 1}",
                expected="a finite loss",
                fix="lower lr; the last checkpoint is kept",
            )
        loss.backward()
        job.optimizer.step()
        run.loss += value
        run.step += 1
        bar.update(1)
        now = time.perf_counter()
        run.seconds = before + now - began
        if now - written >= checkpoint_seconds and run.step < steps:
            run.write()
            written = now
    return {"epoch": epoch + 1, "loss": run.loss / steps, "lr": rate, "seconds": run.seconds}


def _check_finite(record: Epoch) -> None:
    """The last step of an epoch may have broken the weights: the checkpoint before it stays."""
    for name, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(
                f"{name} is {value} after epoch {record['epoch']}",
                expected="a finite figure",
                fix="lower lr; the last checkpoint is kept",
            )


def _autocast(config: FitConfig, device: torch.device) -> AbstractContextManager[object]:
    if config.precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _summary(record: Epoch) -> str:
    shown = [f"loss {record['loss']:.4g}"]
    for key, unit in (("heldout_psnr", "dB"), ("heldout_clean", ""), ("heldout_denoised", "")):
        if key in record:
            words = key.replace("_", " ")
            shown.append(f"{words} {record[key]:.1f} dB" if unit else f"{words} {record[key]:.1%}")
    return ", ".join(shown)
