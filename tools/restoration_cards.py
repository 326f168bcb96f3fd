"""Cards of the zoo's restoration networks, from their own records; `model_cards.py` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unperturb.restoration import FineTuneConfig, GANConfig, MAEConfig

__all__ = ["FORMAT", "restoration_card"]

FORMAT = "unperturb-restoration"

_KINDS = {
    "inpainting-gan": "An inpainting GAN (gated convolutions, a coarse and a refinement stage)",
    "masked-autoencoder": "A denoising masked autoencoder (ViT)",
}
_SIZES = ("eps",)
_OPTIONS = {"cls_weight": "lambda"}
# What the command line has no option of its own for.
_SET = ("betas", "gamma", "coarse_weight", "discriminator_lr", "discriminator_width",
        "attack_step_size", "attack_steps")  # fmt: skip
_ALWAYS = ("transform", "epochs", "seed")


def restoration_card(folder: Path, config: dict[str, Any]) -> str:
    """The card of one folder.

    Args:
        folder: The folder.
        config: What its ``config.json`` holds.
    """
    card, shape = config["card"], config["image_shape"]
    settings, where = card["config"], card["environment"]
    tuned = "cls_weight" in settings
    size = f"{shape[0]} channels, {shape[1]}x{shape[2]}"
    lines = [
        f"# {folder.name}",
        "",
        f"{_KINDS[config['network']]} that restores images ({size}, in [0, 1]) from "
        f"what the random transform {config['transform']['name']} leaves. Trained by this project; "
        "part of `unperturb`, Apache-2.0.",
        "",
        f"Use: `--defense 'atop?purifier=zoo/{folder.name}'`",
        "",
        "## Data",
        "",
        f"{card['data']['source']}, split {card['data']['split']}; the last "
        f"{settings['holdout']:,} images were never trained on. Fingerprint of the images: "
        f"`{card['data']['fingerprint'][:16]}`.",
        "",
        "## Recipe",
        "",
        "```sh",
        command(folder.name, card),
        "```",
        "",
        "Other thread counts or machines give other bits, so expect the figures below and not "
        f"these very weights. Machine kind: {where['device']}, {where['machine']}, torch "
        f"{where['torch']}. Records of the epochs: `training.json`.",
        "",
    ]
    if "weights" in card:
        lines += [
            f"The weights are stored as {card['weights']} (`tools/half.py`) and computed with as "
            "float32; the figures below are from before the rounding.",
            "",
        ]
    if config["network"] == "inpainting-gan" and config["discriminator"] is None:
        lines += [
            "The discriminator is not here, for room: to go on training, `--adversarial-weight 0`.",
            "",
        ]
    if tuned:
        known = card["classifier"]
        lines += [
            f"Fine-tuned for the classifier `{known['spec']}` (fingerprint "
            f"`{known['fingerprint'][:16]}`), which stayed as it was.",
            "",
        ]
    lines += ["## Held-out images, last epoch", "", "| | |", "|---|---|"]
    for name, value in sorted(card["heldout"].items()):
        if name in ("lr", "seconds"):
            continue
        shown = f"{value:.1%}" if name in ("clean", "attacked") else f"{value:.4f}"
        lines.append(f"| {name.replace('_', ' ')} | {shown} |")
    lines += ["", _about(tuned), "", "## What it is for", "", _purpose(tuned), ""]
    return "\n".join(lines)


def _about(tuned: bool) -> str:
    words = (
        "Errors are in pixel units: *masked* on dropped pixels, *visible* on kept ones; *mean* and "
        "*bilinear* are fillings that learn nothing, on the same dropped pixels."
    )
    if tuned:
        words += (
            " *Clean* and *attacked*: accuracy of the classifier on restored images, and on "
            "restored FGSM examples made on the classifier alone, which is no figure of robustness."
        )
    return words


def _purpose(tuned: bool) -> str:
    if tuned:
        return (
            "The purifier of AToP around that classifier. What an attacker who knows it leaves: "
            "`docs/results/atop.md`."
        )
    return (
        "The start of fine-tuning (`unperturb fit atop --start`), and the purifier of the rows "
        "without AToP. See `docs/results/atop.md`."
    )


def command(name: str, card: dict[str, Any]) -> str:
    """The command that trains with these settings: what differs from the defaults."""
    settings, kind = card["config"], str(card["trained_by"]).rsplit(" ", 1)[-1]
    default = {"gan": GANConfig, "mae": MAEConfig, "atop": FineTuneConfig}[kind]().to_dict()
    words = []
    for key, value in settings.items():
        same = value == default.get(key)
        if (same and key not in _ALWAYS) or value is None:
            continue
        option = _OPTIONS.get(key, key).replace("_", "-")
        text = _text(key, value)
        words.append(f"--set {key}={text}" if key in _SET else f"--{option} {text}")
    start = (card.get("start") or {}).get("folder") if isinstance(card.get("start"), dict) else None
    begin = [f"--start {_in_zoo(start)}"] if start else []
    if kind == "atop":
        begin.append(f"--classifier {_in_zoo(card['classifier']['spec'])}")
    data = card["data"]["source"].split(";")[0].strip()
    out = f"runs/{name}" if "weights" in card else name
    return f"unperturb fit {kind} {' '.join([*begin, *words])} --data {data} --out {out}"


def _in_zoo(name: str) -> str:
    """A record names a folder by its last part; in the zoo a user finds it under ``zoo/``."""
    zoo = Path(__file__).resolve().parents[1] / "zoo"
    return f"zoo/{name}" if (zoo / name).is_dir() else name


def _text(key: str, value: Any) -> str:
    if key in _SIZES:
        return f"{value * 255:g}/255"
    if isinstance(value, list):
        return ",".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
