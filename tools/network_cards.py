"""Model cards of the zoo's VAEs and denoisers; ``tools/model_cards.py`` writes all cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unperturb.classifiers import load_classifier
from unperturb.generative import DenoiserConfig, VAEConfig
from unperturb.networks.unet import DenoisingUNet
from unperturb.networks.vae import VAE

FORMATS = ("unperturb-vae", "unperturb-denoiser")

_PLAIN_OPTIONS = ("epochs", "batch_size", "lr", "augment", "precision", "holdout", "seed")
_OWN: dict[str, tuple[Any, Any, tuple[str, ...], tuple[str, ...]]] = {
    "unperturb-vae": (VAEConfig(), VAE(), ("width", "downsample", "latent_channels"), ("beta",)),
    "unperturb-denoiser": (
        DenoiserConfig(), DenoisingUNet(), ("width", "depth"),
        ("guide", "attack_steps", "attack_step_size"),
    ),
}  # fmt: skip
_ABOUT = {
    "unperturb-vae": "The purifier of ALU: its code is optimized to reconstruct an image, and what "
    "it has never seen, such as an adversarial perturbation, it should not draw. How far that goes "
    "stands in `docs/results/alu.md`.",
    "unperturb-denoiser": "The purifier of ALU's toy experiment (Table 1): it has seen the noise "
    "of one attack on one network. An attacker who knows it goes around it. See "
    "`docs/results/alu.md`.",
}


def zoo_name(fingerprint: str, zoo: Path) -> str:
    """Folder of the zoo's network with a fingerprint, or what is to be put there."""
    for path in sorted(zoo.glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("fingerprint") == fingerprint:
            return f"zoo/{path.parent.name}"
    return f"NETWORK-{fingerprint[:12]}"


def command(config: dict[str, Any], data: str, folder: Path) -> str:
    """The command that trains with this configuration: what differs from the defaults."""
    settings, network, shape, own = _OWN[config["format"]]
    default, card = settings.to_dict(), config["card"]
    words = []
    for name in shape:
        if config["network"][name] != getattr(network, name):
            words.append(f"--{name.replace('_', '-')} {config['network'][name]}")
    for name in (*own, *_PLAIN_OPTIONS):
        value = card["config"][name]
        if value != default[name] or name == "epochs":
            shown = f"{value:g}" if isinstance(value, float) else value
            words.append(f"--{name.replace('_', '-')} {shown}")
    if card["config"]["milestones"] != default["milestones"]:
        words.append(f"--milestones {','.join(f'{m:g}' for m in card['config']['milestones'])}")
    if card["config"].get("eps", 8 / 255) != 8 / 255:
        words.append(f"--eps {card['config']['eps'] * 255:g}/255")
    served = card.get("classifier")
    told = f"--classifier {classifier_name(served, folder.parent)} " if served else ""
    return f"{card['trained_by']} {told}--data {data} {' '.join(words)} --out zoo/{folder.name}"


def classifier_name(known: dict[str, Any], zoo: Path) -> str:
    """Folder of the zoo's classifier that a denoiser was trained for, or what goes there."""
    for path in sorted(zoo.glob("*/config.json")):
        arch = json.loads(path.read_text(encoding="utf-8")).get("arch")
        if arch != known["arch"]:
            continue
        if load_classifier(str(path.parent)).fingerprint() == known["fingerprint"]:
            return f"zoo/{path.parent.name}"
    return f"CLASSIFIER-{known['fingerprint'][:12]}"


def network_card(folder: Path, data: str, words: str) -> str:
    """The card of a VAE or a denoiser.

    Args:
        folder: Its folder.
        data: The ``--data`` option.
        words: The images in words.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    card = config["card"]
    kind = config["format"].removeprefix("unperturb-")
    shape = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in
                      sorted(config["network"].items()))  # fmt: skip
    title = {"vae": "A VAE", "denoiser": "A denoising U-Net"}[kind]
    lines = [
        f"# {folder.name}",
        "",
        f"{title} ({shape}). Trained by this project; part of `unperturb`, Apache-2.0.",
        "",
        f"Use: `unperturb fit alu --{kind} zoo/{folder.name} --classifier ...`",
        "",
        "## Data",
        "",
        f"{words} Fingerprint of the images: `{card['data']['fingerprint'][:16]}`.",
        "",
        "## Recipe",
        "",
        "```sh",
        command(config, data, folder),
        "```",
        "",
        "Other thread counts or machines give other bits. Machine kind: "
        f"{card['environment']['device']}, {card['environment']['machine']}, torch "
        f"{card['environment']['torch']}. Records of the epochs: `training.json`.",
        "",
        "## Figures of the last epoch",
        "",
        "| | |",
        "|---|---|",
    ]
    for key, value in sorted(card["last"].items()):
        shown = f"{value:.2f} dB" if key.endswith("psnr") else f"{value:.1%}"
        shown = f"{value:.3g}" if key.endswith("mse") else shown
        lines.append(f"| {key.replace('_', ' ')} | {shown} |")
    return "\n".join([*lines, "", "## What it is for", "", _ABOUT[config["format"]], ""])
