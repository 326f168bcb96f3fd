"""The settings of a training run: frozen, checked, and written beside the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from unperturb.errors import ConfigError, unknown_name
from unperturb.training.objectives import OBJECTIVES

__all__ = ["TrainConfig"]

_AUGMENTATIONS = ("crop-flip", "flip", "none")
_SCHEDULES = ("multistep", "one-cycle")
_PRECISIONS = ("float32", "bfloat16")
_KEEP = ("deepest", "last")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a training run computes.

    Attributes:
        objective: ``standard``, ``fgsm`` or ``pgd``.
        eps: Linf size of the training attack in pixel units; unused by ``standard``.
        epochs: Passes over the training images.
        batch_size: Images in a step.
        lr: Peak learning rate of SGD.
        momentum: SGD momentum.
        weight_decay: SGD weight decay.
        schedule: ``multistep`` (``lr`` times ``gamma`` at each milestone) or ``one-cycle``
            (linear warm-up over 20 % of the steps, then linear to zero).
        milestones: Fractions of the epochs at which ``multistep`` decays.
        gamma: Factor of a ``multistep`` decay.
        augment: ``crop-flip`` (pad by 4, random crop, flip), ``flip`` or ``none``.
        precision: ``float32``, or ``bfloat16`` autocast.
        clean_pass: For ``fgsm``: let the clean batch enter the batch-norm statistics.
        attack_steps: For ``pgd``: steps of the training attack.
        attack_step_size: For ``pgd``: its step as a fraction of eps.
        keep: For ``fgsm``: keep the ``deepest`` epoch in robust overfitting, or the ``last`` (for
            a stage that another one goes on from).
        holdout: Images at the end of the training split that are never trained on; the monitor
            and every choice of a hyperparameter use these.
        monitor_images: Training images, and held-out images, that the monitor attacks.
        monitor_eps: Linf size of the attacks that the network is *not* trained on.
        seed: Seed of the initialization, the order and the augmentation.

    Raises:
        ConfigError: A value is out of its range.
    """

    objective: str = "standard"
    eps: float = 8 / 255
    epochs: int = 15
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "multistep"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    augment: str = "crop-flip"
    precision: str = "float32"
    clean_pass: bool = False
    attack_steps: int = 7
    attack_step_size: float = 0.25
    keep: str = "deepest"
    holdout: int = 1000
    monitor_images: int = 256
    monitor_eps: float = 8 / 255
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("objective", OBJECTIVES),
            ("schedule", _SCHEDULES),
            ("augment", _AUGMENTATIONS),
            ("precision", _PRECISIONS),
            ("keep", _KEEP),
        ):
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        for name in ("epochs", "batch_size", "monitor_images", "attack_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", expected="at least 1")
        if self.holdout < 0:
            raise ConfigError(f"holdout is {self.holdout}", expected="0 or more")
        for name in ("lr", "attack_step_size"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", expected="above 0")
        for name in ("eps", "monitor_eps"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name):g}",
                    expected="above 0 and at most 1, in pixel units",
                    fix=f"write it as a fraction, such as {name} 8/255",
                )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of one step out of ``steps``.

        Example:
            >>> round(TrainConfig(lr=0.1, milestones=(0.5,)).rate(60, 100), 9)
            0.01
        """
        done = step / steps
        if self.schedule == "one-cycle":
            warm = 0.2
            return self.lr * (done / warm if done < warm else (1.0 - done) / (1.0 - warm))
        return self.lr * self.gamma ** sum(done >= milestone for milestone in self.milestones)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; ``from_dict`` reads it back."""
        return {**asdict(self), "milestones": list(self.milestones)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Read back what ``to_dict`` wrote, refusing unknown keys."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("training setting", name, known)
        return cls(**{**values, "milestones": tuple(values.get("milestones", cls.milestones))})
