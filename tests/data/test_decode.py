from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from unperturb.data.decode import Batch, Geometry, Payload, decode_images
from unperturb.errors import ConfigError, DataError


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(
    payloads: Sequence[Payload],
    *,
    channels: int | None = None,
    image_size: tuple[int, int] | None = None,
    skip_broken: bool = False,
) -> tuple[torch.Tensor, list[int]]:
    def batches() -> Iterator[Batch]:
        for start in range(0, len(payloads), 3):
            part = payloads[start : start + 3]
            yield range(start, start + len(part)), part

    return decode_images(
        len(payloads),
        batches,
        name=lambda position: f"image-{position}",
        geometry=Geometry(channels, image_size),
        skip_broken=skip_broken,
    )


def one(image: Image.Image, kind: str = "PNG", **options: object) -> torch.Tensor:
    return decode([encode(image, kind, **options)])[0][0]


def test_many_images_keep_their_order(make_picture: Callable[..., np.ndarray]) -> None:
    arrays = [make_picture(n) for n in range(200)]
    pixels, broken = decode([encode(Image.fromarray(array)) for array in arrays])
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))
    assert broken == []


def test_grey_stays_grey_unless_rgb_is_asked(make_picture: Callable[..., np.ndarray]) -> None:
    array = make_picture(1, channels=1)
    data = [encode(Image.fromarray(array))]
    assert torch.equal(decode(data)[0], torch.from_numpy(array)[None, None])
    assert torch.equal(
        decode(data, channels=3)[0], torch.from_numpy(array).expand(1, 3, *array.shape)
    )


@pytest.mark.parametrize("color_at", [0, 1, 150])
def test_one_color_image_makes_all_rgb(
    color_at: int, make_picture: Callable[..., np.ndarray]
) -> None:
    arrays = [make_picture(n, channels=3 if n == color_at else 1) for n in range(160)]
    pixels, _ = decode([encode(Image.fromarray(array)) for array in arrays])
    assert pixels.shape[1] == 3
    for array, got in zip(arrays, pixels, strict=True):
        want = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
        assert np.array_equal(got.permute(1, 2, 0).numpy(), want)


def test_grey_on_demand_is_luma(make_picture: Callable[..., np.ndarray]) -> None:
    array = make_picture(1)
    pixels, _ = decode([encode(Image.fromarray(array))], channels=1)
    luma = array @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels[0, 0].numpy() - luma).max() <= 0.51


def test_transparency_is_laid_over_white() -> None:
    array = np.zeros((1, 3, 4), dtype=np.uint8)
    array[..., 0] = 200
    array[0, :, 3] = [0, 51, 255]  # 0, a fifth, all of the color
    got = one(Image.fromarray(array, "RGBA"))
    assert got[:, 0, 0].tolist() == [255, 255, 255]
    assert np.allclose(got[:, 0, 1].numpy(), [244, 204, 204], atol=1)
    assert got[:, 0, 2].tolist() == [200, 0, 0]


def test_transparent_grey_stays_one_channel() -> None:
    array = np.array([[[10, 255], [10, 0]]], dtype=np.uint8)
    assert one(Image.fromarray(array, "LA")).tolist() == [[[10, 255]]]


def test_palettes_and_their_transparent_entry() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert one(image)[:, 0].T.tolist() == [[1, 2, 3], [200, 100, 50]]
    assert one(image, transparency=0)[:, 0].T.tolist() == [[255, 255, 255], [200, 100, 50]]


def test_bits_and_cmyk() -> None:
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert one(bits).tolist() == [[[0, 255]]]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = one(cmyk, "JPEG", quality=100)
    assert red.shape == (3, 8, 8)
    assert (red[0] > 200).all()
    assert (red[1:] < 60).all()


def test_exif_orientation_is_applied(make_picture: Callable[..., np.ndarray]) -> None:
    array = make_picture(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turn a quarter clockwise to see it
    got = one(Image.fromarray(array), exif=exif)
    assert np.array_equal(got.permute(1, 2, 0).numpy(), np.rot90(array, -1))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode([data])[0][0, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_refused(kind: str) -> None:
    image = Image.fromarray(np.full((2, 2), 40000, dtype=np.uint16))
    with pytest.raises(DataError, match=r"image-0 has more than 8 bits .*convert it to 8 bits"):
        one(image, kind)


def test_sixteen_bit_rgb_is_refused_even_with_skip_broken() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\x00" + bytes(6)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"more than 8 bits a channel \(mode RGB;16B\)"):
        decode([data], skip_broken=True)


def test_sizes_must_agree(make_picture: Callable[..., np.ndarray]) -> None:
    data = [encode(Image.fromarray(make_picture(n, size=(6, 5 + n)))) for n in range(2)]
    with pytest.raises(DataError) as caught:
        decode(data)
    text = str(caught.value)
    assert "image-0 is 6x5 (height x width) and image-1 is 6x6" in text
    assert "image_size=(6, 5)" in text


def test_image_size_covers_and_crops_the_center() -> None:
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 255  # the center, which alone must be left
    tall = wide.transpose(1, 0, 2).copy()
    pixels, _ = decode([encode(Image.fromarray(a)) for a in (wide, tall)], image_size=(4, 4))
    assert pixels.shape == (2, 3, 4, 4)
    assert (pixels == 255).all()


def test_image_size_is_pillows_antialiased_bicubic(make_picture: Callable[..., np.ndarray]) -> None:
    array = make_picture(5, size=(40, 30))
    pixels, _ = decode([encode(Image.fromarray(array))], image_size=(10, 15))
    resized = Image.fromarray(array).resize((15, 20), Image.Resampling.BICUBIC)
    want = np.asarray(resized)[5:15]
    assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), want)


def test_broken_image_is_named(make_picture: Callable[..., np.ndarray]) -> None:
    good = encode(Image.fromarray(make_picture(1, size=(40, 40))))
    for bad in (good[: len(good) // 2], b"no image", b"", None):
        with pytest.raises(DataError, match=r"Image image-1 cannot be read .*--skip-broken"):
            decode([good, bad])


def test_skipped_images_leave_no_hole(make_picture: Callable[..., np.ndarray]) -> None:
    arrays = [make_picture(n) for n in range(100)]
    data: list[Payload] = [encode(Image.fromarray(array)) for array in arrays]
    gone = [0, 1, 4, 70, 99]
    for position in gone:
        data[position] = b"broken"
    pixels, broken = decode(data, skip_broken=True)
    kept = np.stack([array for n, array in enumerate(arrays) if n not in gone])
    assert broken == gone
    assert torch.equal(pixels, torch.from_numpy(kept).permute(0, 3, 1, 2))


def test_nothing_readable_is_an_error() -> None:
    with pytest.raises(DataError, match="None of 2 images can be read, beginning with image-0"):
        decode([b"x", None], skip_broken=True)


def test_a_decompression_bomb_counts_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"image-0 cannot be read .*decompression bomb"):
            one(Image.new("RGB", (10, 10)))


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_channels_out_of_range(channels: int) -> None:
    with pytest.raises(ConfigError, match=rf"channels is {channels}.*1 \(grey\), 3 \(RGB\)"):
        Geometry(channels)


@pytest.mark.parametrize("size", [(0, 4), (4,), (4, 4, 4), (4, -1)])
def test_image_size_out_of_range(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"image_size is .*\(height, width\)"):
        Geometry(None, size)
