"""PGD-20 with the fixed rule: ours over a hand-written loop, Foolbox and ART, as users call them.

With weights of a robust network and data, also what stopping at the first success gains.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import Target, compare, finish, interleave, network, parse, pictures, summary
from unperturb import Linf, make_attack
from unperturb.attacks import Surface
from unperturb.files import short_paths
from unperturb.randomness import Keys

EPS, STEP, STEPS = 8 / 255, 2 / 255, 20


def by_hand(model: nn.Module, images: Tensor, labels: Tensor, steps: int = STEPS) -> Tensor:
    """What anybody would write."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(images.shape, generator=generator) * 2 * EPS - EPS
    x = (images + noise).clamp(0, 1)
    for _ in range(steps):
        x.requires_grad_(True)
        loss = F.cross_entropy(model(x), labels)
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() + STEP * gradient.sign()
        x = torch.min(torch.max(x, images - EPS), images + EPS).clamp(0, 1)
    return x


def ours(
    model: nn.Module, images: Tensor, labels: Tensor, stop: str = "fixed", steps: int = STEPS
) -> Tensor:
    keys = Keys.of(0, [str(i) for i in range(len(images))])
    pgd = make_attack(f"pgd-{steps}")
    return pgd.run(Surface(model), images, labels, threat=Linf(EPS), keys=keys, stop=stop).images


def by_foolbox(model: nn.Module, images: Tensor, labels: Tensor, steps: int = STEPS) -> Tensor:
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps)
    _, found, _ = pgd(wrapped, images, labels, epsilons=EPS)
    return found  # type: ignore[no-any-return]


def by_art(model: nn.Module, images: Tensor, labels: Tensor, steps: int = STEPS) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=10,
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    pgd = ProjectedGradientDescent(
        wrapped, norm=np.inf, eps=EPS, eps_step=STEP, max_iter=steps, num_random_init=1,
        batch_size=len(images), verbose=False,
    )  # fmt: skip
    return torch.tensor(pgd.generate(images.numpy(), labels.numpy()))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """The libraries draw from global generators and warn."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])  # noqa: NPY002


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).float().mean())


def measure(spec: str, args: Any, *, robust: bool) -> dict[str, Any]:
    model = network(spec)
    count = args.images or (128 if args.quick else 256)
    images, labels = pictures(model, count, args.data, args.split)
    jobs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(model, images, labels),
        "hand-written": lambda: by_hand(model, images, labels),
        "foolbox": lambda: by_foolbox(model, images, labels),
        "art": lambda: by_art(model, images, labels),
    }
    targets = [
        Target("hand-written", "ours", 1.0, "at least"),
        Target("foolbox", "ours", 1.3, "at least"),
        Target("art", "ours", 1.3, "at least"),
    ]
    if robust:
        jobs["ours, first success"] = lambda: ours(model, images, labels, "first-success")
        targets.append(Target("ours", "ours, first success", note="the further gain"))
    with quietly():
        seconds = interleave(jobs, repeats=args.repeats, clock=args.clock)
        left = {name: accuracy(model, job(), labels) for name, job in jobs.items()}
    return {
        "case": f"{short_paths(spec)}, batch {count}",
        "network": spec.partition("@")[0],
        "weights": "given" if "@" in spec else "random",
        "data": "given" if args.data else "random pixels, the network's own answers as labels",
        "batch": count,
        "accuracy_left": left,
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
    }


def main() -> None:
    args = parse(
        "PGD-20: ours, a hand-written loop, Foolbox and ART",
        repeats=7,
        images={"type": int, "help": "images, in one batch (256; quick: 128)"},
        classifier={"default": "cifar-resnet20", "metavar": "SPEC"},
        robust={
            "metavar": "SPEC",
            "help": "weights of a robust network, cifar-robust-resnet-4b@FILE",
        },
        data={"metavar": "DATA", "help": "images to attack"},
        split={"default": "test"},
    )
    cases = [measure(args.classifier, args, robust=False)]
    if args.robust and args.data:
        cases.append(measure(args.robust, args, robust=True))
    else:
        reason = "needs --robust ARCH@WEIGHTS and --data"
        cases.append({"case": "a robust network, first success", "skipped": reason})
    finish("pgd20", args, cases)


if __name__ == "__main__":
    main()
