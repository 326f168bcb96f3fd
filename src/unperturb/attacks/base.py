"""What an attack is: settings that round-trip, and a ``run`` that returns re-checked images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from unperturb.attacks.batch import Batch
from unperturb.attacks.surface import Judged, Surface
from unperturb.checks import check_images, check_labels
from unperturb.errors import AttackError, ConfigError, unknown_name
from unperturb.randomness import Keys
from unperturb.threat import Threat

__all__ = ["STOPPING", "Attack", "Attacked", "BaseAttack", "describe_attack"]

STOPPING = ("fixed", "first-success", "minimal")
_MOST = 100_000


class Attacked(NamedTuple):
    """What an attack leaves, one row for each image."""

    images: Tensor  # (N, C, H, W), re-checked: in [0, 1], and inside the ball where so bounded
    judged: Judged  # verdict of a fresh forward pass on fresh draws
    queries: Tensor  # (N,) int64: forward passes of the attacked module spent on the image
    zero_gradients: Tensor  # (N,) int64: steps at which the whole gradient was exactly zero
    nan_gradients: Tensor  # (N,) int64: steps at which the gradient held NaN or infinity
    measure: Tensor | None = None  # (N,) float: size in the attack's own measure, if it has one
    detail: Tensor | None = None  # (N, ...): what made the images (flow, transport); unrecorded
    gradients: Tensor | None = None  # (N,) int64: gradient evaluations; None where not counted

    @property
    def success(self) -> Tensor:
        """Whether the goal is met, (N,) bool."""
        return self.judged.success


class Attack(Protocol):
    """An attack: a frozen dataclass (so that options can be replaced) with these members.

    Attributes:
        name: Its name in the records.
        draws: Draws averaged in each gradient; used only where the target is random.
    """

    @property
    def name(self) -> str: ...

    @property
    def draws(self) -> int: ...

    @property
    def gradients(self) -> int:
        """Gradients an image costs at most: what the cost preview counts."""

    def to_dict(self) -> dict[str, Any]:
        """All settings, JSON-able, ``name`` among them; ``steps`` where it has steps."""

    def run(
        self,
        surface: Surface,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        keys: Keys,
        stop: str = "first-success",
    ) -> Attacked:
        """Attack a batch; see ``BaseAttack.run``."""


@dataclass(frozen=True, kw_only=True)
class BaseAttack(ABC):
    """Base of every attack: it owns validation, eval mode, seeding, counts and the last check.

    A method is a frozen dataclass that adds its hyperparameters and implements ``perturb``; it
    says what it is by class attributes, which every record carries.

    Attributes:
        name: Its name in the records.
        draws: Draws averaged in each gradient or query (EOT); used only where the target is
            random.
        access: What it needs of the target: ``gradients``, ``scores`` or ``labels``.
        bound: ``threat`` (its images lie in the ball), ``minimal`` (as near as it can, whatever
            the ball: an image counts as broken under the threat model where it lies inside), or
            ``own`` (bounded in a measure of its own: not an attack of this threat model).
        rules: Stopping rules it has, of ``fixed``, ``first-success`` and ``minimal`` (the nearest
            image that meets the goal).
        norms: Norms of the threat models it can be run under.
        goals: Goals it can pursue; None for every one.
        seeded: Whether it draws random numbers of its own: without them equal targets give equal
            images, whoever attacks.
    """

    access: ClassVar[str] = "gradients"
    bound: ClassVar[str] = "threat"
    rules: ClassVar[tuple[str, ...]] = ("fixed", "first-success")
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    goals: ClassVar[tuple[str, ...] | None] = None
    seeded: ClassVar[bool] = True

    name: str
    draws: int = 1

    def __post_init__(self) -> None:
        self._whole("draws")

    def _whole(self, *names: str) -> None:
        """Refuse fields that are no whole numbers of 1 or more."""
        for field in names:
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
                raise ConfigError(
                    f"{field} of attack {self.name!r} is {value!r}",
                    expected=f"a whole number, at least 1 and at most {_MOST:,}",
                )

    def _positive(self, *names: str, zero: bool = False) -> None:
        """Refuse fields that are no finite numbers above 0 (or of 0 and more)."""
        for field in names:
            value = getattr(self, field)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not (value >= 0 if zero else value > 0) or not value < math.inf:
                raise ConfigError(
                    f"{field} of attack {self.name!r} is {value!r}",
                    expected="0 or more" if zero else "above 0",
                )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of all settings; the class takes it back as keywords."""
        return asdict(self)

    @property
    def gradients(self) -> int:
        """Gradients an image costs at most when nothing stops early and nothing is random."""
        steps, restarts = getattr(self, "steps", 1), getattr(self, "restarts", 1)
        return int(steps) * int(restarts)

    def check(self, surface: Surface, threat: Threat) -> None:
        """Refuse a target or threat model that the attack cannot be run on, saying what to use.

        Raises:
            AttackError: It cannot.
        """
        if threat.norm not in self.norms:
            raise AttackError(
                f"The attack {self.name!r} has no form for the norm {threat.norm}",
                expected=f"one of {', '.join(self.norms)}",
                fix=f"use another norm, or an attack for {threat.norm} such as pgd-20 or apgd-ce",
            )

    def run(
        self,
        surface: Surface,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        keys: Keys,
        stop: str = "first-success",
    ) -> Attacked:
        """Attack a batch.

        Args:
            surface: What is attacked, by which gradient, for which goal.
            images: Clean images (N, C, H, W) in [0, 1].
            labels: True labels (N,).
            threat: Norm and size.
            keys: Names the random numbers of every image.
            stop: ``fixed`` or ``first-success``; an attack that has not this rule keeps its own.

        Returns:
            Images, success and counts. The gradient of no parameter is touched.

        Raises:
            SpecError: The stopping rule is unknown.
            InputError: Images or labels are not what the contract says.
            AttackError: The keys are not as many as the images, or the attack cannot be run here.
        """
        if stop not in STOPPING:
            raise unknown_name("stopping rule", stop, STOPPING)
        if stop not in self.rules:
            stop = self.rules[0]
        check_images(images)
        if len(keys) != len(images):
            raise AttackError(
                f"The keys name {len(keys)} images, and there are {len(images)}",
                expected="one key for each image",
                fix="Keys.of(seed, ids) with as many ids as images",
            )
        self.check(surface, threat)
        classes = surface.count_classes(images[:1], keys[:1])
        check_labels(labels, count=len(images), num_classes=classes)
        with torch.inference_mode(False):
            try:
                return self._run(surface, images, labels, threat, keys, stop, torch.channels_last)
            except RuntimeError as error:
                if "view size is not compatible" not in str(error):
                    raise
            # A net that views its features as rows reads no other layout than PyTorch's first;
            # its very first forward pass has said so, so no work is lost.
            plain = torch.contiguous_format
            return self._run(surface, images, labels, threat, keys, stop, plain)

    def _run(
        self,
        surface: Surface,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        keys: Keys,
        stop: str,
        layout: torch.memory_format,
    ) -> Attacked:
        batch = Batch(
            surface,
            images.clone(),
            labels.clone(),
            threat=threat,
            keys=keys,
            draws=self.draws,
            early=stop == "first-success",
            layout=layout,
        )
        if batch.early:
            batch.leave_unperturbed()
        self.perturb(batch)
        judged = surface.judge(batch.best, batch.labels, batch.domain("check"))
        flat = batch.best.flatten(1)
        inside = (flat >= 0).all(1) & (flat <= 1).all(1)
        if self.bound == "threat":
            inside = threat.contains(batch.best, batch.origin)
        assert bool(inside.all()), f"{self.name} left the ball"
        counts = (batch.queries + 1, batch.zero, batch.nan)
        return Attacked(batch.best, judged, *counts, batch.measure, batch.detail, batch.gradients)

    @abstractmethod
    def perturb(self, batch: Batch) -> None:
        """The mathematics: leave the result for each image in ``batch.best``."""


def describe_attack(attack: Attack) -> dict[str, Any]:
    """Settings and facts of an attack, as every record carries them.

    Example:
        >>> from unperturb.attacks import make_attack
        >>> describe_attack(make_attack("fgsm"))["access"]
        'gradients'
    """
    goals = getattr(attack, "goals", None)
    return {
        "access": getattr(attack, "access", "gradients"),
        "bound": getattr(attack, "bound", "threat"),
        "rules": list(getattr(attack, "rules", ("fixed", "first-success"))),
        "goals": None if goals is None else list(goals),
        "gradients": attack.gradients,
        **attack.to_dict(),
    }
