"""Saved defenses: what comes back is what was saved, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unperturb.classifiers import load_classifier, new_classifier, save_classifier
from unperturb.classifiers.base import Classifier
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import (
    ConfigError,
    OutputError,
    SpecError,
    ThresholdError,
    UnperturbError,
    WeightsError,
)
from unperturb.presets import tpap
from unperturb.purifiers import FGSMStep
from unperturb.saving import is_defense_folder, load_defense, save_defense


def classifier(seed: int = 0) -> Classifier:
    return new_classifier("small-cnn", in_channels=1, seed=seed)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tpap(classifier(), radius=0.05).save_pretrained(tmp_path / "defense")
    return tmp_path / "defense"


def changed(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**config, **values}.items() if v != "none"}))


def test_an_embedded_defense_comes_back_equal(tmp_path: Path, saved: Path) -> None:
    defense = tpap(classifier(), radius=0.05)
    # Nothing outside the folder is needed.
    shutil.copytree(saved, tmp_path / "elsewhere")
    shutil.rmtree(saved)
    found = Defense.from_pretrained(tmp_path / "elsewhere")
    assert torch.equal(found(images()), defense(images()))
    assert found.fingerprint() == defense.fingerprint()
    assert isinstance(found.purifier, FGSMStep)
    assert (found.purifier.radius, found.purifier.clip) == (0.05, True)
    assert {p.name for p in (tmp_path / "elsewhere").iterdir()} == {
        "config.json", "model.safetensors", "classifier"
    }  # fmt: skip
    again = tmp_path / "again"
    found.save_pretrained(again)
    for name in ("model.safetensors", "classifier/model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()


def test_a_referenced_defense_comes_back_equal(tmp_path: Path) -> None:
    save_classifier(classifier(), tmp_path / "classifier")
    defense = tpap(load_classifier(str(tmp_path / "classifier")), radius=0.05)
    defense.save_pretrained(tmp_path / "defense", embed=False)
    assert not (tmp_path / "defense" / "classifier").exists()
    found = Defense.from_pretrained(tmp_path / "defense")
    assert torch.equal(found(images()), defense(images()))
    # The classifier may be handed in where the place it was referred to is gone.
    shutil.move(tmp_path / "classifier", tmp_path / "moved")
    with pytest.raises(UnperturbError):
        load_defense(tmp_path / "defense")
    given = load_classifier(str(tmp_path / "moved"))
    assert torch.equal(load_defense(tmp_path / "defense", classifier=given)(images()),
                       defense(images()))  # fmt: skip


def test_a_module_from_python_cannot_be_referred_to(tmp_path: Path) -> None:
    net = torch.nn.utils.skip_init(torch.nn.Linear, 64, 10)
    torch.nn.init.constant_(net.weight, 0.1)
    torch.nn.init.constant_(net.bias, 0.1)
    module = torch.nn.Sequential(torch.nn.Flatten(), net)
    with pytest.raises(SpecError, match=r"has no specification.*save with embed=True"):
        save_defense(tpap(module), tmp_path / "defense", embed=False)
    assert not (tmp_path / "defense").exists()


def test_another_classifier_is_refused(tmp_path: Path, saved: Path) -> None:
    words = r"The classifier has the fingerprint \w{12}\. Expected: \w{12}, that of the classifier"
    with pytest.raises(WeightsError, match=words):
        load_defense(saved, classifier=classifier(seed=1))
    # A folder whose classifier was exchanged for another one, complete in itself.
    shutil.rmtree(saved / "classifier")
    save_classifier(classifier(seed=1), saved / "classifier")
    with pytest.raises(WeightsError, match=words):
        load_defense(saved)


@pytest.mark.parametrize("version", [0, 2, "none"])
def test_another_schema_version_is_refused(saved: Path, version: Any) -> None:
    changed(saved, schema_version=version)
    told = None if version == "none" else version
    words = rf"format 'unperturb-defense', schema version {told}\. Expected: .*schema version 1"
    with pytest.raises(ConfigError, match=words):
        load_defense(saved)


def test_a_classifier_is_no_defense(tmp_path: Path, saved: Path) -> None:
    save_classifier(classifier(), tmp_path / "classifier")
    with pytest.raises(ConfigError, match=r"a saved classifier is given as --classifier"):
        load_defense(tmp_path / "classifier")
    assert is_defense_folder(saved)
    assert not is_defense_folder(tmp_path / "classifier")
    assert not is_defense_folder(tmp_path / "nothing")
    with pytest.raises(SpecError, match="not a classifier saved by this package"):
        load_classifier(str(saved))


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\xff"])
def test_a_damaged_configuration_is_named(saved: Path, content: str) -> None:
    (saved / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json cannot be read as a defense"):
        load_defense(saved)
    assert not is_defense_folder(saved)


@pytest.mark.parametrize("part", ["classifier", "purifier", "detector", "decision"])
def test_a_configuration_that_lacks_a_part_is_named(saved: Path, part: str) -> None:
    changed(saved, **{part: "none"})
    with pytest.raises(ConfigError, match=rf"config\.json lacks {part}"):
        load_defense(saved)


def test_unknown_stages_and_settings_are_refused(saved: Path) -> None:
    changed(saved, purifier={"name": "fgsm-steps", "radius": 0.05})
    with pytest.raises(SpecError, match="Unknown purifier 'fgsm-steps'.*did you mean 'fgsm-step'"):
        load_defense(saved)
    changed(saved, purifier={"name": "fgsm-step", "rdius": 0.05})
    with pytest.raises(ConfigError, match="do not fit 'fgsm-step'"):
        load_defense(saved)
    changed(saved, purifier={"name": "fgsm-step", "radius": 8})
    with pytest.raises(ConfigError, match="The purification radius is 8.*8/255"):
        load_defense(saved)


def test_missing_weights_are_told(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(UnperturbError, match=r"model\.safetensors"):
        load_defense(saved)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for place in (tmp_path / "nothing", "./nothing", "nothing"):
        with pytest.raises(SpecError, match=r"There is no folder .*nothing"):
            load_defense(place)
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="There is no folder"):
        load_defense(tmp_path / "file")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        tpap(classifier()).save_pretrained(tmp_path / "file" / "defense")
    assert (tmp_path / "file").read_text() == ""


def fitted(net: Classifier, purifier: FGSMStep) -> ThresholdDetector:
    plain = Defense(net, purifier=purifier, detector=ThresholdDetector(threshold=0.0))
    scores = plain.predict(images(20)).detector_score
    assert scores is not None
    return ThresholdDetector(action="reject").fit(
        scores, quantile=0.9, classifier=net.fingerprint(), purifier=purifier.fingerprint(),
        split="digits train",
    )  # fmt: skip


def test_a_fitted_threshold_survives(tmp_path: Path) -> None:
    net, purifier = classifier(), FGSMStep(radius=0.05)
    detector = fitted(net, purifier)
    defense = Defense(net, purifier=purifier, detector=detector)
    defense.save_pretrained(tmp_path / "defense")
    found = Defense.from_pretrained(tmp_path / "defense")
    assert isinstance(found.detector, ThresholdDetector)
    assert found.detector.config() == detector.config()
    assert found.detector.fitted_on == {
        "classifier": net.fingerprint(), "purifier": purifier.fingerprint(),
        "split": "digits train", "quantile": 0.9,
    }  # fmt: skip
    ours, theirs = found.predict(images()), defense.predict(images())
    assert torch.equal(ours.flagged, theirs.flagged)
    assert torch.equal(ours.scores, theirs.scores)
    assert found.fingerprint() == defense.fingerprint()


def test_a_threshold_fitted_on_something_else_is_refused(tmp_path: Path) -> None:
    net, purifier = classifier(), FGSMStep(radius=0.05)
    defense = Defense(net, purifier=purifier, detector=fitted(net, purifier))
    defense.save_pretrained(tmp_path / "defense")
    changed(tmp_path / "defense", purifier={"name": "fgsm-step", "radius": 0.06, "clip": True})
    with pytest.raises(ThresholdError, match="fitted on another purifier"):
        load_defense(tmp_path / "defense")


def test_nothing_global_of_the_users_changes(untouched: Any, tmp_path: Path) -> None:
    net = classifier()
    with untouched(net.module):
        tpap(net).save_pretrained(tmp_path / "defense")
        load_defense(tmp_path / "defense", classifier=net)
