"""Restoration networks: sizes, cost, what they may and may not see, parts against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.classifiers import new_classifier
from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.flops import count_flops
from unperturb.networks.contextual_attention import ContextualAttention
from unperturb.networks.inpainting_gan import InpaintingGenerator, PatchDiscriminator
from unperturb.networks.masked_autoencoder import MaskedAutoencoder, _cut, _join, _positions
from unperturb.networks.restorers import RESTORERS, build_restorer, seeded
from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, patch_masks
from unperturb.randomness import Keys

CPU = (("inpainting-gan", {}), ("inpainting-gan", {"attention": True}), ("masked-autoencoder", {}))


def images(count: int, side: int, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def masks(count: int, side: int, name: str = "rt1") -> Tensor:
    keys = KeyedDraws(Keys.of(0, [str(i) for i in range(count)]), torch.zeros(()))
    return patch_masks(RandomTransform(name=name), keys, (side, side), torch.zeros(()))[0]


@pytest.mark.parametrize(("name", "options"), CPU)
def test_the_default_costs_at_most_three_small_classifiers(
    name: str, options: dict[str, Any]
) -> None:
    """A ResNet-20 takes 41 million multiply-adds on 32x32."""
    classifier, net = new_classifier("cifar-resnet20"), build_restorer(name, **options)
    x, mask = images(2, 32), masks(2, 32)
    with torch.no_grad():
        base = count_flops(lambda: classifier(x))
        assert base / 4 == pytest.approx(40.6e6, rel=0.01)
        assert count_flops(lambda: net(x, mask)) <= 3 * base


@pytest.mark.parametrize("side", [32, 64, 96, 256])
@pytest.mark.parametrize("attention", [False, True])
def test_the_generator_reads_every_size(side: int, attention: bool) -> None:
    net = build_restorer("inpainting-gan", width=4, coarse_width=2, attention=attention)
    mask = masks(1, side)
    with torch.no_grad():
        found = net(mask * images(1, side), mask)
    assert found.shape == (1, 3, side, side)
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("shape", [(1, 1, 7, 9), (2, 4, 30, 33), (1, 3, 1, 1)])
def test_the_generator_reads_sides_that_its_strides_do_not_divide(shape: Any) -> None:
    net = build_restorer("inpainting-gan", channels=shape[1], width=2, coarse_width=2)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert net(x, torch.ones_like(x[:, :1])).shape == shape


@pytest.mark.parametrize(("side", "token"), [(32, 4), (64, 8), (64, 4), (224, 28), (224, 14)])
def test_the_autoencoder_reads_every_size_its_token_divides(side: int, token: int) -> None:
    net = build_restorer(
        "masked-autoencoder", token=token, width=16, depth=1, heads=2, decoder_width=16,
        decoder_depth=1,
    )  # fmt: skip
    mask = masks(2, side)
    with torch.no_grad():
        found = net(mask * images(2, side), mask)
    assert found.shape == (2, 3, side, side)
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize(("name", "options"), CPU)
def test_nothing_depends_on_dropped_pixels(name: str, options: dict[str, Any]) -> None:
    net = build_restorer(name, **options).eval()
    x, other, mask = images(2, 32), 1 - images(2, 32), masks(2, 32)
    filled = torch.where(mask > 0, x, other)
    with torch.no_grad():
        assert torch.equal(net(mask * x, mask), net(mask * filled, mask))
        changed = torch.where(mask > 0, other, x)
        assert not torch.equal(net(mask * x, mask), net(mask * changed, mask))


@pytest.mark.parametrize(("name", "options"), CPU)
def test_images_do_not_see_each_other(name: str, options: dict[str, Any]) -> None:
    net = build_restorer(name, **options).eval().double()
    x, mask = images(5, 32).double(), masks(5, 32).double()
    with torch.no_grad():
        whole = net(mask * x, mask)
        for row in range(5):
            part = slice(row, row + 1)
            torch.testing.assert_close(net((mask * x)[part], mask[part]), whole[part])


@pytest.mark.parametrize(("name", "options"), CPU)
def test_weights_follow_from_the_seed_and_nothing_global_is_drawn(
    name: str, options: dict[str, Any]
) -> None:
    one, two, other = (build_restorer(name, seed=seed, **options) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )
    again = RESTORERS[name](**one.config())  # type: ignore[operator]
    assert again.config() == one.config()  # type: ignore[operator]
    again.load_state_dict(one.state_dict())


@pytest.fixture(autouse=True)
def _no_global_draws() -> Any:
    """Networks that are built without a seed draw from the global generator: put it back."""
    with torch.random.fork_rng(devices=[]):
        yield


def test_the_autoencoder_draws_the_middle_where_it_has_learned_nothing() -> None:
    net = MaskedAutoencoder(width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1)
    nn.init.zeros_(net.draw.weight)
    mask = masks(1, 32)
    assert torch.equal(net(mask * images(1, 32), mask), torch.full((1, 3, 32, 32), 0.5))


def test_tokens_are_cut_and_joined_row_by_row() -> None:
    x = images(2, 12)
    tokens = _cut(x, 4)
    assert tokens.shape == (2, 9, 48)
    for row in range(3):
        for column in range(3):
            patch = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(tokens[:, 3 * row + column], patch.flatten(1))
    assert torch.equal(_join(tokens, 4, 3, 3, 3), x)


def test_positions_are_sines_and_cosines() -> None:
    found = _positions(2, 3, 8, torch.zeros(()))[0].view(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = [
                wave(place / 10_000 ** (k / 2))
                for place in (row, column)
                for wave in (math.sin, math.cos)
                for k in range(2)
            ]
            torch.testing.assert_close(found[row, column], torch.tensor(expected))


def test_the_autoencoder_against_a_plain_loop_over_tokens() -> None:
    """One image at a time, the kept tokens picked by hand, attention written out."""
    with seeded(3):
        net = MaskedAutoencoder(width=16, depth=2, heads=2, decoder_width=8, decoder_depth=1)
    net = net.double()
    x = images(3, 16).double()
    keys = KeyedDraws(Keys.of(0, ["a", "b", "c"]), x)
    (mask,) = patch_masks(RandomTransform(name="rt1", patch=4), keys, (16, 16), x)

    def block(part: Any, h: Tensor) -> Tensor:
        normed = part.norm1(h)
        q, k, v = (p for p in part.qkv(normed).split(h.shape[1], 1))
        heads = []
        size = h.shape[1] // part.heads
        for head in range(part.heads):
            cut = slice(head * size, (head + 1) * size)
            weights = (q[:, cut] @ k[:, cut].T / math.sqrt(size)).softmax(1)
            heads.append(weights @ v[:, cut])
        h = h + part.proj(torch.cat(heads, 1))
        return h + part.down(F.gelu(part.up(part.norm2(h))))

    found = net(mask * x, mask)
    for n in range(3):
        kept, tokens = [], []
        for t in range(16):
            row, column = divmod(t, 4)
            place = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            if float(mask[n, 0][place].sum()):
                kept.append(t)
                tokens.append((2 * x[n][(slice(None), *place)] - 1).flatten())
        h = net.read(torch.stack(tokens)) + _positions(4, 4, 16, x)[0, kept]
        for part in net.encoder:
            h = block(part, h)
        seen = net.bridge(net.norm(h))
        board = net.empty.expand(16, -1).clone()
        board[kept] = seen
        board = board + _positions(4, 4, 8, x)[0]
        for part in net.decoder:
            board = block(part, board)
        drawn = 0.5 * net.draw(net.last(board)) + 0.5
        torch.testing.assert_close(found[n : n + 1], _join(drawn[None], 4, 4, 4, 3))


def test_contextual_attention_against_plain_loops() -> None:
    x, seen = images(1, 5, channels=4).double(), torch.ones(1, 1, 5, 5).double()
    seen[..., :2, :] = 0
    found = ContextualAttention()(x, seen)
    padded = F.pad(x[0], (1, 1, 1, 1))
    around = {
        (i, j): F.normalize(padded[:, i : i + 3, j : j + 3].reshape(-1), dim=0)
        for i in range(5)
        for j in range(5)
    }
    for (i, j), own in around.items():
        likeness = torch.stack(
            [
                10 * own @ other + torch.log(seen[0, 0, a, b] + 1e-6)
                for (a, b), other in around.items()
            ]
        )
        weights = likeness.softmax(0)
        values = torch.stack([x[0, :, a, b] for a, b in around])
        torch.testing.assert_close(found[0, :, i, j], weights @ values)
    # What is not seen lends nothing.
    half = torch.zeros(1, 1, 4, 4)
    half[..., :2] = 1
    feature = torch.where(half > 0, 1.0, 5.0)
    assert float(ContextualAttention()(feature, half).max()) < 1.01


def test_contextual_attention_of_large_maps() -> None:
    found = ContextualAttention()(images(1, 65, channels=2), torch.ones(1, 1, 65, 65))
    assert found.shape == (1, 2, 65, 65)


def test_the_discriminator_has_a_bounded_slope() -> None:
    """Spectral normalization: after a few steps no layer's matrix stretches anything."""
    with seeded(1):
        net = PatchDiscriminator(width=8)
    assert net(images(4, 32)).shape == (4, 1, 4, 4)
    for _ in range(50):
        net(images(4, 32))
    for layer in (*net.layers, net.score):
        stretch = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        assert float(stretch.detach()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: InpaintingGenerator(width=0), "width is 0"),
        (lambda: InpaintingGenerator(channels=2.5), "channels is 2.5"),
        (lambda: PatchDiscriminator(width=True), "width is True"),
        (lambda: MaskedAutoencoder(token=0), "token is 0"),
        (lambda: MaskedAutoencoder(width=20), "width is 20 with 4 heads.*multiple of 16"),
        (lambda: MaskedAutoencoder(decoder_width=24), "decoder_width is 24 with 4 heads"),
        (lambda: build_restorer("inpainting-gan", depth=3), "do not fit 'inpainting-gan'"),
    ],
)
def test_wrong_options(build: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build()


def test_unknown_networks_and_sizes() -> None:
    with pytest.raises(SpecError, match="Unknown restoration network 'gan'.*inpainting-gan"):
        build_restorer("gan")
    net = build_restorer("masked-autoencoder", depth=1, decoder_depth=1)
    with pytest.raises(InputError, match="30x30.*multiples of 4"):
        net(images(1, 30), torch.ones(1, 1, 30, 30))
    with pytest.raises(InputError, match="from 0 to 0 tokens"):
        net(images(1, 32), torch.zeros(1, 1, 32, 32))
