"""Put a restoration network into the zoo with weights of half the size.

python tools/half.py RUN zoo/NAME [--without-discriminator]

The weights are rounded to float16 (11 bits of mantissa) and computed with as float32, as ever: what
is audited is what was rounded. Checkpoints and sample panels stay behind, and so may a GAN's
discriminator, which only further training reads.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unperturb.classifiers.weights import file_sha256
from unperturb.errors import UnperturbError
from unperturb.files import write_json, write_tensors
from unperturb.restoration import load_restoration


def halve(source: Path, folder: Path, *, discriminator: bool = True) -> None:
    """Write the folder anew, with rounded weights."""
    if folder.exists():
        raise SystemExit(f"{folder} is there already")
    load_restoration(source)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    if not discriminator:
        config["discriminator"] = None
    parts = {"model.safetensors": config}
    if config["discriminator"] is not None:
        parts["discriminator.safetensors"] = config["discriminator"]
    for name, told in parts.items():
        state = {
            key: value.half() if value.is_floating_point() else value
            for key, value in load_file(source / name).items()
        }
        if not all(bool(torch.isfinite(value).all()) for value in state.values()):
            raise SystemExit(f"{source / name}: a weight is too large for float16")
        write_tensors(folder / name, state, {"format": "pt"})
        told["weights_sha256"] = file_sha256(folder / name)
    config["card"]["weights"] = "float16"
    write_json(folder / "config.json", config)
    shutil.copy(source / "training.json", folder / "training.json")
    load_restoration(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="A restoration network with weights of half the size"
    )
    parser.add_argument("source", type=Path, help="folder of a finished run")
    parser.add_argument("folder", type=Path, help="folder to make, in the zoo")
    parser.add_argument(
        "--without-discriminator", action="store_true", help="leave out what judged its images"
    )
    args = parser.parse_args()
    try:
        halve(args.source, args.folder, discriminator=not args.without_discriminator)
    except UnperturbError as error:
        raise SystemExit(f"error: {error}") from None
