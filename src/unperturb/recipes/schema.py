"""What a recipe says: one table or figure of a paper, its models, rows and columns, at one scale.

``parse`` reads them from YAML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unperturb.recipes.schema_parts import Bank, Changes, Explanation, Fit, Network, Threshold
from unperturb.threat import Threat

__all__ = [
    "DRAWS",
    "KINDS",
    "OWN",
    "SCALES",
    "Column",
    "Dataset",
    "Measured",
    "Model",
    "Pair",
    "Panel",
    "Paper",
    "Recipe",
    "Row",
    "Select",
    "Stage",
    "Sweep",
]

SCALES = ("smoke", "cpu", "gpu", "paper")
"""Seconds on digits; two cores; one large GPU; the paper's settings."""

KINDS = ("table", "curves", "sweep", "figure", "cost", "explanation", "logit-change")

FIGURES = ("gradcam", "embedding", "panels")

DRAWS = 10
"""On which a random defense is scored where a recipe says nothing else."""

OWN = "own"
"""In place of a column's attack: each row's own one."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What is reproduced.

    Attributes:
        source: The paper.
        item: The table or figure.
        settings: Its settings, as far as they are stated.
        notes: What a reader must know of its figures.
    """

    source: str
    item: str
    settings: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Select:
    """A selected test set: the first images that a reference classifier gets right.

    Attributes:
        model: The reference.
        per_class: Images of each class, at most.
    """

    model: str
    per_class: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images that models are trained and attacked on.

    Attributes:
        name: Its name in recipes and in ``--data NAME=PATH``.
        title: Its name in words.
        spec: Where it is, if that is known beforehand (``digits``); None: the user says.
        train: Split of the training images.
        test: Split of the images that are attacked; None for the one meant for testing.
        shuffle: Whether images are taken in a random order (the same in every run), as they must
            be where a file has one class after the other.
        test_share: Share of the images held out for testing where the source has no splits; where
            ``train`` and ``test`` name one split, which of them is decided by their ids.
        image_size: Size (height, width) that images are brought to; None leaves them.
        train_limit: Training images that are read at most; None for all.
        missing: Why rows on it are not run where the user names none; None: that is an error.
        select: Which test images are the selected ones; None where there are none.
    """

    name: str
    title: str
    spec: str | None = None
    train: str = "train"
    test: str | None = None
    shuffle: bool = False
    test_share: float | None = None
    image_size: tuple[int, int] | None = None
    train_limit: int | None = None
    missing: str | None = None
    select: Select | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of a model.

    Attributes:
        name: Name of its folder.
        arch: Network that is trained from scratch; None for a start.
        start: Model whose weights it starts from; None: the stage before, or from scratch.
        config: Settings of ``TrainConfig``.
        through: The recipe's VAE that every image goes through; None for none, or for that of a
            start.
        level: Level of its decoder that is read in the place of images.
    """

    name: str
    arch: str | None
    start: str | None
    config: Mapping[str, Any]
    through: str | None = None
    level: int | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A classifier, and how it is had at this scale.

    Attributes:
        name: Its name.
        title: In words.
        dataset: The images it is for.
        zoo: Classifier of the project's zoo that serves; None for none.
        stages: Training runs, where the zoo has none.
        unavailable: Why it cannot be had at this scale; None where it can.
    """

    name: str
    title: str
    dataset: str
    zoo: str | None = None
    stages: tuple[Stage, ...] = ()
    unavailable: str | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        attack: Specification of the attack; None for clean images, ``OWN`` for each row's own.
        n: Test images, the first ones of the split.
        selected: Whether they are the selected ones.
        threat: Threat model where it is not the recipe's, as for minimal-norm attacks.
        note: What is to be said of it.
        skips: Attackers that are not run in it, each with the reason, as where one would take
            days.
        gradients: Gradients that an adaptive attacker takes through a defense, as where each one
            costs hours; all that he has where there are none.
        only: The one attacker that the column is for, as where another column has the other.
    """

    name: str
    attack: str | None
    n: int
    selected: bool = False
    threat: Threat | None = None
    note: str = ""
    skips: tuple[tuple[str, str], ...] = ()
    gradients: tuple[str, ...] = ()
    only: str | None = None

    def meant(self, known: Iterable[str]) -> tuple[str, ...]:
        """Those of the recipe's attackers that the column is for."""
        return tuple(name for name in known if self.only in (None, name))

    def attackers(self, known: Iterable[str]) -> tuple[str, ...]:
        """Those of the recipe's attackers that are run."""
        skipped = dict(self.skips)
        return tuple(name for name in self.meant(known) if name not in skipped)

    def attack_of(self, row: Row) -> str | None:
        """The attack on a row; None for clean images."""
        if self.attack is None:
            return None
        return row.attacks.get(self.name) or (row.attack if self.attack == OWN else self.attack)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        name: Its heading.
        model: Its classifier; None for a row that only quotes the paper.
        defense: Name of one of the recipe's defenses; None for none.
        attack: Attack of the columns that leave it to the row; None where there are none.
        threat: Threat model where it is not the recipe's.
        paper: The paper's figure by column, in percent; a text says why there is none.
        bare: The paper's figure without the defense, where it states one.
        attacks: Attacks by column in the place of the column's, as where the column's is made for
            random defenses and the row is not random.
        skips: Why it is not run, by column.
        note: What is to be said of it, and for a quoted row why it is not run.
    """

    name: str
    model: str | None
    defense: str | None = None
    attack: str | None = None
    threat: Threat | None = None
    paper: Mapping[str, float | str] = field(default_factory=dict)
    bare: Mapping[str, float | str] = field(default_factory=dict)
    attacks: Mapping[str, str] = field(default_factory=dict)
    skips: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes of a figure of training curves.

    Attributes:
        title: Its heading.
        lines: Label of a line to (model, figure of the monitor).
        networks: The same of networks of defenses.
    """

    title: str
    lines: Mapping[str, tuple[str, str]]
    networks: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows that are compared image by image.

    Attributes:
        name: In words.
        one: Name of the first row.
        other: Name of the second.
    """

    name: str
    one: str
    other: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One training setting that is varied.

    Attributes:
        name: Its heading.
        model: The model whose last stage is varied.
        setting: Field of ``TrainConfig``.
        values: Its values, as the file writes them.
        label: What the axis says.
        defense: Name of one of the recipe's defenses, audited on each; None for none.
    """

    name: str
    model: str
    setting: str
    values: tuple[Any, ...]
    label: str
    defense: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row of a table of costs.

    Attributes:
        name: Its heading.
        objective: The training objective whose step is counted and timed.
        defense: Name of the recipe's defense whose answer is; None for the plain one.
        clean_pass: Whether the clean batch passes through the network as well.
        paper: The paper's figures, by column.
    """

    name: str
    objective: str
    defense: str | None
    clean_pass: bool
    paper: Mapping[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A table or figure at one scale.

    Attributes:
        name: Such as ``tpap/table-2``.
        title: In words.
        kind: One of ``KINDS``.
        scale: One of ``SCALES``.
        paper: What is reproduced.
        cost: What the scale costs, in words, where that was measured or guessed.
        data: The data set that ``--data PATH`` means.
        datasets: By name.
        models: By name.
        banks: By name.
        fits: By name.
        networks: By name.
        thresholds: By name.
        defenses: Preset and its options, by name; ``{"fit": NAME}`` stands for a corrector,
            ``{"network": NAME}`` for a network, ``{"threshold": NAME}`` for a threshold.
        threat: The threat model.
        attackers: Some of ``oblivious`` and ``adaptive``.
        batch_size: Images in a unit of an audit.
        scoring_draws: Fresh draws on which a random defense is scored.
        side_effects: Whether audits look at what is no attack: benign changes, and the controls
            of label leaking.
        columns: By name.
        rows: By name.
        pairs: Rows that are compared image by image.
        panels: For curves.
        sweeps: For a sweep.
        figure: For a figure: ``draw`` (one of ``FIGURES``) and its settings.
        network: For costs: the network, its images, batch and number of timings.
        measured: For costs: the rows.
        explanation: For an explanation.
        changes: For a recipe of the kind ``logit-change``.
        body: All settings as they were read, for the record.
    """

    name: str
    title: str
    kind: str
    scale: str
    paper: Paper
    cost: str
    data: str
    datasets: Mapping[str, Dataset]
    models: Mapping[str, Model]
    defenses: Mapping[str, tuple[str, Mapping[str, Any]]]
    threat: Threat
    attackers: tuple[str, ...]
    batch_size: int
    columns: Mapping[str, Column]
    rows: Mapping[str, Row]
    scoring_draws: int = DRAWS
    side_effects: bool = True
    pairs: tuple[Pair, ...] = ()
    panels: tuple[Panel, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    figure: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()
    banks: Mapping[str, Bank] = field(default_factory=dict)
    fits: Mapping[str, Fit] = field(default_factory=dict)
    networks: Mapping[str, Network] = field(default_factory=dict)
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    explanation: Explanation | None = None
    changes: Changes | None = None
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def ours(self, row: Row) -> bool:
        """Whether a row is run in any column."""
        return row.model is not None and not set(self.columns) <= set(row.skips)
