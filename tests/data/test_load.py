from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unperturb.data import decode as decode_module
from unperturb.data import load_images
from unperturb.data.load import _choose_rows
from unperturb.data.rows import choose_split
from unperturb.errors import ConfigError, DataError, SpecError


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    seen: list[int] = []
    for split, count in (("train", 1297), ("test", 500)):
        data = load_images("digits", split=split)
        rows = [int(name.removeprefix("digits-")) for name in data.ids]
        assert len(data) == count
        assert rows == sorted(rows)
        assert data.images().dtype == torch.float32
        assert np.array_equal(data.images().reshape(-1, 64).numpy() * 16, images[rows])
        assert data.labels.tolist() == labels[rows].tolist()
        seen += rows
    assert sorted(seen) == list(range(1797))


def test_digits_split_is_stratified_and_never_changes() -> None:
    data = load_images("digits")
    assert data.split == "test"
    assert set(Counter(data.labels.tolist()).values()) == {50}
    assert data.ids[:8] == DIGITS_IDS
    assert data.classes == tuple("0123456789")


DIGITS_IDS = (
    "digits-0000",
    "digits-0001",
    "digits-0002",
    "digits-0008",
    "digits-0009",
    "digits-0011",
    "digits-0013",
    "digits-0016",
)


def test_digits_take_the_same_options() -> None:
    data = load_images("digits", limit=5, channels=3, image_size=(16, 12), shuffle=True, seed=2)
    images = data.images()
    assert images.shape == (5, 3, 16, 12)
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.min() >= 0.0
    assert images.max() <= 1.0
    assert load_images("digits", limit=5, shuffle=True, seed=2).ids == data.ids
    mapped = load_images("digits", label_map={str(d): ("even", "odd")[d % 2] for d in range(10)})
    assert mapped.classes == ("even", "odd")
    plain = load_images("digits")
    assert torch.equal(mapped.labels, plain.labels % 2)


def test_digits_have_two_splits() -> None:
    with pytest.raises(SpecError, match=r"Unknown split 'tset'. Expected: one of test, train"):
        load_images("digits", split="tset")


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [
        (["train", "valid", "validation", "val", "test"], "test"),
        (["train", "valid", "validation", "val"], "validation"),
        (["train", "valid", "val"], "val"),
        (["train", "valid"], "valid"),
        (["train"], "train"),
    ],
)
def test_default_split(splits: list[str], chosen: str) -> None:
    assert choose_split(None, splits, "here") == chosen


@given(st.integers(1, 300), st.integers(1, 400), st.integers(0, 2**64 - 1))
def test_chosen_rows_are_a_prefix_of_a_permutation(total: int, limit: int, seed: int) -> None:
    every = _choose_rows(total, None, True, seed)
    assert sorted(every) == list(range(total))
    assert np.array_equal(_choose_rows(total, limit, True, seed), every[:limit])
    assert np.array_equal(_choose_rows(total, limit, False, seed), np.arange(min(limit, total)))


def test_shuffled_order_never_changes() -> None:
    assert _choose_rows(10, 5, True, 0).tolist() == SHUFFLED


SHUFFLED = [0, 2, 9, 1, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, r"limit is 0. Expected: at least 1"),
        ({"limit": -3}, r"limit is -3. Expected: at least 1"),
        ({"seed": -1}, r"seed is -1. Expected: 0 to"),
        ({"channels": 2}, r"channels is 2"),
        ({"image_size": (0, 8)}, r"image_size is \(0, 8\)"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_images("digits", **options)


def test_unknown_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    (tmp_path / "birds.parquet").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SpecError, match=r"Unknown data set 'digit'.*mean 'digits'\?"):
        load_images("digit")
    with pytest.raises(SpecError, match=r"Unknown data set 'flower'.*mean 'flowers'\?"):
        load_images("flower")
    with pytest.raises(SpecError, match=r"Unknown data set 'zzz'.*hub name.*for the hub: hub:zzz"):
        load_images("zzz")
    with pytest.raises(DataError, match=r"'bird.parquet'.*mean 'birds.parquet'\?"):
        load_images("bird.parquet")
    with pytest.raises(DataError, match=r"'flovers'.*mean 'flowers'\?"):
        load_images("./flovers")
    with pytest.raises(DataError, match=r"no file or folder '/nowhere/at/all'"):
        load_images("/nowhere/at/all")
    with pytest.raises(DataError, match=r"'notes.txt' is no parquet file"):
        load_images("notes.txt")
    with pytest.raises(SpecError, match="empty string"):
        load_images("")
    with pytest.raises(DataError, match=r"cannot be read \(File name too long\)"):
        load_images("x" * 5000)


def test_no_global_state_is_touched() -> None:
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    load_images("digits", shuffle=True, limit=3)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_import_is_light() -> None:
    code = (
        "import sys, unperturb.data\n"
        "heavy = {'sklearn', 'scipy', 'pyarrow', 'PIL', 'datasets', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def assets() -> Path:
    folder = os.environ.get("UNPERTURB_ASSETS")
    if not folder:
        pytest.skip("UNPERTURB_ASSETS is not set")
    return Path(folder) / "data"


@pytest.mark.realdata
def test_cifar10_rows_are_pillows(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def pixels(payload: Any, geometry: Any, name: Any, position: int) -> Any:
        decoded.append(position)
        return real(payload, geometry, name, position)

    real = decode_module._pixels
    monkeypatch.setattr(decode_module, "_pixels", pixels)
    data = load_images(str(assets / "cifar10"), limit=1000)
    # Those that are asked for, not all of the split; the first one tells the size as well.
    assert sorted(decoded) == [0, *range(1000)]
    assert data.pixels.shape == (1000, 3, 32, 32)
    assert data.split == "test"
    # The official test order begins cat, ship, ship, airplane, frog, frog, automobile.
    assert data.labels[:7].tolist() == [3, 8, 8, 0, 6, 6, 1]
    assert data.classes[3] == "cat"
    table = pq.read_table(assets / "cifar10" / "test-00000-of-00001.parquet").slice(0, 1000)
    for row in (0, 1, 499, 999):
        raw = table.column("image")[row].as_py()["bytes"]
        want = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
        assert np.array_equal(data.pixels[row].permute(1, 2, 0).numpy(), want)
        assert data.ids[row] == table.column("id")[row].as_py()
        assert data.labels[row] == table.column("label")[row].as_py()


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "options", "split", "shape"),
    [
        ("cifar100", {}, "test", (64, 3, 32, 32)),
        ("tiny-imagenet", {}, "validation", (64, 3, 64, 64)),
        ("imagenette", {}, "validation", (64, 3, 224, 224)),
        ("imagenet-samples", {"image_size": (227, 227)}, "test", (64, 3, 227, 227)),
    ],
)
def test_other_real_sets(
    assets: Path, name: str, options: dict[str, Any], split: str, shape: tuple[int, ...]
) -> None:
    data = load_images(str(assets / name), limit=64, shuffle=True, **options)
    assert data.split == split
    assert data.images().shape == shape
    assert int(data.labels.max()) < len(data.classes)


@pytest.mark.realdata
def test_real_images_of_many_sizes_need_a_size(assets: Path) -> None:
    with pytest.raises(DataError, match=r"Images differ in size: .*image_size="):
        load_images(str(assets / "imagenet-samples"), limit=64)
