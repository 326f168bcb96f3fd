"""``unperturb train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import (
    check_fit,
    check_output,
    data_options,
    echo_json,
    read_data,
    run_options,
    setup,
    threat_of,
)
from unperturb.errors import ConfigError, DataError, RecordError, SpecError

if TYPE_CHECKING:
    from unperturb.data import ImageSet
    from unperturb.training import TrainConfig


@click.command(short_help="Train a classifier, as usual or on adversarial examples.")
@click.option("--arch", help="A network to train from scratch, such as cifar-resnet20.")
@click.option("--start", help="Or a classifier to start from: a folder or ARCH@WEIGHTS.")
@click.option("--normalize", default="none", show_default=True,
              help="Normalization in front of a new network: none, imagenet, cifar10.")  # fmt: skip
@data_options(default_split="train")
@click.option("--objective", default="standard", show_default=True,
              help="standard; one-step: fgsm, fgsm-trades, fgsm-mart; several steps: pgd, trades, "
                   "mart, fat, gairat, cw, stadv.")  # fmt: skip
@click.option("--eps", default="8/255", show_default=True,
              help="Linf size of the training attack, in pixel units.")  # fmt: skip
@click.option("--mixture", default="", metavar="SIZES",
              help="fgsm: several sizes, such as 0,8/255,16/255; 0 is clean.")  # fmt: skip
@click.option("--epochs", type=int, default=15, show_default=True,
              help="Passes over the training images.")  # fmt: skip
@click.option("--batch-size", type=int, default=128, show_default=True, help="Images in a step.")
@click.option("--accumulate", type=int, default=1, show_default=True,
              help="Parts of a batch that go through the network one by one.")  # fmt: skip
@click.option("--lr", type=float, default=0.1, show_default=True, help="Peak learning rate of SGD.")
@click.option("--weight-decay", type=float, default=5e-4, show_default=True,
              help="Weight decay of SGD.")  # fmt: skip
@click.option("--ema-decay", type=float, default=0.0, show_default=True,
              help="Keep a moving average of the weights, such as 0.998; 0: the last.")  # fmt: skip
@click.option("--schedule", default="multistep", show_default=True, help="multistep or one-cycle.")
@click.option("--milestones", default="0.5,0.75", show_default=True,
              help="Fractions of the epochs where multistep divides the rate by 10.")  # fmt: skip
@click.option("--augment", default="crop-flip", show_default=True, help="crop-flip, flip or none.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16.")
@click.option("--clean-pass", is_flag=True,
              help="fgsm: clean batches enter the batch-norm statistics too.")  # fmt: skip
@click.option("--attack-steps", type=int, default=7, show_default=True,
              help="Steps of a training attack that has several.")  # fmt: skip
@click.option("--attack-step-size", type=float, default=0.25, show_default=True,
              help="Its step, as a fraction of eps.")  # fmt: skip
@click.option("--beta", type=float, default=6.0, show_default=True,
              help="trades, mart: weight of the robust term.")  # fmt: skip
@click.option("--set", "more", multiple=True, metavar="NAME=VALUE",
              help="Any other setting, such as gairat_burn_in=0.5; may be repeated.")  # fmt: skip
@click.option("--keep", default="deepest", show_default=True,
              help="Which epoch: deepest in robust overfitting or best purified (one-step "
                   "objectives), robust (PGD on held-out images), or last.")  # fmt: skip
@click.option("--holdout", type=int, default=1000, show_default=True,
              help="Images at the end of the split that are never trained on.")  # fmt: skip
@click.option("--monitor-images", type=int, default=256, show_default=True,
              help="Training and held-out images attacked after each epoch.")  # fmt: skip
@click.option(
    "--stop-after", type=click.IntRange(min=1), help="Stop after so many epochs, to go on later."
)
@run_options(out="runs/train", out_help="Folder of the weights and their record.")
def train(**options: Any) -> int:
    """Train a classifier: standard, by FGSM into robust overfitting, or to be robust.

    \b
    Examples:
      unperturb train --arch cifar-resnet20 --data cifar10/ --epochs 20 --schedule one-cycle \\
        --out runs/standard
      unperturb train --start runs/standard --objective fgsm --eps 10/255 --lr 0.01 \\
        --milestones 0.7 --epochs 8 --data cifar10/ --out runs/fgsm
      unperturb train --start runs/standard --objective pgd --eps 8/255 --lr 0.05 \\
        --schedule one-cycle --epochs 10 --data cifar10/ --out runs/pgd
      accelerate launch --multi_gpu --num_processes 2 -m unperturb train \\
        --start runs/standard --objective trades --data cifar10/ --out runs/trades

    A run that was cut off goes on with the same command, in the middle of an epoch too.
    """
    import torch

    from unperturb.classifiers import load_classifier, new_classifier
    from unperturb.training import train_classifier
    from unperturb.training.processes import launched

    if (options["arch"] is None) == (options["start"] is None):
        raise SpecError(
            "One of --arch and --start is needed, and not both",
            expected="--arch NAME to train from scratch, or --start CLASSIFIER",
        )
    config = _config(options)
    _check_folder(Path(options["out"]))
    device = setup(options["device"], options["threads"])
    data = training_data(options)
    _check_holdout(data, config)
    if options["start"] is not None:
        classifier = load_classifier(options["start"])
    else:
        classifier = new_classifier(
            options["arch"],
            num_classes=len(data.classes),
            in_channels=data.pixels.shape[1],
            **_normalization(options["normalize"]),
            seed=options["seed"],
        )
    check_fit(classifier, data.images(slice(0, 2)))
    show = not (options["quiet"] or options["as_json"])
    trained = train_classifier(
        classifier,
        data,
        config,
        out=options["out"],
        device=device,
        stop_after=options["stop_after"],
        show=show,
    )
    if not launched(torch.device(device)).main:
        return 0
    card = dict(trained.origin.card)
    folder = Path(options["out"])
    finished = (folder / "training.json").exists()
    if finished:
        card = dict(load_classifier(str(folder)).origin.card)
    if options["as_json"]:
        echo_json({"finished": finished, "out": str(folder), "card": card})
    elif show:
        _tell(card, folder, finished)
    return 0


_PLAIN = (
    "objective", "epochs", "batch_size", "accumulate", "lr", "weight_decay", "ema_decay",
    "schedule", "augment", "precision", "clean_pass", "attack_steps", "attack_step_size", "beta",
    "keep", "holdout", "monitor_images", "seed",
)  # fmt: skip


def _config(options: dict[str, Any]) -> TrainConfig:
    from unperturb.training import TrainConfig

    values: dict[str, Any] = {name: options[name] for name in _PLAIN}
    values |= {
        "eps": threat_of("linf", options["eps"]).eps,
        "milestones": milestones_of(options["milestones"]),
        "mixture": _mixture(options["mixture"]),
    }
    for pair in options["more"]:
        name, equals, text = pair.partition("=")
        if not equals or name in values:
            raise ConfigError(
                f"--set {pair}",
                expected="NAME=VALUE of a setting without an option of its own",
                fix=f"use --{name.replace('_', '-')}" if name in values else "",
            )
        values[name] = _value(name, text)
    return TrainConfig.from_dict(values)


def _value(name: str, text: str) -> Any:
    """What a setting is set to: of the kind that its default is."""
    from unperturb.training import TrainConfig

    default = getattr(TrainConfig(), name, None)
    try:
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.split(",") if part.strip())
        # A size may be written as a fraction; an unknown name is refused with the rest.
        top, _, bottom = text.partition("/")
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"--set {name}={text}", expected="a number, a fraction, or numbers with commas"
        ) from None


def _mixture(text: str) -> tuple[float, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(0.0 if part == "0" else threat_of("linf", part).eps for part in parts)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no training run's before anything is read or trained."""
    from unperturb.training.loop import CHECKPOINT
    from unperturb.training.run import RECORD

    check_output(folder)
    if not folder.is_dir() or (folder / CHECKPOINT).exists() or (folder / RECORD).exists():
        return
    strangers = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if strangers:
        raise RecordError(
            f"{folder} is not empty and holds no training run ({', '.join(strangers[:4])})",
            expected="a new or empty folder, or one with an unfinished run of the same settings",
            fix="choose another --out",
        )


