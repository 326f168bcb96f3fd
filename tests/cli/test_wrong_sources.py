"""Classifiers, defenses and images that are not there, or that do not go together."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.mistakes import DIGITS, TRAIN, check
from unperturb import tpap
from unperturb.classifiers import load_classifier, new_classifier, save_classifier
from unperturb.data import load_images
from unperturb.errors import SpecError
from unperturb.files import write_tensors

Run = Callable[..., Any]


# -- classifiers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cifar-resnet2O@w.safetensors", ("Unknown network 'cifar-resnet2o'", "'cifar-resnet20'")),
        ("cifar-resnet20@w.safetensors", ("no weights file 'w.safetensors'", "a safetensors file")),
        ("cifar-resnet20", ("an architecture without weights", "cifar-resnet20@FILE")),
        ("w.safetensors", ("a weights file without its architecture", "Expected: ARCH@FILE")),
        ("runs/nowhere", ("There is no folder 'runs/nowhere'", "check the path")),
        ("small-cnn@w.pth?classes=many", ("The option classes is 'many'", "a whole number")),
    ],
)
def test_a_classifier_that_is_not_there(
    spec: str, words: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in (("audit", *DIGITS), ("attack", *DIGITS), ("predict", tmp_path)):
        check(run(*verb, "--classifier", spec, code=2), *words)


def test_weights_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    state = new_classifier("small-cnn").module.state_dict()
    state["extra.weight"] = state.pop("conv1.weight")
    write_tensors(tmp_path / "w.safetensors", state)
    spec = f"small-cnn@{tmp_path / 'w.safetensors'}"
    ran = run("predict", tmp_path, "--classifier", spec, code=2)
    check(ran, "1 missing (conv1.weight)", "1 extra (extra.weight)", "do not fit")


def test_a_pickle_as_weights(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "w.pth"
    torch.save(new_classifier("small-cnn").module.state_dict(), source)
    ran = run("audit", "--classifier", f"small-cnn@{source}", *DIGITS, code=2)
    fix = f"Fix: unperturb convert {source} {tmp_path / 'w.safetensors'}"
    check(ran, "are a pickle, which can run code when it is loaded", fix)


def test_an_unknown_schema(nets: Any, run: Run, tmp_path: Path) -> None:
    net = tmp_path / "net"
    shutil.copytree(nets.fgsm, net)
    config = json.loads((net / "config.json").read_text())
    (net / "config.json").write_text(json.dumps({**config, "schema_version": 99}))
    ran = run("audit", "--classifier", net, *DIGITS, code=2)
    check(ran, "schema version 99", "Expected: schema version 1", str(net))


def test_an_unknown_schema_of_a_defense(nets: Any, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "defense"
    tpap(load_classifier(str(nets.fgsm))).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "schema_version": 99}))
    check(run("audit", "--defense", folder, *DIGITS, code=2), "schema version 99")
    as_defense = run("audit", "--defense", nets.fgsm, *DIGITS, code=2)
    check(as_defense, "a saved classifier is given as --classifier")


def test_neither_classifier_nor_defense(run: Run, tmp_path: Path) -> None:
    for verb in (("audit", *DIGITS), ("attack", *DIGITS), ("predict", tmp_path)):
        check(run(*verb, code=2), "Neither a classifier nor a defense is named", "--classifier")
    check(
        run("audit", *DIGITS, "--defense", "tpap", code=2),
        "The preset 'tpap' needs a classifier",
        "--classifier",
    )
    check(run("audit", *DIGITS, "--defense", "tpa", code=2), "did you mean 'tpap'?")


def test_a_library_that_is_not_there(nets: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    ran = run("audit", "--classifier", nets.fgsm, "--data", "uoft-cs/cifar10", code=2)
    check(ran, "needs the package 'datasets'", "pip install 'unperturb[hub]'")


# -- images -------------------------------------------------------------------------------------


def test_an_empty_folder(nets: Any, run: Run, tmp_path: Path, fails: Callable[..., None]) -> None:
    (tmp_path / "empty").mkdir()
    words = (f"The folder {tmp_path / 'empty'} is empty", "ROOT/CLASS/*.png")
    fails(*words, more=("--data", tmp_path / "empty"))
    ran = run("predict", tmp_path / "empty", "--classifier", nets.fgsm, code=2)
    check(ran, f"No image files in {tmp_path / 'empty'}", "check the path")


def test_a_missing_file(nets: Any, run: Run, digit_files: Path) -> None:
    first = min(digit_files.iterdir())
    asked = digit_files / first.name.replace("digits", "digit")
    ran = run("predict", asked, "--classifier", nets.fgsm, code=2)
    check(ran, f"There is no file or folder {str(asked)!r}", "did you mean")


def test_labels_out_of_range(
    class_folders: Callable[..., Path], nets: Any, run: Run, tmp_path: Path,
    fails: Callable[..., None],
) -> None:  # fmt: skip
    folder = class_folders(classes=12, side=8, channels=1)
    data = ("--data", folder, "--limit", 12)
    words = ("2 of 12 labels lie outside the classes: the first is 10", "labels from 0 to 9")
    fails(*words, more=data)
    ran = run("attack", "--classifier", nets.fgsm, *data, "--out", tmp_path / "new", code=2)
    check(ran, *words)
    ran = run("train", "--start", nets.fgsm, *TRAIN, *data, "--holdout", 0, "--batch-size", 4,
              "--out", tmp_path / "new", code=2)  # fmt: skip
    check(ran, *words)
    assert not (tmp_path / "new").exists()


def test_grey_images_for_a_color_network(weights: Path, run: Run, tmp_path: Path) -> None:
    net = ("--classifier", f"cifar-resnet20@{weights}", *DIGITS)
    words = (
        "Images have 1 channel",
        "Expected: 3 channels",
        "Fix: --channels 3 reads them as color",
    )
    for verb in ("audit", "attack"):
        check(run(verb, *net, "--out", tmp_path / verb, code=2), *words)


def test_images_of_another_size(run: Run, tmp_path: Path, digit_files: Path) -> None:
    net = save_classifier(new_classifier("cifar-robust-resnet-2b"), tmp_path / "net")
    words = ("Images are 8x8", "32x32", "Fix: --image-size 32x32 resizes and crops them")
    ran = run(
        "audit", "--classifier", net, *DIGITS, "--channels", 3, "--out", tmp_path / "a", code=2
    )
    check(ran, *words)
    check(run("predict", digit_files, "--classifier", net, code=2), *words)
    run("predict", digit_files, "--classifier", net, "--image-size", "32")


# -- conversions --------------------------------------------------------------------------------


def test_wrong_conversions(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "w.pth"
    torch.save({"weights": torch.zeros(3)}, source)
    target = tmp_path / "w.safetensors"
    check(run("convert", tmp_path / "v.pth", target, code=2), "There is no checkpoint", "w.pth'?")
    check(run("convert", source, tmp_path / "w.npz", code=1), "ends in .safetensors")
    check(run("convert", source, tmp_path / "no" / "w.safetensors", code=1), "is not there")
    target.write_text("mine")
    check(run("convert", source, target, code=1), "is there already", "allow overwriting")
    assert target.read_text() == "mine"
    run("convert", source, target, "--overwrite")


# -- in Python ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, 3, ["digits"], b"digits"])
def test_entry_points_refuse_what_names_nothing(given: Any) -> None:
    with pytest.raises(SpecError, match="The data set is .* Expected: 'digits', a path, or a hub"):
        load_images(given)
    with pytest.raises(SpecError, match="The classifier is .* Fix: name one, or pass the torch"):
        load_classifier(given)


def test_paths_are_as_good_as_strings(class_folders: Callable[..., Path]) -> None:
    folder = class_folders(classes=2)
    assert load_images(folder).source == load_images(str(folder)).source
