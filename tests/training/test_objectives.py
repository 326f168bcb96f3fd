"""Each objective against its paper's equations in plain torch, loss and gradient, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.training import OBJECTIVES, Step, TrainConfig
from unperturb.training.examples import (
    cw_examples,
    fgsm_examples,
    friendly_examples,
    kl_examples,
    pgd_examples,
    pgd_survivals,
    stadv_examples,
)
from unperturb.training.objectives import OVERFITTING

COUNT = 12
SETTINGS: dict[str, Any] = {
    "eps": 0.02, "attack_steps": 3, "attack_step_size": 0.4, "beta": 2.5, "cw_weight": 0.7,
    "cw_rate": 0.03, "flow": 0.1, "gairat_lambda": -0.5, "gairat_burn_in": 0.25,
}  # fmt: skip
STEPS: dict[str, Any] = {"steps": 3, "step_size": 0.4}


def settings(name: str, **changes: Any) -> TrainConfig:
    return TrainConfig(**{"objective": name, **SETTINGS, **changes})


def draw() -> np.random.Generator:
    return np.random.default_rng(8)


def double(net: nn.Module) -> nn.Module:
    """In train mode: batches are normalized by themselves, and enter the statistics."""
    return net.double().train()


@pytest.fixture
def nets(conv: Callable[..., nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Two equal networks: one for the objective, one for the equations."""
    return double(conv(smooth=True)), double(conv(smooth=True))


@pytest.fixture
def images(pixels: Callable[..., Tensor]) -> Tensor:
    return pixels(COUNT).double()


@pytest.fixture
def labels(conv: Callable[..., nn.Module], pixels: Callable[..., Tensor]) -> Tensor:
    with torch.no_grad():
        found = conv(smooth=True)(pixels(COUNT)).argmax(1)
    found[::4] = (found[::4] + 1) % 5
    return found


