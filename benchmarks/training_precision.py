"""bfloat16 with channels_last against float32: time of a training step, and robust accuracy.

With data, two short adversarial trainings differ in nothing but the precision, and PGD-20 in
float32 is run on held-out images of both. Both are channels_last, as the loop always is; the layout
changes sums by rounding only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common import Target, compare, finish, interleave, network, parse, pictures, summary
from unperturb import Linf, make_attack
from unperturb.attacks import Surface
from unperturb.classifiers import Classifier
from unperturb.data import ImageSet, load_images
from unperturb.randomness import Keys
from unperturb.training import TrainConfig, train
from unperturb.training.cost import training_step

BATCH, EPS = 128, 8 / 255
LAYOUTS = {
    "float32, contiguous": ("float32", False),
    "float32, channels_last": ("float32", True),
    "bfloat16, channels_last": ("bfloat16", True),
}


def settings(objective: str, precision: str, **more: Any) -> TrainConfig:
    return TrainConfig(objective=objective, precision=precision, attack_steps=7, eps=EPS, **more)


def steps(spec: str, args: Any) -> dict[str, Any]:
    classifier = network(spec)
    batch = 16 if args.quick else BATCH
    images, labels = pictures(classifier, batch, None, "train")
    last = images.contiguous(memory_format=torch.channels_last)
    jobs: dict[str, Callable[[], object]] = {}
    targets = []
    for objective in ("standard", "fgsm", "pgd"):
        for name, (precision, channels_last) in LAYOUTS.items():
            step = training_step(
                classifier, settings(objective, precision), images, channels_last=channels_last
            )
            shown = last if channels_last else images
            jobs[f"{objective}, {name}"] = lambda step=step, shown=shown: step(shown, labels)
        best, *others = reversed(LAYOUTS)
        targets += [Target(f"{objective}, {best}", f"{objective}, {other}") for other in others]
    seconds = interleave(jobs, repeats=args.repeats, clock=args.clock)
    return {
        "case": f"steps of {spec.partition('@')[0]}, batch {batch}, PGD of 7 steps",
        "network": spec.partition("@")[0],
        "batch": batch,
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
    }


class Trainable(nn.Module):
    """A classifier's network with its normalization in front."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.module = classifier.module.requires_grad_(True)
        self.prepare = classifier.prepare

    def forward(self, images: Tensor) -> Tensor:
        return self.module(self.prepare(images))


def accuracies(classifier: Classifier, data: ImageSet, held: int) -> dict[str, float]:
    """Clean and under PGD-20, in float32, on the images at the end."""
    count = len(data)
    attack = make_attack("pgd-20")
    right = {"clean": 0, "PGD-20": 0}
    for start in range(count - held, count, 128):
        rows = slice(start, min(start + 128, count))
        images, labels = data.images(rows), data.labels[rows]
        keys = Keys.of(0, data.ids[rows])
        with torch.no_grad():
            right["clean"] += int((classifier(images).argmax(1) == labels).sum())
        found = attack.run(
            Surface(classifier), images, labels, threat=Linf(EPS), keys=keys, stop="first-success"
        )
        right["PGD-20"] += int((~found.success).sum())
    return {name: hits / held for name, hits in right.items()}


def trainings(spec: str, args: Any) -> dict[str, Any]:
    images = args.images or (64 if args.quick else 10_000)
    held = 32 if args.quick else 1000
    data = load_images(args.data, split=args.split, limit=images + held)
    start = network(args.start or spec)
    found, seconds = {}, {}
    for precision in ("float32", "bfloat16"):
        classifier = copy.deepcopy(start)
        config = settings(
            "pgd", precision, epochs=args.epochs, batch_size=32 if args.quick else BATCH, lr=0.05,
            schedule="one-cycle", holdout=held, keep="last",
        )  # fmt: skip
        done = train(Trainable(classifier), data, config, show=False)
        classifier.module.eval().requires_grad_(False)
        seconds[precision] = [epoch["seconds"] for epoch in done.epochs]
        found[precision] = accuracies(classifier, data, held)
    rows = compare(seconds, [Target("bfloat16", "float32", note="seconds of an epoch")])
    for name in ("clean", "PGD-20"):
        one, two = found["bfloat16"][name], found["float32"][name]
        wide = 1.96 * math.sqrt((one * (1 - one) + two * (1 - two)) / held)
        rows.append(
            {
                "numerator": f"{name} accuracy, bfloat16",
                "denominator": "float32",
                "median_of_ratios": round(one / two, 3) if two else float(one == two),
                "note": f"{one:.1%} and {two:.1%} of {held} held-out images; differences of "
                f"{wide:.1%} are chance",
            }
        )
    return {
        "case": f"PGD-7 training of {spec.partition('@')[0]}, {args.epochs} epochs of {images} "
        f"images, from {'given' if args.start else 'fresh'} weights",
        "network": spec.partition("@")[0],
        "images": images,
        "held_out": held,
        "epochs": args.epochs,
        "seconds_of_epochs": {k: [round(t, 1) for t in v] for k, v in seconds.items()},
        "accuracy": found,
        "ratios": rows,
    }


def main() -> None:
    args = parse(
        "bfloat16 and channels_last against float32 in training",
        repeats=7,
        classifier={"default": "cifar-resnet20", "metavar": "ARCH"},
        start={"metavar": "SPEC", "help": "standard-trained weights to start from"},
        data={"metavar": "DATA", "help": "images to train on; the last are held out"},
        split={"default": "train"},
        images={"type": int, "help": "images to train on (10000; quick: 64)"},
        epochs={"type": int, "default": 3, "help": "epochs of each training"},
    )
    cases = [steps(args.classifier, args)]
    if args.data:
        cases.append(trainings(args.classifier, args))
    else:
        cases.append({"case": "robust accuracy of both", "skipped": "needs --data"})
    finish("training_precision", args, cases)


if __name__ == "__main__":
    main()
