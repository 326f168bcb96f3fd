"""One loop for all trainings of restoration networks, with checkpoints and exact resume."""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.checks import check_enough
from unperturb.data import ImageSet
from unperturb.errors import ConfigError
from unperturb.files import check_writable
from unperturb.progress import progress
from unperturb.randomness import Keys, hash_ids
from unperturb.restoration.checkpoint import CHECKPOINT, Checkpoint, Epoch
from unperturb.restoration.config import RestorationConfig
from unperturb.restoration.watch import Diverged, Watch
from unperturb.training.augment import augment, epoch_generator, step_generator

__all__ = ["CHECKPOINT_SECONDS", "Work", "fit", "make_adam", "set_gradients"]

Monitor = Callable[[int], dict[str, Any]]
"""Number of the epoch that is done (0: none yet) to its held-out figures."""

Rescue = Callable[[], Path]
"""Keeps the networks as they are, and returns where."""

CHECKPOINT_SECONDS = 60.0


class Work(ABC):
    """What is trained, and what one step of it is.

    Attributes:
        modules: Networks that a checkpoint holds, by name.
        optimizers: Adam optimizers, by name, each with one group of parameters.
        watch: Sees the scores of a discriminator, where there is one.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> None:
        self.modules, self.optimizers = modules, optimizers
        self.watch = Watch()

    @property
    def healthy(self) -> bool:
        """Whether the discriminator still told images apart when it was last seen."""
        return self.watch.healthy

    def rate(self, name: str, rate: float) -> float:
        """Learning rate of an optimizer, where that of the run is ``rate``."""
        return rate

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor, keys: Keys) -> dict[str, Tensor]:
        """Losses of one batch, with gradients left in ``.grad`` of what the optimizers hold.

        Raises:
            Diverged: There is no use in going on.
        """

    def step(self, images: Tensor, labels: Tensor, keys: Keys) -> dict[str, float]:
        """One update of everything; returns its losses.

        Raises:
            Diverged: A loss or a gradient is not finite, in which case nothing is updated.
        """
        found = self.try_out(images, labels, keys)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return found

    def try_out(self, images: Tensor, labels: Tensor, keys: Keys) -> dict[str, float]:
        """The losses that a step would have, without its update.

        Raises:
            Diverged: A loss or a gradient is not finite.
        """
        losses = self.losses(images, labels, keys)
        found = {name: float(value.detach()) for name, value in losses.items()}
        for name, value in found.items():
            if not math.isfinite(value):
                raise Diverged(f"the {name} loss is {value}")
        for name, optimizer in self.optimizers.items():
            held = [p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None]
            # One number for all of them: a read of each would cost as much as the update.
            if held and not bool(torch.stack(torch._foreach_norm(held)).isfinite().all()):
                raise Diverged(f"a gradient of the {name} is not finite")
        return found


def set_gradients(loss: Tensor, module: nn.Module, *, keep: bool = False) -> None:
    """Put the gradient of a loss into ``.grad`` of one module's parameters, and of nothing else.

    Args:
        loss: One number.
        module: Whose parameters.
        keep: Whether another gradient will be taken of the same graph.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, retain_graph=keep)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient


def make_adam(module: nn.Module, config: RestorationConfig) -> torch.optim.Adam:
    """Adam over a module's parameters."""
    first, second = config.betas
    return torch.optim.Adam(module.parameters(), lr=config.lr, betas=(first, second))


