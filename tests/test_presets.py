"""Presets by name."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from small_vae import digit_set, digits_vae, tiny
from unperturb import plugins
from unperturb.classifiers import new_classifier
from unperturb.decisions import LogitUpdate
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import ConfigError, SpecError, ThresholdError
from unperturb.generative import save_generative, through_vae
from unperturb.networks.unet import DenoisingUNet
from unperturb.presets import alu, make_preset, preset_names, tpap
from unperturb.purifiers import CWStep, FGSMStep, LatentOptimization, PGDStep
from unperturb.thresholds import fit_threshold


def test_tpap_is_one_step_and_the_logits_after(conv: Any) -> None:
    defense = tpap(conv(), radius=0.1, clip=False)
    assert defense.purifier.describe() == {"name": "fgsm-step", "radius": 0.1, "clip": False}
    assert defense.detector is None
    assert defense.decision.name == "logits-after"
    assert tpap(conv()).purifier.config() == {"radius": 8 / 255, "clip": True}


def test_by_name(conv: Any) -> None:
    assert make_preset("tpap", conv(), radius=0.1).purifier.config()["radius"] == 0.1


def test_unknown_preset(conv: Any) -> None:
    with pytest.raises(SpecError, match="Unknown preset 'tpab'.*did you mean 'tpap'"):
        make_preset("tpab", conv())


def test_unknown_option(conv: Any) -> None:
    with pytest.raises(SpecError, match="option of the preset 'tpap' 'radios'.*'radius'"):
        make_preset("tpap", conv(), radios=0.1)


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (
            {"step": "pgd", "radius": 0.1, "steps": 3, "step_size": 0.5, "clip": False},
            {"name": "pgd-step", "radius": 0.1, "steps": 3, "step_size": 0.5, "clip": False},
        ),
        (
            {"step": "cw", "constant": 2, "confidence": 0, "steps": 4, "lr": 0.1},
            {"name": "cw-step", "constant": 2.0, "confidence": 0.0, "steps": 4, "lr": 0.1},
        ),
    ],
)
def test_the_steps_of_table_7(conv: Any, options: Any, config: Any) -> None:
    assert make_preset("tpap", conv(), **options).purifier.describe() == config
    plain = make_preset("tpap", conv(), step=options["step"]).purifier
    assert plain.describe() == type(plain)().describe()


def test_every_setting_of_every_step_is_an_option() -> None:
    taken = set(signature(tpap).parameters) - {"classifier", "step"}
    settings = {name for kind in (FGSMStep, PGDStep, CWStep) for name in kind().config()}
    assert taken == settings


@pytest.mark.parametrize(
    ("step", "option", "fix"),
    [
        ("fgsm", "steps", "step='pgd' or step='cw'"),
        ("fgsm", "step_size", "step='pgd'"),
        ("pgd", "lr", "step='cw'"),
        ("cw", "radius", "step='fgsm' or step='pgd'"),
        ("cw", "clip", "step='fgsm' or step='pgd'"),
    ],
)
def test_an_option_of_another_step(conv: Any, step: str, option: str, fix: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_preset("tpap", conv(), step=step, **{option: False})
    assert f"The option '{option}' of tpap does not belong to step='{step}'" in str(caught.value)
    assert caught.value.fix == f"leave it out, or use {fix}"


@pytest.mark.parametrize("step", ["pdg", 3.0, ["pgd"]])
def test_unknown_step(conv: Any, step: Any) -> None:
    with pytest.raises(SpecError, match="Unknown step of tpap.*one of cw, fgsm, pgd"):
        tpap(conv(), step=step)


def test_an_option_that_is_needed(conv: Any) -> None:
    with pytest.raises(SpecError, match="'atop' lacks its option 'purifier'.*atop.purifier=..."):
        make_preset("atop", conv(), transform="rt1")


def test_third_parties(monkeypatch: pytest.MonkeyPatch, conv: Any) -> None:
    made = tpap(conv())
    entry = SimpleNamespace(name="theirs", value="theirs:preset", load=lambda: lambda net: made)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    assert preset_names() == ["alu", "atop", "logit-correction", "theirs", "tpap"]
    assert make_preset("theirs", conv()) is made
    entry.name = "tpap"
    with pytest.raises(ConfigError, match="'theirs:preset' registers 'tpap' among the presets"):
        preset_names()


# ALU


def test_alu_is_latent_optimization_a_threshold_and_the_logit_update(conv: Any) -> None:
    vae = tiny()
    defense = alu(conv(), vae=vae, threshold=2.5)
    assert defense.purifier.describe() == LatentOptimization(vae=vae).describe()
    assert defense.detector is not None
    assert defense.detector.config() == ThresholdDetector(threshold=2.5).config()
    assert defense.decision.name == "logit-update"
    options = {"steps": 3, "lr": 0.2, "optimizer": "gd", "start": "random", "tolerance": 0.01}
    changed = make_preset("alu", conv(), vae=vae, threshold=1, statistic="kl", **options)
    assert changed.purifier.fingerprint() == LatentOptimization(vae=vae, **options).fingerprint()
    assert changed.detector is not None
    assert changed.detector.describe()["statistic"] == "kl"


def test_alu_from_folders_with_a_fitted_threshold(tmp_path: Path, digits_net: Any) -> None:
    net = new_classifier("small-cnn", in_channels=1)
    save_generative(digits_vae(), tmp_path / "vae")
    purifier = LatentOptimization(vae=digits_vae(), steps=2)
    detector = fit_threshold(net, purifier, digit_set(50))
    fitted = Defense(net, purifier=purifier, detector=detector, decision=LogitUpdate())
    fitted.save_pretrained(tmp_path / "alu")
    built = alu(net, vae=str(tmp_path / "vae"), steps=2, threshold=str(tmp_path / "alu"))
    assert built.fingerprint() == fitted.fingerprint()
    with pytest.raises(ThresholdError, match="fitted on another purifier"):
        alu(net, vae=str(tmp_path / "vae"), steps=3, threshold=tmp_path / "alu")
    with pytest.raises(ThresholdError, match="fitted on another classifier"):
        alu(digits_net, vae=str(tmp_path / "vae"), steps=2, threshold=tmp_path / "alu")
    save_generative(DenoisingUNet(in_channels=1, width=4), tmp_path / "unet")
    toy = alu(net, denoiser=str(tmp_path / "unet"), threshold=1.0)
    assert toy.purifier.name == "unet-denoiser"
    assert toy.decision.name == "logit-update"


def test_purification_alone_needs_no_threshold(conv: Any) -> None:
    defense = alu(conv(), vae=tiny(), decision="logits-after")
    assert defense.detector is None
    assert defense.decision.name == "logits-after"
    watched = alu(conv(), vae=tiny(), decision="logits-after", threshold=1.0)
    assert watched.detector is not None


@pytest.mark.parametrize("level", [None, 0])
def test_a_classifier_from_behind_a_vae_brings_it_along(level: int | None) -> None:
    vae = tiny()
    net = new_classifier("small-cnn", in_channels=vae.feature_shape(level)[0])
    classifier = through_vae(net, vae, level=level)
    defense = alu(classifier, threshold=1.0, steps=2)
    expected = LatentOptimization(vae=vae, level=level, unified=True, steps=2)
    assert defense.purifier.fingerprint() == expected.fingerprint()
    alu(classifier, vae=tiny(), threshold=1.0)
    with pytest.raises(ConfigError, match="through which the classifier was trained"):
        alu(classifier, vae=tiny(sharp=2.0), threshold=1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "neither a VAE nor a denoiser.*unperturb fit vae"),
        ({"vae": True, "denoiser": True, "threshold": 1}, "given with a VAE"),
        ({"denoiser": True, "steps": 3, "threshold": 1}, "given with steps"),
        ({"purifier": "fgsm-step", "vae": True, "threshold": 1}, "A purifier is given with a VAE"),
        ({"purifier": "fgsm-step", "denoiser": True, "threshold": 1}, "another purifier"),
        ({"purifier": "fgsm-stepp", "threshold": 1}, "did you mean 'fgsm-step'"),
        ({"vae": True, "threshold": 1, "decision": "vote"}, "Unknown decision of alu 'vote'"),
        ({"vae": "nowhere", "threshold": 1}, "There is no VAE in 'nowhere'"),
        ({"vae": True, "threshold": "nowhere"}, "There is no folder 'nowhere'"),
        ({"vae": True, "threshold": 1, "statistic": "sum"}, "Unknown statistic 'sum'"),
    ],
)
def test_wrong_use_of_alu(conv: Any, options: dict[str, Any], words: str) -> None:
    parts = {"vae": tiny(), "denoiser": DenoisingUNet(width=4)}
    given = {name: parts[name] if value is True else value for name, value in options.items()}
    with pytest.raises(SpecError, match=words):
        alu(conv(), **given)


def test_alu_serves_any_purifier(conv: Any) -> None:
    named = alu(conv(), purifier="fgsm-step?radius=0.1", threshold=2.0)
    built = alu(conv(), purifier=FGSMStep(radius=0.1), threshold=2.0)
    assert named.purifier.fingerprint() == built.purifier.fingerprint()
    assert (named.decision.name, named.backwards) == ("logit-update", built.backwards)
    with pytest.raises(ConfigError, match="option radius of the purifier fgsm-step is '-1'"):
        alu(conv(), purifier="fgsm-step?radius=-1", threshold=2.0)


def test_alu_without_a_threshold(conv: Any) -> None:
    with pytest.raises(ConfigError, match="alu has no threshold.*unperturb fit alu fits one"):
        alu(conv(), vae=tiny())
