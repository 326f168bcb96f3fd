"""``unperturb fit``: a group, to which each part of a defense adds one command."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import check_output, echo_json, run_options, setup

if TYPE_CHECKING:
    from unperturb.banks import LogitBank
    from unperturb.correction import Corrector
    from unperturb.correction.config import CorrectionConfig


@click.group(short_help="Fit a part of a defense: a corrector, a VAE, a threshold.")
def fit() -> None:
    """Fit a part of a defense on training images, or on a bank of their logits.

    \b
    Examples:
      unperturb fit logit-correction --bank runs/bank --out runs/corrector
      unperturb fit vae --data cifar10/ --epochs 10 --out runs/vae
    """


def fit_options(**defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options of every fit by gradient steps: ``--lr`` to ``--stop-after``.

    Args:
        defaults: Of ``lr``, ``weight_decay``, ``batch_size`` and ``epochs``.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--stop-after", type=click.IntRange(min=1),
                         help="Stop after so many epochs, to go on later."),
            click.option("--keep", default="best", show_default=True,
                         help="Which epoch: best on the held-out rows, or last."),
            click.option("--patience", type=int, default=0, show_default=True,
                         help="Stop after so many epochs without a better one; 0: never."),
            click.option("--holdout", type=float, default=0.1, show_default=True,
                         help="Share of the rows that is never trained on."),
            click.option("--epochs", type=int, default=defaults["epochs"], show_default=True,
                         help="Passes over the training rows."),
            click.option("--batch-size", type=int, default=defaults["batch_size"],
                         show_default=True, help="Rows in a step."),
            click.option("--weight-decay", type=float, default=defaults["weight_decay"],
                         show_default=True, help="Weight decay of Adam, in the loss."),
            click.option("--lr", type=float, default=defaults["lr"], show_default=True,
                         help="Learning rate of Adam."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


@fit.command("logit-correction", short_help="A network that corrects logits, on a logit bank.")
@click.option("--bank", "bank_folder", required=True, metavar="FOLDER",
              help="What 'unperturb bank' wrote.")  # fmt: skip
@click.option("--width", type=int, default=10_000, show_default=True, help="Hidden units.")
@click.option("--depth", type=int, default=2, show_default=True,
              help="Linear layers; 1 has no hidden units.")  # fmt: skip
@click.option("--dropout", type=float,
              help="Share of hidden units dropped in training.  [default: 0.5; 0 with "
                   "--tied]")  # fmt: skip
@click.option("--clean-share", type=float, default=0.3, show_default=True,
              help="Probability p of taking a row's clean logits.")  # fmt: skip
@click.option("--loss", default="ce", show_default=True,
              help="ce, label-smoothing or margin.")  # fmt: skip
@click.option("--target", default="label", show_default=True,
              help="What is learnt: the true label, or the classifier's own answer on the clean "
                   "image.")  # fmt: skip
@click.option("--attacks", default="", metavar="NAMES",
              help="Attacks of the bank to learn from, with commas.  [default: all]")  # fmt: skip
@click.option("--tied", is_flag=True,
              help="Classes share their weights: for banks with few rows of each class; then "
                   "--lr 0.02, say.")  # fmt: skip
@click.option("--shrinkage", type=float, default=0.1, show_default=True,
              help="With --tied: added to the covariance of the logits, as a multiple of its mean "
                   "eigenvalue.")  # fmt: skip
@fit_options(lr=5e-5, weight_decay=1e-4, batch_size=256, epochs=50)
@run_options(out="runs/corrector", out_help="Folder of the corrector.")
def logit_correction(**options: Any) -> int:
    """Fit a corrector: from logits, clean or under attack, to logits that name the true label.

    It sees no image. The defaults are the paper's (Li et al. 2019, Algorithm 1). After each epoch,
    rows that are never trained on tell the accuracy, clean and under each attack. A fit that was
    cut off goes on with the same command, in the middle of an epoch too.

    \b
    Example:
      unperturb fit logit-correction --bank runs/bank --out runs/corrector
    """
    from unperturb.banks import open_bank
    from unperturb.correction.fit import RECORD, check_folder, fit_correction
    from unperturb.correction.stream import choose_attacks

    out = Path(options["out"])
    config = _config(options)
    check_output(out)
    check_folder(out)
    bank = open_bank(options["bank_folder"])
    attacks = choose_attacks(bank, config.attacks)
    device = setup(options["device"], options["threads"])
    show = not (options["quiet"] or options["as_json"])
    if show:
        click.echo(_preview(bank, attacks, config), err=True)
        for words in bank.weak:
            click.echo(f"warning: {words}", err=True)
    with warnings.catch_warnings():
        # They are told above, as a command tells things.
        warnings.simplefilter("ignore", UserWarning)
        corrector = fit_correction(
            bank, config, out=out, device=device, stop_after=options["stop_after"], show=show
        )
    finished = (out / RECORD).exists()
    if options["as_json"]:
        echo_json(
            {
                "finished": finished,
                "out": str(out),
                "fingerprint": corrector.fingerprint(),
                "classifier": corrector.classifier,
                "card": dict(corrector.card),
            }
        )
    elif show:
        click.echo(_sentences(corrector, out, finished))
    return 0


def _config(options: dict[str, Any]) -> CorrectionConfig:
    from unperturb.correction.config import CorrectionConfig

    names = CorrectionConfig.__dataclass_fields__
    values = {name: value for name, value in options.items() if name in names}
    if values["dropout"] is None:
        values["dropout"] = 0.0 if options["tied"] else 0.5
    values["attacks"] = tuple(
        name for part in options["attacks"].split(",") if (name := part.strip())
    )
    return CorrectionConfig(**values)


def _preview(bank: LogitBank, attacks: tuple[str, ...], config: CorrectionConfig) -> str:
    """What will be done."""
    from unperturb.correction.stream import split_rows

    held = split_rows(bank.ids, config).held
    steps = -(-(len(bank) - held) // config.batch_size)
    layers = f"{config.depth} layers" if config.depth > 1 else "1 layer"
    units = f" of {config.width} hidden units" if config.depth > 1 else ""
    return (
        f"{len(bank) - held} rows of {bank.num_classes} logits, clean or under "
        f"{', '.join(attacks)}; {held} held out. {layers}{units}, {config.epochs} epochs of "
        f"{steps} steps"
    )


def _sentences(corrector: Corrector, out: Path, finished: bool) -> str:
    """Figures on the held-out rows, before and after correction."""
    card = corrector.card
    lines = []
    if card["held_out"] is not None:
        before, after = card["held_out"]["uncorrected"], card["held_out"]["corrected"]
        shown = [f"clean {before['clean']:.1%} to {after['clean']:.1%}"]
        shown += [
            f"{name} {before['adversarial'][name]:.1%} to {value:.1%}"
            for name, value in after["adversarial"].items()
        ]
        count = card["rows"]["held_out"]
        answers = card["config"]["target"] == "answer"
        what = "the share of its own clean answers" if answers else "the accuracy"
        lines.append(f"kept epoch {card['kept_epoch']}; correction takes {what} on {count} "
                     f"held-out rows from {'; '.join(shown)}")  # fmt: skip
    else:
        lines.append(f"kept epoch {card['kept_epoch']}; no rows were held out to judge it by")
    if finished:
        lines.append(f"corrector: {out}; audit it with "
                     f"--defense 'logit-correction?corrector={out}'")  # fmt: skip
    else:
        lines.append(f"not finished: the same command without --stop-after goes on ({out})")
    return "\n".join(lines)
