"""What the tests of recipes share: a folder of trained smoke models, and one reproduced table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unperturb.recipes import load_recipe, reproduce
from unperturb.recipes.models import Models
from unperturb.recipes.sources import Sources

TINY = """
title: A table of a test
kind: table
data: digits
paper: {source: nobody, item: Table 9}
datasets:
  digits: {title: digits, spec: digits, train_limit: 300}
models:
  net:
    title: a small network
    data: digits
    smoke:
      train:
        - {arch: small-cnn, epochs: 2, batch_size: 64, lr: 0.1, augment: none, holdout: 60,
           monitor_images: 20}
        - {objective: fgsm, eps: 0.1, epochs: 2, batch_size: 64, lr: 0.05, augment: none,
           holdout: 60, monitor_images: 20, monitor_eps: 0.1, keep: last}
defenses:
  tpap: {preset: tpap, radius: 0.1}
threat: {eps: 0.1}
n: 12
batch_size: 6
columns:
  Clean: {}
  FGSM: {attack: fgsm}
  DDN: {attack: ddn-4, threat: {norm: l2, eps: 0.5}}
rows:
  bare: {model: net, paper: {Clean: 90, FGSM: 12.5}}
  purified: {model: net, defense: tpap, paper: {Clean: 80.25, FGSM: lost}}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe of two rows on digits."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained models of that recipe; a test that changes them copies them first."""
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    recipe = load_recipe(path, scale="smoke")
    Models(recipe, Sources(recipe, {}), folder=folder / "models", zoo=[]).get("net")
    return folder / "models"


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes of one test run keep what they train."""
    return tmp_path_factory.mktemp("recipes") / "models"


@pytest.fixture(scope="session")
def table(models_dir: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and record of the smallest table of the paper."""
    out = models_dir.parent / "table-6"
    return out, reproduce("tpap/table-6", scale="smoke", out=out, models_dir=models_dir)
