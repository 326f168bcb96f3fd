"""Classifiers of other libraries: transformers, timm, torchvision.

Their own preprocessing (resize, crop, mean, std) becomes part of the classifier, in a form that
gradients pass through. Resizing here acts on floats with antialiasing, where those libraries may
round to bytes: a difference of at most about one in 255.

timm and torchvision both need the package torchvision, which must match the build of PyTorch; a
torchvision that is installed but broken is reported like one that is missing.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.classifiers.base import Classifier, Origin, as_classifier
from unperturb.classifiers.weights import file_sha256, fit_state, read_weights
from unperturb.errors import MissingExtraError, SpecError, WeightsError, unknown_name
from unperturb.networks.geometry import Geometry

__all__ = ["load_huggingface", "load_timm", "load_torchvision"]

# PIL's codes, as preprocessor configurations store them.
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}


class _Logits(nn.Module):
    """A transformers model that returns its logits only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits  # type: ignore[no-any-return]


def load_huggingface(
    name: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust_remote_code: bool = False,
) -> Classifier:
    """A transformers image classifier by hub id or folder; safetensors weights only.

    Args:
        name: Hub id or local folder.
        mean: Normalization; None: that of its preprocessor configuration.
        std: As ``mean``.
        trust_remote_code: Passed on to transformers.

    Raises:
        MissingExtraError: transformers is not installed.
        SpecError: No such model, no preprocessor configuration, or one that cannot be followed.
        WeightsError: The weights lack parts of the classifier.
    """
    transformers = _require("transformers", "transformers", "a classifier from transformers")
    base = importlib.import_module("transformers.image_processing_base")
    auto = transformers.AutoModelForImageClassification
    try:
        with torch.random.fork_rng(devices=[]):
            model, info = auto.from_pretrained(
                name,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
        processor, _ = base.ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError) as error:
        fix = "check the id or folder; weights must be safetensors"
        if "trust_remote_code" in str(error):
            fix = "read the model's code, then pass trust_remote_code=True"
        raise SpecError(
            f"The transformers model {name!r} cannot be loaded: {str(error).splitlines()[0]}",
            expected="an image classifier with safetensors weights and a preprocessor_config.json",
            fix=fix,
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise WeightsError(
            f"The weights of {name!r} lack {len(missing)} tensors of the classifier "
            f"({', '.join(missing[:5])})",
            expected="a model trained for image classification",
            fix="choose a checkpoint with a classification head",
        )
    geometry, own_mean, own_std = _from_processor(processor, name)
    if mean is None and std is None:
        mean, std = own_mean, own_std
    channels = getattr(model.config, "num_channels", None)
    return Classifier(
        _Logits(model.eval()).eval(),
        num_classes=int(model.config.num_labels),
        input_shape=(channels, None, None),
        mean=mean,
        std=std,
        geometry=geometry,
        origin=Origin(arch=f"hf:{type(model).__name__}", card={"labels": _labels(model.config)}),
    )


def _labels(config: Any) -> list[str]:
    return [str(label) for _, label in sorted(dict(config.id2label).items())]


def _from_processor(
    config: Mapping[str, Any], name: str
) -> tuple[Geometry | None, tuple[float, ...] | None, tuple[float, ...] | None]:
    """Geometry, mean and std (for pixels in [0, 1]) of a preprocessor configuration."""
    interpolation = _RESAMPLE.get(int(config.get("resample", 2)))
    if interpolation is None:
        raise SpecError(
            f"The preprocessor of {name!r} has resample {config['resample']!r}",
            expected=f"one of {sorted(_RESAMPLE)} (nearest, bilinear, bicubic)",
        )
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    resize: int | tuple[int, int] | None = None
    crop = _pair(config.get("crop_size")) if config.get("do_center_crop", True) else None
    size = config.get("size")
    if config.get("do_resize", True) and size is not None:
        resize, crop = _resize(size, crop, config, kind, name)
    geometry = Geometry(resize, crop, interpolation) if resize or crop else None
    mean, std = _scaled(config, name)
    return geometry, mean, std


def _resize(
    size: Any, crop: tuple[int, int] | None, config: Mapping[str, Any], kind: str, name: str
) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    by_ratio = kind.startswith("ConvNext")
    if isinstance(size, Mapping) and size.get("shortest_edge"):
        short = int(size["shortest_edge"])
    elif isinstance(size, int) and by_ratio:
        short = size
    elif _pair(size) is not None:
        return _pair(size), crop  # type: ignore[return-value]
    else:
        raise SpecError(
            f"The preprocessor of {name!r} has size {size!r}",
            expected="height and width, or shortest_edge",
        )
    if not by_ratio:
        return short, crop
    # ConvNeXt's own rule: small inputs are enlarged by 1 / crop_pct and cropped, others warped.
    if short >= 384:
        return (short, short), None
    return int(short / float(config.get("crop_pct") or 224 / 256)), (short, short)


def _scaled(
    config: Mapping[str, Any], name: str
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if config.get("rescale_offset"):
        raise SpecError(
            f"The preprocessor of {name!r} has rescale_offset, which is not supported",
            expected="rescaling to [0, 1]",
            fix="wrap the model in a module of your own",
        )
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    unit = 255.0 * factor
    mean, std = (0.0,), (1.0,)
    if config.get("do_normalize", True):
        if not config.get("image_mean") or not config.get("image_std"):
            raise SpecError(
                f"The preprocessor of {name!r} states no image_mean and image_std",
                expected="both in preprocessor_config.json",
                fix="add them there",
            )
        mean = tuple(float(m) for m in config["image_mean"])  # type: ignore[assignment]
        std = tuple(float(s) for s in config["image_std"])  # type: ignore[assignment]
    return tuple(m / unit for m in mean), tuple(s / unit for s in std)


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    if isinstance(size, Sequence) and len(size) in (1, 2):
        return int(size[0]), int(size[-1])
    return None


def load_timm(
    name: str,
    file: Path | None = None,
    *,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """A timm model, with the weights its authors publish or with a safetensors file.

    The geometry and normalization are those of its ``pretrained_cfg``.

    Args:
        name: timm model name.
        file: Weights; None: the published ones.
        num_classes: K; None: the model's.
        mean: Normalization; None: the model's.
        std: As ``mean``.

    Raises:
        MissingExtraError: timm or torchvision is missing or broken.
        SpecError: Unknown model.
        WeightsError: The weights do not fit.
    """
    _require("torchvision", "timm", "a timm model")
    timm = _require("timm", "timm", "a timm model")
    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models())
    extra = {} if num_classes is None else {"num_classes": num_classes}
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(name, pretrained=file is None, **extra)
    origin = _fill(model, file, f"timm:{name}")
    config = dict(getattr(model, "pretrained_cfg", None) or model.default_cfg)
    channels, height, width = config["input_size"]
    if mean is None and std is None:
        mean, std = config["mean"], config["std"]
    part = float(config.get("crop_pct") or 1.0)
    return as_classifier(
        model.eval(),
        num_classes=num_classes or getattr(model, "num_classes", None),
        input_shape=(channels, None, None),
        mean=mean,
        std=std,
        geometry=Geometry(
            math.floor(max(height, width) / part),
            (height, width),
            str(config.get("interpolation") or "bilinear"),
        ),
        origin=origin,
    )


def load_torchvision(
    name: str,
    file: Path | None = None,
    *,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """A torchvision model, with its default published weights or with a safetensors file.

    The geometry and normalization are those of its default weights' transforms, also with a
    file of your own; ``mean`` and ``std`` override the normalization.

    Args:
        name: torchvision model name, such as ``resnet18``.
        file: Weights; None: the published default ones.
        num_classes: K; None: 1000.
        mean: Normalization; None: the model's.
        std: As ``mean``.

    Raises:
        MissingExtraError: torchvision is missing or broken.
        SpecError: Unknown model.
        WeightsError: The weights do not fit.
    """
    torchvision = _require("torchvision", "torchvision", "a torchvision model")
    models = torchvision.models
    if name not in models.list_models():
        raise unknown_name("torchvision model", name, models.list_models())
    default = models.get_model_weights(name).DEFAULT
    extra = {} if num_classes is None else {"num_classes": num_classes}
    with torch.random.fork_rng(devices=[]):
        model = models.get_model(name, weights=default if file is None else None, **extra)
    origin = _fill(model, file, f"torchvision:{name}")
    steps = default.transforms()
    if mean is None and std is None:
        mean, std = steps.mean, steps.std
    resize, crop = list(steps.resize_size), list(steps.crop_size)
    mode = getattr(steps.interpolation, "value", steps.interpolation)
    return as_classifier(
        model.eval(),
        num_classes=num_classes or 1000,
        input_shape=(3, None, None),
        mean=mean,
        std=std,
        geometry=Geometry(
            int(resize[0]) if len(resize) == 1 else (int(resize[0]), int(resize[1])),
            (int(crop[0]), int(crop[-1])),
            str(mode),
        ),
        origin=origin,
    )


def _fill(model: nn.Module, file: Path | None, arch: str) -> Origin:
    if file is None:
        return Origin(arch=arch)
    state, _ = read_weights(file)
    fit_state(model, state, source=repr(str(file)), network=arch)
    return Origin("", arch, {}, file.name, file_sha256(file))


def _require(package: str, extra: str, purpose: str) -> Any:
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        # A torchvision built for another PyTorch fails with any of these.
        lines = str(error).splitlines()
        raise MissingExtraError(
            package, extra=extra, purpose=purpose, detail=lines[0] if lines else ""
        ) from error
