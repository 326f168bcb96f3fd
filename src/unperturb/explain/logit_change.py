"""What an attack does to logits and what purification undoes: the empirical side of ALU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.attacks import Attack, make_attack
from unperturb.checks import check_images, check_labels
from unperturb.classifiers import Classifier
from unperturb.defense import Defense
from unperturb.errors import SpecError, unknown_name
from unperturb.explain.given import device_of, names_of, parts_of
from unperturb.explain.logit_attack import (
    ENCODE_DECODE,
    NOISE,
    UNDEFENDED,
    attacked_images,
    attacked_surface,
    to_first_success,
)
from unperturb.explain.logit_figures import change_figures
from unperturb.progress import progress
from unperturb.randomness import Keys
from unperturb.threat import Linf, Threat

__all__ = ["AWAY_FROM", "LogitChange", "Logits", "logit_change"]

AWAY_FROM = ("true", "predicted")
"""Labels that an attack may step away from."""


@dataclass(frozen=True, eq=False)
class Logits:
    """What a defense says of a set of images; all on the CPU.

    Attributes:
        before: Logits before purification (N, K).
        after: Logits after it (N, K).
        answers: The defense's answers (N,).
        flagged: Which images its detector flags (N,) bool; all False without one.
        scores: The detector's scores (N,); without one the sums of absolute changes.
        images: The images, (N, C, H, W).
        purified: What purification makes of them; None where that is no image.
    """

    before: Tensor
    after: Tensor
    answers: Tensor
    flagged: Tensor
    scores: Tensor
    images: Tensor
    purified: Tensor | None

    @property
    def change(self) -> Tensor:
        """``after - before`` (N, K): what the decision of ALU reads."""
        return self.after - self.before


@dataclass(frozen=True, eq=False)
class LogitChange:
    """Clean and attacked images before and after purification.

    Attributes:
        labels: True classes (N,).
        ids: Ids of the images.
        clean: Of the clean images.
        attacked: Of the attacked ones.
        train: Detector scores of clean training images (M,); None where there are none.
        threshold: Scores above it are flagged; None without a detector.
        inside: Whether the attacked images lie in the ball, (N,) bool.
        settings: Attack, threat model, gradient and seed, JSON-able.
        further: Detector scores of further clean images (M,); None where there are none.
        turned: Images that the attack turns when it stops at the first success, (N,) bool; None
            where that was not asked for.
        spent: Gradients that it takes of each image until then, (N,) int64; None as above.
    """

    labels: Tensor
    ids: tuple[str, ...]
    clean: Logits
    attacked: Logits
    train: Tensor | None
    threshold: float | None
    inside: Tensor
    settings: dict[str, Any]
    further: Tensor | None = None
    turned: Tensor | None = None
    spent: Tensor | None = None

    @property
    def able(self) -> Tensor:
        """Images whose logits before purification are right when clean, (N,) bool."""
        return self.clean.before.argmax(1) == self.labels

    @property
    def successful(self) -> Tensor:
        """Those of them that the attack turned, by the logits before, (N,) bool."""
        return self.able & (self.attacked.before.argmax(1) != self.labels)

    @property
    def failed(self) -> Tensor:
        """Those of them that the attack did not turn, (N,) bool."""
        return self.able & (self.attacked.before.argmax(1) == self.labels)

    def to_dict(self) -> dict[str, Any]:
        """Settings and all figures (``logit_figures.change_figures``), JSON-able."""
        return {
            **self.settings,
            "n": len(self.labels),
            "outside_ball": int((~self.inside).sum()),
            "threshold": self.threshold,
            "train_images": None if self.train is None else len(self.train),
            **change_figures(self),
        }


def logit_change(
    subject: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str | Attack = "pgd-20",
    threat: Threat | None = None,
    gradient: str = UNDEFENDED,
    away_from: str = "true",
    train: Tensor | None = None,
    further: Tensor | None = None,
    effort: bool = False,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    show: bool = False,
) -> LogitChange:
    """Attack images, purify clean and attacked ones, and keep all logits.

    ALU (its eq. 4) rests on an observation: a successful attack lowers the true class's logit most.
    Its figures are here for any purifier: in how many successful attacks that is so, the three
    cases of the paper, what becomes of attacks that failed, how the detector's score is
    distributed (Figures 2, 6 and 7, Appendix E).

    Args:
        subject: A defense with a purifier.
        images: Clean images (N, C, H, W) in [0, 1].
        labels: True labels (N,).
        attack: Its name, an attack, or ``noise``: signs drawn at random, of the size of the
            threat model, without any gradient.
        threat: Norm and size; Linf of 8/255 by default.
        gradient: What is attacked: ``undefended`` (the bare classifier), ``encode-decode`` (the
            classifier behind the VAE with N = 0, end to end), or a backward rule of the purifier
            (the whole defense, through that gradient).
        away_from: ``true`` label, or the one that is ``predicted`` for the clean image by what is
            attacked (with ``encode-decode``: the classifier behind the VAE with N = 0).
        train: Clean training images, whose detector scores stand beside the others.
        further: More clean images, of which only the detector's scores are taken: the
            false-positive rate and the ROC curve are then of them.
        effort: Also count the gradients that the attack takes until its first success.
        ids: Ids of the images, which name their random numbers; positions by default.
        seed: Names all random numbers.
        batch_size: Images at a time.
        show: Show a progress bar on standard error.

    Raises:
        SpecError: No such defense, attack, gradient or label.
        InputError: Images, labels or ids are not what the contract says.
        AttackError: The attack cannot be run here.
        ConfigError: The batch size is below 1.

    Example:
        >>> from unperturb.presets import alu
        >>> from unperturb.networks.vae import VAE
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
        >>> vae = VAE(image_shape=(1, 8, 8), width=2, downsample=1)
        >>> found = logit_change(alu(net, vae=vae, steps=1, threshold=1.0),
        ...                      torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), attack="fgsm")
        >>> found.to_dict()["successful"]["n"] <= 4
        True
    """
    if away_from not in AWAY_FROM:
        raise unknown_name("label to step away from", str(away_from), AWAY_FROM)
    made_by = attack
    if isinstance(attack, str) and attack != NOISE:
        made_by = make_attack(attack, draws=20)
    threat = threat if threat is not None else Linf(8 / 255)
    check_images(images)
    classifier, defense = parts_of(subject, images)
    if defense is None or defense.purifier.name == "identity":
        raise SpecError(
            "There is nothing that purifies",
            expected="a defense with a purifier",
            fix="give one, as in --defense runs/alu (unperturb fit alu)",
        )
    classifier.check(images)
    check_labels(labels, count=len(images), num_classes=classifier.num_classes)
    names = names_of(ids, len(images))
    device = device_of(classifier)
    images, labels = images.to(device), labels.to(device)
    keys = Keys.of(seed, names, domain="explain").to(device)
    clean = _logits(defense, classifier, images, keys, batch_size)
    aim = labels
    if away_from == "predicted":
        # Whose prediction: of what is attacked.
        aim = _predicted(defense, clean, images, labels, keys, gradient, batch_size)
    name = NOISE if isinstance(made_by, str) else made_by.name
    with progress(total=len(images), desc=name, show=show, unit="image") as bar:
        perturbed = attacked_images(
            defense, images, aim, attack=made_by, threat=threat, gradient=gradient, ids=names,
            seed=seed, batch_size=batch_size, bar=bar,
        )  # fmt: skip
    attacked = _logits(defense, classifier, perturbed, keys, batch_size)
    scores = [
        None if more is None else _scores(defense, classifier, more, kind, seed, batch_size)
        for more, kind in ((train, "train"), (further, "further"))
    ]
    turned = spent = None
    if effort and not isinstance(made_by, str):
        turned, spent = to_first_success(
            defense, images, aim, attack=made_by, threat=threat, gradient=gradient, ids=names,
            seed=seed, batch_size=batch_size,
        )  # fmt: skip
    settings = {
        "attack": name,
        **threat.to_dict(),
        "gradient": gradient,
        "away_from": away_from,
        "purifier": defense.purifier.describe(),
        "statistic": getattr(defense.detector, "statistic", "absolute-change"),
        "decision": defense.decision.name,
        "seed": seed,
    }
    return LogitChange(
        labels.cpu(), tuple(names), clean, attacked, scores[0],
        None if defense.detector is None else defense.detector.threshold,
        threat.contains(perturbed, images).cpu(), settings, scores[1], turned, spent,
    )  # fmt: skip


def _predicted(
    defense: Defense,
    clean: Logits,
    images: Tensor,
    labels: Tensor,
    keys: Keys,
    gradient: str,
    batch_size: int,
) -> Tensor:
    """What is attacked answers of the clean images, (N,); the true label where it says NaN."""
    if gradient == UNDEFENDED:
        said = clean.before.argmax(1)
    elif gradient == ENCODE_DECODE:
        surface = attacked_surface(defense, gradient)
        starts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
        said = torch.cat([surface.judge(images[r], labels[r], keys[r]).predictions for r in starts])
    else:
        said = clean.answers
    said = said.to(labels.device)
    return torch.where(said < 0, labels, said)


def _scores(
    defense: Defense,
    classifier: Classifier,
    images: Tensor,
    kind: str,
    seed: int,
    batch_size: int,
) -> Tensor:
    """The detector's scores of images that are looked at for nothing else, (N,)."""
    keys = Keys.of(seed, [f"{kind} {row}" for row in range(len(images))], domain="explain")
    device = device_of(classifier)
    found = [
        _logits(defense, classifier, images[rows].to(device), keys[rows].to(device), batch_size)
        for rows in (
            slice(start, start + batch_size) for start in range(0, len(images), batch_size)
        )
    ]
    return torch.cat([part.scores for part in found])


@torch.no_grad()
def _logits(
    defense: Defense, classifier: Classifier, images: Tensor, keys: Keys, batch_size: int
) -> Logits:
    """All that is kept of a set of images; both logits, whatever the decision reads."""
    found = defense.predict(images, keys=keys, batch_size=batch_size)
    before, after = found.before, found.after
    if before is None:
        before = torch.cat([classifier(part) for part in images.split(batch_size)])
    assert after is not None, "a purifier's logits after are what every decision with one reads"
    scores = found.detector_score
    if scores is None:
        scores = (after - before).abs().sum(1)
    return Logits(
        before.float().cpu(), after.float().cpu(), found.labels.cpu(), found.flagged.cpu(),
        scores.float().cpu(), images.cpu(),
        None if found.purified is None else found.purified.cpu(),
    )  # fmt: skip
