"""Fitting a detector's threshold on clean training images, read through classifier and purifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unperturb.classifiers import Classifier, as_classifier
from unperturb.data import ImageSet
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import ConfigError, DataError
from unperturb.files import short_paths
from unperturb.progress import progress
from unperturb.purifiers import Purifier
from unperturb.randomness import Keys

__all__ = ["clean_scores", "fit_threshold"]


@torch.no_grad()
def clean_scores(
    classifier: nn.Module,
    purifier: Purifier,
    data: ImageSet,
    *,
    statistic: str = "absolute-change",
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str = "cpu",
    show: bool = False,
) -> Tensor:
    """A detector's scores of a data set, (N,) on the CPU; a batch of images is held at a time.

    Args:
        classifier: A ``Classifier``, or any module from images in [0, 1] to logits.
        purifier: The purifier.
        data: The images; labels are not read.
        statistic: What the detector computes of the logits before and after.
        batch_size: Images at a time.
        seed: Seed of a random purifier's draws: one for each image.
        device: Where to compute; classifier and purifier are moved there.
        show: Show a progress bar.

    Raises:
        DataError: There is no image.
        ConfigError: The batch size is below 1.
    """
    if not len(data):
        raise DataError("There is no image to fit on", expected="clean training images")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}", expected="at least 1")
    probe = ThresholdDetector(statistic=statistic, threshold=0.0)
    defense = Defense(classifier, purifier=purifier, detector=probe).to(device)
    parts = []
    with progress(total=len(data), desc="clean scores", show=show, unit="image") as bar:
        for start in range(0, len(data), batch_size):
            rows = slice(start, start + batch_size)
            images = data.images(rows).to(device)
            keys = Keys.of(seed, data.ids[rows], domain="threshold")
            scores = defense.predict(images, keys=keys, batch_size=batch_size).detector_score
            assert scores is not None
            parts.append(scores.cpu())
            bar.update(len(images))
    return torch.cat(parts)


def fit_threshold(
    classifier: nn.Module,
    purifier: Purifier,
    data: ImageSet,
    *,
    statistic: str = "absolute-change",
    quantile: float = 0.995,
    action: str = "route",
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str = "cpu",
    show: bool = False,
) -> ThresholdDetector:
    """A detector whose threshold is a quantile of its scores of clean training images.

    ALU: the threshold "includes the majority of clean image statistics, 99.5% in practice". It
    carries the fingerprints of classifier and purifier and refuses others, so it is fitted anew
    for another number of steps.

    Args:
        classifier: A ``Classifier``, or any module from images in [0, 1] to logits.
        purifier: The purifier.
        data: Clean *training* images: test images would flatter the false-positive rate.
        statistic: A name of ``STATISTICS``.
        quantile: Share of the clean images that stay unflagged.
        action: What a flag means: ``route`` or ``reject``.
        batch_size: Images at a time.
        seed: Seed of a random purifier's draws.
        device: Where to compute; classifier and purifier are moved there.
        show: Show a progress bar.

    Raises:
        ConfigError: The quantile is out of range, or scores are not finite.
        DataError: There is no image.

    Example:
        >>> from unperturb.data import load_images
        >>> from unperturb.purifiers import FGSMStep
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> classifier = as_classifier(net, input_shape=(1, 8, 8))
        >>> digits = load_images("digits", split="train", limit=200)
        >>> fitted = fit_threshold(classifier, FGSMStep(radius=0.1), digits, quantile=0.95)
        >>> fitted.fitted_on["split"], fitted.fitted_on["images"]["count"]
        ('train', 200)
    """
    net = classifier if isinstance(classifier, Classifier) else as_classifier(classifier)
    # Bad settings are refused before the long part.
    plain = ThresholdDetector(statistic=statistic, action=action)
    if not 0 < quantile < 1:
        raise ConfigError(f"The quantile is {quantile}", expected="between 0 and 1")
    scores = clean_scores(
        net, purifier, data, statistic=statistic, batch_size=batch_size, seed=seed, device=device,
        show=show,
    )  # fmt: skip
    return plain.fit(
        scores,
        quantile=quantile,
        classifier=net.fingerprint(),
        purifier=purifier.fingerprint(),
        split=data.split or "all",
        images={
            "source": short_paths(data.source),
            "count": len(data),
            "fingerprint": data.fingerprint(),
        },
    )
