"""The FGSM step on its own: closed form on a linear model, and its settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unperturb.context import Context
from unperturb.errors import ConfigError
from unperturb.purifiers import FGSMStep, Identity


def test_closed_form_on_a_linear_model(linear: Any, pixels: Any) -> None:
    """With two classes the step is the sign of (w_other - w_own), whatever the image."""
    net, images = linear(), pixels(20, 1, 4)
    weight = net[1].weight.detach()
    own = net(images).argmax(1)
    assert 0 < int(own.sum()) < 20
    step = (weight[1 - own] - weight[own]).sign().view(-1, 1, 4, 4)
    found = FGSMStep(radius=0.1)(images, ctx=Context(net, images))
    torch.testing.assert_close(found.reading, images + 0.1 * step)
    assert found.images is found.reading
    assert found.reference is None


def test_clipping(linear: Any) -> None:
    images = torch.tensor([0.0, 0.05, 0.95, 1.0] * 4).view(1, 1, 4, 4)
    net = linear()
    clipped = FGSMStep(radius=0.1)(images, ctx=Context(net, images)).reading
    free = FGSMStep(radius=0.1, clip=False)(images, ctx=Context(net, images)).reading
    assert bool(((free < 0) | (free > 1)).any())
    assert torch.equal(clipped, free.clamp(0, 1))


@pytest.mark.parametrize(
    ("radius", "fix"), [(8, "write 8/255"), (0, ""), (-0.1, ""), (float("nan"), ""), (300, "")]
)
def test_radius_out_of_range(radius: float, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FGSMStep(radius=radius)
    assert f"The purification radius is {radius:g}" in str(caught.value)
    assert "in pixel units such as 8/255" in str(caught.value)
    assert fix in str(caught.value)
    assert ("Fix" in str(caught.value)) is bool(fix)


def test_identity_hands_the_very_images_on(conv: Any, pixels: Any) -> None:
    images = pixels(2)
    found = Identity()(images, ctx=Context(conv(), images))
    assert found.reading is images
    assert found.images is images
