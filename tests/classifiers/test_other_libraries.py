"""Classifiers of other libraries: transformers for real, timm and torchvision by contract."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unperturb.classifiers import Geometry, load_classifier
from unperturb.errors import MissingExtraError, SpecError, WeightsError
from unperturb.networks import build_network

PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


def images(side: int = 24) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vit(tmp_path: Path):  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, num_labels=5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    write(tmp_path)
    return tmp_path, model


def write(folder: Path, **changes: object) -> None:
    values = {k: v for k, v in {**PROCESSOR, **changes}.items() if v is not None}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def test_transformers_model(vit) -> None:  # type: ignore[no-untyped-def]
    folder, model = vit
    state = torch.get_rng_state()
    classifier = load_classifier(f"hf:{folder}")
    assert torch.equal(torch.get_rng_state(), state)
    assert classifier.num_classes == 5
    assert classifier.geometry == Geometry((16, 16))
    x = images().requires_grad_()
    small = nn.functional.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    mean = torch.tensor(PROCESSOR["image_mean"]).view(3, 1, 1)
    std = torch.tensor(PROCESSOR["image_std"]).view(3, 1, 1)
    with torch.no_grad():
        wanted = model(pixel_values=(small - mean) / std).logits
    torch.testing.assert_close(classifier(x), wanted, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(classifier(x)[:, 0].sum(), x)
    assert grad.abs().sum() > 0
    classifier.check(x.detach())
    facts = json.loads(json.dumps(classifier.describe()))
    assert facts["arch"] == "hf:ViTForImageClassification"
    assert facts["card"]["labels"] == [f"LABEL_{i}" for i in range(5)]
    assert load_classifier(f"hf:{folder}?normalize=none").mean == (0.0,) * 3


def test_agrees_with_the_processor_of_transformers(vit) -> None:  # type: ignore[no-untyped-def]
    import transformers

    folder, _ = vit
    kind = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)
    processor = kind.from_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    theirs = torch.tensor(np.asarray(processor(pixels, return_tensors="np")["pixel_values"]))
    ours = load_classifier(f"hf:{folder}").prepare(
        torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    )
    # They round to bytes after resizing: at most 1/255, divided by the smallest std.
    assert (ours - theirs).abs().max() <= 1.01 / 255 / 0.2


@pytest.mark.parametrize(
    ("changes", "geometry"),
    [
        ({"size": {"shortest_edge": 20}, "crop_size": 16}, Geometry(20, (16, 16))),
        (
            {"size": 20, "crop_size": {"height": 16, "width": 12}, "resample": 3},
            Geometry((20, 20), (16, 12), "bicubic"),
        ),
        ({"crop_size": 16, "do_center_crop": False}, Geometry((16, 16))),
        ({"do_resize": False}, None),
        (
            {
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": 16},
                "crop_pct": 0.8,
            },
            Geometry(20, (16, 16)),
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
            Geometry((384, 384)),
        ),
    ],
)
def test_preprocessor_geometries(vit, changes: dict[str, object], geometry: object) -> None:  # type: ignore[no-untyped-def]
    folder, _ = vit
    write(folder, **changes)
    assert load_classifier(f"hf:{folder}").geometry == geometry


def test_rescaling_belongs_to_the_normalization(vit) -> None:  # type: ignore[no-untyped-def]
    folder, _ = vit
    write(folder, rescale_factor=1 / 127.5, do_normalize=False)
    x = images(16)
    torch.testing.assert_close(load_classifier(f"hf:{folder}").prepare(x), 2 * x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 1}, "resample 1"),
        ({"image_mean": None}, "states no image_mean and image_std"),
        ({"size": {"longest_edge": 3}}, "has size .*longest_edge"),
        ({"rescale_offset": True}, "rescale_offset"),
    ],
)
def test_preprocessors_that_cannot_be_followed(  # type: ignore[no-untyped-def]
    vit, changes: dict[str, object], message: str
) -> None:
    folder, _ = vit
    write(folder, **changes)
    with pytest.raises(SpecError, match=message):
        load_classifier(f"hf:{folder}")


def test_transformers_folders_that_do_not_load(vit) -> None:  # type: ignore[no-untyped-def]
    folder, model = vit
    model.base_model.save_pretrained(folder / "headless")
    write(folder / "headless")
    with pytest.raises(WeightsError, match=r"lack 2 tensors of the classifier \(classifier.bias"):
        load_classifier(f"hf:{folder / 'headless'}")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(SpecError, match=r"cannot be loaded: .*preprocessor_config"):
        load_classifier(f"hf:{folder}")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(SpecError, match=r"cannot be loaded.*weights must be safetensors"):
        load_classifier(f"hf:{folder}")


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [
        ("hf:some/model", "transformers", "transformers"),
        ("timm:resnet18", "torchvision", "timm"),
        ("torchvision:resnet18", "torchvision", "torchvision"),
    ],
)
def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, spec: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*unperturb\[{extra}\]"):
        load_classifier(spec)


@pytest.mark.parametrize(
    "error", [RuntimeError("operator torchvision::nms does not exist"), OSError("libcudart.so")]
)
@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet18"])
def test_broken_torchvision_is_reported_like_a_missing_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str, error: Exception
) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(f"raise {type(error).__name__}({str(error)!r})")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match=f"cannot be imported.*{error}"):
        load_classifier(spec)


# --- stubs that hold the contract of the two libraries -----------------------------------------


class Steps:
    resize_size, crop_size = [20], [16]
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    interpolation = SimpleNamespace(value="bilinear")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    made: list[object] = []

    def make(name: str, classes: int, *what: object) -> nn.Module:
        made.append((name, classes, *what))
        return build_network("cifar-resnet8", num_classes=classes)

    default = SimpleNamespace(transforms=lambda: Steps())
    torchvision = ModuleType("torchvision")
    torchvision.models = SimpleNamespace(  # type: ignore[attr-defined]
        list_models=lambda: ["resnet18", "resnet50"],
        get_model_weights=lambda name: SimpleNamespace(DEFAULT=default),
        get_model=lambda name, weights, num_classes=1000: make(
            name, num_classes, weights is default
        ),
    )
    timm = ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["tiny"]  # type: ignore[attr-defined]

    def create_model(name: str, pretrained: bool, num_classes: int = 1000) -> nn.Module:
        model = make(name, num_classes, pretrained)
        model.num_classes = num_classes  # type: ignore[assignment]
        model.pretrained_cfg = {  # type: ignore[assignment]
            "input_size": (3, 16, 16),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.4),
        }
        return model

    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "timm", timm)
    return made


@pytest.mark.parametrize(
    ("spec", "name", "geometry"),
    [
        ("torchvision:resnet18", "resnet18", Geometry(20, (16, 16))),
        ("timm:tiny", "tiny", Geometry(18, (16, 16), "bicubic")),
    ],
)
def test_timm_and_torchvision(
    calls: list[object], tmp_path: Path, spec: str, name: str, geometry: Geometry
) -> None:
    classifier = load_classifier(spec)
    assert calls == [(name, 1000, True)]
    assert classifier.num_classes == 1000
    assert classifier.geometry == geometry
    assert classifier.mean == (0.5, 0.4, 0.3)
    path = tmp_path / "w.safetensors"
    net = build_network("cifar-resnet8", num_classes=7, seed=5).eval()
    save_file(net.state_dict(), path)
    classifier = load_classifier(f"{spec}@{path}?classes=7")
    assert calls[1:] == [(name, 7, False)]
    x = images()
    torch.testing.assert_close(classifier(x), net(classifier.prepare(x)))
    assert classifier.describe()["weights"]["file"] == "w.safetensors"
    assert load_classifier(f"{spec}?normalize=none").mean == (0.0,) * 3
    with pytest.raises(WeightsError, match=rf"do not fit the network {spec}"):
        load_classifier(f"{spec}@{path}?classes=6")


def test_unknown_models(calls: list[object]) -> None:
    with pytest.raises(SpecError, match=r"Unknown torchvision model 'resnet81'.*'resnet18'"):
        load_classifier("torchvision:resnet81")
    with pytest.raises(SpecError, match=r"Unknown timm model 'tinny'.*'tiny'"):
        load_classifier("timm:tinny")
