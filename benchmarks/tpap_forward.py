"""What TPAP's answer costs: its forward pass over a plain one.

The denominator of the promise is the plain forward pass as a user has it: eager, NCHW, float32.
Beside it stand the same ratios like for like, both by the same means.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common import Target, compare, finish, interleave, network, parse, summary
from unperturb import tpap
from unperturb.classifiers import Classifier

BATCH = 128
# Share of answers that must agree with plain TPAP, and greatest deviation of the median image's
# scores relative to the largest score; a sign that flips at a gradient near zero moves a pixel.
TOLERANCE = {"agreement": 0.98, "relative": 0.02}


def folded(classifier: Classifier) -> Classifier:
    """A copy whose batch norms are folded into the convolutions before them, channels_last."""
    from torch.fx.experimental.optimization import fuse

    module = fuse(copy.deepcopy(classifier.module)).eval().requires_grad_(False)
    return rebuilt(classifier, module.to(memory_format=torch.channels_last))


def rebuilt(classifier: Classifier, module: nn.Module) -> Classifier:
    return Classifier(
        module,
        num_classes=classifier.num_classes,
        input_shape=classifier.input_shape,
        mean=classifier.mean,
        std=classifier.std,
        geometry=classifier.geometry,
    )


def bfloat16(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def inside(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return run(images).float()

    return inside


def means(classifier: Classifier, *, compiled: bool) -> dict[str, tuple[Classifier, bool, bool]]:
    """By name: the classifier, whether images are channels_last, whether in bfloat16."""
    folds = folded(classifier)
    found = {
        "eager": (classifier, False, False),
        "channels_last": (classifier, True, False),
        "folded": (folds, True, False),
        "folded-bf16": (folds, True, True),
    }
    if compiled:
        module = torch.compile(copy.deepcopy(folds.module))
        found["folded-compiled"] = (rebuilt(classifier, module), True, False)
    return found


def measure(arch: str, args: Any) -> dict[str, Any]:
    classifier = network(arch)
    classifier.module.requires_grad_(True)
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    last = images.contiguous(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], Tensor]] = {}
    for name, (made, channels_last, half) in means(classifier, compiled=args.compile).items():
        shown = last if channels_last else images
        for kind, module in (("plain", made), ("tpap", tpap(made))):
            call = bfloat16(module) if half else module
            runs[f"{kind} {name}"] = lambda call=call, shown=shown: call(shown)
    with torch.no_grad():
        deviations = deviation(runs)
        seconds = interleave(runs, repeats=args.repeats, clock=args.clock)
    names = [name.removeprefix("tpap ") for name in runs if name.startswith("tpap")]
    good = [name for name in names if deviations[name]["within_tolerance"]]
    best = min(good, key=lambda name: min(seconds[f"tpap {name}"]))
    seconds["tpap by the best means"] = seconds[f"tpap {best}"]
    targets = [
        Target("tpap eager", "plain eager", 3.6, note="as the user has it"),
        Target("tpap by the best means", "plain eager", 3.0, note=f"the best means: {best}"),
        *(Target(f"tpap {n}", "plain eager") for n in names[1:]),
        *(Target(f"tpap {n}", f"plain {n}", note="like for like") for n in names[1:]),
    ]
    return {
        "case": f"{arch}, batch {BATCH}",
        "network": arch,
        "weights": "random" if "@" not in arch else "given",
        "batch": BATCH,
        "tolerance": TOLERANCE,
        "deviation_from_eager": deviations,
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
    }


def deviation(runs: dict[str, Callable[[], Tensor]]) -> dict[str, dict[str, Any]]:
    """How far the scores of TPAP by each means lie from the eager ones."""
    wanted = runs["tpap eager"]()
    found = {}
    for name, run in runs.items():
        if not name.startswith("tpap"):
            continue
        scores = run()
        agreement = float((scores.argmax(1) == wanted.argmax(1)).float().mean())
        off = (scores - wanted).abs().amax(1) / wanted.abs().max()
        found[name.removeprefix("tpap ")] = {
            "agreement": round(agreement, 4),
            "median_relative": float(f"{off.median():.2e}"),
            "max_relative": float(f"{off.max():.2e}"),
            "within_tolerance": agreement >= TOLERANCE["agreement"]
            and float(off.median()) <= TOLERANCE["relative"],
        }
    return found


def main() -> None:
    args = parse(
        "TPAP's forward pass over a plain one",
        repeats=15,
        compile={"action": "store_true", "help": "torch.compile too: minutes of compilation"},
        classifiers={
            "nargs": "*",
            "default": ["cifar-resnet20", "cifar-resnet18"],
            "metavar": "SPEC",
            "help": "ARCH (random weights) or ARCH@WEIGHTS",
        },
    )
    chosen = args.classifiers[:1] if args.quick else args.classifiers
    finish("tpap_forward", args, [measure(arch, args) for arch in chosen])


if __name__ == "__main__":
    main()
