"""Which images does AutoAttack break that our suite does not, and the other way round?

    python tools/strength.py --classifier SPEC --data DATA/cifar10 --out FOLDER --record FILE.json
    python tools/strength.py ... --norm l2 --eps 0.5

AutoAttack ``standard`` is called directly, as its users call it (seeded; not by way of our own
wrapper), on the first images of the test set, in blocks. Our suite runs on the same blocks, attack
after attack, each on the images that those before it have left (``first-success``), which is what
AutoAttack does, too. Every adversarial image of either side is checked again by code that shares
nothing with the attacks: range and distance in float64 by NumPy, and a plain forward pass.

Each finished block of each side lies in ``--out`` and is not done again; a folder made with other
settings is refused. Seconds are wall-clock: run nothing else beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from unperturb.attacks import Surface, describe_attack, resolve_attacks
from unperturb.audit.plan import environment
from unperturb.audit.statistics import wilson
from unperturb.classifiers import load_classifier
from unperturb.data import ImageSet, load_images
from unperturb.files import short_paths, write_json, write_tensors
from unperturb.progress import progress
from unperturb.randomness import Keys
from unperturb.threat import Threat, make_threat, parse_eps

Made = tuple[Tensor, dict[str, Any]]
Make = Callable[[Tensor, Tensor, slice], Made]


def inside(images: Tensor, clean: Tensor, norm: str, eps: float) -> np.ndarray[Any, Any]:
    """Whether images lie in [0, 1] and in the ball, in float64."""
    one = images.detach().cpu().numpy().astype(np.float64)
    two = clean.detach().cpu().numpy().astype(np.float64)
    moved = (one - two).reshape(len(one), -1)
    far = np.abs(moved).max(1) if norm == "linf" else np.sqrt((moved**2).sum(1))
    flat = one.reshape(len(one), -1)
    # Float32 arithmetic on pixels errs by some 1e-7.
    found: np.ndarray[Any, Any] = (far <= eps * (1 + 1e-5) + 1e-6) & (flat.min(1) >= 0)
    found &= flat.max(1) <= 1
    return found


@torch.no_grad()
def wrong(net: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray[Any, Any]:
    """Whether a plain forward pass answers wrongly."""
    answers = torch.cat([net(some).argmax(1) for some in images.split(50)])
    return (answers != labels).cpu().numpy()


def settings_hash(settings: dict[str, Any]) -> str:
    """What a block must have been made with."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def blocks(
    folder: Path, side: str, settings: dict[str, Any], data: ImageSet, size: int, make: Make,
    device: torch.device,
) -> tuple[Tensor, list[dict[str, Any]]]:  # fmt: skip
    """Adversarial images of a side and what it said of each block; finished ones are read.

    Raises:
        SystemExit: A block was made with other settings.
    """
    mark, parts, notes = settings_hash(settings), [], []
    starts = list(range(0, len(data), size))
    with progress(total=len(starts), desc=side, unit="block") as bar:
        for start in starts:
            rows = slice(start, min(start + size, len(data)))
            path = folder / f"{side}-{start:05d}.safetensors"
            if path.exists():
                with safe_open(path, "pt") as file:
                    known = file.metadata()
                    images = file.get_tensor("images")
                if known["settings"] != mark:
                    sys.exit(f"{path} was made with other settings: choose another --out")
                note = json.loads(known["note"])
            else:
                clean, labels = data.images(rows).to(device), data.labels[rows].to(device)
                began = time.perf_counter()
                images, note = make(clean, labels, rows)
                images = images.detach().cpu().contiguous()
                note["seconds"] = time.perf_counter() - began
                write_tensors(
                    path, {"images": images}, {"settings": mark, "note": json.dumps(note)}
                )
            parts.append(images)
            notes.append(note)
            bar.update(1)
    return torch.cat(parts), notes


def package(net: nn.Module, threat: Threat, seed: int) -> Make:
    """AutoAttack as its users call it."""
    from pyautoattack import AutoAttack

    def make(clean: Tensor, labels: Tensor, rows: slice) -> Made:
        made = AutoAttack(
            net, norm={"linf": "Linf", "l2": "L2"}[threat.norm], eps=threat.eps, seed=seed,
            version="standard", device=clean.device,
        )  # fmt: skip
        images, _ = made.run_standard_evaluation(clean, labels, batch_size=len(clean))
        net.zero_grad(set_to_none=True)  # FAB leaves gradients in the parameters
        return images, {}

    return make


