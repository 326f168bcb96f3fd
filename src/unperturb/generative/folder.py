"""VAEs and denoisers as folders: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from unperturb.classifiers.weights import fit_state, nearest_sibling, read_weights
from unperturb.errors import ConfigError, OutputError, SpecError, WeightsError
from unperturb.files import write_json, write_tensors
from unperturb.networks.unet import DenoisingUNet
from unperturb.networks.vae import VAE

__all__ = [
    "fingerprint",
    "load_denoiser",
    "load_vae",
    "read_card",
    "save_generative",
]

SCHEMA_VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_FORMATS: dict[type[nn.Module], tuple[str, str, str]] = {
    VAE: ("unperturb-vae", "VAE", "unperturb fit vae"),
    DenoisingUNet: ("unperturb-denoiser", "denoiser", "unperturb fit denoiser"),
}

Network = TypeVar("Network", VAE, DenoisingUNet)


def fingerprint(network: VAE | DenoisingUNet) -> str:
    """SHA-256 over a network's settings and weights.

    Example:
        >>> fingerprint(VAE(width=4)) == fingerprint(VAE(width=4)) != fingerprint(VAE(width=5))
        True
    """
    digest = hashlib.sha256(json.dumps(network.config(), sort_keys=True).encode())
    for name, value in sorted(network.state_dict().items()):
        # Batch counters, which no eval pass reads, do not count.
        if not name.endswith("num_batches_tracked"):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    form, words, _ = _FORMATS[type(network)]
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file", expected="a folder", fix="choose another one")
    if (folder / _CONFIG).exists() and _format(folder) != form:
        raise OutputError(
            f"{folder} holds a {_CONFIG} of something else",
            expected=f"a new folder, or one that holds a {words}",
            fix="choose another folder",
        )
    write_tensors(folder / _WEIGHTS, network.state_dict(), {"format": "pt"})
    write_json(
        folder / _CONFIG,
        {
            "format": form,
            "schema_version": SCHEMA_VERSION,
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
        config = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
        return dict(config["card"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _format(folder: Path) -> str | None:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("format") if isinstance(config, dict) else None


def _load(kind: type[Network], folder: Path, device: str) -> Network:
    form, words, maker = _FORMATS[kind]
    path = folder / _CONFIG
    if not path.is_file():
        raise SpecError(
            f"There is no {words} in {str(folder)!r}",
            expected=f"a folder with {_CONFIG} and {_WEIGHTS}",
            fix=nearest_sibling(folder) if not folder.is_dir() else f"{maker} makes one",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found, version = config.get("format"), config.get("schema_version")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", expected="a JSON object") from error
    if found != form:
        raise SpecError(
            f"{path} has format {found!r}",
            expected=f"{form!r}, a saved {words}",
            fix=f"{maker} makes one",
        )
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema version {version!r}",
            expected=f"schema version {SCHEMA_VERSION}",
            fix="read it with the version of unperturb that wrote it",
        )
    state, _ = read_weights(folder / _WEIGHTS)
    # Weights made under inference_mode could never take part in a backward pass.
    with torch.inference_mode(False):
        try:
            network = kind(**config["network"])
            named = str(config["fingerprint"])
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged: {error}", expected=f"{_CONFIG} of a saved {words}"
            ) from error
        fit_state(network, state, source=repr(str(folder / _WEIGHTS)), network=words)
        network.eval().requires_grad_(False)
    if fingerprint(network) != named:
        raise WeightsError(
            f"The {words} in {str(folder)!r} has the fingerprint {fingerprint(network)[:12]}",
            expected=f"{named[:12]}, as {_CONFIG} says",
            fix="the folder was changed or saved only in part: fit or fetch it again",
        )
    return network.to(device)
