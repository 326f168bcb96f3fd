"""Pickled checkpoints to safetensors, never unpickled in this process."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from unperturb import convert
from unperturb.classifiers import load_classifier, read_weights
from unperturb.convert import convert_weights
from unperturb.errors import OutputError, WeightsError
from unperturb.networks import build_network


@pytest.fixture(autouse=True)
def no_unpickling_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("torch.load was called in this process")

    monkeypatch.setattr(torch, "load", refuse)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_nested_checkpoint_round_trip(tmp_path: Path) -> None:
    net = build_network("cifar-resnet8", seed=4)
    checkpoint = {
        "epoch": 3,
        "optimizer": {"lr": 0.1},
        "state_dict": OrderedDict((f"module.{k}", v) for k, v in net.state_dict().items()),
    }
    source, target = tmp_path / "c.pth", tmp_path / "c.safetensors"
    torch.save(checkpoint, source)
    facts = convert_weights(source, target, strip_prefix="module.")
    assert facts["key"] == "state_dict"
    assert facts["dropped"] == []
    assert facts["tensors"] == len(net.state_dict())
    assert facts["parameters"] == sum(v.numel() for v in net.state_dict().values())
    state, _ = read_weights(target)
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = load_classifier(f"cifar-resnet8@{target}?normalize=none")
    torch.testing.assert_close(classifier(x), net.eval()(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pth", "c.safetensors"]


def test_top_level_shared_and_other_entries(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    source = tmp_path / "old.bin"
    entries = {"a": shared, "b": shared, "part": shared.view(2, 3).T, "steps": 7}
    torch.save(entries, source, _use_new_zipfile_serialization=False)
    facts = convert_weights(source, tmp_path / "o.safetensors")
    assert (facts["key"], facts["dropped"]) == ("", ["steps"])
    state, _ = read_weights(tmp_path / "o.safetensors")
    assert torch.equal(state["part"], shared.view(2, 3).T)
    assert torch.equal(state["a"], state["b"])


def test_key_names_the_place(tmp_path: Path) -> None:
    source = tmp_path / "c.pt"
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"net": {"a": torch.ones(1)}}}, source)
    assert convert_weights(source, tmp_path / "1.safetensors", key="ema.net")["key"] == "ema.net"
    assert read_weights(tmp_path / "1.safetensors")[0]["a"].item() == 1
    with pytest.raises(WeightsError, match=r"no entry 'ema.x'; it holds entries 'net'.*--key"):
        convert_weights(source, tmp_path / "2.safetensors", key="ema.x")


TENSOR = torch.zeros(1)


@pytest.mark.parametrize(
    ("checkpoint", "place"),
    [
        ({"a": TENSOR}, ""),
        ({"state_dict": {"a": TENSOR}, "step": TENSOR}, "state_dict"),
        ({"model": {"a": TENSOR}, "epoch": 1}, "model"),
        ({"net": {"a": TENSOR}, "acc": 93.0}, "net"),
        ({"model": 3, "model_state_dict": {"a": TENSOR}}, "model_state_dict"),
    ],
)
def test_usual_places(checkpoint: dict[str, object], place: str) -> None:
    found, entries = convert._find(checkpoint, None, "c.pt")
    assert found == place
    assert "a" in entries


def test_what_cannot_be_found_or_stripped() -> None:
    with pytest.raises(WeightsError, match=r"no tensors under 'ema'; it holds entries 'net'"):
        convert._find({"ema": {"net": {"a": TENSOR}}}, "ema", "c.pt")
    with pytest.raises(WeightsError, match="no tensors at the usual places; it holds a list"):
        convert._find([TENSOR], None, "c.pt")
    with pytest.raises(WeightsError, match=r"No tensor of 'c.pt' begins with 'x\.'.*first are a,"):
        convert._tensors({"a": TENSOR, "b": TENSOR}, "x.", "c.pt")
    with pytest.raises(WeightsError, match=r"Two tensors .*same name without 'x\.'"):
        convert._tensors({"a": TENSOR, "x.a": TENSOR}, "x.", "c.pt")
    with pytest.raises(WeightsError, match=r"'a' of 'c.pt' is sparse or quantized"):
        convert._tensors({"a": TENSOR.to_sparse()}, None, "c.pt")


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_malicious_pickle(tmp_path: Path, how: str) -> None:
    mark, source, target = tmp_path / "ran", tmp_path / "evil.pth", tmp_path / "e.safetensors"
    content = {"state_dict": {"a": torch.zeros(1)}, "x": Bomb(mark)}
    if how == "torch":
        torch.save(content, source)
    else:
        source.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(WeightsError, match=r"asks for (posix|nt)\.mkdir, which was refused"):
        convert_weights(source, target)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pth"]


def test_pickled_module_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "whole.pth"
    torch.save(build_network("small-cnn"), source)
    with pytest.raises(WeightsError, match=r"asks for .*SmallCNN, which was refused.*state_dict"):
        convert_weights(source, tmp_path / "w.safetensors")


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    target = tmp_path / "t.safetensors"
    source = tmp_path / "junk.pth"
    source.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"junk\.pth' cannot be read"):
        convert_weights(source, target)
    with pytest.raises(WeightsError, match=r"no checkpoint .*did you mean .*junk\.pth"):
        convert_weights(tmp_path / "jun.pth", target)
    assert not target.exists()


def test_targets(tmp_path: Path) -> None:
    source = tmp_path / "c.pth"
    torch.save({"a": torch.zeros(1)}, source)
    with pytest.raises(OutputError, match=r"ends in \.safetensors"):
        convert_weights(source, tmp_path / "c.pt")
    with pytest.raises(OutputError, match="is not there"):
        convert_weights(source, tmp_path / "no" / "c.safetensors")
    target = tmp_path / "c.safetensors"
    target.write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        convert_weights(source, target)
    assert target.read_text() == "mine"
    convert_weights(source, target, overwrite=True)
    assert "a" in read_weights(target)[0]


def test_files_of_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "safetensors.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "c.pth"
    torch.save({"a": torch.zeros(1)}, source)
    assert convert_weights(source, tmp_path / "c.safetensors")["tensors"] == 1
