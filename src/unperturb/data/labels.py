"""Labels as a source has them -> class indices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from unperturb.errors import DataError

__all__ = ["LabelMap", "parse_label_map", "resolve_labels"]

LabelMap: TypeAlias = Mapping[str, str | int]


def parse_label_map(given: LabelMap | str | None) -> dict[str, str | int] | None:
    """A label map from a mapping, the path of a JSON file, or ``"cat=3,dog=5"``.

    Returns:
        Source label (as text) -> target index, or -> target name; never both kinds.

    Raises:
        DataError: It cannot be read, is empty, or mixes indices and names.

    Example:
        >>> parse_label_map("cat=3, dog=5")
        {'cat': 3, 'dog': 5}
    """
    if given is None:
        return None
    if isinstance(given, str):
        found: Any = (
            _inline(given) if "=" in given and not given.endswith(".json") else _file(given)
        )
    else:
        found = given
    if not isinstance(found, Mapping) or not found:
        raise DataError(
            f"The label map {given!r} holds no pairs",
            expected="source label -> target index or name",
            fix="write it as cat=3,dog=5 or as a JSON object",
        )
    pairs = {str(key): value for key, value in found.items()}
    kinds = {type(value) for value in pairs.values()}
    if kinds not in ({int}, {str}):
        raise DataError(
            f"The label map has targets of type {', '.join(sorted(k.__name__ for k in kinds))}",
            expected="indices only (int) or names only (str)",
            fix="write all targets as indices, or all as names",
        )
    negative = [key for key, value in pairs.items() if isinstance(value, int) and value < 0]
    if negative:
        raise DataError(
            f"The label map sends {negative[0]!r} to {pairs[negative[0]]}",
            expected="indices from 0",
            fix="correct the target",
        )
    return pairs


def _inline(text: str) -> dict[str, str | int]:
    pairs: dict[str, str | int] = {}
    for part in text.split(","):
        key, sign, value = (word.strip() for word in part.rpartition("="))
        if not (key and sign and value):
            raise DataError(
                f"The label map {text!r} has the part {part!r}",
                expected="pairs such as cat=3,dog=5",
                fix="write it so, or put it into a JSON file",
            )
        if key in pairs:
            raise DataError(
                f"The label map {text!r} names {key!r} twice",
                expected="each source label once",
                fix="remove one of the two",
            )
        pairs[key] = int(value) if value.isdecimal() else value
    return pairs


def _file(name: str) -> Any:
    try:
        return json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"The label map {name!r} cannot be read ({error})",
            expected="a JSON file with one object, or pairs such as cat=3,dog=5",
            fix="check the path and the file",
        ) from error


def resolve_labels(
    raw: Sequence[Any],
    ids: Sequence[str],
    classes: tuple[str, ...],
    label_map: Mapping[str, str | int] | None,
    where: str,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices and the class names they index.

    Without a map, labels must be integers in ``[0, len(classes))``. With one, the class name of a
    label is looked up first and the label itself, as text, second. Target names that all are class
    names of the source keep the source's indices; otherwise names are numbered in the order in
    which the map first names them.

    Args:
        raw: One label a row, as the source has it.
        ids: One id a row, for messages.
        classes: The source's class names; empty where labels are strings.
        label_map: From :func:`parse_label_map`.
        where: The source, for messages.

    Returns:
        (N,) ``int64`` labels and the class names.

    Raises:
        DataError: Labels are null, negative, out of range, of another type, or not in the map.
    """
    _refuse(raw, ids, [label is None for label in raw], "null", where)
    if label_map is not None:
        odd = [not isinstance(label, str | int) for label in raw]
        _refuse(raw, ids, odd, "neither whole numbers nor names", where)
        return _mapped(raw, classes, label_map, where)
    texts = sorted({label for label in raw if isinstance(label, str)})
    if texts:
        shown = ", ".join(map(repr, texts[:5])) + (", ..." if len(texts) > 5 else "")
        raise DataError(
            f"The labels of {where} are strings ({shown})",
            expected="class indices",
            fix="say which index each has with --label-map "
            f"(label_map={{{texts[0]!r}: 0, ...}}, or a JSON file)",
        )
    odd = [not isinstance(label, int) for label in raw]
    _refuse(raw, ids, odd, "not whole numbers", where)
    if any(label < 0 for label in raw):
        _refuse(raw, ids, [label < 0 for label in raw], "negative (unlabelled rows?)", where)
    high = [label >= len(classes) for label in raw]
    _refuse(raw, ids, high, f"out of range for {len(classes)} classes", where)
    return np.asarray([int(label) for label in raw], dtype=np.int64), classes


def _refuse(
    raw: Sequence[Any], ids: Sequence[str], bad: Sequence[bool], what: str, where: str
) -> None:
    if not any(bad):
        return
    row = bad.index(True)
    raise DataError(
        f"{sum(bad)} of {len(raw)} labels of {where} are {what}; the first is {raw[row]!r} "
        f"of {ids[row]!r}",
        expected="class indices from 0 to the number of classes - 1",
        fix="choose another split or --label-column, correct the labels, or use --label-map",
    )


def _mapped(
    raw: Sequence[Any],
    classes: tuple[str, ...],
    label_map: Mapping[str, str | int],
    where: str,
) -> tuple[np.ndarray, tuple[str, ...]]:
    targets: dict[Any, str | int] = {}
    unmapped: list[str] = []
    for label in dict.fromkeys(raw):
        inside = isinstance(label, int) and 0 <= label < len(classes)
        name = classes[int(label)] if inside else str(label)
        if name in label_map:
            targets[label] = label_map[name]
        elif str(label) in label_map:
            targets[label] = label_map[str(label)]
        else:
            unmapped.append(name)
    if unmapped:
        listed = ", ".join(map(repr, sorted(unmapped)[:10])) + (", ..." * (len(unmapped) > 10))
        raise DataError(
            f"{len(unmapped)} labels of {where} are not in the label map: {listed}",
            expected="a target for every label that occurs",
            fix="add them to the label map",
        )
    values = list(label_map.values())
    if all(isinstance(value, int) for value in values):
        names = _index_names(label_map, classes)
        index: dict[str | int, int] = {value: int(value) for value in values}
    else:
        names = tuple(str(value) for value in dict.fromkeys(values))
        if set(names) <= set(classes):
            names = classes
        index = {name: number for number, name in enumerate(names)}
    return np.asarray([index[targets[label]] for label in raw], dtype=np.int64), names


def _index_names(label_map: Mapping[str, str | int], classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of target indices: the source's name where just one is sent there, else the number."""
    sources: dict[int, list[str]] = {}
    for key, value in label_map.items():
        known = key.isdecimal() and key not in classes and int(key) < len(classes)
        sources.setdefault(int(value), []).append(classes[int(key)] if known else key)
    names = []
    for number in range(max(sources) + 1):
        found = sources.get(number, [])
        names.append(found[0] if len(found) == 1 else str(number))
    return tuple(names)
