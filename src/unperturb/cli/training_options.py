"""Options of every training of a defense's network."""

from __future__ import annotations

import click

from unperturb.cli.options import Wrap, stack

__all__ = ["training_options"]


def training_options(
    *, epochs: int, batch_size: int, lr: float, rate: str, milestones: str, falls: str
) -> Wrap:
    """Options of every training of a network by epochs: ``--epochs`` to ``--stop-after``.

    Args:
        epochs: Default.
        batch_size: Default.
        lr: Default.
        rate: What the learning rate is, for the help.
        milestones: Default.
        falls: What happens at a milestone, for the help.
    """
    return stack(
        click.option("--epochs", type=int, default=epochs, show_default=True,
                     help="Passes over the training images."),
        click.option("--batch-size", type=int, default=batch_size, show_default=True,
                     help="Images in a step."),
        click.option("--lr", type=float, default=lr, show_default=True, help=rate),
        click.option("--milestones", default=milestones, show_default=True,
                     help=f"Fractions of the epochs where {falls}."),
        click.option("--precision", default="float32", show_default=True,
                     help="float32 or bfloat16."),
        click.option("--holdout", type=int, default=1000, show_default=True,
                     help="Images at the end of the split that are never trained on, and "
                     "measured."),
        click.option("--stop-after", type=click.IntRange(min=1),
                     help="Stop after so many epochs, to go on later."),
    )  # fmt: skip
