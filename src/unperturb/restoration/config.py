"""The settings of pre-training and fine-tuning: frozen, checked, written beside the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from unperturb.errors import ConfigError, unknown_name
from unperturb.purifiers.transforms import RandomTransform

__all__ = ["FineTuneConfig", "GANConfig", "MAEConfig", "RestorationConfig"]

_AUGMENTATIONS = ("crop-flip", "flip", "none")
_SCHEDULES = ("multistep", "one-cycle")
_PRECISIONS = ("float32", "bfloat16")
_FORMS = ("wasserstein", "hinge")


@dataclass(frozen=True, kw_only=True)
class RestorationConfig:
    """What all three trainings share.

    Attributes:
        transform: ``rt1``, ``rt2`` or ``rt3``; pre-training for ``rt3`` is on one of its passes.
        patch: Side of a patch in pixels; None: an eighth of the image's smaller side.
        rate: For ``rt1`` and ``rt2``: share of the patches that is dropped; None: 0.25.
        sigma: For ``rt2`` and ``rt3``: standard deviation of the noise; None: 0.25.
        passes: For ``rt3``: number of covers; None: 4.
        epochs: Passes over the training images.
        batch_size: Images in a step.
        lr: Peak learning rate of Adam.
        betas: Decays of Adam's averages.
        schedule: ``multistep`` (``lr`` times ``gamma`` at each milestone) or ``one-cycle``
            (linear warm-up over 20 % of the steps, then linear to zero).
        milestones: Fractions of the epochs at which ``multistep`` decays.
        gamma: Factor of a ``multistep`` decay.
        augment: ``flip``, ``crop-flip`` (whose black borders are restored, too) or ``none``.
        precision: ``float32``, or ``bfloat16`` autocast.
        holdout: Images at the end of the training split that are never trained on.
        monitor_images: Held-out images that are restored after each epoch.
        samples: Held-out images on the panel that is drawn after each epoch; 0 draws none.
        seed: Seed of the initialization, the order, the augmentation and all draws.

    Raises:
        ConfigError: A value is out of its range.
    """

    transform: str = "rt2"
    patch: int | None = None
    rate: float | None = None
    sigma: float | None = None
    passes: int | None = None
    epochs: int = 8
    batch_size: int = 32
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.99)
    schedule: str = "one-cycle"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    augment: str = "flip"
    precision: str = "float32"
    holdout: int = 1000
    monitor_images: int = 256
    samples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("schedule", _SCHEDULES),
            ("augment", _AUGMENTATIONS),
            ("precision", _PRECISIONS),
        ):
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        for name in ("epochs", "batch_size", "monitor_images"):
            _whole(name, getattr(self, name), 1)
        for name in ("holdout", "samples"):
            _whole(name, getattr(self, name), 0)
        _above(self, "lr", "gamma")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"betas is {self.betas}", expected="two decays, each at least 0 and below 1"
            )
        if not all(0 <= part <= 1 for part in self.milestones):
            raise ConfigError(
                f"milestones is {self.milestones}", expected="fractions of the epochs, from 0 to 1"
            )
        self.make_transform()

    def make_transform(self) -> RandomTransform:
        """The random transform of these settings."""
        return RandomTransform(
            name=self.transform,
            patch=self.patch,
            rate=self.rate,
            sigma=self.sigma,
            passes=self.passes,
        )

    def learning_rate(self, step: int, steps: int) -> float:
        """Learning rate of one step out of ``steps``.

        Example:
            >>> RestorationConfig(lr=0.1).learning_rate(10, 100)
            0.05
        """
        done = step / steps
        if self.schedule == "one-cycle":
            warm = 0.2
            return self.lr * (done / warm if done < warm else (1.0 - done) / (1.0 - warm))
        return self.lr * self.gamma ** sum(done >= milestone for milestone in self.milestones)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; ``from_dict`` reads it back."""
        found = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read back what ``to_dict`` wrote, refusing unknown keys."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("setting", name, known)
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**read)


