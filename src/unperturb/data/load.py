"""One specification string -> labelled images."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unperturb.data.decode import Geometry, decode_images
from unperturb.data.digits import DIGITS_SPLITS, digits_arrays, digits_rows
from unperturb.data.folder import FileRows, list_image_files, open_folder
from unperturb.data.hub import open_hub
from unperturb.data.imageset import ImageSet, check_unique
from unperturb.data.labels import LabelMap, parse_label_map, resolve_labels
from unperturb.data.parquet import find_parquet, open_parquet
from unperturb.data.rows import RowSource, choose_split, missing_path
from unperturb.errors import ConfigError, DataError, SpecError

__all__ = ["load_image_files", "load_images"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")


def load_images(
    spec: str | os.PathLike[str],
    *,
    split: str | None = None,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    label_map: LabelMap | str | None = None,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    skip_broken: bool = False,
) -> ImageSet:
    """Load labelled images; the same specification string is used everywhere.

    ``spec`` is one of

    - ``digits``: scikit-learn's digits, (1, 8, 8), splits ``train`` (1,297) and ``test`` (500, 50
      of each class). A folder of that name is ``./digits``.
    - an existing path, which wins over a hub name: a parquet file; a folder of parquet files named
      ``SPLIT-NNNNN-of-NNNNN.parquet``; or class folders, ``ROOT/CLASS/...`` or
      ``ROOT/SPLIT/CLASS/...``.
    - ``owner/name``, ``owner/name:config`` or ``hub:NAME``: a data set of the Hugging Face hub.

    Rows come in file order, the first ``limit`` of them. In class folders that is one class after
    the other, so use ``shuffle`` with a limit there. With ``shuffle`` they come in a random order
    keyed by ``seed`` alone: a smaller limit gives the beginning of a larger one. Ids do not depend
    on either: the column ``id``, else ``SPLIT-ROW`` with the row counted in file order, or the
    path relative to the folder. Only the rows asked for are decoded.

    Transparent images are laid over white, CMYK and palette images become RGB, EXIF orientation is
    applied.

    Args:
        spec: Where the images are.
        split: By default ``test``, else ``validation``, ``val`` or ``valid``, else the only one.
        limit: How many rows; ``None`` for all.
        shuffle: Take rows in a random order instead of file order.
        seed: Key of that order, from 0 to 2**64 - 1.
        image_column: By default the column the metadata call an image, else ``image``, ``img`` or
            ``pixel_values``.
        label_column: By default ``label``, ``labels`` or ``fine_label``.
        label_map: Class name or source label -> index or name of a target class: a mapping, the
            path of a JSON file, or ``"cat=3,dog=5"``; see
            :func:`unperturb.data.labels.resolve_labels`.
        image_size: (height, width): resize every image (bicubic, antialiased) so that it just
            covers this size and crop the center. Without it all images must have one size.
        channels: 1 or 3; by default grey stays grey where every image is grey, else RGB.
        skip_broken: Leave broken images out (``limit`` counts them all the same) and name them in
            :attr:`ImageSet.skipped`.

    Returns:
        At least one image.

    Raises:
        SpecError: No such data set or split; the nearest are named.
        DataError: The data are missing, empty, damaged or mislabelled.
        ConfigError: ``limit``, ``seed``, ``channels`` or ``image_size`` is out of range.
        MissingExtraError: The hub is named and ``datasets`` is not installed.

    Example:
        >>> from unperturb.data import load_images
        >>> data = load_images("digits", limit=4)
        >>> data.images().shape, data.split, data.ids[0]
        (torch.Size([4, 1, 8, 8]), 'test', 'digits-0000')
    """
    if isinstance(spec, os.PathLike):
        spec = os.fspath(spec)
    if not isinstance(spec, str):
        raise SpecError(
            f"The data set is {spec!r}",
            expected="'digits', a path, or a hub name such as owner/name",
            fix="name the data set",
        )
    geometry = Geometry(channels, image_size)
    _check_choice(limit, seed)
    mapping = parse_label_map(label_map)
    if spec == "digits":
        return _digits(split, limit, shuffle, seed, mapping, geometry)
    source = _open(spec, split, image_column, label_column)
    total = len(source)
    if total == 0:
        raise DataError(
            f"{source.where} has no rows", expected="at least one image", fix="choose another split"
        )
    rows = _choose_rows(total, limit, shuffle, seed)
    # Sources read forwards; shuffled rows are put into their places afterwards.
    order = np.argsort(rows, kind="stable")
    ascending = [int(row) for row in rows[order]]
    sorted_ids, sorted_labels = source.ids_and_labels(ascending)
    check_unique(sorted_ids, source.where)
    numbers, classes = resolve_labels(
        sorted_labels, sorted_ids, source.classes, mapping, source.where
    )
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    ids = [sorted_ids[place] for place in places]

    pixels, broken = decode_images(
        len(ids),
        lambda: (
            ([int(order[position]) for position in positions], payloads)
            for positions, payloads in source.batches(ascending)
        ),
        name=lambda position: f"{ids[position]!r} of {source.where}",
        geometry=geometry,
        skip_broken=skip_broken,
    )
    kept = np.delete(np.arange(len(ids)), broken)
    return ImageSet(
        pixels=pixels,
        labels=torch.from_numpy(numbers[places][kept]),
        ids=tuple(ids[row] for row in kept),
        classes=classes,
        source=_describe(spec, source.split, len(ids), total, shuffle, seed, mapping, geometry),
        split=source.split,
        skipped=tuple(ids[row] for row in broken),
    )


def load_image_files(
    paths: Sequence[Path],
    *,
    channels: int | None = None,
    image_size: tuple[int, int] | None = None,
    skip_broken: bool = False,
) -> ImageSet:
    """Load image files without labels.

    Args:
        paths: Files, in this order, and folders, whose images are taken sorted by path, nested or
            not. A file that is named is read whatever its name is.
        channels: See :func:`load_images`.
        image_size: See :func:`load_images`.
        skip_broken: See :func:`load_images`.

    Returns:
        Images with label -1, their paths as ids and no classes.

    Raises:
        DataError: A path is not there, occurs twice, or cannot be read; or there are no images.
        ConfigError: ``channels`` or ``image_size`` is out of range.
    """
    geometry = Geometry(channels, image_size)
    files = list_image_files([Path(path).expanduser() for path in paths])
    named = ", ".join(str(path) for path in paths) or "nothing"
    if not files:
        raise DataError(
            f"No image files in {named}",
            expected="image files, or folders with image files",
            fix="check the path",
        )
    ids = [file.as_posix() for file in files]
    check_unique(ids, "the image files")
    source = FileRows(files, ids, [-1] * len(ids), classes=(), split=None, where=named)
    pixels, broken = decode_images(
        len(ids),
        lambda: source.batches(range(len(ids))),
        name=lambda position: repr(ids[position]),
        geometry=geometry,
        skip_broken=skip_broken,
    )
    gone = set(broken)
    return ImageSet(
        pixels=pixels,
        labels=torch.full((len(pixels),), -1, dtype=torch.int64),
        ids=tuple(name for row, name in enumerate(ids) if row not in gone),
        classes=(),
        source="; ".join([f"files {named}", *geometry.describe()]),
        split=None,
        skipped=tuple(ids[row] for row in broken),
    )


def _check_choice(limit: int | None, seed: int) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(
            f"limit is {limit}", expected="at least 1", fix="leave it out to load all images"
        )
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed is {seed}", expected="0 to 2**64 - 1", fix="pass for example 0")


def _choose_rows(total: int, limit: int | None, shuffle: bool, seed: int) -> np.ndarray:
    count = total if limit is None else min(limit, total)
    if not shuffle:
        return np.arange(count)
    # The raw stream is what NumPy promises to keep; Generator.permutation is not.
    values = np.random.Philox(key=seed).random_raw(total)
    return np.argsort(values, kind="stable")[:count]


def _open(
    spec: str, split: str | None, image_column: str | None, label_column: str | None
) -> RowSource:
    path = Path(spec).expanduser()
    hub, name = spec.startswith("hub:"), spec.removeprefix("hub:")
    if not spec.strip():
        raise SpecError(
            "The data set is an empty string",
            expected="'digits', a path, or a hub name such as owner/name",
            fix="pass for example --data digits",
        )
    try:
        if path.exists():
            return _open_path(path, split, image_column, label_column)
    except OSError as error:
        raise DataError(
            f"{str(path)!r} cannot be read ({error.strerror or error})",
            expected="a file or folder that may be read",
            fix="check the path and its permissions",
        ) from error
    # Where the first part is a folder here, a name with a slash is a mistyped path: going to the
    # network for it would only hide that.
    if hub or (_HUB_NAME.fullmatch(spec) and not path.parent.is_dir()):
        if spec.endswith(".parquet"):
            raise missing_path(path)
        return open_hub(name, split=split, image_column=image_column, label_column=label_column)
    if "/" in spec or spec.startswith("~") or path.suffix:
        hint = f"or hub:{spec}" if _HUB_NAME.fullmatch(spec) else ""
        raise missing_path(path, hint=hint)
    names = ["digits", *sorted(entry.name for entry in Path().iterdir())]
    near = difflib.get_close_matches(spec, names, n=2, cutoff=0.6)
    raise SpecError(
        f"Unknown data set {spec!r}",
        expected="'digits', an existing file or folder, or a hub name such as owner/name",
        fix=f"did you mean {' or '.join(map(repr, near))}?" if near else f"for the hub: hub:{spec}",
    )


def _open_path(
    path: Path, split: str | None, image_column: str | None, label_column: str | None
) -> RowSource:
    files = [path] if path.is_file() else find_parquet(path)
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise DataError(
            f"The file {str(path)!r} is no parquet file",
            expected="a file named *.parquet, or a folder",
            fix="name a parquet file or the folder; for single images use 'unperturb predict'",
        )
    if not files:
        return open_folder(path, split=split)
    return open_parquet(
        path, files, split=split, image_column=image_column, label_column=label_column
    )


def _describe(
    spec: str,
    split: str | None,
    count: int,
    total: int,
    shuffle: bool,
    seed: int,
    mapping: Mapping[str, str | int] | None,
    geometry: Geometry,
) -> str:
    parts = [spec]
    if split is not None:
        parts.append(f"split {split}")
    if shuffle:
        parts.append(f"{count} of {total} rows, shuffled with seed {seed}")
    else:
        parts.append(f"all {total} rows" if count == total else f"first {count} of {total} rows")
    if mapping is not None:
        parts.append(
            "labels mapped " + ",".join(f"{key}={value}" for key, value in mapping.items())
        )
    return "; ".join([*parts, *geometry.describe()])


def _digits(
    split: str | None,
    limit: int | None,
    shuffle: bool,
    seed: int,
    mapping: Mapping[str, str | int] | None,
    geometry: Geometry,
) -> ImageSet:
    chosen = choose_split(split, DIGITS_SPLITS, "digits")
    pixels, labels = digits_arrays()
    all_rows = digits_rows(labels, chosen)
    picked = _choose_rows(len(all_rows), limit, shuffle, seed)
    rows = [all_rows[row] for row in picked]
    ids = tuple(f"digits-{row:04d}" for row in rows)
    numbers, classes = resolve_labels(
        labels[rows].tolist(), ids, tuple(map(str, range(10))), mapping, "digits"
    )
    return ImageSet(
        pixels=_fit(pixels[rows], geometry),
        labels=torch.from_numpy(numbers),
        ids=ids,
        classes=classes,
        source=_describe(
            "digits", chosen, len(rows), len(all_rows), shuffle, seed, mapping, geometry
        ),
        split=chosen,
    )


def _fit(pixels: Tensor, geometry: Geometry) -> Tensor:
    """``geometry`` for float images, which do not pass through Pillow."""
    if geometry.image_size is not None:
        height, width = geometry.image_size
        scale = max(height / pixels.shape[2], width / pixels.shape[3])
        size = [
            max(height, round(pixels.shape[2] * scale)),
            max(width, round(pixels.shape[3] * scale)),
        ]
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        pixels = pixels[:, :, top : top + height, left : left + width].clamp(0.0, 1.0)
    if geometry.channels == 3:
        pixels = pixels.expand(-1, 3, -1, -1)
    return pixels.contiguous()
