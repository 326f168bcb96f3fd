"""Random transforms: the paper's equations by hand, exact covers, the same draws in any batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.purifiers.transforms import (
    TRANSFORMS,
    KeyedDraws,
    RandomTransform,
    corrupt,
    patch_masks,
    restore,
)
from unperturb.randomness import Keys

SIZES = [(32, 32), (8, 8), (64, 64), (28, 28), (33, 20), (30, 41), (224, 224)]


def draws(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> KeyedDraws:
    keys = Keys.of(seed, [str(i) for i in range(count)])
    return KeyedDraws(keys, torch.zeros((), dtype=dtype))


def network(masked: Tensor, mask: Tensor) -> Tensor:
    """Something that every pixel of both goes into, and its neighbors."""
    return F.avg_pool2d((3.0 * masked + mask).sin(), 9, 1, 4)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_rt1_is_equation_2(images: Tensor) -> None:
    found = restore(network, images, RandomTransform(name="rt1"), draws(5))
    (mask,) = found.corrupted.masks
    torch.testing.assert_close(found.images, network(mask * images, mask))
    assert found.corrupted.noisy is images


def test_rt2_is_equation_3(images: Tensor) -> None:
    given = draws(5)
    found = restore(network, images, RandomTransform(name="rt2", sigma=0.3), given)
    (mask,) = found.corrupted.masks
    eta = 0.3 * given.noise("noise", (3, 16, 16))
    torch.testing.assert_close(found.images, network(mask * (images + eta), mask))


@pytest.mark.parametrize("passes", [2, 4, 7])
def test_rt3_is_equation_4(images: Tensor, passes: int) -> None:
    given = draws(5)
    transform = RandomTransform(name="rt3", passes=passes)
    found = restore(network, images, transform, given)
    noisy = images + 0.25 * given.noise("noise", (3, 16, 16))
    expected = torch.zeros_like(images)
    for mask in patch_masks(transform, given, (16, 16), images):
        expected += (1 - mask) * network(mask * noisy, mask)
    torch.testing.assert_close(found.images, expected)
    assert len(found.passes) == passes


def test_rt3_takes_no_pixel_from_a_pass_that_saw_it(images: Tensor) -> None:
    """Against a slow loop over pixels, whose network writes its number into what it saw."""
    transform = RandomTransform(name="rt3", passes=4)
    number = iter(range(4))

    def numbered(masked: Tensor, mask: Tensor) -> Tensor:
        return torch.full_like(masked, float(next(number)))

    found = restore(numbered, images, transform, draws(5))
    for image in range(5):
        for row in range(16):
            for column in range(16):
                taken = found.images[image, :, row, column]
                mask = found.corrupted.masks[int(taken[0])]
                assert float(mask[image, 0, row, column]) == 0
                assert bool((taken == taken[0]).all())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("passes", [2, 3, 4, 5])
def test_covers_drop_every_pixel_exactly_once(size: tuple[int, int], passes: int) -> None:
    transform = RandomTransform(name="rt3", passes=passes)
    masks = patch_masks(transform, draws(3), size, torch.zeros(()))
    assert len(masks) == passes
    dropped = torch.stack([1 - mask for mask in masks])
    assert set(dropped.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(dropped.sum(0), torch.ones(3, 1, *size))
    # Covers of patches, of which no two differ by more than one.
    patch = transform.patch_of(size)
    corners = dropped[:, :, 0, ::patch, ::patch].flatten(2).sum(2)
    assert float(corners.max() - corners.min()) <= 1
    count = -(-size[0] // patch) * -(-size[1] // patch)
    assert corners.sum(0).tolist() == [count] * 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["rt1", "rt2"])
@pytest.mark.parametrize("rate", [0.01, 0.25, 0.99])
def test_every_image_drops_the_same_number_of_patches(
    size: tuple[int, int], name: str, rate: float
) -> None:
    transform = RandomTransform(name=name, rate=rate)
    (mask,) = patch_masks(transform, draws(64), size, torch.zeros(()))
    patch = transform.patch_of(size)
    grid = mask[:, 0, ::patch, ::patch]
    count = grid[0].numel()
    expected = min(max(round(rate * count), 1), count - 1)
    assert (1 - grid).flatten(1).sum(1).tolist() == [expected] * 64
    # Constant within a patch, cut off at the right and lower edge.
    wide = grid.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    assert torch.equal(mask[:, 0], wide[:, : size[0], : size[1]])
    assert len({tuple(row.flatten().tolist()) for row in grid}) > 20, "images share their masks"


def test_every_patch_is_dropped_equally_often() -> None:
    (mask,) = patch_masks(RandomTransform(name="rt1"), draws(4000), (8, 8), torch.zeros(()))
    rate = 1 - mask.mean(0)
    # Five standard errors of a share of 4,000.
    assert float((rate - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_the_noise_is_gaussian_and_the_same_for_all_passes(images: Tensor) -> None:
    many = images[:1].expand(200, -1, -1, -1)
    for name in ("rt2", "rt3"):
        noise = corrupt(many, RandomTransform(name=name, sigma=0.5), draws(200)).noisy - many
        assert float(noise.mean()) == pytest.approx(0, abs=0.005)
        assert float(noise.std()) == pytest.approx(0.5, rel=0.01)
        inside = (noise.abs() < 0.5).float().mean()
        assert float(inside) == pytest.approx(0.6827, abs=0.005)
    seen: list[Tensor] = []

    def watching(masked: Tensor, mask: Tensor) -> Tensor:
        seen.append(masked / mask)
        return masked

    restore(watching, images, RandomTransform(name="rt3"), draws(5))
    for one in seen[1:]:
        both = torch.isfinite(one) & torch.isfinite(seen[0]) & (one != 0) & (seen[0] != 0)
        assert torch.equal(one[both], seen[0][both])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_image_meets_the_same_draws_in_any_batch(images: Tensor, name: str) -> None:
    transform = RandomTransform(name=name)
    whole = restore(network, images, transform, draws(5)).images
    for rows in ([3], [4, 0], [2, 2, 1]):
        keys = draws(5).keys[torch.tensor(rows)]
        some = restore(network, images[rows], transform, KeyedDraws(keys, images)).images
        assert torch.equal(some, whole[rows])
    other = restore(network, images, transform, draws(5, seed=1)).images
    assert not torch.equal(other, whole)
    keys = draws(5).keys.draw(1)
    assert not torch.equal(
        restore(network, images, transform, KeyedDraws(keys, images)).images, whole
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_go_through(images: Tensor, name: str) -> None:
    leaf = images.double().requires_grad_()
    transform = RandomTransform(name=name, passes=3 if name == "rt3" else None)
    given = draws(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: restore(network, x, transform, given).images,
        leaf[..., :8, :8].detach().requires_grad_(),
    )


def test_nothing_is_clipped(images: Tensor) -> None:
    noisy = corrupt(images, RandomTransform(name="rt2", sigma=2.0), draws(5)).noisy
    assert float(noisy.min()) < -1
    assert float(noisy.max()) > 2


def test_defaults_are_the_papers() -> None:
    assert RandomTransform() == RandomTransform(name="rt2", rate=0.25, sigma=0.25)
    assert RandomTransform(name="rt3").passes == 4
    for side, patch in ((32, 4), (64, 8), (256, 32), (8, 1), (7, 1)):
        assert RandomTransform().patch_of((side, side)) == patch
    assert RandomTransform().patch_of((32, 64)) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "rt1", "sigma": 0.1}, ("sigma is 0.1 with the transform rt1", "rt2 or rt3")),
        ({"name": "rt3", "rate": 0.5}, ("rate is 0.5 with the transform rt3", "rt1 or rt2")),
        ({"name": "rt2", "passes": 4}, ("passes is 4 with the transform rt2", "use rt3")),
        ({"name": "rt3", "passes": 1}, ("passes is 1", "2 or more")),
        ({"rate": 1.0}, ("The missing rate is 1", "below 1")),
        ({"rate": 0.0}, ("The missing rate is 0", "above 0")),
        ({"sigma": float("nan")}, ("sigma is nan",)),
        ({"patch": 2.5}, ("The side of a patch is 2.5", "whole number")),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        RandomTransform(**settings)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_transform() -> None:
    with pytest.raises(SpecError, match="Unknown random transform 'rt4'.*one of rt1, rt2, rt3"):
        RandomTransform(name="rt4")


@pytest.mark.parametrize(
    ("transform", "size", "words"),
    [
        (RandomTransform(name="rt1", patch=32), (32, 32), ("32x32 have 1 patch of 32x32", "2 for")),
        (RandomTransform(name="rt3", patch=16), (16, 48), ("16x48 have 3 patches", "at least 4")),
    ],
)
def test_too_few_patches_are_refused_with_sizes(
    transform: RandomTransform, size: tuple[int, int], words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match="use a smaller patch") as caught:
        corrupt(torch.zeros(1, 3, *size), transform, draws(1))
    for word in words:
        assert word in str(caught.value)


def test_settings_of_another_transform_are_taken_over_where_they_are_read() -> None:
    trained = RandomTransform(name="rt2", patch=2, rate=0.5, sigma=0.1)
    assert RandomTransform(name="rt1").filled(trained) == RandomTransform(
        name="rt1", patch=2, rate=0.5
    )
    found = RandomTransform(name="rt3", sigma=0.3).filled(trained, sigma=0.3)
    assert found == RandomTransform(name="rt3", patch=2, sigma=0.3)
    assert RandomTransform(name="rt1").filled(RandomTransform(name="rt3")).rate == 0.25
    assert found.single() == RandomTransform(name="rt2", patch=2, rate=0.25, sigma=0.3)
    assert trained.single() is trained
    assert RandomTransform(**trained.to_dict()) == trained
    assert replace(trained, sigma=0.2).sigma == 0.2
