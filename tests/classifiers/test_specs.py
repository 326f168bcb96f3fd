"""Specification strings, weights files and saved folders."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unperturb.classifiers import (
    Classifier,
    load_classifier,
    load_folder,
    new_classifier,
    read_weights,
    save_classifier,
)
from unperturb.errors import ConfigError, OutputError, SpecError, WeightsError
from unperturb.networks import build_network

ARCH = "cifar-resnet8"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_file(build_network(ARCH, seed=3).state_dict(), path)
    return path


def images(channels: int = 3, side: int = 8) -> Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_arch_at_weights(weights: Path) -> None:
    state = torch.get_rng_state()
    classifier = load_classifier(f"{ARCH}@{weights}")
    assert torch.equal(torch.get_rng_state(), state)
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    wanted = build_network(ARCH, seed=3).eval()((images() - mean) / std)
    torch.testing.assert_close(classifier(images()), wanted)
    assert not any(p.requires_grad for p in classifier.parameters())
    facts = classifier.describe()
    assert facts["spec"] == f"{ARCH}@{weights}"
    assert facts["weights"]["file"] == "net.safetensors"
    assert len(facts["weights"]["sha256"]) == 64
    assert facts["input_shape"] == [3, None, None]


@pytest.mark.parametrize(
    ("query", "mean", "std"),
    [
        ("normalize=none", (0.0,) * 3, (1.0,) * 3),
        ("normalize=cifar10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        ("mean=0.1,0.2,0.3&std=0.5", (0.1, 0.2, 0.3), (0.5,) * 3),
        ("classes=10&channels=3", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_query(weights: Path, query: str, mean: tuple[float], std: tuple[float]) -> None:
    classifier = load_classifier(f"{ARCH}@{weights}?{query}")
    assert (classifier.mean, classifier.std) == (mean, std)
    # What is given in Python comes before the query.
    over = load_classifier(f"{ARCH}@{weights}?{query}", mean=[0.9], std=[0.8])
    assert (over.mean, over.std) == ((0.9,) * 3, (0.8,) * 3)


def test_metadata_comes_between_query_and_default(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = build_network(ARCH).state_dict()
    save_file(state, path, metadata={"mean": "[0.5, 0.5, 0.5]", "std": "0.25,0.25,0.25"})
    assert load_classifier(f"{ARCH}@{path}").mean == (0.5,) * 3
    assert load_classifier(f"{ARCH}@{path}?normalize=none").mean == (0.0,) * 3
    save_file(state, path, metadata={"mean": "0.5"})
    with pytest.raises(WeightsError, match=r"metadata .*only one of mean and std"):
        load_classifier(f"{ARCH}@{path}")


def test_classes_and_channels_are_read_off_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(build_network(ARCH, num_classes=7, in_channels=1).state_dict(), path)
    with pytest.raises(SpecError, match=r"for 3 channels, and the weights read 1.*normalize=none"):
        load_classifier(f"{ARCH}@{path}")
    classifier = load_classifier(f"{ARCH}@{path}?normalize=none")
    assert classifier.num_classes == 7
    assert classifier.input_shape == (1, None, None)


def test_wrapper_prefixes_and_missing_counters_are_tolerated(tmp_path: Path, weights: Path) -> None:
    state, _ = read_weights(weights)
    kept = {f"module._orig_mod.{k}": v for k, v in state.items() if "num_batches" not in k}
    path = tmp_path / "wrapped.safetensors"
    save_file(kept, path)
    plain, wrapped = (load_classifier(f"{ARCH}@{p}") for p in (weights, path))
    assert plain.fingerprint() == wrapped.fingerprint()


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({k: v.half() for k, v in build_network(ARCH).state_dict().items()}, path)
    classifier = load_classifier(f"{ARCH}@{path}")
    assert all(p.dtype == torch.float32 for p in classifier.parameters())


def test_loaded_under_inference_mode_still_gives_gradients(weights: Path) -> None:
    with torch.inference_mode():
        classifier = load_classifier(f"{ARCH}@{weights}")
    x = images().requires_grad_()
    (grad,) = torch.autograd.grad(classifier(x).sum(), x)
    assert torch.isfinite(grad).all()


def test_module_from_python() -> None:
    net = build_network("small-cnn")
    classifier = load_classifier(net, mean=[0.5], std=[0.5])
    assert classifier.spec == ""
    assert classifier.num_classes == 10
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert load_classifier(classifier) is classifier


# --- code of the user's own --------------------------------------------------------------------

CODE = """
import torch
from torch import nn

