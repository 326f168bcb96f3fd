"""Fillings without learning, held-out errors and sample panels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.interpolate import griddata
from torch import Tensor

from unperturb.errors import OutputError
from unperturb.purifiers.transforms import TRANSFORMS, KeyedDraws, RandomTransform, corrupt
from unperturb.randomness import Keys
from unperturb.restoration.fills import bilinear_fill, mean_fill
from unperturb.restoration.heldout import restoration_errors
from unperturb.restoration.panels import sample_panel, save_panel


def keys(count: int) -> Keys:
    return Keys.of(0, [str(i) for i in range(count)])


def smooth(count: int, side: int = 16) -> Tensor:
    """Images of soft blobs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)


def natural(count: int) -> Tensor:
    """Noise whose amplitude falls with frequency, as that of photographs does."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.fft.rfft2(torch.randn(count, 3, 32, 32, generator=generator))
    rows, columns = torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)[None]
    waves = waves / (rows.square() + columns.square()).sqrt().clamp(min=1 / 32)
    made = torch.fft.irfft2(waves)
    return (0.5 + 0.2 * made / made.std()).clamp(0, 1)


def test_the_mean_is_that_of_visible_pixels() -> None:
    images = smooth(3)
    (mask,) = corrupt(images, RandomTransform(name="rt1"), KeyedDraws(keys(3), images)).masks
    found = mean_fill(mask * images, mask)
    for image, kept, made in zip(images, mask, found, strict=True):
        for channel in range(3):
            mean = image[channel][kept[0] > 0].mean()
            holes = made[channel][kept[0] == 0]
            torch.testing.assert_close(holes, mean.expand_as(holes))
    assert torch.equal(mask * found, mask * images)


def test_bilinear_filling_follows_planes_in_row_and_column() -> None:
    """A plane's rows and columns are lines; holes inside are filled exactly."""
    rows, columns = torch.arange(12.0)[:, None], torch.arange(12.0)[None]
    plane = (0.02 * rows + 0.03 * columns).view(1, 1, 12, 12)
    mask = torch.ones_like(plane)
    mask[..., 4:7, 5:9] = 0
    torch.testing.assert_close(bilinear_fill(mask * plane, mask), plane)
    # At the edge only one side is visible, and lends its value.
    mask = torch.ones_like(plane)
    mask[..., :, 0] = 0
    torch.testing.assert_close(bilinear_fill(mask * plane, mask)[..., 0], plane[..., 1])
    # Where row and column are empty, the mean.
    mask = torch.zeros_like(plane)
    mask[..., 0, 0] = 1
    assert float(bilinear_fill(mask * plane, mask)[..., 5, 5]) == 0
    assert torch.equal(bilinear_fill(plane, torch.ones_like(plane)), plane)


def test_bilinear_filling_is_as_good_as_interpolation_over_triangles() -> None:
    """It must be no straw man: as near as SciPy's piecewise linear interpolation."""
    images = natural(12)
    (mask,) = corrupt(images, RandomTransform(name="rt1"), KeyedDraws(keys(12), images)).masks
    ours = bilinear_fill(mask * images, mask)
    theirs = images.clone()
    grid = torch.cartesian_prod(torch.arange(32), torch.arange(32)).view(32, 32, 2)
    for image, kept, made in zip(images, mask, theirs, strict=True):
        seen = kept[0] > 0
        for channel in range(3):
            given = (grid[seen].numpy(), image[channel][seen].numpy(), grid[~seen].numpy())
            lined = torch.from_numpy(griddata(*given, method="linear")).float()
            near = torch.from_numpy(griddata(*given, method="nearest")).float()
            made[channel][~seen] = torch.where(lined.isnan(), near, lined)
    holes = 1 - mask
    errors = [float(((made - images).abs() * holes).sum()) for made in (ours, theirs)]
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_errors_are_means_over_dropped_pixels(name: str) -> None:
    images = smooth(10)
    transform = RandomTransform(name=name)

    def network(masked: Tensor, mask: Tensor) -> Tensor:
        return masked + 0.3 * (1 - mask) + 0.1

    found = restoration_errors(network, images, transform, keys(10), batch_size=4)
    given = corrupt(images, transform, KeyedDraws(keys(10), images))
    if name == "rt3":
        errors = [torch.full_like(images, 0.4) - images]
        assert "visible_l1" not in found
    else:
        (mask,) = given.masks
        holes = (1 - mask).expand_as(images) > 0
        errors = [(0.4 - images)[holes]]
        kept = (given.noisy + 0.1 - images)[~holes]
        assert found["visible_l1"] == pytest.approx(float(kept.abs().mean()), rel=1e-4)
    assert found["masked_l1"] == pytest.approx(float(errors[0].abs().mean()), rel=1e-4)
    root = math.sqrt(float(errors[0].square().mean()))
    assert found["masked_rmse"] == pytest.approx(root, rel=1e-4)
    for fill in ("mean", "bilinear"):
        assert 0 < found[f"{fill}_l1"] < found[f"{fill}_rmse"]
    if name == "rt1":
        assert found["bilinear_l1"] < found["mean_l1"]
    again = restoration_errors(network, images, transform, keys(10), batch_size=10)
    assert found == pytest.approx(again)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_panel_shows_original_masked_and_restored(channels: int, tmp_path: Path) -> None:
    images = smooth(3)[:, :channels]
    transform = RandomTransform(name="rt1")

    class Grey(torch.nn.Module):
        def forward(self, masked: Tensor, mask: Tensor) -> Tensor:
            return torch.full_like(masked, 7.0)

    sheet = sample_panel(Grey(), images, transform, keys(3))
    assert sheet.shape == (3, 3 * 98 - 2, 3 * 98 - 2)
    first = sheet[:, :96, :96].view(3, 16, 6, 16, 6)[:, :, 0, :, 0]
    torch.testing.assert_close(first, images[0].expand(3, -1, -1))
    (mask,) = corrupt(images, transform, KeyedDraws(keys(3), images)).masks
    second = sheet[:, 98:194, 98:194].view(3, 16, 6, 16, 6)[:, :, 0, :, 0]
    torch.testing.assert_close(second, (mask * images)[1].expand(3, -1, -1))
    assert bool((sheet[:, 196:, 196:] == 1).all())
    save_panel(sheet, tmp_path / "a" / "panel.png")
    with Image.open(tmp_path / "a" / "panel.png") as picture:
        assert picture.size == (292, 292)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        save_panel(sheet, tmp_path / "file" / "panel.png")
