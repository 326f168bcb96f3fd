"""One specification string for every classifier.

================================  ==========================================================
``ARCH@FILE.safetensors``         a registered network, such as ``cifar-resnet20@w.safetensors``
``FOLDER``                        saved by ``save_classifier``
``hf:ID_OR_FOLDER``               transformers image classifier
``timm:NAME`` / ``...@FILE``      timm model; needs torchvision
``torchvision:NAME`` / ``@FILE``  torchvision model
``package.module:callable``       your own code, optionally ``@FILE.safetensors``
================================  ==========================================================

Options follow a question mark and are joined by ``&``: ``classes=100``, ``channels=1``,
``mean=0.5,0.5,0.5``, ``std=0.25,0.25,0.25`` (or one value for all channels),
``normalize=none|imagenet|cifar10``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from unperturb.classifiers.base import Classifier, Origin, as_classifier, with_origin
from unperturb.classifiers.folder import default_normalization, load_folder
from unperturb.classifiers.hub import load_huggingface, load_timm, load_torchvision
from unperturb.classifiers.source import build_callable, is_code
from unperturb.classifiers.weights import (
    file_sha256,
    fit_state,
    nearest_sibling,
    read_weights,
    strip_wrappers,
)
from unperturb.errors import SpecError, WeightsError, unknown_name
from unperturb.networks.registry import (
    CIFAR10,
    IMAGENET,
    build_network,
    network_names,
    resolve,
)

__all__ = ["load_classifier", "new_classifier"]

_OPTIONS = ("channels", "classes", "mean", "normalize", "std")
_NORMALIZATIONS = {"none": ((0.0,), (1.0,)), "imagenet": IMAGENET, "cifar10": CIFAR10}
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Options:
    """What was said beside the name: None where nothing was."""

    classes: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def load_classifier(
    spec: str | os.PathLike[str] | nn.Module,
    *,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Load a classifier from a specification (see the module's table) or hold a module.

    Args:
        spec: A specification string, a saved folder, or a module.
        num_classes: K; None: told by the weights, the configuration or one forward pass.
        mean: Normalization for pixels in [0, 1]. What is given here comes before the
            specification's query, then the weights file's metadata, then the default of the
            architecture.
        std: As ``mean``.
        trust_remote_code: Allow a saved folder or hub model to name code that is then run.
            Code named in ``spec`` itself is run without this: typing it is consent.
        device: Where to put it. A module from Python stays where it is.

    Returns:
        The classifier. Weights loaded here do not require gradients, which makes gradients to
        the input cheaper; to train on, call ``classifier.module.requires_grad_()``. A module
        from Python, or made by code of yours, keeps its own flags.

    Raises:
        SpecError: The specification cannot be resolved.
        WeightsError: The weights are missing, a pickle, damaged, or do not fit.
        ConfigError: A configuration is damaged or of another schema version.
        MissingExtraError: A package that the specification needs is not there.

    Example:
        >>> load_classifier("cifar-resnet2O@weights.safetensors")
        Traceback (most recent call last):
        ...
        unperturb.errors.SpecError: Unknown network 'cifar-resnet2o'. Expected: ...
    """
    if isinstance(spec, nn.Module):
        return as_classifier(spec, num_classes=num_classes, mean=mean, std=std)
    if not isinstance(spec, str | os.PathLike):
        raise SpecError(
            f"The classifier is {spec!r}",
            expected="a specification such as cifar-resnet20@weights.safetensors, a saved folder, "
            "or a module",
            fix="name one, or pass the torch.nn.Module itself",
        )
    text = os.fspath(spec)
    name, query = _split_query(text)
    options = _options(query, text, num_classes, mean, std)
    # Weights made under inference_mode could never take part in a backward pass.
    with torch.inference_mode(False):
        classifier = _load(name, options, trust_remote_code)
        if not is_code(classifier.origin.arch):
            classifier.requires_grad_(False)
        return with_origin(classifier, spec=text).to(device)


