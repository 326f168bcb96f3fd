"""What random transforms and a restoration network make of images: Lin et al. 2024, Figures 3-9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.attacks import Attack, make_attack
from unperturb.checks import check_images, check_labels
from unperturb.classifiers import Classifier
from unperturb.errors import SpecError, unknown_name
from unperturb.explain.given import device_of, names_of, parts_of, perturb
from unperturb.progress import progress
from unperturb.purifiers import Restoration
from unperturb.purifiers.restoration import check_shape
from unperturb.purifiers.transforms import (
    TRANSFORMS,
    KeyedDraws,
    RandomTransform,
    Restored,
    restore,
)
from unperturb.randomness import Keys
from unperturb.threat import Linf, Threat

__all__ = ["VERSIONS", "PanelColumn", "Panels", "restoration_panels"]

VERSIONS = ("clean", "attacked")


@dataclass(frozen=True, eq=False)
class PanelColumn:
    """One stage of one transform, for clean and attacked images; all on the CPU.

    Attributes:
        transform: ``rt1``, ``rt2`` or ``rt3``; empty for the originals.
        stage: ``original``, ``noisy``, ``masked``, ``completed`` (``rt3``: the pixels that a pass
            adds) or ``restored``; of one of several passes with its number, as ``masked 2``.
        images: (2, N, C, H, W), clean and attacked; noisy ones may leave [0, 1].
        predictions: The classifier's answer on these very images, (2, N).
        probabilities: Its softmax probability of that answer, (2, N).
    """

    transform: str
    stage: str
    images: Tensor
    predictions: Tensor
    probabilities: Tensor

    @property
    def name(self) -> str:
        """Such as ``rt2 masked``."""
        return f"{self.transform} {self.stage}".strip()


@dataclass(frozen=True, eq=False)
class Panels:
    """All stages of a few images.

    Attributes:
        columns: The originals, then the stages of every transform.
        labels: True classes (N,).
        ids: Ids of the images.
        inside: Whether the adversarial images lie in the ball, (N,) bool.
        settings: Transforms, network, attack, threat model, attacker and seed, JSON-able.
    """

    columns: tuple[PanelColumn, ...]
    labels: Tensor
    ids: tuple[str, ...]
    inside: Tensor
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Settings and answers, JSON-able; the images are in `tensors`."""
        return {
            **self.settings,
            "n": len(self.labels),
            "outside_ball": int((~self.inside).sum()),
            "ids": list(self.ids),
            "labels": self.labels.tolist(),
            "columns": [
                {
                    "transform": column.transform or None,
                    "stage": column.stage,
                    "predictions": column.predictions.tolist(),
                    "probabilities": [
                        [round(float(p), 6) for p in row] for row in column.probabilities
                    ],
                    "accuracy": {
                        version: float((row == self.labels).double().mean())
                        for version, row in zip(VERSIONS, column.predictions, strict=True)
                    },
                }
                for column in self.columns
            ],
        }

    def tensors(self) -> dict[str, Tensor]:
        """Images of every column, by names such as ``rt2 masked.attacked``, and the labels."""
        return {
            "labels": self.labels,
            **{
                f"{column.name}.{version}": column.images[row]
                for column in self.columns
                for row, version in enumerate(VERSIONS)
            },
        }


