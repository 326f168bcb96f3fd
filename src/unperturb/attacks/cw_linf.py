"""Bounded C&W: projected gradient descent on the margin of Carlini and Wagner (2017)."""

from __future__ import annotations

from unperturb.attacks.engine import FirstOrder

__all__ = ["make_cw_linf"]


def make_cw_linf(steps: int | None) -> FirstOrder:
    """``cw-linf``: 100 steps of eps/4 on the margin, from a random start ("CW-100").

    Raises ``max_{j != y} z_j - z_y``, which is minus ``f_6`` of Carlini and Wagner (2017, section
    V-A) with an unbounded confidence: the bounded form that papers on adversarial training and
    purification run as CW with a number of steps. They state no step size; this is PGD's.

    Args:
        steps: Gradient steps; 100 where None.

    Example:
        >>> make_cw_linf(None).name
        'cw-linf-100'
    """
    count = 100 if steps is None else steps
    return FirstOrder(
        name=f"cw-linf-{count}", steps=count, step_size=0.25, random_start=True, loss="margin"
    )
