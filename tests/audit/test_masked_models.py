"""Each red flag is raised by a deliberately masked model in a real audit; no honest net raises any.

All masked models classify digits by the nearest class mean, so that what the mask hides is known:
the same attack on the bare net breaks nearly every image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audit.doubles import Blind, Noisy, Rounding, digits, linear_net
from unperturb import load_classifier, load_images
from unperturb.audit import AuditResult, audit
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.threat import Linf

COUNT = 60
EPS = 0.2
ROOT = Path(__file__).resolve().parents[2]


def run(subject: nn.Module, *, eps: float = EPS, count: int = COUNT, **changes: Any) -> AuditResult:
    images, labels = digits(count)
    arguments = {"threat": Linf(eps), "attacks": "fgsm,pgd-5", "keep_images": "none", **changes}
    return audit(subject, images, labels, **arguments)


def flags(result: AuditResult) -> dict[str, dict[str, Any]]:
    return {flag["id"]: flag for flag in result.summary["flags"]}


class Masked(nn.Module):
    """A module around a net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class Saturated(Masked):
    """Probabilities in place of logits, so sure that they are 0 and 1."""

    def forward(self, images: Tensor) -> Tensor:
        return (1e4 * self.net(images)).softmax(1)


class Rooted(Masked):
    """Adds nothing, with a gradient that is not a number."""

    def forward(self, images: Tensor) -> Tensor:
        nothing = (images * 0).sum((1, 2, 3)).sqrt()[:, None]
        return self.net(images) + nothing  # type: ignore[no-any-return]


