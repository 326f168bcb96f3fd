"""Grad-CAM: closed forms on linear networks, parity with captum, places, layers, what stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.classifiers import as_classifier, new_classifier
from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.explain import gradcam
from unperturb.explain.layers import choose_layer, spatial_layers
from unperturb.networks.geometry import Geometry
from unperturb.presets import tpap

Net = Callable[..., nn.Module]


def mean_net() -> nn.Module:
    """Two maps, the image and its double, averaged; logits are (mean, -mean) times constants."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        net = nn.Sequential(
            nn.Conv2d(1, 2, 1, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2, 2, bias=False),
        )
        net[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))  # type: ignore[union-attr, operator]
        net[3].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))  # type: ignore[union-attr, operator]
    return net.eval()


def test_on_a_linear_network_the_map_is_the_image_itself(pixels: Callable[..., Tensor]) -> None:
    images = pixels(3, channels=1, side=6)
    found = gradcam(mean_net(), images)
    # alpha_k = v_k / Z, so L = ReLU((1 + 2) x) / Z; scaled by its largest value, x / max x.
    assert found.layer == "0"
    assert torch.equal(found.targets, torch.zeros(3, dtype=torch.int64))
    expected = images[:, 0] / images.flatten(1).amax(1).view(-1, 1, 1)
    torch.testing.assert_close(found.maps, expected)


def test_a_map_without_evidence_stays_zero(pixels: Callable[..., Tensor]) -> None:
    labels = torch.ones(3, dtype=torch.int64)
    found = gradcam(mean_net(), pixels(3, channels=1), labels=labels)
    assert torch.equal(found.targets, labels)
    assert not bool(found.maps.any())


def test_a_crop_is_put_back_into_the_whole_image(pixels: Callable[..., Tensor]) -> None:
    images = pixels(2, channels=1, side=9)
    classifier = as_classifier(mean_net(), num_classes=2, geometry=Geometry(crop=(4, 5)))
    maps = gradcam(classifier, images).maps
    inside = torch.zeros(9, 9, dtype=torch.bool)
    # round(5 / 2) = 2 rows above, round(4 / 2) = 2 columns to the left.
    inside[2:6, 2:7] = True
    assert not bool(maps[:, ~inside].any())
    shown = images[:, 0, 2:6, 2:7]
    expected = shown / shown.flatten(1).amax(1).view(-1, 1, 1)
    torch.testing.assert_close(maps[:, 2:6, 2:7], expected)


def test_a_resize_is_undone(pixels: Callable[..., Tensor]) -> None:
    images = torch.zeros(1, 1, 8, 8)
    images[:, :, 1:3, 5:7] = 1.0
    classifier = as_classifier(mean_net(), num_classes=2, geometry=Geometry(resize=(16, 16)))
    found = gradcam(classifier, images).maps
    assert found.shape == (1, 8, 8)
    assert float(found[0, 1:3, 5:7].min()) > 0.8
    far = found.clone()
    far[:, 0:4, 4:8] = 0
    assert not bool(far.any())


@pytest.mark.parametrize("layer", ["0", "2", "3", "5"])
def test_parity_with_captum(layer: str, conv: Net, pixels: Callable[..., Tensor]) -> None:
    attr = pytest.importorskip("captum.attr")
    net, images = conv(), pixels(5)
    labels = torch.tensor([0, 1, 2, 3, 4])
    found = gradcam(net, images, labels=labels, layer=layer)
    outside = attr.LayerGradCam(net, net.get_submodule(layer))
    with torch.enable_grad():
        heat = outside.attribute(images, labels, relu_attributions=True).detach()
    heat = attr.LayerAttribution.interpolate(heat, (8, 8), "bilinear")[:, 0]
    assert bool((heat.flatten(1).amax(1) > 0).sum() >= 3), "too few maps to compare"
    highest = heat.flatten(1).amax(1).view(-1, 1, 1).clamp(min=1e-30)
    torch.testing.assert_close(found.maps, heat / highest, rtol=1e-4, atol=1e-5)


def test_range_scale_and_answers(conv: Net, pixels: Callable[..., Tensor]) -> None:
    net, images = conv(), pixels(16)
    found = gradcam(net, images)
    assert found.maps.shape == (16, 8, 8)
    assert float(found.maps.min()) >= 0
    highest = found.maps.flatten(1).amax(1)
    assert bool(((highest == 1) | (highest == 0)).all())
    assert bool((highest == 1).any())
    torch.testing.assert_close(found.logits, net(images).detach())
    assert torch.equal(found.targets, found.logits.argmax(1))


def test_an_image_has_the_same_map_in_any_batch(conv: Net, pixels: Callable[..., Tensor]) -> None:
    net, images = conv(), pixels(5)
    whole = gradcam(net, images).maps
    torch.testing.assert_close(gradcam(net, images, batch_size=2).maps, whole)
    torch.testing.assert_close(gradcam(net, images[3:4]).maps, whole[3:4])


