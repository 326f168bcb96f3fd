"""What an audit is given: left as it was, and refused where it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audit.doubles import EPS, conv_net, digits, linear_net
from unperturb.attacks import make_attack
from unperturb.audit import audit
from unperturb.errors import AttackError, InputError
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
