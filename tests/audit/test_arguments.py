"""What an audit is given: left as it was, and refused where it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audit.doubles import EPS, arguments, conv_net, digits, linear_net, small
from unperturb.attacks import make_attack
from unperturb.audit import audit
from unperturb.errors import AttackError, ConfigError, InputError, SpecError, UnperturbError
from unperturb.presets import tpap
from unperturb.threat import Linf

# -- what is left alone -------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_users_module_is_untouched(
    training: bool,
    untouched: Callable[[nn.Module], AbstractContextManager[nn.Module]],
    conv: Callable[..., nn.Module],
    pixels: Callable[..., Tensor],
) -> None:
    net = conv().train(training)
    first = next(net.parameters())
    first.requires_grad_(False)
    last = list(net.parameters())[-1]
    last.grad = torch.ones_like(last)
    images = pixels(6)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    copies = images.clone(), labels.clone()
    with untouched(net):
        for subject in (net, tpap(net)):
            audit(subject, images, labels, threat=Linf(EPS), attacks="fgsm,pgd-2")
    assert torch.equal(images, copies[0])
    assert torch.equal(labels, copies[1])
    assert torch.equal(last.grad, torch.ones_like(last))


def test_an_audit_works_inside_no_grad_and_inference_mode() -> None:
    images, labels = digits(8)
    common: dict[str, Any] = {"threat": Linf(EPS), "attacks": "fgsm"}
    defense = tpap(linear_net())
    plain = audit(defense, images, labels, **common)
    with torch.no_grad():
        assert audit(defense, images, labels, **common).digest == plain.digest
    with torch.inference_mode():
        assert audit(defense, images, labels, **common).digest == plain.digest
        assert audit(defense, images.clone(), labels, **common).digest == plain.digest


# -- what is refused ----------------------------------------------------------------------------


def test_wrong_input_is_told() -> None:
    images, labels = digits(4)
    net = conv_net()

    def refused(words: str, x: Any = images, y: Any = labels, net: nn.Module = net) -> None:
        with pytest.raises(InputError, match=words):
            audit(tpap(net), x, y, threat=Linf(EPS), attacks="fgsm")

    refused("1 of 4 labels lie outside the classes: the first is 10, at position 2.*from 0 to 9",
            y=torch.tensor([0, 1, 10, 2]))  # fmt: skip
    refused("first is -1", y=torch.tensor([-1, 1, 2, 3]))
    refused(r"Labels have shape \(3,\)", y=labels[:3])
    refused("Labels are of dtype float32", y=labels.float())
    refused("There is no image", x=images[:0], y=labels[:0])
    refused("Images have 3 channels.*Expected: 1 channel", x=images.expand(-1, 3, -1, -1))
    refused("divide by 255", x=images * 255)
    refused(r"images\.float\(\) / 255", x=(images * 255).to(torch.uint8))
    refused("1 of 4 images hold NaN", x=torch.where(torch.arange(4).view(-1, 1, 1, 1) == 1,
                                                      torch.nan, images))  # fmt: skip
    refused("add a batch dimension", x=images[0], y=labels[:1])


def test_two_attacks_of_one_name_are_refused() -> None:
    images, labels = digits(4)
    fgsm = make_attack("fgsm")
    with pytest.raises(AttackError, match="different settings are named 'fgsm'"):
        audit(linear_net(), images, labels, threat=Linf(EPS),
              attacks=[fgsm, replace(fgsm, step_size=0.5)])  # fmt: skip


def test_settings_out_of_range() -> None:
    for change, words in (
        ({"batch_size": 0}, "batch_size is 0.*at least 1"),
        ({"scoring_draws": 0, "defense": arguments()["defense"]}, "scoring_draws is 0"),
        ({"seed": -1}, "The seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"time_budget": 0.0}, "time_budget is 0.0.*seconds above 0"),
        ({"attackers": ()}, "No attacker is named.*oblivious and adaptive"),
    ):
        with pytest.raises(ConfigError, match=words):
            audit(**small(**change))
    for change, words in (
        ({"attackers": ("adaptive", "adaptiv")}, "Unknown attacker 'adaptiv'.*did you mean 'adap"),
        ({"attackers": "obvious"}, "Unknown attacker 'obvious'"),
        ({"keep_images": "best"}, "Unknown keep_images 'best'"),
        ({"attacks": "pdg"}, "Unknown attack 'pdg'.*did you mean 'pgd'"),
    ):
        with pytest.raises(SpecError, match=words):
            audit(**small(**change))
    for change, words in (
        ({"ids": ["a"] * 8}, "Image ids repeat"),
        ({"ids": ["a"]}, "1 ids for 8 images"),
    ):
        with pytest.raises(InputError, match=words):
            audit(**small(**change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attacks": None}, "The attacks are None.*a suite"),
        ({"attacks": 5}, "The attacks are 5"),
        ({"outside": {"a": None}}, "The outside images 'a' are None.*a folder"),
        ({"outside": [1]}, r"outside is \[1\].*a dictionary"),
        ({"probe_images": "x"}, "probe_images is 'x'.*a whole number"),
        ({"attackers": None}, "attackers is None.*some of oblivious"),
        ({"ids": 5}, "ids is 5.*one name for each image"),
        ({"shard": 3}, r"shard is 3.*a pair \(i, n\)"),
    ],
    ids=str,
)
def test_arguments_of_another_kind_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UnperturbError, match=words):
        audit(**small(**change))


def test_one_attacker_may_be_named_as_a_string() -> None:
    assert audit(**small(attackers="adaptive")).plan["settings"]["attackers"] == ["adaptive"]
    both = audit(**small(attackers=["adaptive", "oblivious", "adaptive"]))
    assert both.plan["settings"]["attackers"] == ["oblivious", "adaptive"]


def test_nothing_is_written_for_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        audit(**small(out=tmp_path / "out", labels=torch.full((8,), 10)))
    assert not (tmp_path / "out").exists()
