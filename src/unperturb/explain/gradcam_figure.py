"""Heat maps of clean, attacked and purified images side by side (Tang et al. 2024, Figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from unperturb.attacks import Attack, make_attack
from unperturb.checks import check_images, check_labels
from unperturb.errors import unknown_name
from unperturb.explain.canvas import (
    INK,
    MUTED,
    RIGHT,
    WRONG,
    class_name,
    new_figure,
    picture_of,
    small_print,
)
from unperturb.explain.given import (
    device_of,
    names_of,
    parts_of,
    perturb,
    purified_images,
    purifies,
)
from unperturb.explain.grad_cam import maps_of
from unperturb.explain.layers import choose_layer
from unperturb.progress import progress
from unperturb.randomness import Keys
from unperturb.threat import Linf, Threat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TARGETS", "Column", "Columns", "figure_gradcam", "gradcam_columns"]

TARGETS = ("predicted", "true")
_CELL = 1.75


@dataclass(frozen=True, eq=False)
class Column:
    """One version of the images, and where the classifier looks in it; all on the CPU.

    Attributes:
        name: ``clean``, ``attacked``, ``clean-purified`` or ``attacked-purified``.
        images: What the classifier reads, (N, C, H, W).
        maps: Heat (N, H, W) in [0, 1].
        targets: The class each map is about, (N,).
        predictions: The classifier's answer on these images, (N,).
        probabilities: Its softmax probability of that answer, (N,).
        answers: What the whole defense answers, (N,); None where the images are not purified.
    """

    name: str
    images: Tensor
    maps: Tensor
    targets: Tensor
    predictions: Tensor
    probabilities: Tensor
    answers: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Columns:
    """All versions of a few images.

    Attributes:
        columns: Two, or with a purifier four.
        labels: True classes (N,).
        ids: Ids of the images.
        inside: Whether the adversarial images lie in the ball, (N,) bool.
        settings: Layer, target, attack, threat model, attacker and seed, JSON-able.
    """

    columns: tuple[Column, ...]
    labels: Tensor
    ids: tuple[str, ...]
    inside: Tensor
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Settings and answers, JSON-able; the maps are in `tensors`."""
        return {
            **self.settings,
            "n": len(self.labels),
            "outside_ball": int((~self.inside).sum()),
            "ids": list(self.ids),
            "labels": self.labels.tolist(),
            "columns": [
                {
                    "name": column.name,
                    "predictions": column.predictions.tolist(),
                    "probabilities": [round(float(p), 6) for p in column.probabilities],
                    "targets": column.targets.tolist(),
                    "answers": None if column.answers is None else column.answers.tolist(),
                    "accuracy": float((column.predictions == self.labels).double().mean()),
                }
                for column in self.columns
            ],
        }

    def tensors(self) -> dict[str, Tensor]:
        """Maps and images of every column, and the labels, by names such as ``maps.clean``."""
        found = {"labels": self.labels}
        for column in self.columns:
            found[f"maps.{column.name}"] = column.maps
            found[f"images.{column.name}"] = column.images
        return found


def gradcam_columns(
    subject: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str | Attack = "pgd-20",
    threat: Threat | None = None,
    attacker: str = "oblivious",
    target: str = "predicted",
    layer: str | None = None,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    show: bool = False,
) -> Columns:
    """Grad-CAM of clean and attacked images, and of both as the defense purifies them.

    Answers and probabilities are the classifier's own, on the very images that a column shows; a
    defense whose decision reads more than that may answer otherwise.

    Args:
        subject: A defense (four columns), or a classifier or a defense that purifies nothing
            (two columns).
        images: Clean images (N, C, H, W) in [0, 1].
        labels: True labels (N,).
        attack: Its name, or an attack.
        threat: Norm and size; Linf of 8/255 by default.
        attacker: ``oblivious`` (attacks the undefended classifier, as in the paper) or
            ``adaptive`` (the defense).
        target: Explain the ``predicted`` class of each image, or the ``true`` one.
        layer: As in `gradcam`.
        ids: Ids of the images, which name their random numbers; positions by default.
        seed: Names all random numbers.
        batch_size: Images at a time.
        show: Show a progress bar on standard error.

    Raises:
        InputError: Images, labels or ids are not what the contract says.
        SpecError: An unknown attack, attacker, target or layer, or a purifier without images to
            show.
        AttackError: The attack cannot be run here.
        ConfigError: The batch size is below 1.

    Example:
        >>> import torch
        >>> from unperturb.presets import tpap
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        >>> shown = gradcam_columns(tpap(net), torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
        >>> [column.name for column in shown.columns]
        ['clean', 'attacked', 'clean-purified', 'attacked-purified']
    """
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    chosen = make_attack(attack, draws=20) if isinstance(attack, str) else attack
    threat = threat if threat is not None else Linf(8 / 255)
    check_images(images)
    classifier, defense = parts_of(subject, images)
    classifier.check(images)
    check_labels(labels, count=len(images), num_classes=classifier.num_classes)
    names = names_of(ids, len(images))
    device = device_of(classifier)
    images, labels = images.to(device), labels.to(device)
    # Before the attack, whose time a wrong name would waste.
    layer = choose_layer(classifier, images, layer)
    with progress(total=len(images), desc=chosen.name, show=show, unit="image") as bar:
        found = perturb(
            classifier, defense, images, labels, attack=chosen, threat=threat, attacker=attacker,
            ids=names, seed=seed, batch_size=batch_size, bar=bar,
        )  # fmt: skip
    versions: dict[str, tuple[Tensor, Tensor | None]] = {
        "clean": (images, None),
        "attacked": (found.images, None),
    }
    if defense is not None and purifies(defense):
        keys = Keys.of(seed, names, domain="explain")
        for name, (given, _) in list(versions.items()):
            told = defense.predict(given, keys=keys, batch_size=batch_size)
            versions[f"{name}-purified"] = (purified_images(defense, told), told.labels.cpu())
    columns = []
    for name, (given, answers) in versions.items():
        wanted = labels if target == "true" else None
        cam = maps_of(classifier, given, labels=wanted, layer=layer, batch_size=batch_size)
        best = cam.logits.float().softmax(1).max(1)
        columns.append(
            Column(
                name,
                images=given.detach().cpu(),
                maps=cam.maps.cpu(),
                targets=cam.targets.cpu(),
                predictions=best.indices.cpu(),
                probabilities=best.values.cpu(),
                answers=answers,
            )
        )
    settings = {
        "layer": layer,
        "target": target,
        "attack": chosen.name,
        **threat.to_dict(),
        "attacker": "oblivious" if defense is None else attacker,
        "seed": seed,
    }
    return Columns(tuple(columns), labels.cpu(), tuple(names), found.inside.cpu(), settings)


