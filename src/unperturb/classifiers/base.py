"""The one form in which the package holds a classifier: images in [0, 1] to logits."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.checks import check_images
from unperturb.classifiers.probe import channels_of, check_output, probe_classes, run_quietly
from unperturb.classifiers.view import eval_view
from unperturb.errors import InputError, SpecError
from unperturb.networks.geometry import Geometry

__all__ = ["Classifier", "Origin", "Shape", "as_classifier"]

Shape = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class Origin:
    """Where a classifier comes from; the facts that records state.

    Args:
        spec: The specification it was loaded from, or ``""`` for a module from Python.
        arch: Registered network name, ``package.module:callable``, or the module's class.
        arch_options: Keyword arguments of the architecture beyond classes and channels.
        weights_file: Name of the weights file, without its folder.
        weights_sha256: SHA-256 of that file.
        card: Free facts, such as how it was trained.
    """

    spec: str = ""
    arch: str = ""
    arch_options: Mapping[str, Any] = field(default_factory=dict)
    weights_file: str | None = None
    weights_sha256: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)


class Classifier(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, K), always in eval mode.

    The geometry comes first, then (x - mean) / std, then the module. Any ``train()`` leaves the
    mode alone. If the module given is (partly) in training mode, a view of it that shares every
    tensor is held instead (`eval_view`), so nothing of the user's changes. Moving the classifier
    moves the user's module too, as it does for every module inside a module.

    Args:
        module: Already normalized images to logits.
        num_classes: K, at least 2.
        input_shape: (C, H, W) that are accepted; None: any.
        mean: Normalization, a value for each channel or one for all; None: none.
        std: As ``mean``; both or neither.
        geometry: Resize and crop that come first; None: none.
        origin: Facts about where it comes from.
        min_size: Smallest height and width that are accepted.

    Raises:
        SpecError: K below 2, a normalization that does not fit, or weights made under
            ``torch.inference_mode``, which no gradient passes.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> classifier = Classifier(net, num_classes=10, mean=[0.5], std=[0.25])
        >>> classifier(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> net.training, classifier.training
        (True, False)
    """

    module: nn.Module
    _shift: Tensor
    _scale: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        num_classes: int,
        input_shape: Shape = (None, None, None),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        geometry: Geometry | None = None,
        origin: Origin | None = None,
        min_size: int = 1,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise SpecError(
                f"The classifier has {num_classes} class{'es' if num_classes != 1 else ''}",
                expected="at least 2 logits per image",
                fix="for a binary net with one logit z, return the two logits (0, z)",
            )
        if any(t.is_inference() for t in (*module.parameters(), *module.buffers())):
            raise SpecError(
                "The network was made under torch.inference_mode",
                expected="weights through which a gradient can be taken",
                fix="build, copy or load it outside of torch.inference_mode",
            )
        self.num_classes = num_classes
        self.input_shape: Shape = input_shape
        self.mean, self.std = _normalization(mean, std, input_shape[0])
        self.geometry = geometry
        self.min_size = min_size
        self.origin = origin or Origin(arch=_class_name(module))
        self.module = eval_view(module)
        self.training = False
        self._normalizes = any(self.mean) or any(s != 1.0 for s in self.std)
        self._fingerprint: tuple[object, str] | None = None
        self._rows_only = False
        like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
        # Tensors made under inference_mode could never take part in a backward pass.
        with torch.inference_mode(False):
            exact = torch.tensor([self.mean, self.std], dtype=torch.float64)
            shift = (-exact[0] / exact[1]).view(1, -1, 1, 1).to(like.device, like.dtype)
            scale = (1.0 / exact[1]).view(1, -1, 1, 1).to(like.device, like.dtype)
        self.register_buffer("_shift", shift, persistent=False)
        self.register_buffer("_scale", scale, persistent=False)

    @property
    def spec(self) -> str:
        """The specification this was loaded from; ``""`` for a module from Python."""
        return self.origin.spec

    def prepare(self, images: Tensor) -> Tensor:
        """What the module reads: resized, cropped and normalized images."""
        if self.geometry is not None:
            images = self.geometry.apply(images)
        if self._normalizes:
            # One kernel for (x - mean) / std, forward and backward.
            images = torch.addcmul(self._shift, images, self._scale)
        return images

    def forward(self, images: Tensor) -> Tensor:
        return self._logits(self.module, self.prepare(images))

    def _logits(self, network: Callable[[Tensor], Tensor], read: Tensor) -> Tensor:
        if self._rows_only:
            read = read.contiguous()
        try:
            return network(read)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error) or read.is_contiguous():
                raise
        # A net that views its features as rows cannot read channels_last images, which attacks
        # and audits use because they are faster; from now on it gets plain ones.
        self._rows_only = True
        return network(read.contiguous())

    def read(self, reading: Tensor) -> Tensor:
        """Logits (N, K) of what the network behind a generative model of its own reads.

        A classifier that was trained through a VAE (``unperturb.generative.through_vae``) puts
        every image through it first; a purifier that has done so hands its result over here.

        Raises:
            InputError: The module has no such network.
        """
        inner = getattr(self.module, "read", None)
        if not callable(inner):
            raise InputError(
                f"The network {_class_name(self.module)} reads images, and nothing behind them",
                expected="a classifier that was trained through a VAE",
                fix="unperturb train --through VAE makes one",
            )
        return self._logits(inner, reading)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features, if the module has a ``features`` method.

        Raises:
            InputError: It has none.
        """
        inner = getattr(self.module, "features", None)
        if not callable(inner):
            raise InputError(
                f"The network {_class_name(self.module)} gives no features",
                expected="a module with a method features(x)",
                fix="add one, or use what needs logits only",
            )
        return inner(self.prepare(images))  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Classifier:
        """Do nothing: a classifier stays in eval mode, and so do the modules it holds."""
        return self

    def check(self, images: Tensor, *, logits: bool = True) -> None:
        """Check images at an entry point, once; `forward` itself checks nothing.

        Also catches up if the user has switched the module to training mode meanwhile.

        Args:
            images: What the caller handed in, (N, C, H, W) in [0, 1].
            logits: Also run the first two images and check what comes out. Global random
                state is left as it was.

        Raises:
            InputError: Wrong rank, dtype, range, channels or size; logits that are not (N, K)
                or not finite.
        """
        check_images(images, channels=self.input_shape[0])
        reads = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), None)
        if reads not in (None, images.dtype) and not torch.is_autocast_enabled(images.device.type):
            raise InputError(
                f"Images have dtype {images.dtype}",
                expected=f"{reads}, as the classifier's weights",
                fix=f"images.to({reads})",
            )
        height, width = images.shape[-2:]
        wanted = tuple(
            want or have for want, have in zip(self.input_shape[1:], (height, width), strict=True)
        )
        if wanted != (height, width):
            raise InputError(
                f"Images are {height}x{width} (height x width)",
                expected=f"{wanted[0]}x{wanted[1]}, the size this classifier reads",
                fix=f"resize them to {wanted[0]}x{wanted[1]}",
            )
        if self.geometry is None and min(height, width) < self.min_size:
            raise InputError(
                f"Images are {height}x{width} (height x width)",
                expected=f"at least {self.min_size}x{self.min_size} for this classifier",
                fix="enlarge them, or use a classifier for small images",
            )
        self.module = eval_view(self.module)
        if logits:
            two = images[:2].detach().to(self._shift.device, self._shift.dtype)
            check_output(run_quietly(self, two), len(two), self.num_classes)

    def describe(self) -> dict[str, Any]:
        """JSON-able facts for records: architecture, weights, normalization, geometry, K."""
        return {
            "spec": self.origin.spec,
            "arch": self.origin.arch,
            "arch_options": dict(self.origin.arch_options),
            "weights": {
                "file": self.origin.weights_file,
                "sha256": self.origin.weights_sha256,
            },
            "normalization": {"mean": list(self.mean), "std": list(self.std)},
            "geometry": self.geometry.to_dict() if self.geometry else None,
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "card": dict(self.origin.card),
        }

    def fingerprint(self) -> str:
        """SHA-256 of the tensors, the structure, the normalization and the geometry.

        The same classifier has the same fingerprint whether it comes from a weights file, a
        saved folder or Python. Batch counters, which no eval pass reads, do not count. It is
        cached until a tensor is replaced or changed in place (other than through ``.data``).
        """
        state = {
            name: tensor
            for name, tensor in self.module.state_dict().items()
            if isinstance(tensor, Tensor) and not name.endswith("num_batches_tracked")
        }
        marks = tuple(
            (t.data_ptr(), str(t.device), t.dtype, -1 if t.is_inference() else t._version)
            for t in state.values()
        )
        if self._fingerprint is None or self._fingerprint[0] != marks:
            self._fingerprint = (marks, self._digest(state))
        return self._fingerprint[1]

    def _digest(self, state: Mapping[str, Tensor]) -> str:
        facts = {
            "structure": _structure(self.module),
            "mean": self.mean,
            "std": self.std,
            "geometry": self.geometry.to_dict() if self.geometry else None,
            "num_classes": self.num_classes,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name in sorted(state):
            tensor = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, mean={self.mean}, std={self.std}"


def as_classifier(
    module: nn.Module,
    *,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    geometry: Geometry | None = None,
    origin: Origin | None = None,
) -> Classifier:
    """Hold a module from Python as a `Classifier`; a `Classifier` is returned as it is.

    Args:
        module: Images in [0, 1] (or normalized ones, with ``mean`` and ``std``) to logits.
        num_classes: K; None: found with one forward pass on grey images, without gradients and
            with the random state put back.
        input_shape: (C, H, W) accepted, None for any. Where it is not told, the channels are
            those of the first convolution.
        mean: Normalization done before the module; None: none.
        std: As ``mean``.
        geometry: Resize and crop done before all else.
        origin: Facts about where it comes from.

    Raises:
        SpecError: Not a module, K below 2, no image size found that it reads, or options
            given for a `Classifier`, which has its own.
        InputError: What comes out is not (N, K), or not finite.

    Example:
        >>> as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        ...               input_shape=(1, 8, 8)).num_classes
        3
    """
    if isinstance(module, Classifier):
        if any(v is not None for v in (num_classes, input_shape, mean, std, geometry)):
            raise SpecError(
                "Options are given for something that is a Classifier already",
                expected="a plain module, or no options",
                fix="pass classifier.module instead",
            )
        return module
    if not isinstance(module, nn.Module):
        raise SpecError(
            f"The classifier is a {type(module).__name__}",
            expected="a torch.nn.Module from images to logits, or a specification string",
            fix="wrap a plain function in a Module",
        )
    shape = input_shape or (channels_of(module), None, None)
    origin = origin or Origin(arch=_class_name(module))
    if num_classes is not None:
        return Classifier(
            module, num_classes=num_classes, input_shape=shape, mean=mean, std=std,
            geometry=geometry, origin=origin,
        )  # fmt: skip
    trial = Classifier(
        module, num_classes=2, input_shape=shape, mean=mean, std=std, geometry=geometry,
        origin=origin,
    )  # fmt: skip
    grey = torch.full((), 0.5, device=trial._shift.device, dtype=trial._shift.dtype)
    classes = probe_classes(trial, shape, grey)
    return Classifier(
        module, num_classes=classes, input_shape=shape, mean=mean, std=std, geometry=geometry,
        origin=origin,
    )  # fmt: skip


def _normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if (mean is None) != (std is None):
        raise SpecError(
            f"The normalization has mean {mean} and std {std}", expected="both or neither"
        )
    means = tuple(float(m) for m in mean) if mean else (0.0,)
    stds = tuple(float(s) for s in std) if std else (1.0,)
    count = channels or max(len(means), len(stds))
    means = means * count if len(means) == 1 else means
    stds = stds * count if len(stds) == 1 else stds
    if len(means) != count or len(stds) != count:
        raise SpecError(
            f"The normalization has {len(means)} means and {len(stds)} standard deviations",
            expected=f"{count} of each, one per channel, or a single one",
            fix="give mean and std for the channels, or normalize=none",
        )
    if not all(map(math.isfinite, means)) or not all(s > 0 and math.isfinite(s) for s in stds):
        raise SpecError(
            f"The normalization has mean {means} and std {stds}",
            expected="finite means and standard deviations above 0, for pixels in [0, 1]",
        )
    return means, stds


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _structure(module: nn.Module) -> list[list[str]]:
    """Names, classes and settings; memory addresses, which differ by process, are dropped."""
    return [
        [name, type(part).__qualname__, re.sub(r" at 0x[0-9a-fA-F]+", "", part.extra_repr())]
        for name, part in module.named_modules()
    ]


def with_origin(classifier: Classifier, **changes: Any) -> Classifier:
    """The same classifier, with changed facts about its origin."""
    classifier.origin = replace(classifier.origin, **changes)
    return classifier
