"""Logit matching: its template, what it reaches on linear models, and what it reads; CW-Linf."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.running import Noisy, keys_of
from unperturb.attacks.base import Attacked
from unperturb.attacks.batch import Batch
from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.logit_matching import LogitMatching, _templates, exchange
from unperturb.attacks.registry import make_attack
from unperturb.attacks.surface import Surface
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.errors import UnperturbError
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.threat import L2, Linf


class Darker(Purifier):
    """Halves every pixel."""

    name = "darker"

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(0.5 * images, 0.5 * images)


def attack(
    surface: Surface, images: Tensor, labels: Tensor, eps: float, spec: str = "logit-matching",
    stop: str = "fixed",
) -> Attacked:  # fmt: skip
    made = make_attack(spec)
    return made.run(surface, images, labels, threat=Linf(eps), keys=keys_of(images), stop=stop)


def batch_of(surface: Surface, images: Tensor, labels: Tensor, draws: int = 1) -> Batch:
    return Batch(surface, images, labels, threat=Linf(0.1), keys=keys_of(images), draws=draws)


def test_exchange_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 5.0, 0.0]])
    found = exchange(logits, torch.tensor([0, 1, 0]))
    # The second image is taken for another class already; a tie stays a tie.
    assert found.tolist() == [[2.0, 1.0, 3.0], [3.0, 1.0, 2.0], [5.0, 5.0, 0.0]]


def test_a_linear_model_is_brought_to_its_template(linear: Any, pixels: Any) -> None:
    """With more pixels than classes every template can be reached, and then the class is its."""
    net, images = linear(classes=4).double(), pixels(12, 1, 4).double()
    clean = net(images).detach()
    labels = clean.argmax(1)
    wanted = exchange(clean, labels)
    found = attack(Surface(net), images, labels, 0.25, "logit-matching-400?step_size=0.01")
    reached = net(found.images).detach()
    before, after = ((z - wanted).square().mean(1) for z in (clean, reached))
    assert float(before.median()) > 1e-3
    assert float(after.max()) < 3e-5, "what is left is the last step's size"
    assert bool((reached.argmax(1) == clean.topk(2).indices[:, 1]).float().mean() > 0.8)


def test_the_logits_look_like_those_of_a_clean_image(digits: Any, digits_net: nn.Module) -> None:
    """PGD drives logits beyond all that clean images have; this brings them near its template."""
    images, labels = digits[0][1200:1232], digits[1][1200:1232]
    clean = digits_net(images).detach()
    wanted = exchange(clean, labels)
    surface = Surface(digits_net)
    matched = attack(surface, images, labels, 0.3)
    pushed = attack(surface, images, labels, 0.3, "pgd-40")
    distance = [
        (digits_net(found.images) - wanted).square().mean(1).median().item()
        for found in (matched, pushed)
    ]
    assert distance[0] < 0.1 * distance[1]
    assert float(matched.success.float().mean()) > 0.4


def test_first_success_and_settings(digits: Any, digits_net: nn.Module) -> None:
    images, labels = digits[0][1200:1232], digits[1][1200:1232]
    surface = Surface(digits_net)
    fixed = attack(surface, images, labels, 0.3)
    first = attack(surface, images, labels, 0.3, stop="first-success")
    assert bool(first.success[fixed.success].all())
    made = make_attack("logit-matching-7?restarts=2")
    assert isinstance(made, LogitMatching)
    assert made.gradients == 14


def test_alone_and_in_a_batch(conv: Any, pixels: Any) -> None:
    net, images = conv().double(), pixels(4).double()
    labels, keys, made = net(images).argmax(1), keys_of(images), make_attack("logit-matching-8")

    def run(row: slice) -> Tensor:
        return made.run(
            Surface(net), images[row], labels[row], threat=L2(0.3), keys=keys[row], stop="fixed"
        ).images

    whole = run(slice(4))
    for i in range(4):
        torch.testing.assert_close(run(slice(i, i + 1)), whole[i : i + 1], rtol=0, atol=1e-9)


# --- which logits -----------------------------------------------------------------------


def test_the_template_is_of_the_logits_that_the_decision_reads(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(5)
    labels, defense = torch.arange(5), Defense(conv(), purifier=Darker())
    for surface, wanted in (
        (Surface(net), net(images)),
        (Surface(defense), net(0.5 * images)),
        (Surface(defense, backward="undefended"), net(images)),
    ):
        found = _templates(batch_of(surface, images, labels))
        torch.testing.assert_close(found, exchange(wanted.detach(), labels))


def test_of_a_random_target_the_template_is_the_mean(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(5)
    labels = torch.arange(5)
    defense = Defense(net, purifier=Noisy())
    batch = batch_of(Surface(defense), images, labels, draws=8)
    found = _templates(batch)
    assert batch.queries.tolist() == [8] * 5
    keys = keys_of(images).within("/template").copies(8)
    with torch.no_grad():
        each = defense(images.repeat_interleave(8, 0), keys=keys).view(5, 8, -1)
    torch.testing.assert_close(found, exchange(each.mean(1), labels))


@pytest.mark.parametrize("backward", ["exact", "identity", "undefended"])
def test_it_raises_minus_the_distance_by_every_rule(conv: Any, pixels: Any, backward: str) -> None:
    net, images = conv(smooth=True), pixels(6)
    defense = tpap(net)
    surface = Surface(defense, backward=backward)
    # What is answered wrongly already is where it shall be.
    labels = (net if backward == "undefended" else defense)(images).argmax(1)
    found = attack(surface, images, labels, 0.03)
    batch = batch_of(surface, images, labels)
    made = make_attack("logit-matching")
    assert isinstance(made, LogitMatching)
    objective, index = made.objective(batch), torch.arange(6)
    start = batch.gradient(images, index, 0, objective).value
    end = batch.gradient(found.images, index, 0, objective).value
    assert bool((start < 0).all())
    assert end.mean().item() > 0.8 * start.mean().item()
    assert int(found.zero_gradients.sum()) == 0


def test_another_loss_is_refused() -> None:
    with pytest.raises(UnperturbError, match="Unknown loss 'ce'.*matching"):
        make_attack("logit-matching?loss=ce")


# --- CW-Linf ----------------------------------------------------------------------------


def test_cw_linf_is_pgd_on_the_margin(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(8)
    labels, surface = net(images).argmax(1), Surface(net)
    made = make_attack("cw-linf")
    assert isinstance(made, FirstOrder)
    assert (made.name, made.steps, made.loss) == ("cw-linf-100", 100, "margin")
    found = attack(surface, images, labels, 0.01, "cw-linf-9")
    wanted = attack(surface, images, labels, 0.01, "pgd-9?loss=margin")
    assert torch.equal(found.images, wanted.images)


def test_cw_linf_reaches_the_optimum_of_a_linear_model(linear: Any, pixels: Any) -> None:
    net, images, eps = linear().double(), pixels(24, 1, 4).double(), 0.05
    labels = torch.arange(24) % 2
    found = attack(Surface(net), images, labels, eps, "cw-linf-20")
    weight = net[1].weight.detach()
    sign = (1 - 2 * labels).double()  # towards class 1 from class 0, and back
    change = (net(found.images) - net(images)).detach()
    gain = eps * (weight[1] - weight[0]).abs().sum()
    torch.testing.assert_close(sign * (change[:, 1] - change[:, 0]), gain.expand(24))
