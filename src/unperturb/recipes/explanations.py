"""Explaining correctors: supporting classes, their overlap, what carries a correction, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unperturb.audit.statistics import Bools, accuracy, paired_comparison, rate
from unperturb.correction import Corrector
from unperturb.data import ImageSet
from unperturb.errors import ConfigError, MissingExtraError
from unperturb.explain.bhattacharyya import Overlap, overlap
from unperturb.explain.causal import causal_check
from unperturb.explain.instances import instance_shares
from unperturb.explain.mean_logit import MeanLogits, mean_logits
from unperturb.explain.supporting import Supporting, supporting_classes
from unperturb.recipes.banks import HadBank
from unperturb.recipes.schema_parts import Explanation, Subject
from unperturb.recipes.sources import NotRunError
from unperturb.recipes.tables import Workshop, slug

__all__ = ["paired", "run_explanation"]

CLEAN = "clean"


@dataclass(frozen=True)
class _Given:
    """A subject with its logits, its corrector and what was found."""

    subject: Subject
    had: HadBank
    clean: Tensor
    attacked: Tensor
    corrector: Corrector | None
    found: Supporting | None

    @property
    def labels(self) -> Tensor:
        """True labels (N,)."""
        return self.had.bank.labels

    @property
    def images(self) -> tuple[str, str]:
        """Whose logits of which images."""
        return self.had.facts["model"], self.had.facts["data"]


def run_explanation(
    shop: Workshop,
    folder: Path,
    *,
    each: Callable[[Mapping[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Explain every corrector of a recipe on its subject's logits, and draw what is asked for.

    Returns:
        ``explanation``: figures of each subject, or the reason why there are none; coefficients
        and transfer between all of them; mean logits of each network. ``files``: the pictures.
        ``models``, ``banks``, ``fits``, ``selected``: facts of each.
    """
    wanted = shop.recipe.explanation
    assert wanted is not None
    told: dict[str, Any] = {
        "subjects": [],
        "settings": {"lower": wanted.lower, "controls": wanted.controls},
        "paper": [list(pair) for pair in wanted.paper],
        "overlap": None,
        "transfer": [],
        "mean_logits": {},
    }
    done: list[_Given] = []

    def record() -> dict[str, Any]:
        return {"explanation": told, "models": shop.models.facts(), **shop.made()}

    for subject in wanted.subjects.values():
        try:
            given = _given(shop, subject, wanted)
        except NotRunError as reason:
            told["subjects"].append(_head(subject, "not run", str(reason)))
            continue
        told["subjects"].append(_figures(given, wanted, shop.seed))
        done.append(given)
        each(record())
    _check_classes(done)
    fitted = {one.subject.name: one.found for one in done if one.found is not None}
    between = overlap(fitted, seed=shop.seed) if len(fitted) > 1 else None
    means = _mean_logits(done)
    told["overlap"] = None if between is None else between.to_dict()
    told["transfer"] = _transfer(done)
    told["mean_logits"] = {model: found.to_dict() for model, found in means.items()}
    files: list[str] = []
    if wanted.draw and done:
        try:
            files = _draw(shop, folder, done, between, means)
        except MissingExtraError as error:
            shop.say(f"no picture: {error}")
    return {**record(), "files": files}


def _given(shop: Workshop, subject: Subject, wanted: Explanation) -> _Given:
    had = shop.banks.get(subject.bank)
    corrector = None if subject.fit is None else shop.fits.get(subject.fit)
    clean, attacked = (had.bank.logits(name) for name in (CLEAN, subject.attack))
    found = None
    if corrector is not None:
        found = supporting_classes(corrector, attacked, had.bank.labels, top=wanted.top)
    return _Given(subject, had, clean, attacked, corrector, found)


def _head(subject: Subject, status: str, reason: str = "") -> dict[str, Any]:
    return {
        "name": subject.name,
        "bank": subject.bank,
        "attack": subject.attack,
        "fit": subject.fit,
        "status": status,
        "reason": reason,
    }


def _figures(given: _Given, wanted: Explanation, seed: int) -> dict[str, Any]:
    """All figures of one subject."""
    found = {
        **_head(given.subject, "done"),
        "model": given.had.facts["model"],
        "n": len(given.had.bank),
        "num_classes": given.had.bank.num_classes,
    }
    if given.corrector is None or given.found is None:
        return found
    classes = given.had.bank.classes
    return {
        **found,
        "own_classifier": given.corrector.classifier == given.had.bank.classifier,
        "clean": paired(given.corrector, given.clean, given.labels),
        "attacked": paired(given.corrector, given.attacked, given.labels),
        "wrong_when_clean": _repaired(given),
        "supporting": given.found.to_dict(classes),
        "causal": _causal(given, wanted, seed),
        "instances": instance_shares(given.found, focus=wanted.watch),
    }


def _causal(given: _Given, wanted: Explanation, seed: int) -> dict[str, Any] | None:
    """What lowering the supporting classes does; None where lists hold every class."""
    assert given.corrector is not None
    assert given.found is not None
    if given.found.top >= given.found.num_classes:
        # That would be a uniform shift.
        return None
    return causal_check(
        given.corrector,
        given.attacked,
        given.labels,
        given.found,
        lower=wanted.lower,
        controls=wanted.controls,
        seed=seed,
    ).to_dict()


