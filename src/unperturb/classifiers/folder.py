"""A classifier in a folder: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unperturb.classifiers.base import Classifier, Origin, as_classifier
from unperturb.classifiers.source import build_callable, is_code
from unperturb.classifiers.weights import file_sha256, fit_state, nearest_sibling, read_weights
from unperturb.errors import ConfigError, OutputError, SpecError, WeightsError
from unperturb.files import write_json, write_tensors
from unperturb.networks.geometry import Geometry
from unperturb.networks.registry import build_network, resolve

__all__ = ["SCHEMA_VERSION", "load_folder", "save_classifier"]

SCHEMA_VERSION = 1
_FORMAT = "unperturb-classifier"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def save_classifier(
    classifier: Classifier | nn.Module,
    folder: str | Path,
    *,
    arch: str | None = None,
    arch_options: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Save a classifier so that ``load_classifier(folder)`` brings it back.

    Args:
        classifier: A `Classifier`, or a bare network that reads normalized images.
        folder: Where; made if it is not there. A classifier that stands there is replaced, the
            weights first; a kill in between is noticed when it is loaded.
        arch: Registered name or ``package.module:callable``; None: what a `Classifier` knows.
        arch_options: Keyword arguments of the architecture beyond classes and channels.
        mean: For a bare network only; None: the architecture's default normalization.
        std: As ``mean``.
        extra: Free, JSON-able facts (how it was trained), kept as the card.

    Returns:
        The folder.

    Raises:
        SpecError: No architecture is known, or it is no name that can be built again.
        WeightsError: The tensors are not those of the architecture.
        OutputError: The folder cannot be written, or holds something else.
        ConfigError: The facts are not JSON-able.
    """
    folder = Path(folder)
    known = classifier.origin if isinstance(classifier, Classifier) else Origin()
    name = arch or known.arch
    options = dict(arch_options if arch_options is not None else known.arch_options)
    classifier = _with_defaults(classifier, name, mean, std)
    state = _unshared(classifier.module)
    if ":" not in name:
        spec, _ = resolve(name)
        channels = int(state[spec.stem].shape[1]) if spec.stem in state else spec.in_channels
        options.setdefault("in_channels", channels)
        empty = build_network(name, num_classes=classifier.num_classes, **options)
        fit_state(empty, state, source="to be saved", network=name)
    elif not is_code(name):
        raise SpecError(
            f"A classifier from {name!r} cannot be saved as a folder of this package",
            expected="a registered network or package.module:callable",
            fix=f"refer to it by its specification, {known.spec or name!r}",
        )
    _check_target(folder)
    card = {**known.card, **(extra or {})}
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The card of facts cannot be written as JSON: {error}",
            expected="strings, finite numbers, lists and dicts",
        ) from error
    write_tensors(folder / _WEIGHTS, state, {"format": "pt"})
    config = {
        "format": _FORMAT,
        "schema_version": SCHEMA_VERSION,
        "arch": name,
        "arch_options": options,
        "num_classes": classifier.num_classes,
        "input_shape": list(classifier.input_shape),
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "geometry": classifier.geometry.to_dict() if classifier.geometry else None,
        "weights_sha256": file_sha256(folder / _WEIGHTS),
        "card": card,
    }
    write_json(folder / _CONFIG, config)
    return folder


def load_folder(folder: str | Path, *, trust_remote_code: bool = False) -> Classifier:
    """Load what `save_classifier` saved.

    Args:
        folder: The folder.
        trust_remote_code: Allow a configuration to name code that is then imported and run.

    Raises:
        SpecError: Not such a folder, or code that is not trusted.
        ConfigError: The configuration is damaged or of another schema version.
        WeightsError: The weights are missing, damaged, or not those the configuration names.
    """
    folder = Path(folder)
    config = _read_config(folder)
    name, options = str(config["arch"]), dict(config["arch_options"])
    classes, shape = int(config["num_classes"]), config["input_shape"]
    if ":" in name and not is_code(name):
        raise ConfigError(
            f"The configuration in {str(folder)!r} has the architecture {name!r}",
            expected="a registered network or package.module:callable",
        )
    if ":" in name and not trust_remote_code:
        raise SpecError(
            f"The configuration in {str(folder)!r} names code: {name}",
            expected="code to run only from folders you trust",
            fix="read that code, then pass trust_remote_code=True",
        )
    path = folder / _WEIGHTS
    state, _ = read_weights(path)
    sha = file_sha256(path)
    if sha != config["weights_sha256"]:
        raise WeightsError(
            f"The weights {str(path)!r} have SHA-256 {sha[:12]}...",
            expected=f"{str(config['weights_sha256'])[:12]}..., as {_CONFIG} says",
            fix="the folder was changed or saved only in part: save or fetch it again",
        )
    min_size = 1
    if ":" in name:
        module = build_callable(name, classes, options)
    else:
        module = build_network(name, num_classes=classes, **options)
        min_size = resolve(name)[0].min_size
    fit_state(module, state, source=repr(str(path)), network=name)
    if not is_code(name):
        module.eval().requires_grad_(False)
    return Classifier(
        module,
        num_classes=classes,
        input_shape=(shape[0], shape[1], shape[2]),
        mean=config["mean"],
        std=config["std"],
        geometry=Geometry.from_dict(config["geometry"]) if config["geometry"] else None,
        origin=Origin(str(folder), name, options, _WEIGHTS, sha, dict(config["card"])),
        min_size=min_size,
    )


