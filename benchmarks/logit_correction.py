"""Logit correction: training, streaming from a bank, answering, and explaining, at 1,000 classes.

- `training`: a step over the five matrix products that it cannot do without.
- `streaming`: an epoch over a bank on disk, without training and with it, in a fresh process, and
  that process's memory.
- `forward`: correcting a batch of logits over ResNet-50's forward pass of the images.
- `supporting`: supporting classes over two batched vector-Jacobian products by autograd.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import Target, compare, finish, interleave, parse, summary
from logit_products import (
    SIZES,
    bound,
    classes_of,
    fastest,
    layouts,
    numbers,
    shape_of,
    stepper,
)
from logit_streaming import streaming
from resnet50 import ResNet50
from unperturb.correction import Corrector
from unperturb.networks.corrector import CorrectionNetwork

STEP, SHARE, EXPLAIN = 1.5, 0.01, 1.2


def plainly(batch: int, classes: int, width: int, dropout: float) -> Callable[[], None]:
    """A step as most would write it."""
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(
            nn.Linear(classes, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, classes)
        )
    adam = torch.optim.Adam(net.parameters(), lr=5e-5, weight_decay=1e-4)
    logits, labels = numbers(batch, classes), classes_of(batch, classes)

    def run() -> None:
        with torch.random.fork_rng(devices=[]):
            adam.zero_grad()
            F.cross_entropy(net(logits), labels).backward()
            adam.step()

    return run


def training(args: Namespace) -> dict[str, Any]:
    layout, bare = fastest(layouts(args), args.clock)
    step = stepper(args.batch, args.classes, args.width)
    logits, labels = numbers(args.batch, args.classes), classes_of(args.batch, args.classes)
    count = iter(range(1_000_000))
    jobs: dict[str, Callable[[], object]] = {
        "five products": bare,
        "training step": lambda: step(logits, labels, next(count)),
        "plain PyTorch step": plainly(args.batch, args.classes, args.width, 0.5),
    }
    seconds = interleave(jobs, repeats=args.repeats, clock=args.clock, warmups=2)
    targets = [
        Target(
            "training step",
            "five products",
            bound(args, STEP, "batch"),
            note=f"products laid out {layout}",
        ),
        Target("plain PyTorch step", "five products"),
    ]
    return {
        "case": f"training step, {shape_of(args)}, batch {args.batch}",
        "gigaflops_of_the_products": round(10 * args.batch * args.classes * args.width / 1e9, 3),
        "layout": layout,
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
    }


def forward(args: Namespace) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        net = ResNet50(args.classes).eval().requires_grad_(False)
    net = net.to(memory_format=torch.channels_last)
    images = numbers(args.images, 3, args.side, args.side)
    images = images.contiguous(memory_format=torch.channels_last)
    corrector = Corrector(CorrectionNetwork(num_classes=args.classes, width=args.width))
    logits = numbers(args.images, args.classes)
    with torch.inference_mode():
        jobs: dict[str, Callable[[], object]] = {
            "correcting": lambda: corrector.correct(logits),
            "ResNet-50": lambda: net(images),
        }
        repeats = max(3, args.repeats // 2)
        seconds = interleave(jobs, repeats=repeats, clock=args.clock)
    rows = compare(
        seconds, [Target("correcting", "ResNet-50", bound(args, SHARE, "images", "side"))]
    )
    shares = [a / b for a, b in zip(seconds["correcting"], seconds["ResNet-50"], strict=True)]
    rows[0]["note"] = f"{float(np.median(shares)):.2%}, eager, float32, channels_last"
    return {
        "case": f"correcting logits, {shape_of(args)}, and ResNet-50 at {args.side}x{args.side}, "
        f"batch {args.images}",
        "repeats": repeats,
        "times": summary(seconds),
        "ratios": rows,
    }


def supporting(args: Namespace) -> dict[str, Any]:
    from unperturb.explain.products import contributions
    from unperturb.explain.supporting import supporting_classes

    net = CorrectionNetwork(num_classes=args.classes, width=args.width).eval().requires_grad_(False)
    logits, labels = numbers(args.batch, args.classes), classes_of(args.batch, args.classes)
    rows = F.one_hot(labels, args.classes).float()
    mean = torch.full_like(rows, 1 / args.classes)

    def by_autograd() -> Tensor:
        leaf = logits.detach().requires_grad_()
        scores = net(leaf)
        (pull,) = torch.autograd.grad(scores, leaf, rows, retain_graph=True)
        (push,) = torch.autograd.grad(scores, leaf, mean)
        return pull - push

    same = torch.allclose(contributions(net, logits, labels).score, by_autograd(), atol=1e-5)
    jobs: dict[str, Callable[[], object]] = {
        "supporting classes": lambda: supporting_classes(net, logits, labels),
        "S alone": lambda: contributions(net, logits, labels).score,
        "two products by autograd": by_autograd,
    }
    seconds = interleave(jobs, repeats=args.repeats, clock=args.clock, warmups=2)
    targets = [
        Target("supporting classes", "two products by autograd", bound(args, EXPLAIN, "batch"),
               note="forward pass in both; the same numbers" if same else "OTHER NUMBERS"),
        Target("S alone", "two products by autograd"),
    ]  # fmt: skip
    return {
        "case": f"supporting classes, {shape_of(args)}, batch {args.batch}",
        "same_numbers": same,
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
    }


CASES = {
    "training": training, "streaming": streaming, "forward": forward, "supporting": supporting,
}  # fmt: skip


def main() -> None:
    words = {
        "classes": "classes K", "width": "hidden units D", "batch": "rows of logits in a step",
        "rows": "rows of the bank", "steps": "steps of training through the stream",
        "images": "batch of ResNet-50", "side": "side of its images",
    }  # fmt: skip
    args = parse(
        "Logit correction at 1,000 classes",
        repeats=7,
        only={"nargs": "+", "choices": CASES, "default": list(CASES)},
        folder={"help": "where the bank is written for the time of the benchmark"},
        **{
            name: {"type": int, "help": f"{words[name]} ({full:,}; quick: {small:,})"}
            for name, (full, small) in SIZES.items()
        },
    )
    for name, sizes in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, sizes[args.quick])
    found = [CASES[name](args) for name in args.only]
    for case in found:
        for check in case.get("checks", ()):
            verdict = "holds" if check["holds"] else "MISSED"
            print(f"{check['what']}: {check['value']:.2f} {check['unit']}, at most "
                  f"{check['at_most']:g}: {verdict}; {check['note']}")  # fmt: skip
    finish("logit_correction", args, found)


if __name__ == "__main__":
    main()
