"""scikit-learn's handwritten digits: the embedded data set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["digits_arrays", "digits_rows"]

DIGITS_SPLITS = ("train", "test")
_TEST_PER_CLASS = 50


def digits_arrays() -> tuple[Tensor, Tensor]:
    """All 1,797 digits in scikit-learn's order.

    Returns:
        (1797, 1, 8, 8) ``float32`` pixels, the values 0..16 divided by 16, and (1797,) labels.
    """
    from sklearn.datasets import load_digits

    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    pixels = torch.from_numpy(images.reshape(-1, 1, 8, 8).astype(np.float32) / np.float32(16))
    return pixels, torch.from_numpy(labels.astype(np.int64))


def digits_rows(labels: Tensor, split: str) -> list[int]:
    """Row numbers of a split, ascending.

    ``test`` is 50 digits of each class (500), drawn once and for all: of each class those with the
    lowest values in the raw Philox stream of key 0, one value a row. ``train`` is the rest (1,297).
    NumPy promises that stream never to change.
    """
    values = np.random.Philox(key=0).random_raw(len(labels))
    numbers = labels.numpy()
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        rows = np.flatnonzero(numbers == digit)
        held_out[rows[np.argsort(values[rows])[:_TEST_PER_CLASS]]] = True
    rows = np.flatnonzero(held_out if split == "test" else ~held_out)
    return [int(row) for row in rows]