def make(num_classes=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Dropout())

class Box:
    made = staticmethod(lambda: make(5))

VALUE = 3
def nothing(): return 3
def needs(x): return make()
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_own_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "users_own_nets", raising=False)
    return "users_own_nets"


def test_callable(code: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    assert load_classifier(f"{code}:make").num_classes == 4
    assert load_classifier(f"{code}:make?classes=6").num_classes == 6
    assert load_classifier(f"{code}:Box.made").num_classes == 5
    assert torch.equal(torch.get_rng_state(), state)
    path = tmp_path / "w.safetensors"
    save_file({"1.weight": torch.ones(4, 64), "1.bias": torch.arange(4.0)}, path)
    classifier = load_classifier(f"{code}:make@{path}?mean=0&std=0.5")
    assert torch.equal(
        classifier(torch.full((1, 1, 8, 8), 0.5)), torch.arange(4.0).view(1, 4) + 64.0
    )
    assert classifier.describe()["arch"] == f"{code}:make"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("make_it", "'users_own_nets:make_it' cannot be imported"),
        ("VALUE", "is a int. Expected: a class or function"),
        ("nothing", "returns a int"),
        ("needs", "cannot be called: .*'x'"),
    ],
)
def test_callable_errors(code: str, name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_classifier(f"{code}:{name}")
    with pytest.raises(SpecError, match="cannot be imported: No module named"):
        load_classifier("no_such_package.at_all:make")


def test_code_in_a_configuration_needs_trust(code: str, tmp_path: Path) -> None:
    classifier = load_classifier(f"{code}:make")
    folder = save_classifier(classifier, tmp_path / "saved")
    with pytest.raises(SpecError, match=r"names code: users_own_nets:make.*trust_remote_code=True"):
        load_classifier(folder)
    again = load_classifier(folder, trust_remote_code=True)
    x = images(1)
    assert torch.equal(again(x), classifier(x))
    assert again.fingerprint() == classifier.fingerprint()


# --- saved folders -----------------------------------------------------------------------------


def test_folder_round_trip(weights: Path, tmp_path: Path) -> None:
    classifier = load_classifier(f"{ARCH}@{weights}?mean=0.1,0.2,0.3&std=0.3")
    folder = save_classifier(classifier, tmp_path / "saved", extra={"epochs": 3})
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = load_classifier(str(folder))
    assert torch.equal(again(images()), classifier(images()))
    assert again.fingerprint() == classifier.fingerprint()
    assert (again.mean, again.std) == (classifier.mean, classifier.std)
    facts = again.describe()
    assert facts["card"] == {"epochs": 3}
    assert facts["arch"] == ARCH
    # Once more from what was loaded: the card stays.
    save_classifier(again, tmp_path / "saved")
    assert load_classifier(folder).describe()["card"] == {"epochs": 3}


def test_bare_network_gets_the_default_normalization(tmp_path: Path) -> None:
    net = build_network("cifar-robust-cnn-wide", num_classes=4)
    folder = save_classifier(net, tmp_path / "saved", arch="cifar-robust-cnn-wide")
    assert net.training
    again = load_folder(folder)
    assert again.num_classes == 4
    assert again.std == (0.225,) * 3
    assert again.input_shape == (3, 32, 32)


def test_new_classifier_and_options_round_trip(tmp_path: Path) -> None:
    classifier = new_classifier(
        "cifar-wrn-10-1", num_classes=3, in_channels=1, seed=1, dropout=0.25
    )
    assert all(p.requires_grad for p in classifier.parameters())
    again = load_folder(save_classifier(classifier, tmp_path / "saved"))
    assert again.module.block1.layer[0].dropout == 0.25
    assert torch.equal(again(images(1)), classifier(images(1)))


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    classifier = new_classifier(ARCH)
    block = classifier.module.layer1[0]
    block.conv2.weight = block.conv1.weight
    again = load_folder(save_classifier(classifier, tmp_path / "saved"))
    assert torch.equal(again(images()), classifier(images()))


def test_geometry_round_trip(tmp_path: Path) -> None:
    classifier = new_classifier("squeezenet1_0", num_classes=3)
    again = load_folder(save_classifier(classifier, tmp_path / "saved"))
    assert again.geometry == classifier.geometry
    assert again.fingerprint() == classifier.fingerprint()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_classifier(new_classifier(ARCH), tmp_path / "saved")


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"schema_version": 2}, ConfigError, "schema version 2. Expected: schema version 1"),
        ({"num_classes": "ten"}, ConfigError, "num_classes = 'ten'. Expected: .*type int"),
        ({"input_shape": [3]}, ConfigError, r"input_shape = \[3\]"),
        ({"format": "x"}, SpecError, "not a classifier saved by this package"),
        ({"format": 0, "model_type": "vit"}, SpecError, "transformers model give hf:"),
        ({"arch": "cifar-resnet2O"}, SpecError, "Unknown network 'cifar-resnet2O'"),
        ({"arch": "hf:ViT"}, ConfigError, "has the architecture 'hf:ViT'"),
        ({"num_classes": 7}, WeightsError, r"linear.weight: \(10, 64\) in the file, \(7, 64\)"),
        ({"arch_options": {"wide": 3}}, SpecError, "cannot be built: .*wide"),
    ],
)
def test_bad_configurations(
    folder: Path, values: dict[str, object], kind: type[Exception], message: str
) -> None:
    change(folder, **values)
    with pytest.raises(kind, match=message):
        load_classifier(folder)