@dataclass(frozen=True, kw_only=True)
class GANConfig(RestorationConfig):
    """Pre-training of the GAN: ``L_df`` of Lin et al. 2024, before eq. 9.

    ``L_df = E[D(x)] - E[D(g(t(x)))] + E|x - g(t(x))|_1``, which D raises and g lowers.

    The paper sums the last term over pixels (as its norm is written) or takes their mean; it does
    not say. Ours is the mean, the terms of D weigh ``adversarial_weight``: 1 is DeepFill's
    balance, 1 / 3,072 the sum over the pixels of CIFAR. At either end the images are sharper
    (and err more), or err less.

    Attributes:
        width: Channels of the generator's refinement stage at full resolution.
        coarse_width: Channels of its coarse stage.
        attention: Whether it has contextual attention.
        discriminator_width: Channels after the discriminator's first convolution.
        form: ``wasserstein`` (the equation) or ``hinge`` (DeepFill v2).
        adversarial_weight: Weight of the discriminator's terms; 0 trains without one.
        coarse_weight: Weight of the coarse stage's own L1 error, as in DeepFill; not in the
            equation.
        discriminator_lr: Peak learning rate of the discriminator; None: ``lr``.
    """

    width: int = 16
    coarse_width: int = 4
    attention: bool = False
    discriminator_width: int = 32
    form: str = "wasserstein"
    adversarial_weight: float = 0.01
    coarse_weight: float = 1.0
    discriminator_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in _FORMS:
            raise unknown_name("form", self.form, _FORMS)
        _from_zero(self, "adversarial_weight", "coarse_weight")
        if self.discriminator_lr is not None:
            _above(self, "discriminator_lr")


@dataclass(frozen=True, kw_only=True)
class MAEConfig(RestorationConfig):
    """Pre-training of the masked autoencoder: mean squared error of all pixels (Wu et al. 2023).

    Attributes:
        token: Side of a token in pixels; None: the patch of the transform.
        width: Width of the encoder.
        depth: Blocks of the encoder.
        heads: Attention heads of encoder and decoder.
        decoder_width: Width of the decoder.
        decoder_depth: Blocks of the decoder.
    """

    epochs: int = 30
    betas: tuple[float, ...] = (0.9, 0.95)
    token: int | None = None
    width: int = 96
    depth: int = 4
    heads: int = 4
    decoder_width: int = 64
    decoder_depth: int = 2


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(RestorationConfig):
    """Fine-tuning: eq. 5 and 9 of Lin et al. 2024, with the classifier f frozen.

    ``L = L_org(z, g(t(x'))) + cls_weight * CE(y, f(g(t(x'))))`` with ``L_org`` the loss that the
    network was pre-trained with, ``x' = clip(x + delta)`` and ``z`` the ``target``.

    Deviations: adversarial examples are clipped to [0, 1], which keeps them images; ``L_org`` is a
    mean over pixels, where the paper may take a sum: its lambda is then divided by their number
    here (`unperturb.restoration.losses`); the rate is one-cycle, as the paper states none.

    Attributes:
        examples: ``adversarial`` (eq. 9) or ``clean``: x itself in the place of x' (Figure 4).
        against: What the examples are made against: the ``classifier`` alone (as in the released
            code) or the ``whole`` f(g(t(x))), through a draw of its own.
        attack: ``fgsm`` (the paper) or ``pgd``.
        eps: Their Linf size in pixel units.
        attack_steps: For ``pgd``: steps.
        attack_step_size: For ``pgd``: step as a fraction of eps.
        target: What is to be restored: the ``adversarial`` example (eq. 9, "L_df(x')") or the
            ``clean`` image (eq. 5, "L_org(x)").
        cls_weight: Weight lambda of the cross-entropy; 0.1 in the paper, 0.05 in its released code,
            for an error that is a mean or a sum over pixels.
        form: ``wasserstein`` or ``hinge``, as in `GANConfig`; not read by an autoencoder.
        adversarial_weight: Weight of the discriminator's terms; not read by an autoencoder.
        discriminator_lr: Peak learning rate of the discriminator; None: ``lr``.
    """

    epochs: int = 5
    lr: float = 5e-4
    examples: str = "adversarial"
    against: str = "classifier"
    attack: str = "fgsm"
    eps: float = 8 / 255
    attack_steps: int = 7
    attack_step_size: float = 0.25
    target: str = "adversarial"
    cls_weight: float = 0.1
    form: str = "wasserstein"
    adversarial_weight: float = 0.01
    discriminator_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("examples", ("adversarial", "clean")),
            ("against", ("classifier", "whole")),
            ("attack", ("fgsm", "pgd")),
            ("target", ("adversarial", "clean")),
            ("form", _FORMS),
        ):
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        _from_zero(self, "cls_weight", "adversarial_weight")
        _above(self, "attack_step_size")
        _whole("attack_steps", self.attack_steps, 1)
        if self.discriminator_lr is not None:
            _above(self, "discriminator_lr")
        if not 0 < self.eps <= 1:
            raise ConfigError(
                f"eps is {self.eps:g}",
                expected="above 0 and at most 1, in pixel units",
                fix="write it as a fraction, such as eps 8/255",
            )


def _whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}", expected=f"a whole number, at least {least}")


def _above(config: RestorationConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}", expected="above 0")


def _from_zero(config: RestorationConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name} is {value}", expected="0 or more")
