"""Architectures by name: one plain dict from a name or pattern to how it is built and read.

A third party adds one from its own package with an entry point in the group
``unperturb.networks`` that names an `ArchSpec`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import nn

from unperturb.errors import ConfigError, SpecError, unknown_name
from unperturb.networks.cifar_resnet import CifarResNet
from unperturb.networks.geometry import Geometry
from unperturb.networks.resnet import WideStemResNet
from unperturb.networks.robust import RobustCNN, RobustResNet
from unperturb.networks.small_cnn import SmallCNN
from unperturb.networks.squeezenet import SqueezeNet
from unperturb.networks.through import ThroughVAE
from unperturb.networks.vgg import CifarVGG
from unperturb.networks.wide_resnet import WideResNet

__all__ = ["NETWORKS", "ArchSpec", "build_network", "network_names", "register", "resolve"]

ENTRY_POINTS = "unperturb.networks"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


@dataclass(frozen=True)
class ArchSpec:
    """How an architecture is built, and how its weights expect to be fed.

    Args:
        name: Lower-case name, or a pattern such as ``cifar-wrn-{depth}-{width}`` whose
            placeholders are integers handed to ``build``.
        build: Called with ``num_classes``, ``in_channels``, the options and the placeholders.
        head: Name of the parameter whose first length is the number of classes.
        stem: Name of the parameter whose second length is the number of channels.
        num_classes: Default number of classes.
        in_channels: Default number of channels.
        input_size: (height, width) if the network reads just that size.
        min_size: Smallest height and width it can read.
        mean: Default normalization, a value per channel; empty: none.
        std: As ``mean``.
        geometry: What is done to the images' size first.
        options: Fixed keyword arguments of ``build``.
        about: One line for lists.
        examples: Names to show for a pattern.
        listed: Whether lists show it: not where it cannot be trained by its name alone.
    """

    name: str
    build: Callable[..., nn.Module]
    head: str
    stem: str
    num_classes: int = 10
    in_channels: int = 3
    input_size: tuple[int, int] | None = None
    min_size: int = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    geometry: Geometry | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    examples: tuple[str, ...] = ()
    listed: bool = True

    def match(self, name: str) -> dict[str, int] | None:
        """The placeholders' values if ``name`` is this architecture, else None."""
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[1-9][0-9]*)", re.escape(self.name))
        found = re.fullmatch(pattern, name)
        return {k: int(v) for k, v in found.groupdict().items()} if found else None


NETWORKS: dict[str, ArchSpec] = {}


def register(spec: ArchSpec) -> ArchSpec:
    """Add an architecture under its own name.

    Raises:
        ConfigError: The name is taken, or is not lower-case.
    """
    if spec.name in NETWORKS:
        raise ConfigError(
            f"The network {spec.name!r} is registered twice", expected="names that differ"
        )
    if spec.name != spec.name.lower() or set(spec.name) & set("@:?/ "):
        raise ConfigError(
            f"The network name is {spec.name!r}",
            expected="lower-case letters, digits, - and _",
        )
    NETWORKS[spec.name] = spec
    return spec


_DEEP = ("cifar-resnet20", "cifar-resnet32", "cifar-resnet44", "cifar-resnet56")

