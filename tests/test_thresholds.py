"""Fitting a threshold: the quantile of clean scores, streamed, and bound to its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from small_vae import digit_set, digits_vae
from unperturb.classifiers import as_classifier
from unperturb.data import ImageSet
from unperturb.decisions import LogitUpdate
from unperturb.defense import Defense
from unperturb.detectors import STATISTICS
from unperturb.errors import ConfigError, DataError, SpecError, ThresholdError
from unperturb.purifiers import FGSMStep, LatentOptimization
from unperturb.randomness import Keys
from unperturb.thresholds import clean_scores, fit_threshold


@pytest.fixture
def net(digits_net: nn.Module) -> Any:
    return as_classifier(digits_net, input_shape=(1, 8, 8))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_threshold_is_the_quantile_of_the_scores(net: Any, statistic: str) -> None:
    data, purifier = digit_set(201), FGSMStep(radius=0.1)
    images = data.images()
    found = Defense(net, purifier=purifier).predict(images)
    assert found.after is not None
    expected = STATISTICS[statistic](net(images).detach(), found.after)
    scores = clean_scores(net, purifier, data, statistic=statistic, batch_size=64)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)  # other batches
    detector = fit_threshold(net, purifier, data, statistic=statistic, quantile=0.9)
    assert detector.threshold == pytest.approx(float(expected.double().quantile(0.9)), rel=1e-5)
    assert int(detector.flags(scores).sum()) == 20
    assert detector.statistic == statistic


def test_what_it_was_fitted_on_is_told_and_bound(net: Any, conv: Any) -> None:
    data, vae = digit_set(100), digits_vae()
    purifier = LatentOptimization(vae=vae, steps=2)
    detector = fit_threshold(net, purifier, data)
    assert detector.fitted_on == {
        "classifier": net.fingerprint(),
        "purifier": purifier.fingerprint(),
        "split": "train",
        "quantile": 0.995,
        "images": {"source": data.source, "count": 100, "fingerprint": data.fingerprint()},
    }
    Defense(net, purifier=LatentOptimization(vae=vae, steps=2), detector=detector)
    for other, words in (
        (LatentOptimization(vae=vae, steps=3), "fitted on another purifier"),
        (LatentOptimization(vae=digits_vae().requires_grad_(False), steps=2, lr=0.2), "purifier"),
    ):
        with pytest.raises(ThresholdError, match=words):
            Defense(net, purifier=other, detector=detector)
    with pytest.raises(ThresholdError, match="fitted on another classifier"):
        Defense(conv(channels=1, classes=10), purifier=purifier, detector=detector)


def test_a_saved_defense_keeps_its_threshold(tmp_path: Path, net: Any) -> None:
    from unperturb.classifiers import new_classifier
    from unperturb.saving import load_detector

    classifier = new_classifier("small-cnn", in_channels=1)
    purifier = LatentOptimization(vae=digits_vae(), steps=2)
    detector = fit_threshold(classifier, purifier, digit_set(60))
    defense = Defense(classifier, purifier=purifier, detector=detector, decision=LogitUpdate())
    defense.save_pretrained(tmp_path / "kept")
    again = Defense.from_pretrained(tmp_path / "kept")
    assert again.detector is not None
    assert again.detector.describe() == detector.describe()
    assert load_detector(tmp_path / "kept").describe() == detector.describe()
    Defense(classifier).save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match="has no detector.*unperturb fit alu"):
        load_detector(tmp_path / "plain")


def test_random_starts_are_drawn_by_image_and_seed(net: Any) -> None:
    data = digit_set(40)
    purifier = LatentOptimization(vae=digits_vae(), steps=1, start="random")
    one, same, other = (
        clean_scores(net, purifier, data, batch_size=size, seed=seed)
        for size, seed in ((40, 0), (7, 0), (40, 1))
    )
    torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one, other)
    keys = Keys.of(0, data.ids, domain="threshold")
    found = Defense(net, purifier=purifier).predict(data.images(), keys=keys)
    assert found.after is not None
    torch.testing.assert_close(one, (found.after - net(data.images()).detach()).abs().sum(1))


def test_wrong_use_is_told_before_the_work(net: Any) -> None:
    data, purifier = digit_set(10), FGSMStep(radius=0.1)
    with pytest.raises(SpecError, match="Unknown statistic 'entropy'"):
        fit_threshold(net, purifier, data, statistic="entropy")
    with pytest.raises(SpecError, match="Unknown detector action"):
        fit_threshold(net, purifier, data, action="warn")
    with pytest.raises(ConfigError, match="The quantile is 99.5"):
        fit_threshold(net, purifier, data, quantile=99.5)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        fit_threshold(net, purifier, data, batch_size=0)
    empty = ImageSet(data.pixels[:0], data.labels[:0], (), data.classes, data.source, data.split)
    with pytest.raises(DataError, match="no image to fit on"):
        fit_threshold(net, purifier, empty)
