"""Write ``README.md`` beside every network of the zoo, from its own records.

python tools/model_cards.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from network_cards import FORMATS, network_card, zoo_name
from restoration_cards import FORMAT, restoration_card
from unperturb.files import write_text
from unperturb.training import TrainConfig
from unperturb.training.objectives import OVERFITTING

ROOT = Path(__file__).resolve().parent.parent

_SIZES = ("eps", "monitor_eps", "flow")
# What the command line has no option of its own for.
_SET = ("gairat_lambda", "gairat_burn_in", "fat_tau", "cw_weight", "cw_rate", "flow", "momentum",
        "gamma", "monitor_eps")  # fmt: skip
_ALWAYS = ("objective", "epochs", "lr", "precision", "schedule", "seed")
_UNUSED = {
    "standard": ("eps", "attack_steps", "attack_step_size", "beta"),
    "cw": ("eps", "attack_step_size", "beta"),
    "stadv": ("eps", "beta"),
}

_ABOUT = {
    "unified": "The classifier of unified ALU: it reads what the VAE makes of an image, N = 0 on "
    "its own. Trained on clean images; behind the VAE and without the defense it has no "
    "adversarial robustness. See `docs/results/alu.md`.",
    "asymmetric": "The classifier of asymmetric ALU: it reads an inner layer of the VAE's decoder. "
    "Trained on clean images. See `docs/results/alu.md`.",
    "standard": "A standard network: what defenses are put around, and the start of adversarial "
    "training. It has no adversarial robustness.",
    "overfitting": "The kind of network that TPAP is proposed for. It is **not robust**: under PGD "
    "it answers almost nothing correctly, and an attacker who knows TPAP brings the defended "
    "network there too. See `docs/results/tpap.md` and `docs/results/first-audit.md`.",
    "outside": "Trained on FGSM examples and **not** in the state that TPAP needs, as section 4.3 "
    "of the paper says of its mixture of sizes: kept for that negative result. It is not robust. "
    "See `docs/results/tpap.md`.",
    "robust": "A small adversarially trained network: the yardstick of what training alone gives "
    "at this size. See `docs/results/attacks.md` and `docs/results/tpap.md`.",
}


def _text(name: str, value: Any) -> str:
    if name == "mixture":
        return ",".join(f"{part * 255:g}/255" if part else "0" for part in value)
    if name in _SIZES and name != "flow":
        return f"{value * 255:g}/255"
    if isinstance(value, list):
        return ",".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_words(source: str, holdout: int) -> tuple[str, str]:
    """The ``--data`` options that a card's source came from, and the images in words."""
    name, *rest = (part.strip() for part in source.split(";"))
    shuffled = any("shuffle" in part or "random order" in part for part in rest)
    title = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet"}
    count = next((int(n) for part in rest for n in re.findall(r"(\d+) rows", part)), 0)
    order = "in a random order of the seed" if shuffled else "in the order of the files"
    part = "" if name == "cifar10" else "Part of the "
    words = (
        f"{part}{title.get(name, name)} training set; the last {holdout:,} of its {count:,} images "
        f"({order}) were never trained on."
    )
    return name + (" --shuffle" if shuffled else ""), words


def command(config: dict[str, Any], start: str, out: str, data: str) -> str:
    """The command that trains with this configuration: what differs from the defaults."""
    default = TrainConfig().to_dict()
    unused = _UNUSED.get(config["objective"], ())
    words = []
    for name in default:
        value = config.get(name, default[name])
        if name in unused or (name == "milestones" and config["schedule"] != "multistep"):
            continue
        if name == "eps" and config.get("mixture"):
            continue
        if value == default[name] and name not in _ALWAYS:
            continue
        option = f"--set {name}=" if name in _SET else f"--{name.replace('_', '-')} "
        words.append(option.strip() if value is True else option + _text(name, value))
    return f"unperturb train {start} --data {data} {' '.join(words)} --out {out}"


