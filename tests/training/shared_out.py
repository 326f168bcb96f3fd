"""Small runs that several processes share out, and what each of these computes, by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unperturb.data import ImageSet, load_images
from unperturb.networks import build_network
from unperturb.training import OBJECTIVES, Step, TrainConfig
from unperturb.training.augment import augment, epoch_generator, step_generator

State = dict[str, Tensor]


def config(**changes: Any) -> TrainConfig:
    """Two steps an epoch: 36 images, of which 4 are held out."""
    found: dict[str, Any] = {
        "objective": "standard", "eps": 0.1, "epochs": 2, "batch_size": 16, "lr": 0.05,
        "holdout": 4, "attack_steps": 1, "attack_step_size": 1.0, "monitor_images": 4,
        "schedule": "one-cycle",
    }  # fmt: skip
    return TrainConfig(**{**found, **changes})


def digits() -> ImageSet:
    return load_images("digits", split="train").take(slice(0, 36))


def plain() -> nn.Module:
    """A network without batch norms, so that parts of a batch know nothing of each other."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(288, 10)
        )  # fmt: skip


def normed() -> nn.Module:
    return build_network("small-cnn", in_channels=1, seed=1)


def dropping() -> nn.Module:
    return nn.Sequential(*plain()[:3], nn.Dropout(0.5), plain()[3])  # type: ignore[index]


# What the two processes train, each a network and the settings.
RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (plain, {"augment": "none"}),
    "normed": (normed, {"augment": "crop-flip"}),
    "parts": (normed, {"augment": "flip", "accumulate": 2, "weight_decay": 1e-2}),
    "pgd": (plain, {"objective": "pgd"}),
    "trades": (plain, {"objective": "trades", "accumulate": 4}),
    "dropout": (dropping, {"augment": "none"}),
}

# Next to the image the divergence has hardly a slope, and its sign may round to either side.
ROUNDING = {"trades": 2e-4}


def state(module: nn.Module) -> State:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def close(one: State, two: State, tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], two[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def by_hand(net: nn.Module, settings: TrainConfig, count: int) -> tuple[State, list[float]]:
    """A run of several processes, one process after the other; end state and loss of each step."""
    data, losses = digits(), []
    steps = (len(data) - settings.holdout) // settings.batch_size
    optimizer = torch.optim.SGD(
        net.parameters(), momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    for epoch in range(settings.epochs):
        order = epoch_generator(settings.seed, epoch).permutation(len(data) - settings.holdout)
        for step in range(steps):
            batch = order[step * settings.batch_size :][: settings.batch_size]
            done = (epoch * steps + step) / (steps * settings.epochs)
            replicas, total = [], 0.0
            for rank in range(count):
                replica = copy.deepcopy(net).train()
                replica.zero_grad()
                for part, rows in enumerate(np.split(batch[rank::count], settings.accumulate)):
                    generator = step_generator(settings.seed, epoch, step, process=rank, part=part)
                    index = torch.from_numpy(rows)
                    images = augment(data.images(index), settings.augment, generator)
                    loss = OBJECTIVES[settings.objective](
                        Step(
                            network=replica, attacked=replica, images=images,
                            labels=data.labels[index], settings=settings, generator=generator,
                            done=done,
                        )
                    )  # fmt: skip
                    (loss / settings.accumulate).backward()
                    total += float(loss.detach()) / settings.accumulate / count
                replicas.append(replica)
            losses.append(total)
            with torch.no_grad():
                for mine, *theirs in zip(
                    net.parameters(), *(r.parameters() for r in replicas), strict=True
                ):
                    mine.grad = sum(p.grad for p in theirs) / count
                for mine, *theirs in zip(
                    net.buffers(), *(r.buffers() for r in replicas), strict=True
                ):
                    mine.copy_(torch.stack(theirs).float().mean(0))
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(epoch * steps + step, steps * settings.epochs)
            optimizer.step()
    return state(net), losses
