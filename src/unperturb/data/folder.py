"""Folders of image files: one folder a class, or unlabelled."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unperturb.data.decode import Batch
from unperturb.data.rows import TEST_SPLITS, choose_split, missing_path
from unperturb.errors import DataError

__all__ = ["SUFFIXES", "FileRows", "list_image_files", "open_folder"]

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""File names that count as images in a folder, in any case."""

_SPLIT_NAMES = ("train", "training", *TEST_SPLITS)
_BATCH = 1024


class FileRows:
    """Image files in a fixed order (a :class:`unperturb.data.rows.RowSource`).

    Args:
        files: The files.
        ids: One id a file.
        labels: One label a file.
        classes: Class names.
        split: The split, if the folder has splits.
        where: What the user named.
    """

    def __init__(
        self,
        files: Sequence[Path],
        ids: Sequence[str],
        labels: Sequence[int],
        *,
        classes: tuple[str, ...],
        split: str | None,
        where: str,
    ) -> None:
        self.split: str | None = split
        self.where: str = where
        self.classes: tuple[str, ...] = classes
        self._files, self._ids, self._labels = files, ids, labels

    def __len__(self) -> int:
        return len(self._files)

    def ids_and_labels(self, rows: Sequence[int]) -> tuple[list[str], list[Any]]:
        """Ids and labels of ``rows``."""
        return [self._ids[row] for row in rows], [self._labels[row] for row in rows]

    def batches(self, rows: Sequence[int]) -> Iterator[Batch]:
        """Paths of ``rows``; files are opened where they are decoded."""
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            yield range(start, start + len(part)), [self._files[row] for row in part]


def open_folder(root: Path, *, split: str | None = None) -> FileRows:
    """Files of ``root/CLASS/...`` or ``root/SPLIT/CLASS/...``.

    Classes are numbered in the order of their folders' names (as text: "10" before "2"), files are
    sorted by path, ids are paths relative to ``root``. Class folders may be nested. Where there are
    splits, the classes are those of all splits together, so that a class missing from one split
    does not shift the labels. Hidden files and files that are no images by name are passed over.

    Raises:
        DataError: The folder is empty, or has no class folders or no images.
        SpecError: There is no such split.
    """
    folders = _folders(root)
    if not folders:
        loose = list_image_files([root])
        if not loose:
            raise DataError(
                f"The folder {root} is empty: no parquet files and no class folders",
                expected="ROOT/CLASS/*.png, ROOT/SPLIT/CLASS/*.png, or parquet files",
                fix="check the path",
            )
        raise DataError(
            f"The folder {root} has {len(loose)} images and no class folders",
            expected="one folder a class: ROOT/CLASS/*.png",
            fix="sort the images into class folders; for images without labels use "
            "'unperturb predict'",
        )
    if not _has_splits(folders):
        if split is not None:
            listed = ", ".join(folder.name for folder in folders[:5])
            raise DataError(
                f"The folder {root} has no split {split!r}: its folders are classes ({listed})",
                expected="no --split, or ROOT/SPLIT/CLASS/*.png",
                fix="leave --split out, or name the folder of the split as the data set",
            )
        return _labelled(root, root, [folder.name for folder in folders], None)
    by_name = {folder.name: folder for folder in folders}
    chosen = choose_split(split, sorted(by_name), str(root))
    classes = {entry.name for folder in folders for entry in _folders(folder)}
    return _labelled(root, by_name[chosen], sorted(classes), chosen)


def list_image_files(paths: Sequence[Path]) -> list[Path]:
    """The files named and, sorted by path, the image files in the folders named, nested or flat.

    Raises:
        DataError: A path is not there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += _walk(path)
        elif path.exists():
            found.append(path)
        else:
            raise missing_path(path)
    return found


def _labelled(root: Path, folder: Path, classes: Sequence[str], split: str | None) -> FileRows:
    files: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        inside = _walk(folder / name)
        files += inside
        labels += [number] * len(inside)
    if not files:
        raise DataError(
            f"The folder {folder} has {len(classes)} folders and no images in them",
            expected=f"images ({', '.join(sorted(SUFFIXES))}) in class folders",
            fix="check the path",
        )
    ids = [file.relative_to(root).as_posix() for file in files]
    return FileRows(files, ids, labels, classes=tuple(classes), split=split, where=str(root))


def _has_splits(folders: Sequence[Path]) -> bool:
    for folder in folders:
        if folder.name in _SPLIT_NAMES and _folders(folder) and not _has_images(folder):
            return True
    if any(_has_images(folder) for folder in folders):
        return False
    return any(_has_images(inner) for folder in folders for inner in _folders(folder))


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and _shown(entry.name))


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) and not entry.is_dir() for entry in entries)


def _walk(folder: Path) -> list[Path]:
    files: list[Path] = []
    for base, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if _shown(name)]
        files += [Path(base, name) for name in names if _is_image(name)]
    return sorted(files)


def _shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_image(name: str) -> bool:
    return _shown(name) and Path(name).suffix.lower() in SUFFIXES