def figure_gradcam(found: Columns, *, classes: Sequence[str] = ()) -> Figure:
    """Draw heat maps over images: a row for each image, a column for each version.

    Above each stands what the classifier says of it, with its probability, in green with a tick
    where that is right, in red with a cross where it is wrong.

    Args:
        found: What `gradcam_columns` found.
        classes: Names of the classes.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    count, across = len(found.labels), len(found.columns)
    left, right, top, gap = 1.25, 0.75, 0.36, 0.3
    width = left + across * (_CELL + 0.12) + right
    foot = small_print(_caption(found), width - left)
    bottom = 0.2 + 0.13 * len(foot)
    height = top + count * (_CELL + gap) + bottom
    figure = new_figure(width, height)
    box = {
        "left": left / width,
        "right": 1 - right / width,
        "top": 1 - (top + gap) / height,
        "bottom": bottom / height,
    }
    grid = figure.add_gridspec(count, across, wspace=0.12 / _CELL, hspace=gap / _CELL, **box)
    heat = None
    for across_at, column in enumerate(found.columns):
        for row in range(count):
            axes = figure.add_subplot(grid[row, across_at])
            heat = _cell(axes, column, row, int(found.labels[row]), classes)
            if row == 0:
                place = axes.get_position()
                figure.text(
                    (place.x0 + place.x1) / 2, 1 - 0.25 / height, column.name.replace("-", ", "),
                    ha="center", va="center", fontsize=10.5, weight="bold", color=INK,
                )  # fmt: skip
            if across_at == 0:
                _row_label(axes, class_name(int(found.labels[row]), classes), found.ids[row])
    assert heat is not None
    tall = min(1.6, height - 1.2) / height
    scale = figure.add_axes((1 - 0.55 / width, 0.5 - tall / 2, 0.12 / width, tall))
    bar = figure.colorbar(heat, cax=scale, ticks=[0, 1])
    bar.ax.set_yticklabels(["none", "most"], fontsize=7.5, color=MUTED)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, pad=2)
    figure.text(
        left / width, 0.08 / height, "\n".join(foot), fontsize=7.5, color=MUTED, va="bottom",
        parse_math=False,
    )  # fmt: skip
    return figure


def _cell(axes: Any, column: Column, row: int, label: int, classes: Sequence[str]) -> Any:
    """One image under its heat; the heat is transparent where there is none."""
    axes.imshow(picture_of(column.images[row]), interpolation="nearest")
    heat = column.maps[row].numpy()
    side = (-0.5, heat.shape[1] - 0.5, heat.shape[0] - 0.5, -0.5)
    shown = axes.imshow(
        heat, cmap="turbo", vmin=0, vmax=1, alpha=0.15 + 0.4 * heat, extent=side,
        interpolation="bilinear",
    )  # fmt: skip
    axes.set_axis_off()
    right = int(column.predictions[row]) == label
    said = class_name(int(column.predictions[row]), classes)
    axes.set_title(
        f"{'✓' if right else '✗'} {said} {float(column.probabilities[row]):.0%}",
        fontsize=8.5, color=RIGHT if right else WRONG, pad=3, parse_math=False,
    )  # fmt: skip
    return shown


def _row_label(axes: Any, name: str, key: str) -> None:
    place = {"transform": axes.transAxes, "ha": "right", "parse_math": False}
    axes.text(-0.07, 0.51, name, va="bottom", fontsize=9.5, color=INK, **place)
    short = key if len(key) <= 18 else "…" + key[-17:]
    axes.text(-0.07, 0.475, short, va="top", fontsize=6.5, color=MUTED, **place)


def _caption(found: Columns) -> list[str]:
    facts = found.settings
    whom = "undefended classifier" if facts["attacker"] == "oblivious" else "defense"
    eps = f"{facts['eps'] * 255:.3g}/255" if facts["norm"] == "linf" else f"{facts['eps']:.3g}"
    outside = int((~found.inside).sum())
    return [
        f"Grad-CAM of the {facts['target']} class, layer {facts['layer']}; each map has its own "
        "scale",
        f"{facts['attack']}, {facts['norm']} {eps}, on the {whom}"
        + (f"; {outside} of {len(found.labels)} images outside eps" if outside else ""),
    ]
