from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unperturb.data import load_image_files, load_images
from unperturb.errors import DataError, SpecError

Make = Callable[..., Any]


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def stack(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def test_class_folders(class_folder: Path, make_picture: Make) -> None:
    data = load_images(str(class_folder))
    assert data.ids == ("ant/0.png", "ant/1.png", "bee/2.png", "bee/deep/3.PNG")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.classes == ("ant", "bee")
    assert data.split is None
    assert torch.equal(data.pixels, stack([make_picture(n) for n in range(4)]))


def test_limit_and_shuffle_keep_ids(class_folder: Path, make_picture: Make) -> None:
    assert load_images(str(class_folder), limit=3).ids == ("ant/0.png", "ant/1.png", "bee/2.png")
    data = load_images(str(class_folder), shuffle=True, seed=1)
    whole = load_images(str(class_folder))
    assert sorted(data.ids) == sorted(whole.ids)
    for row, name in enumerate(data.ids):
        assert torch.equal(data.pixels[row], whole.pixels[whole.ids.index(name)])
        assert data.labels[row] == whole.labels[whole.ids.index(name)]


def test_splits_of_class_folders_share_their_classes(
    tmp_path: Path, make_png: Make, make_picture: Make
) -> None:
    image = make_png(make_picture(0))
    for name in ("train/ant/a.png", "train/bee/b.png", "train/cow/c.png", "val/cow/d.png"):
        put(tmp_path / name, image)
    data = load_images(str(tmp_path))
    assert (data.split, data.ids, data.labels.tolist()) == ("val", ("val/cow/d.png",), [2])
    assert data.classes == ("ant", "bee", "cow")
    with pytest.raises(SpecError, match=r"Unknown split 'trian'.*mean 'train'\?"):
        load_images(str(tmp_path), split="trian")


def test_split_with_images_a_folder_deeper(
    tmp_path: Path, make_png: Make, make_picture: Make
) -> None:
    for name in ("train/n01/images/a.png", "train/n02/images/b.png"):
        put(tmp_path / name, make_png(make_picture(0)))
    data = load_images(str(tmp_path))
    assert (data.split, data.classes) == ("train", ("n01", "n02"))


def test_split_of_a_folder_without_splits(class_folder: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'test': its folders are classes \(ant, bee\)"):
        load_images(str(class_folder), split="test")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is empty: no parquet files and no class folders"):
        load_images(str(tmp_path))


def test_images_without_class_folders(tmp_path: Path, make_png: Make, make_picture: Make) -> None:
    put(tmp_path / "a.png", make_png(make_picture(0)))
    with pytest.raises(DataError, match=r"has 1 images and no class folders.*unperturb predict"):
        load_images(str(tmp_path))


def test_class_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "bee").mkdir()
    with pytest.raises(DataError, match=r"has 2 folders and no images in them"):
        load_images(str(tmp_path))


def test_broken_file_is_named_or_skipped(class_folder: Path) -> None:
    (class_folder / "ant" / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"Image 'ant/1.png' of .*classes cannot be read .*--skip"):
        load_images(str(class_folder))
    data = load_images(str(class_folder), skip_broken=True)
    assert data.skipped == ("ant/1.png",)
    assert data.ids == ("ant/0.png", "bee/2.png", "bee/deep/3.PNG")
    assert data.labels.tolist() == [0, 1, 1]


def test_file_that_cannot_be_opened(class_folder: Path) -> None:
    (class_folder / "ant" / "gone.png").symlink_to(class_folder / "nowhere.png")
    with pytest.raises(DataError, match=r"'ant/gone.png' of .* cannot be read .*No such file"):
        load_images(str(class_folder))


def test_sizes_name_both_files(class_folder: Path, make_png: Make, make_picture: Make) -> None:
    put(class_folder / "bee" / "2.png", make_png(make_picture(9, size=(8, 8))))
    with pytest.raises(DataError, match=r"'ant/0.png' .* is 6x5 .* 'bee/2.png' .* is 8x8"):
        load_images(str(class_folder))
    data = load_images(str(class_folder), image_size=(4, 4))
    assert data.pixels.shape == (4, 3, 4, 4)
    assert "resized to cover (bicubic) and center-cropped to 4x4" in data.source


def test_unlabelled_files_and_folders(class_folder: Path, make_picture: Make) -> None:
    named = class_folder / "bee" / "2.png"
    data = load_image_files([named, class_folder / "ant"])
    assert data.ids == tuple(
        path.as_posix()
        for path in (named, class_folder / "ant" / "0.png", class_folder / "ant" / "1.png")
    )
    assert data.labels.tolist() == [-1, -1, -1]
    assert data.classes == ()
    assert torch.equal(data.pixels, stack([make_picture(n) for n in (2, 0, 1)]))
    assert len(load_image_files([class_folder])) == 4


def test_a_named_file_needs_no_suffix(tmp_path: Path, make_png: Make, make_picture: Make) -> None:
    put(tmp_path / "upload", make_png(make_picture(3)))
    assert torch.equal(load_image_files([tmp_path / "upload"]).pixels, stack([make_picture(3)]))


def test_unlabelled_geometry_and_skipping(class_folder: Path) -> None:
    (class_folder / "ant" / "0.png").write_bytes(b"broken")
    data = load_image_files([class_folder], channels=1, image_size=(3, 3), skip_broken=True)
    assert data.pixels.shape == (3, 1, 3, 3)
    assert data.skipped == ((class_folder / "ant" / "0.png").as_posix(),)


def test_unlabelled_errors(class_folder: Path, tmp_path: Path) -> None:
    ant = class_folder / "ant"
    with pytest.raises(DataError, match=r"no file or folder .*0.pgn'.*did you mean .*0.png'\?"):
        load_image_files([ant / "0.pgn"])
    with pytest.raises(DataError, match=r"ids of the image files occur more than once"):
        load_image_files([ant / "0.png", ant])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"No image files in .*nothing"):
        load_image_files([tmp_path / "nothing"])
    with pytest.raises(DataError, match="No image files in nothing"):
        load_image_files([])
    (ant / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"Image '.*ant/0.png' cannot be read"):
        load_image_files([ant / "0.png"])
