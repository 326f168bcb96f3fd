"""What banks and correctors of a recipe will cost, before anything begins."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from unperturb.attacks import resolve_attacks
from unperturb.networks.corrector import CorrectionNetwork
from unperturb.recipes.fits import make_correction
from unperturb.recipes.needs import needed_banks, needed_fits
from unperturb.recipes.schema_parts import Bank
from unperturb.recipes.sources import NotRunError
from unperturb.recipes.tables import Workshop
from unperturb.recipes.words import spelled

__all__ = ["preview_fits"]


def preview_fits(shop: Workshop, speed: Callable[[str], float]) -> tuple[float, list[str]]:
    """Seconds in all, at most, and a line for each bank and each corrector.

    Args:
        shop: The recipe and what it needs.
        speed: Seconds of a gradient to one image of a model, by its name.
    """
    total, lines = 0.0, []
    for kind, names, cost in (
        ("bank", needed_banks(shop.recipe), _bank),
        ("corrector", needed_fits(shop.recipe), _fit),
    ):
        for name in names:
            try:
                seconds, words = cost(shop, name, speed)
            except NotRunError as reason:
                seconds, words = 0.0, f"not run: {reason}"
            total += seconds
            lines.append(f"{kind} {name}: {words}")
    return total, lines


def _bank(shop: Workshop, name: str, speed: Callable[[str], float]) -> tuple[float, str]:
    bank = shop.recipe.banks[name]
    if shop.banks.finished(bank):
        return 0.0, "made before"
    count, _ = _rows(shop, bank)
    # Clean and adversarial logits take a forward pass each, a third of a gradient.
    passes = sum(attack.gradients + 1 / 3 for attack in resolve_attacks(list(bank.attacks))) + 1 / 3
    seconds = count * passes * speed(bank.model)
    several = "s" * (len(bank.attacks) > 1)
    words = f"{len(bank.attacks)} attack{several} on {count} images"
    return seconds, f"{words}, about {spelled(seconds)}"


def _rows(shop: Workshop, bank: Bank) -> tuple[int, int]:
    """Rows of a bank, at most, and its number of classes."""
    plan, reason = shop.models.plan(bank.model)
    if plan == "unavailable":
        raise NotRunError(str(reason))
    name = shop.recipe.models[bank.model].dataset
    if bank.part == "train":
        data = shop.sources.train(name)
        return min(len(data), bank.limit or len(data)), len(data.classes)
    select = shop.recipe.datasets[name].select
    if bank.part == "test" or select is None:
        data = shop.sources.test(name, bank.limit)
        return len(data), len(data.classes)
    # Which images are selected is not known before the reference has seen them.
    classes = len(shop.sources.test(name, 1).classes)
    known = (bank.limit, shop.sources.limit)
    return min([select.per_class * classes, *(k for k in known if k is not None)]), classes


def _fit(shop: Workshop, name: str, speed: Callable[[str], float]) -> tuple[float, str]:
    fit = shop.recipe.fits[name]
    if shop.fits.finished(fit):
        return 0.0, "fitted before"
    config = make_correction(fit.config, where=name, seed=shop.seed)
    count, classes = _rows(shop, shop.recipe.banks[fit.bank])
    rows = int(count * (1 - config.holdout)) * config.epochs
    net = CorrectionNetwork(
        num_classes=classes, width=config.width, depth=config.depth, dropout=0.0
    )
    size = min(config.batch_size, count)
    seconds = rows / size * _step(net.to(shop.device), size)
    return seconds, f"{config.epochs} epochs of {count} rows, about {spelled(seconds)}"


def _step(net: CorrectionNetwork, size: int) -> float:
    """Seconds of one step of training."""
    parameters = list(net.parameters())
    logits = torch.zeros(size, net.num_classes, device=parameters[0].device)
    adam = torch.optim.Adam(parameters, lr=1e-9)

    def once() -> float:
        began = time.perf_counter()
        with torch.enable_grad():
            loss = net(logits).logsumexp(1).sum()
            gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        float(loss.detach())
        return time.perf_counter() - began

    once()
    return min(once(), once())
