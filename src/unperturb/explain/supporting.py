"""Supporting classes: the few classes by which a corrector corrects (Li et al. 2019, Section 5)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unperturb.checks import check_labels
from unperturb.correction.corrector import Corrector, check_logits
from unperturb.errors import ConfigError, InputError, unknown_name
from unperturb.explain.products import check_batch, contributions, network_of
from unperturb.networks.corrector import CorrectionNetwork

__all__ = ["ONLY", "WHICH", "Supporting", "TopClasses", "counts_csv", "supporting_classes"]

ONLY = ("all", "corrected")
WHICH = ("score", "pull", "push")


class TopClasses(NamedTuple):
    """The greatest values of each image, the greatest first."""

    indices: Tensor  # classes k, (n, top) int64
    values: Tensor  # their values, (n, top) float32


@dataclass(frozen=True, eq=False)
class Supporting:
    """The classes that contribute most to the correction of each image; all on the CPU.

    Attributes:
        num_classes: K.
        given: Images that were handed in.
        only: Which of them are meant: ``all``, or those the corrector gets right.
        rows: Positions of the n images that are meant among those handed in, (n,).
        labels: Their true classes i, (n,).
        adversarial: The classifier's answers j on them, argmax of the logits handed in, (n,).
        answers: The corrector's answers, (n,).
        pull: Greatest ``H[i, k]``: raising k pulls the true class up.
        push: Greatest ``-mean_l H[l, k]``: raising k pushes all classes down.
        score: Greatest ``S_k = H[i, k] - mean_l H[l, k]``.
        flat: Images of which no ``S_k`` differs from another: they have no such classes and are
            not counted, (n,) bool.
        full: ``S`` itself, (n, K), if it was asked for.
    """

    num_classes: int
    given: int
    only: str
    rows: Tensor
    labels: Tensor
    adversarial: Tensor
    answers: Tensor
    pull: TopClasses
    push: TopClasses
    score: TopClasses
    flat: Tensor
    full: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def top(self) -> int:
        """Length of an image's list."""
        return self.score.indices.shape[1]

    @property
    def corrected(self) -> Tensor:
        """Which images the corrector gets right, (n,) bool."""
        return self.answers == self.labels

    def lists(self, which: str = "score") -> TopClasses:
        """The lists by ``score``, ``pull`` or ``push``.

        Raises:
            SpecError: There are no such lists.
        """
        if which not in WHICH:
            raise unknown_name("list of classes", which, WHICH)
        found: TopClasses = getattr(self, which)
        return found

    def counts(self, which: str = "score") -> Tensor:
        """In how many images' lists each class stands, (K,) int64."""
        listed = self.lists(which).indices[~self.flat]
        return torch.bincount(listed.flatten(), minlength=self.num_classes)

    def classes(self, which: str = "score") -> tuple[int, ...]:
        """The ``top`` classes that stand in most lists, the most frequent first.

        Of equally frequent ones the lower number comes first; classes in no list are left out.
        """
        counts = self.counts(which)
        order = counts.argsort(descending=True, stable=True)[: self.top]
        return tuple(int(k) for k in order if counts[k])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps the counts from meaning what they seem to."""
        found = []
        if self.top >= self.num_classes:
            found.append(
                f"a list of {self.top} of {self.num_classes} classes holds every class: counts "
                "say nothing, and lowering all of them is a uniform shift"
            )
        if bool(self.flat.any()):
            found.append(
                f"{int(self.flat.sum())} of {len(self)} images have no class that matters more "
                "than another and are not counted"
            )
        return tuple(found)

    def to_dict(self, classes: Sequence[str] = ()) -> dict[str, Any]:
        """Supporting classes and counts, JSON-able; counts are sparse, by class number.

        Args:
            classes: Names of the classes.
        """
        return {
            "n": len(self),
            "given": self.given,
            "only": self.only,
            "num_classes": self.num_classes,
            "top": self.top,
            "fooled": int((self.adversarial != self.labels).sum()),
            "corrected": int(self.corrected.sum()),
            "flat": int(self.flat.sum()),
            "warnings": list(self.warnings),
            "classes": {
                which: [
                    {"class": k, "name": _name(k, classes), "count": int(self.counts(which)[k])}
                    for k in self.classes(which)
                ]
                for which in WHICH
            },
            "counts": {
                which: {
                    str(k): count for k, count in enumerate(self.counts(which).tolist()) if count
                }
                for which in WHICH
            },
        }

    def to_csv(self, classes: Sequence[str] = ()) -> str:
        """Counts of all classes as a table: class, name, score, pull, push, supporting."""
        return counts_csv({"": self}, classes)


def counts_csv(sets: Mapping[str, Supporting], classes: Sequence[str] = ()) -> str:
    """Counts of all classes of one or several sets as one table.

    Args:
        sets: Sets by name; the column ``set`` is left out if the only name is empty.
        classes: Names of the classes.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    named = list(sets) != [""]
    head = ["class", "name", *WHICH, "supporting"]
    writer.writerow(["set", *head] if named else head)
    for name, found in sets.items():
        columns = [found.counts(which).tolist() for which in WHICH]
        chosen = set(found.classes())
        for k in range(found.num_classes):
            row = [k, _name(k, classes), *(column[k] for column in columns), int(k in chosen)]
            writer.writerow([name, *row] if named else row)
    return stream.getvalue()


