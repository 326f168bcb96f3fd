"""Which columns of a table are logits, and which one names the true class."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unperturb.errors import DataError, InputError

__all__ = [
    "ID_COLUMNS",
    "LABEL_COLUMNS",
    "NONE",
    "PREDICTIONS",
    "check_logit_names",
    "listed",
    "logit_columns",
    "one_column",
    "repeated",
    "true_labels",
]

ID_COLUMNS = ("id",)
LABEL_COLUMNS = ("label", "labels", "fine_label")
# Not "label": that is what tables call the truth.
PREDICTIONS = ("prediction_before", "prediction", "changed")
NONE = "none"


def listed(names: Sequence[str]) -> str:
    """Names in a message: the first and the last, where there are many.

    Example:
        >>> listed([f"z{k}" for k in range(1000)])
        'z0, z1, z2, ..., z999'
    """
    shown = [name or "(no name)" for name in names]
    if len(shown) > 8:
        shown = [*shown[:3], "...", shown[-1]]
    return ", ".join(shown)


def logit_columns(asked: str | Sequence[str], names: Sequence[str], where: str) -> list[str]:
    """Columns that ``--columns`` names, in its order.

    Args:
        asked: Names; or a text of names and ranges ``FIRST:LAST`` (in the file's order, both ends
            taken), with commas between.
        names: The columns there are, in the file's order.
        where: The file, for messages.

    Raises:
        DataError: There is no such column, or one is named twice.

    Example:
        >>> logit_columns("z2,z0:z1", ["id", "z0", "z1", "z2"], "z.csv")
        ['z2', 'z0', 'z1']
    """
    parts = [part.strip() for part in asked.split(",")] if isinstance(asked, str) else list(asked)
    found: list[str] = []
    for part in parts:
        first, colon, last = part.partition(":")
        if part in names or not (isinstance(asked, str) and colon):
            found.append(_existing(part, names, where, "--columns"))
            continue
        ends = [names.index(_existing(end, names, where, "--columns")) for end in (first, last)]
        if ends[0] > ends[1]:
            raise DataError(
                f"{first!r} stands behind {last!r} in {where}",
                expected="FIRST:LAST in the order of the file",
                fix=f"--columns {last}:{first}",
            )
        found += names[ends[0] : ends[1] + 1]
    twice = repeated(found)
    if twice:
        raise DataError(
            f"--columns names {listed(twice)} twice",
            expected="each column once, in the order of the classes",
        )
    return found


def one_column(
    kind: str, asked: str | None, usual: Sequence[str], names: Sequence[str], where: str
) -> str | None:
    """The id or label column: the one asked for, else one of the usual name, else none.

    Args:
        kind: ``"id"`` or ``"label"``.
        asked: Its name; ``"none"`` where there shall be none.
        usual: Names that are taken for it if nothing is asked for.
        names: The columns there are.
        where: The file, for messages.

    Raises:
        DataError: There is no such column.

    Example:
        >>> one_column("label", None, LABEL_COLUMNS, ["z0", "label"], "z.csv")
        'label'
    """
    if asked is None:
        return next((name for name in usual if name in names), None)
    if asked == NONE and NONE not in names:
        return None
    return _existing(asked, names, where, f"--{kind}-column")


def _existing(asked: str, names: Sequence[str], where: str, option: str) -> str:
    if asked in names:
        return asked
    near = difflib.get_close_matches(asked, names, n=1, cutoff=0.5)
    raise DataError(
        f"{where} has no column {asked!r}",
        expected=f"one of its columns {listed(names)}",
        fix=f"did you mean {near[0]!r}?" if near else f"choose one with {option}",
    )


def check_logit_names(
    names: Sequence[str], num_classes: int, classes: Sequence[str], where: str, *, asked: bool
) -> None:
    """Check that there is a column for every class, in the order of the classes.

    Args:
        names: Columns that are read as logits.
        num_classes: K of the corrector.
        classes: Its class names, if it knows them.
        where: The file, for messages.
        asked: Whether the user named the columns.

    Raises:
        InputError: There are more or fewer, or they are named as the classes in another order.
    """
    if len(names) != num_classes:
        held = f": {listed(names)}" if names else ""
        what = "--columns names" if asked else f"{where} has"
        raise InputError(
            f"{what} {len(names)} columns that may be logits{held}",
            expected=f"{num_classes} columns of numbers, the classes of the corrector",
            fix="name them in the order of the classes, with --columns FIRST:LAST or "
            "--columns A,B,..., or use the corrector of that classifier",
        )
    if not asked and list(names) != list(classes) and sorted(names) == sorted(classes):
        raise InputError(
            f"The columns of {where} are named as the classes, in another order ({listed(names)})",
            expected=f"the order of the classes, {listed(classes)}",
            fix="name them in the order in which they shall be read, with --columns A,B,...",
        )


def repeated(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def true_labels(
    raw: Sequence[Any], num_classes: int, classes: Sequence[str], *, start: int, where: str
) -> Tensor:
    """Class indices (N,) of labels as a file has them: whole numbers, their text, or names.

    Args:
        raw: One label a row.
        num_classes: K.
        classes: Class names, if they are known; a whole number is an index all the same.
        start: Number of the first row, for messages.
        where: The column and file, for messages.

    Raises:
        DataError: A label is missing or is no class.

    Example:
        >>> true_labels([1, "0", "dog"], 2, ("cat", "dog"), start=0, where="z.csv").tolist()
        [1, 0, 1]
    """
    known: dict[Any, int | None] = {}
    names = {name: number for number, name in enumerate(classes)}
    for label in dict.fromkeys(raw):
        number = _whole(label)
        known[label] = names.get(label) if number is None else number
        if known[label] is None or not 0 <= (known[label] or 0) < num_classes:
            shown = "missing" if label is None or label == "" else repr(label)
            raise DataError(
                f"The label of row {start + list(raw).index(label)} (counted from 0) of {where} "
                f"is {shown}",
                expected=f"a class index from 0 to {num_classes - 1}"
                + (", or a class name of the corrector" if classes else ""),
                fix=f"correct it, or score nothing with --label-column {NONE}",
            )
    return torch.tensor([known[label] for label in raw], dtype=torch.int64)


def _whole(label: Any) -> int | None:
    """A label as a whole number, such as 3, 3.0 and "3"; else None."""
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        return None
    try:
        value = float(label)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
