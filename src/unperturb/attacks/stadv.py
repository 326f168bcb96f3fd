"""StAdv: the image is not repainted but bent, by a small flow field (Xiao et al. 2018).

Every pixel ``p`` of the result takes its value from the place ``p + f_p`` of the clean image,

    x'_p = sum_{q in N4(p + f_p)} x_q (1 - |u_p + du_p - u_q|) (1 - |v_p + dv_p - v_q|),

bilinear sampling (eq. 1), and the flow ``f = (du, dv)`` is what is searched. The search here is
projected gradient ascent in the box ``max_p |f_p| <= flow``.

**Units.** Flows are in the coordinates of ``grid_sample``: an image reaches from -1 to 1 from edge
to edge, so 0.05 is ``0.05 * W / 2`` pixels, 0.8 pixels in an image 32 wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unperturb.attacks.base import BaseAttack
from unperturb.attacks.batch import Batch
from unperturb.attacks.losses import LOSSES
from unperturb.errors import AttackError, unknown_name

__all__ = ["StAdv", "make_stadv", "roughness", "sample", "warp"]


@dataclass(frozen=True, kw_only=True)
class StAdv(BaseAttack):
    """Spatially transformed images (Xiao, Zhu, Li, He, Liu, Song, ICLR 2018).

    ``f <- clip(f + step_size * flow * sign(grad_f [L(warp(x, f)) - tau * R(f)]), -flow, flow)``
    from a random flow, ``L`` the loss and ``R`` the roughness (eq. 3).

    The result's ``measure`` is its greatest absolute flow component, in the units above, and its
    ``detail`` the flow (N, 2, H, W): ``warp(images, detail)`` is the result. A threat model's norm
    and eps play no part.

    Deviations from the paper. (1) The paper minimizes ``max(margin, kappa) + tau * R`` by L-BFGS
    without a bound; here the flow is bounded, as Laidlaw et al. (2021) and AToP do (0.05), and the
    ascent is by signs. (2) ``tau`` is 0 by default, because the bound already keeps flows small;
    the paper's own is 0.05. (3) Places outside the image are read at its edge.

    Attributes:
        steps: Gradient steps.
        flow: Greatest absolute flow component, in ``grid_sample`` units.
        step_size: Step as a fraction of ``flow``.
        random_start: Begin at a flow uniform in the box; else at no flow.
        tau: Weight of the roughness, which is in pixels.
        loss: ``margin``, ``ce`` or ``dlr``.

    Raises:
        ConfigError: A number is out of range.
        SpecError: The loss is unknown.

    Example:
        >>> StAdv(name="stadv", steps=10).flow
        0.05
    """

    bound = "own"

    steps: int = 100
    flow: float = 0.05
    step_size: float = 0.1
    random_start: bool = True
    tau: float = 0.0
    loss: str = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps")
        self._positive("flow", "step_size")
        self._positive("tau", zero=True)
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)

    def perturb(self, batch: Batch) -> None:
        """Ascend over the images that are not broken yet."""
        bound = _at_most(self.flow, batch.origin.dtype)
        flow = self._start(batch, bound)
        rows, objective = batch.left(), batch.loss(self.loss)
        for step in range(self.steps):
            if not len(rows):
                break
            index = batch.compact(rows)
            point, by_x, by_y = sample(batch.origin[index], flow[index])
            gradient, _, _, wrong = batch.gradient(point, index, step, objective)
            slope = torch.stack(((gradient * by_x).sum(1), (gradient * by_y).sum(1)), 1)
            slope, wrong = slope[: len(rows)], wrong[: len(rows)]
            if batch.early and bool(wrong.any()):
                batch.leave(rows[wrong], point[: len(rows)][wrong])
                rows, slope = rows[~wrong], slope[~wrong]
            if self.tau:
                slope = slope - self.tau * _roughness_gradient(flow[rows])
            moved = flow[rows] + self.step_size * bound * slope.sign()
            flow[rows] = moved.clamp_(-bound, bound)
        if len(rows):
            batch.best[rows] = warp(batch.origin[rows], flow[rows])
        batch.detail = flow
        batch.measure = flow.flatten(1).abs().amax(1)

    def _start(self, batch: Batch, bound: float) -> Tensor:
        """The first flow of every image (N, 2, H, W)."""
        count, _, height, width = batch.origin.shape
        flow = batch.origin.new_zeros((count, 2, height, width))
        if self.random_start:
            keys = batch.keys.draw(0)
            uniform = keys.uniform("flow", flow.shape[1:], device=flow.device).to(flow.dtype)
            flow = ((2.0 * uniform - 1.0) * bound).clamp_(-bound, bound)
        # An image that needs no perturbation is not bent.
        flow[batch.broken] = 0.0
        return flow


def _at_most(bound: float, dtype: torch.dtype) -> float:
    """The greatest number of a type that is not above the bound: in float32 0.05 is above 0.05."""
    near = torch.tensor(bound, dtype=dtype)
    if float(near) > bound:
        near = torch.nextafter(near, torch.zeros_like(near))
    return float(near)


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Bend images along a flow: the value at ``p`` is the image's at ``p + flow_p`` (eq. 1).

    Args:
        images: (N, C, H, W) in [0, 1].
        flow: (N, 2, H, W) in ``grid_sample`` units; channel 0 goes right, channel 1 down.

    Returns:
        (N, C, H, W) in [0, 1]. No flow gives the images back to the last bit.

    Raises:
        AttackError: The shapes do not fit.

    Example:
        >>> image = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
        >>> right = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
        >>> warp(image, right).flatten().tolist()
        [0.5, 1.0]
    """
    if flow.shape != (len(images), 2, *images.shape[2:]):
        raise AttackError(
            f"A flow of shape {tuple(flow.shape)} for images of shape {tuple(images.shape)}",
            expected=f"a flow of shape {(len(images), 2, *images.shape[2:])}",
        )
    return sample(images, flow)[0]


