"""What a recipe says of what its defenses are made of: banks, correctors, networks, thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unperturb.threat import Threat

__all__ = [
    "DRAWINGS",
    "DRAWN_CHANGES",
    "NETWORKS",
    "OVER_ALL",
    "PARTS",
    "Bank",
    "Change",
    "Changes",
    "Explanation",
    "Fit",
    "Network",
    "Subject",
    "Threshold",
]

DRAWINGS = ("mean-logit", "supporting", "instance")
"""Pictures of an explanation: Figure 1, Figures 2 and 3, and Figure 4 of the paper."""

PARTS = ("train", "test", "selected")
"""Images of a bank: the training set, the first test images, or the selected ones."""

NETWORKS = ("vae", "denoiser", "gan", "mae", "atop")
"""Kinds of networks, as ``unperturb fit`` has them."""

DRAWN_CHANGES = ("bars", "statistic", "changes", "roc", "curve", "quality", "compared")
"""Pictures of logit changes: Figures 6, 2 and 7 of ALU, the detector's curve, Figures 3 and 4, what
purification leaves of clean images, and the subjects' accuracies one below the other."""

OVER_ALL = ("curve", "quality", "compared")
"""Those of them that show all subjects at once."""

PLACED = ("curve", "quality")
"""Those of them that need every subject's place on an axis."""


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Clean and adversarial logits of a model, made once.

    Attributes:
        name: Its name.
        model: The classifier.
        attacks: Specifications of the attacks, each run against the undefended classifier.
        threat: Norm and size.
        part: One of ``PARTS``.
        limit: Images at most, the first ones; None for all.
        crops: Random crops that are taken of each image in its place; None: the image as it is.
        dtype: How logits are stored.
        labels: What attacks step away from: ``true`` or ``predicted``.
        precision: Arithmetic of the attacks' gradients.
    """

    name: str
    model: str
    attacks: tuple[str, ...]
    threat: Threat
    part: str = "train"
    limit: int | None = None
    crops: int | None = None
    dtype: str = "float32"
    labels: str = "true"
    precision: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A corrector that is fitted on a bank.

    Attributes:
        name: Its name.
        bank: The bank.
        config: Settings of ``CorrectionConfig``.
    """

    name: str
    bank: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Adversarial logits, and the corrector that is explained on them.

    Attributes:
        name: In words.
        bank: Where the logits are, of images that the corrector was not fitted on.
        attack: Which of the bank's.
        fit: The corrector; None where there is none to explain.
    """

    name: str
    bank: str
    attack: str
    fit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How correctors are explained.

    Attributes:
        subjects: By name; all on logits of as many classes.
        top: Length of an image's list of classes; None for the default.
        lower: By how much the supporting classes' logits are lowered.
        controls: Draws of as many random classes.
        draw: Some of ``DRAWINGS``.
        watch: Class whose place in the lists is told; None for the most frequent one.
        paper: The paper's Bhattacharyya coefficients: two subjects and the figure.
    """

    subjects: Mapping[str, Subject]
    top: int | None = None
    lower: float = 20.0
    controls: int = 20
    draw: tuple[str, ...] = ()
    watch: int | None = None
    paper: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a defense, beside the classifier, and how it is had at this scale.

    Attributes:
        name: Its name.
        title: In words.
        kind: One of ``NETWORKS``.
        dataset: The images it is for.
        model: For ``denoiser`` and ``atop``: the classifier that it is trained for.
        start: For ``atop``: the network that is fine-tuned.
        zoo: Network of the project's zoo that serves; None for none.
        net: For ``vae`` and ``denoiser``: settings of the architecture.
        train: Settings of its training; None where it is not trained at this scale.
        unavailable: Why it cannot be had at this scale; None where it can.
    """

    name: str
    title: str
    kind: str
    dataset: str
    model: str | None = None
    start: str | None = None
    zoo: str | None = None
    net: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] | None = None
    unavailable: str | None = None


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold that is fitted on clean training images, for each classifier it serves.

    Attributes:
        name: Its name.
        model: The one classifier that it is for; None: any, and fitted for each of them.
        n: Training images, the first ones; None for all.
        quantile: Share of them that stay unflagged.
        statistic: What the detector computes of the logits.
        options: Of the preset ``alu``: its purifier; ``{"network": NAME}`` stands for a network.
    """

    name: str
    model: str | None
    n: int | None
    quantile: float
    statistic: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A defense whose logits are compared, and how it is attacked.

    Attributes:
        name: In words.
        model: The classifier.
        defense: Name of one of the recipe's defenses, which purifies.
        attack: Specification of the attack, or ``noise``.
        gradient: What is attacked, as ``unperturb explain logit-change`` names it.
        away_from: ``true`` or ``predicted`` label.
        n: Test images, the first ones.
        threat: Norm and size.
        place: Place on the axis of a curve; None where there is none.
        paper: The paper's figures by name, in percent.
        note: What is to be said of it.
        against: The subject that it is compared with image by image; None for none.
        series: Which lines of a curve it belongs to; the usual ones without a name.
    """

    name: str
    model: str
    defense: str
    attack: str
    gradient: str
    away_from: str
    n: int
    threat: Threat
    place: float | None = None
    against: str | None = None
    series: str = ""
    paper: Mapping[str, float | str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Logit changes of several defenses or attacks.

    Attributes:
        subjects: By name.
        train: Clean training images whose scores stand in Figure 2; 0 for none.
        draw: Some of ``DRAWN_CHANGES``.
        axis: What the axis of a curve says.
        steps: Numbers of steps at which the distance to the clean image is measured; empty: not.
        further: Clean test images whose scores give false positives and ROC; 0: those attacked.
        effort: Whether the gradients until the first success are counted.
    """

    subjects: Mapping[str, Change]
    train: int = 0
    draw: tuple[str, ...] = ()
    axis: str = ""
    steps: tuple[int, ...] = ()
    further: int = 0
    effort: bool = False
