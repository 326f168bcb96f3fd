"""Fitting a corrector on a logit bank: Algorithm 1 of Li et al. 2019."""

from __future__ import annotations

import math
import platform
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unperturb.checks import check_labels
from unperturb.correction.checkpoint import CHECKPOINT, Epoch, FitCheckpoint
from unperturb.correction.config import CorrectionConfig
from unperturb.correction.corrector import Corrector, is_corrector
from unperturb.correction.held_out import HeldOut, figures
from unperturb.correction.step import TrainingStep, make_step
from unperturb.correction.stream import LogitStream, choose_attacks, split_rows, targets_of
from unperturb.correction.tied import TiedStep, measure_residuals
from unperturb.errors import ConfigError, OutputError, RecordError
from unperturb.files import check_writable, short_paths, write_json
from unperturb.networks.corrector import CorrectionNetwork
from unperturb.progress import progress

if TYPE_CHECKING:
    from unperturb.banks import LogitBank

__all__ = ["RECORD", "check_folder", "fit_correction"]

RECORD = "training.json"

_CHECKPOINT_SECONDS = 60.0
# A GPU is asked for its losses after so many steps only: asking makes it wait.
_LOSSES = 64


def fit_correction(
    bank: LogitBank,
    config: CorrectionConfig,
    *,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    stop_after: int | None = None,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    show: bool = True,
) -> Corrector:
    """Train a network from clean and adversarial logits to the true labels, or to clean answers.

    Each sample of a batch has its clean logits with probability p, otherwise those of an attack
    (Algorithm 1 of Li et al., *Defending adversarial attacks by correcting logits*, 2019); Adam
    with weight decay in the loss, in float32. A share of the rows is held out. After each epoch
    these tell the accuracy on clean logits and under each attack, and which epoch is kept.

    The folder ends with ``config.json`` and ``model.safetensors``, as ``load_corrector`` reads
    them, and ``training.json`` with one record for each epoch. As long as the fit is not finished
    there is a checkpoint: the same call goes on from it, in the middle of an epoch too, and ends
    with the weights of an uninterrupted one, on the same number of threads.

    Deviations: the paper does not say how weights start, which epoch is kept, nor what rows are
    held out; several attacks in one bank are drawn with equal chances; in banks larger than
    memory, rows are shuffled within blocks (see `LogitStream`).

    Args:
        bank: Clean and adversarial logits with true labels, opened.
        config: The settings.
        out: Folder of the corrector; None writes nothing.
        device: Where to train.
        stop_after: Stop after so many epochs of the whole fit, leaving the checkpoint.
        checkpoint_seconds: A checkpoint is written after each epoch, and when this much time has
            passed since the last.
        show: Show a progress bar.

    Returns:
        The corrector: with the weights of the kept epoch, or the best so far after ``stop_after``.

    Raises:
        SpecError: The bank has no such attack.
        ConfigError: The loss or a weight is not finite, or ``stop_after`` is below 1.
        DataError: Too few rows.
        InputError: A label lies outside the classes.
        RecordError: ``out`` holds another fit, a finished one, or something else; or the bank
            holds NaN.
        OutputError: ``out`` cannot be written; the last checkpoint is kept.
    """
    folder = None if out is None else Path(out)
    if stop_after is not None and stop_after < 1:
        raise ConfigError(f"stop_after is {stop_after}", expected="at least 1")
    if folder is not None:
        check_folder(folder)
        check_writable(folder)
    attacks = choose_attacks(bank, config.attacks)
    check_labels(bank.labels, count=len(bank), num_classes=bank.num_classes)
    for words in bank.weak:
        warnings.warn(words, UserWarning, stacklevel=2)
    # Under inference mode the loss would have no gradient.
    with torch.inference_mode(False):
        fit = _Fit(bank, config, attacks, folder, torch.device(device))
        fit.checkpoint_seconds = checkpoint_seconds
        fit.run(min(config.epochs, stop_after or config.epochs), show=show)
        corrector = fit.corrector()
    if folder is not None and fit.finished:
        corrector.save(folder)
        write_json(folder / RECORD, {**corrector.card, "epochs": fit.state.epochs})
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return corrector


