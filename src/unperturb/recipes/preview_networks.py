"""What networks and thresholds of a recipe will cost, before anything begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from unperturb.classifiers import new_classifier
from unperturb.data import ImageSet
from unperturb.defense import Defense
from unperturb.networks.vae import VAE
from unperturb.presets import alu_purifier
from unperturb.recipes.needs import needed_networks, needed_thresholds
from unperturb.recipes.networks import Settings, make_settings
from unperturb.recipes.schema_parts import Network, Threshold
from unperturb.recipes.sources import NotRunError
from unperturb.recipes.tables import Workshop
from unperturb.recipes.words import spelled

__all__ = ["preview_networks"]

_IMAGES = 32


def preview_networks(shop: Workshop, speed: Callable[[str], float]) -> tuple[float, list[str]]:
    """Seconds in all, at most, and a line for each network and each threshold.

    Args:
        shop: The recipe and what it needs.
        speed: Seconds of a gradient to one image of a model, by its name.
    """
    total, lines = 0.0, []
    costs: list[tuple[str, Callable[[], tuple[float, str]]]] = [
        (f"network {name}", lambda name=name: _network(shop, name, speed))  # type: ignore[misc]
        for name in needed_networks(shop.recipe)
    ]
    costs += [
        (f"threshold {name} of {model}", lambda n=name, m=model: _threshold(shop, n, m))  # type: ignore[misc]
        for name, model in needed_thresholds(shop.recipe)
    ]
    for what, cost in costs:
        try:
            seconds, words = cost()
        except NotRunError as reason:
            seconds, words = 0.0, f"not run: {reason}"
        total += seconds
        lines.append(f"{what}: {words}")
    return total, lines


def _network(shop: Workshop, name: str, speed: Callable[[str], float]) -> tuple[float, str]:
    networks = shop.models.networks
    network = shop.recipe.networks[name]
    kind, what = networks.plan(name)
    if kind == "unavailable":
        raise NotRunError(str(what))
    if kind != "train":
        return 0.0, f"{kind} ({what})"
    if networks.finished(network):
        return 0.0, "trained before"
    data = shop.sources.train(network.dataset)
    config = _settings(shop, network)
    images = max(len(data) - config.holdout, 0) * config.epochs
    each = _step(shop, network, config, data)
    if network.model is not None:
        # Examples of the classifier, then its share of the loss's gradient.
        attacks = 1 if getattr(config, "attack", "pgd") == "fgsm" else config.attack_steps  # type: ignore[union-attr]
        each += (attacks + 1.5) * speed(network.model)
    seconds = images * each
    return seconds, f"{config.epochs} epochs of {len(data)} images, about {spelled(seconds)}"


def _settings(shop: Workshop, network: Network) -> Settings:
    # A start that is still to be trained has no transform to ask for; it decides no cost.
    given = network.train or {}
    return make_settings(network.kind, given, where=network.name, seed=shop.seed)


def _step(shop: Workshop, network: Network, config: Settings, data: ImageSet) -> float:
    """Seconds of a step of training for each of its images, the classifier's part left out."""
    while network.start is not None:
        network = shop.recipe.networks[network.start]
    if network.kind in ("vae", "denoiser"):
        net = shop.models.networks.fresh(network, data).to(shop.device)
        images = data.images(slice(0, _IMAGES)).to(shop.device)
        return _timed(net, images) / len(images)
    from unperturb.restoration import GANConfig, MAEConfig, plan_pretrain

    own = _settings(shop, network)
    assert isinstance(own, GANConfig | MAEConfig)
    few = data.take(slice(0, min(len(data), own.batch_size)))
    return plan_pretrain(few, own, device=shop.device).step_seconds(few, shop.device) / len(few)


def _timed(net: torch.nn.Module, images: torch.Tensor) -> float:
    weights = list(net.parameters())

    def once() -> float:
        began = time.perf_counter()
        with torch.enable_grad():
            made = net.decode(net.encode(images)[0]) if isinstance(net, VAE) else net(images)
            float(torch.autograd.grad(made.sum(), weights, allow_unused=True)[-1].sum())
        return time.perf_counter() - began

    for weight in weights:
        weight.requires_grad_(True)
    once()
    return min(once(), once())


def _threshold(shop: Workshop, name: str, model: str) -> tuple[float, str]:
    threshold = shop.recipe.thresholds[name]
    kind, reason = shop.models.plan(model)
    if kind == "unavailable":
        raise NotRunError(str(reason))
    if shop.thresholds.finished(name, model):
        return 0.0, "fitted before"
    data = shop.thresholds.data(threshold, model)
    steps = _defense(shop, threshold, data)
    if steps is None:
        return 0.0, f"{len(data)} images"
    images = data.images(slice(0, _IMAGES)).to(shop.device)
    steps.predict(images[:1])
    began = time.perf_counter()
    steps.predict(images)
    seconds = (time.perf_counter() - began) / len(images) * len(data)
    return seconds, f"{len(data)} images, about {spelled(seconds)}"


def _defense(shop: Workshop, threshold: Threshold, data: ImageSet) -> Defense | None:
    """The purifier with fresh weights around a small network; None where it is the model's own."""
    networks = shop.models.networks
    options: dict[str, Any] = {}
    for key, value in threshold.options.items():
        if isinstance(value, Mapping):
            network = shop.recipe.networks[value["network"]]
            if networks.plan(network.name)[0] == "unavailable":
                raise NotRunError(str(networks.plan(network.name)[1]))
            options[key] = networks.fresh(network, data).to(shop.device)
        else:
            options[key] = value
    if not {"vae", "denoiser", "purifier"} & set(options):
        return None
    channels = data.pixels.shape[1]
    net = new_classifier("small-cnn", in_channels=channels, num_classes=len(data.classes))
    return Defense(net, purifier=alu_purifier(net, **options)).to(shop.device)
