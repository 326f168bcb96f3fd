from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from unperturb.data import load_images
from unperturb.errors import DataError, MissingExtraError, SpecError

Make = Callable[..., Any]


def stack(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, make_picture: Make) -> list[tuple[Any, ...]]:
    """A hub with two splits; returns the calls made to it."""
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])}
    )

    def rows(numbers: range) -> datasets.Dataset:
        pictures = [Image.fromarray(make_picture(n)) for n in numbers]
        labels = [n % 2 for n in numbers]
        return datasets.Dataset.from_dict({"img": pictures, "label": labels}, features=features)

    found = datasets.DatasetDict({"train": rows(range(10)), "validation": rows(range(20, 25))})
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        calls.append((*args, options))
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize("spec", ["owner/name", "hub:owner/name"])
def test_rows_labels_and_ids(hub: list[tuple[Any, ...]], make_picture: Make, spec: str) -> None:
    data = load_images(spec)
    assert hub == [("owner/name", None, {})]
    assert data.split == "validation"
    assert torch.equal(data.pixels, stack([make_picture(n) for n in range(20, 25)]))
    assert data.labels.tolist() == [0, 1, 0, 1, 0]
    assert data.classes == ("ant", "bee")
    assert data.ids[4] == "validation-000004"
    assert data.source == f"{spec}; split validation; all 5 rows"


def test_shuffle_and_limit(hub: list[tuple[Any, ...]], make_picture: Make) -> None:
    data = load_images("owner/name", split="train", shuffle=True, limit=6)
    numbers = [int(name.split("-")[1]) for name in data.ids]
    assert numbers != sorted(numbers)
    assert torch.equal(data.pixels, stack([make_picture(n) for n in numbers]))
    assert data.labels.tolist() == [n % 2 for n in numbers]


def test_configuration(hub: list[tuple[Any, ...]]) -> None:
    load_images("owner/name:fine", limit=1)
    assert hub == [("owner/name", "fine", {})]


def test_local_path_wins(
    hub: list[tuple[Any, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_png: Make,
    make_picture: Make,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name" / "ant"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(make_png(make_picture(0)))
    assert load_images("owner/name").ids == ("ant/a.png",)
    assert hub == []


def test_mistyped_path_does_not_go_to_the_hub(
    hub: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    with pytest.raises(DataError, match=r"'data/cifar1O'.*hub:data/cifar1O.*mean 'data/cifar10'\?"):
        load_images("data/cifar1O")
    assert hub == []


def test_torch_format_id_column_and_plain_bytes(
    monkeypatch: pytest.MonkeyPatch, make_png: Make, make_picture: Make
) -> None:
    raw = {"id": ["u", "v"], "image": [make_png(make_picture(n)) for n in (1, 2)], "label": [0, 3]}
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Value("binary"),
            "label": datasets.Value("int64"),
        }
    )
    rows = datasets.Dataset.from_dict(raw, features=features, split="test").with_format("torch")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    data = load_images("owner/name")
    assert data.ids == ("u", "v")
    assert data.labels.tolist() == [0, 3]
    assert data.classes == ("0", "1", "2", "3")
    assert data.split == "test"
    assert torch.equal(data.pixels, stack([make_picture(1), make_picture(2)]))
    with pytest.raises(SpecError, match="Unknown split 'train'"):
        load_images("owner/name", split="train")
    with pytest.raises(DataError, match=r"column 'label' of owner/name \(test\) holds"):
        load_images("owner/name", image_column="label")


def test_unknown_split(hub: list[tuple[Any, ...]]) -> None:
    with pytest.raises(SpecError, match=r"Unknown split 'validatoin'.*mean 'validation'\?"):
        load_images("owner/name", split="validatoin")


def test_missing_column(hub: list[tuple[Any, ...]]) -> None:
    with pytest.raises(DataError, match=r"no column 'y'.*img, label"):
        load_images("owner/name", label_column="y")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, ConnectionError("Couldn't reach 'owner/name' on the Hub"))
    with pytest.raises(DataError, match=r"hub cannot be reached \(Couldn't.*name its folder"):
        load_images("owner/name")


def test_no_such_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, datasets.exceptions.DatasetNotFoundError("doesn't exist on the Hub"))
    with pytest.raises(DataError, match=r"no data set 'owner/name'.*check the name"):
        load_images("owner/name")


def test_configuration_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, ValueError("Config name is missing.\nPlease pick one: ['a', 'b']"))
    with pytest.raises(SpecError, match=r"several configurations.*owner/name:CONFIG"):
        load_images("owner/name")


def test_damaged_download(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, datasets.exceptions.DatasetGenerationError("An error occurred"))
    with pytest.raises(DataError, match=r"cannot be loaded \(DatasetGenerationError: An error"):
        load_images("owner/name")


def test_datasets_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"'datasets'.*pip install 'unperturb\[hub\]'"):
        load_images("owner/name")
