"""What the tests of the command line share: a way to call it, small images, trained networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli.mistakes import DIGITS, check
from unperturb.classifiers import new_classifier, save_classifier
from unperturb.cli import main
from unperturb.files import write_tensors

SMALL = ("--augment", "none", "--holdout", "200", "--monitor-images", "50", "--batch-size", "64")


@dataclass(frozen=True)
class Ran:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON value: anything beside it fails."""
        return json.loads(self.out)


Run = Callable[..., Ran]


def exit_code(*arguments: object) -> int:
    """Run a command in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; a traceback fails the test, as does another exit code."""

    def call(*arguments: object, code: int = 0) -> Ran:
        capsys.readouterr()
        got = exit_code(*arguments)
        out, err = capsys.readouterr()
        assert got == code, f"exit code {got}\n{out}\n{err}"
        assert "Traceback" not in err
        return Ran(got, out, err)

    return call


@dataclass(frozen=True)
class Nets:
    """Saved classifiers for digits, one trained on from the other by the command line."""

    standard: Path
    fgsm: Path


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Nets:
    """Two epochs of standard training, two of FGSM training."""
    folder = tmp_path_factory.mktemp("nets")
    found = Nets(folder / "standard", folder / "fgsm")
    rest = ("--data", "digits", "--epochs", 2, *SMALL, "--quiet")
    assert exit_code("train", "--arch", "small-cnn", *rest, "--out", found.standard) == 0
    fgsm = ("--objective", "fgsm", "--eps", "0.1", "--lr", "0.05")
    assert exit_code("train", "--start", found.standard, *fgsm, *rest, "--out", found.fgsm) == 0
    return found


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ``cifar-resnet20`` that was never trained."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    write_tensors(path, new_classifier("cifar-resnet20", seed=1).module.state_dict())
    return path


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier of color images that was never trained."""
    net = new_classifier("cifar-resnet20", seed=1)
    return save_classifier(net, tmp_path_factory.mktemp("saved") / "net")


def write_images(
    folder: Path, classes: int, each: int = 1, *, side: int = 32, channels: int = 3
) -> Path:
    """Class folders of PNG files with random pixels."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        for number in range(each):
            path = folder / f"class{label:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (side, side, 3) if channels == 3 else (side, side)
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def class_folders(tmp_path: Path) -> Callable[..., Path]:
    """Builder of class folders in this test's folder."""
    return lambda name="images", **options: write_images(tmp_path / name, **options)


@pytest.fixture
def digit_files(tmp_path: Path) -> Path:
    """Six digits as PNG files."""
    from unperturb.data import load_images

    folder = tmp_path / "photos"
    folder.mkdir()
    data = load_images("digits", limit=6)
    for name, pixels in zip(data.ids, data.images(), strict=True):
        eight = (pixels[0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(eight).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def fails(nets: Nets, run: Run, tmp_path: Path) -> Callable[..., None]:
    """Audit the small classifier with something wrong: nothing is left behind."""

    def call(*words: str, more: tuple[object, ...] = (), code: int = 2) -> None:
        out = tmp_path / "audit"
        ran = run("audit", "--classifier", nets.fgsm, *DIGITS, "--out", out, *more, code=code)
        check(ran, *words)
        assert not out.exists()

    return call