def new_classifier(
    arch: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    **options: Any,
) -> Classifier:
    """A freshly initialized classifier of a registered architecture, to be trained.

    A trainer calls ``classifier.module.train()`` and ``classifier.module(classifier.prepare(x))``
    and hands ``classifier`` to ``save_classifier`` at the end.

    Args:
        arch: Registered name.
        num_classes: K; None: the architecture's default.
        in_channels: Channels of the images; None: the architecture's default.
        mean: Normalization; None: the architecture's default.
        std: As ``mean``.
        seed: Seed of the initial weights; no global generator changes.
        **options: More keyword arguments of the architecture.

    Raises:
        SpecError: Unknown name, or arguments that do not fit.

    Example:
        >>> new_classifier("small-cnn", in_channels=1)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    module = build_network(
        arch, num_classes=num_classes, in_channels=in_channels, seed=seed, **options
    )
    given = Options(num_classes, in_channels, _floats(mean), _floats(std))
    channels = in_channels if in_channels is not None else resolve(arch)[0].in_channels
    return _registered(module, arch.lower(), given, {"in_channels": channels, **options})


def _registered(
    module: nn.Module,
    arch: str,
    options: Options,
    arch_options: Mapping[str, Any],
    file: Path | None = None,
) -> Classifier:
    spec, _ = resolve(arch)
    channels = int(arch_options["in_channels"])
    mean, std = options.mean, options.std
    if mean is None and std is None:
        mean, std = default_normalization(arch, channels)
    height, width = spec.input_size or (None, None)
    return Classifier(
        module.eval(),
        num_classes=int(module.state_dict()[spec.head].shape[0]),
        input_shape=(channels, height, width),
        mean=mean,
        std=std,
        geometry=spec.geometry,
        origin=_origin(arch, arch_options, file),
        min_size=spec.min_size,
    )


def _origin(arch: str, arch_options: Mapping[str, Any], file: Path | None) -> Origin:
    if file is None:
        return Origin(arch=arch, arch_options=dict(arch_options))
    return Origin("", arch, dict(arch_options), file.name, file_sha256(file))


def _load(name: str, options: Options, trust_remote_code: bool) -> Classifier:
    kind, _, rest = name.partition(":")
    if kind == "hf" and rest:
        return load_huggingface(
            rest, mean=options.mean, std=options.std, trust_remote_code=trust_remote_code
        )
    if kind in ("timm", "torchvision") and rest:
        model, _, file = rest.partition("@")
        weights = Path(file) if file else None
        loader = load_timm if kind == "timm" else load_torchvision
        return loader(
            model, weights, num_classes=options.classes, mean=options.mean, std=options.std
        )
    if Path(name).is_dir():
        return _folder(name, options, trust_remote_code)
    arch, at, file = name.partition("@")
    if ":" in arch and not Path(name).exists() and not _is_drive(arch):
        return _callable(arch, Path(file) if at else None, options)
    if at:
        return _arch(arch.lower(), Path(file), options)
    raise _unresolved(name)


def _arch(arch: str, file: Path, options: Options) -> Classifier:
    spec, _ = resolve(arch)
    state, metadata = read_weights(file)
    state = strip_wrappers(state)
    options = _from_metadata(options, metadata, file)
    classes, channels = options.classes, options.channels
    if classes is None and spec.head in state:
        classes = int(state[spec.head].shape[0])
    if channels is None and spec.stem in state and state[spec.stem].ndim > 1:
        channels = int(state[spec.stem].shape[1])
    channels = channels or spec.in_channels
    module = build_network(arch, num_classes=classes, in_channels=channels)
    fit_state(module, state, source=repr(str(file)), network=arch)
    return _registered(module, arch, options, {"in_channels": channels}, file)


def _callable(name: str, file: Path | None, options: Options) -> Classifier:
    state: dict[str, Tensor] | None = None
    if file is not None:
        state, metadata = read_weights(file)
        options = _from_metadata(options, metadata, file)
    module = build_callable(name, options.classes, {})
    if state is not None:
        fit_state(module, state, source=repr(str(file)), network=name)
    classifier = as_classifier(
        module,
        num_classes=options.classes,
        input_shape=(options.channels, None, None) if options.channels else None,
        mean=options.mean,
        std=options.std,
    )
    return with_origin(
        classifier,
        arch=name,
        weights_file=file.name if file else None,
        weights_sha256=file_sha256(file) if file else None,
    )


def _folder(name: str, options: Options, trust_remote_code: bool) -> Classifier:
    if options != Options():
        raise SpecError(
            f"Options are given for the saved folder {name!r}",
            expected="none: its config.json states classes, channels and normalization",
            fix="leave them out, or save it again with other values",
        )
    return load_folder(name, trust_remote_code=trust_remote_code)


def _unresolved(name: str) -> SpecError:
    path = Path(name)
    if path.suffix.lower() in _WEIGHT_SUFFIXES:
        return SpecError(
            f"The classifier {name!r} is a weights file without its architecture",
            expected="ARCH@FILE",
            fix=f"for example cifar-resnet20@{name}; the names are {', '.join(network_names())}",
        )
    try:
        resolve(name)
    except SpecError:
        pass
    else:
        return SpecError(
            f"The classifier {name!r} is an architecture without weights",
            expected="ARCH@FILE",
            fix=f"{name}@FILE.safetensors",
        )
    if "/" in name or os.sep in name:
        return SpecError(
            f"There is no folder {name!r}",
            expected="a folder saved by this package",
            fix=nearest_sibling(path)
            if path.parent.is_dir()
            else f"check the path; for a model from the hub give hf:{name}",
        )
    return unknown_name("network", name, network_names())


def _is_drive(arch: str) -> bool:
    return len(arch) > 2 and arch[1] == ":" and arch[2] in "\\/"


def _split_query(text: str) -> tuple[str, str]:
    name, mark, query = text.rpartition("?")
    return (name, query) if mark and not Path(text).exists() else (text, "")


def _options(
    query: str,
    text: str,
    num_classes: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Options:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise SpecError(
            f"The options {query!r} of {text!r} cannot be read: {error}",
            expected="name=value pairs joined by &",
        ) from error
    values = dict(pairs)
    for name in values:
        if name not in _OPTIONS:
            raise unknown_name("classifier option", name, _OPTIONS)
    if "normalize" in values and ("mean" in values or "std" in values):
        raise SpecError(
            f"The options {query!r} give both normalize and mean or std",
            expected="one of the two",
        )
    named: tuple[tuple[float, ...] | None, tuple[float, ...] | None] = (None, None)
    if "normalize" in values:
        if values["normalize"] not in _NORMALIZATIONS:
            raise unknown_name("normalization", values["normalize"], _NORMALIZATIONS)
        named = _NORMALIZATIONS[values["normalize"]]
    given = (_floats(mean), _floats(std))
    if given == (None, None):
        given = named
    if given == (None, None):
        given = (_list(values, "mean"), _list(values, "std"))
    if (given[0] is None) != (given[1] is None):
        raise SpecError(
            f"The classifier {text!r} is given only one of mean and std",
            expected="both or neither",
            fix="add the other one",
        )
    if num_classes is not None:
        values["classes"] = str(num_classes)
    classes = _whole(values, "classes", 2)
    return Options(classes, _whole(values, "channels", 1), *given)


def _from_metadata(options: Options, metadata: Mapping[str, str], file: Path) -> Options:
    """Fill in a normalization that the weights file states about itself."""
    if options.mean is not None or not {"mean", "std"} & set(metadata):
        return options
    values = {k: metadata[k].strip("[]() ") for k in ("mean", "std") if k in metadata}
    mean, std = _list(values, "mean"), _list(values, "std")
    if mean is None or std is None:
        raise WeightsError(
            f"The metadata of {str(file)!r} state only one of mean and std",
            expected="both or neither",
            fix="give ?mean=...&std=... yourself",
        )
    return Options(options.classes, options.channels, mean, std)


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(v) for v in values)


def _list(values: Mapping[str, str], name: str) -> tuple[float, ...] | None:
    if name not in values:
        return None
    try:
        return tuple(float(part) for part in values[name].split(","))
    except ValueError as error:
        raise SpecError(
            f"The option {name} is {values[name]!r}",
            expected="numbers joined by commas, such as 0.5,0.5,0.5",
        ) from error


def _whole(values: Mapping[str, str], name: str, least: int) -> int | None:
    if name not in values:
        return None
    text = values[name]
    if not text.isdecimal() or int(text) < least:
        raise SpecError(
            f"The option {name} is {text!r}", expected=f"a whole number, at least {least}"
        )
    return int(text)
