"""``unperturb bank``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import (
    check_fit,
    check_output,
    check_threat,
    data_options,
    echo_json,
    read_data,
    run_options,
    setup,
    threat_of,
    threat_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unperturb.attacks import Attack
    from unperturb.banks import LogitBank
    from unperturb.classifiers import Classifier
    from unperturb.data import ImageSet


@click.command(short_help="Write clean and adversarial logits of a data set to disk.")
@click.option("--classifier", required=True,
              help="ARCH@WEIGHTS.safetensors, a saved folder, hf:ID: as for audit.")  # fmt: skip
@click.option("--trust-remote-code", is_flag=True,
              help="Let a saved folder or hub model name code that is then run.")  # fmt: skip
@data_options(default_split="train")
@threat_options()
@click.option("--attacks", default="pgd-10?step_size=0.125", show_default=True,
              help="Attacks, all in one bank, or a suite such as logit-correction-paper; each runs "
                   "all its steps against the undefended classifier.")  # fmt: skip
@click.option("--crops", type=click.IntRange(min=1),
              help="Take so many random crops of each image in its place, where images are "
                   "few.")  # fmt: skip
@click.option("--labels", default="true", show_default=True,
              help="What they step away from: the true label (the paper), or the predicted one "
                   "(the control for label leaking).")  # fmt: skip
@click.option("--dtype", default="float32", show_default=True,
              help="How logits are stored: float32, float16 or bfloat16.")  # fmt: skip
@click.option("--precision", default="float32", show_default=True,
              help="Arithmetic of the attacks' gradients: float32 or bfloat16 (half the time; "
                   "minimal-norm attacks keep float32).")  # fmt: skip
@click.option("--shard-size", type=click.IntRange(min=1), default=2048, show_default=True,
              help="Rows of a file: a kill loses at most one.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True,
              help="Images at a time.")  # fmt: skip
@run_options(out="runs/bank", out_help="Folder of the bank.")
def bank(**options: Any) -> int:
    """Write a logit bank: clean logits of a data set, and its logits under attacks.

    A corrector is fitted on it (unperturb fit logit-correction), and explained with one of test
    images. Without --eps the paper's 16/255 is used for linf. A bank that was cut off goes on with
    the same command; with further --attacks they are added to it.

    \b
    Example:
      unperturb bank --classifier runs/standard --data cifar10/ --eps 16/255 \\
        --attacks pgd-10?step_size=0.125 --out runs/bank
    """
    from unperturb.attacks import resolve_attacks
    from unperturb.banks import make_bank
    from unperturb.classifiers import load_classifier
    from unperturb.data.crops import random_crops

    out = Path(options["out"])
    check_output(out)
    eps = options["eps"]
    if eps is None and options["norm"].lower() == "linf":
        eps = "16/255"
    threat = threat_of(options["norm"], eps)
    chosen = resolve_attacks(options["attacks"])
    device = setup(options["device"], options["threads"])
    classifier = load_classifier(
        options["classifier"], trust_remote_code=options["trust_remote_code"], device=device
    )
    data = read_data({**options, "split": options["split"] or _train_split(options)})
    if options["crops"] is not None:
        data = random_crops(data, options["crops"], seed=options["seed"])
    check_fit(classifier, data.images(slice(0, 2)).to(device))
    check_threat(threat, data.images(slice(0, 1)))
    show = not (options["quiet"] or options["as_json"])
    if show:
        click.echo(_preview(classifier, data, chosen, options), err=True)
    made = make_bank(
        classifier, data, attacks=chosen, threat=threat, out=out, seed=options["seed"],
        dtype=options["dtype"], shard_size=options["shard_size"],
        batch_size=options["batch_size"], labels=options["labels"], precision=options["precision"],
        device=device, show=show,
    )  # fmt: skip
    facts = _facts(made)
    if options["as_json"]:
        echo_json(facts)
    elif not options["quiet"]:
        click.echo(_sentences(facts))
    return 0


def _train_split(options: dict[str, Any]) -> str | None:
    """``train`` where the data has such a split; data without splits is read whole."""
    from unperturb.errors import DataError, SpecError

    try:
        read_data({**options, "split": "train", "limit": 1})
    except (DataError, SpecError) as error:
        # Only where the source has no split of that name; everything else is told by the reading.
        if "split" in error.problem:
            return None
        raise
    return "train"


def _preview(
    classifier: Classifier, data: ImageSet, attacks: Sequence[Attack], options: dict[str, Any]
) -> str:
    """What it will cost: gradients, seconds on this machine, bytes."""
    import time

    import torch

    from unperturb.banks import DTYPES
    from unperturb.recipes.words import spelled

    images = data.images(slice(0, min(len(data), options["batch_size"])))
    images = images.to(next(classifier.parameters(), torch.empty(0)).device)

    def once() -> float:
        began = time.perf_counter()
        point = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(classifier(point).sum(), point)
        float(gradient.sum())
        return time.perf_counter() - began

    once()
    seconds = once() / len(images) * len(data)
    # A forward pass is a third of a forward and backward one; clean logits, and fresh ones.
    gradients = sum(attack.gradients for attack in attacks) + (1 + len(attacks)) / 3
    size = DTYPES.get(options["dtype"], torch.float32).itemsize
    stored = len(data) * classifier.num_classes * size * (1 + len(attacks)) / 2**20
    return (
        f"{len(data)} images, {len(attacks)} attack{'s' * (len(attacks) > 1)} "
        f"({', '.join(attack.name for attack in attacks)}): at most about "
        f"{spelled(seconds * gradients)}, {max(stored, 0.1):.1f} MB"
    )


def _facts(made: LogitBank) -> dict[str, Any]:
    sources = made.manifest["sources"]
    return {
        "out": str(made.folder),
        "digest": made.digest,
        "rows": len(made),
        "num_classes": made.num_classes,
        "dtype": made.dtype,
        "labels": made.settings.labels,
        "precision": made.settings.precision,
        "classifier": made.classifier,
        "attacks": list(made.attacks),
        "accuracy": {name: facts["correct"] / len(made) for name, facts in sources.items()},
        "rounding": {name: facts["rounding"] for name, facts in sources.items()},
        "other_answers": {name: facts["other_answers"] for name, facts in sources.items()},
        "weak": list(made.weak),
    }


def _sentences(facts: dict[str, Any]) -> str:
    under = ", ".join(f"{name} {share:.1%}" for name, share in facts["accuracy"].items())
    lines = [f"accuracy: {under}; n = {facts['rows']}"]
    if facts["dtype"] != "float32":
        lines.append(
            f"stored as {facts['dtype']}: off by at most {max(facts['rounding'].values()):.3g}, "
            f"{sum(facts['other_answers'].values())} answers changed by the rounding"
        )
    lines += [f"warning: {words}" for words in facts["weak"]]
    lines.append(f"bank: {facts['out']} (digest {facts['digest'][:12]})")
    return "\n".join(lines)
