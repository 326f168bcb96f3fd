"""Errors of restoration networks on test images, beside filling without learning.

python tools/restoration.py --data cifar10/ [--dataset cifar10] [--models-dir runs/models]

Measures every network of the tables' rows on every transform that a row puts it behind: at the
scale ``cpu``, from the zoo or from what ``unperturb reproduce`` has trained in ``--models-dir``.
Writes ``docs/results/records/atop/restoration.json``, where rows of other data sets stay. A
fine-tuned network is made to be read by a classifier, and need not restore as well as the one it
was fine-tuned from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from unperturb.data import load_images
from unperturb.files import write_json
from unperturb.purifiers import Restoration
from unperturb.randomness import Keys
from unperturb.recipes import load_recipe, recipe_names
from unperturb.recipes.schema import Network
from unperturb.restoration import load_restoration, restoration_errors

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs/results/records/atop/restoration.json"


def pairs(dataset: str) -> list[tuple[Network, str | None]]:
    """Networks of a data set with the transform that a row names; None: that of its training."""
    found = {}
    for name in recipe_names():
        if not name.startswith("atop/"):
            continue
        recipe = load_recipe(name, scale="cpu")
        for row in recipe.rows.values():
            if row.defense is None or not recipe.ours(row):
                continue
            options = recipe.defenses[row.defense][1]
            network = recipe.networks[options["purifier"]["network"]]
            if network.dataset == dataset:
                found[network.name, options.get("transform")] = network
    return [(network, transform) for (_, transform), network in found.items()]


def folder_of(network: Network, models_dir: Path) -> Path:
    """Where a network is.

    Raises:
        SystemExit: It is not trained yet.
    """
    places = [ROOT / "zoo" / network.zoo] if network.zoo else []
    places.append(models_dir / "cpu" / "networks" / network.name)
    for place in places:
        if (place / "model.safetensors").is_file():
            return place
    told = " or ".join(str(place) for place in places)
    raise SystemExit(f"the network {network.name} is not in {told}: train it first")


def main() -> None:
    """Measure every network on the transforms of its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dataset", default="cifar10", help="its name in the recipes")
    parser.add_argument("--models-dir", type=Path, default=ROOT / "runs/models")
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
    seen = {"name": Path(options.data).name, "split": images.split,
            "fingerprint": images.fingerprint()}  # fmt: skip
    rows = []
    for network, transform in pairs(options.dataset):
        folder = folder_of(network, options.models_dir)
        net = load_restoration(folder)
        drawn = Restoration.from_folder(folder, transform=transform).transform
        keys = Keys.of(options.seed, images.ids, domain="restoration")
        found = restoration_errors(net.network, images.images(), drawn, keys)
        rows.append(
            {
                "name": network.zoo or network.name,
                "network": net.name,
                "dataset": options.dataset,
                "data": seen,
                "transform": drawn.to_dict(),
                "trained_on": net.transform.to_dict(),
                "trained_by": net.card.get("trained_by"),
                "seed": options.seed,
                "n": len(images),
                "errors": found,
            }
        )
        print(f"{network.name}, {drawn.name}: {found['masked_l1']:.4f}, mean "
              f"{found['mean_l1']:.4f}, lines {found['bilinear_l1']:.4f}")  # fmt: skip
    record = {
        "environment": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "rows": [*others(options.out, options.dataset), *rows],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, record)


def others(record: Path, dataset: str) -> list[dict[str, Any]]:
    """Rows of other data sets, which stay."""
    if not record.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(record.read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if row["dataset"] != dataset]


if __name__ == "__main__":
    main()
