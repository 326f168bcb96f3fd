"""``unperturb explain logit-change``."""

from __future__ import annotations

from typing import Any

import click

from unperturb.cli.options import (
    check_fit,
    check_threat,
    classifier_of,
    classifier_options,
    data_options,
    load_subject,
    read_data,
    run_options,
    setup,
    threat_of,
    threat_options,
)
from unperturb.cli.pictures import outputs, tell, watched

__all__ = ["logit_change"]


@click.command("logit-change", short_help="What an attack does to logits, and purification (ALU).")
@classifier_options()
@data_options()
@threat_options()
@click.option("--attack", "name", default="pgd-20", show_default=True,
              help="One attack, see 'unperturb list attacks'; or noise.")  # fmt: skip
@click.option("--gradient", default="undefended", show_default=True,
              help="What is attacked: undefended (the bare classifier), encode-decode (behind the "
              "VAE, N = 0), or a backward rule of the purifier (the whole defense).")  # fmt: skip
@click.option("--away-from", default="true", show_default=True,
              help="The true label, or the one predicted for the clean image: the control for "
              "label leaking.")  # fmt: skip
@click.option("--train-images", type=click.IntRange(min=0), default=0, show_default=True,
              help="Clean images of the training split, for their share of Figure 2.")  # fmt: skip
@click.option("--images", "shown", type=click.IntRange(1, 20), default=4, show_default=True,
              help="Images whose logits are drawn, successful attacks first.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True,
              help="Images at a time.")  # fmt: skip
@run_options(out="logit-change.png", out_help="The picture of single images; -statistic and "
             "-changes go beside it, and all figures as .json.")  # fmt: skip
def logit_change(**options: Any) -> int:
    """Logits of clean and attacked images before and after purification.

    In how many successful attacks the true class's logit drops most, with its interval; the three
    cases of ALU; what becomes of attacks that failed; the detector's statistic and its ROC.

    \b
    Examples:
      unperturb explain logit-change --defense runs/alu --data cifar10/ --limit 512 \\
        --train-images 512 --out change.png
      unperturb explain logit-change --defense runs/alu --data cifar10/ --limit 128 \\
        --gradient encode-decode --away-from predicted --out control.png
    """
    from unperturb.attacks import make_attack
    from unperturb.explain import (
        figure_bars,
        figure_changes,
        figure_statistic,
        save_figure,
    )
    from unperturb.explain import logit_change as run
    from unperturb.files import write_json

    out, statistic, changes, numbers = outputs(options, "-statistic", "-changes", ".json")
    threat = threat_of(options["norm"], options["eps"])
    name = options["name"]
    chosen = name if name == "noise" else make_attack(name, draws=20)
    device = setup(options["device"], options["threads"])
    subject, _ = load_subject(
        options["classifier"], options["defense"],
        trust_remote_code=options["trust_remote_code"], device=device,
    )  # fmt: skip
    data = read_data(options)
    check_fit(classifier_of(subject), data.images(slice(0, 2)).to(device))
    check_threat(threat, data.images(slice(0, 1)))
    train = None
    if options["train_images"]:
        wanted = {**options, "split": "train", "limit": options["train_images"]}
        train = read_data(wanted).images()
    found = run(
        subject, data.images(), data.labels, attack=chosen, threat=threat,
        gradient=options["gradient"], away_from=options["away_from"], train=train, ids=data.ids,
        seed=options["seed"], batch_size=options["batch_size"], show=watched(options),
    )  # fmt: skip
    save_figure(figure_bars(found, count=options["shown"], classes=data.classes), out)
    save_figure(figure_statistic(found), statistic)
    save_figure(figure_changes(found, classes=data.classes), changes)
    facts = {**found.to_dict(), "out": str(out)}
    write_json(numbers, facts)
    tell(
        options, facts, "\n".join([*_sentences(facts), f"{out}, {statistic}, {changes}, {numbers}"])
    )
    return 0


def _sentences(facts: dict[str, Any]) -> list[str]:
    from unperturb.recipes.words import share_text

    part, failed = facts["successful"], facts["failed"]
    cases = ", ".join(f"{name} {share_text(found)}" for name, found in part["cases"].items())
    answers = ", ".join(
        f"{name} {facts[name]['answer']['accuracy']:.1%} right, "
        f"{facts[name]['flagged']['rate']:.1%} flagged"
        for name in ("clean", "attacked")
    )
    return [
        f"{facts['attack']}, n = {facts['n']}: {answers}",
        f"{part['n']} successful attacks: the true class drops most in "
        f"{share_text(part['drops_most'])}",
        f"cases: {cases}",
        f"{failed['n']} failed attacks: flagged {share_text(failed['flagged'])}, right "
        f"{share_text(failed['right'])}",
    ]
