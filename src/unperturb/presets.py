"""Published defenses as settings of the one pipeline."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from unperturb.correction.corrector import Corrector, load_corrector
from unperturb.decisions import LogitCorrection
from unperturb.defense import Defense
from unperturb.errors import ConfigError, SpecError, unknown_name
from unperturb.plugins import with_plugins
from unperturb.presets_alu import alu, alu_purifier
from unperturb.purifiers import CWStep, FGSMStep, PGDStep, Purifier, Restoration

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
