"""What a step of adversarial training costs, in steps of standard training.

With F the operations of a forward pass, a standard step takes 3 F, one on FGSM examples 5 F, one on
PGD-10 examples 23 F: the floors of the ratios are 1.67 and 7.67. Attacks that let autograd fill in
the gradients of the weights too take 6 F and 33 F (2 and 11 steps), which is what the paper counts.
The reference's extra clean pass, which feeds the batch-norm statistics, is a job of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common import Target, compare, finish, interleave, network, parse, pictures, summary
from unperturb.classifiers import Classifier
from unperturb.flops import count_flops
from unperturb.training import TrainConfig
from unperturb.training.cost import training_step

BATCH, STEPS, EPS = 128, 10, 8 / 255
# Table 5 of Tang et al. 2024, ResNet-18, batch 128: seconds of an epoch.
PAPER = {"pgd-10": 273.89, "fgsm": 66.26}
LARGE = 1e9


def plainly(classifier: Classifier, steps: int, precision: str) -> Callable[[Tensor, Tensor], None]:
    """The same step as most would write it: ``loss.backward()`` in the attack, too."""
    net = copy.deepcopy(classifier.module).requires_grad_(True)
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)
    size = EPS if steps == 1 else EPS / 4

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return F.cross_entropy(net(classifier.prepare(images)), labels)

    def run(images: Tensor, labels: Tensor) -> None:
        net.eval()
        x = images.clone()
        for _ in range(steps):
            x.requires_grad_(True)
            loss(x, labels).backward()
            x = x.detach() + size * x.grad.sign()
            x = torch.min(torch.max(x, images - EPS), images + EPS).clamp(0, 1)
        net.train()
        optimizer.zero_grad()
        loss(x, labels).backward()
        optimizer.step()

    return run


def steps_of(classifier: Classifier, images: Tensor, precision: str) -> dict[str, Any]:
    """Jobs of one precision, by name."""

    def ours(objective: str, **more: Any) -> Callable[[Tensor, Tensor], object]:
        settings = TrainConfig(
            objective=objective, precision=precision, attack_steps=STEPS, eps=EPS, **more
        )
        return training_step(classifier, settings, images)

    return {
        "standard": ours("standard"),
        "fgsm": ours("fgsm"),
        "fgsm, extra clean pass": ours("fgsm", clean_pass=True),
        f"pgd-{STEPS}": ours("pgd"),
        "fgsm, wasted weight gradients": plainly(classifier, 1, precision),
        f"pgd-{STEPS}, wasted weight gradients": plainly(classifier, STEPS, precision),
    }


def targets_of(precision: str) -> list[Target]:
    bounds = (1.9, 8.8) if precision == "float32" else (None, None)
    paper = f"TPAP's training; paper {PAPER['pgd-10'] / PAPER['fgsm']:.2f}, operations 4.60"

    def target(above: str, below: str = "standard", *rest: Any, **more: Any) -> Target:
        return Target(f"{above} {precision}", f"{below} {precision}", *rest, **more)

    return [
        target("fgsm", "standard", bounds[0], note="operations 1.67"),
        target("fgsm, extra clean pass", note="as the reference does, counted apart"),
        target(f"pgd-{STEPS}", "standard", bounds[1], note="operations 7.67"),
        target("fgsm, wasted weight gradients", note="operations 2.00"),
        target(f"pgd-{STEPS}, wasted weight gradients", note="operations 11.00"),
        target(f"pgd-{STEPS}", "fgsm", note=paper),
    ]


def measure(spec: str, args: Any) -> dict[str, Any]:
    classifier = network(spec)
    batch = args.batch or (16 if args.quick else BATCH)
    images, labels = pictures(classifier, batch, None, "train")
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        forward = count_flops(lambda: classifier(images[:2]))
    repeats = max(3, args.repeats // 2) if forward / 2 > LARGE else args.repeats
    jobs: dict[str, Callable[[], object]] = {}
    operations = {}
    targets = []
    for precision in ("float32", "bfloat16"):
        for name, step in steps_of(classifier, images, precision).items():
            jobs[f"{name} {precision}"] = lambda step=step: step(images, labels)
            count = count_flops(lambda step=step: step(images[:2], labels[:2]))
            operations[f"{name} {precision}"] = round(count / forward, 3)
        targets += targets_of(precision)
    targets += [
        Target(f"{name} bfloat16", f"{name} float32")
        for name in ("standard", "fgsm", f"pgd-{STEPS}")
    ]
    seconds = interleave(jobs, repeats=repeats, clock=args.clock)
    return {
        "case": f"{spec.partition('@')[0]}, batch {batch}",
        "network": spec.partition("@")[0],
        "weights": "given" if "@" in spec else "random",
        "data": "random pixels, the network's own answers as labels",
        "batch": batch,
        "repeats": repeats,
        "operations_in_forward_passes": operations,
        "paper_seconds_of_an_epoch": PAPER,
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
    }


def main() -> None:
    args = parse(
        "A step of adversarial training over a standard one",
        repeats=7,
        batch={"type": int, "help": f"images in a step ({BATCH}; quick: 16)"},
        classifiers={
            "nargs": "*",
            "default": ["cifar-resnet20", "cifar-resnet18"],
            "metavar": "SPEC",
            "help": "ARCH (random weights) or ARCH@WEIGHTS; large ones are repeated half as often",
        },
    )
    chosen = args.classifiers[:1] if args.quick else args.classifiers
    finish("training_step", args, [measure(spec, args) for spec in chosen])


if __name__ == "__main__":
    main()
