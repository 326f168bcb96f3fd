"""Grad-CAM: where the evidence for a class lies in an image (Selvaraju et al. 2017)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.checks import check_images, check_labels
from unperturb.classifiers import Classifier
from unperturb.errors import ConfigError, SpecError
from unperturb.explain.given import device_of, parts_of
from unperturb.explain.layers import choose_layer, network_of, output_of, run_network
from unperturb.networks.geometry import Geometry

__all__ = ["GradCAM", "gradcam"]


class GradCAM(NamedTuple):
    """Heat maps of a batch of images.

    Attributes:
        maps: Heat (N, H, W) in [0, 1], at the images' size; float32.
        targets: The class each map is about, (N,) int64.
        logits: What the classifier says of the images, (N, K).
        layer: Dotted name of the layer that was looked into.
    """

    maps: Tensor
    targets: Tensor
    logits: Tensor
    layer: str


def gradcam(
    classifier: nn.Module,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    layer: str | None = None,
    batch_size: int = 64,
) -> GradCAM:
    """Grad-CAM heat maps (Selvaraju et al. 2017, eq. 1 and 2).

    With A the maps (C, h, w) that a layer gives, and y_c the logit of class c::

        alpha_k = mean over ij of dy_c / dA_kij        (eq. 1)
        L = ReLU(sum over k of alpha_k A_k)            (eq. 2)

    L is enlarged bilinearly to the images' size and divided by its largest value there, so each
    map has its own scale: maps say where, not how much, and are not comparable in height. A map
    that is zero everywhere (no evidence for the class in this layer) stays zero. Where the
    classifier resizes and crops, the map is put back into the frame of the whole image, and is
    zero outside of the crop.

    The score is the logit, as in the paper. The paper takes the last convolutional layer; the
    default here is the last layer that gives maps of more than one place, in the order in which
    layers finish: the last residual block as a whole rather than its last convolution. Networks
    of tokens have no such layer behind their patch embedding; theirs is then taken, and says
    little. Maps are read as (N, C, h, w).

    Nothing of the user's changes: no flag, no ``.grad``, no hook; it works under
    ``torch.no_grad`` and ``torch.inference_mode``.

    Args:
        classifier: A `Classifier`, or any module from images in [0, 1] to logits.
        images: Images (N, C, H, W) in [0, 1].
        labels: The class to explain for each image (N,); None: the predicted one.
        layer: Dotted name as in ``named_modules`` of the network; None: as above.
        batch_size: Images at a time.

    Raises:
        InputError: Images or labels are not what the contract says.
        SpecError: No such layer, or none that gives maps; or a defense instead of a classifier.
        ConfigError: The batch size is below 1.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        >>> found = gradcam(net, torch.rand(2, 3, 8, 8))
        >>> found.maps.shape, found.layer
        (torch.Size([2, 8, 8]), '1')
    """
    check_images(images)
    inner, defense = parts_of(classifier, images)
    if defense is not None:
        raise SpecError(
            "Grad-CAM is asked of a defense",
            expected="a classifier, and the images that it reads",
            fix="gradcam(defense.classifier, defense.predict(images).purified)",
        )
    inner.check(images)
    if labels is not None:
        check_labels(labels, count=len(images), num_classes=inner.num_classes)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}", expected="at least 1")
    return maps_of(inner, images, labels=labels, layer=layer, batch_size=batch_size)


def maps_of(
    classifier: Classifier,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    layer: str | None = None,
    batch_size: int = 64,
) -> GradCAM:
    """`gradcam` without checks of the images: what a purifier gives may leave [0, 1]."""
    shown = images.to(device_of(classifier))
    name = choose_layer(classifier, shown, layer)
    parts = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        wanted = None if labels is None else labels[rows]
        parts.append(_batch(classifier, shown[rows], wanted, name))
    maps, targets, logits = (
        torch.cat(items).to(images.device) for items in zip(*parts, strict=True)
    )
    return GradCAM(maps, targets, logits, name)


def _batch(
    classifier: Classifier, images: Tensor, labels: Tensor | None, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    layer = network_of(classifier).get_submodule(name)
    with torch.inference_mode(False), torch.enable_grad(), output_of(layer) as seen:
        # Inference tensors cannot take part in a backward pass; a clone can.
        logits = run_network(classifier, images.detach().clone())
        targets = logits.argmax(1) if labels is None else labels.to(logits.device).long()
        score = logits.gather(1, targets[:, None]).sum()
        found = None
        if seen and score.requires_grad:
            # In eval mode a logit depends on its own image only, so one pass serves the batch.
            (found,) = torch.autograd.grad(score, seen, allow_unused=True)
    if found is None:
        raise SpecError(
            f"The logits do not depend on the layer {name!r}",
            expected="a layer on the way from the image to the logits",
            fix="name another layer",
        )
    maps, gradient = seen[0].detach().float(), found.float()
    weights = gradient.mean((2, 3), keepdim=True)
    heat = (weights * maps).sum(1, keepdim=True).relu()
    height, width = images.shape[-2:]
    heat = _placed(heat, height, width, classifier.geometry)[:, 0]
    highest = heat.flatten(1).amax(1).view(-1, 1, 1)
    heat = torch.where(highest > 0, heat / highest.clamp(min=1e-38), torch.zeros_like(heat))
    return heat.clamp(0.0, 1.0), targets, logits.detach()


def _placed(heat: Tensor, height: int, width: int, geometry: Geometry | None) -> Tensor:
    """Heat (N, 1, h, w) of what the network reads, in the frame of the whole image."""
    if geometry is not None and geometry.crop is not None:
        tall, wide = geometry.crop
        whole = geometry.size(height, width)
        top, left = round((whole[0] - tall) / 2), round((whole[1] - wide) / 2)
        heat = _resized(heat, tall, wide)
        heat = F.pad(heat, (left, whole[1] - wide - left, top, whole[0] - tall - top))
    return _resized(heat, height, width)


def _resized(heat: Tensor, height: int, width: int) -> Tensor:
    # Antialiasing matters only where the classifier enlarges small images.
    return F.interpolate(
        heat, size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )
