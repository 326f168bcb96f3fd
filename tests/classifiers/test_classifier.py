"""`Classifier`, `as_classifier` and `eval_view`: what is computed, and that the user's stays."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unperturb.classifiers import Classifier, Geometry, as_classifier, eval_view
from unperturb.errors import InputError, SpecError
from unperturb.networks import SmallCNN


def linear(channels: int = 1, classes: int = 3, side: int = 4) -> nn.Sequential:
    layer = nn.Linear(channels * side * side, classes, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return nn.Sequential(nn.Flatten(), layer)


def made(build: Callable[..., nn.Module], *args: object, **kwargs: object) -> nn.Module:
    """Build a module without drawing from the global generator."""
    with torch.random.fork_rng(devices=[]):
        return build(*args, **kwargs)


def small(**kwargs: object) -> nn.Module:
    return made(SmallCNN, **kwargs)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def test_normalization_is_per_channel() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    classifier = Classifier(
        nn.Flatten(), num_classes=12, input_shape=(3, None, None), mean=mean, std=std
    )
    x = images(2, 3, 2, 2)
    wanted = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(classifier(x), wanted.flatten(1))
    assert classifier.mean == mean
    assert classifier.std == std


def test_no_normalization_hands_on_the_very_tensor() -> None:
    x = images(1, 1, 4, 4)
    assert as_classifier(linear(), input_shape=(1, 4, 4)).prepare(x) is x


def test_one_value_stands_for_all_channels() -> None:
    classifier = Classifier(
        nn.Flatten(), num_classes=12, input_shape=(3, 2, 2), mean=[0.5], std=[2.0]
    )
    assert classifier.mean == (0.5,) * 3
    assert classifier.std == (2.0,) * 3


def test_channels_last_is_kept() -> None:
    classifier = Classifier(
        nn.Identity(), num_classes=2, input_shape=(3, None, None), mean=[0.5], std=[0.5]
    )
    x = images(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert classifier(x).is_contiguous(memory_format=torch.channels_last)


def test_geometry_comes_first() -> None:
    net = linear()
    classifier = Classifier(net, num_classes=3, mean=[0.5], std=[0.5], geometry=Geometry(4, (4, 4)))
    x = images(2, 1, 8, 8)
    torch.testing.assert_close(classifier(x), net((Geometry(4).apply(x) - 0.5) / 0.5))


def test_stays_in_eval_mode_inside_a_training_parent() -> None:
    classifier = as_classifier(small())
    parent = nn.Sequential(classifier)
    parent.train()
    assert parent.training
    assert not any(part.training for part in classifier.modules())
    classifier.train()
    assert not classifier.training


class Net(nn.Module):
    """Everything that a structural copy could get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(1, 1, 3, padding=1)
        self.body = nn.Sequential(self.shared, nn.BatchNorm2d(1), nn.Dropout(0.9), self.shared)
        self.hidden = [nn.Dropout(0.9)]  # a plain list: PyTorch does not know of it
        self.head = nn.Linear(16, 3)
        self.register_buffer("offset", torch.zeros(3))
        self.bound = self.body.forward

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden[0](self.bound(x))
        return self.head(x.flatten(1)) + self.offset


def test_view_shares_tensors_and_leaves_flags() -> None:
    net = made(Net)
    net.body[1].eval()  # a mixture of modes is kept as well
    flags = [m.training for m in net.modules()]
    view = eval_view(net)
    assert view is not net
    assert [m.training for m in net.modules()] == flags
    assert not any(m.training for m in view.modules())
    assert type(view) is Net
    mine, theirs = net.state_dict(), view.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(mine[k].data_ptr() == theirs[k].data_ptr() for k in mine)
    assert view.body[0] is view.body[3] is view.shared
    assert view.shared is not net.shared
    assert not view.hidden[0].training
    assert net.hidden[0].training
    x = images(2, 1, 4, 4)
    with torch.no_grad():
        once = view(x)
        assert torch.equal(once, view(x))
        net.eval()
        net.hidden[0].eval()
        assert torch.equal(once, net(x))


def test_view_of_eval_module_is_the_module() -> None:
    net = made(Net).eval()
    assert eval_view(net) is net
    assert Classifier(net, num_classes=3).module is net


def test_view_follows_later_changes() -> None:
    net = made(Net)
    view = eval_view(net)
    net.load_state_dict({k: torch.ones_like(v) for k, v in net.state_dict().items()})
    assert float(view.offset.sum()) == 3
    net.double()  # replaces buffers
    assert view.offset.dtype == torch.float64
    net.head.weight = nn.Parameter(torch.zeros(3, 16))
    assert view.head.weight is net.head.weight


def test_view_keeps_hooks() -> None:
    net, seen = made(Net), []
    net.head.register_forward_hook(lambda module, args, out: seen.append(module))
    view = eval_view(net)
    view(images(2, 1, 4, 4))
    assert seen == [view.head]


def test_parametrized_and_weight_normed_modules() -> None:
    layer = nn.utils.parametrizations.weight_norm(made(nn.Linear, 16, 3))
    net = nn.Sequential(nn.Flatten(), layer, nn.Dropout())
    x = images(2, 1, 4, 4)
    wanted = copy.deepcopy(net).eval()(x)
    torch.testing.assert_close(eval_view(net)(x), wanted)
    assert net.training


def test_compiled_module_is_unwrapped() -> None:
    net = nn.Sequential(nn.Flatten(), made(nn.Linear, 16, 3), nn.Dropout())
    compiled = torch.compile(net, backend="eager")
    view = eval_view(compiled)
    assert type(view) is nn.Sequential
    assert view[1].weight is net[1].weight
    assert not view.training
    assert net.training


@pytest.mark.filterwarnings("ignore")
def test_script_module_in_training_mode_is_refused() -> None:
    net = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Dropout()))
    with pytest.raises(SpecError, match=r"TorchScript module is in training mode.*call \.eval\(\)"):
        eval_view(net)


def test_user_module_is_untouched_by_everything(untouched) -> None:  # type: ignore[no-untyped-def]
    net = made(Net)
    net.body[1].eval()
    net.head.weight.requires_grad_(False)
    net.head.bias.grad = torch.ones(3)
    x = images(4, 1, 4, 4)
    with untouched(net):
        classifier = as_classifier(net, input_shape=(1, 4, 4))
        classifier.check(x)
        pixels = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(classifier(pixels).sum(), pixels)
        classifier.fingerprint(), classifier.describe()
        nn.Sequential(classifier).train()
    assert torch.isfinite(grad).all()


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] + torch.rand(len(x), 3)


def test_probes_put_the_random_state_back() -> None:
    state = torch.get_rng_state()
    classifier = as_classifier(Noisy())
    assert classifier.num_classes == 3
    classifier.check(images(2, 1, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_check_catches_a_module_switched_to_training() -> None:
    net = made(Net).eval()
    classifier = Classifier(net, num_classes=3)
    net.train()
    classifier.check(images(2, 1, 4, 4))
    assert not any(m.training for m in classifier.modules())
    assert net.training


def test_made_under_inference_mode_still_gives_gradients() -> None:
    net = linear()
    with torch.inference_mode():
        classifier = Classifier(net, num_classes=3, mean=[0.5], std=[0.5])
    x = images(1, 1, 4, 4).requires_grad_()
    (grad,) = torch.autograd.grad(classifier(x)[:, 0].sum(), x)
    torch.testing.assert_close(grad.flatten(), net[1].weight[0].detach() / 0.5)


@pytest.mark.parametrize("side", [32, 28, 8])
def test_classes_and_channels_are_found(side: int) -> None:
    net = nn.Sequential(
        made(nn.Conv2d, 2, 2, 1), nn.Flatten(), made(nn.Linear, 2 * side * side, 7), nn.Dropout()
    )
    classifier = as_classifier(net)
    assert classifier.num_classes == 7
    assert classifier.input_shape == (2, None, None)


@pytest.mark.parametrize(("features", "size"), [(64, (1, 8, 8)), (3 * 25, (3, 5, 5))])
def test_classes_of_a_linear_net_are_found(features: int, size: tuple[int, ...]) -> None:
    classifier = as_classifier(nn.Sequential(nn.Flatten(), made(nn.Linear, features, 5)))
    assert classifier.num_classes == 5
    assert classifier(images(2, *size)).shape == (2, 5)


def test_as_classifier_returns_a_classifier_as_it_is() -> None:
    classifier = as_classifier(small())
    assert as_classifier(classifier) is classifier
    with pytest.raises(SpecError, match=r"already.*classifier\.module"):
        as_classifier(classifier, num_classes=3)


def test_features() -> None:
    net = small()
    x = images(2, 1, 8, 8)
    classifier = as_classifier(net)
    assert torch.equal(classifier.features(x), net.eval().features(x))
    with pytest.raises(InputError, match="gives no features"):
        as_classifier(linear(), num_classes=3).features(images(1, 1, 4, 4))


# --- fingerprints ----------------------------------------------------------------------------


def test_fingerprint_tells_what_matters_apart() -> None:
    def variant(**kwargs: object) -> Classifier:
        kwargs.setdefault("module", linear())
        return Classifier(num_classes=3, input_shape=(1, 4, 4), **kwargs)  # type: ignore[arg-type]

    base = variant().fingerprint()
    other = linear()
    with torch.no_grad():
        other[1].bias[0] += 1e-6
    different = [
        variant(module=other),
        variant(module=nn.Sequential(*linear(), nn.ReLU())),
        variant(mean=[0.5], std=[1.0]),
        variant(geometry=Geometry(4)),
        variant(module=linear().double()),
    ]
    prints = [base, *(c.fingerprint() for c in different)]
    assert len(set(prints)) == len(prints)
    assert variant().fingerprint() == base
    assert variant(module=linear().eval()).fingerprint() == base


def test_fingerprint_follows_changes_in_place() -> None:
    net = linear()
    classifier = Classifier(net, num_classes=3)
    first = classifier.fingerprint()
    assert classifier.fingerprint() == first
    with torch.no_grad():
        net[1].weight.mul_(2)
    changed = classifier.fingerprint()
    assert changed != first
    assert copy.deepcopy(classifier).fingerprint() == changed


def test_fingerprint_ignores_batch_counters() -> None:
    one = small()
    two = copy.deepcopy(one)
    two.bn1.num_batches_tracked += 5
    assert as_classifier(one).fingerprint() == as_classifier(two).fingerprint()


def test_describe_is_json() -> None:
    import json

    classifier = Classifier(linear(), num_classes=3, geometry=Geometry(4, (4, 4)))
    facts = json.loads(json.dumps(classifier.describe(), allow_nan=False))
    assert facts["num_classes"] == 3
    assert facts["parameters"] == 51
    assert facts["geometry"]["crop"] == [4, 4]
    assert facts["arch"].endswith("Sequential")


# --- errors ----------------------------------------------------------------------------------


def test_fewer_than_two_classes() -> None:
    with pytest.raises(SpecError, match=r"has 1 class\. Expected: at least 2 .*\(0, z\)"):
        Classifier(linear(classes=1), num_classes=1)
    with pytest.raises(SpecError, match=r"has 1 class\."):
        as_classifier(linear(classes=1), input_shape=(1, 4, 4))


def test_not_a_module() -> None:
    with pytest.raises(SpecError, match="The classifier is a function"):
        as_classifier(lambda x: x)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], None, "both or neither"),
        ([0.5, 0.5], [0.5, 0.5], "has 2 means and 2 standard deviations. Expected: 3 of each"),
        ([0.5] * 3, [0.5, 0.0, 0.5], "standard deviations above 0"),
        ([float("nan")] * 3, [0.5] * 3, "finite means"),
    ],
)
def test_bad_normalization(mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Classifier(nn.Flatten(), num_classes=3, input_shape=(3, None, None), mean=mean, std=std)


def test_grey_images_for_a_color_net() -> None:
    classifier = as_classifier(small(in_channels=3))
    with pytest.raises(InputError, match=r"1 channel\. Expected: 3 channels.*expand\(-1, 3"):
        classifier.check(images(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 8, 8), "rank 3"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 8, 8), 255.0), "divide by 255"),
        (torch.full((1, 3, 8, 8), torch.nan), "NaN"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), r"float64.*images\.to\(torch\.float32\)"),
        (torch.zeros(1, 3, 3, 8), r"3x8.*at least 4x4"),
    ],
)
def test_check_refuses_bad_images(bad: Tensor, message: str) -> None:
    classifier = Classifier(
        small(in_channels=3), num_classes=10, input_shape=(3, None, None), min_size=4
    )
    with pytest.raises(InputError, match=message):
        classifier.check(bad)


