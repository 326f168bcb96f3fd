"""The correction network, its losses and its training step against what others compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from correction.fakes import config
from unperturb.correction import step as step_module
from unperturb.correction.draws import mask_generator
from unperturb.correction.losses import LOSSES
from unperturb.correction.masks import Masks, kept_bits
from unperturb.correction.step import AutogradStep, SlabStep, make_step
from unperturb.errors import ConfigError
from unperturb.networks.corrector import CorrectionNetwork

CPU = torch.device("cpu")


def network(**options: Any) -> CorrectionNetwork:
    return CorrectionNetwork(**{"num_classes": 5, "width": 30, "seed": 1, **options})


def batch(count: int = 7, classes: int = 5, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(0, classes, (count,), generator=generator)


# --- forward --------------------------------------------------------------------------------


def test_forward_by_hand() -> None:
    net = CorrectionNetwork(num_classes=2, width=3).eval()
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        net.layers[0].bias.copy_(torch.tensor([0.5, -3.0, 0.0]))
        net.layers[1].weight.copy_(torch.tensor([[2.0, 1.0, 5.0], [-1.0, 1.0, 7.0]]))
        net.layers[1].bias.copy_(torch.tensor([0.25, -0.25]))
    # Hidden: (1 + 0.5, 4 - 3, 0) and (0, 0, 3).
    wanted = torch.tensor([[2 * 1.5 + 1 + 0.25, -1.5 + 1 - 0.25], [15.25, 20.75]])
    assert torch.equal(net(torch.tensor([[1.0, 4.0], [-1.0, -2.0]])), wanted)


def test_one_layer_is_linear_and_more_have_hidden_layers() -> None:
    logits, _ = batch()
    one = network(depth=1).eval()
    torch.testing.assert_close(one(2 * logits) - one(logits), logits @ one.layers[0].weight.T)
    assert [tuple(layer.weight.shape) for layer in network(depth=3).layers] == [
        (30, 5), (30, 30), (5, 30),
    ]  # fmt: skip


def test_dropout_keeps_the_expectation_and_acts_in_training_only() -> None:
    net = network(width=4000, dropout=0.3)
    logits, _ = batch(1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        still = net.eval()(logits)
        assert torch.equal(still, net(logits))
        net.train()
        drawn = torch.stack([net(logits, generator=generator) for _ in range(400)])
    assert float(drawn.std(0).min()) > 0.01
    error = drawn.std(0) / 20
    assert bool(((drawn.mean(0) - still).abs() < 5 * error).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width of the corrector is 0"),
        ({"depth": 0}, "depth of the corrector is 0"),
        ({"num_classes": 1}, "num_classes of the corrector is 1"),
        ({"dropout": 1.0}, r"dropout of the corrector is 1\.0.*at least 0 and below 1"),
        ({"width": 2.5}, r"width of the corrector is 2\.5"),
        ({"dropout": True}, "dropout of the corrector is True"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        network(**options)


# --- losses ---------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.5], [0.0, 3.0, -1.0]])
    labels = torch.tensor([0, 1])
    p = torch.softmax(logits, 1)
    ce = -(p[0, 0].log() + p[1, 1].log()) / 2
    torch.testing.assert_close(LOSSES["ce"](logits, labels), ce)
    smoothed = 0.9 * ce - 0.1 * p.log().mean()
    torch.testing.assert_close(LOSSES["label-smoothing"](logits, labels), smoothed)
    # 1 + 1.5 - 2 and 1 + 0 - 3.
    assert float(LOSSES["margin"](logits, labels)) == pytest.approx(0.25)


# --- masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.5, 0.1, 0.75])
def test_units_are_kept_as_often_as_they_shall_be(dropout: float) -> None:
    masks = Masks(dropout, 200 * 501, CPU, kept=7.0, dropped=-2.0)
    mask = masks.draw(np.random.default_rng(0), 200, 501)
    assert set(mask.unique().tolist()) == {7.0, -2.0}
    kept = (mask == 7.0).double()
    deviation = (dropout * (1 - dropout) / kept.numel()) ** 0.5
    assert abs(float(kept.mean()) - (1 - dropout)) < 5 * deviation
    # Neither rows nor columns resemble their neighbors.
    for one, two in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1])):
        both = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]
        assert abs(float(both)) < 5 / kept.numel() ** 0.5


def test_masks_are_a_function_of_seed_epoch_step_and_layer() -> None:
    def bits(*place: int) -> bytes:
        return kept_bits(mask_generator(*place), 256, 0.5).tobytes()

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({bits(*place) for place in places}) == len(places)
    assert bits(5, 4, 3, 2) == bits(5, 4, 3, 2)


# --- the step -------------------------------------------------------------------------------


def reference(
    net: CorrectionNetwork, settings: Any, batches: list[tuple[Tensor, Tensor]]
) -> list[float]:
    """Autograd on the network itself and torch's own Adam, with the same masks."""
    optimizer = torch.optim.Adam(
        net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, foreach=False
    )
    losses = []
    for number, (logits, labels) in enumerate(batches):
        hidden = logits
        for layer, linear in enumerate(net.layers[:-1]):
            hidden = torch.relu(linear(hidden))
            if net.dropout:
                generator = mask_generator(settings.seed, 0, number, layer)
                parts = []
                for start in range(0, net.width, step_module.SLAB):
                    size = len(logits) * min(step_module.SLAB, net.width - start)
                    bits = np.unpackbits(kept_bits(generator, size, net.dropout))[:size]
                    parts.append(torch.from_numpy(bits.reshape(len(logits), -1)).float())
                hidden = hidden * torch.cat(parts, 1) / (1 - net.dropout)
        loss = LOSSES[settings.loss](net.layers[-1](hidden), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": 0.0}, {"dropout": 0.3}, {"depth": 1}, {"depth": 3}, {"width": 61}],
    ids=str,
)
def test_steps_are_those_of_autograd_and_adam(
    options: dict[str, Any], loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several slabs, the last of them smaller.
    monkeypatch.setattr(step_module, "SLAB", 16)
    settings = config(loss=loss, lr=0.01, weight_decay=0.1, batch_size=7)
    # Double precision would hide nothing: rounding stays far below the tolerance.
    batches = [batch(7, seed=i) for i in range(4)] + [batch(3, seed=9)]
    ours, theirs = network(**options), network(**options)
    step = make_step(ours, settings, CPU)
    assert isinstance(step, SlabStep if ours.depth == 2 else AutogradStep)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    losses = [float(step.run(*rows, epoch=0, step=number)) for number, rows in enumerate(batches)]
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items()), "trained in place"
    assert losses == pytest.approx(reference(theirs, settings, batches), rel=1e-5)
    step.export(ours)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        assert not torch.equal(value, before[name])


