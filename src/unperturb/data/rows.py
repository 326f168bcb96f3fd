"""What every source offers before an image is decoded: rows, splits, columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from unperturb.data.decode import Batch
from unperturb.errors import DataError, unknown_name

__all__ = ["RowSource", "choose_columns", "choose_split", "class_numbers", "missing_path"]

IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")
TEST_SPLITS = ("test", "validation", "val", "valid")

_MOST_CLASSES = 100_000


class RowSource(Protocol):
    """Rows of one split in file order; nothing is decoded until ``batches`` is read."""

    @property
    def split(self) -> str | None: ...

    @property
    def where(self) -> str:
        """The source as a message should name it."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; empty where labels are not class indices."""
        ...

    def __len__(self) -> int: ...

    def ids_and_labels(self, rows: Sequence[int]) -> tuple[list[str], list[Any]]:
        """Ids and labels as the source has them, of ascending ``rows``."""
        ...

    def batches(self, rows: Sequence[int]) -> Iterator[Batch]:
        """Encoded images of ascending ``rows``; positions count within ``rows``."""
        ...


def choose_split(asked: str | None, splits: Sequence[str], where: str) -> str:
    """The split that was asked for, or the one meant for testing.

    Without a wish: ``test``, else ``validation``, ``val`` or ``valid``, else the only one.

    Raises:
        SpecError: There is no such split; the nearest are named.
        DataError: Nothing was asked for and several splits could be meant.

    Example:
        >>> choose_split(None, ["train", "validation"], "cifar10")
        'validation'
    """
    if asked is not None:
        if asked not in splits:
            raise unknown_name("split", asked, splits)
        return asked
    for name in TEST_SPLITS:
        if name in splits:
            return name
    if len(splits) == 1:
        return splits[0]
    raise DataError(
        f"{where} has the splits {', '.join(splits)} and none of them is named for testing",
        expected=f"one of {', '.join(TEST_SPLITS)}, or a choice",
        fix="choose one with --split (split=...)",
    )


def choose_columns(
    columns: Sequence[str],
    features: Mapping[str, str],
    *,
    image: str | None,
    label: str | None,
    where: str,
) -> tuple[str, str]:
    """Names of the image and the label column.

    Args:
        columns: The columns there are.
        features: Column name -> feature type (``"Image"``, ``"ClassLabel"``), where it is known.
        image: The image column asked for.
        label: The label column asked for.
        where: The source, for messages.

    Raises:
        DataError: A column is missing or cannot be told; the columns are listed.
    """
    pictures = [name for name in columns if features.get(name) == "Image"]
    named = [name for name in IMAGE_COLUMNS if name in columns]
    if len(pictures) != 1:
        pictures = [name for name in named if name in pictures] or (pictures and []) or named
    image = _column("image", image, pictures[:1], columns, where)
    labels = [name for name in LABEL_COLUMNS if name in columns]
    if not labels:
        kinds = [name for name in columns if features.get(name) == "ClassLabel"]
        labels = kinds if len(kinds) == 1 else []
    return image, _column("label", label, labels[:1], columns, where)


def _column(
    kind: str, asked: str | None, found: Sequence[str], columns: Sequence[str], where: str
) -> str:
    listed = ", ".join(columns)
    if asked is not None:
        if asked in columns:
            return asked
        near = difflib.get_close_matches(asked, columns, n=1, cutoff=0.5)
        raise DataError(
            f"{where} has no column {asked!r}",
            expected=f"one of its columns {listed}",
            fix=f"did you mean {near[0]!r}?" if near else f"choose one with --{kind}-column",
        )
    if found:
        return found[0]
    usual = IMAGE_COLUMNS if kind == "image" else LABEL_COLUMNS
    raise DataError(
        f"No {kind} column can be told among the columns of {where}: {listed}",
        expected=f"a column named {', '.join(usual)}",
        fix=f"name it with --{kind}-column ({kind}_column=...)",
    )


def class_numbers(highest: int, column: str, where: str) -> tuple[str, ...]:
    """Class names for integer labels without names: "0" to the highest label.

    Raises:
        DataError: The labels are too large to be class indices.
    """
    if highest >= _MOST_CLASSES:
        raise DataError(
            f"The column {column!r} of {where} has values up to {highest}",
            expected=f"class indices below {_MOST_CLASSES}",
            fix="choose the column of class indices with --label-column",
        )
    return tuple(str(number) for number in range(highest + 1))


def missing_path(path: Path, *, hint: str = "") -> DataError:
    """The error for a path that is not there, with its nearest sibling.

    Args:
        path: What was asked for.
        hint: What else could have been meant.
    """
    near: list[str] = []
    if path.parent.is_dir():
        siblings = sorted(entry.name for entry in path.parent.iterdir())
        near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    fix = f"did you mean {str(path.parent / near[0])!r}?" if near else "check the path"
    return DataError(
        f"There is no file or folder {str(path)!r}",
        expected="an existing parquet file, folder of parquet files or folder of class folders"
        + (f", {hint}" if hint else ""),
        fix=fix,
    )