for _spec in (
    ArchSpec(
        "small-cnn",
        SmallCNN,
        head="linear.weight",
        stem="conv1.weight",
        in_channels=1,
        min_size=4,
        about="three convolutions, 39k parameters: digits and other small images",
    ),
    ArchSpec(
        "cifar-resnet{depth}",
        CifarResNet,
        head="linear.weight",
        stem="conv1.weight",
        min_size=4,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        about="He et al.'s CIFAR ResNets of depth 6n + 2, option-A shortcuts",
        examples=_DEEP,
    ),
    *(
        ArchSpec(
            f"cifar-resnet{_depth}",
            WideStemResNet,
            head="linear.weight",
            stem="conv1.weight",
            min_size=8,
            options={"depth": _depth},
            about=f"ResNet-{_depth} with a 3x3 stem, 64 to 512 channels",
        )
        for _depth in (18, 34, 50)
    ),
    ArchSpec(
        "cifar-wrn-{depth}-{width}",
        WideResNet,
        head="fc.weight",
        stem="conv1.weight",
        min_size=4,
        about="wide residual networks of depth 6n + 4",
        examples=("cifar-wrn-28-10", "cifar-wrn-34-10"),
    ),
    ArchSpec(
        "cifar-vgg16",
        CifarVGG,
        head="classifier.weight",
        stem="layers.0.weight",
        min_size=32,
        about="VGG-16 with batch normalization",
    ),
    *(
        ArchSpec(
            f"cifar-robust-resnet-{_blocks}b",
            RobustResNet,
            head="linear2.weight",
            stem="conv1.weight",
            input_size=(32, 32),
            mean=CIFAR10[0],
            std=CIFAR10[1],
            options={"blocks": _blocks},
            about=f"small robust residual network, {_blocks} blocks, no batch normalization",
        )
        for _blocks in (2, 4)
    ),
    *(
        ArchSpec(
            f"cifar-robust-cnn-{_kind}",
            RobustCNN,
            head=f"{_last}.weight",
            stem="0.weight",
            input_size=(32, 32),
            mean=IMAGENET[0],
            std=(0.225, 0.225, 0.225),
            options={"kind": _kind},
            about=f"small robust convolutional network, {_kind}",
        )
        for _kind, _last in (("wide", 7), ("deep", 11))
    ),
    ArchSpec(
        "squeezenet1_0",
        SqueezeNet,
        head="conv_final.weight",
        stem="conv1.weight",
        num_classes=1000,
        # 255 x - (123, 117, 104), written as (x - mean) / std
        mean=(123 / 255, 117 / 255, 104 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
        geometry=Geometry(resize=227, crop=(227, 227)),
        about="SqueezeNet 1.0 for ImageNet, reads 227x227",
    ),
    ArchSpec(
        "through-vae",
        ThroughVAE,
        head="net.linear.weight",
        stem="vae.encoder.0.weight",
        input_size=(32, 32),
        listed=False,
        about="another network behind a VAE: what unperturb train --through makes",
    ),
):
    register(_spec)


def _load_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            spec = entry.load()
        except (ImportError, AttributeError) as error:
            raise SpecError(
                f"The entry point {entry.name!r} ({entry.value}) cannot be loaded: {error}",
                expected=f"an ArchSpec in the group {ENTRY_POINTS}",
                fix="repair or remove the package that declares it",
            ) from error
        if not isinstance(spec, ArchSpec):
            raise SpecError(
                f"The entry point {entry.name!r} ({entry.value}) is a {type(spec).__name__}",
                expected=f"an ArchSpec in the group {ENTRY_POINTS}",
            )
        if NETWORKS.get(spec.name) is not spec:
            register(spec)


def network_names() -> list[str]:
    """Names to show and to suggest: exact names, and the examples of the patterns.

    Example:
        >>> "cifar-wrn-28-10" in network_names()
        True
    """
    _load_entry_points()
    names: set[str] = set()
    for spec in NETWORKS.values():
        if spec.listed:
            names.update(spec.examples if "{" in spec.name else (spec.name,))
    return sorted(names)


def resolve(name: str) -> tuple[ArchSpec, dict[str, Any]]:
    """The architecture of a name and the keyword arguments that the name stands for.

    An exact name comes before a pattern: ``cifar-resnet50`` is the bottleneck network, although
    50 is 6n + 2.

    Raises:
        SpecError: No such name; the nearest known ones are in the message.

    Example:
        >>> resolve("cifar-wrn-28-10")[1]
        {'depth': 28, 'width': 10}
    """
    lowered = name.lower()
    for attempt in range(2):
        if lowered in NETWORKS and "{" not in lowered:
            return NETWORKS[lowered], dict(NETWORKS[lowered].options)
        for spec in NETWORKS.values():
            found = spec.match(lowered) if "{" in spec.name else None
            if found is not None:
                return spec, {**spec.options, **found}
        if attempt == 0:
            _load_entry_points()
    raise unknown_name("network", name, network_names())


def build_network(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """A freshly initialized network, in training mode as PyTorch makes it.

    Args:
        name: A registered name.
        num_classes: Number of logits K; None: the architecture's default.
        in_channels: Channels of the images; None: the architecture's default.
        seed: Seed of the initial weights. The global generator is left as it was.
        **options: More keyword arguments of the architecture, such as ``dropout``.

    Raises:
        SpecError: Unknown name, or the architecture refuses its arguments.

    Example:
        >>> sum(p.numel() for p in build_network("small-cnn").parameters())
        39154
    """
    spec, fixed = resolve(name)
    classes = spec.num_classes if num_classes is None else num_classes
    channels = spec.in_channels if in_channels is None else in_channels
    with torch.random.fork_rng(devices=[]):
        # The default generator alone: torch.manual_seed would reseed every accelerator too.
        torch.default_generator.manual_seed(seed)
        try:
            return spec.build(num_classes=classes, in_channels=channels, **{**fixed, **options})
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"The network {name!r} cannot be built: {error}",
                expected=spec.about or "arguments the architecture takes",
            ) from error
