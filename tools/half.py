"""Put a restoration network into the zoo with weights of half the size.

python tools/half.py RUN zoo/NAME

The weights are rounded to float16 (11 bits of mantissa) and computed with as float32, as ever: what
is audited is what was rounded. Checkpoints and sample panels stay behind.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unperturb.classifiers.weights import file_sha256
from unperturb.files import write_json, write_tensors
from unperturb.restoration import load_restoration

FILES = {"model.safetensors": (), "discriminator.safetensors": ("discriminator",)}


def halve(source: Path, folder: Path) -> None:
    """Write the folder anew, with rounded weights."""
    load_restoration(source)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, keys in FILES.items():
        if not (source / name).exists():
            continue
        state = {
            key: value.half() if value.is_floating_point() else value
            for key, value in load_file(source / name).items()
        }
        if not all(bool(torch.isfinite(value).all()) for value in state.values()):
            sys.exit(f"{source / name}: a weight is too large for float16")
        write_tensors(folder / name, state, {"format": "pt"})
        place = config
        for key in keys:
            place = place[key]
        place["weights_sha256"] = file_sha256(folder / name)
    config["card"]["weights"] = "float16"
    write_json(folder / "config.json", config)
    shutil.copy(source / "training.json", folder / "training.json")
    load_restoration(folder)


if __name__ == "__main__":
    halve(Path(sys.argv[1]), Path(sys.argv[2]))
