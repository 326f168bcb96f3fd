"""Classifiers behind a VAE: unified and asymmetric ALU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from small_vae import digit_set, digits_vae, tiny
from unperturb.attacks import Surface, make_attack
from unperturb.classifiers import Classifier, as_classifier, load_classifier, new_classifier
from unperturb.decisions import DECISIONS
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.generative import fingerprint, through_vae, vae_of
from unperturb.networks import build_network, network_names
from unperturb.networks.through import ThroughVAE
from unperturb.purifiers import FGSMStep, LatentOptimization
from unperturb.randomness import Keys
from unperturb.threat import Linf
from unperturb.training import TrainConfig, train_classifier

LEVELS = (None, 0, 1)


def plain(channels: int, **options: Any) -> Classifier:
    return new_classifier("small-cnn", in_channels=channels, seed=2, **options)


def behind(level: int | None, **options: Any) -> Classifier:
    vae = tiny(sharp=3.0)
    return through_vae(plain(vae.feature_shape(level)[0], **options), vae, level=level)


@pytest.mark.parametrize("level", LEVELS)
def test_images_go_through_the_vae_and_readings_do_not(level: int | None, pixels: Any) -> None:
    vae, images = tiny(sharp=3.0), pixels(5)
    net = plain(vae.feature_shape(level)[0])
    classifier = through_vae(net, vae, level=level)
    reading = vae.decode(vae.encode(images)[0], level)
    expected = net(reading).detach()
    torch.testing.assert_close(classifier(images).detach(), expected)
    torch.testing.assert_close(classifier.read(reading).detach(), expected)
    last = net.module.linear
    torch.testing.assert_close(last(classifier.features(images)).detach(), expected)  # type: ignore[operator]
    assert classifier.input_shape == (3, 8, 8)
    assert classifier.origin.card["through"] == {"vae": fingerprint(vae), "level": level}


def test_its_normalization_comes_after_the_vae(pixels: Any) -> None:
    vae, images = tiny(sharp=3.0), pixels(3)
    net = plain(3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    classifier = through_vae(net, vae)
    torch.testing.assert_close(classifier(images), net(vae(images)))
    assert not any(classifier.mean)


@pytest.mark.parametrize("level", LEVELS)
def test_saved_and_loaded(level: int | None, tmp_path: Path, pixels: Any) -> None:
    from unperturb.classifiers import save_classifier

    classifier = behind(level, mean=(0.1,), std=(0.5,))
    save_classifier(classifier, tmp_path / "kept")
    again = load_classifier(str(tmp_path / "kept"))
    assert again.fingerprint() == classifier.fingerprint()
    torch.testing.assert_close(again(pixels(3)), classifier(pixels(3)))
    module = vae_of(again)
    assert module is not None
    assert module.level == level
    assert fingerprint(module.vae) == fingerprint(tiny(sharp=3.0))


def test_the_vae_stays_frozen_and_in_eval_mode() -> None:
    module = vae_of(behind(0))
    assert module is not None
    module.train().requires_grad_(True)
    assert module.net.training
    assert not any(part.training for part in module.vae.modules())
    assert not any(p.requires_grad for p in module.vae.parameters())
    assert all(p.requires_grad for p in module.net.parameters())
    module.eval().requires_grad_(False)
    assert not any(p.requires_grad for p in module.parameters())


def test_neither_part_is_changed(untouched: Any) -> None:
    vae, net = tiny(), plain(3)
    with untouched(vae), untouched(net.module):
        through_vae(net, vae)


@pytest.mark.parametrize("level", LEVELS)
def test_training_through_it_moves_the_network_alone(level: int | None, tmp_path: Path) -> None:
    vae = digits_vae()
    classifier = through_vae(plain(vae.feature_shape(level)[0]), vae, level=level)
    config = TrainConfig(
        epochs=4, batch_size=32, lr=0.1, schedule="one-cycle", augment="none", holdout=100,
        monitor_images=100,
    )  # fmt: skip
    trained = train_classifier(classifier, digit_set(), config, out=tmp_path, show=False)
    module = vae_of(trained)
    assert module is not None
    assert fingerprint(module.vae) == fingerprint(vae)
    again = load_classifier(str(tmp_path))
    assert again.origin.card["through"]["level"] == level
    data = digit_set().take(slice(500, 600))
    with torch.no_grad():
        right = again(data.images()).argmax(1) == data.labels
    assert float(right.float().mean()) > 0.7


# As a defense


@pytest.mark.parametrize("level", LEVELS)
def test_optimized_readings_go_behind_the_classifiers_own_vae(
    level: int | None, pixels: Any
) -> None:
    classifier, vae, images = behind(level), tiny(sharp=3.0), pixels(4)
    stage = LatentOptimization(vae=vae, steps=5, lr=0.1, level=level, unified=True)
    detector = ThresholdDetector(threshold=0.0)
    defense = Defense(
        classifier, purifier=stage, detector=detector, decision=DECISIONS["logit-update"]()
    )
    found = defense.predict(images)
    assert found.before is not None
    assert found.after is not None
    assert found.purified is not None
    assert found.purified.shape == images.shape
    torch.testing.assert_close(found.before, classifier(images).detach())
    assert bool(((found.purified - images).norm() < (vae(images) - images).norm()).all())
    none = Defense(
        classifier, purifier=LatentOptimization(vae=vae, steps=0, level=level, unified=True)
    )
    torch.testing.assert_close(none(images), classifier(images), msg="N = 0 is the classifier")
    with torch.no_grad():
        codes = vae.encode(found.purified)[0]
    assert not torch.allclose(classifier.read(vae.decode(codes, level)), found.after)


@pytest.mark.parametrize("level", LEVELS)
def test_every_rule_attacks_it(level: int | None, pixels: Any) -> None:
    classifier, images = behind(level), pixels(4)
    stage = LatentOptimization(vae=tiny(sharp=3.0), steps=3, lr=0.1, level=level, unified=True)
    defense = Defense(classifier, purifier=stage)
    labels = defense(images).argmax(1)
    for rule in (*defense.backwards, "undefended"):
        found = make_attack("pgd-3").run(
            Surface(defense, backward=rule), images, labels, threat=Linf(0.1),
            keys=Keys.of(0, list("abcd")),
        )  # fmt: skip
        assert not bool(found.zero_gradients.any()), rule
        assert not bool(found.nan_gradients.any()), rule
    assert ("identity" in defense.backwards) is (level is None)


def test_another_purifier_has_the_whole_classifier(pixels: Any) -> None:
    classifier, images = behind(None), pixels(3)
    defense = Defense(classifier, purifier=FGSMStep(radius=0.1))
    found = defense.predict(images)
    assert found.purified is not None
    torch.testing.assert_close(found.scores, classifier(found.purified).detach())


def test_the_reading_of_another_vae_or_level_is_refused(conv: Any) -> None:
    classifier = behind(None)
    with pytest.raises(ConfigError, match=r"trained through the VAE \w{12} at level None.*level 0"):
        Defense(classifier, purifier=LatentOptimization(vae=tiny(sharp=3.0), level=0))
    other = LatentOptimization(vae=tiny(sharp=2.0), unified=True)
    with pytest.raises(ConfigError, match="give the purifier the VAE and the level"):
        Defense(classifier, purifier=other)
    with pytest.raises(ConfigError, match="this one reads raw images.*--through VAE"):
        Defense(conv(), purifier=LatentOptimization(vae=tiny(), unified=True))
    with pytest.raises(InputError, match="reads images, and nothing behind them"):
        as_classifier(conv()).read(torch.zeros(1, 3, 8, 8))


# Refusals


def test_what_cannot_be_put_behind_a_vae(conv: Any) -> None:
    with pytest.raises(ConfigError, match="reads 3 channels.*level 0 of the decoder"):
        through_vae(plain(3), tiny(), level=0)
    with pytest.raises(ConfigError, match="reads 1 channels.*3, those of images"):
        through_vae(plain(1), tiny())
    with pytest.raises(ConfigError, match="pixels from -1 to 1"):
        through_vae(plain(3), tiny(pixel_range=(-1, 1)))
    with pytest.raises(ConfigError, match="The classifier is through-vae"):
        through_vae(behind(None), tiny())
    with pytest.raises(ConfigError, match="The level of the decoder is 2"):
        through_vae(plain(3), tiny(), level=2)
    with pytest.raises(ConfigError, match="Sequential.*a registered network"):
        through_vae(as_classifier(conv()), tiny())


def test_the_network_by_name() -> None:
    assert "through-vae" not in network_names(), "it cannot be trained by its name alone"
    net = build_network("through-vae", num_classes=4, net="small-cnn", in_channels=1)
    assert isinstance(net, ThroughVAE)
    assert net(torch.rand(2, 1, 32, 32, generator=torch.Generator())).shape == (2, 4)
    with pytest.raises(SpecError, match="the VAE reads 3 channels, not 1"):
        build_network("through-vae", in_channels=1, vae={"image_shape": (3, 8, 8)})
    with pytest.raises(SpecError, match="mean and std: both or neither"):
        build_network("through-vae", mean=(0.5,))
