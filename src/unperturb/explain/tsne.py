"""Maps of penultimate features in the plane by t-SNE (van der Maaten and Hinton 2008)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.attacks import Attack, resolve_attacks
from unperturb.attacks.outside import fenced
from unperturb.checks import check_images, check_labels
from unperturb.errors import ConfigError, InputError
from unperturb.explain.clustering import neighbor_agreement, silhouette
from unperturb.explain.given import (
    device_of,
    names_of,
    parts_of,
    perturb,
    purified_images,
    purifies,
)
from unperturb.explain.penultimate import features_of
from unperturb.progress import progress
from unperturb.randomness import Keys
from unperturb.threat import Linf, Threat

__all__ = ["Embedding", "Panel", "Row", "embedding", "plane"]

NEIGHBORS = 10


@dataclass(frozen=True, eq=False)
class Panel:
    """The images of one column as one subject sees them.

    Attributes:
        name: ``clean``, or the attack's name.
        coordinates: (N, 2) in the plane; float32, on the CPU.
        predictions: What is answered, (N,): by the defense where there is one.
        accuracy: Share of right answers.
        silhouette: Of the true classes among the features themselves, not in the plane; None
            where it is not defined.
        neighbors: Share of the ten nearest neighbors of the same true class, likewise.
        outside: Adversarial images outside of the threat model's ball.
    """

    name: str
    coordinates: Tensor
    predictions: Tensor
    accuracy: float
    silhouette: float | None
    neighbors: float
    outside: int


@dataclass(frozen=True, eq=False)
class Row:
    """One subject: all its panels lie in one and the same plane.

    Attributes:
        name: Its name.
        dimensions: Number of features D.
        panels: One for each column.
    """

    name: str
    dimensions: int
    panels: tuple[Panel, ...]


@dataclass(frozen=True, eq=False)
class Embedding:
    """Rows of panels.

    Attributes:
        rows: One for each subject.
        labels: True classes (N,), on the CPU.
        ids: Ids of the images.
        chance: What ``neighbors`` would be were features and classes unrelated.
        settings: Attacks, threat model, attacker, perplexity and seed, JSON-able.
    """

    rows: tuple[Row, ...]
    labels: Tensor
    ids: tuple[str, ...]
    chance: float
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Settings and figures, JSON-able; coordinates are in `to_csv`."""
        names = ("name", "accuracy", "silhouette", "neighbors", "outside")
        return {
            **self.settings,
            "n": len(self.labels),
            "chance": self.chance,
            "rows": [
                {
                    "name": row.name,
                    "dimensions": row.dimensions,
                    "panels": [{k: getattr(panel, k) for k in names} for panel in row.panels],
                }
                for row in self.rows
            ],
        }

    def to_csv(self) -> str:
        """A line for each point: row, column, id, label, prediction, x, y."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["row", "column", "id", "label", "prediction", "x", "y"])
        for row in self.rows:
            for panel in row.panels:
                each = (self.labels.tolist(), panel.predictions.tolist(), panel.coordinates)
                for name, label, answer, place in zip(self.ids, *each, strict=True):
                    x, y = (format(float(v), ".6g") for v in place)
                    writer.writerow([row.name, panel.name, name, label, answer, x, y])
        return stream.getvalue()


def plane(features: Tensor, *, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """Features in the plane by scikit-learn's Barnes-Hut t-SNE, started at the principal axes.

    Distances between far groups and the sizes of groups mean nothing in such a map. It is made on
    one thread, because sums of several depend on their order: equal features, seed and machine
    give equal coordinates.

    Args:
        features: (N, D), finite.
        perplexity: Roughly the number of neighbors each point keeps; above 0 and below N.
        seed: Names the random numbers; global generators are left alone.

    Returns:
        (N, 2) float32, on the CPU.

    Raises:
        ConfigError: The perplexity is not above 0 and below N.
        InputError: All points are the same.

    Example:
        >>> plane(torch.eye(8), perplexity=3.0).shape
        torch.Size([8, 2])
    """
    if not 0 < perplexity < len(features):
        raise ConfigError(
            f"The perplexity is {perplexity:g} for {len(features)} points",
            expected="above 0 and below the number of points",
            fix="give more images (--limit), or a lower --perplexity",
        )
    if bool((features == features[:1]).all()):
        raise InputError(
            "All images have the same features",
            expected="features that differ between images",
            fix="check the classifier: it answers the same whatever it is shown",
        )
    with fenced(seed):
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        start = "pca" if features.shape[1] > 1 else "random"
        with threadpool_limits(limits=1):
            found = TSNE(
                n_components=2, perplexity=perplexity, init=start, learning_rate="auto",
                random_state=seed % 2**32,
            ).fit_transform(features.float().cpu().numpy())  # fmt: skip
    return torch.from_numpy(found).float()


def embedding(
    subjects: nn.Module | Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    attacks: str | Sequence[str | Attack] = ("pgd-20",),
    threat: Threat | None = None,
    attacker: str = "oblivious",
    ids: Sequence[str] | None = None,
    perplexity: float = 30.0,
    seed: int = 0,
    batch_size: int = 128,
    show: bool = False,
) -> Embedding:
    """Penultimate features of clean and attacked images in the plane (Tang et al. 2024, Fig. 7).

    Each subject is one row; its columns are the clean images and one for each attack, made for
    this very subject. Of a defense the features are those of the purified images. One t-SNE is
    made of all columns of a row together, so that its panels are comparable; rows are not.

    The paper shows pictures only. A picture by t-SNE shows groups readily, so each panel carries
    its accuracy and two figures from the features themselves: the silhouette of the true classes
    and the share of the ten nearest neighbors that have the true class.

    Deviations from the paper, which states no settings: those of scikit-learn (perplexity 30,
    start at the principal axes), and the attack as in its Figure 6, PGD-20 on the undefended
    classifier, unless the attacker is ``adaptive``.

    Args:
        subjects: A classifier or defense, or several by name, one row each.
        images: Clean images (N, C, H, W) in [0, 1].
        labels: True labels (N,).
        attacks: Names or attacks, one column each; none shows clean images only.
        threat: Norm and size; Linf of 8/255 by default.
        attacker: ``oblivious`` (attacks the undefended classifier) or ``adaptive`` (the defense).
        ids: Ids of the images, which name their random numbers; positions by default.
        perplexity: As in `plane`; below N.
        seed: Names all random numbers.
        batch_size: Images at a time.
        show: Show progress bars on standard error.

    Raises:
        InputError: Images, labels or ids are not what the contract says, or there are no more
            images than the perplexity.
        ConfigError: The perplexity or the batch size is out of range.
        SpecError: An unknown attack or attacker, or a purifier without images to show.
        AttackError: An attack cannot be run here.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> images, labels = torch.rand(20, 3, 2, 2), torch.arange(20) % 3
        >>> found = embedding(net, images, labels, attacks="fgsm", perplexity=5.0)
        >>> [panel.name for panel in found.rows[0].panels]
        ['clean', 'fgsm']
    """
    check_images(images)
    _check_count(len(images), perplexity)
    named = {"classifier": subjects} if isinstance(subjects, nn.Module) else dict(subjects)
    if not named:
        raise InputError("There is no subject", expected="at least one classifier or defense")
    chosen = resolve_attacks(attacks, draws=20) if attacks else []
    threat = threat if threat is not None else Linf(8 / 255)
    names = names_of(ids, len(images))
    total = len(images) * len(chosen) * len(named)
    rows = []
    with progress(total=total, desc="attacks", show=show and total > 0, unit="image") as bar:
        plan = _Plan(images, labels, names, chosen, threat, attacker, seed, batch_size, bar)
        seen = [(name, plan.look(subject)) for name, subject in named.items()]
    with progress(total=len(seen), desc="t-SNE", show=show, unit="row") as bar:
        for name, columns in seen:
            rows.append(_row(name, columns, labels.cpu(), perplexity, seed))
            bar.update(1)
    counts = labels.bincount().double()
    chance = float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))
    settings = {
        "attacks": [attack.name for attack in chosen],
        **threat.to_dict(),
        "attacker": attacker,
        "perplexity": perplexity,
        "neighbors": min(NEIGHBORS, len(images) - 1),
        "seed": seed,
    }
    return Embedding(tuple(rows), labels.cpu(), tuple(names), chance, settings)


def _check_count(count: int, perplexity: float) -> None:
    if not 0 < perplexity < math.inf:
        raise ConfigError(
            f"The perplexity is {perplexity:g}", expected="a number above 0, such as 30"
        )
    if count <= perplexity:
        raise InputError(
            f"There are {count} images for the perplexity {perplexity:g}",
            expected="more images than the perplexity",
            fix=f"give at least {int(perplexity) + 1} images (--limit), or a lower perplexity "
            "(--perplexity)",
        )


@dataclass(frozen=True, eq=False)
class _Column:
    """What one subject makes of the images of one column."""

    name: str
    features: Tensor
    predictions: Tensor
    outside: int


@dataclass(frozen=True, eq=False)
class _Plan:
    """Images and what shall be done to them, the same for every subject."""

    images: Tensor
    labels: Tensor
    ids: list[str]
    attacks: list[Attack]
    threat: Threat
    attacker: str
    seed: int
    batch_size: int
    bar: Any

    def look(self, subject: nn.Module) -> list[_Column]:
        """Features and answers of a subject, clean and under each attack."""
        classifier, defense = parts_of(subject, self.images)
        classifier.check(self.images)
        device = device_of(classifier)
        images, labels = self.images.to(device), self.labels
        check_labels(labels, count=len(images), num_classes=classifier.num_classes)
        labels = labels.to(device)
        shown = {"clean": (images, 0)}
        for attack in self.attacks:
            found = perturb(
                classifier, defense, images, labels, attack=attack, threat=self.threat,
                attacker=self.attacker, ids=self.ids, seed=self.seed,
                batch_size=self.batch_size, bar=self.bar,
            )  # fmt: skip
            shown[attack.name] = (found.images, int((~found.inside).sum()))
        keys = Keys.of(self.seed, self.ids, domain="explain")
        columns = []
        for name, (given, outside) in shown.items():
            read, answers = given, None
            if defense is not None:
                told = defense.predict(given, keys=keys, batch_size=self.batch_size)
                read = purified_images(defense, told) if purifies(defense) else given
                answers = told.labels
            features, logits = features_of(classifier, read, batch_size=self.batch_size)
            answers = logits.argmax(1) if answers is None else answers
            columns.append(_Column(name, features.cpu(), answers.cpu(), outside))
        return columns


def _row(name: str, columns: list[_Column], labels: Tensor, perplexity: float, seed: int) -> Row:
    places = plane(torch.cat([c.features for c in columns]), perplexity=perplexity, seed=seed)
    panels = tuple(
        Panel(
            column.name,
            place,
            column.predictions,
            float((column.predictions == labels).double().mean()),
            silhouette(column.features, labels),
            neighbor_agreement(column.features, labels, neighbors=NEIGHBORS),
            column.outside,
        )
        for column, place in zip(columns, places.split(len(labels)), strict=True)
    )
    return Row(name, columns[0].features.shape[1], panels)
