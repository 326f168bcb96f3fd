"""Settings of pre-training and fine-tuning: they round-trip, and wrong ones are named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unperturb.errors import ConfigError, SpecError
from unperturb.restoration import FineTuneConfig, GANConfig, MAEConfig, RestorationConfig

KINDS = (GANConfig, MAEConfig, FineTuneConfig)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_round_trip(kind: type[RestorationConfig]) -> None:
    config = kind(transform="rt3", passes=3, betas=(0.5, 0.9), milestones=(0.1,), seed=4)
    assert kind.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(SpecError, match="Unknown setting 'epoch'.*did you mean 'epochs'"):
        kind.from_dict({"epoch": 3})


def test_the_papers_settings_are_the_defaults() -> None:
    transform = FineTuneConfig().make_transform()
    assert (transform.name, transform.rate, transform.sigma) == ("rt2", 0.25, 0.25)
    config = FineTuneConfig()
    assert (config.cls_weight, config.eps, config.attack) == (0.1, 8 / 255, "fgsm")
    assert (config.examples, config.target) == ("adversarial", "adversarial")
    assert GANConfig().form == "wasserstein"


def test_rates() -> None:
    config = FineTuneConfig(lr=1.0, schedule="multistep", milestones=(0.34, 0.67))
    rates = [config.learning_rate(step, 100) for step in (0, 33, 34, 66, 67, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    config = GANConfig(lr=1.0)
    rates = [config.learning_rate(step, 100) for step in (0, 10, 20, 60, 100)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (GANConfig, {"epochs": 0}, ("epochs is 0", "at least 1")),
        (GANConfig, {"batch_size": 1.5}, ("batch_size is 1.5", "whole number")),
        (GANConfig, {"holdout": -1}, ("holdout is -1",)),
        (GANConfig, {"lr": 0.0}, ("lr is 0.0", "above 0")),
        (GANConfig, {"lr": float("nan")}, ("lr is nan",)),
        (GANConfig, {"betas": (0.9,)}, ("betas is (0.9,)", "two decays")),
        (GANConfig, {"betas": (0.9, 1.0)}, ("betas is (0.9, 1.0)",)),
        (GANConfig, {"milestones": (1.5,)}, ("milestones is (1.5,)",)),
        (GANConfig, {"adversarial_weight": -0.1}, ("adversarial_weight is -0.1", "0 or more")),
        (GANConfig, {"discriminator_lr": 0.0}, ("discriminator_lr is 0.0",)),
        (GANConfig, {"rate": 2.0}, ("The missing rate is 2",)),
        (MAEConfig, {"transform": "rt1", "sigma": 0.1}, ("sigma is 0.1 with the transform rt1",)),
        (FineTuneConfig, {"eps": 8.0}, ("eps is 8", "8/255")),
        (FineTuneConfig, {"cls_weight": -1.0}, ("cls_weight is -1.0",)),
        (FineTuneConfig, {"attack_steps": 0}, ("attack_steps is 0",)),
        (FineTuneConfig, {"attack_step_size": 0.0}, ("attack_step_size is 0.0",)),
        (FineTuneConfig, {"discriminator_lr": -1.0}, ("discriminator_lr is -1.0",)),
    ],
)
def test_values_out_of_range(
    kind: type[RestorationConfig], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "known"),
    [
        (GANConfig, {"form": "wgan"}, "hinge, wasserstein"),
        (GANConfig, {"schedule": "cosine"}, "multistep, one-cycle"),
        (GANConfig, {"augment": "all"}, "crop-flip, flip, none"),
        (GANConfig, {"precision": "float16"}, "bfloat16, float32"),
        (FineTuneConfig, {"examples": "noisy"}, "adversarial, clean"),
        (FineTuneConfig, {"against": "purifier"}, "classifier, whole"),
        (FineTuneConfig, {"attack": "bim"}, "fgsm, pgd"),
        (FineTuneConfig, {"target": "noisy"}, "adversarial, clean"),
        (FineTuneConfig, {"form": "x"}, "hinge, wasserstein"),
    ],
)
def test_unknown_names(kind: type[RestorationConfig], changes: dict[str, Any], known: str) -> None:
    with pytest.raises(SpecError, match=f"one of {known}"):
        kind(**changes)
