"""Files in which other tools leave adversarial images, each read into one array and its ids."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unperturb.data.decode import Geometry, decode_images
from unperturb.data.parquet import find_parquet
from unperturb.data.rows import missing_path
from unperturb.errors import DataError, InputError

__all__ = ["Found", "read_found"]

_LOSSLESS = frozenset((".bmp", ".pgm", ".png", ".ppm", ".webp"))
_LOSSY = frozenset((".gif", ".jpe", ".jpeg", ".jpg", ".tif", ".tiff"))
_ARRAYS = frozenset((".npy", ".npz"))
_WRITE_AGAIN = "write it again, or leave it out: missing images are counted"


class Found(NamedTuple):
    """What a source holds, as it stands there."""

    ids: list[str] | None  # None: in the order of the audit's ids
    pixels: Tensor  # (n, ...), any dtype and layout
    form: str  # what it was read as
    files: bool = False  # ids are file names, with their suffixes


def read_found(path: Path, size: tuple[int, int, int]) -> Found:
    """Read a file or folder.

    Args:
        path: Where the user says the images are.
        size: (C, H, W) of the audit's images, for formats that hold bare numbers.

    Raises:
        DataError: There is nothing, or it cannot be read.
        InputError: Images are not of one size.
    """
    if path.is_dir():
        return _folder(path, size)
    if not path.exists():
        error = missing_path(path)
        raise DataError(error.problem, expected=_kinds(), fix=error.fix)
    readers: dict[str, Callable[[Path, tuple[int, int, int]], Found]] = {
        ".parquet": lambda file, shape: _parquet([file], shape),
        ".safetensors": _safetensors,
        ".npy": _npy,
        ".npz": _npz,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise DataError(f"{path} is a file of another kind ({suffix or 'no suffix'})",
                        expected=_kinds(), fix="name the folder of the images")  # fmt: skip
    return readers[suffix](path, size)


def _kinds() -> str:
    return (
        "a folder of lossless images or .npy arrays named by image id, or a .parquet, "
        ".safetensors, .npz or .npy file"
    )


def _folder(folder: Path, size: tuple[int, int, int]) -> Found:
    if (folder / "plan.json").is_file():
        raise DataError(
            f"{folder} is an audit's folder",
            expected=_kinds(),
            fix=f"name one of its files of images, {folder / 'images'}/ATTACKER.safetensors",
        )
    whole = folder / "images.safetensors"
    if whole.is_file():
        return _safetensors(whole, size)
    tables = find_parquet(folder)
    if tables:
        return _parquet(tables, size)
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    lossy = [file for file in files if file.suffix.lower() in _LOSSY or _is_lossy_webp(file)]
    if lossy:
        raise DataError(
            f"{len(lossy)} files of {folder} are of kinds that may be lossy (JPEG, GIF, TIFF, "
            f"lossy WebP), beginning with {lossy[0].name}",
            expected="lossless images: compression moves pixels after the attack, so what would be "
            "scored is not what the tool made",
            fix="write them as PNG, or exactly as .npy",
        )
    images = [file for file in files if file.suffix.lower() in _LOSSLESS]
    arrays = [file for file in files if file.suffix.lower() in _ARRAYS]
    if images and arrays:
        raise DataError(
            f"The folder {folder} holds {len(images)} images and {len(arrays)} arrays",
            expected="files of one kind",
            fix="name a folder with one of them",
        )
    if not images and not arrays:
        raise DataError(
            f"The folder {folder} holds no adversarial images"
            + (f" ({len(files)} other files)" if files else ": it is empty"),
            expected="lossless images or .npy arrays named by image id, such as ID.png",
            fix="check the path",
        )
    names = [file.relative_to(folder).as_posix() for file in images or arrays]
    pixels = _pictures(images) if images else _stack(arrays)
    return Found(names, pixels, "images" if images else "arrays", files=True)


def _is_lossy_webp(file: Path) -> bool:
    if file.suffix.lower() != ".webp":
        return False
    with file.open("rb") as stream:
        head = stream.read(4096)
    # A simple file has one chunk; an extended one ("VP8X") names it later.
    return b"VP8L" not in head


def _pictures(files: list[Path]) -> Tensor:
    return _decode(list(files), [file.name for file in files])


def _decode(payloads: list[Any], names: list[str]) -> Tensor:
    try:
        pixels, _ = decode_images(
            len(payloads),
            lambda: iter([(range(len(payloads)), payloads)]),
            name=lambda position: repr(names[position]),
            geometry=Geometry(),
        )
    except DataError as error:
        # Its advice is for data sets that the audit is to be run on.
        fix = _WRITE_AGAIN if "cannot be read" in error.problem else "write them all alike"
        raise DataError(error.problem, expected=error.expected, fix=fix) from None
    return pixels


def _stack(files: list[Path]) -> Tensor:
    arrays = [_only(file) for file in files]
    for file, array in zip(files, arrays, strict=True):
        if array.shape != arrays[0].shape or array.dtype != arrays[0].dtype:
            raise InputError(
                f"Outside images differ: {files[0].name} is {arrays[0].dtype} "
                f"{arrays[0].shape}, and {file.name} is {array.dtype} {array.shape}",
                expected="arrays of one shape and dtype",
                fix="write them all alike",
            )
    return _from_numpy(np.stack(arrays), files[0].parent)


def _only(file: Path) -> np.ndarray[Any, Any]:
    """The one array of a file."""
    found = _load(file)
    if isinstance(found, dict):
        if len(found) != 1:
            raise DataError(
                f"{file} holds {len(found)} arrays",
                expected="one image in each file of a folder",
                fix="name the file itself if it holds all images",
            )
        return next(iter(found.values()))
    return found


def _load(file: Path) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
    try:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {name: found[name] for name in found.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file} cannot be read ({str(error).splitlines()[0].rstrip('.')})",
            expected="an array of numbers that numpy.save or numpy.savez wrote, without pickles",
            fix=_WRITE_AGAIN,
        ) from error


def _from_numpy(array: np.ndarray[Any, Any], where: Path) -> Tensor:
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise InputError(
            f"The outside images of {where} are an array of {array.dtype}",
            expected="uint8, or floats in [0, 1]",
        )
    # torch reads neither foreign byte order nor the wider unsigned integers.
    kind = array.dtype.newbyteorder("=")
    wide = kind.kind == "u" and kind.itemsize > 1
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64 if wide else kind)))


def _npy(file: Path, size: tuple[int, int, int]) -> Found:
    array = _load(file)
    assert isinstance(array, np.ndarray)
    return Found(None, _from_numpy(array, file), "npy")


def _npz(file: Path, size: tuple[int, int, int]) -> Found:
    found = _load(file)
    if not isinstance(found, dict) or "images" not in found:
        held = ", ".join(found) if isinstance(found, dict) else "one array"
        raise DataError(
            f"{file} holds {held or 'nothing'}",
            expected="an array 'images', and 'ids' if they are not all in the audit's order",
            fix="numpy.savez(file, images=..., ids=...)",
        )
    ids = [str(name) for name in found["ids"].tolist()] if "ids" in found else None
    return _with_ids(ids, _from_numpy(found["images"], file), "npz", file)


def _safetensors(file: Path, size: tuple[int, int, int]) -> Found:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as reader:
            names = list(reader.keys())
            metadata = reader.metadata() or {}
            pixels = reader.get_tensor("images") if "images" in names else None
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{file} cannot be read ({error})",
            expected="a complete safetensors file",
            fix="write or fetch it again",
        ) from error
    if pixels is None:
        raise DataError(
            f"{file} holds {', '.join(names[:4]) or 'nothing'}",
            expected="a tensor 'images', and 'ids' (a JSON list) in the metadata",
            fix='save_file({"images": images}, file, {"ids": json.dumps(ids)})',
        )
    ids = None
    if "ids" in metadata:
        try:
            ids = [str(name) for name in json.loads(metadata["ids"])]
        except (ValueError, TypeError) as error:
            raise DataError(
                f"The ids of {file} are {metadata['ids'][:40]!r}", expected="a JSON list of ids"
            ) from error
    return _with_ids(ids, pixels, "safetensors", file)


def _with_ids(ids: list[str] | None, pixels: Tensor, form: str, file: Path) -> Found:
    if ids is not None and len(ids) != len(pixels):
        raise DataError(
            f"{file} holds {len(pixels)} images and {len(ids)} ids", expected="as many of each"
        )
    return Found(ids, pixels, form)


def _parquet(files: list[Path], size: tuple[int, int, int]) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids: list[str] = []
    parts: list[Tensor] = []
    for file in files:
        try:
            reader = pq.ParquetFile(file)
            names = reader.schema_arrow.names
            column = next((n for n in ("image", "img", "pixels") if n in names), None)
            if "id" not in names or column is None:
                raise DataError(
                    f"{file} has the columns {', '.join(names)}",
                    expected="a column id, and a column image or pixels",
                    fix="write the id of the clean image beside each adversarial one",
                )
            table = reader.read(columns=["id", column])
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"The parquet file {file} cannot be read ({str(error).splitlines()[0]})",
                expected="a complete parquet file",
                fix="write or fetch it again",
            ) from error
        if table.num_rows:
            own = [str(name) for name in table.column("id").to_pylist()]
            parts.append(_column(table.column(column), column, own, size, file))
            ids += own
    if not parts:
        return Found([], torch.empty(0), "parquet")
    if len({(part.dtype, part.shape[1:]) for part in parts}) > 1:
        raise InputError(
            f"The parquet files beside {files[0]} hold images of several shapes or kinds",
            expected="one size, all encoded or all numbers",
        )
    return Found(ids, torch.cat(parts), "parquet")


def _column(
    column: Any, name: str, ids: list[str], size: tuple[int, int, int], file: Path
) -> Tensor:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
        kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        payloads = column.to_pylist()
        lossy = [n for n, raw in zip(ids, payloads, strict=True) if raw and _lossy(raw)]
        if lossy:
            raise DataError(
                f"{len(lossy)} images of {file} are lossy, beginning with {lossy[0]!r}",
                expected="lossless images: compression moves pixels after the attack",
                fix="encode them as PNG, or write a column 'pixels'",
            )
        return _decode(payloads, ids)
    numbers, held = _numbers(column)
    if held != size and held != (size[1], size[2], size[0]) and held != (int(np.prod(size)),):
        raise InputError(
            f"The column {name!r} of {file} holds {kind}, {held or 'no one shape'} for each image",
            expected=f"encoded images, or {int(np.prod(size))} numbers for each image",
            fix="write images.reshape(n, -1).tolist(), in the order (C, H, W)",
        )
    if numbers.dtype.kind in "iu":
        # Numbers lose their width on the way through Python; whole ones are grey levels.
        if numbers.min() < 0 or numbers.max() > 255:
            raise InputError(
                f"The column {name!r} of {file} has whole numbers from {numbers.min()} to "
                f"{numbers.max()}",
                expected="grey levels from 0 to 255, or floats in [0, 1]",
            )
        numbers = numbers.astype(np.uint8)
    # Nested lists say their layout themselves; flat ones are in C order.
    shaped = numbers.reshape(len(ids), *(held if len(held) == 3 else size))
    # Arrow's memory is read-only, and torch takes none such.
    return torch.from_numpy(np.array(shaped))


def _numbers(column: Any) -> tuple[np.ndarray[Any, Any], tuple[int, ...]]:
    """Numbers of a column of (nested) lists, flat, and the shape of each; () if it has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    shape: list[int] = []
    values = pa.concat_arrays(column.chunks)
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            return np.empty(0), ()
        shape.append(int(lengths[0]))
        values = values.flatten()
    number = pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
    if not number or values.null_count:
        return np.empty(0), ()
    return values.to_numpy(zero_copy_only=False), tuple(shape)


def _lossy(raw: bytes) -> bool:
    head = raw[:4096]
    return head[:2] == b"\xff\xd8" or (head[8:12] == b"WEBP" and b"VP8L" not in head)
