"""``unperturb fit alu``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import (
    check_fit,
    check_output,
    data_options,
    echo_json,
    run_options,
    setup,
)
from unperturb.cli.train import training_data
from unperturb.errors import OutputError, SpecError

if TYPE_CHECKING:
    from unperturb.classifiers import Classifier
    from unperturb.data import ImageSet
    from unperturb.defense import Defense
    from unperturb.purifiers import Purifier

__all__ = ["alu"]

_LATENT = ("steps", "lr", "optimizer", "start", "tolerance")


@click.command("alu", short_help="Fit ALU's threshold for a classifier, and save the defense.")
@click.option(
    "--classifier",
    required=True,
    help="ARCH@WEIGHTS.safetensors, a saved folder, hf:ID; one that was trained --through "
    "a VAE brings it along.",
)
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let a saved folder or hub model name code that is then run.",
)
@click.option("--vae", help="Folder of a VAE (unperturb fit vae).")
@click.option("--denoiser", help="Folder of a denoiser (unperturb fit denoiser), in its place.")
@click.option(
    "--purifier",
    metavar="NAME?OPTIONS",
    help="Any other purifier, in its place, such as 'fgsm-step?radius=8/255'.",
)
@click.option("--steps", type=int, help="Steps in the latent space.  [default: 10]")
@click.option(
    "--lr", type=float, help="Their learning rate; of lbfgs that of the first.  [default: 0.1]"
)
@click.option("--optimizer", help="lbfgs, adam, or gd as published.  [default: lbfgs]")
@click.option("--start", help="First code: encoder or random.  [default: encoder]")
@click.option(
    "--tolerance",
    type=float,
    help="Images leave whose error hardly falls any more; 0: none does.  [default: 0]",
)
@click.option(
    "--statistic",
    default="absolute-change",
    show_default=True,
    help="What is computed of the logits before and after: absolute-change, signed-change, "
    "max-change, l2-change or kl.",
)
@click.option(
    "--quantile",
    type=float,
    default=0.995,
    show_default=True,
    help="Share of the clean training images that stay unflagged.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=250,
    show_default=True,
    help="Images at a time.",
)
@data_options(default_split="train")
@run_options(out="runs/alu", out_help="Folder of the defense.")
def alu(**options: Any) -> int:
    """Fit ALU around a classifier: its threshold, on clean training images.

    The folder is a whole defense, its classifier embedded: --defense FOLDER audits it. It refuses
    any other classifier or purifier.

    \b
    Examples:
      unperturb fit alu --classifier runs/standard --vae runs/vae --data cifar10/ --out runs/alu
      unperturb fit alu --classifier runs/unified --data cifar10/ --out runs/alu-unified
      unperturb fit alu --classifier runs/standard --purifier fgsm-step?radius=8/255 \\
        --data cifar10/ --limit 5000 --out runs/alu-on-fgsm
    """
    from unperturb.classifiers import load_classifier
    from unperturb.decisions import DECISIONS
    from unperturb.defense import Defense
    from unperturb.thresholds import fit_threshold

    folder = Path(options["out"])
    _check_folder(folder)
    device = setup(options["device"], options["threads"])
    classifier = load_classifier(
        options["classifier"], trust_remote_code=options["trust_remote_code"], device=device
    )
    purifier = _purifier(classifier, options)
    data = training_data(options)
    check_fit(classifier, data.images(slice(0, 2)).to(device))
    show = not (options["quiet"] or options["as_json"])
    if show:
        click.echo(_preview(classifier, purifier, data, options["batch_size"], device), err=True)
    detector = fit_threshold(
        classifier,
        purifier,
        data,
        statistic=options["statistic"],
        quantile=options["quantile"],
        batch_size=options["batch_size"],
        seed=options["seed"],
        device=device,
        show=show,
    )
    defense = Defense(
        classifier, purifier=purifier, detector=detector, decision=DECISIONS["logit-update"]()
    )
    defense.save_pretrained(folder)
    if options["as_json"]:
        echo_json(_facts(defense, folder))
    elif show:
        click.echo(
            f"threshold {detector.threshold:.4g} of {detector.statistic}: "
            f"{options['quantile']:.1%} of {len(data)} clean images are not above it"
        )
        click.echo(f"defense: {folder}")
    return 0


def _check_folder(folder: Path) -> None:
    """Refuse a place that holds something else than a defense."""
    from unperturb.saving import is_defense_folder

    check_output(folder)
    if folder.is_dir() and any(folder.iterdir()) and not is_defense_folder(folder):
        raise OutputError(
            f"{folder} is not empty and holds no defense",
            expected="a new or empty folder, or one with a saved defense, which is replaced",
            fix="choose another --out",
        )


def _purifier(classifier: Classifier, options: dict[str, Any]) -> Purifier:
    from unperturb.presets import alu_purifier

    given = {name: options[name] for name in _LATENT if options[name] is not None}
    if options["purifier"] is None:
        return alu_purifier(classifier, vae=options["vae"], denoiser=options["denoiser"], **given)
    others = [name for name in ("vae", "denoiser") if options[name] is not None] + list(given)
    if others:
        raise SpecError(
            f"--purifier is given with --{', --'.join(others)}",
            expected="a purifier with its own options, or one of --vae and --denoiser",
            fix="write them as in --purifier 'NAME?OPTION=VALUE'",
        )
    return alu_purifier(classifier, purifier=options["purifier"])


def _preview(
    classifier: Classifier, purifier: Purifier, data: ImageSet, batch_size: int, device: str
) -> str:
    """What it will cost: measured on a few images, counted for all."""
    import time

    from unperturb.defense import Defense
    from unperturb.recipes.words import spelled

    some = data.images(slice(0, min(len(data), batch_size, 64))).to(device)
    defense = Defense(classifier, purifier=purifier).to(device)
    defense.predict(some[:1])
    began = time.perf_counter()
    defense.predict(some)
    seconds = (time.perf_counter() - began) / len(some) * len(data)
    return f"{len(data)} images through {purifier.name}: about {spelled(seconds)}"


def _facts(defense: Defense, folder: Path) -> dict[str, Any]:
    described = defense.describe()
    return {
        "out": str(folder),
        "fingerprint": defense.fingerprint(),
        "purifier": described["purifier"],
        "detector": described["detector"],
        "decision": described["decision"],
    }
