"""``unperturb cost``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import (
    check_output,
    classifier_of,
    classifier_options,
    echo_json,
    image_size,
    load_subject,
    run_options,
    setup,
)
from unperturb.errors import SpecError

if TYPE_CHECKING:
    from unperturb.classifiers import Classifier
    from unperturb.training.cost import Cost, CostTable

NOTE = (
    "1 multiply-add = 2 FLOPs; convolutions, matrix products and attention are counted.\n"
    "A forward pass is that of the plain answer. An epoch's time is estimated from one batch,\n"
    "without reading and augmenting images."
)


@click.command(short_help="Count the operations and the time of answers and training steps.")
@click.option("--arch", help="A network without weights, such as cifar-resnet18.")
@click.option("--classes", type=click.IntRange(min=2),
              help="Its number of classes.  [default: the network's own]")  # fmt: skip
@classifier_options()
@click.option("--objective", default="standard,fgsm,pgd", show_default=True,
              help="Training objectives, see 'unperturb list objectives'; none for answers "
              "only.")  # fmt: skip
@click.option("--attack-steps", type=int, default=10, show_default=True,
              help="Steps of training attacks that take several.")  # fmt: skip
@click.option("--clean-pass", is_flag=True,
              help="fgsm: clean batches enter the batch-norm statistics too.")  # fmt: skip
@click.option("--precision", default="float32", show_default=True,
              help="Of training steps: float32 or bfloat16.")  # fmt: skip
@click.option("--batch-size", type=int, default=128, show_default=True, help="Images in a step.")
@click.option("--image-size", help="HEIGHTxWIDTH (or one number) of the images.  "
              "[default: the classifier's own, else 32x32]")  # fmt: skip
@click.option("--train-images", type=int, default=50_000, show_default=True,
              help="Images of a training epoch.")  # fmt: skip
@click.option("--test-images", type=int, default=10_000, show_default=True,
              help="Images of a test epoch.")  # fmt: skip
@click.option("--repeats", type=int, default=3, show_default=True,
              help="Timings of each, of which the least counts; 0 times nothing.")  # fmt: skip
@run_options(out_help="Also write the figures to this JSON file.")
def cost(**options: Any) -> int:
    """Count the operations, and measure the time, of answers and of training steps.

    \b
    Examples:
      unperturb cost --classifier runs/fgsm --defense tpap
      unperturb cost --arch cifar-resnet18 --defense tpap --objective fgsm,pgd --repeats 0

    No image is needed: random pixels cost the same.
    """
    from unperturb.defense import Defense
    from unperturb.files import write_json
    from unperturb.training import TrainConfig
    from unperturb.training.cost import measure_costs

    if options["out"] is not None:
        check_output(Path(options["out"]), folder=False)
    objectives = _objectives(options["objective"])
    config = TrainConfig(
        attack_steps=options["attack_steps"],
        clean_pass=options["clean_pass"],
        precision=options["precision"],
        batch_size=options["batch_size"],
    )
    size = image_size(options["image_size"])
    device = setup(options["device"], options["threads"])
    subject, name = load_subject(
        options["classifier"],
        options["defense"],
        trust_remote_code=options["trust_remote_code"],
        device=device,
        net=_fresh(options, device),
    )
    table = measure_costs(
        classifier_of(subject),
        defense=subject if isinstance(subject, Defense) else None,
        objectives=objectives,
        config=config,
        image_size=size,
        train_images=options["train_images"],
        test_images=options["test_images"],
        repeats=options["repeats"],
        show=not (options["quiet"] or options["as_json"]),
    )
    found = {"defense": name if isinstance(subject, Defense) else None, **table.to_dict()}
    if options["out"] is not None:
        write_json(Path(options["out"]), found)
    if options["as_json"]:
        echo_json(found)
    elif not options["quiet"]:
        click.echo(_text(table, found["defense"]))
    return 0


def _objectives(text: str) -> list[str]:
    """Names of ``--objective``, checked before anything is loaded."""
    from unperturb.errors import unknown_name
    from unperturb.training import OBJECTIVES

    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return []
    if not names:
        raise SpecError(
            f"--objective is {text!r}",
            expected="training objectives, such as fgsm,pgd, or none",
            fix="--objective none counts answers only",
        )
    for name in names:
        if name not in OBJECTIVES:
            raise unknown_name("objective", name, [*OBJECTIVES, "none"])
    return names


def _fresh(options: dict[str, Any], device: str) -> Classifier | None:
    """A network of ``--arch``, if that is what is measured."""
    from unperturb.classifiers import new_classifier

    arch = options["arch"]
    if arch is None:
        if options["classes"] is not None:
            raise SpecError(
                f"--classes is {options['classes']} without --arch",
                expected="--classes for a network without weights only",
                fix="leave it out: a classifier has its own",
            )
        if options["classifier"] is None and options["defense"] is None:
            raise SpecError(
                "Nothing is named whose cost to count",
                expected="--arch, --classifier, or a saved defense as --defense",
                fix="--arch cifar-resnet18 --defense tpap, say",
            )
        return None
    if options["classifier"] is not None:
        raise SpecError(
            "Both --arch and --classifier are given",
            expected="--arch NAME for a network without weights, or --classifier",
        )
    return new_classifier(arch, num_classes=options["classes"], seed=options["seed"]).to(device)


def _text(table: CostTable, defense: str | None) -> str:
    facts = table.facts
    shape = "x".join(map(str, facts["image_shape"]))
    head = [
        f"{facts['arch']}: {facts['parameters'] / 1e6:.2f} M parameters, images {shape}"
        + (f", defense {defense}" if defense else ""),
    ]
    timed = facts["repeats"] > 0
    if timed:
        head.append(
            f"batch {facts['batch_size']}, {facts['device']}, {facts['threads']} threads; training "
            f"in {facts['precision']}; least of {facts['repeats']}"
        )
    head.append(f"training attacks of several steps take {facts['attack_steps']}")
    lines = [["", "GFLOPs/image", "forward passes", "images/epoch", "TFLOPs/epoch"]]
    lines[0] += ["ms/image", "s/epoch"] if timed else []
    lines += [_line(row) for row in table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*head, "", *body, "", NOTE])


def _line(row: Cost) -> list[str]:
    found = [
        row.name,
        f"{row.flops / 1e9:.4g}",
        "-" if row.forwards is None else f"{row.forwards:.2f}",
        str(row.epoch),
        f"{row.flops_per_epoch / 1e12:.4g}",
    ]
    if row.seconds is not None and row.seconds_per_epoch is not None:
        found += [f"{row.seconds * 1e3:.3g}", f"{row.seconds_per_epoch:.4g}"]
    return found
