"""Each wrong input has a message that names the value, the expectation and the fix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unperturb.checks import check_images, check_labels
from unperturb.errors import ConfigError, InputError


def _nan() -> torch.Tensor:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[2, 1, 3, 3] = float("nan")
    images[3, 0, 0, 0] = float("inf")
    return images


GOOD = torch.full((2, 3, 8, 8), 0.5)

CASES = {
    "0-255": (GOOD * 400 + 55, None, "pixels from 255 to 255", "images / 255"),
    "a little too bright": (GOOD + 0.5 + 1e-6, None, "to 1.000001", "clip"),
    "normalized": (GOOD - 1.5, None, "pixels from -1 to -1", "undo the normalization"),
    "uint8": ((GOOD * 255).byte(), None, "dtype uint8", r"images.float() / 255"),
    "int64": (GOOD.long(), None, "dtype int64", "float pixels"),
    "bool": (GOOD > 0, None, "dtype bool", "float pixels"),
    "NaN": (
        _nan(),
        None,
        "2 of 4 images hold NaN or infinite pixels (the first is image 2)",
        "rem",
    ),
    "rank 3": (GOOD[0], None, "rank 3 and shape (3, 8, 8)", "images.unsqueeze(0)"),
    "rank 2": (GOOD[0, 0], None, "rank 2", "rank 4: (N, C, H, W)"),
    "channels last": (GOOD.permute(0, 2, 3, 1), 3, "8 channels", "images.permute(0, 3, 1, 2)"),
    "grey for color": (GOOD[:, :1], 3, "Images have 1 channel.", "expand(-1, 3, -1, -1)"),
    "color for grey": (GOOD, 1, "3 channels", "1 channel."),
    "no image": (GOOD[:0], None, "no image: the shape is (0, 3, 8, 8)", "not empty"),
    "no pixel": (GOOD[:, :, :0], None, "no image: the shape is (2, 3, 0, 8)", "not empty"),
    "an array": (np.zeros((2, 3, 8, 8)), None, "are a ndarray", "torch.as_tensor"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_images(name: str) -> None:
    images, channels, problem, fix = CASES[name]
    with pytest.raises(InputError) as caught:
        check_images(images, channels=channels)  # type: ignore[arg-type]
    assert problem in str(caught.value)
    assert fix in str(caught.value)
    assert "Expected: " in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_right_images(dtype: torch.dtype) -> None:
    check_images(GOOD.to(dtype))
    check_images(GOOD.to(dtype), channels=3)
    check_images(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).to(dtype), channels=1)
    check_images(GOOD.to(dtype).requires_grad_())


def test_right_images_under_inference_mode() -> None:
    with torch.inference_mode():
        check_images(GOOD.clone())


LABELS = {
    "too great": (torch.tensor([0, 3, 10, 11]), "2 of 4 labels", "the first is 10, at position 2"),
    "negative": (torch.tensor([0, -1, 2, 3]), "1 of 4 labels", "the first is -1, at position 1"),
    "floating": (torch.zeros(4), "Labels are of dtype float32", "labels.long()"),
    "bool": (torch.zeros(4, dtype=torch.bool), "Labels are of dtype bool", "labels.long()"),
    "a list": ([0, 1, 2, 3], "Labels are a list", "labels.long()"),
    "one-hot": (torch.eye(4).long(), "shape (4, 4)", "class indices, not one-hot"),
    "too few": (torch.zeros(3).long(), "shape (3,)", "(4,): one label for each image"),
}


@pytest.mark.parametrize("name", LABELS)
def test_wrong_labels(name: str) -> None:
    labels, problem, more = LABELS[name]
    with pytest.raises(InputError) as caught:
        check_labels(labels, count=4, num_classes=10)  # type: ignore[arg-type]
    assert problem in str(caught.value)
    assert more in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_right_labels(dtype: torch.dtype) -> None:
    check_labels(torch.tensor([0, 9]).to(dtype), count=2, num_classes=10)


def test_a_device_that_is_not_there_is_refused_before_any_work() -> None:
    from unperturb import Linf, audit

    images, labels = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    with torch.random.fork_rng():
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    with pytest.raises(ConfigError, match="The device 'gpu' cannot be used.*--device cpu"):
        audit(net, images, labels, threat=Linf(0.1), device="gpu")