def test_nothing_of_the_users_changes(
    conv: Net, pixels: Callable[..., Tensor], untouched: Any
) -> None:
    net, images = conv(), pixels(3)
    expected = gradcam(net, images).maps
    net.train()
    net[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    net[8].weight.grad = torch.ones_like(net[8].weight)  # type: ignore[arg-type]
    with untouched(net), torch.inference_mode():
        inference = gradcam(net, images + 0).maps
    torch.testing.assert_close(inference, expected)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with untouched(net), torch.no_grad():
        torch.testing.assert_close(gradcam(net, images).maps, expected)
    assert not images.requires_grad


def test_a_step_in_place_behind_the_layer_does_not_change_it(
    pixels: Callable[..., Tensor], conv: Net
) -> None:
    net, images = conv(), pixels(4)
    expected = gradcam(net, images, layer="4").maps
    assert isinstance(net[5], nn.ReLU)
    net[5].inplace = True
    torch.testing.assert_close(gradcam(net, images, layer="4").maps, expected)


class _Twice(nn.Module):
    """One ReLU used twice, or two."""

    def __init__(self, *, shared: bool, net: nn.Module) -> None:
        super().__init__()
        self.net, self.first = net, nn.ReLU()
        self.second = self.first if shared else nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.second(self.net[4](self.net[3](self.first(self.net[0](images)))))  # type: ignore[index, operator]
        return self.net[8](self.net[7](self.net[6](hidden)))  # type: ignore[index, operator, no-any-return]


def test_of_several_uses_the_last_counts(conv: Net, pixels: Callable[..., Tensor]) -> None:
    net, images = conv(), pixels(3)
    apart = gradcam(_Twice(shared=False, net=net).eval(), images, layer="second")
    shared = gradcam(_Twice(shared=True, net=net).eval(), images, layer="first")
    assert bool(apart.maps.any())
    torch.testing.assert_close(shared.maps, apart.maps)
    names = spatial_layers(as_classifier(_Twice(shared=True, net=net).eval()), images)
    assert names.index("first") > names.index("net.4")


@pytest.mark.parametrize(
    ("arch", "options", "side", "layer"),
    [
        ("cifar-resnet20", {}, 32, "layer3"),
        ("small-cnn", {"in_channels": 1}, 8, "bn3"),
    ],
)
def test_the_layer_taken_by_default(
    arch: str, options: dict[str, Any], side: int, layer: str
) -> None:
    classifier = new_classifier(arch, seed=0, **options)
    images = torch.rand(1, options.get("in_channels", 3), side, side, generator=torch.Generator())
    assert choose_layer(classifier, images) == layer
    names = spatial_layers(classifier, images)
    assert names[-1] == layer
    assert names[0] == "conv1"


class _Compiled(nn.Module):
    """Stands for what ``torch.compile`` gives: it runs the layers without their hooks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._orig_mod = net

    def forward(self, images: Tensor) -> Tensor:
        for layer in self._orig_mod.children():
            images = layer.forward(images)
        return images


def test_a_compiled_network_is_looked_into(
    conv: Net, pixels: Callable[..., Tensor], untouched: Any
) -> None:
    net, images = conv(), pixels(2)
    expected = gradcam(net, images).maps
    with untouched(net):
        found = gradcam(_Compiled(net).eval(), images).maps
    torch.testing.assert_close(found, expected)


# -- what is refused ------------------------------------------------------------------------------


class _Beside(nn.Module):
    """A convolution whose result is not used, and a layer that is never called."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.aside, self.never = net, nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        self.aside(images)
        return self.net(images)  # type: ignore[no-any-return]


def test_layers_that_cannot_serve_are_refused(
    conv: Net, linear: Net, pixels: Callable[..., Tensor], untouched: Any
) -> None:
    net, images = conv(), pixels(2)
    with untouched(net):
        with pytest.raises(SpecError, match="Unknown layer '77'.*such as 0, 1, 2, 3, 4, 5, 6"):
            gradcam(net, images, layer="77")
        with pytest.raises(SpecError, match=r"layer '8' gives \(5,\).*such as 0, 1"):
            gradcam(net, images, layer="8")
    with torch.random.fork_rng(devices=[]):
        beside = _Beside(net).eval()
    with pytest.raises(SpecError, match="did you mean 'net.0' or"):
        gradcam(beside, images, layer="nett.0")
    with pytest.raises(SpecError, match="'never' is not called"):
        gradcam(beside, images, layer="never")
    with untouched(beside), pytest.raises(SpecError, match="do not depend on the layer 'aside'"):
        gradcam(beside, images, layer="aside")
    with pytest.raises(SpecError, match=r"no layer that gives maps.*0 \(16,\), 1 \(2,\)"):
        gradcam(linear(), pixels(2, channels=1, side=4))


def test_wrong_arguments_are_refused(conv: Net, pixels: Callable[..., Tensor]) -> None:
    net, images = conv(), pixels(2)
    with pytest.raises(InputError, match="There is no image"):
        gradcam(net, images[:0])
    with pytest.raises(InputError, match="255"):
        gradcam(net, images * 255)
    with pytest.raises(InputError, match="labels from 0 to 4"):
        gradcam(net, images, labels=torch.tensor([0, 5]))
    with pytest.raises(ConfigError, match="batch_size is 0"):
        gradcam(net, images, batch_size=0)
    with pytest.raises(SpecError, match=r"gradcam\(defense.classifier"):
        gradcam(tpap(net), images)
    with pytest.raises(SpecError, match="The classifier is a str"):
        gradcam("net", images)  # type: ignore[arg-type]
