"""VAEs and denoisers as folders: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from unperturb.classifiers.weights import fit_state, read_weights
from unperturb.files import write_json, write_tensors
from unperturb.networks.unet import DenoisingUNet
from unperturb.networks.vae import VAE
from unperturb.saved_networks import CONFIG, WEIGHTS, Form, digest_of

__all__ = [
    "fingerprint",
    "load_denoiser",
    "load_vae",
    "read_card",
    "save_generative",
]

FORMS: dict[type[nn.Module], Form] = {
    VAE: Form("unperturb-vae", "VAE", "unperturb fit vae"),
    DenoisingUNet: Form("unperturb-denoiser", "denoiser", "unperturb fit denoiser"),
}

Network = TypeVar("Network", VAE, DenoisingUNet)


def fingerprint(network: VAE | DenoisingUNet) -> str:
    """SHA-256 over a network's settings and weights.

    Example:
        >>> fingerprint(VAE(width=4)) == fingerprint(VAE(width=4)) != fingerprint(VAE(width=5))
        True
    """
    # Batch counters, which no eval pass reads, do not count.
    state = {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    return digest_of(network.config(), state)


def save_generative(
    network: VAE | DenoisingUNet, folder: str | Path, *, card: Mapping[str, Any] | None = None
) -> Path:
    """Write a network so that ``load_vae`` or ``load_denoiser`` brings it back.

    Args:
        network: What is saved.
        folder: Where; made if it is not there.
        card: Free, JSON-able facts: how it was trained.

    Raises:
        OutputError: The folder cannot be written, or holds something else.
    """
    folder = Path(folder)
    form = FORMS[type(network)]
    form.check_free(folder)
    write_tensors(folder / WEIGHTS, network.state_dict(), {"format": "pt"})
    write_json(
        folder / CONFIG,
        {
            **form.head(),
            "network": network.config(),
            "fingerprint": fingerprint(network),
            "card": dict(card or {}),
        },
    )
    return folder


def load_vae(folder: str | Path, *, device: str = "cpu") -> VAE:
    """Read a VAE, in eval mode and with frozen weights.

    Raises:
        SpecError: There is no such folder, or it holds something else.
        ConfigError: It is of another version, or damaged.
        WeightsError: The weights are missing, damaged, or not those the configuration names.
    """
    return _load(VAE, Path(folder), device)


def load_denoiser(folder: str | Path, *, device: str = "cpu") -> DenoisingUNet:
    """Read a denoiser, in eval mode and with frozen weights; raises as ``load_vae``."""
    return _load(DenoisingUNet, Path(folder), device)


def read_card(folder: str | Path) -> dict[str, Any]:
    """The facts that a network was saved with; empty where there are none."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        return dict(config["card"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _load(kind: type[Network], folder: Path, device: str) -> Network:
    form = FORMS[kind]
    config = form.read(folder)
    state, _ = read_weights(folder / WEIGHTS)
    # Weights made under inference_mode could never take part in a backward pass.
    with torch.inference_mode(False):
        try:
            network = kind(**config["network"])
            named = str(config["fingerprint"])
        except (KeyError, TypeError) as error:
            raise form.damaged(folder, error) from error
        fit_state(network, state, source=repr(str(folder / WEIGHTS)), network=form.words)
        network.eval().requires_grad_(False)
    form.check_fingerprint(folder, fingerprint(network), named)
    return network.to(device)
