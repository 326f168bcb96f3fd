"""What running a recipe will cost, in words, before anything begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from unperturb.attacks import make_attack
from unperturb.attacks.surface import UNDEFENDED
from unperturb.audit.arsenal import adaptive_backwards
from unperturb.classifiers import Classifier, load_classifier, new_classifier
from unperturb.defense import Defense
from unperturb.explain.logit_attack import ENCODE_DECODE, NOISE
from unperturb.generative import through_vae
from unperturb.networks.vae import VAE
from unperturb.recipes.blanks import blank_defense, goes_through
from unperturb.recipes.needs import needed
from unperturb.recipes.preview_fits import preview_fits
from unperturb.recipes.preview_networks import preview_networks
from unperturb.recipes.schema import Row, Stage
from unperturb.recipes.sources import NotRunError
from unperturb.recipes.tables import Workshop, groups
from unperturb.recipes.words import spelled

__all__ = ["preview"]

# What an attack without gradients calls one; what an answer costs in gradients.
_FORWARD_PASSES = 3
# Over which an audit averages each gradient of a random defense.
_DRAWS = 20


def preview(shop: Workshop) -> list[str]:
    """What will be trained, banked, fitted and audited, and about how long that takes here.

    One gradient to a batch of images is timed for every network. Training counts the passes of its
    objective; audits count the gradients of every attack and take nothing off for images that
    leave at their first success, nor for what is finished already.
    """
    recipe, words, total = shop.recipe, [], 0.0
    speeds: dict[str, float] = {}
    for name in needed(recipe):
        kind, what = shop.models.plan(name)
        if kind == "train":
            seconds, told = _training(shop, name, what, speeds)
            words.append(f"model {name}: {told}")
            total += seconds
        else:
            words.append(f"model {name}: {kind} ({what})")
    for part in (preview_networks, preview_fits):
        seconds, lines = part(shop, lambda name: _speed(shop, name, speeds))
        words += lines
        total += seconds
    if recipe.columns:
        seconds, lines = _audits(shop, speeds)
        words += lines
        total += seconds
    if recipe.changes is not None:
        seconds, lines = _changes(shop, speeds)
        words += lines
        total += seconds
    if total:
        words.append(f"in all about {spelled(total)}, at most, on this machine")
    if recipe.cost:
        words.append(f"stated for this scale: {recipe.cost}")
    return words


def _training(
    shop: Workshop, name: str, stages: tuple[Stage, ...], speeds: dict[str, float]
) -> tuple[float, str]:
    model = shop.recipe.models[name]
    folders = [shop.models.stage_folder(name, stage) for stage in stages]
    todo = [
        stage
        for stage, folder in zip(stages, folders, strict=True)
        if not (folder / "training.json").is_file()
    ]
    if not todo:
        return 0.0, "trained before"
    try:
        count = len(shop.sources.train(model.dataset))
    except NotRunError as reason:
        return 0.0, f"not run: {reason}"
    seconds, epochs = 0.0, 0
    for stage in todo:
        config = shop.models.config(name, stage)
        images = max(count - config.holdout, 0) * config.epochs
        seconds += images * _passes(config) * _speed(shop, name, speeds)
        epochs += config.epochs
    runs = "1 training run" if len(todo) == 1 else f"{len(todo)} training runs"
    return seconds, f"{runs}, {epochs} epochs, about {spelled(seconds)}"


def _passes(config: Any) -> float:
    """Cost of a training step, in gradients to the images: a gradient of all is 1.5 of them."""
    several = 0 if config.objective == "standard" else config.attack_steps
    one = config.objective.startswith("fgsm")
    return 1.5 + (1 if one else several) + (0.5 if config.clean_pass else 0.0)


def _speed(shop: Workshop, name: str, speeds: dict[str, float]) -> float:
    """Seconds of a gradient to one image."""
    if name not in speeds:
        dataset = shop.recipe.models[name].dataset
        trains = shop.models.plan(name)[0] == "train"
        data = shop.sources.train(dataset) if trains else shop.sources.test(dataset, 32)
        images = data.images(slice(0, 32)).to(shop.device)
        net = _network(shop, name, images.shape[1], len(data.classes))
        speeds[name] = _timed(net, images) / len(images)
    return speeds[name]


def _network(shop: Workshop, name: str, channels: int, classes: int) -> Classifier:
    """The network of a model, trained or not: its weights decide no cost."""
    kind, what = shop.models.plan(name)
    if kind in ("zoo", "given"):
        return load_classifier(what, device=shop.device)
    first = shop.recipe.models[name].stages[0]
    if first.arch is None:
        assert first.start is not None
        return _network(shop, first.start, channels, classes)
    if first.through is None:
        return new_classifier(first.arch, num_classes=classes, in_channels=channels).to(shop.device)
    network, dataset = shop.recipe.networks[first.through], shop.recipe.models[name].dataset
    vae = shop.models.networks.fresh(network, shop.sources.train(dataset))
    assert isinstance(vae, VAE)
    reads = vae.feature_shape(first.level)[0]
    plain = new_classifier(first.arch, num_classes=classes, in_channels=reads)
    return through_vae(plain, vae, level=first.level).to(shop.device)


def _timed(net: Classifier, images: torch.Tensor) -> float:
    net.check(images)

    def once() -> float:
        began = time.perf_counter()
        with torch.enable_grad():
            point = images.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(net(point).sum(), point)
        float(gradient.sum())
        return time.perf_counter() - began

    once()
    return min(once(), once())


def _audits(shop: Workshop, speeds: dict[str, float]) -> tuple[float, list[str]]:
    total, told = 0.0, []
    for row in shop.recipe.rows.values():
        able = row.model is not None and shop.recipe.ours(row)
        if not able or shop.models.plan(str(row.model))[0] == "unavailable":
            told.append(f"row {row.name}: not run")
            continue
        try:
            seconds, words = _row(shop, row, speeds)
        except NotRunError as reason:
            told.append(f"row {row.name}: not run ({reason})")
            continue
        total += seconds
        told.append(f"row {row.name}: {words}, about {spelled(seconds)}")
    return total, told


def _row(shop: Workshop, row: Row, speeds: dict[str, float]) -> tuple[float, str]:
    recipe = shop.recipe
    assert row.model is not None
    model = recipe.models[row.model]
    blank = _blank(shop, row)
    passes = 0.0
    words = []
    for group in groups(recipe, row):
        # Of selected images, too, as many at most: which they are needs the reference.
        count = len(shop.sources.test(model.dataset, group.n))
        kind = "selected images" if group.selected else "images"
        words.append(f"{len(group.columns)} attacks on {count} {kind}")
        for column in group.columns:
            attack = make_attack(str(column.attack_of(row)), draws=_DRAWS)
            blind = getattr(attack, "access", "gradients") != "gradients"
            each = float(attack.gradients) * (_FORWARD_PASSES if blind else 1)
            for attacker in group.attackers:
                passes += count * each * _times(blank, attacker, attack.draws, group.gradients)
    return passes * _speed(shop, row.model, speeds), ", ".join(words)


def _changes(shop: Workshop, speeds: dict[str, float]) -> tuple[float, list[str]]:
    """What logit changes cost: the attack, by the gradient that each subject names."""
    total, told = 0.0, []
    assert shop.recipe.changes is not None
    for one in shop.recipe.changes.subjects.values():
        if shop.models.plan(one.model)[0] == "unavailable":
            told.append(f"subject {one.name}: not run")
            continue
        try:
            count = len(shop.sources.test(shop.recipe.models[one.model].dataset, one.n))
        except NotRunError as reason:
            told.append(f"subject {one.name}: not run ({reason})")
            continue
        through = goes_through(shop.recipe, one.model)
        purifier = blank_defense(shop.recipe, one.defense, through=through).purifier
        steps = float(getattr(purifier, "steps", 1))
        gradients = 0.0 if one.attack == NOISE else float(make_attack(one.attack).gradients)
        each = {UNDEFENDED: 1.0, ENCODE_DECODE: 2.0}.get(one.gradient, 2.0 + 3.0 * steps)
        passes = gradients * each + 2.0 * (1.0 + steps)
        seconds = count * passes * _speed(shop, one.model, speeds)
        total += seconds
        told.append(f"subject {one.name}: {count} images, about {spelled(seconds)}")
    return total, told


def _blank(shop: Workshop, row: Row) -> Defense | Classifier:
    """A subject of the row's kind around a network that costs nothing to make."""
    net = new_classifier("small-cnn", in_channels=1)
    if row.defense is None or row.model is None:
        return net
    through = goes_through(shop.recipe, row.model)
    return blank_defense(shop.recipe, row.defense, through=through)


def _times(
    subject: Defense | Classifier, attacker: str, draws: int, gradients: Sequence[str]
) -> float:
    """Gradients of the undefended network that one gradient of an attacker costs, all rules."""
    if attacker == "oblivious" or not isinstance(subject, Defense):
        return 1.0
    # Each rule runs through the purifier's own gradients; the undefended network's does not.
    steps = float(getattr(subject.purifier, "steps", 1))
    rules = gradients or adaptive_backwards(subject)
    bare = 1.0 if UNDEFENDED in rules else 0.0
    each = (len(rules) - bare) * (2.0 + steps) + bare
    # A random one is differentiated over all the draws; beside it stands the bare network.
    return each * (draws if subject.stochastic else 1) + 1.0
