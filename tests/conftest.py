"""What all tests share: a guard against leaked global state, small models, the real-data folder."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def global_state() -> dict[str, Any]:
    """Everything global that a library could change behind its user's back."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    inner = {k: np.asarray(v).tolist() for k, v in numpy_state["state"].items()}
    return {
        "torch random state": torch.random.get_rng_state().tolist(),
        "numpy random state": {**numpy_state, "state": inner},
        "python random state": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "matmul precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "trace function": sys.gettrace(),
        "working folder": Path.cwd(),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return [name for name in before if before[name] != after[name]]


@pytest.fixture(autouse=True)
def _no_leaked_global_state() -> Iterator[None]:
    before, modules = global_state(), set(sys.modules)
    yield
    leaked = differences(before, global_state())
    if leaked == ["python random state"] and "sklearn" in set(sys.modules) - modules:
        # Scikit-learn draws while it is imported for the first time.
        leaked = []
    assert not leaked, f"the test leaked global state: {', '.join(leaked)}"


def module_state(module: nn.Module) -> dict[str, Any]:
    """Values, flags, gradients, modes, buffers and hooks of a module, comparable."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "values": {n: t.detach().clone() for n, t in tensors.items()},
        "storage": {n: (id(t), t.data_ptr(), t._version) for n, t in tensors.items()},
        "requires_grad": {n: t.requires_grad for n, t in tensors.items()},
        "grad": {n: None if t.grad is None else t.grad.clone() for n, t in tensors.items()},
        "training": {n: m.training for n, m in module.named_modules()},
        "hooks": {
            (n, kind): list(getattr(m, kind, {}).items())
            for n, m in module.named_modules()
            for kind in HOOKS
        },
        "attributes": {n: sorted(m.__dict__) for n, m in module.named_modules()},
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return bool(a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b))


@contextlib.contextmanager
def untouched_module(module: nn.Module) -> Iterator[nn.Module]:
    """Fail if anything of the module changes inside."""
    before = module_state(module)
    yield module
    after = module_state(module)
    changed = [what for what in before if not _same(before[what], after[what])]
    assert not changed, f"the module's {', '.join(changed)} changed"


@pytest.fixture
def untouched() -> Callable[[nn.Module], contextlib.AbstractContextManager[nn.Module]]:
    """A context manager that fails if the module given to it changes inside."""
    return untouched_module


@pytest.fixture
def assets() -> Path:
    """The folder with ``data`` and ``models``, or skip."""
    folder = os.environ.get("UNPERTURB_ASSETS")
    if not folder:
        pytest.skip("UNPERTURB_ASSETS is not set")
    return Path(folder)


def fill(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """Give every parameter values from a generator of its own; nothing global is drawn."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module


def _quietly(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module without drawing from the global generator."""
    with torch.random.fork_rng(devices=[]):
        return build()


def linear_net(
    *, classes: int = 2, channels: int = 1, side: int = 4, seed: int = 0, scale: float = 0.3
) -> nn.Module:
    """Flatten and one linear layer in eval mode, whose classes all meet at mid-grey."""
    size = channels * side * side
    net = _quietly(lambda: nn.Sequential(nn.Flatten(), nn.Linear(size, classes)))
    layer = fill(net, seed, scale)[1]  # type: ignore[index]
    with torch.no_grad():
        layer.bias.copy_(-0.5 * layer.weight.sum(1))
    return net.eval()


def conv_net(
    *, classes: int = 5, channels: int = 3, seed: int = 0, smooth: bool = False, scale: float = 0.3
) -> nn.Module:
    """Two convolutions with batch norm, pooling and a linear layer, in eval mode.

    The last bias levels the classes, so that answers differ between images and can be changed.
    """

    def build() -> nn.Module:
        act = nn.Tanh if smooth else nn.ReLU
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            act(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.BatchNorm2d(12),
            act(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, classes),
        )

    net = fill(_quietly(build), seed, scale).eval()
    with torch.no_grad():
        net[-1].bias -= net(some_images(64, channels)).mean(0)  # type: ignore[index]
    return net


def some_images(count: int, channels: int = 3, side: int = 8, seed: int = 1) -> Tensor:
    """Uniform pixels, away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(count, channels, side, side, generator=generator)


@pytest.fixture
def linear() -> Callable[..., nn.Module]:
    """Builder of linear models."""
    return linear_net


@pytest.fixture
def conv() -> Callable[..., nn.Module]:
    """Builder of small convolutional models."""
    return conv_net


@pytest.fixture
def pixels() -> Callable[..., Tensor]:
    """Builder of images away from the edges of [0, 1]."""
    return some_images


class Counted(nn.Module):
    """Counts the forward passes, and the images in them, of the module it holds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls: list[int] = []
        self.train(module.training)

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.module(images)  # type: ignore[no-any-return]


@pytest.fixture
def counted() -> type[Counted]:
    """A wrapper that counts forward passes."""
    return Counted


class SmallNet(nn.Module):
    """Three convolutions without batch norm: trains on digits in a second or two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(hidden.flatten(1))  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits, (1797, 1, 8, 8) in [0, 1], in a fixed random order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return pixels[order], torch.tensor(labels)[order]


@pytest.fixture(scope="session")
def digits_net(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """A net trained on the first 1,200 digits: about 97 % right on the others."""
    images, labels = digits[0][:1200], digits[1][:1200]
    net = fill(_quietly(SmallNet), seed=3, scale=0.1)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(5)
    for _ in range(8):
        for rows in torch.randperm(len(labels), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return net.eval().requires_grad_(True)