class _Fit:
    """What the epochs of a fit work on."""

    def __init__(
        self,
        bank: LogitBank,
        config: CorrectionConfig,
        attacks: tuple[str, ...],
        folder: Path | None,
        device: torch.device,
    ) -> None:
        self.bank, self.config, self.attacks, self.device = bank, config, attacks, device
        network = CorrectionNetwork(
            num_classes=bank.num_classes, width=config.width, depth=config.depth,
            dropout=config.dropout, seed=config.seed,
        )  # fmt: skip
        self.network = network.to(device, torch.float32).eval().requires_grad_(False)
        split, targets = split_rows(bank.ids, config), targets_of(bank, config)
        self.stream = LogitStream(
            bank, attacks, split.trained, config, targets=targets, pin=device.type == "cuda"
        )
        self.held = HeldOut(bank, attacks, split.trained, targets=targets) if split.held else None
        self.step: TrainingStep
        if config.tied:
            residuals = measure_residuals(bank, attacks, split.trained, config)
            self.step = TiedStep(self.network, config, device, residuals)
        else:
            self.step = make_step(self.network, config, device)
        identity = {
            "settings": config.to_dict(),
            "attacks": attacks,
            "bank": bank.digest,
            "classifier": bank.classifier,
        }
        path = None if folder is None else folder / CHECKPOINT
        self.state = FitCheckpoint(self.step, self.network, identity, path, config.keep)
        self.state.read()
        self.checkpoint_seconds = _CHECKPOINT_SECONDS

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience is over."""
        done, best = len(self.state.epochs), self.state.best_epoch
        stopped = bool(self.config.patience) and done - best >= self.config.patience
        return done >= self.config.epochs or stopped

    def run(self, last: int, *, show: bool) -> None:
        """Go on to the end of so many epochs, or of patience."""
        steps = self.stream.steps
        bar = progress(
            total=steps * self.config.epochs,
            initial=len(self.state.epochs) * steps + self.state.steps,
            desc="fit logit-correction",
            show=show,
        )
        with bar:
            while len(self.state.epochs) < last and not self.finished:
                record = self.epoch(len(self.state.epochs), bar)
                self.step.export(self.network)
                if self.held is not None:
                    found = self.held.accuracies(self.network, self.device)
                    record |= figures(found, self.config.clean_share)
                self.state.finish_epoch(record)
                bar.set_postfix_str(_summary(record))

    def epoch(self, epoch: int, bar: Any) -> Epoch:
        """Run what is left of one epoch."""
        state = self.state
        began = written = time.perf_counter()
        before = state.seconds
        losses: list[Tensor] = []
        often = 1 if self.device.type == "cpu" else _LOSSES
        for logits, labels in self.stream.batches(epoch, state.steps):
            step = state.steps + len(losses)
            found = self.step.run(self._there(logits), self._there(labels), epoch=epoch, step=step)
            losses.append(found)
            bar.update(1)
            if len(losses) < often:
                continue
            self._take(epoch, losses)
            now = time.perf_counter()
            state.seconds = before + now - began
            if now - written >= self.checkpoint_seconds and state.steps < self.stream.steps:
                self._check_weights(epoch)
                state.write()
                written = time.perf_counter()
        self._take(epoch, losses)
        self._check_weights(epoch)
        assert state.steps == self.stream.steps
        return {
            "epoch": epoch + 1,
            "loss": state.loss / state.steps,
            "seconds": before + time.perf_counter() - began,
        }

    def _there(self, batch: Tensor) -> Tensor:
        return batch.to(self.device, non_blocking=True)

    def _take(self, epoch: int, losses: list[Tensor]) -> None:
        """Count the losses of steps that are done, each of which must be finite."""
        for value in torch.stack(losses).tolist() if losses else ():
            if not math.isfinite(value):
                self._diverged(f"The training loss is {value}", epoch)
            self.state.loss += value
            self.state.steps += 1
        losses.clear()

    def _check_weights(self, epoch: int) -> None:
        """Nothing is written that cannot be gone on from."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.step.parameters):
            self._diverged("A weight is not finite", epoch, done=True)

    def _diverged(self, problem: str, epoch: int, *, done: bool = False) -> None:
        step = self.state.steps + (0 if done else 1)
        path = self.state.path
        kept = "; the last good checkpoint is kept" if path is not None and path.exists() else ""
        raise ConfigError(
            f"{problem} in epoch {epoch + 1}, step {step}, at the learning rate {self.config.lr:g}",
            expected="a finite loss and finite weights",
            fix=f"lower lr{kept}",
        )

    def corrector(self) -> Corrector:
        """The kept epoch with its card."""
        self.state.restore_kept()
        config, bank, epochs = self.config, self.bank, self.state.epochs
        kept = epochs[self.state.kept_epoch - 1]
        card = {
            "fitted_by": "unperturb fit logit-correction",
            "config": config.to_dict(),
            "bank": {
                "digest": bank.digest,
                "source": short_paths(bank.source),
                "split": bank.split,
                "rows": len(bank),
                "dtype": bank.dtype,
                "attacks": list(self.attacks),
            },
            "weak": list(bank.weak),
            "rows": {"trained": self.stream.count, "held_out": len(bank) - self.stream.count},
            "epochs_done": len(epochs),
            "kept_epoch": self.state.kept_epoch,
            "held_out": self._figures(kept),
            "environment": {
                "torch": torch.__version__,
                "machine": platform.machine(),
                "device": str(self.device),
                "threads": torch.get_num_threads(),
            },
        }
        return Corrector(
            self.network,
            classifier=bank.classifier,
            arch=bank.arch,
            classes=tuple(bank.classes),
            card=card,
        )

    def _figures(self, kept: Epoch) -> dict[str, Any] | None:
        """Held-out figures of the kept epoch, beside those of the logits as they were."""
        if self.held is None:
            return None
        plain = self.held.accuracies(None, torch.device("cpu"))
        return {
            "corrected": {key: kept[key] for key in ("clean", "adversarial", "score")},
            "uncorrected": figures(plain, self.config.clean_share),
        }


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no unfinished fit's, before anything is trained.

    Raises:
        OutputError: It is a file.
        RecordError: It holds a finished fit, or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file", expected="a folder", fix="choose another --out")
    if not folder.is_dir() or (folder / CHECKPOINT).exists():
        return
    if (folder / RECORD).exists() and is_corrector(folder):
        raise RecordError(
            f"{folder} holds a finished fit",
            expected="a new folder, or one with an unfinished fit of the same settings",
            fix="choose another --out, or delete that folder",
        )
    strangers = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if strangers:
        raise RecordError(
            f"{folder} is not empty and holds no fit ({', '.join(strangers[:4])})",
            expected="a new or empty folder, or one with an unfinished fit of the same settings",
            fix="choose another --out",
        )


def _summary(record: Epoch) -> str:
    shown = [f"loss {record['loss']:.3f}"]
    if "clean" in record:
        adversarial = record["adversarial"].values()
        mean = sum(adversarial) / len(adversarial)
        shown.append(f"held out: clean {record['clean']:.1%}, adversarial {mean:.1%}")
    return ", ".join(shown)
