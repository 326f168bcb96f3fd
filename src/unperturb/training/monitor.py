"""The robust-overfitting monitor: is a network in the state that TPAP needs?

Tang et al. 2024, section 3.2: on training images the accuracy on the attack that is trained on
(FGSM at the training eps) is above 90 %, that on other attacks (PGD) below 10 %; "most
importantly", on images not trained on, accuracy on clean images and on that attack is high.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.attacks import Surface, make_attack
from unperturb.data import ImageSet
from unperturb.presets import tpap
from unperturb.randomness import Keys
from unperturb.threat import Linf
from unperturb.training.augment import step_generator
from unperturb.training.config import TrainConfig
from unperturb.training.examples import cw_examples, stadv_examples
from unperturb.training.objectives import OVERFITTING

__all__ = [
    "FGSM_ABOVE",
    "PGD_BELOW",
    "depth",
    "make_monitor",
    "measure",
    "other_attacks",
    "purified",
    "robustness",
]

FGSM_ABOVE = 0.90
PGD_BELOW = 0.10
OTHER_IMAGES = 100
_BATCH = 250


@torch.no_grad()
def _correct(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    return int((network(images).argmax(1) == labels).sum())


def measure(
    network: nn.Module,
    data: ImageSet,
    *,
    train_eps: float,
    other_eps: float,
    seed: int,
    batch_size: int = _BATCH,
    device: torch.device | str = "cpu",
    attacks: tuple[str, ...] = ("fgsm", "pgd-20"),
    purify: float | None = None,
) -> dict[str, float]:
    """Accuracy of a network on clean images, on FGSM at the training eps, and on PGD.

    Args:
        network: Images in [0, 1] to logits, in eval mode.
        data: The images.
        train_eps: Size of FGSM in pixel units.
        other_eps: Size of the other attacks in pixel units.
        seed: Seed of the random starts.
        batch_size: Images at a time.
        device: Where to compute.
        attacks: The attack trained on, and others; none for clean accuracy alone.
        purify: Radius of TPAP's step in pixel units, to measure the purified answers too.

    Returns:
        ``clean`` and one entry for each attack's family, each an accuracy in [0, 1]; with
        ``purify`` also ``tpap_clean`` and ``tpap_pgd``, the answers to the same images, attacked
        without regard to the defense.
    """
    defense = None if purify is None else tpap(network, radius=purify)
    chosen = [make_attack(name) for name in attacks]
    surface = Surface(network)
    right: dict[str, int] = {}
    for start in range(0, len(data), batch_size):
        rows = slice(start, start + batch_size)
        images = data.images(rows).to(device, memory_format=torch.channels_last)
        labels = data.labels[rows].to(device)
        right["clean"] = right.get("clean", 0) + _correct(network, images, labels)
        if defense is not None:
            right["tpap_clean"] = right.get("tpap_clean", 0) + _correct(defense, images, labels)
        for attack in chosen:
            result = attack.run(
                surface,
                images,
                labels,
                threat=Linf(train_eps if attack is chosen[0] else other_eps),
                keys=Keys.of(seed, data.ids[rows], domain="monitor"),
                stop="fixed",
            )
            family = attack.name.partition("-")[0]
            right[family] = right.get(family, 0) + int((~result.success).sum())
            if defense is not None and family == "pgd":
                kept = _correct(defense, result.images, labels)
                right["tpap_pgd"] = right.get("tpap_pgd", 0) + kept
    return {name: count / len(data) for name, count in right.items()}


def _own(
    network: nn.Module, data: ImageSet, config: TrainConfig, device: torch.device | str
) -> float:
    """Accuracy on the training attack itself, where no attack of the package is it."""
    right = 0
    for start in range(0, len(data), _BATCH):
        rows = slice(start, start + _BATCH)
        images = data.images(rows).to(device, memory_format=torch.channels_last)
        labels = data.labels[rows].to(device)
        if config.objective == "cw":
            images = cw_examples(
                network,
                images,
                labels,
                steps=config.attack_steps,
                confidence=config.cw_weight,
                rate=config.cw_rate,
            )
        else:
            images = stadv_examples(
                network,
                images,
                labels,
                flow=config.flow,
                steps=config.attack_steps,
                step_size=config.attack_step_size,
                generator=step_generator(config.seed, 0, start),
            )
        right += _correct(network, images, labels)
    return right / len(data)


def _parts(data: ImageSet, config: TrainConfig) -> dict[str, ImageSet]:
    """The images that are watched: trained on, and held out."""
    count, size = len(data) - config.holdout, config.monitor_images
    parts = {"train": data.take(torch.arange(min(size, count)))}
    if config.holdout:
        parts["heldout"] = data.take(torch.arange(count, count + min(size, config.holdout)))
    return parts


def make_monitor(
    data: ImageSet, config: TrainConfig, device: torch.device | str = "cpu"
) -> Callable[[nn.Module], dict[str, Any]]:
    """A monitor for ``train``: figures on training and on held-out images after each epoch.

    The keys of its record are ``train_clean``, ``train_fgsm`` (at the greatest size that is trained
    on), ``train_pgd``, the same with ``heldout_`` (where images are held out), ``train_own`` for
    the objectives ``cw`` and ``stadv`` (the attack they train on), ``train_tpap_clean`` and
    ``train_tpap_pgd`` for objectives on one-step examples (purified by a step of ``monitor_eps``),
    and ``robust_overfitting``: whether this epoch is in the state on training images. Standard
    training is never in it, so nothing is attacked there.
    """
    adversarial = config.objective != "standard"
    attacks = ("fgsm", "pgd-20") if adversarial else ()
    parts = _parts(data, config)

    def monitor(network: nn.Module) -> dict[str, Any]:
        record: dict[str, Any] = {}
        for part, images in parts.items():
            figures = measure(
                network,
                images,
                train_eps=config.known_eps,
                other_eps=config.monitor_eps,
                seed=config.seed,
                device=device,
                attacks=attacks,
                purify=config.monitor_eps if config.objective in OVERFITTING else None,
            )
            if config.objective in ("cw", "stadv"):
                figures["own"] = _own(network, images, config, device)
            record |= {f"{part}_{name}": value for name, value in figures.items()}
        record["robust_overfitting"] = (
            adversarial and record["train_fgsm"] > FGSM_ABOVE and record["train_pgd"] < PGD_BELOW
        )
        return record

    return monitor


def other_attacks(
    network: nn.Module, data: ImageSet, config: TrainConfig, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Accuracy of the kept epoch under attacks of other kinds, C&W's and DeepFool.

    Both within Linf ``config.monitor_eps``, as PGD: C&W's margin loss by the attack ``cw-linf``,
    and DeepFool in Linf, where an image counts as right if the nearest wrong image that is found
    lies outside. They are too slow to run after each epoch, and run on at most 100 images a part.

    Returns:
        ``train_cw``, ``train_deepfool``, the same with ``heldout_``, and ``other_images``.
    """
    record: dict[str, Any] = {}
    threat = Linf(config.monitor_eps)
    for part, images in _parts(data, config).items():
        few = images.take(torch.arange(min(len(images), OTHER_IMAGES)))
        record["other_images"] = len(few)
        pixels = few.images().to(device, memory_format=torch.channels_last)
        labels = few.labels.to(device)
        keys = Keys.of(config.seed, few.ids, domain="monitor")
        for name, rule in (("cw-linf", "first-success"), ("deepfool", "minimal")):
            attack = make_attack(name)
            result = attack.run(
                Surface(network), pixels, labels, threat=threat, keys=keys, stop=rule
            )
            broken = result.success & threat.contains(result.images, pixels)
            right = len(few) - int(broken.sum())
            record[f"{part}_{name.partition('-')[0]}"] = right / len(few)
    return record


def depth(record: dict[str, Any]) -> float:
    """How deep an epoch is in the state: FGSM accuracy less PGD accuracy on training images."""
    return float(record["train_fgsm"]) - float(record["train_pgd"])


def purified(record: dict[str, Any]) -> float:
    """The lesser of TPAP's accuracies on held-out images, clean and under PGD that ignores it."""
    return min(float(record["heldout_tpap_clean"]), float(record["heldout_tpap_pgd"]))


def robustness(record: dict[str, Any]) -> float:
    """PGD accuracy on held-out images: early stopping as in Rice et al. 2020."""
    return float(record["heldout_pgd"])