def own(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of the labels."""
    return net(images).softmax(1)[torch.arange(len(labels)), labels]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p || q)``, both logits (N, K)."""
    p, q = p.softmax(1), q.softmax(1)
    return (p * (p.log() - q.log())).sum(1)


# -- the equations ------------------------------------------------------------------------------

Make = Callable[[nn.Module, Tensor, Tensor], Tensor]
Loss = Callable[[nn.Module, nn.Module, Tensor, Tensor], Tensor]
"""The network, what examples are made against, clean images, labels."""


def _entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return -own(net, x, y).log().mean()


def _on(make: Make) -> Loss:
    return lambda net, attacked, x, y: _entropy(net, make(attacked, x, y), y)


def _trades_with(make: Make) -> Loss:
    """Zhang et al. 2019, eq. 5, with ``1 / lambda = beta``."""

    def loss(net: nn.Module, attacked: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        adversarial = make(attacked, x, y)
        clean, other = net(x), net(adversarial)
        accuracy = -clean.softmax(1)[torch.arange(len(y)), y].log()
        return (accuracy + 2.5 * divergence(clean, other)).mean()

    return loss


def _mart_with(make: Make) -> Loss:
    """Wang et al. 2020, eq. 11 and 12."""

    def loss(net: nn.Module, attacked: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        adversarial = make(attacked, x, y)
        clean, other = net(x), net(adversarial)
        total = clean.new_zeros(())
        for z, z_a, label in zip(clean, other, y, strict=True):
            p, p_a = z.softmax(0), z_a.softmax(0)
            rival = max(p_a[k] for k in range(5) if k != label)
            boosted = -torch.log(p_a[label]) - torch.log(1 - rival)
            total = total + boosted + 2.5 * divergence(z[None], z_a[None])[0] * (1 - p[label])
        return total / len(y)

    return loss


def _fgsm_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return fgsm_examples(net, x, y, 0.02)


def _pgd_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return pgd_examples(net, x, y, 0.02, **STEPS, generator=draw())


def _kl_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return kl_examples(net, x, 0.02, **STEPS, generator=draw())


def _friendly_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return friendly_examples(net, x, y, 0.02, **STEPS, tau=0, generator=draw())


def _cw_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cw_examples(net, x, y, steps=3, confidence=0.7, rate=0.03)


def _stadv_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return stadv_examples(net, x, y, flow=0.1, **STEPS, generator=draw())


EQUATIONS: dict[str, Loss] = {
    "standard": lambda net, attacked, x, y: _entropy(net, x, y),
    "fgsm": _on(_fgsm_of),
    "fgsm-trades": _trades_with(_fgsm_of),
    "fgsm-mart": _mart_with(_fgsm_of),
    "pgd": _on(_pgd_of),
    "trades": _trades_with(_kl_of),
    "mart": _mart_with(_pgd_of),
    # At the beginning of the run; tau and the weights have tests of their own.
    "fat": _on(_friendly_of),
    "gairat": _on(_pgd_of),
    "cw": _on(_cw_of),
    "stadv": _on(_stadv_of),
}


def test_every_objective_has_its_equation() -> None:
    assert EQUATIONS.keys() == OBJECTIVES.keys()
    assert set(OVERFITTING) == {name for name in OBJECTIVES if name.startswith("fgsm")}


def run(
    net: nn.Module, images: Tensor, labels: Tensor, config: TrainConfig, *, done: float = 0.0,
    attacked: nn.Module | None = None,
) -> Tensor:  # fmt: skip
    return OBJECTIVES[config.objective](
        Step(
            network=net,
            attacked=net if attacked is None else attacked,
            images=images,
            labels=labels,
            settings=config,
            generator=draw(),
            done=done,
        )
    )


def check(
    found: Tensor, expected: Tensor, nets: tuple[nn.Module, nn.Module], *, tolerance: float = 1e-10
) -> None:
    """Equal losses, gradients to the weights, and statistics."""
    # The C&W examples and some weights are float32.
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0, check_dtype=False)
    gradients = [
        torch.autograd.grad(loss, list(net.parameters()))
        for loss, net in zip((found, expected), nets, strict=True)
    ]
    size = max(float(gradient.abs().max()) for gradient in gradients[1])
    assert size > 1e-3
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=tolerance * size)
    for one, two in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_the_papers(
    name: str, elsewhere: bool, nets: tuple[nn.Module, nn.Module],
    conv: Callable[..., nn.Module], images: Tensor, labels: Tensor, untouched: Any,
) -> None:  # fmt: skip
    # Examples may be made against another network, the folded twin in training.
    attacked = [conv(smooth=True, seed=5).double() if elsewhere else net for net in nets]
    plain = float(_entropy(conv(smooth=True).double().train(), images, labels).detach())
    if elsewhere:
        with untouched(attacked[0]):
            found = run(nets[0], images, labels, settings(name), attacked=attacked[0])
    else:
        found = run(nets[0], images, labels, settings(name))
    expected = EQUATIONS[name](nets[1], attacked[1], images, labels)
    # Divergences are taken in float32, which is more than what training asks for.
    check(found, expected, nets, tolerance=5e-6 if name[-4:] in ("ades", "mart") else 1e-10)
    assert (float(found.detach()) == pytest.approx(plain, rel=1e-9)) == (name == "standard")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_the_statistics_see(
    name: str, conv: Callable[..., nn.Module], counted: Any, images: Tensor, labels: Tensor
) -> None:
    net = counted(double(conv(smooth=True)))
    assert net.training
    run(net, images, labels, settings(name), attacked=conv(smooth=True).double())
    two = name.endswith(("trades", "mart"))
    assert net.calls == [COUNT, COUNT] if two else [COUNT]
    assert net.module[1].num_batches_tracked == len(net.calls)


# -- mixtures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(0.01, 0.03), (0.0, 0.01, 0.03), (0.02,)])
def test_a_mixture_is_the_mean_over_its_sizes(
    nets: tuple[nn.Module, nn.Module], images: Tensor, labels: Tensor, sizes: tuple[float, ...]
) -> None:
    found = run(nets[0], images, labels, settings("fgsm", mixture=sizes))
    # All sizes in one batch: batch norms see them together.
    batch = torch.cat([fgsm_examples(nets[1], images, labels, size) for size in sizes])
    logits = nets[1](batch).view(len(sizes), COUNT, 5)
    expected = torch.stack([F.cross_entropy(part, labels) for part in logits]).mean()
    check(found, expected, nets)


def test_a_mixture_needs_one_gradient(
    conv: Callable[..., nn.Module], counted: Any, images: Tensor, labels: Tensor
) -> None:
    net, attacked = (counted(double(conv())) for _ in range(2))
    config = settings("fgsm", mixture=(0.0, 0.01, 0.03))
    run(net, images, labels, config, attacked=attacked)
    assert (net.calls, attacked.calls) == ([3 * COUNT], [COUNT])


# -- GAIRAT and FAT -----------------------------------------------------------------------------


def test_gairat_weights_are_the_closed_form(
    nets: tuple[nn.Module, nn.Module], images: Tensor, labels: Tensor
) -> None:
    config = settings("gairat", attack_steps=4, attack_step_size=0.3)
    found = run(nets[0], images, labels, config, done=0.25)
    adversarial, kappa = pgd_survivals(
        nets[1], images, labels, 0.02, steps=4, step_size=0.3, generator=draw()
    )
    losses = -own(nets[1], adversarial, labels).log()
    total, weights = losses.new_zeros(()), 0.0
    for loss, survived in zip(losses, kappa.tolist(), strict=True):
        weight = (1 + np.tanh(-0.5 + 5 * (1 - 2 * survived / 4))) / 2
        total, weights = total + weight * loss, weights + weight
    check(found, total / weights, nets, tolerance=1e-6)
    assert len(kappa.unique()) > 2
    plain = losses.mean()
    assert float((found - plain).detach().abs()) > 1e-3, "the weights do weigh"


def test_gairat_weighs_from_the_end_of_the_burn_in_on(
    nets: tuple[nn.Module, nn.Module], images: Tensor, labels: Tensor
) -> None:
    config = settings("gairat")

    def loss(done: float, config: TrainConfig = config) -> float:
        # Every pass changes the statistics.
        net = copy.deepcopy(nets[0])
        return float(run(net, images, labels, config, done=done).detach())

    equal = float(EQUATIONS["pgd"](nets[1], nets[1], images, labels).detach())
    assert loss(0.0) == loss(0.24) == pytest.approx(equal)
    assert loss(0.25) == loss(0.9) != loss(0.0)
    assert loss(0.99, settings("gairat", gairat_burn_in=1.0)) == loss(0.0)


def test_gairat_of_images_that_are_equally_far_is_pgd(
    nets: tuple[nn.Module, nn.Module], images: Tensor
) -> None:
    with torch.no_grad():
        wrong = (nets[0].eval()(images).argmax(1) + 1) % 5
    nets[0].train()
    config = settings("gairat", eps=1e-5)
    weighed = run(nets[0], images, wrong, config, done=0.5)
    plain = run(nets[1], images, wrong, config, done=0.0)
    torch.testing.assert_close(weighed, plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("taus", "done", "tau"),
    [((0, 1, 2), 0.0, 0), ((0, 1, 2), 0.32, 0), ((0, 1, 2), 0.34, 1), ((0, 1, 2), 0.66, 1),
     ((0, 1, 2), 0.67, 2), ((0, 1, 2), 0.999, 2), ((0, 1, 2), 1.0, 2), ((3,), 0.5, 3),
     ((1, 0), 0.49, 1), ((1, 0), 0.5, 0)],
)  # fmt: skip
def test_the_patience_of_fat_grows_in_equal_parts(
    nets: tuple[nn.Module, nn.Module], images: Tensor, labels: Tensor,
    monkeypatch: pytest.MonkeyPatch, taus: tuple[int, ...], done: float, tau: int,
) -> None:  # fmt: skip
    from unperturb.training import objectives

    seen = []

    def spy(*arguments: Any, **options: Any) -> Tensor:
        seen.append(options["tau"])
        return friendly_examples(*arguments, **options)

    monkeypatch.setattr(objectives, "friendly_examples", spy)
    found = run(nets[0], images, labels, settings("fat", fat_tau=taus), done=done)
    assert seen == [tau]
    examples = friendly_examples(
        nets[1], images, labels, 0.02, **STEPS, tau=tau, generator=draw()
    )  # fmt: skip
    check(found, _entropy(nets[1], examples, labels), nets)


# -- extremes -----------------------------------------------------------------------------------


class Sure(nn.Module):
    """Logits that are the first pixels, a hundred times: probabilities of exactly 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1000.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.flatten(1)[:, :5]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("wrong", [False, True])
def test_losses_of_a_network_without_doubt_are_finite(name: str, wrong: bool) -> None:
    net = Sure().train()
    images = torch.zeros(4, 1, 3, 3)
    images.flatten(1)[torch.arange(4), torch.arange(4)] = 1.0
    labels = (torch.arange(4) + wrong) % 5
    loss = run(net, images, labels, settings(name, gairat_burn_in=0.0), done=0.5)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert net.scale.grad is not None
    assert bool(torch.isfinite(net.scale.grad))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_under_autocast(
    name: str, conv: Callable[..., nn.Module], images: Tensor, labels: Tensor
) -> None:
    net = conv(smooth=True).train()
    whole = run(net, images.float(), labels, settings(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(net, images.float(), labels, settings(name))
    assert half.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(float(whole.detach()), rel=0.1)
    half.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