def test_damaged_configuration_and_foreign_weights(folder: Path, tmp_path: Path) -> None:
    other = save_classifier(new_classifier(ARCH, seed=9), tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"have SHA-256 .*as config\.json says"):
        load_classifier(folder)
    (folder / "config.json").write_text('{"format": ')
    with pytest.raises(ConfigError, match=r"config\.json' cannot be read"):
        load_classifier(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SpecError, match=r"holds no config\.json"):
        load_classifier(folder)


def test_options_for_a_folder_are_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match="Options are given for the saved folder"):
        load_classifier(f"{folder}?normalize=none")


def test_saving_errors(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(2, 2)
    with pytest.raises(SpecError, match=r"architecture is not known.*arch='cifar-resnet18'"):
        save_classifier(layer, tmp_path / "a")
    with pytest.raises(SpecError, match=r"architecture is torch\.nn"):
        save_classifier(Classifier(layer, num_classes=2), tmp_path / "a")
    with pytest.raises(WeightsError, match="to be saved do not fit"):
        save_classifier(layer, tmp_path / "a", arch=ARCH)
    with pytest.raises(WeightsError, match="to be saved do not fit"):
        save_classifier(new_classifier("cifar-resnet14"), tmp_path / "a", arch=ARCH)
    with pytest.raises(ConfigError, match="card of facts cannot be written"):
        save_classifier(new_classifier(ARCH), tmp_path / "a", extra={"x": object()})
    assert not (tmp_path / "a").exists()
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        save_classifier(new_classifier(ARCH), tmp_path / "f")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"config\.json of something else"):
        save_classifier(new_classifier(ARCH), tmp_path / "g")


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write .*model\.safetensors"):
        save_classifier(new_classifier(ARCH), tmp_path / "file" / "folder")


# --- errors of specifications and weights ------------------------------------------------------


