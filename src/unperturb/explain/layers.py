"""Layers of a network by name: which give maps, and what one gives; hooks are always removed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from unperturb.classifiers import Classifier
from unperturb.classifiers.probe import run_quietly
from unperturb.errors import SpecError

__all__ = ["choose_layer", "network_of", "output_of", "run_network", "spatial_layers"]

_NAMED = 8


def network_of(classifier: Classifier) -> nn.Module:
    """The network in a classifier; of a compiled one the original, whose hooks are called."""
    inner = getattr(classifier.module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else classifier.module


def run_network(classifier: Classifier, images: Tensor) -> Tensor:
    """Logits (N, K) of images (N, C, H, W), by the network whose layers can be hooked."""
    return network_of(classifier)(classifier.prepare(images).contiguous())  # type: ignore[no-any-return]


def _shapes(classifier: Classifier, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of what every layer gives for one image, in the order in which they finish."""
    network = network_of(classifier)
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                found.pop(name, None)
                found[name] = tuple(output.shape)

        return hook

    handles = [
        layer.register_forward_hook(note(name)) for name, layer in network.named_modules() if name
    ]
    try:
        run_quietly(_Network(classifier), image)
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Network(nn.Module):
    """``run_network`` as a module, for those who want to know its devices."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return run_network(self.classifier, images)


def _spatial(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[0] == 1 and shape[2] * shape[3] > 1


def spatial_layers(classifier: Classifier, images: Tensor) -> list[str]:
    """Names of the layers that give maps (N, C, H, W) of more than one place.

    They stand in the order in which they finish in one forward pass, so that a block comes after
    its parts. A layer that is used several times stands at its last use.

    Args:
        classifier: What is looked into.
        images: Images (N, C, H, W); the first is shown to it.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))
        >>> spatial_layers(Classifier(net, num_classes=2), torch.zeros(1, 1, 6, 6))
        ['0', '1']
    """
    shapes = _shapes(classifier, images[:1])
    return [name for name, shape in shapes.items() if _spatial(shape)]


def choose_layer(classifier: Classifier, images: Tensor, name: str | None = None) -> str:
    """Check a layer's name, or find the last layer that gives maps.

    Args:
        classifier: What is looked into.
        images: Images (N, C, H, W); the first is shown to it.
        name: Dotted name as in ``named_modules``, relative to the network; None: the last.

    Raises:
        SpecError: There is no such layer, it gives no maps, or none does; candidates are named.
    """
    shapes = _shapes(classifier, images[:1])
    spatial = [layer for layer, shape in shapes.items() if _spatial(shape)]
    if name is None:
        if spatial:
            return spatial[-1]
        given = [f"{layer} {shape[1:]}" for layer, shape in list(shapes.items())[-_NAMED:]]
        raise SpecError(
            "The network has no layer that gives maps (N, C, H, W) of more than one place; its "
            f"last layers give {', '.join(given) if given else 'nothing that can be seen'}",
            expected="a convolutional network whose layers are modules of their own",
            fix="use another classifier for Grad-CAM",
        )
    if name in spatial:
        return name
    shown = ", ".join(spatial[-_NAMED:]) + (" (the last of them)" if len(spatial) > _NAMED else "")
    expected = f"a layer that gives maps, such as {shown}" if shown else "a layer that gives maps"
    if name in shapes:
        problem = f"The layer {name!r} gives {shapes[name][1:]} for an image"
    elif name and name in dict(network_of(classifier).named_modules()):
        problem = f"The layer {name!r} is not called in a forward pass, or gives no tensor"
    else:
        problem = f"Unknown layer {name!r}"
    near = difflib.get_close_matches(name, spatial, n=3, cutoff=0.5)
    fix = "did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""
    raise SpecError(problem, expected=expected, fix=fix)


@contextmanager
def output_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer gives, as a leaf of the graph behind it: ``[A]`` after a forward pass.

    Gradients of anything computed from it are gradients to A, whatever flags the parameters
    before it have, and in-place steps behind it do not change it. Of several uses in one pass the
    last counts.

    Args:
        layer: A module; its hooks are afterwards as before.

    Example:
        >>> import torch
        >>> layer = nn.ReLU()
        >>> with torch.enable_grad(), output_of(layer) as seen:
        ...     _ = layer(torch.tensor([-1.0, 2.0])).sum()
        >>> seen[0].detach(), len(layer._forward_hooks)
        (tensor([0., 2.]), 0)
    """
    seen: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        leaf = output.detach().clone().requires_grad_()
        seen[:] = [leaf]
        return leaf.clone()

    handle = layer.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
