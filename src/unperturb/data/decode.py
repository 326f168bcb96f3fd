"""Encoded images -> one (N, C, H, W) uint8 tensor."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from unperturb.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image
    from PIL.Image import Image as Picture

__all__ = ["Batch", "Geometry", "Payload", "decode_images"]

Payload: TypeAlias = bytes | Path | None
"""An encoded image, the file that holds it, or nothing (which counts as broken)."""

Batch: TypeAlias = tuple[Sequence[int], Sequence[Payload]]
"""Positions in the result and the payloads that belong there."""

_CHUNK = 64
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N", "RGB;16")


@dataclass(frozen=True)
class Geometry:
    """What is done to every image so that all have one shape.

    Args:
        channels: 1, 3, or ``None``: grey if every image is grey, otherwise RGB.
        image_size: (height, width) in pixels to resize and center-crop to; ``None`` leaves images
            as they are and demands that all have one size.

    Raises:
        ConfigError: ``channels`` or ``image_size`` is out of range.
    """

    channels: int | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise ConfigError(
                f"channels is {self.channels!r}", expected="1 (grey), 3 (RGB) or None", fix="pass 3"
            )
        size = self.image_size
        if size is not None and (len(size) != 2 or any(int(n) != n or n < 1 for n in size)):
            raise ConfigError(
                f"image_size is {size!r}",
                expected="(height, width), whole numbers of at least 1",
                fix="pass for example (224, 224)",
            )

    def describe(self) -> list[str]:
        """What is done, in words for :attr:`ImageSet.source`."""
        words = []
        if self.image_size is not None:
            height, width = self.image_size
            words.append(f"resized to cover (bicubic) and center-cropped to {height}x{width}")
        if self.channels is not None:
            words.append("as RGB" if self.channels == 3 else "as grey (ITU-R 601 luma)")
        return words


class _BrokenError(Exception):
    """One image cannot be decoded; the argument says why."""


class _ColorInGreyError(Exception):
    """A color image turned up after the set was taken to be grey."""


def decode_images(
    count: int,
    batches: Callable[[], Iterator[Batch]],
    *,
    name: Callable[[int], str],
    geometry: Geometry,
    skip_broken: bool = False,
) -> tuple[Tensor, list[int]]:
    """Decode ``count`` images on all cores.

    RGBA, LA and palette images with transparency are laid over white; CMYK, YCbCr, LAB, HSV and
    palette images become RGB; 1-bit images become grey; of an animation the first frame is taken;
    EXIF orientation is applied. Images with more than 8 bits a channel are refused.

    Args:
        count: How many images the batches hold together.
        batches: Starts reading the batches, from the first again at every call.
        name: The name of the image at a position, for messages.
        geometry: Channels and size of the result.
        skip_broken: Leave broken images out instead of failing.

    Returns:
        (n, C, H, W) ``uint8`` pixels of the images that could be read, in order, and the positions
        of those that could not.

    Raises:
        DataError: An image is broken, has more than 8 bits a channel or another size than the
            first; or none can be read.
    """
    try:
        return _decode(count, batches, name, geometry, skip_broken)
    except _ColorInGreyError:
        return _decode(count, batches, name, replace(geometry, channels=3), skip_broken)


def _decode(
    count: int,
    batches: Callable[[], Iterator[Batch]],
    name: Callable[[int], str],
    geometry: Geometry,
    skip_broken: bool,
) -> tuple[Tensor, list[int]]:
    out: np.ndarray | None = None
    first = -1
    broken: list[int] = []

    def decode(position: int, payload: Payload) -> np.ndarray | None:
        try:
            return _pixels(payload, geometry, name, position)
        except _BrokenError as error:
            if skip_broken:
                return None
            raise DataError(
                f"Image {name(position)} cannot be read ({error})",
                expected="a complete image file",
                fix="replace or remove it, or leave broken images out with --skip-broken "
                "(skip_broken=True)",
            ) from error

    def store(chunk: Sequence[tuple[int, Payload]]) -> list[int]:
        assert out is not None
        failed = []
        for position, payload in chunk:
            pixels = decode(position, payload)
            if pixels is None:
                failed.append(position)
                continue
            if pixels.shape[1:] != out.shape[2:]:
                raise _other_size(name, first, out.shape[2:], position, pixels.shape[1:])
            if pixels.shape[0] == 3 and out.shape[1] == 1:
                raise _ColorInGreyError
            out[position] = pixels  # broadcasts grey to RGB
        return failed

    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        for positions, payloads in batches():
            todo = list(zip(positions, payloads, strict=True))
            while out is None and todo:
                position, payload = todo[0]
                pixels = decode(position, payload)
                if pixels is None:
                    broken.append(position)
                    todo.pop(0)
                    continue
                first = position
                out = np.empty((count, *pixels.shape), dtype=np.uint8)
            chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
            for failed in pool.map(store, chunks):
                broken.extend(failed)
    if out is None:
        raise DataError(
            f"None of {count} images can be read, beginning with {name(0)}",
            expected="at least one readable image",
            fix="check that the files are complete images",
        )
    broken.sort()
    if broken:
        out = np.delete(out, broken, axis=0)
    return torch.from_numpy(out), broken


def _other_size(
    name: Callable[[int], str],
    first: int,
    first_size: Sequence[int],
    other: int,
    other_size: Sequence[int],
) -> DataError:
    return DataError(
        f"Images differ in size: {name(first)} is {first_size[0]}x{first_size[1]} (height x width) "
        f"and {name(other)} is {other_size[0]}x{other_size[1]}",
        expected="one size for all images",
        fix="resize and center-crop them with an image size, for example "
        f"--image-size {first_size[0]}x{first_size[1]} or image_size=({first_size[0]}, "
        f"{first_size[1]})",
    )


def _cores() -> int:
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


def _pixels(
    payload: Payload, geometry: Geometry, name: Callable[[int], str], position: int
) -> np.ndarray:
    """One image as (C, H, W) uint8, C of 1 or 3."""
    from PIL import Image

    if payload is None:
        raise _BrokenError("it holds no bytes")
    try:
        with Image.open(io.BytesIO(payload) if isinstance(payload, bytes) else payload) as picture:
            deep = _deep(picture)
            if deep is None:
                picture.load()
                array = np.asarray(_shaped(_eight_bit(_upright(picture)), geometry))
    except (
        OSError,
        SyntaxError,  # Pillow's word for a broken PNG
        ValueError,
        EOFError,
        IndexError,
        TypeError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        reason = str(error)
        if isinstance(payload, bytes):  # the address of a buffer tells nobody anything
            reason = reason.split(" <_io.")[0]
        raise _BrokenError(reason or type(error).__name__) from error
    if deep is not None:
        raise DataError(
            f"Image {name(position)} has more than 8 bits a channel (mode {deep})",
            expected="8 bits a channel",
            fix="convert it to 8 bits with a scaling you choose",
        )
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if geometry.channels == 3 and array.shape[0] == 1:
        array = np.broadcast_to(array, (3, *array.shape[1:]))
    return array


def _deep(picture: Picture) -> str | None:
    """The mode of an image with more than 8 bits a channel."""
    if picture.mode in _DEEP:
        return picture.mode
    if picture.format in ("PNG", "TIFF", "PPM"):
        # Pillow quietly drops the low byte of 16-bit RGB; only the raw mode still shows it.
        for tile in getattr(picture, "tile", ()):
            arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
            for word in arguments:
                if isinstance(word, str) and ";16" in word:
                    return word
    return None


def _upright(picture: Picture) -> Picture:
    if "exif" in picture.info or picture.format == "TIFF":
        from PIL import ImageOps

        return ImageOps.exif_transpose(picture)
    return picture


def _eight_bit(picture: Picture) -> Image.Image:
    """Mode L or RGB."""
    mode = picture.mode
    if mode in ("L", "RGB") and "transparency" not in picture.info:
        return picture
    if mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        from PIL import Image

        grey = mode in ("LA", "L", "1")
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("L" if grey else "RGB")
    return picture.convert("L" if mode == "1" else "RGB")


def _shaped(picture: Image.Image, geometry: Geometry) -> Image.Image:
    from PIL import Image

    if geometry.channels == 1 and picture.mode != "L":
        picture = picture.convert("L")
    if geometry.image_size is None:
        return picture
    height, width = geometry.image_size
    if picture.size == (width, height):
        return picture
    scale = max(height / picture.height, width / picture.width)
    size = (
        max(width, round(picture.width * scale)),
        max(height, round(picture.height * scale)),
    )
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))
