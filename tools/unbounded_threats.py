"""StAdv and FWA against classifiers, each bound checked by another implementation.

    python tools/unbounded_threats.py --classifier zoo/cifar10-resnet20-standard \
        --data DATA/cifar10 --n 200 --threads 1 --out RECORD.json

For every attacked image: StAdv's flow is applied a second time by SciPy's interpolation; FWA's
image is compared with the clean one by exact optimal transport (a linear program over all pairs
of pixels, ``--exact`` images of those that were perturbed). Both must stay in their bound.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage, optimize, sparse

from unperturb.attacks import Surface, make_attack
from unperturb.attacks.base import Attacked
from unperturb.audit.plan import environment
from unperturb.audit.statistics import wilson
from unperturb.classifiers import load_classifier
from unperturb.data import ImageSet, load_images
from unperturb.files import write_json
from unperturb.randomness import Keys
from unperturb.threat import Linf

SEED = 0
BOUNDS = {"stadv": 0.05, "fwa": 0.005}


def bent(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """One image (C, H, W) bent along a flow (2, H, W), by interpolation on numbered pixels."""
    _, height, width = image.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    places = [rows + flow[1] * height / 2, columns + flow[0] * width / 2]
    return np.stack([ndimage.map_coordinates(c, places, order=1, mode="nearest") for c in image])


def transport(one: np.ndarray, other: np.ndarray) -> float:
    """Exact transport distance of two heaps (H, W), mass times Euclidean distance in pixels.

    The price is a metric, so mass that both heaps have at a pixel stays there in some optimal
    plan; only what is too much is sent to where too little is.
    """
    change = other - one
    sources, sinks = np.argwhere(change < 0), np.argwhere(change > 0)
    if not len(sources) or not len(sinks):
        return 0.0
    supply, demand = -change[change < 0], change[change > 0]
    # Rounded to float32 the masses differ by some 1e-8 of what is moved.
    demand = demand * (supply.sum() / demand.sum())
    scale = supply.sum()
    price = np.linalg.norm(sources[:, None] - sinks[None], axis=2)
    constraints = sparse.vstack(
        [
            sparse.kron(sparse.identity(len(sources)), np.ones((1, len(sinks)))),
            sparse.kron(np.ones((1, len(sources))), sparse.identity(len(sinks))),
        ]
    )
    found = optimize.linprog(
        price.ravel(),
        A_eq=constraints,
        b_eq=np.concatenate([supply, demand]) / scale,
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(found.message)
    return float(found.fun * scale)


def check_stadv(clean: np.ndarray, found: Attacked) -> dict[str, Any]:
    """Every image bent again, and the flow's greatest component."""
    assert found.detail is not None
    flows = found.detail.double().numpy()
    again = np.stack([bent(image, flow) for image, flow in zip(clean, flows, strict=True)])
    return {
        "by": "scipy.ndimage.map_coordinates",
        "images": len(clean),
        "largest_flow": float(np.abs(flows).max()),
        "largest_pixel_difference": float(np.abs(again - found.images.double().numpy()).max()),
    }


def check_fwa(clean: np.ndarray, found: Attacked, count: int) -> dict[str, Any]:
    """Exact distances of the first perturbed images, beside what the attack says."""
    assert found.measure is not None
    images = found.images.double().numpy()
    rows = [i for i in range(len(clean)) if bool((clean[i] != images[i]).any())][:count]
    exact, mass = [], []
    for i in rows:
        whole = clean[i].sum()
        pairs = zip(clean[i], images[i], strict=True)
        exact.append(sum(transport(a, b) for a, b in pairs) / whole)
        mass.append(abs(images[i].sum() / whole - 1.0))
    claimed = found.measure[rows].double().numpy()
    return {
        "by": "exact optimal transport over all pairs of pixels, scipy.optimize.linprog (HiGHS)",
        "images": len(rows),
        "largest_distance": max(exact),
        "largest_excess_over_measure": float(np.max(np.array(exact) - claimed)),
        "mean_share_of_measure": float(np.mean(np.array(exact) / claimed)),
        "largest_relative_change_of_mass": max(mass),
    }


def shown(classifier: str) -> str:
    """A classifier's specification without the folders of this machine."""
    arch, at, path = classifier.rpartition("@")
    return f"{arch}{at}{Path(path).name}" if Path(path).is_absolute() else classifier


def measure(classifier: str, data: ImageSet, spec: str, exact: int, batch: int) -> dict[str, Any]:
    """One attack on one classifier."""
    net, images = load_classifier(classifier), data.images()
    with torch.no_grad():
        answers = torch.cat([net(part).argmax(1) for part in images.split(batch)])
    right = int((answers == data.labels).sum())
    attack, parts = make_attack(spec), []
    start = time.perf_counter(), time.process_time()
    for first in range(0, len(data), batch):
        rows = slice(first, first + batch)
        # The threat model plays no part in either attack.
        parts.append(
            attack.run(
                Surface(net), images[rows], data.labels[rows], threat=Linf(8 / 255),
                keys=Keys.of(SEED, data.ids[rows]), stop="first-success",
            )
        )  # fmt: skip
    seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    found = parts[0]._replace(
        images=torch.cat([p.images for p in parts]),
        measure=torch.cat([p.measure for p in parts if p.measure is not None]),
        detail=torch.cat([p.detail for p in parts if p.detail is not None]),
    )
    assert found.measure is not None
    survivors, n = sum(int((~p.success).sum()) for p in parts), len(data)
    clean = images.double().numpy()
    family = spec.partition("-")[0]
    return {
        "classifier": shown(classifier),
        "fingerprint": net.fingerprint(),
        "attack": attack.to_dict(),
        "n": n,
        "clean_accuracy": right / n,
        "accuracy": survivors / n,
        "interval": list(wilson(survivors, n)),
        "bound": BOUNDS[family],
        "largest_measure": float(found.measure.max()),
        "check": check_stadv(clean, found) if family == "stadv" else check_fwa(clean, found, exact),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "mean_queries": float(torch.cat([p.queries for p in parts]).float().mean()),
    }


def main() -> None:
    """Measure, write the record, and show a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--classifier", action="append", required=True, help="may be repeated")
    parser.add_argument("--data", required=True)
    parser.add_argument("--n", type=int, default=200, help="test images, from the first")
    parser.add_argument("--exact", type=int, default=50, help="FWA images solved exactly")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_images(options.data, split="test", limit=options.n)
    rows = [
        measure(classifier, data, spec, options.exact, options.batch_size)
        for classifier in options.classifier
        for spec in BOUNDS
    ]
    record = {
        "images": f"the first {len(data)} test images",
        "rule": "first-success",
        "seed": SEED,
        "batch_size": options.batch_size,
        "rows": rows,
        "environment": environment(torch.device("cpu")),
    }
    write_json(options.out, record)
    lines = ["| classifier | attack | clean | attacked | 95 % | largest measure | bound |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"| {row['classifier']} | {row['attack']['name']} | {row['clean_accuracy']:.1%} | "
            f"{row['accuracy']:.1%} | {low:.1%} to {high:.1%} | {row['largest_measure']:.7f} | "
            f"{row['bound']} |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