def test_check_refuses_another_size() -> None:
    classifier = as_classifier(linear(), input_shape=(1, 4, 4))
    with pytest.raises(InputError, match=r"Images are 5x4.*Expected: 4x4.*resize them to 4x4"):
        classifier.check(images(1, 1, 5, 4))


class Wrong(nn.Module):
    def __init__(self, out: object) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: Tensor) -> object:
        return self.out


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(2, 3, 4), r"returns the shape \(2, 3, 4\) for 2 images"),
        (torch.zeros(2), r"returns the shape \(2,\) for 2 images"),
        (torch.zeros(1, 3), r"returns the shape \(1, 3\) for 2 images"),
        (torch.full((2, 3), torch.nan), "returns NaN or infinite logits"),
        ((torch.zeros(2, 3),), r"returns a tuple.*output\.logits"),
        (torch.zeros(2, 3, dtype=torch.int64), "returns a torch.int64"),
    ],
)
def test_bad_outputs(out: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_classifier(Wrong(out))
    classifier = as_classifier(Wrong(out), num_classes=3)
    with pytest.raises(InputError, match=message):
        classifier.check(images(2, 1, 4, 4))
    classifier.check(images(2, 1, 4, 4), logits=False)


def test_classes_that_cannot_be_found() -> None:
    net = nn.Sequential(nn.Flatten(), made(nn.Linear, 5, 3))
    with pytest.raises(SpecError, match=r"cannot be found.*as_classifier\(module, num_classes=K"):
        as_classifier(net)


def test_wrong_number_of_classes_is_noticed() -> None:
    classifier = as_classifier(linear(), num_classes=4)
    with pytest.raises(InputError, match=r"shape \(2, 3\) .*\(2, 4\)"):
        classifier.check(images(2, 1, 4, 4))
