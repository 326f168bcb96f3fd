"""Small image data on disk, in every form that can be loaded."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

CLASSES = ["ant", "bee", "cow"]


def picture(number: int, *, size: tuple[int, int] = (6, 5), channels: int = 3) -> np.ndarray:
    """A (height, width[, 3]) image that is different for every number."""
    rng = np.random.Generator(np.random.Philox(key=number))
    shape = size if channels == 1 else (*size, channels)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[Any],
    labels: Sequence[Any],
    *,
    ids: Sequence[Any] | None = None,
    names: Sequence[str] | None = tuple(CLASSES),
    image: str = "image",
    label: str = "label",
    image_feature: bool = True,
    rows_per_group: int = 4,
    extra: dict[str, Sequence[Any]] | None = None,
) -> Path:
    columns: dict[str, Any] = {**(extra or {})}
    if ids is not None:
        columns["id"] = pa.array(ids)
    columns[image] = pa.array(
        [cell if isinstance(cell, dict) else {"bytes": cell, "path": None} for cell in images],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    columns[label] = pa.array(labels)
    features: dict[str, Any] = {}
    if image_feature:
        features[image] = {"_type": "Image"}
    if names is not None:
        features[label] = {"names": list(names), "_type": "ClassLabel"}
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., np.ndarray]:
    return picture


@pytest.fixture(scope="session")
def make_png() -> Callable[[np.ndarray], bytes]:
    return png


@pytest.fixture(scope="session")
def make_parquet() -> Callable[..., Path]:
    return write_parquet


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    """train: pictures 0-9 and 10-19 in two files; test: pictures 100-106. Labels: number % 3."""
    root = tmp_path / "set"
    for shard, start in enumerate((0, 10)):
        numbers = range(start, start + 10)
        write_parquet(
            root / f"train-{shard:05d}-of-00002.parquet",
            [png(picture(n)) for n in numbers],
            [n % 3 for n in numbers],
            ids=[f"p{n}" for n in numbers],
        )
    numbers = range(100, 107)
    write_parquet(
        root / "test-00000-of-00001.parquet",
        [png(picture(n)) for n in numbers],
        [n % 3 for n in numbers],
        ids=[f"p{n}" for n in numbers],
    )
    return root


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """ant/0.png ant/1.png bee/2.png bee/deep/3.PNG and things to pass over."""
    root = tmp_path / "classes"
    for number, name in enumerate(("ant/0.png", "ant/1.png", "bee/2.png", "bee/deep/3.PNG")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(number)))
    (root / "notes.txt").write_text("not an image")
    (root / "ant" / ".hidden.png").write_text("not an image either")
    (root / ".cache").mkdir()
    return root
