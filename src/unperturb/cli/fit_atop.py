"""Commands that train restoration networks: ``gan``, ``mae`` and ``atop``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import (
    Wrap,
    check_fit,
    check_output,
    data_options,
    echo_json,
    run_options,
    setup,
    stack,
    threat_of,
)
from unperturb.cli.train import fractions, training_data
from unperturb.cli.training_options import training_options
from unperturb.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from unperturb.data import ImageSet
    from unperturb.restoration import Plan, RestorationConfig

__all__ = ["COMMANDS", "atop", "gan", "mae"]

_SHARED = (
    "patch", "rate", "sigma", "passes", "epochs", "batch_size", "lr", "schedule", "augment",
    "precision", "holdout", "monitor_images", "samples", "seed",
)  # fmt: skip


def _transform_options(default: str | None) -> Wrap:
    told = "that of --start" if default is None else default
    return stack(
        click.option("--transform", default=default,
                     help=f"Random transform: rt1, rt2 or rt3.  [default: {told}]"),
        click.option("--patch", type=int, help="Side of a patch in pixels.  "
                     "[default: an eighth of the image]"),
        click.option("--rate", type=float, help="rt1, rt2: share of patches that is dropped.  "
                     "[default: 0.25]"),
        click.option("--sigma", type=float, help="rt2, rt3: standard deviation of the noise.  "
                     "[default: 0.25]"),
        click.option("--passes", type=int, help="rt3: number of covers.  [default: 4]"),
    )  # fmt: skip


def _training_options(*, epochs: int, lr: float = 1e-3) -> Wrap:
    return stack(
        training_options(
            epochs=epochs, batch_size=32, lr=lr, rate="Peak learning rate of Adam.",
            milestones="0.5,0.75", falls="multistep divides the rate by 10",
        ),
        click.option("--schedule", default="one-cycle", show_default=True,
                     help="multistep or one-cycle."),
        click.option("--augment", default="flip", show_default=True,
                     help="flip, crop-flip or none."),
        click.option("--monitor-images", type=int, default=256, show_default=True,
                     help="Held-out images that are restored after each epoch."),
        click.option("--samples", type=int, default=8, show_default=True,
                     help="Images on the panel that is drawn after each epoch; 0: none."),
        click.option("--set", "more", multiple=True, metavar="NAME=VALUE",
                     help="Any other setting, such as betas=0.5,0.9; may be repeated."),
    )  # fmt: skip


_ADVERSARIAL = stack(
    click.option("--form", default="wasserstein", show_default=True,
                 help="Loss of the discriminator: wasserstein (the paper's) or hinge."),
    click.option("--adversarial-weight", type=float, default=0.01, show_default=True,
                 help="Weight of the discriminator's terms; 0: none."),
)  # fmt: skip
_START = click.option(
    "--start", help="Folder of a run, finished or not, whose weights are taken up."
)


@click.command(short_help="Pre-train an inpainting GAN that restores images.")
@data_options(default_split="train")
@_transform_options("rt2")
@click.option("--width", type=int, default=16, show_default=True,
              help="Channels of the refinement stage at full resolution.")  # fmt: skip
@click.option("--coarse-width", type=int, default=4, show_default=True,
              help="Channels of the coarse stage at full resolution.")  # fmt: skip
@click.option("--attention", is_flag=True, help="Contextual attention in the refinement stage.")
@_ADVERSARIAL
@_START
@_training_options(epochs=8)
@run_options(out="runs/gan", out_help="Folder of the network and its record.")
def gan(**options: Any) -> int:
    """Pre-train the GAN purifier of AToP: restore images from what a random transform leaves.

    After each epoch the error on dropped pixels of held-out images is told, beside filling them
    by the mean and by lines between visible neighbors; samples/ shows some of them. A run that
    was cut off goes on with the same command. One that diverged can be taken up from its last
    good checkpoint: --start OUT, another --out, and a lower --lr.

    \b
    Example:
      unperturb fit gan --data cifar10/ --transform rt2 --epochs 8 --out runs/gan
    """
    from unperturb.restoration import GANConfig, plan_pretrain

    own = ("transform", "width", "coarse_width", "attention", "form", "adversarial_weight")
    config = _config(GANConfig, options, own)
    return _pretrain(options, lambda data, device: plan_pretrain(
        data, config, start=options["start"], device=device))  # fmt: skip


@click.command(short_help="Pre-train a masked autoencoder that restores images.")
@data_options(default_split="train")
@_transform_options("rt2")
@click.option("--token", type=int, help="Side of a token in pixels.  [default: the patch]")
@click.option("--width", type=int, default=96, show_default=True, help="Width of the encoder.")
@click.option("--depth", type=int, default=4, show_default=True, help="Blocks of the encoder.")
@_START
@_training_options(epochs=30)
@run_options(out="runs/mae", out_help="Folder of the network and its record.")
def mae(**options: Any) -> int:
    """Pre-train the autoencoder purifier of AToP: a ViT that reads visible, noisy patches.

    Everything is as for the GAN; the loss is the mean squared error of all pixels.

    \b
    Example:
      unperturb fit mae --data cifar10/ --transform rt2 --epochs 30 --out runs/mae
    """
    from unperturb.restoration import MAEConfig, plan_pretrain

    config = _config(MAEConfig, options, ("transform", "token", "width", "depth"))
    return _pretrain(options, lambda data, device: plan_pretrain(
        data, config, start=options["start"], device=device))  # fmt: skip


@click.command(short_help="Fine-tune a restoration network for a frozen classifier (AToP).")
@click.option("--classifier", required=True,
              help="ARCH@WEIGHTS.safetensors, a saved folder, hf:ID: as for audit.")  # fmt: skip
@click.option("--trust-remote-code", is_flag=True,
              help="Let a saved folder or hub model name code that is then run.")  # fmt: skip
@click.option("--start", required=True, help="Folder of the pre-trained restoration network.")
@data_options(default_split="train")
@_transform_options(None)
@click.option("--examples", default="adversarial", show_default=True,
              help="What is restored: adversarial examples, or clean images.")  # fmt: skip
@click.option("--against", default="classifier", show_default=True,
              help="What they are made against: the classifier alone, or the whole.")  # fmt: skip
@click.option("--attack", default="fgsm", show_default=True, help="fgsm or pgd.")
@click.option("--eps", default="8/255", show_default=True,
              help="Linf size of the examples, in pixel units.")  # fmt: skip
@click.option("--target", default="adversarial", show_default=True,
              help="What they are restored to: the adversarial example (eq. 9) or the clean image "
                   "(eq. 5).")  # fmt: skip
@click.option("--lambda", "cls_weight", type=float, default=0.1, show_default=True,
              help="Weight of the classifier's cross-entropy.")  # fmt: skip
@_ADVERSARIAL
@_training_options(epochs=5, lr=5e-4)
@run_options(out="runs/atop", out_help="Folder of the network and its record.")
def atop(**options: Any) -> int:
    """Fine-tune a restoration network with the loss of a frozen classifier (AToP, eq. 9).

    After each epoch the accuracy on restored held-out images is told, of clean ones and of FGSM
    examples against the classifier alone: an oblivious attack, which says little of others. A run
    that was cut off goes on with the same command; one that diverged leaves its last good network
    in OUT/last-good, for --start.

    \b
    Examples:
      unperturb fit atop --classifier runs/standard --start runs/gan --data cifar10/ \\
        --out runs/atop
      unperturb fit atop --classifier runs/standard --start runs/gan --data cifar10/ \\
        --against whole --lambda 1 --out runs/atop-whole
    """
    from unperturb.classifiers import load_classifier
    from unperturb.restoration import FineTuneConfig, load_restoration, plan_finetune

    _check_folder(Path(options["out"]))
    start = load_restoration(options["start"])
    asked = {key: options[key] for key in ("patch", "rate", "sigma", "passes")}
    transform = _make_transform(options["transform"] or start.transform.name, asked)
    transform = transform.filled(start.transform, **asked)
    settings = transform.to_dict()
    own = ("transform", "examples", "against", "attack", "target", "cls_weight", "form",
           "adversarial_weight")  # fmt: skip
    values = {**options, **settings, "transform": settings["name"]}
    config = _config(FineTuneConfig, values, own, eps=threat_of("linf", options["eps"]).eps)
    device = setup(options["device"], options["threads"])
    classifier = load_classifier(
        options["classifier"], trust_remote_code=options["trust_remote_code"], device=device
    )
    data = training_data(options)
    check_fit(classifier, data.images(slice(0, 2)).to(device))
    return _fit(options, data, device, lambda: plan_finetune(
        classifier, options["start"], data, config, device=device))  # fmt: skip


COMMANDS = (gan, mae, atop)


def _make_transform(name: str, settings: dict[str, Any]) -> Any:
    from unperturb.purifiers.transforms import RandomTransform

    return RandomTransform(name=name, **settings)


def _config(
    kind: type[RestorationConfig], options: dict[str, Any], own: tuple[str, ...], **more: Any
) -> Any:
    """Settings from options of their own and from ``--set``."""
    values = {name: options[name] for name in (*_SHARED, *own)}
    values |= {"milestones": fractions(options["milestones"]), **more}
    for pair in options["more"]:
        name, equals, text = pair.partition("=")
        if not equals or name in values:
            named = "lambda" if name == "cls_weight" else name.replace("_", "-")
            raise ConfigError(
                f"--set {pair}",
                expected="NAME=VALUE of a setting without an option of its own",
                fix=f"use --{named}" if name in values else "",
            )
        values[name] = _value(name, text)
    return kind.from_dict(values)


def _value(name: str, text: str) -> Any:
    """A number, a fraction, or numbers with commas; an unknown name is refused with the rest."""
    parts = [part for part in text.split(",") if part.strip()]
    try:
        numbers = []
        for part in parts:
            top, _, bottom = part.partition("/")
            found = float(top) / float(bottom or 1)
            numbers.append(int(found) if found == int(found) and "." not in part else found)
    except (ValueError, ZeroDivisionError, OverflowError):
        numbers = []
    if not numbers:
        raise ConfigError(
            f"--set {name}={text}", expected="a number, a fraction, or numbers with commas"
        )
    return tuple(numbers) if len(numbers) > 1 else numbers[0]


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no training run's before anything is read or trained."""
    from unperturb.restoration.checkpoint import CHECKPOINT
    from unperturb.restoration.run import RECORD

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