class Turned(Masked):
    """The net, with its gradient turned round."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(2 * images.detach() - images)  # type: ignore[no-any-return]


class Keyhole(Masked):
    """The net, whose gradient shows at one image in eight.

    Elsewhere it leads to the blank edge of the picture, so that an attack which has seen nothing
    stands elsewhere at its next step.
    """

    def forward(self, images: Tensor) -> Tensor:
        still = images.detach()
        mixed = (still.double() * torch.arange(1.0, 65.0).view(8, 8).sqrt()).sum((1, 2, 3)) * 1e3
        opened = (mixed.frac() < 1 / 8).to(images.dtype).view(-1, 1, 1, 1)
        rows = torch.arange(1.0, 9.0, dtype=torch.float64)
        toward = (mixed[:, None] * rows.sqrt()).frac().sub(0.5).sign().to(images.dtype)
        # Worth nothing: only its gradient is there.
        edge = ((images - still)[:, 0, :, 0] * toward).sum(1) * (1 - opened.flatten())
        scores = self.net(still + opened * (images - still))
        return torch.cat((scores[:, :1] + edge[:, None], scores[:, 1:]), 1)


class Wavy(Masked):
    """A net whose gradient has its sign turned where an iterated attack would arrive.

    Near the clean image the gradient is honest; a step size below the full one moves into a
    region in which the pixels are read as they were, so that only the whole step does harm.
    """

    def __init__(self, net: nn.Module, origin: Tensor, width: float) -> None:
        super().__init__(net)
        self.width = width
        self.register_buffer("origin", origin)

    def forward(self, images: Tensor) -> Tensor:
        # Which of the known images this is: the nearest one.
        flat, known = images.flatten(1), self.origin.flatten(1)
        nearest = known[torch.cdist(flat.detach(), known).argmin(1)].view_as(images)
        delta = images - nearest
        far = (delta.abs() > self.width).to(images.dtype)
        honest = self.net(images)
        masked = self.net(nearest + far * delta - (1 - far) * delta)
        return torch.where(delta.flatten(1).abs().amax(1, keepdim=True) == 0, honest, masked)


class Signs(Purifier):
    """Shows only on which side of grey a pixel lies: its gradient is zero everywhere."""

    name = "signs"
    backwards = ("exact",)
    adaptive = ("exact",)

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        reading = 0.5 + 0.5 * torch.sign(images - 0.5)
        return Purified(reading, reading)


class Drowned(Purifier):
    """The identity, whose gradient is multiplied by -2 or 4 at random in every pixel."""

    name = "drowned"
    stochastic = True
    backwards = ("exact",)
    adaptive = ("exact",)

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        coin = (ctx.uniform("coin", images.shape[1:]) < 0.5).to(images.dtype)
        reading = images + 3 * (1 - 2 * coin) * (images - images.detach())
        return Purified(reading, reading)


def test_the_bare_net_is_broken_and_raises_none() -> None:
    found = run(linear_net(), attacks="fgsm,pgd-5,square-200", probe_images=COUNT)
    assert flags(found) == {}
    assert found.clean_accuracy is not None
    assert found.worst_case_accuracy is not None
    assert found.worst_case_accuracy < found.clean_accuracy - 0.5


def test_quantized_input() -> None:
    found = run(
        Rounding(linear_net()), attacks="fgsm,pgd-5,square-200", attackers=("adaptive",),
        probe_images=COUNT,
    )  # fmt: skip
    raised = flags(found)
    assert set(raised) >= {"zero-gradients", "black-box-beats-white-box"}
    assert "zero at most of the steps" in raised["zero-gradients"]["evidence"]
    assert "not attacked at all" in raised["zero-gradients"]["meaning"]
    numbers = raised["black-box-beats-white-box"]["numbers"]
    assert numbers["second"] - numbers["first"] > 0.2
    assert numbers["n"] == COUNT
    # The headline is not taken in.
    assert found.worst_case_accuracy == pytest.approx(numbers["first"], abs=0.05)


def test_exploding_logits() -> None:
    honest, exploding = run(linear_net()), run(linear_net(scale=1e6))
    assert exploding.clean_accuracy == honest.clean_accuracy
    assert "zero-gradients" in flags(exploding)
    assert honest.worst_case_accuracy is not None
    assert exploding.worst_case_accuracy is not None
    assert exploding.worst_case_accuracy > honest.worst_case_accuracy + 0.1, "it looks robust"
    # The margin does not saturate: the same attack with it finds what is there.
    margin = run(linear_net(scale=1e6), attacks="fgsm?loss=margin,pgd-5?loss=margin")
    assert flags(margin) == {}


def test_saturated_probabilities() -> None:
    found = run(Saturated(linear_net()))
    assert "zero-gradients" in flags(found)


def test_gradients_that_are_not_numbers() -> None:
    raised = flags(run(Rooted(linear_net())))
    assert "nan-gradients" in raised
    assert raised["nan-gradients"]["title"] == "Gradients are not a number"


def test_a_purifier_of_signs() -> None:
    found = run(Defense(linear_net(), purifier=Signs()), attackers=("adaptive",))
    raised = flags(found)
    assert "zero-gradients" in raised, "the gradient of the net behind it tells nothing of it"
    assert raised["zero-gradients"]["numbers"]["share"] > 0.2


def test_a_purifier_with_a_declared_gradient_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def masked() -> AuditResult:
        return run(Defense(linear_net(), purifier=Blind()))

    whole = masked()
    assert "transfer-beats-adaptive" not in flags(whole), "the bare net's gradient breaks it too"
    # An attacker who had but the declared gradient would do worse than one who knows nothing.
    monkeypatch.setattr("unperturb.audit.run.adaptive_backwards", lambda *_: ("exact",))
    found = masked()
    raised = flags(found)
    assert {"transfer-beats-adaptive", "zero-gradients"} <= set(raised)
    by = found.summary["target"]["worst_by_attacker"]
    numbers = raised["transfer-beats-adaptive"]["numbers"]
    assert numbers["first"] == by["oblivious"]["accuracy"] < by["adaptive"]["accuracy"]
    # The headline is not taken in.
    assert found.worst_case_accuracy == by["oblivious"]["accuracy"]
    assert whole.worst_case_accuracy is not None
    assert whole.worst_case_accuracy <= found.worst_case_accuracy


def test_a_gradient_drowned_in_noise() -> None:
    found = run(
        Defense(linear_net(), purifier=Drowned()), attacks="pgd-5", attackers=("adaptive",),
        gradient_draws=1, probe_images=COUNT,
    )  # fmt: skip
    raised = flags(found)
    assert "more-draws-lower-accuracy" in raised
    numbers = raised["more-draws-lower-accuracy"]["numbers"]
    assert numbers["second"] - numbers["first"] > 0.1
    assert numbers["n"] == COUNT


def test_honest_noise_and_enough_draws() -> None:
    found = run(
        Defense(linear_net(), purifier=Noisy(size=0.2)), attacks="pgd-5", gradient_draws=20,
        probe_images=COUNT,
    )  # fmt: skip
    assert flags(found) == {}


def test_a_gradient_seen_through_a_keyhole() -> None:
    found = run(Keyhole(linear_net()), attackers=("adaptive",), probe_images=COUNT)
    raised = flags(found)
    assert "more-steps-lower-accuracy" in raised
    assert raised["more-steps-lower-accuracy"]["numbers"]["n"] == COUNT


def test_one_step_beats_an_iterated_attack() -> None:
    images, _ = digits(COUNT)
    net = Wavy(linear_net(), images, 0.09)
    found = run(net, attacks="fgsm,bim-2", attackers=("oblivious",))
    by = {row["attack"]: row["cells"]["target"]["oblivious"] for row in found.summary["table"]}
    assert by["fgsm"]["accuracy"] < by["bim-2"]["accuracy"] - 0.1
    raised = flags(found)
    assert (
        "oblivious attacker: accuracy under fgsm and bim-2"
        in (raised["one-step-beats-iterative"]["evidence"])
    )


def test_a_gradient_turned_round() -> None:
    found = run(Turned(linear_net()), count=128, probe_images=128)
    raised = flags(found)
    assert {"attack-above-clean", "attack-does-nothing", "accuracy-at-huge-eps"} <= set(raised)
    assert raised["accuracy-at-huge-eps"]["numbers"]["n"] == 128
    assert raised["accuracy-at-huge-eps"]["numbers"]["eps"] == "0.5"
    assert raised["attack-above-clean"]["numbers"]["repaired"] > 0.2


def test_tpap_around_a_net_that_never_overfitted() -> None:
    assert "robust-overfitting-never-reached" in flags(run(tpap(linear_net())))


# -- honest nets --------------------------------------------------------------------------------


# How many images a test can afford; all of them on a thousand is for a tool to say.
HONEST = {
    "cifar10-resnet20-standard": 24,
    "cifar10-resnet20-pgd": 24,
    "cifar-resnet20@cifar10-resnet20": 24,
    "cifar-robust-resnet-4b@cifar10-robust-resnet-4b": 64,
    "cifar-robust-cnn-wide@cifar10-robust-cnn-wide": 64,
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_net_raises_none(name: str, assets: Path) -> None:
    arch, at, file = name.partition("@")
    if at:
        net = load_classifier(f"{arch}@{assets / 'models' / file}.safetensors")
    else:
        folder = ROOT / "zoo" / arch
        if not (folder / "model.safetensors").is_file():
            pytest.skip(f"zoo/{arch} has not been trained")
        net = load_classifier(str(folder))
    data = load_images(str(assets / "data" / "cifar10"), split="test", limit=HONEST[name])
    found = audit(
        net, data.images(), data.labels, threat=Linf(8 / 255), attacks="quick", batch_size=32,
        keep_images="none",
    )  # fmt: skip
    assert found.summary["flags"] == []
    assert found.summary["curves"]["huge"]["target"]["correct"] == 0
    assert found.worst_case_accuracy is not None
    assert found.clean_accuracy is not None
    assert found.worst_case_accuracy < found.clean_accuracy - 0.2


@pytest.mark.parametrize("attack", ["deepfool", "cw-l2-20", "apgd-t-20", "ddn-20"])
def test_dead_gradients_are_seen_under_every_attack(attack: str) -> None:
    """Zeros are compared with the gradients that were evaluated, not with the most there can be."""
    found = run(Defense(linear_net(), purifier=Blind()), attacks=attack, attackers=("adaptive",))
    assert "zero-gradients" in flags(found)
