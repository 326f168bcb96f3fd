from __future__ import annotations

import pytest
import torch

from unperturb.data import ImageSet, random_crops
from unperturb.data.crops import image_of
from unperturb.errors import ConfigError


def ramp(
    count: int = 3, height: int = 24, width: int = 32, kind: torch.dtype = torch.uint8
) -> ImageSet:
    """Pixel (y, x) of channel 0 is y, of channel 1 is x, of channel 2 the image's number."""
    y = torch.arange(height)[:, None].expand(height, width)
    x = torch.arange(width)[None].expand(height, width)
    pixels = torch.stack(
        [torch.stack([4 * y, 4 * x, torch.full_like(x, 50 * n)]) for n in range(count)]
    ).to(kind)
    if kind == torch.float32:
        pixels /= 255
    labels = torch.arange(count)
    ids = tuple(f"image {n}" for n in range(count))
    return ImageSet(pixels, labels, ids, tuple("abcdefg"[:count]), "ramps", "train")


def test_crops_are_parts_of_their_images() -> None:
    data = ramp()
    crops = random_crops(data, 40)
    assert crops.pixels.shape == (120, 3, 24, 32)
    assert crops.labels.tolist() == [n for n in range(3) for _ in range(40)]
    assert crops.ids[:2] == ("image 0#crop-0", "image 0#crop-1")
    assert [image_of(name) for name in crops.ids] == [n for n in data.ids for _ in range(40)]
    assert "40 random crops" in crops.source
    assert crops.split == "train"
    numbers = crops.pixels[:, 2].flatten(1)
    assert torch.equal(numbers.amin(1), numbers.amax(1)), "of one image"
    assert torch.equal(numbers[:, 0], 50 * crops.labels.to(torch.uint8))
    # A crop of a ramp is a ramp: linear, less steep by its size, and mirrored half of the time.
    across = crops.pixels[:, 1, 12].float()
    slope = (across[:, 24] - across[:, 8]) / 16 / 4
    assert 0.35 < float((slope < 0).float().mean()) < 0.65
    down = crops.pixels[:, 0, :, 16].float()
    steep = (down[:, 18] - down[:, 6]) / 12 / 4
    area = slope.abs() * steep
    assert 0.2 < float(area.min()) < 0.32
    assert 0.85 < float(area.max()) < 1.05
    assert bool((down.diff(dim=1) >= 0).all())
    assert float((steep / slope.abs()).max()) < 1.45
    assert float((steep / slope.abs()).min()) > 1 / 1.45


def test_a_crop_of_the_whole_image_is_the_image() -> None:
    data = ramp(kind=torch.float32)
    crops = random_crops(data, 30, area=(1.0, 1.0))
    # Where the aspect ratio is other than 1 a side would be too long, and is cut.
    upright = [crop for crop in crops.pixels[:30] if bool((crop == data.pixels[0]).all())]
    mirrored = [crop for crop in crops.pixels[:30] if bool((crop == data.pixels[0].flip(2)).all())]
    assert len(crops.pixels) == 90
    assert all(float(crop.min()) >= 0 and float(crop.max()) <= 1 for crop in crops.pixels)
    assert len(upright) + len(mirrored) >= 1


def test_a_crop_hangs_on_its_image_number_and_seed_alone() -> None:
    data = ramp(5)
    crops = random_crops(data, 4)
    some = random_crops(data.take([3, 1]), 4)
    assert torch.equal(some.pixels, torch.cat([crops.pixels[12:16], crops.pixels[4:8]]))
    assert torch.equal(random_crops(data, 2).pixels[2:4], crops.pixels[4:6])
    assert not torch.equal(random_crops(data, 4, seed=1).pixels, crops.pixels)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None])
def test_crops_that_are_no_number_are_refused(count: object) -> None:
    with pytest.raises(ConfigError, match="crops is"):
        random_crops(ramp(), count)  # type: ignore[arg-type]


@pytest.mark.parametrize("area", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.5)])
def test_areas_out_of_range_are_refused(area: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="area of a crop"):
        random_crops(ramp(), 1, area=area)
