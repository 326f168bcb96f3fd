"""The restoration purifier: mask and noise are never off, gradients exact, wrong use refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.attacks import Surface, make_attack
from unperturb.defense import Defense
from unperturb.errors import ConfigError, InputError, SpecError, UnperturbError, WeightsError
from unperturb.networks.restorers import build_restorer
from unperturb.presets import atop, make_preset
from unperturb.purifiers import Restoration
from unperturb.purifiers.transforms import TRANSFORMS, KeyedDraws, RandomTransform
from unperturb.randomness import Keys
from unperturb.restoration import RestorationNet, load_restoration, save_restoration
from unperturb.threat import Linf

SMALL: dict[str, dict[str, Any]] = {
    "inpainting-gan": {"width": 4, "coarse_width": 2},
    "masked-autoencoder": {
        "token": 1, "width": 8, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1,
    },
}  # fmt: skip


def keys(count: int, seed: int = 0) -> Keys:
    return Keys.of(seed, [str(i) for i in range(count)])


def purifier(kind: str = "inpainting-gan", **options: Any) -> Restoration:
    return Restoration(network=kind, options=SMALL[kind], **options)


def watched(defense: Defense) -> list[tuple[Tensor, Tensor]]:
    """What the network is shown from now on: masked images and masks."""
    seen: list[tuple[Tensor, Tensor]] = []
    defense.purifier.network.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda module, given: seen.append((given[0].detach(), given[1].detach()))
    )
    return seen


# -- mask and noise are on ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_image_ever_goes_unmasked_or_without_noise(
    kind: str, name: str, conv: Any, pixels: Any
) -> None:
    """Whatever is called, in whatever mode and batch: every image has its holes and its noise."""
    defense = Defense(conv(), purifier=purifier(kind, transform=name))
    seen = watched(defense)
    images, labels = pixels(9), torch.arange(9) % 5
    defense(images)
    defense(images[:1])
    defense(images, keys=keys(9))
    defense.train()(images)
    defense.eval()(images)
    with torch.inference_mode():
        defense(images)
    defense.predict(images, batch_size=2)
    defense.predict(images, keys=keys(9), batch_size=4)
    for rule in defense.backwards:
        leaf = images.clone().requires_grad_()
        defense.terms(leaf, keys=keys(9), backward=rule).scores.sum().backward()
    surface = Surface(defense)
    surface.judge(images, labels, keys(9))
    attack = make_attack("pgd-2", draws=3)
    attack.run(surface, images, labels, threat=Linf(0.03), keys=keys(9))
    assert len(seen) > 10
    for masked, mask in seen:
        dropped = 1 - mask
        assert bool((dropped.flatten(1).sum(1) > 0).all()), "an image went unmasked"
        assert bool((mask.flatten(1).sum(1) > 0).all()), "an image went wholly masked"
        assert not bool((masked * dropped).any()), "a dropped pixel was shown"
        share = dropped.flatten(1).mean(1)
        torch.testing.assert_close(share, torch.full_like(share, 0.25))
    # What is shown of an image is never the image itself, unless the transform has no noise.
    seen.clear()
    defense.predict(images, batch_size=4)
    if name == "rt1":
        images_seen = torch.cat([masked for masked, _ in seen])
        masks = torch.cat([mask for _, mask in seen])
        torch.testing.assert_close(images_seen, masks * images)
        return
    passes = 4 if name == "rt3" else 1
    parts = [seen[i : i + passes] for i in range(0, len(seen), passes)]
    noise = []
    for part, given in zip(parts, images.split(4), strict=True):
        for masked, mask in part:
            for one, image, kept in zip(masked, given, mask, strict=True):
                changed = (one - image)[kept.expand_as(image) > 0]
                assert float(changed.abs().mean()) > 0.1, "an image went without noise"
                noise.append(changed)
    # Of all images together: these draws are not seeded, and the 144 values of one image spread.
    assert float(torch.cat(noise).std()) == pytest.approx(0.25, rel=0.15)


def test_a_deployed_defense_draws_afresh(conv: Any, pixels: Any) -> None:
    defense = Defense(conv(), purifier=purifier())
    assert defense.stochastic
    images = pixels(3)
    assert not torch.equal(defense(images), defense(images))
    assert torch.equal(defense(images, keys=keys(3)), defense(images, keys=keys(3)))
    assert not torch.equal(defense(images, keys=keys(3)), defense(images, keys=keys(3).draw(1)))


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_equal_keys_show_the_network_equal_images_however_they_are_batched(
    kind: str, name: str, conv: Any, pixels: Any
) -> None:
    defense = Defense(conv(), purifier=purifier(kind, transform=name))
    images, passes = pixels(7), 4 if name == "rt3" else 1

    def shown(size: int) -> tuple[Tensor, Tensor, Tensor]:
        seen = watched(defense)
        scores = defense.predict(images, keys=keys(7), batch_size=size).scores
        steps = [seen[i : i + passes] for i in range(0, len(seen), passes)]
        masked, mask = (
            torch.cat([torch.stack([one[part] for one in step], 1) for step in steps])
            for part in (0, 1)
        )
        return masked, mask, scores

    whole = shown(7)
    for size in (1, 3, 6):
        masked, mask, scores = shown(size)
        assert torch.equal(masked, whole[0])
        assert torch.equal(mask, whole[1])
        torch.testing.assert_close(scores, whole[2], rtol=1e-4, atol=1e-5)
    order = torch.tensor([4, 0, 6])
    part = defense(images[order], keys=keys(7)[order])
    torch.testing.assert_close(part, whole[2][order], rtol=1e-4, atol=1e-5)


# -- values and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_reading_is_the_equation(kind: str, name: str, conv: Any, pixels: Any) -> None:
    net, images, part = conv(), pixels(4), purifier(kind, transform=name)
    defense = Defense(net, purifier=part)
    found = defense.predict(images, keys=keys(4))
    made = part.restored(images, KeyedDraws(keys(4), images))
    noisy, masks = made.corrupted
    if name == "rt3":
        expected = sum((1 - m) * part.network(m * noisy, m) for m in masks)
    else:
        expected = part.network(masks[0] * noisy, masks[0])
    assert isinstance(expected, Tensor)
    assert found.purified is not None
    torch.testing.assert_close(found.purified, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.scores, net(expected).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_exact_and_identity_gradients(kind: str, name: str, conv: Any, pixels: Any) -> None:
    """Exact by central differences of the whole; identity is the gradient at the reading."""
    net, images = conv(smooth=True).double(), pixels(3).double()
    defense = Defense(net, purifier=purifier(kind, transform=name).double())
    labels = torch.tensor([0, 1, 2])

    def loss(x: Tensor, rule: str = "exact") -> Tensor:
        scores = defense.terms(x, keys=keys(3), backward=rule).scores
        return F.cross_entropy(scores, labels, reduction="sum")

    leaf = images.clone().requires_grad_()
    (exact,) = torch.autograd.grad(loss(leaf), leaf)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        way = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            slope = (loss(images + 1e-6 * way) - loss(images - 1e-6 * way)) / 2e-6
        assert float(slope) == pytest.approx(float((exact * way).sum()), rel=1e-4, abs=1e-8)
    leaf = images.clone().requires_grad_()
    (identity,) = torch.autograd.grad(loss(leaf, "identity"), leaf)
    reading = defense.predict(images, keys=keys(3)).purified
    assert reading is not None
    reading = reading.clone().requires_grad_()
    total = F.cross_entropy(net(reading), labels, reduction="sum")
    torch.testing.assert_close(identity, torch.autograd.grad(total, reading)[0])
    assert not torch.allclose(identity, exact)


def test_attacks_change_no_weight_and_leave_no_gradient(
    conv: Any, pixels: Any, untouched: Any
) -> None:
    part = purifier()
    defense = Defense(conv(), purifier=part)
    with untouched(part):
        make_attack("pgd-2", draws=2).run(
            Surface(defense), pixels(2), torch.tensor([0, 1]), threat=Linf(0.03), keys=keys(2)
        )


def test_clipping(conv: Any, pixels: Any) -> None:
    images = pixels(4)
    free = Defense(conv(), purifier=purifier(sigma=3.0)).predict(images, keys=keys(4)).purified
    clipped = Defense(conv(), purifier=purifier(sigma=3.0, clip=True))
    found = clipped.predict(images, keys=keys(4)).purified
    assert free is not None
    assert found is not None
    assert float(free.min()) < 0 or float(free.max()) > 1
    torch.testing.assert_close(found, free.clamp(0, 1))


# -- folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = build_restorer("inpainting-gan", seed=3, **SMALL["inpainting-gan"])
    transform = RandomTransform(name="rt2", sigma=0.1, patch=2)
    made = RestorationNet("inpainting-gan", network, (3, 8, 8), transform)
    return save_restoration(made, tmp_path / "gan")


def test_a_folder_comes_back_equal(folder: Path, conv: Any, pixels: Any, tmp_path: Path) -> None:
    defense = atop(conv(), purifier=folder)
    part = defense.purifier
    assert isinstance(part, Restoration)
    assert part.transform == RandomTransform(name="rt2", sigma=0.1, patch=2)
    assert part.image_shape == (3, 8, 8)
    expected = load_restoration(folder).network.state_dict()
    for name, value in part.network.state_dict().items():
        assert torch.equal(value, expected[name])
    assert atop(conv(), purifier=folder).fingerprint() == defense.fingerprint()
    assert make_preset("atop", conv(), purifier=str(folder)).fingerprint() == defense.fingerprint()
    fresh = Defense(conv(), purifier=Restoration(**part.config()))
    assert fresh.fingerprint() != defense.fingerprint(), "weights are not in the fingerprint"


def test_a_saved_defense_comes_back_equal(folder: Path, pixels: Any, tmp_path: Path) -> None:
    from unperturb.classifiers import new_classifier

    defense = atop(new_classifier("cifar-resnet20"), purifier=folder, transform="rt3", passes=3)
    defense.save_pretrained(tmp_path / "saved")
    found = Defense.from_pretrained(tmp_path / "saved")
    assert found.fingerprint() == defense.fingerprint()
    assert torch.equal(found(pixels(2), keys=keys(2)), defense(pixels(2), keys=keys(2)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"transform": "rt1"}, RandomTransform(name="rt1", patch=2)),
        ({"transform": "rt3"}, RandomTransform(name="rt3", patch=2, sigma=0.1)),
        ({"sigma": 0.2, "patch": 1}, RandomTransform(name="rt2", patch=1, sigma=0.2)),
        ({"rate": 0.5}, RandomTransform(name="rt2", patch=2, sigma=0.1, rate=0.5)),
    ],
)
def test_settings_of_the_folder_give_way(
    folder: Path, options: dict[str, Any], expected: RandomTransform
) -> None:
    assert Restoration.from_folder(folder, **options).transform == expected


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 16, 16), ("3 channels and are 16x16", "3 channels and 8x8", "resize them to 8x8")),
        ((1, 8, 8), ("1 channels", "3 channels and 8x8")),
    ],
)
def test_another_size_is_refused(folder: Path, shape: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        atop(nn.Flatten(), purifier=folder)(torch.full((2, *shape), 0.5))
    for word in words:
        assert word in str(caught.value)


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**config, **values}.items() if v != "none"}))


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"pixel_range": [-1.0, 1.0]}, ConfigError, ("pixels in [-1.0, 1.0]", "pixels in [0, 1]")),
        ({"format": "other"}, SpecError, ("format 'other'", "fit atop")),
        ({"schema_version": 9}, ConfigError, ("schema version 9", "schema version 1")),
        ({"network": "unet"}, SpecError, ("Unknown restoration network 'unet'",)),
        ({"image_shape": "none"}, ConfigError, ("is damaged", "image_shape")),
        ({"image_shape": [3, 8]}, ConfigError, ("is damaged",)),
        ({"transform": {"name": "rt9"}}, SpecError, ("'rt9'",)),
        ({"options": {"wide": 3}}, ConfigError, ("do not fit 'inpainting-gan'",)),
        ({"options": {"width": 8}}, WeightsError, ("do not fit the network",)),
        ({"weights_sha256": "0" * 64}, WeightsError, ("SHA-256", "000000000000")),
    ],
)
def test_a_damaged_folder_is_refused(
    folder: Path, values: dict[str, Any], kind: type[UnperturbError], words: tuple[str, ...]
) -> None:
    change(folder, **values)
    with pytest.raises(kind) as caught:
        Restoration.from_folder(folder)
    for word in words:
        assert word in str(caught.value)


def test_no_folder(tmp_path: Path, folder: Path, conv: Any) -> None:
    with pytest.raises(SpecError, match="no restoration network in.*did you mean.*gan"):
        atop(conv(), purifier=tmp_path / "gam")
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        atop(conv(), purifier=folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="fit gan, fit mae or fit atop makes one"):
        atop(conv(), purifier=tmp_path / "empty")


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"format": "unperturb-classifier"}')
    with pytest.raises(UnperturbError, match="of something else"):
        save_restoration(load_restoration(folder), tmp_path / "other")


def test_a_token_that_the_patch_does_not_fit(conv: Any, pixels: Any) -> None:
    part = purifier("masked-autoencoder")
    for options, size, words in (
        ({"token": 2}, 8, "tokens of 2x2 are dropped in part"),
        ({"token": 3}, 8, "multiples of 3"),
    ):
        settings = {**part.network.config(), **options}  # type: ignore[operator]
        made = Restoration(network="masked-autoencoder", options=settings, patch=1)
        with pytest.raises(InputError, match=words):
            Defense(conv(), purifier=made)(pixels(2, side=size))
    # Patches that are cut off at the edge hold fewer tokens.
    made = Restoration(network="masked-autoencoder", options=part.network.config(), patch=3)  # type: ignore[operator]
    with pytest.raises(InputError, match="Images of one batch keep from"):
        Defense(conv(), purifier=made)(pixels(8))