def test_unknown_names(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"Unknown network 'cifar-resnt20'.*mean.*cifar-resnet20"):
        load_classifier(f"cifar-resnt20@{weights}")
    with pytest.raises(SpecError, match=r"Unknown network 'resnet'"):
        load_classifier("resnet")
    with pytest.raises(SpecError, match=r"Unknown classifier option 'class'.*'classes'"):
        load_classifier(f"{ARCH}@{weights}?class=3")
    with pytest.raises(SpecError, match=r"Unknown normalization 'imagnet'.*'imagenet'"):
        load_classifier(f"{ARCH}@{weights}?normalize=imagnet")
    with pytest.raises(SpecError, match=r"weights file without its architecture.*cifar-resnet20@"):
        load_classifier(str(weights))
    with pytest.raises(SpecError, match=r"architecture without weights.*cifar-resnet20@FILE"):
        load_classifier("cifar-resnet20")
    with pytest.raises(SpecError, match=r"There is no folder .*did you mean .*net\.safetensors"):
        load_classifier(str(tmp_path / "net"))
    with pytest.raises(SpecError, match="give hf:someone/model"):
        load_classifier("someone/model")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("classes=ten", "option classes is 'ten'"),
        ("classes=1", "option classes is '1'. Expected: a whole number, at least 2"),
        ("channels=0", "option channels is '0'"),
        ("mean=0.5", "only one of mean and std"),
        ("mean=a,b,c&std=1", "option mean is 'a,b,c'"),
        ("normalize=none&mean=0.5", "both normalize and mean"),
        ("classes", "cannot be read"),
        ("mean=0.5,0.5&std=0.5", "has 2 means"),
    ],
)
def test_bad_options(weights: Path, query: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_classifier(f"{ARCH}@{weights}?{query}")


def test_fewer_than_two_classes(weights: Path) -> None:
    with pytest.raises(SpecError, match="at least 2"):
        load_classifier(f"{ARCH}@{weights}", num_classes=1)


def test_missing_file_names_the_nearest(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file .*did you mean .*/net\.safetensors'"):
        load_classifier(f"{ARCH}@{tmp_path / 'nett.safetensors'}")
    with pytest.raises(WeightsError, match="does not exist either"):
        load_classifier(f"{ARCH}@{tmp_path / 'no' / 'x.safetensors'}")
    with pytest.raises(WeightsError, match="are a folder"):
        load_classifier(f"{ARCH}@{tmp_path}")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "net"])
@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_are_refused_whatever_their_name(tmp_path: Path, name: str, legacy: bool) -> None:
    path = tmp_path / name
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=rf"are a pickle.*Fix: unperturb convert {path} "):
        load_classifier(f"{ARCH}@{path}")


def test_safetensors_that_begin_like_a_pickle_are_read(tmp_path: Path) -> None:
    # A header of 0x0280 bytes makes the file begin with 80 02, as a pickle of protocol 2 does.
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    path = tmp_path / "net.safetensors"
    path.write_bytes(
        struct.pack("<Q", 0x0280) + header.ljust(0x0280).encode() + struct.pack("<f", 2.5)
    )
    assert path.read_bytes().startswith(b"\x80\x02")
    state, _ = read_weights(path)
    assert state["a"].tolist() == [2.5]


@pytest.mark.parametrize("keep", [0, 5, 500, -100])
def test_damaged_safetensors(weights: Path, keep: int) -> None:
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"damaged or not safetensors.*fetch or convert"):
        load_classifier(f"{ARCH}@{weights}")


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = build_network(ARCH).state_dict()
    for name in [k for k in state if k.startswith("layer1.")][:7]:
        if "num_batches" not in name:
            del state[name]
    state["extra.one"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(5)
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsError) as caught:
        load_classifier(f"{ARCH}@{path}")
    message = str(caught.value)
    assert "6 missing (layer1.0.conv1.weight, " in message
    assert ", and 1 more)" in message
    assert "1 extra (extra.one)" in message
    assert "1 of another shape (bn1.weight: (5,) in the file, (16,) in the network)" in message


def test_another_depth_and_another_class_count(weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"do not fit the network cifar-resnet14: \d+ missing"):
        load_classifier(f"cifar-resnet14@{weights}")
    with pytest.raises(WeightsError, match=r"linear.weight: \(10, 64\) in the file, \(5, 64\)"):
        load_classifier(f"{ARCH}@{weights}?classes=5")


def test_nan_weights_are_noticed(tmp_path: Path) -> None:
    from unperturb.errors import InputError

    state = build_network(ARCH).state_dict()
    state["linear.bias"][0] = torch.nan
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    with pytest.raises(InputError, match="NaN or infinite logits"):
        load_classifier(f"{ARCH}@{path}").check(images())
