"""Published weights on real images: each file loads and is about as accurate as published."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unperturb.classifiers import load_classifier

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("UNPERTURB_ASSETS" not in os.environ, reason="UNPERTURB_ASSETS is not set"),
]


def rows(folder: str, count: int) -> list[tuple[Tensor, int]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    import numpy as np

    path = Path(os.environ["UNPERTURB_ASSETS"], "data", folder, "test-00000-of-00001.parquet")
    batch = next(parquet.ParquetFile(path).iter_batches(count, columns=["image", "label"]))
    found = []
    for row in batch.to_pylist():
        pixels = np.array(image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        found.append((torch.tensor(pixels).permute(2, 0, 1).float() / 255, row["label"]))
    return found


@pytest.fixture(scope="module")
def cifar() -> tuple[Tensor, Tensor]:
    found = rows("cifar10", 500)
    return torch.stack([x for x, _ in found]), torch.tensor([y for _, y in found])


@pytest.mark.parametrize(
    ("arch", "published"),
    [
        ("cifar-resnet20", 0.917),
        ("cifar-resnet32", 0.926),
        ("cifar-resnet44", 0.930),
        ("cifar-resnet56", 0.934),
        ("cifar-robust-resnet-2b", 0.718),
        ("cifar-robust-resnet-4b", 0.789),
        ("cifar-robust-cnn-wide", 0.631),
        ("cifar-robust-cnn-deep", 0.580),
    ],
)
def test_cifar10_weights(cifar: tuple[Tensor, Tensor], arch: str, published: float) -> None:
    name = arch.replace("cifar-", "cifar10-")
    path = Path(os.environ["UNPERTURB_ASSETS"], "models", f"{name}.safetensors")
    classifier = load_classifier(f"{arch}@{path}")
    images, labels = cifar
    classifier.check(images)
    with torch.no_grad():
        accuracy = (classifier(images).argmax(1) == labels).float().mean().item()
    # Three standard errors of 500 draws.
    assert abs(accuracy - published) <= 3 * (published * (1 - published) / 500) ** 0.5


def test_squeezenet() -> None:
    path = Path(os.environ["UNPERTURB_ASSETS"], "models", "imagenet-squeezenet1_0.safetensors")
    classifier = load_classifier(f"squeezenet1_0@{path}")
    assert classifier.num_classes == 1000
    with torch.no_grad():
        right = sum(int(classifier(x[None]).argmax()) == y for x, y in rows("imagenet-samples", 50))
    assert right > 0.45 * 50
