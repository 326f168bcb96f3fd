"""Architectures: sizes, parameter counts that are published, features, and the registry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unperturb.errors import ConfigError, SpecError
from unperturb.networks import (
    NETWORKS,
    ArchSpec,
    SmallCNN,
    build_network,
    network_names,
    register,
    registry,
    resolve,
)

# Independent figures: He et al. 2016 (table 6, rounded), the public CIFAR implementations, and
# Iandola et al. 2016; the robust ones are counted by hand below.
COUNTS = {
    "cifar-resnet20": 269_722,
    "cifar-resnet56": 853_018,
    "cifar-resnet18": 11_173_962,
    "cifar-resnet34": 21_282_122,
    "cifar-resnet50": 23_520_842,
    "cifar-vgg16": 14_728_266,
    "squeezenet1_0": 1_248_424,
    "cifar-robust-cnn-wide": (48 * 16 + 16) + (256 * 32 + 32) + (2048 * 100 + 100) + 1010,
    "cifar-robust-cnn-deep": (48 * 8 + 8) + 2 * (72 * 8 + 8) + (128 * 8 + 8) + 51_300 + 1010,
    "cifar-robust-resnet-2b": (27 * 8 + 8)
    + (72 * 16 + 16)
    + 3 * (144 * 16 + 16)
    + (8 * 16 + 16)
    + 102_500
    + 1010,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameter_counts(name: str, count: int) -> None:
    spec, options = resolve(name)
    with torch.device("meta"):
        net = spec.build(num_classes=spec.num_classes, in_channels=spec.in_channels, **options)
    assert sum(p.numel() for p in net.parameters()) == count


def test_wrn_28_10_parameter_count() -> None:
    spec, options = resolve("cifar-wrn-28-10")
    with torch.device("meta"):
        net = spec.build(num_classes=10, in_channels=3, **options)
    assert sum(p.numel() for p in net.parameters()) == 36_479_194


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


SMALL = [n for n in network_names() if "wrn" not in n] + ["cifar-wrn-10-1", "cifar-resnet8"]


@pytest.mark.parametrize("name", SMALL)
def test_shapes_features_and_registry_facts(name: str) -> None:
    spec, _ = resolve(name)
    channels = 3 if spec.input_size else 2
    net = build_network(name, num_classes=7, in_channels=channels).eval()
    state = net.state_dict()
    assert state[spec.head].shape[0] == 7
    assert state[spec.stem].shape[1] == channels
    side = spec.input_size[0] if spec.input_size else max(spec.min_size, 32)
    x = images(2, channels, side, side)
    with torch.no_grad():
        logits, features = net(x), net.features(x)
    assert logits.shape == (2, 7)
    assert features.ndim == 2
    assert len(features) == 2
    last = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    if isinstance(last, nn.Linear):
        torch.testing.assert_close(last(features), logits)
    # No layer of another image's: each row depends on its own image only.
    with torch.no_grad():
        torch.testing.assert_close(net(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in SMALL if not resolve(n)[0].input_size])
def test_smallest_size_is_read(name: str) -> None:
    spec, _ = resolve(name)
    side = 64 if spec.geometry else spec.min_size
    with torch.no_grad():
        out = build_network(name).eval()(images(1, spec.in_channels, side, side))
    assert torch.isfinite(out).all()


def test_exact_name_comes_before_pattern() -> None:
    assert resolve("cifar-resnet50")[0].name == "cifar-resnet50"
    assert resolve("cifar-resnet110")[1] == {"depth": 110}
    assert resolve("CIFAR-WRN-34-20")[1] == {"depth": 34, "width": 20}


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"Unknown network 'cifar-resnt20'.*did you mean.*resnet20"):
        resolve("cifar-resnt20")


@pytest.mark.parametrize("name", ["cifar-resnet21", "cifar-wrn-27-10", "cifar-resnet2"])
def test_impossible_depth(name: str) -> None:
    with pytest.raises(SpecError, match=r"cannot be built: depth must be 6n"):
        build_network(name)


def test_pattern_cannot_be_named_literally() -> None:
    with pytest.raises(SpecError, match="Unknown network"):
        resolve("cifar-resnet{depth}")


def test_seeded_initialization_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (build_network("small-cnn", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.conv1.weight, two.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def test_dropout_option_of_wide_resnets() -> None:
    net = build_network("cifar-wrn-10-1", dropout=0.5)
    x = images(2, 3, 16, 16)
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_register_refuses_duplicates_and_bad_names() -> None:
    spec = NETWORKS["small-cnn"]
    with pytest.raises(ConfigError, match="'small-cnn' is registered twice"):
        register(spec)
    with pytest.raises(ConfigError, match="The network name is 'My@Net'"):
        register(ArchSpec("My@Net", SmallCNN, head="linear.weight", stem="conv1.weight"))


class _Entry:
    name, value = "tiny", "other.package:SPEC"

    def __init__(self, found: object) -> None:
        self.found = found

    def load(self) -> object:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class _Tiny(nn.Module):
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(registry, "NETWORKS", dict(NETWORKS))

    def declare(found: object) -> None:
        monkeypatch.setattr(registry, "entry_points", lambda group: [_Entry(found)])

    return declare


def test_third_party_network_through_an_entry_point(entry) -> None:  # type: ignore[no-untyped-def]
    entry(ArchSpec("tiny-mean", _Tiny, head="linear.weight", stem="linear.weight"))
    assert build_network("tiny-mean", num_classes=4)(images(2, 3, 5, 5)).shape == (2, 4)
    assert "tiny-mean" in network_names()
    assert build_network("tiny-mean").linear.out_features == 10


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (ImportError("no module"), r"'tiny' \(other.package:SPEC\) cannot be loaded: no module"),
        (3, r"'tiny' \(other.package:SPEC\) is a int"),
    ],
)
def test_broken_entry_point_is_named(entry, found: object, message: str) -> None:  # type: ignore[no-untyped-def]
    entry(found)
    with pytest.raises(SpecError, match=message):
        resolve("nothing-of-ours")


def test_small_cnn_learns_digits(digits: tuple[Tensor, Tensor]) -> None:
    train, test = (images[:1400] for images in digits), (images[1400:] for images in digits)
    (x, y), (x_test, y_test) = train, test
    net = build_network("small-cnn")
    assert 20_000 <= sum(p.numel() for p in net.parameters()) <= 50_000
    generator = torch.Generator().manual_seed(0)
    parameters = list(net.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    for epoch in range(12):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, v, g in zip(parameters, velocity, gradients, strict=True):
                    p.sub_(v.mul_(0.9).add_(g), alpha=0.05 if epoch < 9 else 0.01)
    net.eval()
    with torch.no_grad():
        accuracy = (net(x_test).argmax(1) == y_test).float().mean().item()
    assert accuracy > 0.97
