from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from unperturb.data import ImageSet
from unperturb.errors import DataError


def example() -> ImageSet:
    pixels = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2)
    return ImageSet(pixels, torch.tensor([0, 1, 0, 2]), tuple("abcd"), ("x", "y", "z"), "me", None)


def test_images_are_float_in_the_unit_interval() -> None:
    data = example()
    images = data.images()
    assert images.dtype == torch.float32
    assert torch.equal(images, data.pixels.double().div(255).float())
    full = replace(data, pixels=torch.full((4, 1, 1, 1), 255, dtype=torch.uint8))
    assert full.images().max() == 1.0


@pytest.mark.parametrize(
    "index", [slice(1, 3), [1, 2], torch.tensor([1, 2]), torch.tensor([False, True, True, False])]
)
def test_images_and_take_accept_every_index(index: slice | list[int] | torch.Tensor) -> None:
    data = example()
    part = data.take(index)
    assert torch.equal(data.images(index), data.images()[1:3])
    assert torch.equal(part.images(), data.images()[1:3])
    assert part.ids == ("b", "c")
    assert part.labels.tolist() == [1, 0]
    assert part.classes == data.classes


def test_images_do_not_write_to_the_pixels() -> None:
    data = example()
    before = data.pixels.clone()
    data.images().zero_()
    assert torch.equal(data.pixels, before)


def test_float_pixels_are_handed_out_as_they_are() -> None:
    data = replace(example(), pixels=torch.arange(16.0).view(4, 1, 2, 2) / 16)
    assert torch.equal(data.images([3]), data.pixels[3:])


def test_take_keeps_the_order_asked_for() -> None:
    assert example().take([3, 0]).ids == ("d", "a")
    assert example().take([-1]).ids == ("d",)


def test_take_refuses_rows_that_are_not_there() -> None:
    with pytest.raises(DataError, match=r"rows of 4 images.*row numbers from 0 to 3"):
        example().take([4])


def test_take_refuses_a_row_twice() -> None:
    with pytest.raises(DataError, match=r"1 ids .* the first, 'b', 2 times"):
        example().take([1, 1])


def test_fingerprint_is_the_digest_of_pixels_labels_and_ids() -> None:
    data = example()
    digest = hashlib.sha256(b"torch.uint8(4, 3, 2, 2);" + bytes(range(48)))
    digest.update(b"torch.int64(4,);")
    for label in (0, 1, 0, 2):
        digest.update(label.to_bytes(8, "little"))
    for name in "abcd":
        digest.update((1).to_bytes(8, "little") + name.encode())
    assert data.fingerprint() == digest.hexdigest()


def test_fingerprint_sees_every_part() -> None:
    data = example()
    pixels = data.pixels.clone()
    pixels[3, 2, 1, 1] += 1
    others = [
        replace(data, pixels=pixels),
        replace(data, pixels=data.pixels.reshape(4, 2, 3, 2)),
        replace(data, labels=torch.tensor([0, 1, 0, 1])),
        replace(data, ids=("a", "b", "c", "e")),
        data.take([1, 0, 2, 3]),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 6
    assert replace(data, source="elsewhere").fingerprint() == data.fingerprint()
    strided = data.pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert replace(data, pixels=strided).fingerprint() == data.fingerprint()


def test_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        example().split = "train"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(4, 2, 2)}, r"shape \(4, 2, 2\).*\(N, C, H, W\)"),
        ({"pixels": torch.zeros(4, 1, 2, 2).double()}, r"dtype torch.float64.*uint8 or float32"),
        ({"labels": torch.zeros(4)}, r"dtype torch.float32.*int64"),
        ({"labels": torch.tensor([0])}, "4 images, 1 labels and 4 ids"),
        ({"ids": ("a", "b", "a", "a")}, "the first, 'a', 3 times"),
    ],
)
def test_refuses_parts_that_do_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(example(), **change)  # type: ignore[arg-type]
