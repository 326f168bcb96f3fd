"""``unperturb fit denoiser``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from unperturb.cli.fit_vae import tell
from unperturb.cli.options import (
    check_fit,
    data_options,
    run_options,
    setup,
    threat_of,
)
from unperturb.cli.train import check_folder, fractions, training_data
from unperturb.cli.training_options import training_options

__all__ = ["denoiser"]

_SETTINGS = (
    "guide", "attack_steps", "attack_step_size", "epochs", "batch_size", "lr", "augment",
    "precision", "holdout", "seed",
)  # fmt: skip


@click.command("denoiser", short_help="Train a denoising U-Net on the noise of PGD.")
@click.option(
    "--classifier",
    required=True,
    help="The network that is attacked: ARCH@WEIGHTS.safetensors, a saved folder, hf:ID.",
)
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let a saved folder or hub model name code that is then run.",
)
@data_options(default_split="train")
@click.option(
    "--width", type=int, default=16, show_default=True, help="Channels of the stage at full size."
)
@click.option("--depth", type=int, default=2, show_default=True, help="Stages below full size.")
@click.option(
    "--guide",
    default="logits",
    show_default=True,
    help="What the loss compares with those of the clean image: logits or pixels.",
)
@click.option(
    "--eps", default="8/255", show_default=True, help="Linf size of the attack, in pixel units."
)
@click.option("--attack-steps", type=int, default=20, show_default=True, help="Steps of PGD.")
@click.option(
    "--attack-step-size",
    type=float,
    default=0.25,
    show_default=True,
    help="Its step, as a fraction of eps.",
)
@click.option("--augment", default="crop-flip", show_default=True, help="crop-flip, flip or none.")
@training_options(
    epochs=100, batch_size=128, lr=0.1, rate="First rate of SGD.",
    milestones="0.5,0.75", falls="the rate falls to a tenth",
)  # fmt: skip
@run_options(out="runs/denoiser", out_help="Folder of the denoiser and its record.")
def denoiser(**options: Any) -> int:
    """Train a denoising U-Net on the adversarial noise of a network (Liao et al. 2018).

    \b
    Examples:
      unperturb fit denoiser --classifier runs/standard --data cifar10/ --epochs 2 --lr 0.05 \\
        --milestones 0.5 --precision bfloat16 --out runs/denoiser
      unperturb fit alu --classifier runs/standard --denoiser runs/denoiser --data cifar10/ \\
        --out runs/toy

    A run that was cut off goes on with the same command, in the middle of an epoch too.
    """
    from unperturb.classifiers import load_classifier
    from unperturb.generative import DenoiserConfig, train_denoiser
    from unperturb.networks.unet import DenoisingUNet

    folder = Path(options["out"])
    check_folder(folder)
    config = DenoiserConfig(
        milestones=fractions(options["milestones"]),
        eps=threat_of("linf", options["eps"]).eps,
        **{name: options[name] for name in _SETTINGS},
    )
    device = setup(options["device"], options["threads"])
    classifier = load_classifier(
        options["classifier"], trust_remote_code=options["trust_remote_code"], device=device
    )
    data = training_data(options)
    check_fit(classifier, data.images(slice(0, 2)).to(device))
    model = DenoisingUNet(
        in_channels=data.pixels.shape[1],
        width=options["width"],
        depth=options["depth"],
        seed=options["seed"],
    )
    show = not (options["quiet"] or options["as_json"])
    train_denoiser(
        model,
        classifier,
        data,
        config,
        out=folder,
        device=device,
        stop_after=options["stop_after"],
        show=show,
    )
    tell(folder, options, show)
    return 0