_FIELDS = {
    "arch": str,
    "arch_options": dict,
    "num_classes": int,
    "input_shape": list,
    "mean": list,
    "std": list,
    "weights_sha256": str,
    "card": dict,
}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not folder.is_dir():
        raise SpecError(
            f"There is no folder {str(folder)!r}",
            expected=f"a folder with {_CONFIG} and {_WEIGHTS}",
            fix=nearest_sibling(folder),
        )
    if not path.is_file():
        raise SpecError(
            f"The folder {str(folder)!r} holds no {_CONFIG}",
            expected=f"a folder with {_CONFIG} and {_WEIGHTS}",
            fix="for bare weights give ARCH@FILE.safetensors",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read: {error}", expected="a JSON object"
        ) from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        hub = isinstance(config, dict) and "model_type" in config
        raise SpecError(
            f"{str(path)!r} is not a classifier saved by this package",
            expected=f'"format": "{_FORMAT}"',
            fix=f"for a transformers model give hf:{folder}" if hub else "check the folder",
        )
    if config.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{str(path)!r} has schema version {config.get('schema_version')!r}",
            expected=f"schema version {SCHEMA_VERSION}",
            fix="use the version of unperturb that saved it, or save it again",
        )
    for name, kind in _FIELDS.items():
        if not isinstance(config.get(name), kind):
            raise ConfigError(
                f"{str(path)!r} has {name} = {config.get(name)!r}",
                expected=f"{name} of type {kind.__name__}",
                fix="save the classifier again",
            )
    if len(config["input_shape"]) != 3:
        raise ConfigError(
            f"{str(path)!r} has input_shape = {config['input_shape']!r}",
            expected="[channels, height, width], null for any",
        )
    return {"geometry": None, **config}


def _with_defaults(
    classifier: Classifier | nn.Module,
    name: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Classifier:
    if isinstance(classifier, Classifier):
        if not name or not (":" in name or _is_registered(name)):
            raise _no_arch(name)
        return as_classifier(classifier, mean=mean, std=std)
    if not name:
        raise _no_arch(name)
    if ":" in name:
        return as_classifier(classifier, mean=mean, std=std)
    spec, _ = resolve(name)
    state = classifier.state_dict()
    if spec.head not in state or spec.stem not in state:
        fit_state(build_network(name), state, source="to be saved", network=name)
    channels = int(state[spec.stem].shape[1])
    if mean is None and std is None:
        mean, std = default_normalization(name, channels)
    size = spec.input_size or (None, None)
    return Classifier(
        classifier,
        num_classes=int(state[spec.head].shape[0]),
        input_shape=(channels, *size),
        mean=mean,
        std=std,
        geometry=spec.geometry,
        min_size=spec.min_size,
    )


def default_normalization(
    name: str, channels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The architecture's own normalization.

    Raises:
        SpecError: It is for another number of channels.
    """
    spec, _ = resolve(name)
    if spec.mean and len(spec.mean) != channels:
        raise SpecError(
            f"The default normalization of {name!r} is for {len(spec.mean)} channels, "
            f"and the weights read {channels}",
            expected="a normalization for those channels",
            fix="add ?mean=M&std=S or ?normalize=none",
        )
    return spec.mean or None, spec.std or None


def _is_registered(name: str) -> bool:
    try:
        resolve(name)
    except SpecError:
        return False
    return True


def _no_arch(name: str) -> SpecError:
    return SpecError(
        f"The classifier's architecture is {name or 'not known'}",
        expected="a registered network or package.module:callable, to build it again",
        fix="save_classifier(..., arch='cifar-resnet18')",
    )


def _unshared(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state with a copy of every tensor that shares memory: safetensors holds no ties."""
    seen: set[int] = set()
    state = {}
    for name, tensor in module.state_dict().items():
        storage = tensor.untyped_storage().data_ptr()
        state[name] = tensor.detach().clone() if storage in seen else tensor.detach()
        seen.add(storage)
    return state


def _check_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{str(folder)!r} is a file", expected="a folder, new or of a classifier")
    path = folder / _CONFIG
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise OutputError(
            f"{str(folder)!r} holds a {_CONFIG} of something else",
            expected="a new folder, or one that holds a classifier of this package",
            fix="choose another folder",
        )
