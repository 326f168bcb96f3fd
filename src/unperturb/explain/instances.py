"""What single images' lists say of the true class and of one class (Li et al. 2019, App. B)."""

from __future__ import annotations

from typing import Any

from unperturb.audit.statistics import rate
from unperturb.errors import ConfigError, InputError
from unperturb.explain.supporting import Supporting

__all__ = ["instance_shares"]


def instance_shares(
    found: Supporting, *, focus: int | None = None, among: int = 3
) -> dict[str, Any]:
    """What appendix B says of single images, as shares with Wilson's 95 % intervals.

    "For DeepFool the top S_k is the true class": the share of images whose greatest ``S_k`` is
    that of the true class. "One class in the top three tracks success": the share of images with
    class ``focus`` among their ``among`` greatest ``S_k``, for images the corrector gets right and
    for the others (the paper: class 640 of ImageNet, for PGD and MIM).

    Args:
        found: What `supporting_classes` found, of all images.
        focus: The class; by default the most frequent one.
        among: How many places count as top; at most the length of the lists.

    Returns:
        ``top_is_true``, ``focus``, ``among``, ``focus_on_top`` with ``corrected``, ``uncorrected``
        and ``all``; None for a share of no images.

    Raises:
        ConfigError: ``focus`` is no class, or ``among`` is below 1.
        InputError: No image has supporting classes.
    """
    if among < 1:
        raise ConfigError(f"among is {among}", expected="at least 1 place")
    if focus is not None and not 0 <= focus < found.num_classes:
        raise ConfigError(
            f"The class in focus is {focus}", expected=f"one from 0 to {found.num_classes - 1}"
        )
    if not found.classes():
        raise InputError("No image has supporting classes", expected="at least one that has")
    focus = found.classes()[0] if focus is None else focus
    among = min(among, found.top)
    lists = found.score.indices[~found.flat]
    labels, right = found.labels[~found.flat], found.corrected[~found.flat]
    on_top = (lists[:, :among] == focus).any(1)
    return {
        "n": len(lists),
        "top_is_true": rate((lists[:, 0] == labels).numpy()),
        "focus": focus,
        "among": among,
        "focus_on_top": {
            "corrected": rate(on_top[right].numpy()),
            "uncorrected": rate(on_top[~right].numpy()),
            "all": rate(on_top.numpy()),
        },
    }
