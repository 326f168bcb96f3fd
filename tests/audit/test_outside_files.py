"""Adversarial images of other tools, read whatever they come in; what cannot be read is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from audit.pictures import SHAPE, eight, floats, picture
from unperturb.audit.outside import outside_name, read_outside
from unperturb.errors import ConfigError, DataError, InputError

IDS = [f"test-{n:03d}" for n in range(5)]


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    picture(pixels).save(stream, format=form, **options)
    return stream.getvalue()


def write_folder(folder: Path, suffix: str, names: list[str], **options: Any) -> Path:
    """A folder of image files named by id."""
    for name, pixels in zip(names, eight(), strict=True):
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(pixels).save(path, **options)
    return folder


def write_parquet(path: Path, column: str, values: Any, ids: Any = IDS) -> Path:
    """A parquet file of ids and images."""
    pq.write_table(pa.table({"id": ids, column: values}), path, row_group_size=2)
    return path


def npy_folder(folder: Path) -> Path:
    folder.mkdir()
    for name, pixels in zip(IDS, floats(), strict=True):
        np.save(folder / f"{name}.npy", pixels.permute(1, 2, 0).numpy())
    return folder


def npz_folder(folder: Path) -> Path:
    folder.mkdir()
    for name, pixels in zip(IDS, eight(), strict=True):
        np.savez(folder / f"{name}.npz", pixels)
    return folder


def npy(path: Path) -> Path:
    np.save(path.with_suffix(".npy"), eight().transpose(0, 2, 3, 1))
    return path.with_suffix(".npy")


def npz(path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), images=floats().double().numpy(), ids=np.array(IDS))
    return path.with_suffix(".npz")


def safetensors(path: Path, ids: list[str] | None = None) -> Path:
    path = path.with_suffix(".safetensors")
    metadata = {} if ids is None else {"ids": json.dumps(ids)}
    save_file({"images": floats()}, path, metadata=metadata)
    return path


SOURCES: dict[str, Callable[[Path], Any]] = {
    "png": lambda at: write_folder(at, ".png", IDS),
    "bmp": lambda at: write_folder(at, ".bmp", IDS),
    "webp": lambda at: write_folder(at, ".webp", IDS, lossless=True),
    "npy folder": npy_folder,
    "npz folder": npz_folder,
    "npy": npy,
    "npz": npz,
    "parquet bytes": lambda at: write_parquet(
        at.with_suffix(".parquet"), "image", [encoded(p) for p in eight()]
    ),
    "parquet struct": lambda at: write_parquet(
        at.with_suffix(".parquet"), "image", [{"bytes": encoded(p), "path": None} for p in eight()]
    ),
    "parquet grey levels": lambda at: write_parquet(
        at.with_suffix(".parquet"), "pixels", eight().reshape(5, -1).tolist()
    ),
    "parquet bytes of levels": lambda at: write_parquet(
        at.with_suffix(".parquet"), "pixels", pa.array(list(eight().reshape(5, -1)))
    ),
    "parquet floats": lambda at: write_parquet(
        at.with_suffix(".parquet"), "pixels", floats().flatten(1).tolist()
    ),
    "parquet nested": lambda at: write_parquet(
        at.with_suffix(".parquet"), "pixels", eight().transpose(0, 2, 3, 1).tolist()
    ),
    "safetensors": lambda at: safetensors(at, IDS),
    "safetensors without ids": safetensors,
    "tensor": lambda at: floats().permute(0, 2, 3, 1),
    "array": lambda at: eight(),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_file_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    found = read_outside(SOURCES[kind](tmp_path / "mine"), IDS, SHAPE, name="mine")
    assert torch.equal(found.images, floats())
    assert found.images.dtype == torch.float32
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    facts = {"name": "mine", "n": 5, "missing": 0, "eight_bit": True}
    assert facts.items() <= found.facts.items()
    assert json.loads(json.dumps(found.facts)) == found.facts
    assert str(tmp_path) not in json.dumps(found.facts)


@pytest.mark.parametrize("kind", ["png", "npz", "parquet bytes", "safetensors"])
def test_images_with_ids_may_be_few_and_in_any_order(kind: str, tmp_path: Path) -> None:
    whole = ["other", *reversed(IDS), "another"]
    found = read_outside(SOURCES[kind](tmp_path / "mine"), whole, SHAPE)
    assert found.rows.tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(found.images, floats().flip(0))
    assert found.facts["missing"] == 2


def test_ids_that_are_paths_are_found_with_another_suffix(tmp_path: Path) -> None:
    ids = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "v1.5-7", "same.png"]
    folder = write_folder(tmp_path / "mine", ".png", ["cat/1", "cat/2", "dog/1", "v1.5-7", "same"])
    found = read_outside(folder, ids, SHAPE)
    assert found.rows.tolist() == [0, 1, 2, 3, 4]


def test_a_file_that_two_ids_could_mean_is_refused(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e"]
    folder = write_folder(tmp_path / "mine", ".bmp", names)
    with pytest.raises(DataError, match=r"1 of 5 .* does not know: 'a.bmp'"):
        read_outside(folder, ["a.png", "a.jpg", "b.png", "c.png", "d.png", "e.png"], SHAPE)


def test_the_fingerprint_is_that_of_pixels_and_ids(tmp_path: Path) -> None:
    one = read_outside(SOURCES["png"](tmp_path / "a"), IDS, SHAPE).facts["sha256"]
    assert read_outside(SOURCES["safetensors"](tmp_path / "b"), IDS, SHAPE).facts["sha256"] == one
    assert read_outside(floats() * 0.5, IDS, SHAPE).facts["sha256"] != one
    assert read_outside(floats(), IDS[::-1], SHAPE).facts["sha256"] != one


def test_rounding_just_out_of_the_range_is_mended() -> None:
    images = floats().double()
    images[0, 0, 0, 0], images[1, 0, 0, 0] = -1e-8, 1 + 1e-8
    found = read_outside(images, IDS, SHAPE)
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1


# -- what is refused ----------------------------------------------------------------------------


def _changed(change: Callable[[Tensor], None]) -> Tensor:
    images = floats()
    change(images)
    return images


def _set(value: float) -> Callable[[Tensor], None]:
    def change(images: Tensor) -> None:
        images[3, 0, 0, 0] = value

    return change


@pytest.mark.parametrize(
    ("images", "kind", "words"),
    [
        (_changed(_set(float("nan"))), InputError, ("1 of 5", "NaN", "leave those images out")),
        (_changed(_set(float("inf"))), InputError, ("1 of 5", "infinite")),
        (_changed(_set(1.01)), InputError, ("1 of 5", "out of [0, 1]", "1.01", "clip")),
        (_changed(_set(-0.1)), InputError, ("1 of 5", "from -0.1")),
        (floats() * 255, InputError, ("5 of 5", "to 255", "Fix: divide them by 255")),
        ((floats() * 255).long(), InputError, ("dtype int64", "uint8")),
        (floats()[:, :2], InputError, ("shape (5, 2, 6, 4)", "(n, 3, 6, 4) or (n, 6, 4, 3)")),
        (floats()[:, :, :5], InputError, ("shape (5, 3, 5, 4)",)),
        (floats()[0], InputError, ("shape (3, 6, 4)",)),
        (floats()[:0], DataError, ("There is no image",)),
        (floats()[:4], DataError, ("4 images without ids", "the audit has 5", "column id")),
        (np.array([{}, {}]), InputError, ("object",)),
    ],
)
def test_a_wrong_tensor(images: Any, kind: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(kind) as caught:
        read_outside(images, IDS, SHAPE)
    for word in words:
        assert word in str(caught.value)


def _empty(at: Path) -> Path:
    at.mkdir()
    return at


def _only_text(at: Path) -> Path:
    at.mkdir()
    (at / "notes.txt").write_text("none here")
    (at / ".hidden.png").write_bytes(encoded(eight()[0]))
    return at


def _truncated(at: Path) -> Path:
    write_folder(at, ".png", IDS)
    (at / f"{IDS[2]}.png").write_bytes(encoded(eight()[2])[:40])
    return at


def _twice(at: Path) -> Path:
    write_folder(at, ".png", IDS)
    picture(eight()[0]).save(at / f"{IDS[0]}.bmp")
    return at


def _of_two_sizes(at: Path) -> Path:
    write_folder(at, ".png", IDS)
    picture(eight(1, (3, 4, 4))[0]).save(at / f"{IDS[1]}.png")
    return at


def _lossy_webp(at: Path) -> Path:
    return write_folder(at, ".webp", IDS, lossless=False, quality=90)


def _mixed(at: Path) -> Path:
    write_folder(at, ".png", IDS)
    np.save(at / "more.npy", eight()[0])
    return at


def _pickled(at: Path) -> Path:
    at = at.with_suffix(".npy")
    np.save(at, np.array([{"a": 1}]), allow_pickle=True)
    return at


def _torn(at: Path, suffix: str) -> Path:
    at = at.with_suffix(suffix)
    at.write_bytes(b"not what it says" * 9)
    return at


def _other_arrays(at: Path) -> Path:
    at = at.with_suffix(".npz")
    np.savez(at, pictures=eight())
    return at


def _audit_folder(at: Path) -> Path:
    at.mkdir()
    (at / "plan.json").write_text("{}")
    return at


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda at: at, ("There is no file or folder", "a folder of lossless images")),
        (_empty, ("holds no adversarial images: it is empty", "ID.png")),
        (_only_text, ("holds no adversarial images (1 other files)",)),
        (_truncated, ("'test-002.png' cannot be read", "missing images are counted")),
        (_twice, ("1 ids occur more than once", "'test-000'", "NAME2=PATH2")),
        (_of_two_sizes, ("Images differ in size", "write them all alike")),
        (lambda at: write_folder(at, ".jpg", IDS), ("5 files", "lossy", "moves pixels", "PNG")),
        (_lossy_webp, ("5 files", "lossy WebP")),
        (_mixed, ("5 images and 1 arrays", "one of them")),
        (lambda at: write_folder(at, ".png", [*IDS[:4], "tset-004"]),
         ("1 of 5", "does not know: 'tset-004.png'", "such as 'test-000'", "--limit")),
        (_pickled, ("cannot be read", "without pickles")),
        (lambda at: _torn(at, ".npy"), ("cannot be read",)),
        (lambda at: _torn(at, ".npz"), ("cannot be read",)),
        (lambda at: _torn(at, ".parquet"), ("cannot be read", "a complete parquet file")),
        (lambda at: _torn(at, ".safetensors"), ("cannot be read",)),
        (lambda at: _torn(at, ".zip"), ("a file of another kind (.zip)", ".parquet")),
        (_other_arrays, ("holds pictures", "numpy.savez(file, images=..., ids=...)")),
        (_audit_folder, ("is an audit's folder", "ATTACKER.safetensors")),
        (lambda at: safetensors(at, IDS[:4]), ("5 images and 4 ids",)),
        (lambda at: write_parquet(at.with_suffix(".parquet"), "picture", [b""] * 5),
         ("the columns id, picture", "a column id, and a column image or pixels")),
        (lambda at: write_parquet(at.with_suffix(".parquet"), "pixels", [[1, 2]] * 5),
         ("(2,) for each image", "72 numbers for each image")),
        (lambda at: write_parquet(at.with_suffix(".parquet"), "pixels", [[1], [1, 2]] * 2 + [[]]),
         ("no one shape",)),
        (lambda at: write_parquet(at.with_suffix(".parquet"), "pixels", [[256] * 72] * 5),
         ("whole numbers from 256", "grey levels from 0 to 255")),
        (lambda at: write_parquet(at.with_suffix(".parquet"), "image",
                                  [encoded(p, "JPEG") for p in eight()]), ("5 images", "lossy")),
        (lambda at: write_parquet(at.with_suffix(".parquet"), "image",
                                  [encoded(p) for p in eight()], [*IDS[:4], IDS[0]]),
         ("1 ids occur more than once",)),
        (lambda at: write_parquet(at.with_suffix(".parquet"), "image",
                                  [*(encoded(p) for p in eight()[:4]), None]),
         ("'test-004' cannot be read",)),
    ],
)  # fmt: skip
def test_a_wrong_file(
    write: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    source = write(tmp_path / "mine")
    with pytest.raises((DataError, InputError)) as caught:
        read_outside(source, IDS, SHAPE)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "Expected: " in str(caught.value)


def test_grey_files_are_no_color_images(tmp_path: Path) -> None:
    picture(eight(1, (1, 6, 4))[0]).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"shape \(1, 1, 6, 4\)"):
        read_outside(tmp_path, ["a"], SHAPE)
    assert len(read_outside(tmp_path, ["a"], (1, 6, 4))) == 1


@pytest.mark.parametrize("name", ["", "a b", "../a", "a=b", "x" * 65, None])
def test_a_name_that_cannot_stand_in_records(name: Any) -> None:
    with pytest.raises(ConfigError, match="The name of outside images is"):
        outside_name(name)
