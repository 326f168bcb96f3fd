"""PGD-100 on an adversarially trained network: ours over Foolbox and ART, as their users call them.

Fixed-step ours does what they do. With the rule of first success, an image that is broken leaves:
for the worst case nothing is lost, and most of the steps are saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from common import Target, compare, finish, interleave, network, parse, pictures, summary
from pgd20 import accuracy, by_art, by_foolbox, by_hand, ours, quietly
from unperturb.files import short_paths

STEPS = 100


def measure(spec: str, args: Any) -> dict[str, Any]:
    model = network(spec)
    count = args.images or (32 if args.quick else 128)
    images, labels = pictures(model, count, args.data, args.split)
    jobs: dict[str, Callable[[], Tensor]] = {
        "ours, fixed": lambda: ours(model, images, labels, "fixed", STEPS),
        "ours, first success": lambda: ours(model, images, labels, "first-success", STEPS),
        "hand-written": lambda: by_hand(model, images, labels, STEPS),
        "foolbox": lambda: by_foolbox(model, images, labels, STEPS),
        "art": lambda: by_art(model, images, labels, STEPS),
    }
    targets = [
        Target("foolbox", "ours, fixed", 1.3, "at least"),
        Target("art", "ours, fixed", 1.3, "at least"),
        Target("foolbox", "ours, first success", 2.0, "at least"),
        Target("art", "ours, first success", 2.0, "at least"),
        Target("hand-written", "ours, fixed"),
    ]
    left: dict[str, float] = {}

    def kept(name: str, job: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            found = job()
            if name not in left:
                left[name] = accuracy(model, found, labels)
            return found

        return run

    with quietly():
        timed = {name: kept(name, job) for name, job in jobs.items()}
        seconds = interleave(timed, repeats=args.repeats, clock=args.clock)
    return {
        "case": f"{short_paths(spec)}, {count} images in one batch",
        "network": spec.partition("@")[0],
        "batch": count,
        "accuracy_left": left,
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
    }


def main() -> None:
    args = parse(
        "PGD-100: ours, Foolbox and ART on an adversarially trained network",
        repeats=3,
        images={"type": int, "help": "images, in one batch (128; quick: 32)"},
        trained={"metavar": "SPEC", "help": "an adversarially trained network"},
        data={"metavar": "DATA", "help": "images to attack"},
        split={"default": "test"},
    )
    if args.trained and args.data:
        cases = [measure(args.trained, args)]
    else:
        reason = "needs --trained SPEC and --data"
        cases = [{"case": "an adversarially trained network", "skipped": reason}]
    finish("pgd100", args, cases)


if __name__ == "__main__":
    main()