def paired(corrector: Corrector, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy with and without correction on the same logits, and the paired difference.

    Args:
        corrector: The corrector.
        logits: (N, K).
        labels: True labels (N,).

    Returns:
        Both accuracies with Wilson's intervals, their difference with Newcombe's, and the exact
        McNemar test's p.
    """
    after, before = _right(corrector, logits, labels)
    return paired_comparison(after, before, ("corrected", "uncorrected"))


def _right(corrector: Corrector, logits: Tensor, labels: Tensor) -> tuple[Bools, Bools]:
    """Which rows are right corrected, and which uncorrected."""
    found = corrector.correct(logits)
    return (found.labels.cpu() == labels).numpy(), (found.before.cpu() == labels).numpy()


def _repaired(given: _Given) -> dict[str, Any] | None:
    """Of the images that the bare network gets wrong when clean: how many are right attacked."""
    assert given.corrector is not None
    after, _ = _right(given.corrector, given.attacked, given.labels)
    wrong = (given.clean.argmax(1) != given.labels).numpy()
    return rate(after[wrong])


def _check_classes(done: Sequence[_Given]) -> None:
    kinds = {one.subject.name: one.had.bank.num_classes for one in done}
    if len(set(kinds.values())) > 1:
        raise ConfigError(
            f"The subjects have {kinds} classes", expected="logits of as many classes each"
        )


def _transfer(done: Sequence[_Given]) -> list[dict[str, Any]]:
    """Accuracy of each subject's corrector on the adversarial logits of each other one."""
    return [
        {
            "corrector": one.subject.name,
            "logits": two.subject.name,
            "own_classifier": one.corrector.classifier == two.had.bank.classifier,
            "accuracy": accuracy(_right(one.corrector, two.attacked, two.labels)[0]),
        }
        for one in done
        for two in done
        if one.corrector is not None
    ]


def _mean_logits(done: Sequence[_Given]) -> dict[str, MeanLogits]:
    """Histograms by network: clean images and each attack's."""
    found = {}
    for model, group in _by_images(done).items():
        attacked = {one.subject.name: one.attacked for one in group}
        found[model] = mean_logits(group[0].clean, attacked)
    return found


def _by_images(done: Iterable[_Given]) -> dict[str, list[_Given]]:
    """Subjects of one network on the same images, by the network's name; the first such images."""
    found: dict[str, list[_Given]] = {}
    for one in done:
        group = found.setdefault(one.images[0], [])
        if not group or group[0].images == one.images:
            group.append(one)
    return found


def _draw(
    shop: Workshop,
    folder: Path,
    done: Sequence[_Given],
    between: Overlap | None,
    means: Mapping[str, MeanLogits],
) -> list[str]:
    """The pictures that the recipe asks for; returns the names of their files."""
    from unperturb.explain.canvas import save_figure
    from unperturb.explain.instance_figure import figure_instance
    from unperturb.explain.mean_logit_figure import figure_mean_logits
    from unperturb.explain.overlap_figure import figure_overlap
    from unperturb.explain.supporting_figure import figure_supporting

    assert shop.recipe.explanation is not None
    draw = shop.recipe.explanation.draw
    fitted = {one.subject.name: one.found for one in done if one.found is not None}
    classes = done[0].had.bank.classes
    figures: dict[str, Any] = {}
    if "mean-logit" in draw:
        for model, found in means.items():
            figures[f"mean-logit-{slug(model)}"] = figure_mean_logits(found)
    if "supporting" in draw and fitted:
        chosen = {k for found in fitted.values() for k in found.classes()}
        examples = _examples(shop, done[0], chosen)
        figures["supporting"] = figure_supporting(fitted, classes=classes, examples=examples)
        if between is not None:
            figures["overlap"] = figure_overlap(between)
    if "instance" in draw and fitted:
        for model, group in _by_images(one for one in done if one.found is not None).items():
            sets = {one.subject.name: one.found for one in group if one.found is not None}
            row = _telling(list(sets.values()))
            data = shop.banks.data(shop.recipe.banks[group[0].subject.bank])
            figures[f"instance-{slug(model)}"] = figure_instance(
                sets, row, classes=classes, image=data.images([row])[0], name=data.ids[row]
            )
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [f"{name}.png" for name in figures]


def _telling(sets: Sequence[Supporting]) -> int:
    """The first image that most attacks fool and most correctors repair."""
    score = sum(((found.adversarial != found.labels) & found.corrected).long() for found in sets)
    assert isinstance(score, Tensor)
    return int(score.argmax())


def _examples(shop: Workshop, one: _Given, chosen: Iterable[int]) -> dict[int, Tensor]:
    """An image of each class, of those that the logits belong to or of the training images."""
    bank = shop.recipe.banks[one.subject.bank]
    name = shop.recipe.models[bank.model].dataset
    found: dict[int, Tensor] = {}
    sources: list[Callable[[], ImageSet]] = [
        lambda: shop.banks.data(bank),
        lambda: shop.sources.train(name),
    ]
    for source in sources:
        missing = set(chosen) - set(found)
        if not missing:
            break
        data = source()
        for k in missing:
            rows = (data.labels == k).nonzero()
            if len(rows):
                found[k] = data.images([int(rows[0, 0])])[0]
    return found
