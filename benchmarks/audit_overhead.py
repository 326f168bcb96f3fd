"""What an audit adds to its attack loop: scoring, records, statistics; imports and report apart."""

from __future__ import annotations

from typing import Any
from unittest import mock

from common import CLOCKS, Target, compare, finish, network, parse, pictures, summary
from unperturb import Linf, audit
from unperturb.attacks import FirstOrder
from unperturb.files import short_paths

RANDOM_EPS = 0.02 / 255
STAND_IN = "cifar-robust-resnet-4b"


def measure(args: Any) -> dict[str, Any]:
    spec = args.robust or STAND_IN
    given = bool(args.robust and args.data)
    count = args.images or (256 if args.quick else 512)
    model = network(spec)
    images, labels = pictures(model, count, args.data if given else None, args.split)
    # Random weights resist almost nothing; a tiny ball keeps most images under attack to the end.
    eps = 8 / 255 if given else RANDOM_EPS
    seconds: dict[str, list[float]] = {"audit": [], "attack loop": []}
    left = 0.0
    plain, now = FirstOrder.run, CLOCKS[args.clock]

    def timed(self: FirstOrder, *positional: Any, **named: Any) -> Any:
        began = now()
        found = plain(self, *positional, **named)
        seconds["attack loop"][-1] += now() - began
        return found

    # The first one warms up and imports.
    for turn in range(args.repeats + 1):
        seconds["attack loop"].append(0.0)
        with mock.patch.object(FirstOrder, "run", timed):
            began = now()
            some = slice(0, 128) if turn == 0 else slice(0, count)
            found = audit(model, images[some], labels[some], threat=Linf(eps), attacks="quick")
            seconds["audit"].append(now() - began)
        left = found.worst_case_accuracy
    seconds = {name: times[1:] for name, times in seconds.items()}
    return {
        "case": f"{short_paths(spec)}, {count} images, suite quick",
        "network": spec.partition("@")[0],
        "weights": "given" if given else "random",
        "images": count,
        "batch": 128,
        "eps_255": round(eps * 255, 4),
        "worst_case_accuracy": left,
        "times": summary(seconds),
        "ratios": compare(seconds, [Target("audit", "attack loop", 1.15)]),
    }


def main() -> None:
    args = parse(
        "An audit over its attack loop",
        repeats=3,
        images={"type": int, "help": "images (512; quick: 256)"},
        robust={
            "metavar": "SPEC",
            "help": f"weights of a robust network; without, {STAND_IN} with random weights",
        },
        data={"metavar": "DATA", "help": "images to audit with"},
        split={"default": "test"},
    )
    finish("audit_overhead", args, [measure(args)])


if __name__ == "__main__":
    main()
