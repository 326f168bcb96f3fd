"""What figures are made of: a classifier with its defense, adversarial images, purified images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unperturb.attacks import Attack, Surface, describe_attack
from unperturb.checks import check_images, check_labels
from unperturb.classifiers import Classifier, as_classifier
from unperturb.classifiers.probe import channels_of, run_quietly
from unperturb.defense import Defense, Prediction
from unperturb.errors import ConfigError, InputError, SpecError, unknown_name
from unperturb.purifiers import Identity
from unperturb.randomness import Keys
from unperturb.threat import Threat

__all__ = [
    "ATTACKERS",
    "Perturbed",
    "device_of",
    "names_of",
    "parts_of",
    "perturb",
    "purified_images",
    "purifies",
]

ATTACKERS = ("oblivious", "adaptive")


class Perturbed(NamedTuple):
    """Adversarial images of one attack, one row for each clean image."""

    images: Tensor  # (N, C, H, W)
    inside: Tensor  # (N,) bool: in the ball of the threat model


def parts_of(subject: nn.Module, images: Tensor) -> tuple[Classifier, Defense | None]:
    """The classifier of a subject, and the defense that it is; a plain module is wrapped.

    Raises:
        SpecError: The subject is no module.
        InputError: It cannot read the images, or what comes out is not (N, K).
    """
    if isinstance(subject, Defense):
        return subject.classifier, subject
    if isinstance(subject, Classifier):
        return subject, None
    if not isinstance(subject, nn.Module):
        raise SpecError(
            f"The classifier is a {type(subject).__name__}",
            expected="a torch.nn.Module from images to logits, a Classifier or a Defense",
            fix="load_classifier(...) takes a specification string",
        )
    check_images(images, channels=channels_of(subject))
    trial = Classifier(subject, num_classes=2)
    try:
        logits = run_quietly(trial, images[:1].detach().to(device_of(trial)))
    except RuntimeError as error:
        raise InputError(
            f"The classifier cannot read images of shape {tuple(images.shape[1:])}: "
            f"{str(error).splitlines()[0]}",
            expected="images of the size and dtype that it was made for",
        ) from None
    classes = logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else 2
    return as_classifier(subject, num_classes=classes), None


def device_of(classifier: Classifier) -> torch.device:
    """Where the classifier's tensors are."""
    return classifier._shift.device


def names_of(ids: Sequence[str] | None, count: int) -> list[str]:
    """One id for each image; the positions where none are given.

    Raises:
        InputError: Their number is not that of the images.
    """
    if ids is None:
        return [str(number) for number in range(count)]
    if len(ids) != count:
        raise InputError(
            f"There are {len(ids)} ids and {count} images", expected="one id for each image"
        )
    return [str(name) for name in ids]


def purifies(defense: Defense | None) -> bool:
    """Whether the classifier reads anything but the images themselves."""
    return defense is not None and not isinstance(defense.purifier, Identity)


def purified_images(defense: Defense, found: Prediction) -> Tensor:
    """Purified images of a prediction, as the classifier reads them.

    Raises:
        SpecError: The purifier has no images to show.
    """
    if found.purified is None:
        raise SpecError(
            f"The purifier {defense.purifier.name!r} gives the classifier no images to look at",
            expected="a purifier from images to images",
            fix="leave the defense out, or use another",
        )
    return found.purified


def perturb(
    classifier: Classifier,
    defense: Defense | None,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack,
    threat: Threat,
    attacker: str,
    ids: Sequence[str],
    seed: int,
    batch_size: int,
    bar: Any,
) -> Perturbed:
    """Attack images with all steps (rule ``fixed`` where the attack has it).

    ``oblivious``: the undefended classifier is attacked, whatever stands around it;
    ``adaptive``: the defense, by its purifier's strongest gradient. Images, ids, seed and attack
    name the random numbers as ``unperturb attack`` does, so equal settings give equal images.

    Raises:
        SpecError: There is no such attacker.
        InputError: Images or labels are not what the contract says.
        AttackError: The attack cannot be run here.
        ConfigError: The batch size is below 1.
    """
    if attacker not in ATTACKERS:
        raise unknown_name("attacker", attacker, ATTACKERS)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}", expected="at least 1")
    check_labels(labels, count=len(images), num_classes=classifier.num_classes)
    surface = (
        Surface(classifier)
        if attacker == "oblivious" or defense is None
        else Surface(defense, backward=defense.purifier.adaptive[0])
    )
    rules = describe_attack(attack)["rules"]
    stop = "fixed" if "fixed" in rules else rules[0]
    keys = Keys.of(seed, ids, domain=f"attack/{attack.name}")
    made, inside = [], []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        found = attack.run(
            surface, images[rows], labels[rows], threat=threat, keys=keys[rows], stop=stop
        )
        made.append(found.images)
        inside.append(threat.contains(found.images, images[rows]))
        bar.update(len(found.images))
    return Perturbed(torch.cat(made), torch.cat(inside))
