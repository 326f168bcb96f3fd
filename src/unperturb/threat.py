"""Threat models: a norm and a size, in pixel units on images in [0, 1]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unperturb.errors import ConfigError, unknown_name

__all__ = ["L2", "NORMS", "Linf", "Threat", "make_threat", "parse_eps"]

# Float32 arithmetic on pixels in [0, 1] errs by some 1e-7 a pixel; the ball is judged this loosely.
TOLERANCE = 1e-5


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Threat(ABC):
    """A ball around an image, in pixel units, intersected with [0, 1].

    Attributes:
        eps: Radius in pixel units, such as 8/255.
    """

    eps: float
    norm: ClassVar[str]

    def __post_init__(self) -> None:
        if not isinstance(self.eps, (int, float)) or not 0 < self.eps < math.inf:
            raise ConfigError(
                f"eps is {self.eps!r}", expected="a number above 0, in pixel units such as 8/255"
            )

    @abstractmethod
    def project(self, images: Tensor, origin: Tensor) -> Tensor:
        """Images moved into the ball around ``origin`` and into [0, 1].

        For Linf these are the nearest such images; for L2 the ball comes first and then the
        clipping, which need not be the nearest point where both bind.
        """

    def projector(self, origin: Tensor) -> Callable[[Tensor], Tensor]:
        """``project`` on the ball around one origin, for those who call it at every step."""
        return lambda images: self.project(images, origin)

    @abstractmethod
    def distance(self, images: Tensor, origin: Tensor) -> Tensor:
        """Distance of each image from its origin, (N,)."""

    @abstractmethod
    def ascent(self, gradient: Tensor) -> Tensor:
        """Steepest ascent direction of unit size in this norm."""

    @abstractmethod
    def start(self, uniform: Tensor, normal: Tensor | None) -> Tensor:
        """A random point of the ball of radius ``eps`` around 0."""

    def contains(self, images: Tensor, origin: Tensor) -> Tensor:
        """Whether each image lies in the ball and in [0, 1], up to float rounding, (N,) bool."""
        flat = images.flatten(1)
        inside = (flat >= 0).all(1) & (flat <= 1).all(1)
        return inside & (
            self.distance(images, origin) <= self.eps * (1 + TOLERANCE) + TOLERANCE / 10
        )

    def to_dict(self) -> dict[str, Any]:
        """``{"norm": ..., "eps": ...}``."""
        return {"norm": self.norm, "eps": self.eps}


class Linf(Threat):
    """Every pixel moves by at most ``eps``.

    Example:
        >>> Linf(8 / 255).project(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).item()
        0.0313725508749485
    """

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps > 1:
            fix = f"write {self.eps:g}/255" if self.eps <= 255 else ""
            raise ConfigError(
                f"eps is {self.eps:g} in the norm linf",
                expected="at most 1, in pixel units on images in [0, 1]",
                fix=fix,
            )

    def project(self, images: Tensor, origin: Tensor) -> Tensor:
        return self.projector(origin)(images)

    def projector(self, origin: Tensor) -> Callable[[Tensor], Tensor]:
        low, high = (origin - self.eps).clamp_(min=0.0), (origin + self.eps).clamp_(max=1.0)
        return lambda images: torch.clamp(images, low, high)

    def distance(self, images: Tensor, origin: Tensor) -> Tensor:
        return (images - origin).flatten(1).abs().amax(1)

    def ascent(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def start(self, uniform: Tensor, normal: Tensor | None) -> Tensor:
        return (2.0 * uniform - 1.0) * self.eps


class L2(Threat):
    """The perturbation's Euclidean norm is at most ``eps``.

    Example:
        >>> L2(0.5).project(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).item()
        0.5
    """

    norm: ClassVar[str] = "l2"

    def project(self, images: Tensor, origin: Tensor) -> Tensor:
        # Origin lies in the box, so clipping afterwards only shortens the perturbation.
        delta = images - origin
        length = delta.flatten(1).norm(dim=1).clamp_(min=1e-12)
        return (origin + delta * _column((self.eps / length).clamp_(max=1.0))).clamp_(0.0, 1.0)

    def distance(self, images: Tensor, origin: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm((images - origin).flatten(1), dim=1)
        return length

    def ascent(self, gradient: Tensor) -> Tensor:
        # Scaled by its largest entry first: squares of tiny gradients would underflow to zero.
        gradient = gradient / _column(gradient.flatten(1).abs().amax(1).clamp_(min=1e-38))
        return gradient / _column(gradient.flatten(1).norm(dim=1).clamp_(min=1e-12))

    def start(self, uniform: Tensor, normal: Tensor | None) -> Tensor:
        assert normal is not None
        direction = normal / _column(normal.flatten(1).norm(dim=1))
        size = uniform.flatten(1)[:, 0].pow(1.0 / normal[0].numel())
        return direction * _column(size * self.eps)


NORMS: dict[str, type[Threat]] = {"linf": Linf, "l2": L2}
"""Threat models by the name of their norm."""


def make_threat(norm: str, eps: float) -> Threat:
    """The threat model of a norm's name.

    Example:
        >>> make_threat("linf", 8 / 255).norm
        'linf'
    """
    if norm.lower() not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    return NORMS[norm.lower()](eps)


def parse_eps(text: str) -> float:
    """Read ``8/255`` or ``0.03`` as a number.

    Raises:
        ConfigError: It is neither.

    Example:
        >>> parse_eps("8/255") == 8 / 255
        True
    """
    try:
        above, _, below = text.partition("/")
        value = float(above) / float(below) if below else float(above)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"eps is {text!r}", expected="a number or a fraction, such as 8/255 or 0.5"
        ) from None
    if not 0 < value < float("inf"):
        raise ConfigError(f"eps is {text!r}", expected="a number above 0, such as 8/255")
    return value
