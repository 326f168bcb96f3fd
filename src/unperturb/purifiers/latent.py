"""Latent optimization: the image of the code that reconstructs the input best (ALU)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.classifiers import Classifier
from unperturb.context import Context
from unperturb.errors import ConfigError, unknown_name
from unperturb.generative.folder import fingerprint
from unperturb.generative.through import check_range, frozen, vae_of
from unperturb.networks.vae import VAE
from unperturb.purifiers.base import Purified, Purifier
from unperturb.purifiers.latent_steps import OPTIMIZERS, Descent, descend
from unperturb.purifiers.settings import check_flag, check_number

__all__ = ["STARTS", "UNROLLED", "LatentOptimization"]

STARTS = ("encoder", "random")
UNROLLED = 10
"""Steps up to which an adaptive audit tries the unrolled gradient."""

_MOST_STEPS = 10_000


class LatentOptimization(Purifier):
    """``x_pur = D(z_N)``, ``z <- z - lr * grad_z ||D(z) - x||^2`` (ALU, eq. 5).

    A VAE that has seen clean images only cannot draw an adversarial perturbation: the code that
    reconstructs an image best gives the image without it. ``z_0`` is the mean of the encoder's
    distribution, or drawn from N(0, I); N = 0 is plain encode-decode.

    A defended answer costs N + 1 decoder forwards, N decoder backwards to the code alone, one
    encoder forward where it starts there, and the classifier's. No graph is kept from one step to
    the next, so that memory does not grow with N.

    Backward rules:

    - ``unrolled``: the derivative of all N steps, by N second derivatives of the decoder. Each step
      keeps its state only (codes and past moves), and its graph is built again in the backward
      pass. ``exact`` is the same gradient: this package's word for autograd as it is.
    - ``encoder-decoder``: the forward value is that of N steps, the derivative that of
      ``D(E(x))``, the purifier of N = 0. The cheap one; from a random start too.
    - ``identity`` (BPDA); only where images are read.

    An adaptive audit tries all of them, ``unrolled`` up to ten steps: beyond that one gradient
    costs many times the defended answer, and it is left to those who name it.

    Deviations: the paper states neither steps nor learning rate of its tables, and uses plain
    gradient descent; the default here is ``optimizer="lbfgs"``, whose steps ``benchmarks/alu.py``
    counts beside it. Images that are done may leave (``tolerance``). The encoder's mean is the
    start; the paper's ``E(x)`` may be a draw.

    Args:
        vae: The VAE, which is copied and frozen; or its keyword arguments, for one without trained
            weights (which loading a saved defense fills in); None for the default shape.
        steps: Number of steps N, 0 to 10,000.
        lr: Learning rate in the units of the code, above 0; of ``lbfgs`` that of its first step.
        optimizer: ``lbfgs``, ``adam``, or ``gd`` as published.
        start: ``encoder`` or ``random``. A random start wants more steps: 30.
        tolerance: An image is done once three steps in a row lower its error by less than this
            share of it; 0: every image takes all steps.
        level: Level of the decoder that is read in the place of the image (asymmetric ALU); None
            for images.
        unified: Whether the classifier was trained through this VAE, so that what is read goes to
            the network behind it. A level says so already.
        reference: Whether "before" reads the reconstruction of N = 0 in the place of the image, for
            a classifier of images that was trained on reconstructions. A unified one has no need:
            it puts the raw image through the VAE itself.

    Raises:
        ConfigError: A setting is out of range, or the VAE is for another range of pixels.
        SpecError: The optimizer or the start is unknown.

    Example:
        >>> purifier = LatentOptimization(vae=VAE(width=4), steps=3)
        >>> purifier.describe()["steps"], purifier.stochastic, purifier.adaptive[0]
        (3, False, 'unrolled')
    """

    name = "latent-optimization"
    backwards: tuple[str, ...] = ("exact", "unrolled", "encoder-decoder", "identity")

    def __init__(
        self,
        *,
        vae: VAE | Mapping[str, Any] | None = None,
        steps: int = 10,
        lr: float = 0.1,
        optimizer: str = "lbfgs",
        start: str = "encoder",
        tolerance: float = 0.0,
        level: int | None = None,
        unified: bool = False,
        reference: bool = False,
    ) -> None:
        super().__init__()
        self.vae = frozen(vae if isinstance(vae, VAE) else VAE(**(vae or {})))
        check_range(self.vae)
        whole = isinstance(steps, int) and not isinstance(steps, bool)
        if not whole or not 0 <= steps <= _MOST_STEPS:
            raise ConfigError(
                f"steps is {steps!r}", expected=f"a whole number from 0 to {_MOST_STEPS:,}"
            )
        if optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", str(optimizer), OPTIMIZERS)
        if start not in STARTS:
            raise unknown_name("start", str(start), STARTS)
        if level is not None:
            self.vae.check_level(level)
        self.steps, self.start, self.level = steps, start, level
        self.lr = check_number("lr", lr, most=1e6)
        self.optimizer = optimizer
        self.tolerance = check_number("tolerance", tolerance, most=0.5, zero=True)
        self.unified = check_flag("unified", unified) or level is not None
        self.references = check_flag("reference", reference)
        if self.references and self.unified:
            raise ConfigError(
                "reference is set for a unified classifier",
                expected="one of the two: its logits before are those of N = 0 already",
                fix="leave reference out",
            )
        self.inside = self.unified
        self.stochastic = start == "random"
        if level is not None:
            self.backwards = tuple(rule for rule in self.backwards if rule != "identity")
        tried = ("unrolled",) if 0 < steps <= UNROLLED else ()
        cheap = tuple(r for r in ("encoder-decoder", "identity") if r in self.backwards)
        self.adaptive = tried + cheap

    def config(self) -> dict[str, Any]:
        """Shape of the VAE and all settings; its weights are saved beside them."""
        return {
            "vae": self.vae.config(),
            "steps": self.steps,
            "lr": self.lr,
            "optimizer": self.optimizer,
            "start": self.start,
            "tolerance": self.tolerance,
            "level": self.level,
            "unified": self.unified,
            "reference": self.references,
        }

    def train(self, mode: bool = True) -> LatentOptimization:
        """Do nothing: the VAE stays in eval mode."""
        return self

    def check_classifier(self, classifier: nn.Module) -> None:
        """Refuse a classifier of other images, or one that was trained through another VAE.

        Raises:
            ConfigError: It reads another size than the VAE; or it is not behind the same VAE at
                the same level, and that is what this purifier is for.
        """
        assert isinstance(classifier, Classifier)
        shape = classifier.input_shape
        if any(a not in (None, b) for a, b in zip(shape, self.vae.image_shape, strict=True)):
            shown = "x".join("any" if side is None else str(side) for side in shape)
            raise ConfigError(
                f"The VAE is for images of {'x'.join(map(str, self.vae.image_shape))}, and the "
                f"classifier reads {shown} (channels x height x width)",
                expected="a VAE of the images that the classifier reads",
                fix="train one on them: unperturb fit vae",
            )
        if not self.unified:
            return
        module = vae_of(classifier)
        if module is None:
            raise ConfigError(
                "The purifier reads for a unified classifier, and this one reads raw images",
                expected="a classifier that was trained through the VAE",
                fix="unperturb train --through VAE makes one; or leave unified and level out",
            )
        if module.level != self.level or fingerprint(module.vae) != fingerprint(self.vae):
            raise ConfigError(
                f"The classifier was trained through the VAE {fingerprint(module.vae)[:12]} at "
                f"level {module.level}",
                expected=f"the VAE {fingerprint(self.vae)[:12]} at level {self.level}",
                fix="give the purifier the VAE and the level of the classifier",
            )

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Reconstruct each image from its best code."""
        if not torch.compiler.is_compiling():
            self.vae.check(images)
        attacked = torch.is_grad_enabled() and images.requires_grad
        cheap = attacked and ctx.backward == "encoder-decoder"
        plain = None
        if cheap or self.references:
            plain = self.vae.decode(self.vae.encode(images)[0], self.level)
        if cheap:
            assert plain is not None
            with torch.no_grad():
                value = self.vae.decode(self._codes(images.detach(), ctx, False), self.level)
            # Adding an exact zero keeps the value to the last bit.
            reading = value + (plain - plain.detach())
        else:
            reading = self.vae.decode(self._codes(images, ctx, attacked), self.level)
        return Purified(reading, self._shown(reading, attacked), plain if self.references else None)

    def _codes(self, images: Tensor, ctx: Context, unroll: bool) -> Tensor:
        if self.start == "random":
            codes = ctx.noise("latent", self.vae.latent_shape)
        else:
            codes = self.vae.encode(images)[0]
        how = Descent(self.steps, self.lr, self.optimizer, self.tolerance)
        return descend(self.vae.decode, images, codes, how, unroll=unroll)

    def _shown(self, reading: Tensor, attacked: bool) -> Tensor | None:
        if self.level is None:
            return reading
        return None if attacked else self.vae.finish(reading.detach(), self.level)
