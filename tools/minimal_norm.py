"""Measure the minimal-norm attacks against Foolbox's with ten times the steps.

    python tools/minimal_norm.py --data DATA/cifar10 --out docs/results/records/minimal-norm.json \
        --classifier cifar-resnet20@WEIGHTS.safetensors --n 100 --cw-n 20

On the first ``n`` test images that the classifier answers rightly, in file order: how many each
attack breaks, the median and the mean of the distances, and the ratio of the medians to the
reference, over the images that both break. ``--cw-n`` is the number for C&W, whose reference takes
9 x 1,000 gradients an image. Rows of other classifiers that the record already holds are kept.
Nothing was chosen on test images: the defaults of the attacks were, on training images.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unperturb.attacks import Surface, make_attack
from unperturb.audit.plan import environment
from unperturb.classifiers import Classifier, load_classifier
from unperturb.data import load_images
from unperturb.files import write_json
from unperturb.randomness import Keys
from unperturb.threat import Threat, make_threat

SEED = 0
BATCH = 100


class Pair(NamedTuple):
    """An attack of ours and its reference."""

    ours: str
    theirs: str
    options: dict[str, Any]  # of the reference; everything else is Foolbox's default
    norm: str


PAIRS = (
    Pair("deepfool-50", "L2DeepFoolAttack", {"steps": 500}, "l2"),
    Pair("deepfool-50", "LinfDeepFoolAttack", {"steps": 500}, "linf"),
    Pair("ddn-100", "DDNAttack", {"steps": 1000}, "l2"),
    Pair("cw-l2-100", "L2CarliniWagnerAttack", {"steps": 1000}, "l2"),
)


class Images(NamedTuple):
    """Images that a classifier answers rightly."""

    images: Tensor
    labels: Tensor
    ids: list[str]


def right_images(net: Classifier, source: str, count: int) -> Images:
    """The first ``count`` test images that are answered rightly."""
    data = load_images(source, split="test", limit=4 * count)
    with torch.no_grad():
        right = (net(data.images()).argmax(1) == data.labels).nonzero().flatten()[:count]
    return Images(data.images(right), data.labels[right], [data.ids[i] for i in right.tolist()])


def by_foolbox(net: Classifier, some: Images, pair: Pair) -> tuple[Tensor, Tensor]:
    """Images and success of the reference."""
    import foolbox

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(SEED)
        model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, pair.theirs)(**pair.options)
        parts = [
            attack(model, images, labels, epsilons=None)
            for images, labels in zip(
                some.images.split(BATCH), some.labels.split(BATCH), strict=True
            )
        ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[2] for part in parts])


def by_us(net: Classifier, some: Images, pair: Pair, threat: Threat) -> tuple[Tensor, Tensor]:
    """Images and success of our attack."""
    attack, surface, keys = make_attack(pair.ours), Surface(net), Keys.of(SEED, some.ids)
    found = [
        attack.run(surface, some.images[rows], some.labels[rows], threat=threat, keys=keys[rows])
        for rows in (slice(i, i + BATCH) for i in range(0, len(some.labels), BATCH))
    ]
    return torch.cat([f.images for f in found]), torch.cat([f.success for f in found])


def compare(net: Classifier, some: Images, pair: Pair) -> dict[str, Any]:
    """One row of the record."""
    threat = make_threat(pair.norm, 0.5)  # its size is of no account to these attacks
    started = time.process_time()
    our_images, our_success = by_us(net, some, pair, threat)
    ours_took = time.process_time() - started
    started = time.process_time()
    their_images, their_success = by_foolbox(net, some, pair)
    theirs_took = time.process_time() - started
    both = our_success & their_success
    ours, theirs = (
        threat.distance(images, some.images)[both].double() for images in (our_images, their_images)
    )
    return {
        "attack": make_attack(pair.ours).to_dict(),
        "reference": {"name": pair.theirs, **pair.options},
        "norm": pair.norm,
        "n": len(some.labels),
        "success": int(our_success.sum()),
        "reference_success": int(their_success.sum()),
        "median": float(ours.quantile(0.5)),
        "reference_median": float(theirs.quantile(0.5)),
        "ratio": float(ours.quantile(0.5) / theirs.quantile(0.5)),
        "mean": float(ours.mean()),
        "reference_mean": float(theirs.mean()),
        "seconds": round(ours_took, 1),
        "reference_seconds": round(theirs_took, 1),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The record as a table."""
    line = "{:24} {:12} {:22} {:5} {:>4} {:>8} {:>8} {:>8} {:>6}\n"
    heads = ("classifier", "attack", "reference", "norm", "n", "success", "median", "ref.", "ratio")
    sys.stdout.write(line.format(*heads))
    for row in rows:
        names = (row["classifier"], row["attack"]["name"], row["reference"]["name"], row["norm"])
        success = f"{row['success']}/{row['reference_success']}"
        medians = (f"{row['median']:.4f}", f"{row['reference_median']:.4f}")
        sys.stdout.write(line.format(*names, row["n"], success, *medians, f"{row['ratio']:.3f}"))
    sys.stdout.flush()


def main() -> None:
    """Measure, write and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="images with labels")
    parser.add_argument("--classifier", required=True, help="a classifier's specification")
    parser.add_argument("--n", type=int, default=100, help="images")
    parser.add_argument("--cw-n", type=int, default=None, help="images for C&W; default as --n")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--out", type=Path, required=True, help="the record, a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = load_classifier(options.classifier)
    name = Path(options.classifier.rpartition("@")[2]).stem
    old = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = [row for row in old if row["fingerprint"] != net.fingerprint()]
    some = right_images(net, options.data, options.n)
    for pair in PAIRS:
        count = options.cw_n if pair.ours.startswith("cw") and options.cw_n else options.n
        fewer = Images(some.images[:count], some.labels[:count], some.ids[:count])
        row = compare(net, fewer, pair)
        rows.append({"classifier": name, "fingerprint": net.fingerprint(), **row})
        record = {
            "images": "the first n CIFAR-10 test images that the classifier answers rightly",
            "seed": SEED,
            "foolbox": version("foolbox"),
            "environment": environment(torch.device("cpu")),
            "rows": rows,
        }
        write_json(options.out, record)
        show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    main()