def restoration_panels(
    subject: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    transforms: Sequence[str] = TRANSFORMS,
    all_passes: bool = False,
    attack: str | Attack = "fgsm",
    threat: Threat | None = None,
    attacker: str = "oblivious",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    show: bool = False,
) -> Panels:
    """Every stage between an image and what the classifier reads, clean and attacked.

    The defense's network restores what each of the transforms leaves, whichever it was trained on;
    settings of its own transform are taken over where another one reads them. Clean and attacked
    images meet the same mask and the same noise. Answers are the classifier's own, on the very
    images that are shown.

    Args:
        subject: A defense whose purifier is a `Restoration`.
        images: Clean images (N, C, H, W) in [0, 1].
        labels: True labels (N,).
        transforms: Names of the transforms, in the order wanted.
        all_passes: Show every pass of ``rt3``; otherwise the first.
        attack: Its name, or an attack.
        threat: Norm and size; Linf of 8/255 by default.
        attacker: ``oblivious`` (attacks the undefended classifier, as in the paper) or
            ``adaptive`` (the defense, with its own transform).
        ids: Ids of the images, which name their random numbers; positions by default.
        seed: Names all random numbers.
        batch_size: Images at a time.
        show: Show a progress bar on standard error.

    Raises:
        SpecError: Not such a defense; an unknown transform, attack or attacker.
        InputError: Images, labels or ids are not what the contract says.
        AttackError: The attack cannot be run here.
        ConfigError: The batch size is below 1.

    Example:
        >>> from unperturb.defense import Defense
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        >>> defense = Defense(net, purifier=Restoration(options={"width": 4}))
        >>> found = restoration_panels(defense, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]),
        ...                            transforms=["rt2"])
        >>> [column.name for column in found.columns]
        ['original', 'rt2 noisy', 'rt2 masked', 'rt2 restored']
    """
    for name in transforms:
        if name not in TRANSFORMS:
            raise unknown_name("random transform", str(name), TRANSFORMS)
    chosen = make_attack(attack, draws=20) if isinstance(attack, str) else attack
    threat = threat if threat is not None else Linf(8 / 255)
    check_images(images)
    classifier, defense = parts_of(subject, images)
    if defense is None or not isinstance(defense.purifier, Restoration):
        found = "a bare classifier" if defense is None else f"{defense.purifier.name!r}"
        raise SpecError(
            f"There is nothing to restore: the purifier is {found}",
            expected="a defense with the purifier 'restoration'",
            fix="give one, as in --defense 'atop?purifier=FOLDER'",
        )
    purifier = defense.purifier
    classifier.check(images)
    check_shape(images, purifier.image_shape)
    check_labels(labels, count=len(images), num_classes=classifier.num_classes)
    names = names_of(ids, len(images))
    device = device_of(classifier)
    images, labels = images.to(device), labels.to(device)
    own = purifier.transform
    drawn = [own if name == own.name else RandomTransform(name=name).filled(own)
             for name in transforms]  # fmt: skip
    keys = Keys.of(seed, names, domain="explain").to(device)
    # Before the attack, whose time a patch of a wrong size would waste.
    _stages(purifier, drawn, images[:1], keys[:1], all_passes)
    with progress(total=len(images), desc=chosen.name, show=show, unit="image") as bar:
        made = perturb(
            classifier, defense, images, labels, attack=chosen, threat=threat, attacker=attacker,
            ids=names, seed=seed, batch_size=batch_size, bar=bar,
        )  # fmt: skip
    halves = [
        {
            ("", "original"): given,
            **_batched(purifier, drawn, given, keys, all_passes, batch_size),
        }
        for given in (images, made.images)
    ]
    columns = []
    for place in halves[0]:
        shown = torch.stack([half[place] for half in halves])
        best = _answers(classifier, shown.flatten(0, 1), batch_size)
        columns.append(
            PanelColumn(
                *place,
                images=shown.cpu(),
                predictions=best.indices.view(2, -1).cpu(),
                probabilities=best.values.view(2, -1).cpu(),
            )
        )
    settings = {
        "transforms": [one.to_dict() for one in drawn],
        "network": purifier.kind,
        "own_transform": own.to_dict(),
        "attack": chosen.name,
        **threat.to_dict(),
        "attacker": attacker,
        "seed": seed,
    }
    return Panels(tuple(columns), labels.cpu(), tuple(names), made.inside.cpu(), settings)


Place = tuple[str, str]


def _batched(
    purifier: Restoration,
    drawn: Sequence[RandomTransform],
    images: Tensor,
    keys: Keys,
    all_passes: bool,
    batch_size: int,
) -> dict[Place, Tensor]:
    parts = [
        _stages(purifier, drawn, images[rows], keys[rows], all_passes)
        for rows in (slice(i, i + batch_size) for i in range(0, len(images), batch_size))
    ]
    return {place: torch.cat([part[place] for part in parts]) for place in parts[0]}


@torch.no_grad()
def _stages(
    purifier: Restoration,
    drawn: Sequence[RandomTransform],
    images: Tensor,
    keys: Keys,
    all_passes: bool,
) -> dict[Place, Tensor]:
    """Images of every stage of every transform."""
    found: dict[Place, Tensor] = {}
    for transform in drawn:
        made = restore(purifier.network, images, transform, KeyedDraws(keys, images))
        for stage, shown in _of_one(transform, made, all_passes).items():
            found[transform.name, stage] = shown
    return found


def _of_one(transform: RandomTransform, made: Restored, all_passes: bool) -> dict[str, Tensor]:
    noisy, masks = made.corrupted
    found = {} if transform.sigma is None else {"noisy": noisy}
    if transform.passes is None:
        found["masked"] = masks[0] * noisy
    else:
        for number in range(len(masks) if all_passes else 1):
            mark = f" {number + 1}" if all_passes else ""
            found[f"masked{mark}"] = masks[number] * noisy
            found[f"completed{mark}"] = (1.0 - masks[number]) * made.passes[number]
    return {**found, "restored": made.images}


@torch.no_grad()
def _answers(classifier: Classifier, images: Tensor, batch_size: int) -> Any:
    parts = [classifier(part).float().softmax(1) for part in images.split(batch_size)]
    return torch.cat(parts).max(1)
