"""The end of a training run: the folder with its card and its record."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unperturb.data import ImageSet
from unperturb.files import short_paths, write_json
from unperturb.generative.config import FitConfig
from unperturb.generative.folder import save_generative
from unperturb.generative.loop import RECORD
from unperturb.networks.unet import DenoisingUNet
from unperturb.networks.vae import VAE
from unperturb.training.checkpoint import CHECKPOINT, Epoch

__all__ = ["finish"]


def finish(
    network: VAE | DenoisingUNet,
    folder: Path,
    data: ImageSet,
    config: FitConfig,
    epochs: Sequence[Epoch],
    *,
    made_by: str,
    device: torch.device | str,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Save the network and its record, and drop the checkpoint, in this order.

    Args:
        network: What was trained.
        folder: Where.
        data: What it was trained on.
        config: The settings.
        epochs: Records of all epochs.
        made_by: The command.
        device: Where it was trained.
        facts: More of the card.
    """
    last = {
        name: value for name, value in epochs[-1].items() if name.startswith(("heldout_", "train_"))
    }
    card = {
        "trained_by": made_by,
        "config": config.to_dict(),
        "data": {
            "source": short_paths(data.source),
            "split": data.split,
            "fingerprint": data.fingerprint(),
        },
        "last": last,
        "environment": {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "device": str(device),
            "threads": torch.get_num_threads(),
        },
        **(facts or {}),
    }
    save_generative(network, folder, card=card)
    write_json(folder / RECORD, {**card, "network": network.config(), "epochs": list(epochs)})
    (folder / CHECKPOINT).unlink(missing_ok=True)