def fit(
    work: Work,
    data: ImageSet,
    config: RestorationConfig,
    *,
    out: Path | None = None,
    device: torch.device | str = "cpu",
    purpose: str = "fit",
    monitor: Monitor | None = None,
    look_before: bool = False,
    stop_after: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    rescue: Rescue | None = None,
    show: bool = True,
) -> list[Epoch]:
    """Train in place; returns one record for each epoch.

    Order and augmentation are functions of (seed, epoch, step), noise and masks of (seed, image,
    epoch): a run that is cut off anywhere goes on with the draws it would have had, and ends with
    the same weights on the same number of threads.

    A checkpoint is written once the batch after it was found to give finite losses and gradients,
    and while the discriminator tells images apart: it is one from which a run can go on.

    Args:
        work: What is trained.
        data: Training images. The last ``config.holdout`` of them are never trained on.
        config: The settings.
        out: Folder of the checkpoint.
        device: Where the images go; the networks are there already.
        purpose: Short name of the training, shown in the progress bar; it names the draws.
        monitor: Called after every epoch.
        look_before: Call it before the first step, too; the first epoch's record holds what it
            said as ``before``.
        stop_after: Stop after this many epochs of the whole run, leaving the checkpoint.
        checkpoint_seconds: A checkpoint is written after each epoch, and when this much time has
            passed since the last.
        rescue: Called where the training diverged, with the networks as the last good checkpoint
            has them; returns where it left them.
        show: Show a progress bar with the time left.

    Raises:
        DataError: Fewer images than the held-out part and one batch need.
        RecordError: The checkpoint in ``out`` belongs to another run, or is damaged.
        OutputError: ``out`` cannot be written.
        ConfigError: The training diverged; the last good checkpoint is in ``out``.
    """
    check_enough(len(data), holdout=config.holdout, batch_size=config.batch_size)
    if out is not None:
        check_writable(out)
    run = Checkpoint(
        work.modules,
        work.optimizers,
        _fingerprint(work, data, config, purpose),
        out / CHECKPOINT if out else None,
    )
    found = run.read()
    loop = _Loop(work, data, config, run, torch.device(device), purpose, checkpoint_seconds)
    if not found:
        try:
            loop.try_next(0, 0)
            if monitor is not None and look_before:
                run.before = monitor(0)
                _check_figures(run.before)
        except Diverged as error:
            raise _diverged(
                "before its first step", error, "begin with other images or weights (--start)"
            ) from error
        # So that there always is a last good one.
        run.write()
    last = min(config.epochs, stop_after or config.epochs)
    bar = progress(
        total=loop.steps * config.epochs,
        initial=len(run.epochs) * loop.steps + run.step,
        desc=purpose,
        show=show,
    )
    with bar:
        for epoch in range(len(run.epochs), last):
            try:
                record = loop.epoch(epoch, bar)
                worth = loop.try_next(epoch + 1, 0) or work.healthy
                if epoch + 1 == last and not worth:
                    raise Diverged("the discriminator no longer tells images apart")
                if monitor is not None:
                    record.update(monitor(epoch + 1))
                    _check_figures(record)
            except Diverged as error:
                raise _diverged(loop.place(epoch), error, _lower(run, rescue)) from error
            run.finish_epoch(record)
            if worth:
                run.write()
            bar.set_postfix_str(_summary(record))
    return run.epochs


def _fingerprint(work: Work, data: ImageSet, config: RestorationConfig, purpose: str) -> str:
    settings = json.dumps([purpose, config.to_dict()], sort_keys=True)
    digest = hashlib.sha256(settings.encode())
    digest.update(data.fingerprint().encode())
    for name, module in work.modules.items():
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{name}.{key}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _lower(run: Checkpoint, rescue: Rescue | None) -> str:
    """Go back to the last good checkpoint, and say how to go on from there."""
    told = "lower lr or the weight of the discriminator"
    if run.path is not None:
        run.read()
        told += f"; the last good checkpoint is kept in {run.path.parent}"
        if rescue is not None:
            told += f", its network in {rescue()}: --start takes it, with another --out"
    return told


def _diverged(where: str, reason: Diverged, fix: str) -> ConfigError:
    return ConfigError(
        f"The training diverged {where}: {reason}",
        expected="losses that stay finite, and a discriminator that tells images apart",
        fix=fix,
    )


