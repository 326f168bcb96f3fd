"""One call of a defense: what its stages may ask for, each computed at most once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from unperturb.gradients import input_gradients
from unperturb.randomness import Keys

__all__ = ["Context"]


class Context:
    """Hands a purifier the classifier's answers and its random numbers; owns no weights.

    Attributes:
        images: The raw images (N, C, H, W) of this call.
        backward: The rule by which an attacker differentiates the purifier in this call.
        reference: What "before" reads, once the purifier has said so; None for the raw images.
    """

    def __init__(
        self,
        classifier: nn.Module,
        images: Tensor,
        *,
        keys: Keys | None = None,
        backward: str = "exact",
        keep_before: bool = False,
    ) -> None:
        self.images = images
        self.backward = backward
        self.reference: Tensor | None = None
        self._classifier = classifier
        self._keys = keys
        self._keep_before = keep_before
        # Told at the start of the call: under BPDA the purifier itself runs without gradients,
        # while the logits before must keep theirs.
        self._attacked = torch.is_grad_enabled() and images.requires_grad
        self._raw: Tensor | None = None
        self._before: Tensor | None = None

    def classify(self, reading: Tensor, *, inside: bool = False) -> Tensor:
        """Logits (N, K) of what the classifier reads.

        Args:
            reading: Images (N, C, H, W), or what the network within the classifier reads.
            inside: Whether it is the latter: see ``Purifier.inside``.
        """
        if inside:
            return self._classifier.read(reading)  # type: ignore[operator,no-any-return]
        return self._classifier(reading)  # type: ignore[no-any-return]

    def before(self) -> Tensor:
        """Logits before purification (N, K): of the raw images, or of the purifier's reference."""
        if self.reference is not None:
            if self._before is None:
                self._before = self.classify(self.reference)
            return self._before
        if self._raw is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() or self._attacked):
                self._raw = self.classify(self.images)
        return self._raw

    def before_and_grad(
        self, loss: Callable[[Tensor], Tensor], *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Logits of the raw images and the input gradient of a loss on them, in one forward pass.

        Works under ``torch.no_grad`` and ``torch.inference_mode``, and touches no parameter's
        gradient.

        Args:
            loss: Logits (N, K) to one number for each image (N,).
            differentiable: Keep the gradient's own graph, for an attacker that differentiates it.

        Returns:
            Logits (N, K) and the gradient, of the images' shape.
        """
        differentiable = differentiable and self._attacked and torch.is_grad_enabled()
        keep = differentiable or (self._attacked and self._keep_before)
        # A graph that outlives this call may be asked for gradients of parameters too.
        cheap = nullcontext() if keep else input_gradients(self._classifier)
        with torch.inference_mode(False), torch.enable_grad(), cheap:
            if keep:
                point = self.images
            else:
                # Inference tensors cannot be saved for backward, so they are copied; others share.
                plain = self.images.detach()
                point = (plain.clone() if plain.is_inference() else plain).requires_grad_()
            logits = self._classifier(point)
            (gradient,) = torch.autograd.grad(
                loss(logits).sum(),
                point,
                create_graph=differentiable,
                retain_graph=keep,
            )
        self._raw = logits if keep else logits.detach()
        return self._raw, gradient

    def _named(self) -> Keys:
        if self._keys is None:
            self._keys = Keys.fresh(len(self.images))
        return self._keys

    def noise(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal noise (N, *shape), keyed by run, stage, image and draw."""
        drawn = self._named().normal(name, shape, device=self.images.device)
        return drawn.to(self.images.dtype)

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uniform noise on [0, 1) of shape (N, *shape), keyed by run, stage, image and draw."""
        drawn = self._named().uniform(name, shape, device=self.images.device)
        return drawn.to(self.images.dtype)
