"""Errors of restoration networks on test images, beside filling without learning.

python tools/restoration.py --data cifar10/ zoo/cifar10-gan zoo/cifar10-gan-atop-rt2 ...

Writes ``docs/results/records/atop/restoration.json``. A fine-tuned network is made to be read by a
classifier, and need not restore as well as the one it was fine-tuned from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from unperturb.data import load_images
from unperturb.files import write_json
from unperturb.randomness import Keys
from unperturb.restoration import load_restoration, restoration_errors

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs/results/records/atop/restoration.json"


def main() -> None:
    """Measure every network on the transform that it was trained on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", help="the test split by default")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--image-size", type=int, help="side that images are brought to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    side = options.image_size
    images = load_images(
        options.data,
        split=options.split,
        limit=options.n,
        image_size=None if side is None else (side, side),
    )
    rows = []
    for folder in options.folders:
        net = load_restoration(folder)
        keys = Keys.of(options.seed, images.ids, domain="restoration")
        found = restoration_errors(net.network, images.images(), net.transform, keys)
        rows.append(
            {
                "name": folder.name,
                "network": net.name,
                "transform": net.transform.to_dict(),
                "trained_by": net.card.get("trained_by"),
                "n": len(images),
                "errors": found,
            }
        )
        print(f"{folder.name}: {found['masked_l1']:.4f}, mean {found['mean_l1']:.4f}, "
              f"lines {found['bilinear_l1']:.4f}")  # fmt: skip
    record = {
        "data": {"name": Path(options.data).name, "split": images.split,
                 "fingerprint": images.fingerprint()},
        "seed": options.seed,
        "environment": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "rows": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, record)


if __name__ == "__main__":
    main()
