"""Training a classifier from a name or from weights to a saved folder with its record."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.checks import check_labels
from unperturb.classifiers import Classifier, save_classifier
from unperturb.data import ImageSet
from unperturb.errors import RecordError
from unperturb.files import short_paths, write_json
from unperturb.training.checkpoint import CHECKPOINT, Epoch, Score
from unperturb.training.config import TrainConfig
from unperturb.training.loop import train
from unperturb.training.monitor import (
    FGSM_ABOVE,
    PGD_BELOW,
    depth,
    make_monitor,
    other_attacks,
    purified,
    robustness,
)
from unperturb.training.objectives import OVERFITTING
from unperturb.training.processes import launched

__all__ = ["train_classifier"]

RECORD = "training.json"


class _Network(nn.Module):
    """The trainable network with its classifier's normalization in front."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.module = classifier.module
        self._prepare: Callable[[Tensor], Tensor] = classifier.prepare

    def forward(self, images: Tensor) -> Tensor:
        return self.module(self._prepare(images))  # type: ignore[no-any-return]


def train_classifier(
    classifier: Classifier,
    data: ImageSet,
    config: TrainConfig,
    *,
    out: str | Path,
    device: torch.device | str = "cpu",
    stop_after: int | None = None,
    show: bool = True,
) -> Classifier:
    """Train ``classifier`` in place, and leave a folder that ``load_classifier`` reads.

    The folder holds ``config.json`` (with a card), ``model.safetensors``, ``training.json`` (one
    record for each epoch) and, until the run is finished, a checkpoint. A run that was cut off goes
    on from its checkpoint and ends with the weights of an uninterrupted one.

    Training on one-step examples keeps the epoch that is deepest in robust overfitting, other
    training the last, unless ``config.keep`` says otherwise. Under ``accelerate launch`` the first
    process writes.

    Args:
        classifier: Fresh (``new_classifier``) or with start weights.
        data: Training images; the last ``config.holdout`` are held out.
        config: The settings.
        out: The folder.
        device: Where to train.
        stop_after: Stop after this many epochs, leaving the checkpoint.
        show: Show progress, with the monitor's figures after each epoch.

    Raises:
        RecordError: The folder holds another finished or unfinished run.
        DataError: Too few images.
        InputError: A label lies outside the classifier's classes.
    """
    folder = Path(out)
    record_path = folder / RECORD
    if record_path.exists() and not (folder / CHECKPOINT).exists():
        raise RecordError(
            f"{folder} holds a finished training run",
            expected="a new folder, or one with an unfinished run of the same settings",
            fix="choose another --out, or delete that folder",
        )
    check_labels(data.labels, count=len(data), num_classes=classifier.num_classes)
    before = classifier.origin.card
    began = {
        "spec": classifier.spec,
        "fingerprint": classifier.fingerprint(),
        # The whole lineage: how the start weights were trained, and theirs before them.
        "config": before.get("config"),
        "start": before.get("start"),
    }
    classifier.module.requires_grad_(True)
    network = _Network(classifier)
    classifier.to(device)
    # Before the run: under several processes the group is theirs, and the first one's word counts.
    processes = launched(torch.device(device))
    trained = train(
        network,
        data,
        config,
        out=folder,
        device=device,
        monitor=make_monitor(data, config, device),
        depth=_score(config),
        stop_after=stop_after,
        show=show,
    )
    network.eval()
    network.load_state_dict(trained.state)
    classifier.module.requires_grad_(False)
    if len(trained.epochs) < config.epochs:
        return classifier
    processes.wait()
    if not processes.main:
        return classifier
    kept = trained.epochs[trained.kept_epoch - 1]
    if config.objective != "standard":
        kept = {**kept, **other_attacks(network, data, config, device)}
    card = {
        "trained_by": "unperturb train",
        "objective": config.objective,
        "config": config.to_dict(),
        "start": began if began["spec"] else None,
        "classes": list(data.classes),
        "data": {"source": data.source, "split": data.split, "fingerprint": data.fingerprint()},
        "kept_epoch": trained.kept_epoch,
        "monitor": _monitor_card(kept, config),
        "environment": {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "processes": processes.count,
        },
    }
    save_classifier(classifier, folder, extra=_relative(card))
    write_json(record_path, {**_relative(card), "epochs": trained.epochs})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return classifier


def _score(config: TrainConfig) -> Score | None:
    if config.keep in ("robust", "purified"):
        return robustness if config.keep == "robust" else purified
    overfitting = config.objective in OVERFITTING and config.keep == "deepest"
    return depth if overfitting else None


def _monitor_card(kept: Epoch, config: TrainConfig) -> dict[str, Any]:
    figures = {k: v for k, v in kept.items() if k.startswith(("train_", "heldout_"))}
    return {
        **figures,
        "robust_overfitting": kept["robust_overfitting"],
        "train_eps": config.known_eps,
        "other_eps": config.monitor_eps,
        "images": config.monitor_images,
        "other_images": kept.get("other_images", 0),
        "rule": f"FGSM at the training eps above {FGSM_ABOVE:.0%} and PGD-20 below "
        f"{PGD_BELOW:.0%}, on training images",
    }


def _relative(card: dict[str, Any]) -> dict[str, Any]:
    """Paths of this machine say nothing to anyone else: names only."""
    found: dict[str, Any] = json.loads(json.dumps(card))
    for key, name in (("data", "source"), ("start", "spec")):
        if found.get(key):
            found[key][name] = short_paths(found[key][name])
    return found