def ours(net: nn.Module, threat: Threat, seed: int, suite: str, ids: tuple[str, ...]) -> Make:
    """The suite: each attack on the images that those before it have left."""
    surface = Surface(net)

    def make(clean: Tensor, labels: Tensor, rows: slice) -> Made:
        found, keys = clean.clone(), Keys.of(seed, ids[rows])
        judged = surface.judge(clean, labels, keys)
        left, broken = (~judged.success).nonzero().flatten(), {}
        for attack in resolve_attacks(suite):
            if not len(left):
                break
            if getattr(attack, "bound", "threat") == "own":
                continue  # no attack of this threat model
            named = keys.to(clean.device)[left].within(f"strength/{attack.name}")
            made = attack.run(surface, clean[left], labels[left], threat=threat, keys=named)
            out = made.success & threat.contains(made.images, clean[left])
            found[left[out]] = made.images[out]
            broken[attack.name] = int(out.sum())
            left = left[~out]
        return found, {"broken": broken}

    return make


def main() -> None:
    """Run both sides, and say what they do not share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--classifier", required=True, help="as in ARCH@WEIGHTS or zoo/NAME")
    parser.add_argument("--data", required=True, help="images, as for unperturb audit")
    parser.add_argument("--split", default="test")
    parser.add_argument("--n", type=int, default=1000, help="first images of the split (1000)")
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"))
    parser.add_argument("--eps", default="8/255", help="as in 8/255 or 0.5")
    parser.add_argument("--suite", default="standard", help="our suite, or attacks by name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--block", type=int, default=125, help="images at once (125)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of finished blocks")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    threat = make_threat(options.norm, parse_eps(options.eps))
    net = load_classifier(options.classifier).to(device)
    data = load_images(options.data, split=options.split, limit=options.n)
    record = compare(net, data, threat, options, device)
    if options.record:
        write_json(options.record, record)
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


def compare(
    net: Any, data: ImageSet, threat: Threat, options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Both sides on all blocks, checked and compared."""
    import importlib.metadata

    shared = {
        "classifier": net.fingerprint(), "ids": list(data.ids), "threat": threat.to_dict(),
        "seed": options.seed, "block": options.block, "device": device.type,
    }  # fmt: skip
    version = importlib.metadata.version("pyautoattack")
    attacks = [describe_attack(attack) for attack in resolve_attacks(options.suite)]
    ids = tuple(data.ids)
    makes: dict[str, tuple[dict[str, Any], Make]] = {
        "package": ({"pyautoattack": version}, package(net, threat, options.seed)),
        "ours": ({"attacks": attacks}, ours(net, threat, options.seed, options.suite, ids)),
    }
    clean, labels = data.images().to(device), data.labels.to(device)
    broken, rejected, notes = {}, {}, {}
    for side, (own, make) in makes.items():
        made, notes[side] = blocks(
            options.out, side, {**shared, **own}, data, options.block, make, device
        )
        made = made.to(device)
        lies = inside(made, clean, threat.norm, threat.eps)
        turned = wrong(net, made, labels)
        broken[side] = turned & lies
        rejected[side] = [ids[i] for i in np.flatnonzero(turned & ~lies)]
    count = len(ids)

    def share(part: np.ndarray[Any, Any]) -> dict[str, Any]:
        right = int((~part).sum())
        return {"right": right, "accuracy": right / count, "interval": list(wilson(right, count))}

    def only(one: str, two: str) -> list[str]:
        return [ids[i] for i in np.flatnonzero(broken[one] & ~broken[two])]

    seconds = {side: sum(note["seconds"] for note in notes[side]) for side in notes}
    counts: dict[str, int] = {}
    for note in notes["ours"]:
        for name, number in note["broken"].items():
            counts[name] = counts.get(name, 0) + number
    return {
        "classifier": short_paths(options.classifier),
        "fingerprint": net.fingerprint(),
        "data": short_paths(str(options.data)),
        "n": count,
        "threat": threat.to_dict(),
        "seed": options.seed,
        "batch_size": options.block,
        "package": {"pyautoattack": version, "version": "standard"},
        "suite": {"name": options.suite, "attacks": attacks},
        "clean": share(wrong(net, clean, labels)),
        "robust": {side: share(part) for side, part in broken.items()},
        "package_breaks_ours_does_not": only("package", "ours"),
        "ours_breaks_package_does_not": only("ours", "package"),
        "outside_the_ball": rejected,
        "broken_by": counts,
        "seconds": {**seconds, "package / ours": seconds["package"] / seconds["ours"]},
        "environment": environment(device),
    }


if __name__ == "__main__":
    main()
