"""The suite ``standard`` against AutoAttack ``standard``, as its users call it, on equal images.

Ours is the whole audit of the bare network by the adaptive attacker: every attack on every image,
records on disk and figures included. Theirs is ``pyautoattack``, which drops what is broken.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from common import Target, compare, finish, network, parse, pictures, summary
from pgd20 import accuracy, quietly
from unperturb import Linf
from unperturb.audit import audit
from unperturb.files import short_paths

EPS = 8 / 255


def by_autoattack(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    from pyautoattack import AutoAttack

    attack = AutoAttack(
        model, norm="Linf", eps=EPS, version="standard", seed=0, device="cpu"
    )  # fmt: skip
    found = attack.run_standard_evaluation(images, labels, batch_size=250)
    return found if isinstance(found, Tensor) else found[0]


def measure(spec: str, args: Any) -> dict[str, Any]:
    model = network(spec)
    count = args.images or (32 if args.quick else 256)
    images, labels = pictures(model, count, args.data, args.split)
    with torch.no_grad():
        model(images[:8])
    seconds: dict[str, list[float]] = {"ours": [], "autoattack": []}
    left: dict[str, float] = {}
    shares: dict[str, float] = {}
    for _ in range(args.repeats):
        began = time.perf_counter()
        found = audit(
            model, images, labels, threat=Linf(EPS), attacks="standard", attackers=("adaptive",),
            probe_images=0, batch_size=min(256, count), keep_images="none",
        )  # fmt: skip
        seconds["ours"].append(time.perf_counter() - began)
        left["ours"] = float(found.worst_case_accuracy or 0.0)
        shares = {a["name"]: round(a["seconds"], 2) for a in found.summary["attacks"]}
        began = time.perf_counter()
        with quietly():
            theirs = by_autoattack(model, images, labels)
        seconds["autoattack"].append(time.perf_counter() - began)
        left["autoattack"] = accuracy(model, theirs, labels)
    targets = [Target("autoattack", "ours", 3.0, "at least")]
    ratios = compare(seconds, targets)
    ratios[0]["note"] = (
        f"accuracy left: ours {left['ours']:.1%}, AutoAttack {left['autoattack']:.1%}"
    )
    ratios[0]["holds"] = bool(ratios[0]["holds"] and left["ours"] <= left["autoattack"] + 1e-9)
    return {
        "case": f"{short_paths(spec)}, {count} images, Linf 8/255",
        "network": spec.partition("@")[0],
        "images": count,
        "accuracy_left": left,
        "seconds_by_attack": shares,
        "times": summary(seconds),
        "ratios": ratios,
    }


def main() -> None:
    args = parse(
        "The suite standard and AutoAttack standard on an adversarially trained network",
        repeats=1,
        images={"type": int, "help": "images (256; quick: 32)"},
        trained={"metavar": "SPEC", "help": "an adversarially trained network"},
        data={"metavar": "DATA", "help": "images to attack"},
        split={"default": "test"},
    )
    if args.quick:
        args.repeats = 1
    if args.trained and args.data:
        cases = [measure(args.trained, args)]
    else:
        reason = "needs --trained SPEC and --data"
        cases = [{"case": "an adversarially trained network", "skipped": reason}]
    finish("standard_suite", args, cases)


if __name__ == "__main__":
    main()
