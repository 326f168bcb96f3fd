"""Settings of the training of a VAE and of a denoiser: frozen, checked, written down."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from unperturb.errors import ConfigError, unknown_name

__all__ = ["DenoiserConfig", "FitConfig", "VAEConfig"]

_AUGMENTATIONS = ("crop-flip", "flip", "none")
_PRECISIONS = ("float32", "bfloat16")

Config = TypeVar("Config", bound="FitConfig")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What every such training has.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a step.
        lr: Learning rate at the beginning.
        milestones: Fractions of the epochs at which the rate is multiplied by ``gamma``.
        gamma: That factor.
        augment: ``crop-flip``, ``flip`` or ``none``.
        precision: ``float32``, or ``bfloat16`` autocast.
        holdout: Images at the end of the split that are never trained on, and measured.
        seed: Seed of the order, the augmentation and the draws. The first weights are the
            network's.

    Raises:
        ConfigError: A value is out of its range.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    milestones: tuple[float, ...] = ()
    gamma: float = 0.2
    augment: str = "flip"
    precision: str = "float32"
    holdout: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("augment", _AUGMENTATIONS), ("precision", _PRECISIONS)):
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        self._whole("epochs", "batch_size")
        self._whole("holdout", least=0)
        self._positive("lr", "gamma")
        if not all(0 <= milestone <= 1 for milestone in self.milestones):
            raise ConfigError(
                f"milestones is {self.milestones}",
                expected="fractions of the epochs, from 0 to 1, such as 0.667, 0.833",
            )

    def _whole(self, *names: str, least: int = 1) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(
                    f"{name} is {value!r}", expected=f"a whole number, at least {least}"
                )

    def _positive(self, *names: str, zero: bool = False) -> None:
        for name in names:
            value = getattr(self, name)
            if not (value > 0 or (zero and value == 0)) or not value < float("inf"):
                raise ConfigError(f"{name} is {value}", expected="0 or more" if zero else "above 0")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of one step out of ``steps``.

        Example:
            >>> config = VAEConfig()
            >>> [round(config.rate(epoch, 120), 6) for epoch in (79, 80, 100)]
            [0.001, 0.0002, 4e-05]
        """
        # A fraction such as 80 / 120 may fall short of the step that it names by rounding.
        done = step / steps + 1e-9
        return self.lr * self.gamma ** sum(done >= milestone for milestone in self.milestones)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; ``from_dict`` reads it back."""
        return {**asdict(self), "milestones": list(self.milestones)}

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """Read back what ``to_dict`` wrote, refusing unknown keys."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("training setting", name, known)
        return cls(**{**values, "milestones": tuple(values.get("milestones", cls.milestones))})


@dataclass(frozen=True, kw_only=True)
class VAEConfig(FitConfig):
    """Training of a VAE, by default as ALU's (Adam, 1e-3, x0.2 at epoch 80 and x0.04 at 100).

    The paper gives rates and epochs of the decays, and neither the number of epochs (120 is that of
    its decays and a fifth more), nor the batch size, nor the weight ``beta``.

    Attributes:
        beta: Weight of the divergence from N(0, I), against squared errors summed over an image.
            With ``beta = 2 s^2`` the loss is the negative evidence lower bound of pixels with
            normal noise of standard deviation s; 0.001 is noise of 0.022, at 33 dB.
    """

    epochs: int = 120
    milestones: tuple[float, ...] = (80 / 120, 100 / 120)
    beta: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("beta", zero=True)


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(FitConfig):
    """Training of a denoiser, by default as in ALU's toy experiment (SGD, 0.1, 100 epochs).

    Attributes:
        momentum: SGD momentum; the paper does not state any.
        weight_decay: SGD weight decay; the paper does not state any.
        guide: What the loss compares: the classifier's ``logits`` of the denoised and of the clean
            image (the "logits guided denoiser" of Liao et al. 2018), or their ``pixels``.
        eps: Linf size of the training attack in pixel units.
        attack_steps: Steps of PGD.
        attack_step_size: Its step as a fraction of eps.
    """

    epochs: int = 100
    lr: float = 0.1
    gamma: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.75)
    augment: str = "crop-flip"
    momentum: float = 0.9
    weight_decay: float = 0.0
    guide: str = "logits"
    eps: float = 8 / 255
    attack_steps: int = 20
    attack_step_size: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guide not in ("logits", "pixels"):
            raise unknown_name("guide", self.guide, ("logits", "pixels"))
        self._whole("attack_steps")
        self._positive("attack_step_size")
        self._positive("momentum", "weight_decay", zero=True)
        if not 0 < self.eps <= 1:
            raise ConfigError(
                f"eps is {self.eps:g}",
                expected="above 0 and at most 1, in pixel units",
                fix="write it as a fraction, such as 8/255",
            )
