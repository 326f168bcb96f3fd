"""Published defenses as settings of the one pipeline."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from unperturb.classifiers import Classifier, as_classifier
from unperturb.correction.corrector import Corrector, load_corrector
from unperturb.decisions import DECISIONS, LogitCorrection
from unperturb.defense import Defense
from unperturb.detectors import Detector, ThresholdDetector
from unperturb.errors import ConfigError, SpecError, unknown_name
from unperturb.generative import fingerprint, load_denoiser, load_vae, vae_of
from unperturb.networks.unet import DenoisingUNet
from unperturb.networks.vae import VAE
from unperturb.plugins import with_plugins
from unperturb.purifiers import (
    PURIFIERS,
    CWStep,
    FGSMStep,
    LatentOptimization,
    PGDStep,
    Purifier,
    Restoration,
    UNetDenoiser,
)
from unperturb.specs import option_pairs
from unperturb.stages import build_stage

if TYPE_CHECKING:
    from unperturb.restoration import RestorationNet

__all__ = [
    "PRESETS",
    "alu",
    "alu_purifier",
    "atop",
    "logit_correction",
    "make_preset",
    "preset_names",
    "tpap",
]


_TPAP_STEPS: dict[str, type[Purifier]] = {"fgsm": FGSMStep, "pgd": PGDStep, "cw": CWStep}


def tpap(
    classifier: nn.Module,
    *,
    step: str = "fgsm",
    radius: float | None = None,
    clip: bool | None = None,
    steps: int | None = None,
    step_size: float | None = None,
    constant: float | None = None,
    confidence: float | None = None,
    lr: float | None = None,
) -> Defense:
    """Test-time pixel-level adversarial purification (Tang et al., CVPR 2024).

    Purifier: one FGSM step away from the own prediction; no detector; the logits after decide.
    The paper proposes it around a network in *robust overfitting* (near-perfect on FGSM examples,
    near zero under PGD); around other networks it is not what the paper proposes.

    Its Table 7 puts a PGD or a C&W attack in the place of FGSM, in training and in purification:
    ``step="pgd"`` and ``step="cw"``. An option that is None has the default of that purifier.

    Args:
        classifier: Images in [0, 1] to logits.
        step: ``fgsm`` (``fgsm-step``), ``pgd`` (``pgd-step``) or ``cw`` (``cw-step``).
        radius: For ``fgsm`` and ``pgd``: purification radius xi in pixel units; 8/255.
        clip: For ``fgsm`` and ``pgd``: clip purified images to [0, 1] (the released code does;
            eq. 8 does not); true.
        steps: For ``pgd`` and ``cw``: number of steps; 10.
        step_size: For ``pgd``: step as a fraction of the radius; 1/4.
        constant: For ``cw``: weight of the margin against the squared distance; 1.
        confidence: For ``cw``: margin to be reached, in units of the logits; 0.
        lr: For ``cw``: Adam's step in the units of the change of variables; 0.01.

    Raises:
        SpecError: The step is unknown, or an option belongs to another one.
        ConfigError: A value is out of range.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> tpap(net).purifier.name
        'fgsm-step'
        >>> tpap(net, step="pgd", steps=5).purifier.config()["steps"]
        5
    """
    if not isinstance(step, str) or step not in _TPAP_STEPS:
        raise unknown_name("step of tpap", str(step), _TPAP_STEPS)
    options = {
        "radius": radius,
        "clip": clip,
        "steps": steps,
        "step_size": step_size,
        "constant": constant,
        "confidence": confidence,
        "lr": lr,
    }
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        owners = [key for key, kind in _TPAP_STEPS.items() if name in signature(kind).parameters]
        if step not in owners:
            raise SpecError(
                f"The option {name!r} of tpap does not belong to step={step!r}",
                expected=f"one of {', '.join(signature(_TPAP_STEPS[step]).parameters)}",
                fix=f"leave it out, or use step={' or step='.join(map(repr, owners))}",
            )
    return Defense(classifier, purifier=_TPAP_STEPS[step](**given))


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
        lr: Their learning rate; 0.05.
        optimizer: ``adam``, or ``gd`` as published; adam.
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


def logit_correction(
    classifier: nn.Module,
    *,
    corrector: Corrector | LogitCorrection | str | Path | None = None,
    reads: str = "after",
    any_classifier: bool = False,
) -> Defense:
    """Logit correction (Li et al. 2019): a network that corrects the classifier's logits decides.

    No purifier, no detector. Where the correction changed the label (``Prediction.changed``) there
    is a sign of an attack, at no further pass.

    Args:
        classifier: Images in [0, 1] to logits.
        corrector: What ``unperturb fit logit-correction`` made: its folder, or the `Corrector`
            that ``load_corrector`` or ``fit_correction`` gave; or a decision that is built.
        reads: Correct the logits ``after`` purification or ``before`` it; without a purifier these
            are the same.
        any_classifier: Serve another classifier than the one it was fitted on.

    Raises:
        SpecError: No corrector is given, or there is none in the folder.
        ConfigError: It is something else, or its folder is damaged.
        WeightsError: It was fitted on another classifier (which ``any_classifier`` allows), or
            reads another number of classes.

    Example:
        >>> from unperturb.networks.corrector import CorrectionNetwork
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> corrector = Corrector(CorrectionNetwork(num_classes=10, width=64))
        >>> logit_correction(net, corrector=corrector).decision.name
        'logit-correction'
    """
    if isinstance(corrector, LogitCorrection):
        if (reads, any_classifier) != ("after", False):
            raise SpecError(
                "Options are given for a decision that is built already",
                expected="none: it has its own",
                fix="LogitCorrection.of(corrector, reads=..., any_classifier=...)",
            )
        return Defense(classifier, decision=corrector)
    if not isinstance(corrector, Corrector):
        corrector = _read_corrector(corrector)
    decision = LogitCorrection.of(corrector, reads=reads, any_classifier=any_classifier)
    defense = Defense(classifier, decision=decision)
    like = next(defense.classifier.parameters(), None)
    if like is not None:
        decision.to(like.device)
    return defense


def _read_corrector(source: object) -> Corrector:
    if source is not None and not isinstance(source, str | Path):
        raise ConfigError(
            f"The corrector is of the type {type(source).__name__}",
            expected="a folder, a Corrector or a LogitCorrection",
            fix="load_corrector(folder), or the folder itself",
        )
    folder = Path(source).expanduser() if source else None
    # A folder with a configuration of something else, or a damaged one, is told as that.
    if folder is None or not (folder / "config.json").is_file():
        raise SpecError(
            "No corrector is named" if folder is None else f"There is no corrector in '{folder}'",
            expected="the --out folder of unperturb fit logit-correction",
            fix="unperturb bank makes a logit bank of the classifier, and unperturb fit "
            "logit-correction --bank BANK --out FOLDER a corrector; then corrector=FOLDER",
        )
    return load_corrector(folder)


def atop(
    classifier: nn.Module,
    *,
    purifier: str | Path | RestorationNet,
    transform: str | None = None,
    patch: int | None = None,
    rate: float | None = None,
    sigma: float | None = None,
    passes: int | None = None,
    clip: bool = False,
) -> Defense:
    """Adversarial training on purification (Lin et al., ICLR 2024).

    Purifier: a random transform and a network that restores the image (``restoration``),
    pre-trained and then fine-tuned with the loss of the frozen classifier; no detector; the logits
    after decide. ``unperturb fit gan``, ``fit mae`` and ``fit atop`` train the network; one that
    is pre-trained only is the paper's row without AToP.

    Args:
        classifier: Images in [0, 1] to logits.
        purifier: Folder of the restoration network, or what ``load_restoration`` read from it.
        transform: ``rt1``, ``rt2`` or ``rt3``; None: the one it was trained on.
        patch: Side of a patch in pixels; None: as it was trained.
        rate: For ``rt1`` and ``rt2``: share of the patches that is dropped; None: as trained.
        sigma: For ``rt2`` and ``rt3``: standard deviation of the noise; None: as trained.
        passes: For ``rt3``: number of covers; None: as trained.
        clip: Clip the restored image to [0, 1]; the paper's equations do not.

    Raises:
        SpecError: There is no such folder, or no such transform.
        ConfigError: The folder is damaged, or a setting is out of range.
        WeightsError: Its weights are not those its configuration names.

    Example:
        >>> import tempfile
        >>> from unperturb.networks.restorers import build_restorer
        >>> from unperturb.purifiers.transforms import RandomTransform
        >>> from unperturb.restoration import RestorationNet, save_restoration
        >>> made = RestorationNet("inpainting-gan", build_restorer("inpainting-gan", width=8),
        ...                       (3, 32, 32), RandomTransform(name="rt2"))
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atop(net, purifier=save_restoration(made, folder)).purifier.config()["sigma"]
        0.25
    """
    return Defense(
        classifier,
        purifier=Restoration.from_folder(
            purifier,
            transform=transform,
            patch=patch,
            rate=rate,
            sigma=sigma,
            passes=passes,
            clip=clip,
        ),
    )


PRESETS: dict[str, Callable[..., Defense]] = {
    "alu": alu,
    "atop": atop,
    "logit-correction": logit_correction,
    "tpap": tpap,
}
"""Presets by name."""


def _presets() -> dict[str, Callable[..., Defense]]:
    return with_plugins("presets", PRESETS)


def preset_names() -> list[str]:
    """All presets there are, third-party ones included."""
    return sorted(_presets())


def make_preset(name: str, classifier: nn.Module, **options: object) -> Defense:
    """A preset by its name.

    Raises:
        SpecError: There is no such preset, it has no such option, or one that it needs is not
            given.
    """
    presets = _presets()
    if name not in presets:
        raise unknown_name("preset", name, presets)
    parameters = list(signature(presets[name]).parameters.values())[1:]
    has = [p.name for p in parameters]
    for option in options:
        if option not in has and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise unknown_name(f"option of the preset {name!r}", option, has)
    for needed in parameters:
        named = needed.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        if named and needed.default is Parameter.empty and needed.name not in options:
            raise SpecError(
                f"The preset {name!r} lacks its option {needed.name!r}",
                expected=f"{needed.name}=...",
                fix=f"{name}?{needed.name}=... on the command line; docs/defenses/{name}.md",
            )
    return presets[name](classifier, **options)
