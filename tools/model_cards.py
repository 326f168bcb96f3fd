"""Write ``README.md`` beside every network of the zoo, from its own records.

python tools/model_cards.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unperturb.files import write_text

ROOT = Path(__file__).resolve().parent.parent

_OPTIONS = (
    ("objective", "--objective"),
    ("eps", "--eps"),
    ("epochs", "--epochs"),
    ("lr", "--lr"),
    ("weight_decay", "--weight-decay"),
    ("schedule", "--schedule"),
    ("milestones", "--milestones"),
    ("augment", "--augment"),
    ("precision", "--precision"),
    ("monitor_images", "--monitor-images"),
    ("seed", "--seed"),
    ("attack_steps", "--attack-steps"),
)


def _text(name: str, value: Any) -> str:
    if name == "eps":
        return f"{value * 255:g}/255"
    if name == "milestones":
        return ",".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def command(config: dict[str, Any], start: str, out: str) -> str:
    """The command that trains with this configuration."""
    words = []
    for name, option in _OPTIONS:
        if name == "eps" and config["objective"] == "standard":
            continue
        if name == "attack_steps" and config["objective"] != "pgd":
            continue
        if name == "milestones" and config["schedule"] != "multistep":
            continue
        words.append(f"{option} {_text(name, config[name])}")
    if config.get("keep", "deepest") != "deepest":
        words.append(f"--keep {config['keep']}")
    if config["clean_pass"]:
        words.append("--clean-pass")
    return f"unperturb train {start} --data cifar10 {' '.join(words)} --out {out}"


def stages(card: dict[str, Any]) -> list[dict[str, Any]]:
    """Configurations from the first stage to the last."""
    found: list[dict[str, Any]] = []
    part: dict[str, Any] | None = card
    while part:
        found.insert(0, part["config"])
        part = part.get("start")
    return found


def card_text(folder: Path) -> str:
    """The model card of one folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    card = config["card"]
    monitor = card["monitor"]
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
        f"CIFAR-10 training set; the last {card['config']['holdout']:,} of its 50,000 images (in "
        "the order of the files) were never trained on. Fingerprint of the images: "
        f"`{card['data']['fingerprint'][:16]}`.",
        "",
        "## Recipe",
        "",
        "Stages one after the other, each from the weights of the one before:",
        "",
        "```sh",
    ]
    every = stages(card)
    for number, settings in enumerate(every, 1):
        start = f"--arch {config['arch']}" if number == 1 else f"--start stage{number - 1}"
        lines.append(command(settings, start, f"stage{number}"))
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
        if key.startswith(("train_c", "train_f", "train_p", "heldout_")):
            lines.append(f"| {key.replace('_', ' ')} | {value:.1%} |")
    if card["config"]["objective"] == "fgsm":
        reached = "reached" if monitor["robust_overfitting"] else "not reached"
        lines += [
            "",
            f"{monitor['images']} training and as many held-out images; FGSM at the training eps, "
            f"PGD-20 at {monitor['other_eps'] * 255:.0f}/255. Robust overfitting: **{reached}** "
            f"({monitor['rule']}).",
            "",
            "## What it is for",
            "",
            "The network that TPAP is proposed for. It is **not robust**: under PGD it answers "
            "almost nothing correctly, and an attacker who knows TPAP brings the defended network "
            "there too. See `docs/results/first-audit.md`.",
        ]
    elif card["config"]["objective"] == "pgd":
        lines += [
            "",
            f"{monitor['images']} training and as many held-out images; FGSM and PGD-20 at "
            f"{monitor['other_eps'] * 255:.0f}/255.",
            "",
            "## What it is for",
            "",
            "A small adversarially trained network (Madry et al. 2018): the yardstick of what "
            "training alone gives at this size, and the network on which attacks are compared. See "
            "`docs/results/attacks.md` for what the strongest attacks leave of it.",
        ]
    else:
        lines += [
            "",
            "## What it is for",
            "",
            "A standard network, the start of adversarial training. It has no adversarial "
            "robustness.",
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Write every card."""
    for folder in sorted((ROOT / "zoo").iterdir()):
        if (folder / "config.json").exists():
            write_text(folder / "README.md", card_text(folder))


if __name__ == "__main__":
    main()
