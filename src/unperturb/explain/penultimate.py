"""Penultimate features: what the last linear layer of a classifier reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unperturb.checks import check_images
from unperturb.classifiers import Classifier
from unperturb.errors import ConfigError, InputError
from unperturb.explain.given import device_of, parts_of
from unperturb.explain.layers import network_of, run_network

__all__ = ["features_of", "penultimate_features"]


def penultimate_features(
    classifier: nn.Module, images: Tensor, *, batch_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Penultimate features and logits.

    Features are those of the network's method ``features`` where it has one, as all of ours do,
    else the input of the linear layer that is called last. What is not flat is flattened.

    Args:
        classifier: A `Classifier`, or any module from images in [0, 1] to logits. Of a defense
            the classifier is asked, about the images as they are given.
        images: Images (N, C, H, W) in [0, 1].
        batch_size: Images at a time.

    Returns:
        Features (N, D) as float32 and logits (N, K), both without a graph.

    Raises:
        InputError: The images are not what the contract says, the network has neither the method
            nor a linear layer, or its features are not finite.
        ConfigError: The batch size is below 1.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))
        >>> features, logits = penultimate_features(net, torch.rand(4, 3, 2, 2))
        >>> features.shape, logits.shape
        (torch.Size([4, 7]), torch.Size([4, 3]))
    """
    check_images(images)
    inner, _ = parts_of(classifier, images)
    inner.check(images)
    return features_of(inner, images, batch_size=batch_size)


@torch.no_grad()
def features_of(
    classifier: Classifier, images: Tensor, *, batch_size: int
) -> tuple[Tensor, Tensor]:
    """`penultimate_features` without checks of the images."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}", expected="at least 1")
    # A submodule of that name, as some libraries have, is a stack of convolutions.
    method = getattr(network_of(classifier), "features", None)
    own = callable(method) and not isinstance(method, nn.Module)
    read = _by_method if own else _by_hook
    device = device_of(classifier)
    parts = [read(classifier, part.to(device)) for part in images.split(batch_size)]
    features, logits = (torch.cat(items).to(images.device) for items in zip(*parts, strict=True))
    broken = ~torch.isfinite(features).all(1)
    if bool(broken.any()):
        raise InputError(
            f"The features of {int(broken.sum())} of {len(images)} images hold NaN or infinities",
            expected="finite features",
            fix="check the classifier's weights and its normalization",
        )
    return features, logits


def _by_method(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    return classifier.features(images).flatten(1).float(), classifier(images)


def _by_hook(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            seen[:] = [inputs[0].clone()]

    linear = [part for part in network_of(classifier).modules() if isinstance(part, nn.Linear)]
    handles = [part.register_forward_pre_hook(hook) for part in linear]
    try:
        logits = run_network(classifier, images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen or len(seen[0]) != len(images):
        raise InputError(
            "The network has no linear layer that reads one row for each image",
            expected="a last linear layer, or a method features(x)",
            fix="give the module a method features(x) that returns (N, D)",
        )
    return seen[0].flatten(1).float(), logits