def _axis(flow: Tensor, size: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places along one axis of (N, H, W): lower and upper neighbor, and how far between them."""
    base = torch.arange(size, device=flow.device).view((-1, 1) if axis == 1 else (1, -1))
    # Whole pixels and rest apart: added to a large number, a small flow would lose its digits.
    shift = flow * (size / 2.0)
    whole = shift.floor()
    place, rest = base + whole.to(torch.int64), shift - whole
    last = max(size - 2, 0)
    rest = rest.masked_fill(place < 0, 0.0).masked_fill(place > last, 1.0)
    place = place.clamp(0, last)
    return place, (place + 1).clamp(max=size - 1), rest


def sample(images: Tensor, flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bent images, and their derivatives by the flow to the right and by the flow down.

    Beyond an edge, where the true derivative is zero, it is the one at the edge: a flow that
    began outside would never find its way in.
    """
    count, channels, height, width = images.shape
    left, right, s = _axis(flow[:, 0], width, 2)
    top, bottom, t = _axis(flow[:, 1], height, 1)
    flat = images.reshape(count, channels, height * width)

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).view(count, 1, -1).expand(-1, channels, -1)
        return flat.gather(2, index).view(images.shape)

    a, b, c, d = at(top, left), at(top, right), at(bottom, left), at(bottom, right)
    s, t = s[:, None], t[:, None]
    # In this form a place that is a pixel gives the pixel, to the last bit.
    upper, lower = (1.0 - s) * a + s * b, (1.0 - s) * c + s * d
    bent = ((1.0 - t) * upper + t * lower).clamp_(0.0, 1.0)
    by_x = ((1.0 - t) * (b - a) + t * (d - c)) * (width / 2.0)
    return bent, by_x, (lower - upper) * (height / 2.0)


def roughness(flow: Tensor) -> Tensor:
    """``R(f) = sum_p sum_{q in N(p)} ||f_p - f_q||_2``, the paper's flow loss (eq. 3), (N,).

    Flows are taken in pixels, and each pair of neighbors counts twice, as in the equation.

    Args:
        flow: (N, 2, H, W) in ``grid_sample`` units.

    Example:
        >>> float(roughness(torch.ones(1, 2, 4, 4)))
        0.0
    """
    return _roughness(flow, 0.0)


def _roughness(flow: Tensor, smooth: float) -> Tensor:
    height, width = flow.shape[2:]
    pixels = flow * flow.new_tensor([width / 2.0, height / 2.0]).view(1, 2, 1, 1)
    across = pixels[..., 1:] - pixels[..., :-1]
    down = pixels[..., 1:, :] - pixels[..., :-1, :]
    total = flow.new_zeros(len(flow))
    for difference in (across, down):
        # Empty where the image has one row or column.
        total = total + 2.0 * (difference.square().sum(1) + smooth).sqrt().flatten(1).sum(1)
    return total


def _roughness_gradient(flow: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = flow.detach().requires_grad_()
        # Smoothed, for the root has no derivative where neighbors flow alike.
        (gradient,) = torch.autograd.grad(_roughness(leaf, 1e-12).sum(), leaf)
    return gradient


def make_stadv(steps: int | None) -> StAdv:
    """The family ``stadv``, ``stadv-STEPS``.

    Example:
        >>> make_stadv(None).name
        'stadv-100'
    """
    count = 100 if steps is None else steps
    return StAdv(name=f"stadv-{count}", steps=count)
