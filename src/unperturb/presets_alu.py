"""ALU as settings of the one pipeline: its preset, and its purifier before there is a threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from unperturb.classifiers import Classifier, as_classifier
from unperturb.decisions import DECISIONS
from unperturb.defense import Defense
from unperturb.detectors import Detector, ThresholdDetector
from unperturb.errors import ConfigError, SpecError, unknown_name
from unperturb.generative import fingerprint, load_denoiser, load_vae, vae_of
from unperturb.networks.unet import DenoisingUNet
from unperturb.networks.vae import VAE
from unperturb.purifiers import PURIFIERS, LatentOptimization, Purifier, UNetDenoiser
from unperturb.specs import option_pairs
from unperturb.stages import build_stage

__all__ = ["alu", "alu_purifier"]


def alu(
    classifier: nn.Module,
    *,
    vae: VAE | str | Path | None = None,
    denoiser: DenoisingUNet | str | Path | None = None,
    purifier: Purifier | str | None = None,
    steps: int | None = None,
    lr: float | None = None,
    optimizer: str | None = None,
    start: str | None = None,
    tolerance: float | None = None,
    threshold: float | str | Path | None = None,
    statistic: str = "absolute-change",
    decision: str = "logit-update",
) -> Defense:
    """Adversarial logit update.

    Purifier: a VAE whose code is optimized to reconstruct the image; detector: the change of the
    logits against a threshold; decision: the class whose logit rose most where flagged, else the
    logits after.

    Three variants are one preset. *Plug-in*: any classifier of images. *Unified* and *asymmetric*:
    a classifier from ``unperturb train --through VAE [--level L]``, which brings its VAE along;
    logits before are then those of plain encode-decode. *Toy* (Table 1): ``denoiser`` in the place
    of the VAE. Its detector and decision serve any other ``purifier`` as well.

    Its threshold belongs to one classifier and one purifier: ``unperturb fit alu`` fits it on clean
    training images and saves the whole defense. A number given here is taken as it is.

    Args:
        classifier: Images in [0, 1] to logits.
        vae: A VAE, or the folder of one; None: that of a classifier that was trained through one.
        denoiser: A denoiser, or the folder of one, in the place of the VAE.
        purifier: Any other purifier in its place, or its name with its options, such as
            ``fgsm-step?radius=8/255``.
        steps: Steps N in the latent space; 10.
        lr: Their learning rate; 0.1.
        optimizer: ``lbfgs``, ``adam``, or ``gd`` as published; lbfgs.
        start: ``encoder`` or ``random``; encoder.
        tolerance: Images are done whose error hardly falls; 0, never.
        threshold: Detector scores above it are flagged; or the folder of a saved defense whose
            fitted detector is used, and checked; None only where nothing is flagged.
        statistic: What the detector computes, where the threshold is a number.
        decision: ``logit-update``, or ``logits-after`` for purification alone, without a detector
            unless a threshold is given.

    Raises:
        SpecError: Neither VAE nor denoiser nor another purifier is there, or several; a folder
            holds something else; an option belongs to another one.
        ConfigError: A value is out of range, a VAE is not the one that the classifier was trained
            through, or there is no threshold.
        ThresholdError: The fitted threshold is that of another classifier or purifier.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> defense = alu(net, vae=VAE(image_shape=(3, 32, 32)), threshold=12.5)
        >>> defense.purifier.name, defense.detector.name, defense.decision.name
        ('latent-optimization', 'threshold', 'logit-update')
    """
    net = classifier if isinstance(classifier, Classifier) else as_classifier(classifier)
    options = {
        "steps": steps,
        "lr": lr,
        "optimizer": optimizer,
        "start": start,
        "tolerance": tolerance,
    }
    given = {name: value for name, value in options.items() if value is not None}
    built = alu_purifier(net, vae=vae, denoiser=denoiser, purifier=purifier, **given)
    if decision not in ("logit-update", "logits-after"):
        raise unknown_name("decision of alu", str(decision), ("logit-update", "logits-after"))
    detector: Detector | None = None
    if isinstance(threshold, str | Path):
        from unperturb.saving import load_detector

        detector = load_detector(threshold)
    elif threshold is not None:
        detector = ThresholdDetector(statistic=statistic, threshold=float(threshold))
    elif decision == "logit-update":
        raise ConfigError(
            "alu has no threshold",
            expected="a number, or the folder of a defense with a fitted one",
            fix="unperturb fit alu fits one on clean training images and saves the defense",
        )
    return Defense(net, purifier=built, detector=detector, decision=DECISIONS[decision]())


def alu_purifier(
    classifier: Classifier,
    *,
    vae: VAE | str | Path | None = None,
    denoiser: DenoisingUNet | str | Path | None = None,
    purifier: Purifier | str | None = None,
    **options: Any,
) -> Purifier:
    """The purifier of ``alu``, before there is a threshold.

    Args:
        classifier: The classifier.
        vae: As for ``alu``.
        denoiser: As for ``alu``.
        purifier: As for ``alu``.
        **options: Settings of ``LatentOptimization``; the others have none of them.

    Raises:
        SpecError: Neither VAE nor denoiser nor another purifier is there, or several, or options
            of the VAE's with another one; there is no such purifier.
        ConfigError: The classifier was trained through another VAE.
    """
    own = vae_of(classifier)
    if denoiser is not None or purifier is not None:
        which = "denoiser" if denoiser is not None else "purifier"
        others = ["a VAE"] * (vae is not None) + list(options)
        others += ["another purifier"] * (denoiser is not None and purifier is not None)
        if others:
            raise SpecError(
                f"A {which} is given with {', '.join(others)}",
                expected=f"a {which} alone, or a VAE with its options",
                fix="leave one of them out",
            )
    if isinstance(purifier, Purifier):
        return purifier
    if purifier is not None:
        name, _, query = purifier.partition("?")
        settings = {"name": name, **option_pairs(query, f"the purifier {name}")}
        built = build_stage("purifiers", PURIFIERS, settings)
        assert isinstance(built, Purifier)
        return built
    if denoiser is not None:
        found = denoiser if isinstance(denoiser, DenoisingUNet) else load_denoiser(denoiser)
        return UNetDenoiser(unet=found)
    if vae is None and own is None:
        raise SpecError(
            "alu has neither a VAE nor a denoiser nor another purifier",
            expected="vae=FOLDER, or a classifier that was trained through a VAE",
            fix="unperturb fit vae trains one",
        )
    model = vae if isinstance(vae, VAE) else load_vae(vae) if vae is not None else None
    if own is None:
        return LatentOptimization(vae=model, **options)
    if model is not None and fingerprint(model) != fingerprint(own.vae):
        raise ConfigError(
            f"The VAE is {fingerprint(model)[:12]}",
            expected=f"{fingerprint(own.vae)[:12]}, through which the classifier was trained",
            fix="leave vae out: the classifier brings it along",
        )
    return LatentOptimization(vae=own.vae, level=own.level, unified=True, **options)