def training_data(options: dict[str, Any]) -> ImageSet:
    """The split named, else ``train``, else all of data without splits; never a test split."""
    if options["split"] is not None:
        return read_data(options)
    try:
        return read_data({**options, "split": "train"})
    except (DataError, SpecError) as error:
        from unperturb.data.rows import TEST_SPLITS

        try:
            found = read_data(options)
        except (DataError, SpecError):
            found = None
        if found is None or found.split in TEST_SPLITS:
            raise error from None
        return found


def _check_holdout(data: ImageSet, config: TrainConfig) -> None:
    """Files sorted by class would leave whole classes for the held-out end of the split."""
    count = len(data) - config.holdout
    if count < config.batch_size:
        return
    trained, held = set(data.labels[:count].tolist()), set(data.labels[count:].tolist())
    if missing := sorted(held - trained):
        names = ", ".join(data.classes[label] for label in missing[:5])
        raise DataError(
            f"All images of the class {names} are among the {config.holdout} at the end that "
            "are held out",
            expected="images of every class to train on",
            fix="add --shuffle, or lower --holdout",
        )


def _tell(card: dict[str, Any], folder: Path, finished: bool) -> None:
    from unperturb.training.objectives import OVERFITTING

    if not finished:
        click.echo(f"not finished: the same command without --stop-after goes on ({folder})")
        return
    monitor = card["monitor"]
    figures = [
        f"{key.replace('_', ' ')} {value:.1%}"
        for key, value in monitor.items()
        if isinstance(value, float) and key.startswith(("train_c", "train_f", "train_p", "held"))
    ]
    click.echo(f"kept epoch {card['kept_epoch']}: {', '.join(figures)}")
    if card["objective"] in OVERFITTING:
        reached = monitor["robust_overfitting"]
        words = "reached" if reached else "NOT reached"
        click.echo(f"robust overfitting {words} ({monitor['rule']})")
    click.echo(f"weights: {folder}")


def milestones_of(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = (-1.0,)
    if not all(0 <= part <= 1 for part in found):
        raise ConfigError(
            f"--milestones is {text!r}", expected="fractions of the epochs, such as 0.5,0.75"
        )
    return found


def _normalization(name: str) -> dict[str, Any]:
    from unperturb.errors import unknown_name
    from unperturb.networks.registry import CIFAR10, IMAGENET

    known = {"none": ((0.0,), (1.0,)), "imagenet": IMAGENET, "cifar10": CIFAR10}
    if name not in known:
        raise unknown_name("normalization", name, known)
    mean, std = known[name]
    return {"mean": mean, "std": std}