def test_the_gradient_by_hand_is_that_of_autograd() -> None:
    """Before Adam divides the scale of the gradient away."""
    settings, (logits, labels) = config(batch_size=7, seed=8), batch()
    found = []
    for kind in (SlabStep, AutogradStep):
        step = kind(network(), settings, CPU)
        step.run(logits, labels, epoch=2, step=5)
        d_first, *rest = step.gradients
        found.append([d_first.t() if kind is SlabStep else d_first, *rest])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
        assert bool(one.any())


def test_a_step_follows_no_grad_mode_and_changes_no_batch(untouched: Any) -> None:
    net, (logits, labels) = network(), batch()
    copy = logits.clone()
    results = []
    for mode in (torch.enable_grad, torch.no_grad):
        step = make_step(net, config(batch_size=7), CPU)
        with untouched(net), mode():
            results.append(step.run(logits, labels, epoch=0, step=0))
    assert torch.equal(*results)
    assert torch.equal(logits, copy)


def test_the_loss_is_that_before_the_step() -> None:
    net = network(dropout=0.0)
    logits, labels = batch()
    step = make_step(net, config(batch_size=7), CPU)
    found = step.run(logits, labels, epoch=0, step=0)
    torch.testing.assert_close(found, F.cross_entropy(net(logits), labels).detach())


@pytest.mark.parametrize("depth", [2, 3])
def test_state_brings_a_step_back(depth: int) -> None:
    net, settings = network(depth=depth), config(batch_size=7)
    one = make_step(net, settings, CPU)
    for number in range(3):
        one.run(*batch(seed=number), epoch=0, step=number)
    two = make_step(net, settings, CPU)
    two.load({name: value.clone() for name, value in one.state().items()})
    for step in (one, two):
        step.run(*batch(seed=7), epoch=1, step=0)
    assert one.state().keys() == two.state().keys()
    assert all(torch.equal(one.state()[name], two.state()[name]) for name in one.state())
