"""What first-order attacks promise: of what they hand back, of the module, of wrong input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.running import Noisy, keys_of
from attacks.running import first_order as attack
from unperturb.attacks.base import Attacked
from unperturb.attacks.registry import make_attack
from unperturb.attacks.surface import Surface
from unperturb.defense import Defense
from unperturb.errors import AttackError, InputError
from unperturb.presets import tpap
from unperturb.threat import L2, Linf, Threat

# --- zero and NaN gradients -------------------------------------------------------------


class Rounded(nn.Module):
    """Masks its gradient by rounding."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images * 255).round() / 255)  # type: ignore[no-any-return]


class Broken(nn.Module):
    """The gradient of bright images is NaN, and their logits are right."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        bright = images.mean((1, 2, 3)) > 0.5
        trap = torch.where(bright, 0.0 * images.mean((1, 2, 3)), 1.0 + images.mean((1, 2, 3)))
        return logits + 0.0 * trap.sqrt()[:, None]


def test_zero_gradients_are_counted(linear: Any, pixels: Any) -> None:
    net, images = linear(), pixels(5, 1, 4)
    labels = net(images).argmax(1)
    found = attack(Rounded(net), images, labels, Linf(0.1), steps=4)
    assert found.zero_gradients.tolist() == [4] * 5
    assert not found.nan_gradients.any()
    assert torch.equal(found.images, images)
    assert not attack(net, images, labels, Linf(0.1), steps=4).zero_gradients.any()


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.2)], ids=["linf", "l2"])
def test_nan_gradients_are_counted_and_do_no_harm(
    linear: Any, threat: Threat, momentum: float
) -> None:
    net = linear()
    images = torch.cat((torch.full((2, 1, 4, 4), 0.3), torch.full((3, 1, 4, 4), 0.8)))
    labels = net(images).argmax(1)
    found = attack(Broken(net), images, labels, threat, steps=3, momentum=momentum)
    assert found.nan_gradients.tolist() == [0, 0, 3, 3, 3]
    assert not found.zero_gradients.any()
    assert bool(torch.isfinite(found.images).all())
    assert torch.equal(found.images[2:], images[2:])
    assert not torch.equal(found.images[:2], images[:2])


def test_nan_scores_are_a_wrong_answer(linear: Any, pixels: Any) -> None:
    class Nan(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2] * float("nan")

    images, labels = pixels(2, 1, 4), torch.tensor([0, 1])
    judged = Surface(Nan().eval()).judge(images, labels, None)
    assert judged.success.tolist() == [True, True]


# --- what is handed back ----------------------------------------------------------------


@pytest.mark.parametrize("stop", ["fixed", "first-success"])
@pytest.mark.parametrize("spec", ["fgsm", "bim-5", "pgd-5?restarts=2", "mim-5", "pgd-5?loss=dlr"])
@pytest.mark.parametrize("threat", [Linf(0.3), L2(2.0)], ids=["linf", "l2"])
def test_ball_range_and_success(conv: Any, threat: Threat, spec: str, stop: str) -> None:
    net = conv()
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    images[:4] = images[:4].round()
    labels = torch.arange(16) % 5
    made = make_attack(spec)
    found = made.run(Surface(net), images, labels, threat=threat, keys=keys_of(images), stop=stop)
    assert float(found.images.min()) >= 0.0
    assert float(found.images.max()) <= 1.0
    assert bool((threat.distance(found.images, images) <= threat.eps * 1.0001).all())
    assert torch.equal(found.success, net(found.images).argmax(1) != labels)
    assert not found.images.requires_grad
    assert found.images.dtype == images.dtype
    assert bool((found.queries <= made.gradients + made.restarts + 2).all())


def _flat(found: Attacked) -> list[Tensor]:
    return [part for part in (found.images, *found.judged, *found[2:]) if part is not None]


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("stop", ["fixed", "first-success"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["net", "tpap", "random"])
def test_grad_mode_around_it(conv: Any, pixels: Any, kind: str, mode: str, stop: str) -> None:
    net = conv()
    target = {"net": net, "tpap": tpap(net), "random": Defense(net, purifier=Noisy())}[kind]
    labels = torch.arange(6) % 5
    settings: dict[str, Any] = {"random_start": True, "restarts": 2, "draws": 2, "steps": 3}
    wanted = attack(target, pixels(6), labels, Linf(0.03), stop, **settings)
    with MODES[mode]():
        images = pixels(6)
        found = attack(target, images, labels.clone(), Linf(0.03), stop, **settings)
        assert torch.equal(images, pixels(6))
    for one, two in zip(_flat(found), _flat(wanted), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["net", "tpap"])
def test_the_users_module_is_untouched(
    conv: Any, pixels: Any, untouched: Any, kind: str, training: bool
) -> None:
    net, images = conv(), pixels(6)
    wanted = attack(net if kind == "net" else tpap(net), images, torch.arange(6) % 5, Linf(0.05))
    net(images).sum().backward()
    net.train(training)
    with untouched(net):
        target = net if kind == "net" else tpap(net)
        for stop in ("fixed", "first-success"):
            found = attack(target, images, torch.arange(6) % 5, Linf(0.05), stop)
        found = attack(target, images, torch.arange(6) % 5, Linf(0.05))
    torch.testing.assert_close(found.images, wanted.images)


def test_frozen_parameters_are_no_obstacle(conv: Any, pixels: Any) -> None:
    net, images, labels = conv(), pixels(4), torch.arange(4)
    wanted = attack(net, images, labels, Linf(0.05))
    found = attack(net.requires_grad_(False), images, labels, Linf(0.05))
    assert torch.equal(found.images, wanted.images)


# --- wrong input ------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("stop", ["fixed", "first-success"])
def test_wrong_input(conv: Any, pixels: Any, wrapped: bool, stop: str) -> None:
    net, images, labels = conv(), pixels(3), torch.arange(3)
    target = Defense(net) if wrapped else net
    with pytest.raises(InputError, match="images / 255"):
        attack(target, images * 255, labels, Linf(0.1), stop)
    with pytest.raises(InputError, match="1 of 3 labels lie outside.*from 0 to 4"):
        attack(target, images, torch.tensor([0, 5, 1]), Linf(0.1), stop)
    with pytest.raises(InputError, match="1 of 3 labels lie outside"):
        attack(target, images, torch.tensor([0, -1, 1]), Linf(0.1), stop)
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        attack(target, images, labels[:2], Linf(0.1), stop)
    with pytest.raises(AttackError, match="keys name 2 images, and there are 3"):
        attack(target, images, labels, Linf(0.1), stop, keys=keys_of(images[:2]))


def test_labels_of_another_integer_type(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(3)
    wanted = attack(net, images, torch.arange(3), Linf(0.1))
    found = attack(net, images, torch.arange(3, dtype=torch.int32), Linf(0.1))
    assert torch.equal(found.images, wanted.images)
