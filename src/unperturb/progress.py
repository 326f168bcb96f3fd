"""Progress bars with the time left, on standard error, silent when nobody watches."""

from __future__ import annotations

from typing import Any

__all__ = ["progress"]


def progress(
    *, total: int, desc: str, initial: int = 0, show: bool = True, unit: str = "it"
) -> Any:
    """A tqdm bar on standard error.

    Args:
        total: Number of steps in all.
        desc: What is being done.
        initial: Steps that were already done.
        show: False makes it silent.
        unit: Name of a step.
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=desc,
        initial=initial,
        disable=not show,
        unit=unit,
        dynamic_ncols=True,
        # Logs of unattended runs get a line every few seconds, not a hundred a second.
        mininterval=0.5,
    )
