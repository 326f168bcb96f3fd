"""ALU's purifier: what an answer costs against its steps, and how few steps do.

- `passes`: decoder passes that L-BFGS, the default, and Adam need to reach the median error of 200
  steps of plain gradient descent, whose learning rate is the best of a grid on training images, as
  Adam's is.
- `steps`: time against the number of steps, over that of N = 0: of ALU's whole answer (classifier
  twice, threshold, update), of purifier and one pass of the classifier, and of the purifier alone;
  the paper's ratios stand beside ours.
- `backwards`: passes through the decoder and back of one answer.
- `memory`: the memory of a fresh process at 200 steps over that at 10.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import Target, compare, finish, interleave, network, parse, pictures, summary
from unperturb.defense import Defense
from unperturb.errors import ConfigError
from unperturb.files import short_paths
from unperturb.generative import load_vae
from unperturb.networks.vae import VAE
from unperturb.presets import alu
from unperturb.progress import progress
from unperturb.purifiers import LatentOptimization
from unperturb.purifiers.latent_steps import Descent, descend

STEPS = 200
GD_RATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
ADAM_RATES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
_LARGEST = 100.0
RATE = 0.1
FEWER, FLAT = 4.0, 1.1
PAPER = {50: 6.8, 200: 24.0}


def errors(vae: VAE, images: Tensor, how: Descent) -> list[float]:
    """Median squared errors of the codes after 0, 1, ... K steps; inf from where they diverge."""
    found: list[float] = []

    def watched(codes: Tensor) -> Tensor:
        made = vae.decode(codes)
        found.append(_median(made, images))
        return made

    with torch.no_grad():
        codes = vae.encode(images)[0]
    try:
        last = descend(watched, images, codes, how)
    except ConfigError:
        return [*found, *[math.inf] * (how.steps + 1 - len(found))]
    with torch.no_grad():
        found.append(_median(vae.decode(last), images))
    return found


def _median(made: Tensor, images: Tensor) -> float:
    value = (made.detach() - images).square().flatten(1).sum(1).median()
    return float(value) if bool(torch.isfinite(value)) else math.inf


def passes(args: Namespace, vae: VAE, train: Tensor, test: Tensor) -> dict[str, Any]:
    """Tuned on training images, counted on test images."""
    plain = tuned(lambda lr: errors(vae, train, Descent(STEPS, lr, "gd"))[-1], GD_RATES)
    best = min(plain, key=lambda lr: plain[lr])
    needs = tuned(
        lambda lr: _first(errors(vae, train, Descent(STEPS, lr, "adam")), plain[best]), ADAM_RATES
    )
    quick = min(needs, key=lambda lr: needs[lr])
    goal = errors(vae, test, Descent(STEPS, best, "gd"))[-1]
    rows: list[dict[str, Any]] = []
    counted: list[float] = []
    for name, title, lr, note in (
        ("lbfgs", "L-BFGS", RATE, "the default"),
        ("adam", "Adam", quick, "the best rate of the grid"),
    ):
        needed = _first(errors(vae, test, Descent(STEPS, lr, name)), goal)
        counted.append(needed)
        ratio = STEPS / needed
        rows.append(
            {
                "numerator": f"{STEPS} steps of plain gradient descent (lr {best:g})",
                "denominator": f"{needed:g} steps of {title} (lr {lr:g})",
                "median_of_ratios": round(ratio, 2),
                **({"target": f"at least {FEWER:g}", "holds": ratio >= FEWER}
                   if name == "lbfgs" else {}),
                "note": f"{note}; median squared error {goal:.4g}",
            }
        )  # fmt: skip
    return {
        "case": f"decoder passes to the same median error, {len(test)} test images",
        "gd_errors_on_training_images": {str(lr): _plain(value) for lr, value in plain.items()},
        "adam_steps_on_training_images": {str(lr): _plain(value) for lr, value in needs.items()},
        "edge_of_the_grid": best in (min(plain), max(plain)),
        "goal": goal,
        "lbfgs_steps": _plain(counted[0]),
        "adam_steps": _plain(counted[1]),
        "ratios": rows,
    }


def tuned(cost: Callable[[float], float], rates: Sequence[float]) -> dict[float, float]:
    """Cost of each rate of a grid, which goes on upwards as long as its last rate is the best."""
    found = {}
    with progress(total=len(rates), desc="learning rates", unit="rate") as bar:
        for lr in rates:
            found[lr] = cost(lr)
            bar.update()
    while (top := max(found)) < _LARGEST and min(found, key=lambda lr: found[lr]) == top:
        found[1.5 * top] = cost(1.5 * top)
    return found


def _first(found: list[float], goal: float) -> float:
    """The first step whose error is no greater than the goal; inf where there is none."""
    return next((float(step) for step, error in enumerate(found) if error <= goal), math.inf)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def steps(args: Namespace, vae: VAE, images: Tensor, few: float) -> dict[str, Any]:
    """Time against N."""
    net = network(args.classifier)
    counts = [0, 10, 50, 200] if args.quick else [0, 1, 5, 10, 20, 50, 100, 200]
    enough = None if not math.isfinite(few) else math.ceil(few)
    if enough is not None and enough not in counts:
        counts = sorted([*counts, enough])
    jobs: dict[str, Callable[[], object]] = {}
    for count in counts:
        purifier = LatentOptimization(vae=vae, steps=count)
        # The whole of ALU: the classifier before and after, the detector, and the update. Both
        # branches are computed for every image, so that no threshold changes the time.
        defense = alu(net, vae=vae, steps=count, threshold=1.0)
        purified = Defense(net, purifier=purifier)
        jobs[f"answer, N = {count}"] = lambda d=defense: d.predict(images, batch_size=len(images))
        jobs[f"purified, N = {count}"] = lambda d=purified: d.predict(
            images, batch_size=len(images)
        )
        jobs[f"purification, N = {count}"] = lambda p=purifier: _purify(net, p, images)
    seconds = interleave(jobs, repeats=args.repeats, clock=args.clock)
    targets = [
        Target(
            f"{kind}, N = {count}", f"{kind}, N = 0",
            note=", ".join(filter(None, (
                f"the paper: {PAPER[count]:g}" if count in PAPER and kind == "answer" else "",
                f"reaches the error of {STEPS} plain steps" if count == enough else "",
            ))),
        )
        for kind in ("answer", "purified", "purification")
        for count in counts
        if count
    ]  # fmt: skip
    return {
        "case": f"an answer against its steps, {short_paths(args.classifier)}, batch {len(images)}",
        "times": summary(seconds),
        "ratios": compare(seconds, targets),
    }


@torch.no_grad()
def _purify(net: Any, purifier: LatentOptimization, images: Tensor) -> Tensor:
    from unperturb.context import Context

    # In the order of memory that a defense gives its purifier: the other one is slower.
    images = images.contiguous(memory_format=torch.channels_last)
    ctx = Context(net, images, keys=None, backward="exact", keep_before=False)
    return purifier(images, ctx=ctx).reading  # type: ignore[no-any-return]


def backwards(vae: VAE, images: Tensor) -> dict[str, Any]:
    """Passes through the decoder and back, counted."""
    count = 20
    forwards, back = 0, 0

    def watched(codes: Tensor) -> Tensor:
        nonlocal forwards
        forwards += 1
        made = vae.decode(codes)
        if made.requires_grad:
            made.register_hook(_counted)
        return made

    def _counted(gradient: Tensor) -> None:
        nonlocal back
        back += 1

    with torch.no_grad():
        codes = vae.encode(images)[0]
    last = descend(watched, images, codes, Descent(count, RATE, "lbfgs"))
    checks = [
        {"what": "decoder forwards in a step", "value": forwards / count, "unit": "passes",
         "at_most": 1, "holds": forwards <= count},
        {"what": "decoder backwards in a step", "value": back / count, "unit": "passes",
         "at_most": 1, "holds": back <= count},
        {"what": "codes that keep a graph", "value": float(last.requires_grad), "unit": "codes",
         "at_most": 0, "holds": not last.requires_grad},
    ]  # fmt: skip
    return {"case": f"{count} steps without an attacker", "checks": checks}


def memory(args: Namespace) -> dict[str, Any]:
    """Peak memory of a fresh process at two numbers of steps."""
    found = {}
    for count in (10, STEPS):
        command = [sys.executable, str(Path(__file__).resolve()), "--peak", str(count)]
        command += ["--threads", str(torch.get_num_threads()), "--images", str(args.images)]
        command += ["--vae", args.vae] if args.vae else []
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[count] = json.loads(told.splitlines()[-1])
    ratio = found[STEPS] / found[10]
    return {
        "case": "memory of a process that answers",
        "peak_mb": {str(count): round(value, 1) for count, value in found.items()},
        "ratios": [{
            "numerator": f"peak memory, N = {STEPS}", "denominator": "peak memory, N = 10",
            "median_of_ratios": round(ratio, 3), "target": f"at most {FLAT:g}",
            "holds": ratio <= FLAT,
        }],
    }  # fmt: skip


def _peak(args: Namespace, vae: VAE, images: Tensor) -> None:
    _purify(network("cifar-resnet20"), LatentOptimization(vae=vae, steps=args.peak), images)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    args = parse(
        "ALU's purifier against its steps",
        repeats=5,
        vae={"metavar": "FOLDER", "help": "a trained VAE; zoo/cifar10-vae where that is there"},
        classifier={"default": "cifar-resnet20", "metavar": "SPEC"},
        data={"metavar": "DATA", "help": "images with a training split"},
        images={"type": int, "help": "images, in one batch (128; quick: 32)"},
        peak={"type": int, "help": "only tell the peak memory of so many steps"},
    )
    args.images = args.images or (32 if args.quick else 128)
    own = Path("zoo/cifar10-vae")
    if args.vae is None and (own / "config.json").is_file():
        args.vae = str(own)
    vae = load_vae(args.vae) if args.vae else VAE().eval().requires_grad_(False)
    if args.peak is not None:
        _peak(args, vae, torch.rand(args.images, *vae.image_shape))
        return
    net = network(args.classifier)
    test = pictures(net, args.images, args.data, "test")[0]
    cases: list[dict[str, Any]] = []
    few = math.inf
    if args.vae and args.data:
        train = pictures(net, args.images, args.data, "train")[0]
        cases.append(passes(args, vae, train, test))
        few = cases[0]["lbfgs_steps"] or math.inf
    else:
        reason = "needs --vae FOLDER and --data"
        cases.append({"case": "decoder passes to the same median error", "skipped": reason})
    cases += [steps(args, vae, test, few), backwards(vae, test), memory(args)]
    for case in cases:
        case["vae"] = "trained" if args.vae else "random weights"
    finish("alu", args, cases)


if __name__ == "__main__":
    main()
