"""The settings of a training run: frozen, checked, and written beside the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from unperturb.errors import ConfigError, unknown_name
from unperturb.training.objectives import OBJECTIVES, OVERFITTING

__all__ = ["TrainConfig"]

_AUGMENTATIONS = ("crop-flip", "flip", "none")
_SCHEDULES = ("multistep", "one-cycle")
_PRECISIONS = ("float32", "bfloat16")
_KEEP = ("deepest", "purified", "robust", "last")
_TUPLES = ("milestones", "mixture", "fat_tau")


def _size(name: str, value: float, expected: str) -> ConfigError:
    return ConfigError(
        f"{name} is {value:g}",
        expected=f"{expected}, in pixel units",
        fix=f"write it as a fraction, such as {name} 8/255",
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a training run computes.

    Attributes:
        objective: A name of ``OBJECTIVES``: ``standard``, ``fgsm``, ``fgsm-trades``, ``fgsm-mart``,
            ``pgd``, ``trades``, ``mart``, ``fat``, ``gairat``, ``cw`` or ``stadv``.
        eps: Linf size of the training attack in pixel units; unused by ``standard``, ``cw`` and
            ``stadv``.
        mixture: For ``fgsm``: sizes of the examples in pixel units, 0 being the clean images;
            empty for ``eps`` alone.
        epochs: Passes over the training images.
        batch_size: Images in a step, over all processes.
        accumulate: Parts of a batch that go through the network one after the other; the gradient
            is that of the whole, the batch-norm statistics are those of the parts.
        lr: Peak learning rate of SGD.
        momentum: SGD momentum.
        weight_decay: SGD weight decay.
        ema_decay: The weights that are watched and kept are an exponential moving average over the
            steps with this decay (Gowal et al. 2020, "model weight averaging"), with that of the
            batch-norm statistics: after the first step the weights, then with each step
            average = decay * average + (1 - decay) * weights.
            0 keeps the weights themselves.
        schedule: ``multistep`` (``lr`` times ``gamma`` at each milestone) or ``one-cycle``
            (linear warm-up over 20 % of the steps, then linear to zero).
        milestones: Fractions of the epochs at which ``multistep`` decays.
        gamma: Factor of a ``multistep`` decay.
        augment: ``crop-flip`` (pad by 4, random crop, flip), ``flip`` or ``none``.
        precision: ``float32``, or ``bfloat16`` autocast.
        clean_pass: For ``fgsm``: let the clean batch enter the batch-norm statistics.
        attack_steps: Steps of the training attack, where it has several.
        attack_step_size: Its step as a fraction of eps (of ``flow`` for ``stadv``).
        beta: Weight of the robust term of ``trades`` and ``mart``, and of their FGSM forms.
        fat_tau: For ``fat``: steps an image takes once it is wrong, in parts of the run.
        gairat_lambda: For ``gairat``: shift of the weights; -1 in the paper.
        gairat_burn_in: For ``gairat``: share of the run with equal weights; 0.6 in the paper.
        cw_weight: For ``cw``: weight of the margin against the squared distance.
        cw_rate: For ``cw``: Adam's step in tanh space.
        flow: For ``stadv``: greatest flow in ``grid_sample`` units.
        keep: Which epoch is kept: the one ``deepest`` in robust overfitting (for objectives on
            one-step examples; the last one for others), the one that TPAP does best with
            (``purified``: the lesser of its held-out accuracies, clean and under oblivious
            PGD-20), the most ``robust`` one (PGD-20 on held-out images), or the ``last`` (for a
            stage that another one goes on from).
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
    mixture: tuple[float, ...] = ()
    epochs: int = 15
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema_decay: float = 0.0
    schedule: str = "multistep"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    augment: str = "crop-flip"
    precision: str = "float32"
    clean_pass: bool = False
    attack_steps: int = 7
    attack_step_size: float = 0.25
    beta: float = 6.0
    fat_tau: tuple[int, ...] = (0, 1, 2)
    gairat_lambda: float = -1.0
    gairat_burn_in: float = 0.6
    cw_weight: float = 1.0
    cw_rate: float = 0.01
    flow: float = 0.05
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
        for name in ("epochs", "batch_size", "monitor_images", "attack_steps", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", expected="at least 1")
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"accumulate is {self.accumulate}",
                expected=f"at most the batch size, {self.batch_size}",
            )
        if self.holdout < 0:
            raise ConfigError(f"holdout is {self.holdout}", expected="0 or more")
        for name in ("lr", "attack_step_size", "cw_weight", "cw_rate", "flow"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", expected="above 0")
        for name in ("momentum", "weight_decay", "beta"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", expected="0 or more")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(
                f"ema_decay is {self.ema_decay}",
                expected="at least 0 (no averaging) and below 1, such as 0.998",
            )
        if not 0 <= self.gairat_burn_in <= 1:
            raise ConfigError(f"gairat_burn_in is {self.gairat_burn_in}", expected="from 0 to 1")
        if not self.fat_tau or any(tau < 0 for tau in self.fat_tau):
            raise ConfigError(
                f"fat_tau is {self.fat_tau}", expected="one or more numbers of steps, 0 or more"
            )
        for name in ("eps", "monitor_eps"):
            if not 0 < getattr(self, name) <= 1:
                raise _size(name, getattr(self, name), "above 0 and at most 1")
        for size in self.mixture:
            if not 0 <= size <= 1:
                raise _size("a size in mixture", size, "from 0 to 1")
        if self.mixture and self.objective != "fgsm":
            raise ConfigError(
                f"mixture is {self.mixture} with the objective {self.objective!r}",
                expected="a mixture of sizes for the objective 'fgsm' only",
                fix="give one eps",
            )
        if self.mixture and self.clean_pass:
            raise ConfigError(
                "clean_pass is set with a mixture",
                expected="one of the two",
                fix="add 0, the clean images, to the mixture",
            )
        needs = {"robust": tuple(set(OBJECTIVES) - {"standard"}), "purified": OVERFITTING}
        if self.keep in needs and (self.objective not in needs[self.keep] or not self.holdout):
            kind = "an adversarial" if self.keep == "robust" else "a one-step"
            raise ConfigError(
                f"keep is {self.keep!r}",
                expected=f"{kind} objective and held-out images",
                fix="keep the last epoch, or hold images out",
            )

    @property
    def known_eps(self) -> float:
        """Size at which the network should know FGSM: the largest that it is trained on."""
        return max(self.mixture, default=self.eps) or self.eps

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
        found = asdict(self)
        return {**found, **{name: list(found[name]) for name in _TUPLES}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Read back what ``to_dict`` wrote, refusing unknown keys."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("training setting", name, known)
        tuples = {name: tuple(values[name]) for name in _TUPLES if name in values}
        return cls(**{**values, **tuples})
