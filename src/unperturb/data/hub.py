"""Data sets of the Hugging Face hub, through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unperturb.data.decode import Batch, Payload
from unperturb.data.rows import choose_columns, choose_split, class_numbers
from unperturb.errors import DataError, MissingExtraError, SpecError, unknown_name

__all__ = ["HubRows", "open_hub"]

_BATCH = 1024


def open_hub(
    name: str,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> HubRows:
    """Rows of one split of a hub data set.

    Args:
        name: ``owner/name``, or ``owner/name:config`` where the data set has configurations.
        split: The split wanted; see :func:`unperturb.data.rows.choose_split`.
        image_column: See :func:`unperturb.data.parquet.open_parquet`.
        label_column: See :func:`unperturb.data.parquet.open_parquet`.

    Raises:
        DataError: The hub cannot be reached, or has no such data set.
        SpecError: There is no such split.
        MissingExtraError: ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "datasets", extra="hub", purpose=f"Loading {name!r} from the hub", detail=str(error)
        ) from error
    repository, _, config = name.partition(":")
    try:
        found = datasets.load_dataset(repository, config or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _not_loaded(name, error) from error
    if isinstance(found, Mapping):
        chosen = choose_split(split, sorted(map(str, found)), name)
        rows = found[chosen]
    else:
        chosen, rows = str(found.split or "data"), found
        if split not in (None, chosen):
            raise unknown_name("split", str(split), [chosen])
    return HubRows(rows, chosen, name, image_column=image_column, label_column=label_column)


class HubRows:
    """Rows of a ``datasets.Dataset`` (a :class:`unperturb.data.rows.RowSource`).

    Args:
        dataset: The data set; it is not changed.
        split: The name of its split.
        where: How messages name it.
        image_column: See :func:`open_hub`.
        label_column: See :func:`open_hub`.
    """

    def __init__(
        self,
        dataset: Any,
        split: str,
        where: str,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        import datasets

        self.split: str = split
        self.where: str = f"{where} ({split})"
        features = dataset.features
        kinds = {name: type(feature).__name__ for name, feature in features.items()}
        columns = list(dataset.column_names)
        image, label = choose_columns(
            columns, kinds, image=image_column, label=label_column, where=self.where
        )
        if kinds[image] == "Image":
            dataset = dataset.cast_column(image, datasets.Image(decode=False))
        elif not str(getattr(features[image], "dtype", "")).endswith("binary"):
            raise DataError(
                f"The column {image!r} of {self.where} holds {features[image]}",
                expected="an Image feature or encoded bytes",
                fix="choose another column with --image-column",
            )
        self._id = "id" if "id" in columns else None
        # Formats such as "torch" would turn bytes and labels into tensors.
        self._images = dataset.with_format(None).select_columns([image])
        keys = [label] + ([self._id] if self._id else [])
        self._keys = dataset.with_format(None).select_columns(keys)
        self._image, self._label = image, label
        self.classes: tuple[str, ...] = self._classes(features[label])

    def __len__(self) -> int:
        return len(self._images)

    def ids_and_labels(self, rows: Sequence[int]) -> tuple[list[str], list[Any]]:
        """Ids and labels of ``rows``."""
        table = self._keys[list(rows)]
        if self._id is None:
            ids = [f"{self.split}-{row:06d}" for row in rows]
        else:
            ids = [str(name) for name in table[self._id]]
        return ids, list(table[self._label])

    def batches(self, rows: Sequence[int]) -> Iterator[Batch]:
        """Encoded images of ``rows``."""
        for start in range(0, len(rows), _BATCH):
            part = list(rows[start : start + _BATCH])
            cells = self._images[part][self._image]
            yield range(start, start + len(part)), [_payload(cell) for cell in cells]

    def _classes(self, feature: Any) -> tuple[str, ...]:
        names = getattr(feature, "names", None)
        if names:
            return tuple(str(name) for name in names)
        if "int" not in str(getattr(feature, "dtype", "")) or not len(self):
            return ()
        labels = [label for label in self._keys[:][self._label] if label is not None]
        return class_numbers(max(labels, default=-1), self._label, self.where)


def _payload(cell: Any) -> Payload:
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, Mapping):
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        return Path(cell["path"]) if cell.get("path") else None
    return None


def _not_loaded(name: str, error: Exception) -> DataError | SpecError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if type(error).__name__ in ("DatasetNotFoundError", "DataFilesNotFoundError"):
        return DataError(
            f"The hub has no data set {name!r} that can be read ({reason})",
            expected="an existing data set, public or one you are logged in for",
            fix="check the name on huggingface.co/datasets, or name a local path",
        )
    if isinstance(error, ConnectionError):
        return DataError(
            f"The data set {name!r} is not here and the hub cannot be reached ({reason})",
            expected="a network connection, or the data set in the local cache",
            fix="connect and try again, or download it elsewhere and name its folder",
        )
    if "config" in reason.lower():
        return SpecError(
            f"The data set {name!r} has several configurations ({reason})",
            expected="one of them",
            fix=f"add it with a colon: {name.partition(':')[0]}:CONFIG",
        )
    return DataError(
        f"The data set {name!r} cannot be loaded ({type(error).__name__}: {reason})",
        expected="a data set that 'datasets' can load",
        fix="check the name, or name a local path",
    )
