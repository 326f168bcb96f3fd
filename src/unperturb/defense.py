"""Purify, classify, detect, decide: the one class of this package, on one screen."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unperturb.classifiers import Classifier, as_classifier
from unperturb.context import Context
from unperturb.decisions import Decision, LogitsAfter
from unperturb.detectors import Detector
from unperturb.errors import ConfigError
from unperturb.purifiers import Identity, Purified, Purifier
from unperturb.randomness import Keys

__all__ = ["Defense", "Prediction", "Terms"]


class Terms(NamedTuple):
    """What an attacker differentiates, one draw for each row."""

    scores: Tensor  # (N, K)
    branches: dict[str, Tensor]  # the decision's alternatives, each (N, K)
    slack: Tensor | None  # (N,): threshold less detector score, at least 0 where not flagged
    logits: Tensor | None = None  # (N, K): the logits after, or before where only those are read
    bare: Tensor | None = None  # (N, K): the bare classifier's logits, where only its gradient is


@dataclass(frozen=True)
class Prediction:
    """Answer of a defense.

    Attributes:
        labels: Predicted classes (N,).
        scores: Unnormalized scores (N, K); argmax is the answer.
        flagged: Which images the detector flags (N,) bool; all False without a detector.
        detector_score: The detector's score (N,), or None without a detector.
        purified: Purified images (N, C, H, W), or None where the purifier has none to show.
        before: Logits before purification (N, K), or None where nothing reads them.
        after: Logits after purification (N, K), or None where nothing reads them.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> Defense(net).predict(torch.rand(2, 1, 8, 8)).changed.tolist()
        [False, False]
    """

    labels: Tensor
    scores: Tensor
    flagged: Tensor
    detector_score: Tensor | None
    purified: Tensor | None
    before: Tensor | None
    after: Tensor | None

    @property
    def changed(self) -> Tensor:
        """Where the decision's answer is not that of the logits it has (N,) bool.

        These are the logits after, or before where nothing reads the others. Of a decision that
        corrects logits this is a sign of an attack, at no further pass.
        """
        logits = self.before if self.after is None else self.after
        assert logits is not None
        return self.labels != logits.argmax(1)


class _Stages(NamedTuple):
    purified: Purified | None
    before: Tensor | None
    after: Tensor | None
    detected: Tensor | None
    flagged: Tensor
    scores: Tensor


class Defense(nn.Module):
    """A classifier with a test-time defense around it.

    ``forward(images) -> scores (N, K)`` lets any attack library attack it through its own
    wrapper; without keys every call of a random defense draws afresh, as a deployed one does.
    The classifier's module is never changed: gradients are taken to inputs only.

    Args:
        classifier: A ``Classifier``, or any module from images (N, C, H, W) in [0, 1] to logits.
        purifier: Images to what the classifier reads; the identity by default.
        detector: Logits before and after to a score and a flag; none by default.
        decision: Logits before and after to scores; the logits after by default.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> Defense(net)(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        purifier: Purifier | None = None,
        detector: Detector | None = None,
        decision: Decision | None = None,
    ) -> None:
        super().__init__()
        for part, kind in ((purifier, Purifier), (detector, Detector), (decision, Decision)):
            if part is not None and not isinstance(part, kind):
                raise ConfigError(
                    f"The {kind.__name__.lower()} is {part!r}",
                    expected=f"a {kind.__name__} object",
                    fix="build it first, as in FGSMStep(radius=8 / 255)",
                )
        wrapped = classifier if isinstance(classifier, Classifier) else as_classifier(classifier)
        self.classifier: Classifier = wrapped
        self.purifier: Purifier = purifier if purifier is not None else Identity()
        self.detector: Detector | None = detector
        self.decision: Decision = decision if decision is not None else LogitsAfter()
        if detector is None and self.decision.needs_flags:
            raise ConfigError(
                f"The decision {self.decision.name!r} chooses by a flag, and there is no detector",
                expected="a detector whose flag it reads",
                fix="detector=ThresholdDetector(threshold=...), or unperturb fit alu",
            )
        self.purifier.check_classifier(self.classifier)
        if detector is not None:
            detector.check_fitted(self.classifier.fingerprint(), self.purifier.fingerprint())
        if type(self.decision).check_fitted is not Decision.check_fitted:
            # Only where somebody asks: the fingerprint is a hash of all weights.
            self.decision.check_fitted(self.classifier.fingerprint(), self.num_classes)
        super().train(False)

    def train(self, mode: bool = True) -> Defense:
        """A defense is always in eval mode, whatever is asked for."""
        return self

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.classifier.num_classes

    @property
    def stochastic(self) -> bool:
        """Whether two calls on one image may answer differently."""
        return self.purifier.stochastic or self.decision.stochastic

    @property
    def backwards(self) -> tuple[str, ...]:
        """Gradients an attacker may take through the purifier."""
        return self.purifier.backwards

    @property
    def rejects(self) -> bool:
        """Whether a flag rejects the image (rather than choosing a branch of the decision)."""
        return self.detector is not None and self.detector.action == "reject"

    def _run(self, images: Tensor, keys: Keys | None, backward: str, *, show: bool) -> _Stages:
        if not torch.compiler.is_compiling():
            self.classifier.check(images, logits=False)
        # The layout in which convolutions are fastest; values change by rounding at most.
        images = images.contiguous(memory_format=torch.channels_last)
        reads = self.decision.reads | (self.detector.reads if self.detector else frozenset())
        ctx = Context(
            self.classifier,
            images,
            keys=keys,
            backward=backward,
            keep_before="before" in reads,
        )
        purified = before = after = detected = None
        if show or "after" in reads or self.purifier.references:
            purified = self._purify(images, ctx, backward)
            ctx.reference = purified.reference
        if "before" in reads:
            before = ctx.before()
        if "after" in reads:
            assert purified is not None
            unchanged = purified.reading is images and purified.reference is None
            after = (
                ctx.before()
                if unchanged
                else ctx.classify(purified.reading, inside=self.purifier.inside)
            )
        flagged = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if self.detector is not None:
            detected = self.detector(before, after)
            flagged = self.detector.flags(detected)
        scores = self.decision(before, after, flagged)
        return _Stages(purified, before, after, detected, flagged, scores)

    def _purify(self, images: Tensor, ctx: Context, backward: str) -> Purified:
        if backward != "identity":
            return self.purifier(images, ctx=ctx)  # type: ignore[no-any-return]
        # BPDA: the forward value is the purifier's, the backward is that of the identity.
        with torch.no_grad():
            purified: Purified = self.purifier(images.detach(), ctx=ctx)
        # Adding an exact zero keeps the value to the last bit.
        nothing = images - images.detach()
        reference = purified.reference
        return Purified(
            purified.reading + nothing,
            purified.images,
            None if reference is None else reference + nothing,
        )

    def forward(self, images: Tensor, *, keys: Keys | None = None) -> Tensor:
        """Scores (N, K) of images (N, C, H, W) in [0, 1].

        Args:
            images: Images in [0, 1].
            keys: Names the random numbers of each image; None draws afresh.

        Raises:
            InputError: The images are not what the contract says.
        """
        return self._run(images, keys, "exact", show=False).scores

    def terms(self, images: Tensor, *, keys: Keys | None = None, backward: str = "exact") -> Terms:
        """Everything an attacker who knows the defense may differentiate, for one draw a row.

        Args:
            images: Images in [0, 1].
            keys: Names the random numbers of each image.
            backward: Gradient through the purifier, one of ``self.backwards``.
        """
        run = self._run(images, keys, backward, show=False)
        slack = None
        if self.detector is not None:
            assert run.detected is not None
            slack = self.detector.slack(run.detected)
        logits = run.before if run.after is None else run.after
        return Terms(run.scores, self.decision.branches(run.before, run.after), slack, logits)

    @torch.no_grad()
    def predict(
        self, images: Tensor, *, keys: Keys | None = None, batch_size: int = 256
    ) -> Prediction:
        """Labels, and all that led to them.

        Args:
            images: Images (N, C, H, W) in [0, 1].
            keys: Names the random numbers of each image; None draws afresh.
            batch_size: Images at a time.

        Raises:
            InputError: The images are not what the contract says.
        """
        self.classifier.check(images, logits=False)
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}", expected="at least 1")
        parts = []
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            chosen = None if keys is None else keys[rows]
            parts.append(self._run(images[rows], chosen, "exact", show=True))
        joined = [
            None if items[0] is None else torch.cat(items)
            for items in zip(
                *((p.before, p.after, p.detected, p.flagged, p.scores) for p in parts), strict=True
            )
        ]
        before, after, detected, flagged, scores = joined
        shown = [p.purified.images if p.purified is not None else None for p in parts]
        assert flagged is not None
        assert scores is not None
        return Prediction(
            scores.argmax(1),
            scores,
            flagged,
            detected,
            None if shown[0] is None else torch.cat([s for s in shown if s is not None]),
            before,
            after,
        )

    def describe(self) -> dict[str, Any]:
        """What this is made of, as written into every record."""
        return {
            "classifier": self.classifier.describe(),
            "purifier": self.purifier.describe(),
            "detector": None if self.detector is None else self.detector.describe(),
            "decision": self.decision.describe(),
            "stochastic": self.stochastic,
        }

    def fingerprint(self) -> str:
        """SHA-256 over the classifier's and every stage's settings and weights."""
        stages = [self.purifier.fingerprint(), self.decision.fingerprint()]
        if self.detector is not None:
            stages.append(self.detector.fingerprint())
        text = json.dumps([self.classifier.fingerprint(), *stages])
        return hashlib.sha256(text.encode()).hexdigest()

    def save_pretrained(self, folder: str | Path, *, embed: bool = True) -> None:
        """Write ``config.json`` and ``model.safetensors``: ``unperturb.saving.save_defense``."""
        from unperturb.saving import save_defense

        save_defense(self, Path(folder), embed=embed)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, trust_remote_code: bool = False, device: str = "cpu"
    ) -> Defense:
        """Read a folder or a hub id; see ``unperturb.saving.load_defense``."""
        from unperturb.saving import load_defense

        return load_defense(source, trust_remote_code=trust_remote_code, device=device)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload to the Hugging Face hub; see ``unperturb.saving.push_defense``."""
        from unperturb.saving import push_defense

        return push_defense(self, repository, **options)
