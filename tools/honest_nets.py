"""Do five honest networks raise no red flag? Audits them with the suite ``standard``.

    unperturb train --arch cifar-resnet20 --data DATA/cifar10 --objective standard --epochs 8 \\
        --lr 0.2 --schedule one-cycle --precision bfloat16 --seed 1 --out runs/seed1
    python tools/honest_nets.py --cifar10 DATA/cifar10 --weights FOLDER --second runs/seed1 \\
        --out runs/honest

Networks: two standard ResNet-20s of two seeds and one that is adversarially trained (the second
standard one is trained by the first command, the others are of ``zoo/``), and two published robust
ones. Each audit is resumable; the record is ``docs/results/records/honest-nets.json``, that of the
training ``training-seed1.json`` beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from unperturb.audit import audit
from unperturb.classifiers import load_classifier
from unperturb.data import load_images
from unperturb.errors import UnperturbError
from unperturb.files import write_json
from unperturb.threat import Linf

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "results" / "records" / "honest-nets.json"
ZOO = ("cifar10-resnet20-standard", "cifar10-resnet20-pgd")
PUBLISHED = {
    "cifar10-robust-resnet-4b": "cifar-robust-resnet-4b",
    "cifar10-robust-cnn-wide": "cifar-robust-cnn-wide",
}
EPS = 8 / 255


def networks(weights: Path, second: str) -> dict[str, str]:
    """Name to specification of every network."""
    found = {name: str(ROOT / "zoo" / name) for name in ZOO}
    found["cifar10-resnet20-standard-seed1"] = second
    return found | {n: f"{arch}@{weights / n}.safetensors" for n, arch in PUBLISHED.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--second", required=True, help="standard training with seed 1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load_images(args.cifar10, split="test", limit=args.n)
    record: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    for name, spec in networks(args.weights, args.second).items():
        if args.only and name not in args.only:
            continue
        found = audit(
            load_classifier(spec), data.images(), data.labels, ids=data.ids, threat=Linf(EPS),
            attacks="standard", attackers=("adaptive",), batch_size=125,
            out=args.out / name, name=name, show=True,
        )  # fmt: skip
        summary = found.summary
        environment = summary["environment"]
        record[name] = {
            "fingerprint": summary["target"].get("fingerprint"),
            "clean": summary["target"]["clean"],
            "worst_case": summary["target"]["worst_case"],
            "flags": summary["flags"],
            "digest": found.digest,
        }
        found.save_report()
        flags = [flag["id"] for flag in summary["flags"]]
        print(f"{name}: clean {found.clean_accuracy:.1%}, worst {found.worst_case_accuracy:.1%}",
              f"flags: {', '.join(flags) or 'none'}")  # fmt: skip
    if not args.only:
        whole = {
            "n": len(data), "images": f"the first {len(data):,} test images of CIFAR-10",
            "threat": "Linf 8/255", "suite": "standard", "seed": 0, "networks": record,
            "environment": environment,
        }  # fmt: skip
        write_json(RECORD, whole)


if __name__ == "__main__":
    try:
        main()
    except UnperturbError as error:
        raise SystemExit(f"error: {error}") from None