def _check_figures(record: Epoch) -> None:
    for name, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise Diverged(f"{name} of the held-out images is {value}")
    # A mean absolute error that no image in [0, 1] can have of another.
    if record.get("masked_l1", 0.0) > 1.0:
        raise Diverged(f"the error on dropped pixels, held out, is {record['masked_l1']:.3g}")


class _Loop:
    """The steps of a run, given all that they work on."""

    def __init__(
        self,
        work: Work,
        data: ImageSet,
        config: RestorationConfig,
        run: Checkpoint,
        device: torch.device,
        purpose: str,
        checkpoint_seconds: float,
    ) -> None:
        self.work, self.data, self.config, self.run = work, data, config, run
        self.device, self.purpose = device, purpose
        self.count = len(data) - config.holdout
        self.steps = self.count // config.batch_size
        self.names = hash_ids(data.ids[: self.count])
        self.checkpoint_seconds = checkpoint_seconds

    def epoch(self, epoch: int, bar: Any) -> Epoch:
        """Run what is left of one epoch."""
        config, run, work = self.config, self.run, self.work
        began = written = time.perf_counter()
        before = run.seconds
        order, rate = self._order(epoch), config.lr
        while run.step < self.steps:
            step = run.step
            rate = config.learning_rate(epoch * self.steps + step, self.steps * config.epochs)
            for name, optimizer in work.optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = work.rate(name, rate)
            losses = work.step(*self._batch(order, epoch, step))
            for name, value in losses.items():
                run.sums[name] = run.sums.get(name, 0.0) + value
            run.step += 1
            bar.update(1)
            now = time.perf_counter()
            run.seconds = before + now - began
            due = now - written >= self.checkpoint_seconds and run.step < self.steps
            if due and work.healthy and self.try_next(epoch, run.step):
                run.write()
                written = now
        losses = {name: total / self.steps for name, total in run.sums.items()}
        return {"epoch": epoch + 1, "losses": losses, "lr": rate, "seconds": run.seconds}

    def place(self, epoch: int) -> str:
        """Where the run is, for a person."""
        if self.run.step == self.steps:
            return f"after epoch {epoch + 1}"
        return f"in epoch {epoch + 1}, step {self.run.step + 1}"

    def try_next(self, epoch: int, step: int) -> bool:
        """Find out whether the run can go on with this step; nothing of it remains.

        Returns:
            Whether the discriminator tells its images apart.

        Raises:
            Diverged: A loss or a gradient is not finite.
        """
        work = self.work
        # A pass changes what spectral normalization remembers.
        buffers = [b for module in work.modules.values() for b in module.buffers()]
        kept, watch = [buffer.clone() for buffer in buffers], work.watch
        work.watch = Watch(patience=2)
        try:
            work.try_out(*self._batch(self._order(epoch), epoch, step))
            return work.healthy
        finally:
            work.watch = watch
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)

    def _order(self, epoch: int) -> Tensor:
        return torch.from_numpy(epoch_generator(self.config.seed, epoch).permutation(self.count))

    def _batch(self, order: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor, Keys]:
        config = self.config
        rows = order[step * config.batch_size : (step + 1) * config.batch_size]
        generator = step_generator(config.seed, epoch, step)
        images = augment(self.data.images(rows).to(self.device), config.augment, generator)
        draws = torch.full((len(rows),), epoch)
        keys = Keys(config.seed, self.names[rows], draws, domain=self.purpose).to(self.device)
        labels = self.data.labels[rows].to(self.device)
        return images.contiguous(memory_format=torch.channels_last), labels, keys


def _summary(record: Epoch) -> str:
    shown = [f"{name} {value:.3f}" for name, value in record["losses"].items()]
    if "masked_l1" in record:
        shown.append(f"held-out {record['masked_l1']:.4f} (bilinear {record['bilinear_l1']:.4f})")
    shown += [f"{name} {record[name]:.1%}" for name in ("clean", "attacked") if name in record]
    return ", ".join(shown)
