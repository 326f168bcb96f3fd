"""``unperturb fit vae``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from unperturb.cli.options import data_options, echo_json, run_options, setup
from unperturb.cli.train import check_folder, fractions, training_data
from unperturb.cli.training_options import training_options

__all__ = ["tell", "vae"]

_SETTINGS = ("beta", "epochs", "batch_size", "lr", "augment", "precision", "holdout", "seed")


@click.command("vae", short_help="Train a VAE on clean images: the purifier of ALU.")
@data_options(default_split="train")
@click.option(
    "--width", type=int, default=16, show_default=True, help="Channels of the layers at full size."
)
@click.option(
    "--downsample",
    type=int,
    default=2,
    show_default=True,
    help="Stages that halve the sides; these must be multiples of 2 to that power.",
)
@click.option(
    "--latent-channels",
    type=int,
    default=8,
    show_default=True,
    help="Channels of the codes: more keep more of the image, and of a perturbation.",
)
@click.option(
    "--beta",
    type=float,
    default=0.001,
    show_default=True,
    help="Weight of the divergence against squared errors, both sums over an image.",
)
@click.option("--augment", default="flip", show_default=True, help="crop-flip, flip or none.")
@training_options(
    epochs=120, batch_size=128, lr=0.001, rate="First rate of Adam.",
    milestones="2/3,5/6", falls="the rate falls to a fifth",
)  # fmt: skip
@run_options(out="runs/vae", out_help="Folder of the VAE and its record.")
def vae(**options: Any) -> int:
    """Train a VAE on clean images, with the paper's schedule; labels are not read.

    \b
    Examples:
      unperturb fit vae --data cifar10/ --epochs 10 --out runs/vae
      unperturb fit alu --classifier runs/standard --vae runs/vae --data cifar10/ --out runs/alu

    A run that was cut off goes on with the same command, in the middle of an epoch too.
    """
    from unperturb.generative import VAEConfig, train_vae
    from unperturb.networks.vae import VAE

    folder = Path(options["out"])
    check_folder(folder)
    config = VAEConfig(
        milestones=fractions(options["milestones"]),
        **{name: options[name] for name in _SETTINGS},
    )
    device = setup(options["device"], options["threads"])
    data = training_data(options)
    model = VAE(
        image_shape=tuple(data.pixels.shape[1:]),
        width=options["width"],
        downsample=options["downsample"],
        latent_channels=options["latent_channels"],
        seed=options["seed"],
    )
    show = not (options["quiet"] or options["as_json"])
    train_vae(
        model, data, config, out=folder, device=device, stop_after=options["stop_after"], show=show
    )
    tell(folder, options, show)
    return 0


def tell(folder: Path, options: dict[str, Any], show: bool) -> None:
    """What a finished or interrupted run leaves, as words or as one JSON object."""
    from unperturb.generative import read_card
    from unperturb.generative.loop import RECORD

    finished = (folder / RECORD).exists()
    card = read_card(folder) if finished else {}
    if options["as_json"]:
        echo_json({"finished": finished, "out": str(folder), "card": card})
    elif show and not finished:
        click.echo(f"not finished: the same command without --stop-after goes on ({folder})")
    elif show:
        click.echo(", ".join(_figure(*item) for item in card["last"].items()))
        click.echo(f"saved: {folder}")


def _figure(name: str, value: float) -> str:
    words = name.replace("_", " ")
    if name.endswith("psnr"):
        return f"{words} {value:.2f} dB"
    return f"{words} {value:.2g}" if name.endswith("mse") else f"{words} {value:.1%}"