def stages(card: dict[str, Any]) -> list[dict[str, Any]]:
    """Configurations from the first stage to the last."""
    found: list[dict[str, Any]] = []
    part: dict[str, Any] | None = card
    while part:
        found.insert(0, part["config"])
        part = part.get("start")
    return found


def first(config: dict[str, Any], zoo: Path) -> str:
    """What the first stage begins with: a network, behind a VAE where it sees through one."""
    through = config["card"].get("through")
    if through is None:
        return f"--arch {config['arch']}"
    level = "" if through["level"] is None else f" --level {through['level']}"
    name = zoo_name(through["vae"], zoo)
    return f"--arch {config['arch_options']['net']} --through {name}{level}"


def card_text(folder: Path) -> str:
    """The model card of one folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("format") == FORMAT:
        return restoration_card(folder, config)
    card = config["card"]
    monitor = card["monitor"]
    data, words = data_words(card["data"]["source"], card["config"]["holdout"])
    lines = [
        f"# {folder.name}",
        "",
        f"`{config['arch']}`, {config['num_classes']} classes, images in [0, 1] without "
        "normalization. Trained by this project; part of `unperturb`, Apache-2.0.",
        "",
        f"Use: `--classifier zoo/{folder.name}`",
        "",
        "## Data",
        "",
        f"{words} Fingerprint of the images: `{card['data']['fingerprint'][:16]}`.",
        "",
        "## Recipe",
        "",
        "Stages one after the other, each from the weights of the one before:",
        "",
        "```sh",
    ]
    every = stages(card)
    for number, settings in enumerate(every, 1):
        start = first(config, folder.parent) if number == 1 else f"--start stage{number - 1}"
        lines.append(command(settings, start, f"stage{number}", data))
    lines += [
        "```",
        "",
        "These commands restate the settings of the stages; other thread counts or machines give "
        "other bits, so expect the figures below and not these very weights.",
        "",
        f"Kept: epoch {card['kept_epoch']} of the last stage. Machine kind: "
        f"{card['environment']['device']}, {card['environment']['machine']}, "
        f"torch {card['environment']['torch']}. Records of the epochs: "
        "`training.json`.",
        "",
        "## Monitor at the kept epoch",
        "",
        "| | accuracy |",
        "|---|---|",
    ]
    for key, value in monitor.items():
        if key.startswith(("train_", "heldout_")) and key != "train_eps":
            lines.append(f"| {key.replace('_', ' ')} | {value:.1%} |")
    objective = card["config"]["objective"]
    kind = "overfitting" if objective in OVERFITTING else "robust"
    kind = "standard" if objective == "standard" else kind
    if through := card.get("through"):
        kind = "unified" if through["level"] is None else "asymmetric"
    elif kind != "standard":
        size = f"{monitor['other_eps'] * 255:.0f}/255"
        known = f"{monitor['train_eps'] * 255:g}/255"
        lines += ["", f"{monitor['images']} training and as many held-out images; FGSM at {known}, "
                  f"PGD-20 at {size}."]  # fmt: skip
        if monitor.get("other_images"):
            lines[-1] += (
                f" C&W (margin loss in the ball) and DeepFool within {size} on "
                f"{monitor['other_images']} images a part."
            )
    if kind == "overfitting":
        reached = "reached" if monitor["robust_overfitting"] else "not reached"
        kind = kind if monitor["robust_overfitting"] else "outside"
        lines += ["", f"Robust overfitting: **{reached}** ({monitor['rule']})."]
    lines += ["", "## What it is for", "", _ABOUT[kind]]
    return "\n".join([*lines, ""])


def main() -> None:
    """Write every card."""
    for folder in sorted((ROOT / "zoo").iterdir()):
        if not (folder / "config.json").exists():
            continue
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["format"] in FORMATS:
            card = config["card"]
            data, words = data_words(card["data"]["source"], card["config"]["holdout"])
            write_text(folder / "README.md", network_card(folder, data, words))
        else:
            write_text(folder / "README.md", card_text(folder))


if __name__ == "__main__":
    main()
