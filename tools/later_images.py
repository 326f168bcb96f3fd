"""The same question on few images and on many: what those say that are only among the many."""

from __future__ import annotations

import numpy as np

from results import Record, percent
from unperturb.audit.statistics import accuracy, mcnemar, paired_interval

__all__ = ["later_images", "others"]

FEW, MANY = "PGD-10 with EOT-20, Linf", "PGD-10 with EOT-20"


def later_images(few: Record | None, many: Record | None) -> list[str]:
    """Pairs of rows on the images of ``atop/fine-tuning-2000`` beyond those of ``fine-tuning``."""
    if few is None or many is None or _work(few) != _work(many):
        return []
    first, whole = _pairs(few, FEW), _pairs(many, MANY)
    lines = [
        f"- *{rows[0]}* against *{rows[1]}*: {others(first[rows], whole[rows])}."
        for rows in whole
        if rows in first
    ]
    told = (
        f"The first {few['settings']['n']:,} images of `fine-tuning-2000` are those of "
        "`fine-tuning`, which raised the question. The others by themselves, under PGD-10 with "
        "EOT-20 in Linf:"
    )
    return [told, "", *lines, ""]


def _work(record: Record) -> list[object]:
    """What has to be equal, so that equal images have equal draws: seed, networks, classifier."""
    parts = [{n: v["fingerprint"] for n, v in record[k].items()} for k in ("networks", "models")]
    return [record["seed"], *parts]


def _pairs(record: Record, column: str) -> dict[tuple[str, ...], Record]:
    return {tuple(p["rows"]): p for p in record["pairs"] if p["column"] == column}


def others(few: Record, many: Record) -> str:
    """A comparison on the images that only the greater of two sets has."""
    # An image has its own draws, whatever else is in an audit: what is left are the others.
    one, other = (many[key]["correct"] - few[key]["correct"] for key in ("one", "other"))
    only_one, only_other = (many[key] - few[key] for key in ("only_one", "only_other"))
    count, both = many["one"]["n"] - few["one"]["n"], one - only_one
    shares = (both, only_one, only_other, count - both - only_one - only_other)
    first, second = (
        np.repeat(told, shares) for told in ([True, True, False, False], [True, False, True, False])
    )
    rates = [percent(accuracy(answers)) for answers in (first, second)]
    low, high = (100 * end for end in paired_interval(first, second))
    return (
        f"{rates[0]} against {rates[1]} %, {100 * (one - other) / count:.1f} points "
        f"({low:.1f} to {high:.1f}), p {mcnemar(first, second).p:.2g}, n = {count:,}"
    )