def _pretrain(options: dict[str, Any], make: Callable[[ImageSet, str], Plan]) -> int:
    _check_folder(Path(options["out"]))
    device = setup(options["device"], options["threads"])
    data = training_data(options)
    return _fit(options, data, device, lambda: make(data, device))


def _fit(options: dict[str, Any], data: ImageSet, device: str, make: Callable[[], Plan]) -> int:
    """Train, and tell what came of it."""
    import json

    from unperturb.restoration import load_restoration, train_restoration
    from unperturb.restoration.run import RECORD

    folder, show = Path(options["out"]), not (options["quiet"] or options["as_json"])
    plan = make()
    if show:
        # On networks of its own: a step changes what spectral normalization remembers.
        click.echo(_preview(make(), data, device), err=True)
    train_restoration(
        plan, data, out=folder, device=device, stop_after=options["stop_after"], show=show
    )
    finished = (folder / RECORD).exists()
    card = dict(load_restoration(folder).card) if finished else {}
    if options["as_json"]:
        echo_json({"finished": finished, "out": str(folder), "card": card})
    elif show and not finished:
        click.echo(f"not finished: the same command without --stop-after goes on ({folder})")
    elif show:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        click.echo(_sentences(record["epochs"][-1], folder))
    return 0


def _preview(plan: Plan, data: ImageSet, device: str) -> str:
    """What it will cost: steps, and seconds on this machine."""
    from unperturb.checks import check_enough
    from unperturb.recipes.words import spelled

    config = plan.config
    found = check_enough(len(data), holdout=config.holdout, batch_size=config.batch_size)
    steps = found // config.batch_size
    count = sum(p.numel() for p in plan.net.network.parameters())
    seconds = plan.step_seconds(data, device)
    return (
        f"{plan.net.name}, {count:,} weights; {config.epochs} epochs of {steps} steps: about "
        f"{spelled(seconds * steps * config.epochs)}, {spelled(seconds * steps)} an epoch"
    )


def _sentences(epoch: dict[str, Any], folder: Path) -> str:
    lines = []
    if "masked_l1" in epoch:
        lines.append(
            f"held-out error on dropped pixels: {epoch['masked_l1']:.4f}; filled by lines "
            f"{epoch['bilinear_l1']:.4f}, by the mean {epoch['mean_l1']:.4f}"
        )
    if "clean" in epoch:
        lines.append(
            f"held-out accuracy, restored: clean {epoch['clean']:.1%}, FGSM on the classifier "
            f"alone {epoch['attacked']:.1%}"
        )
    return "\n".join([*lines, f"network: {folder}"])
