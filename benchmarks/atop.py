"""AToP: a step of fine-tuning, the gradient averaged over draws, images purified per second.

- `finetune`: a step over the sum of its parts, and each part over the bare calls of its modules.
  Loading and augmenting images, and hashing their keys, stand outside of all of them.
- `eot`: the gradient averaged over 20 draws, all at once over one after the other, for few images
  and for a plan's batch.
- `purify`: images purified by each network and transform over a plain forward pass of the
  classifier.

Weights are random, which decides no cost; networks are those of the `cpu` scale.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atop_parts import UPDATING, parts_of, step_of
from common import Target, compare, finish, interleave, network, parse, pictures, summary
from unperturb.attacks.batch import Batch
from unperturb.attacks.surface import Surface
from unperturb.classifiers import Classifier
from unperturb.defense import Defense
from unperturb.flops import count_flops
from unperturb.purifiers import Restoration
from unperturb.randomness import Keys
from unperturb.threat import Linf

STEP, PART = 1.15, 1.1
FEW, MANY = 1.5, 1.05
DRAWS = 20
NETWORKS = {"gan": "inpainting-gan", "mae": "masked-autoencoder"}
TRANSFORMS = ("rt1", "rt2", "rt3")


def finetune(args: Namespace) -> list[dict[str, Any]]:
    return [_finetune(args, name, batch) for name in args.networks for batch in args.steps]


def _finetune(args: Namespace, name: str, batch: int) -> dict[str, Any]:
    classifier = network(args.classifier)
    images, labels = pictures(classifier, batch, None, "train")
    images = images.contiguous(memory_format=torch.channels_last)
    keys = Keys.of(0, [str(i) for i in range(batch)], domain="atop")
    work = step_of(classifier, NETWORKS[name], images)
    ours, bare = parts_of(work, images, labels, keys)
    jobs: dict[str, Callable[[], object]] = {
        "fine-tuning step": lambda: work.step(images, labels, keys),
        **ours,
        **{f"{part}, bare": run for part, run in bare.items()},
    }
    seconds = interleave(jobs, repeats=args.repeats, clock=args.clock, warmups=2)
    seconds["sum of its parts"] = _sums(seconds, list(ours))
    bares = [f"{part}, bare" if part in bare else part for part in ours]
    seconds["sum of the bare calls"] = _sums(seconds, bares)
    targets = [
        Target("fine-tuning step", "sum of its parts", STEP),
        *(Target(part, f"{part}, bare", PART) for part in bare if part != UPDATING),
        Target(UPDATING, f"{UPDATING}, bare", note="checks that every gradient is finite first"),
        Target("fine-tuning step", "sum of the bare calls", note="and the draws"),
        *(Target(part, "fine-tuning step", note="share of the step") for part in ours),
    ]
    return {
        "case": f"fine-tuning the {name} for {args.classifier}, rt2, FGSM, batch {batch}",
        "network": NETWORKS[name],
        "options": work.network.config(),
        "batch": batch,
        "outside_the_step": "loading and augmenting the images, and hashing their keys",
        "paper": "62 s for 1,000 images, GAN, A5000",
        "seconds_for_1000_images": round(min(seconds["fine-tuning step"]) * 1000 / batch, 3),
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
    }


def _sums(seconds: dict[str, list[float]], names: list[str]) -> list[float]:
    return [sum(times) for times in zip(*(seconds[name] for name in names), strict=True)]


def defended(classifier: Classifier, name: str, transform: str) -> Defense:
    return Defense(classifier, purifier=Restoration(network=NETWORKS[name], transform=transform))


def gradients(defense: Defense, images: Tensor, labels: Tensor, draws: int) -> Callable[[], Tensor]:
    """One gradient of the cross-entropy over ``draws`` draws at once.

    The batch is made here, once for a whole attack, as attacks do it: it is no part of what is
    timed.
    """
    keys = Keys.of(0, [str(i) for i in range(len(images))])
    rows = torch.arange(len(images))
    batch = Batch(Surface(defense), images, labels, threat=Linf(8 / 255), keys=keys, draws=draws)
    objective = batch.loss("ce")

    def run(number: int = 0) -> Tensor:
        return batch.gradient(images, rows, number, objective).gradient

    return run


def eot(args: Namespace) -> list[dict[str, Any]]:
    sizes = {args.few: (FEW, "at least"), args.many: (MANY, "at most")}
    return [
        _eot(args, name, batch, *rule) for name in args.networks for batch, rule in sizes.items()
    ]


def _eot(args: Namespace, name: str, batch: int, bound: float, sense: str) -> dict[str, Any]:
    classifier = network(args.classifier)
    images, labels = pictures(classifier, batch, None, "test")
    defense = defended(classifier, name, "rt2")
    at_once = gradients(defense, images, labels, args.draws)
    single = gradients(defense, images, labels, 1)

    def in_turn() -> Tensor:
        return torch.stack([single(number) for number in range(args.draws)]).mean(0)

    wanted = in_turn()
    off = float((at_once() - wanted).abs().max() / wanted.abs().max())
    repeats = args.repeats if batch == args.few else max(3, args.repeats // 2)
    jobs: dict[str, Callable[[], object]] = {"at once": at_once, "one after the other": in_turn}
    seconds = interleave(jobs, repeats=repeats, clock=args.clock)
    target = (
        Target("one after the other", "at once", bound, sense)
        if sense == "at least"
        else Target("at once", "one after the other", bound, sense)
    )
    return {
        "case": f"gradient over {args.draws} draws, {name} rt2, {args.classifier}, batch {batch}",
        "repeats": repeats,
        "outside_the_gradient": "making the batch under attack, once for an attack",
        "greatest_deviation": float(f"{off:.1e}"),
        "times": summary(seconds),
        "ratios": compare(seconds, [target]),
    }


def purify(args: Namespace) -> list[dict[str, Any]]:
    classifier = network(args.classifier)
    images, _ = pictures(classifier, args.images, None, "test")
    images = images.contiguous(memory_format=torch.channels_last)
    keys = Keys.of(0, [str(i) for i in range(len(images))])
    plain = "plain forward pass"
    jobs: dict[str, Callable[[], object]] = {plain: lambda: classifier(images)}
    operations: dict[str, int] = {plain: count_flops(lambda: classifier(images[:2]))}
    for name in args.networks:
        for transform in TRANSFORMS:
            defense = defended(classifier, name, transform)
            purifier: nn.Module = defense.purifier

            def run(purifier: nn.Module = purifier, few: int | None = None) -> object:
                from unperturb.context import Context

                part = images[:few]
                return purifier(part, ctx=Context(classifier, part, keys=keys[:few]))

            jobs[f"{name} {transform}"] = run
            operations[f"{name} {transform}"] = count_flops(lambda run=run: run(few=2))
    with torch.no_grad():
        seconds = interleave(jobs, repeats=args.repeats, clock=args.clock)
    shares = {job: round(count / operations[plain], 2) for job, count in operations.items()}
    targets = [
        Target(job, plain, note=f"operations {shares[job]:.2f}, "
               f"{len(images) / min(seconds[job]):,.0f} images per second")
        for job in jobs if job != plain
    ]  # fmt: skip
    return [
        {
            "case": f"purifying {len(images)} images, forward passes of {args.classifier}",
            "images_per_second": {
                job: round(len(images) / min(times), 1) for job, times in seconds.items()
            },
            "operations_in_forward_passes": shares,
            "times": summary(seconds),
            "ratios": compare(seconds, targets),
        }
    ]


CASES = {"finetune": finetune, "eot": eot, "purify": purify}


def main() -> None:
    args = parse(
        "AToP: fine-tuning, gradients over draws, purifying",
        repeats=9,
        only={"nargs": "+", "choices": CASES, "default": list(CASES)},
        networks={"nargs": "+", "choices": NETWORKS, "default": list(NETWORKS)},
        classifier={"default": "cifar-resnet20", "help": "ARCH (random weights) or ARCH@WEIGHTS"},
        steps={"type": int, "nargs": "+", "help": "images in a step of fine-tuning (32; quick: 8)"},
        few={"type": int, "help": "images of the small batch under 20 draws (8; quick: 2)"},
        many={"type": int, "help": "images of the large one (128; quick: 4)"},
        draws={"type": int, "help": f"draws ({DRAWS}; quick: 3)"},
        images={"type": int, "help": "images to purify (128; quick: 4)"},
    )
    small, full = {"few": 2, "many": 4, "draws": 3, "images": 4}, {
        "few": 8, "many": 128, "draws": DRAWS, "images": 128,
    }  # fmt: skip
    for name, value in (small if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.steps = args.steps or ([8] if args.quick else [32])
    finish("atop", args, [case for name in args.only for case in CASES[name](args)])


if __name__ == "__main__":
    main()