def supporting_classes(
    corrector: Corrector | CorrectionNetwork,
    logits: Tensor,
    labels: Tensor,
    *,
    top: int | None = None,
    only: str = "all",
    batch_size: int = 512,
    keep_scores: bool = False,
) -> Supporting:
    """Find the classes by which a corrector corrects a set of adversarial logits.

    Li, Xie, Zhang, Zhang, Wang and Tian. *Defending adversarial attacks by correcting logits.*
    arXiv:1906.10973, 2019, Section 5. With ``H[l, k] = d g(z*)_l / d z_k`` and the true class i,
    an image's list holds the ``top`` classes k of greatest ``S_k = H[i, k] - mean_l H[l, k]``;
    the classes in most lists are the supporting classes. Lists by ``H[i, k]`` alone (*pull-up*)
    and by ``-mean_l H[l, k]`` alone (*push-down*) are found in the same pass.

    Two vector-Jacobian products for each image, in closed form (`contributions`). Memory beyond
    the logits is a few times ``batch_size`` x width, and ``3 top`` numbers for each image.

    Deviation: the paper lists 10 of 1,000 classes. Of 10 classes that would be all of them, so a
    list is a third of the classes at most unless ``top`` says otherwise.

    Args:
        corrector: The corrector or its network.
        logits: Adversarial logits z* (N, K).
        labels: True classes (N,).
        top: Length of an image's list; ``min(10, max(1, K // 3))`` by default, never above K.
        only: Which images: ``all`` that are handed in, or those the corrector gets right,
            ``corrected``.
        batch_size: Images at a time.
        keep_scores: Also keep S itself, (n, K).

    Raises:
        InputError: Logits or labels are not what the contract says, or ``only`` leaves no image.
        SpecError: Another ``only``.
        ConfigError: ``top`` or the batch size is below 1.

    Example:
        >>> net = CorrectionNetwork(num_classes=12, width=32, seed=1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = torch.randn(100, 12, generator=generator)
        >>> found = supporting_classes(net, logits, logits.argmax(1))
        >>> found.top, int(found.counts().sum()), len(found.classes())
        (4, 400, 4)
    """
    network = network_of(corrector)
    check_logits(logits, network.num_classes)
    check_labels(labels, count=len(logits), num_classes=network.num_classes)
    check_batch(batch_size)
    if only not in ONLY:
        raise unknown_name("choice of images", only, ONLY)
    length = _length(top, network.num_classes)
    parts = [
        _part(network, logits[start : start + batch_size], labels[start : start + batch_size],
              start=start, top=length, only=only, keep_scores=keep_scores)
        for start in range(0, len(logits), batch_size)
    ]  # fmt: skip
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if not len(whole["rows"]):
        raise InputError(
            f"The corrector gets none of {len(logits)} images right",
            expected="at least one image that is corrected",
            fix="only='all' takes every image",
        )
    return Supporting(
        num_classes=network.num_classes,
        given=len(logits),
        only=only,
        rows=whole["rows"],
        labels=whole["labels"],
        adversarial=whole["adversarial"],
        answers=whole["answers"],
        flat=whole["flat"],
        full=whole.get("full"),
        **{which: TopClasses(whole[which], whole[f"{which}_values"]) for which in WHICH},
    )


def _length(top: int | None, classes: int) -> int:
    if top is None:
        return min(10, max(1, classes // 3))
    if top < 1:
        raise ConfigError(f"top is {top}", expected="at least 1 class in an image's list")
    return min(top, classes)


def _part(
    network: CorrectionNetwork,
    logits: Tensor,
    labels: Tensor,
    *,
    start: int,
    top: int,
    only: str,
    keep_scores: bool,
) -> dict[str, Tensor]:
    found = contributions(network, logits, labels)
    labels, score = labels.long().cpu(), found.score
    answers = found.corrected.argmax(1).cpu()
    part = {
        "rows": torch.arange(start, start + len(labels)),
        "labels": labels,
        "adversarial": logits.argmax(1).cpu(),
        "answers": answers,
        "flat": (score.amax(1) == score.amin(1)).cpu(),
    }
    for which, values in (("score", score), ("pull", found.pull), ("push", -found.mean)):
        best = values.topk(top)
        part[which] = best.indices.cpu()
        part[f"{which}_values"] = best.values.float().cpu()
    if keep_scores:
        part["full"] = score.float().cpu()
    if only == "corrected":
        keep = answers == labels
        part = {name: value[keep] for name, value in part.items()}
    return part


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else f"class {label}"
