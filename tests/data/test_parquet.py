from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from unperturb.data import load_images
from unperturb.data.parquet import ParquetRows
from unperturb.errors import DataError, SpecError

Make = Callable[..., Any]


def stack(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def test_split_of_two_files(parquet_folder: Path, make_picture: Make) -> None:
    data = load_images(str(parquet_folder), split="train")
    assert torch.equal(data.pixels, stack([make_picture(n) for n in range(20)]))
    assert data.labels.tolist() == [n % 3 for n in range(20)]
    assert data.ids == tuple(f"p{n}" for n in range(20))
    assert data.classes == ("ant", "bee", "cow")
    assert data.split == "train"
    assert data.skipped == ()
    assert data.source == f"{parquet_folder}; split train; all 20 rows"


def test_default_split_is_test(parquet_folder: Path) -> None:
    assert load_images(str(parquet_folder)).ids[0] == "p100"


@pytest.mark.parametrize("limit", [1, 4, 10, 13, 20, 99])
def test_limit_takes_the_first_rows(parquet_folder: Path, limit: int) -> None:
    everything = load_images(str(parquet_folder), split="train")
    part = load_images(str(parquet_folder), split="train", limit=limit)
    want = everything.take(slice(0, limit))
    assert part.fingerprint() == want.fingerprint()


def test_limit_reads_only_the_row_groups_it_needs(
    parquet_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group

    def spy(self: Any, number: int, **options: Any) -> Any:
        if "image" in options["columns"]:
            groups.append(number)
        return read(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    load_images(str(parquet_folder), split="train", limit=5)
    assert groups == [0, 1]


def test_shuffled_rows_belong_together_and_smaller_limits_are_prefixes(
    parquet_folder: Path, make_picture: Make
) -> None:
    spec = str(parquet_folder)
    data = load_images(spec, split="train", shuffle=True, seed=3)
    numbers = [int(name[1:]) for name in data.ids]
    assert sorted(numbers) == list(range(20))
    assert numbers != list(range(20))
    assert torch.equal(data.pixels, stack([make_picture(n) for n in numbers]))
    assert data.labels.tolist() == [n % 3 for n in numbers]
    part = load_images(spec, split="train", shuffle=True, seed=3, limit=7)
    assert part.fingerprint() == data.take(slice(0, 7)).fingerprint()
    assert load_images(spec, split="train", shuffle=True, seed=4).ids != data.ids
    assert part.source.endswith("7 of 20 rows, shuffled with seed 3")


def test_one_file_is_a_split(parquet_folder: Path) -> None:
    path = parquet_folder / "train-00001-of-00002.parquet"
    data = load_images(str(path))
    assert (data.split, data.ids[0], len(data)) == ("train", "p10", 10)


def test_rows_are_numbered_where_there_are_no_ids(
    tmp_path: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    images = [make_png(make_picture(n)) for n in range(9)]
    path = make_parquet(tmp_path / "val.parquet", images, [0] * 9)
    assert load_images(str(path), limit=2).ids == ("val-000000", "val-000001")
    shuffled = load_images(str(path), shuffle=True)
    assert [int(name[4:]) for name in shuffled.ids] != list(range(9))
    for name, pixels in zip(shuffled.ids, shuffled.pixels, strict=True):
        assert torch.equal(pixels, stack([make_picture(int(name[4:]))])[0])


def test_whole_number_ids_become_text(
    tmp_path: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    path = make_parquet(tmp_path / "t.parquet", [make_png(make_picture(1))], [0], ids=[17])
    assert load_images(str(path)).ids == ("17",)


def test_downloaded_repository_with_a_folder_deeper(tmp_path: Path, parquet_folder: Path) -> None:
    parquet_folder.rename(tmp_path / "plain_text")
    assert len(load_images(str(tmp_path))) == 7
    (tmp_path / "other").mkdir()
    source = tmp_path / "plain_text" / "test-00000-of-00001.parquet"
    (tmp_path / "other" / source.name).write_bytes(source.read_bytes())
    with pytest.raises(DataError, match=r"several folders of parquet files: other, plain_text"):
        load_images(str(tmp_path))


def test_columns_by_metadata_by_name_and_by_choice(
    tmp_path: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    images = [make_png(make_picture(n)) for n in range(3)]
    marked = make_parquet(tmp_path / "a.parquet", images, [0, 1, 2], image="photo")
    assert len(load_images(str(marked))) == 3
    plain = make_parquet(
        tmp_path / "b.parquet",
        images,
        [0, 4, 2],
        image="img",
        label="fine_label",
        image_feature=False,
        names=None,
        extra={"coarse": [1, 1, 0]},
    )
    data = load_images(str(plain), limit=1)
    assert data.classes == ("0", "1", "2", "3", "4")  # of all rows, not of the first
    assert load_images(str(plain), label_column="coarse").labels.tolist() == [1, 1, 0]
    only = make_parquet(tmp_path / "c.parquet", images, [0, 1, 2], label="kind")
    assert load_images(str(only)).labels.tolist() == [0, 1, 2]


def test_images_as_plain_bytes(tmp_path: Path, make_png: Make, make_picture: Make) -> None:
    table = pa.table({"image": [make_png(make_picture(4))], "label": [0]})
    pq.write_table(table, tmp_path / "x.parquet")
    data = load_images(str(tmp_path / "x.parquet"))
    assert torch.equal(data.pixels, stack([make_picture(4)]))


def test_image_path_beside_the_table_and_never_outside(
    tmp_path: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    inside, outside = tmp_path / "set", tmp_path / "secret.png"
    outside.write_bytes(make_png(make_picture(2)))
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "../secret.png"}]
    path = make_parquet(inside / "t.parquet", cells, [0, 1], ids=["in", "out"])
    (inside / "a.png").write_bytes(make_png(make_picture(1)))
    data = load_images(str(path), skip_broken=True)
    assert data.ids == ("in",)
    assert data.skipped == ("out",)
    with pytest.raises(DataError, match=r"'out' of .* cannot be read \(it holds no bytes\)"):
        load_images(str(path))


def test_broken_rows_are_named_or_skipped_without_shifting_labels(
    tmp_path: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    images = [make_png(make_picture(n)) for n in range(9)]
    images[2] = images[2][:40]
    path = make_parquet(
        tmp_path / "t.parquet", images, [n % 3 for n in range(9)], ids=[f"p{n}" for n in range(9)]
    )
    with pytest.raises(DataError, match=r"Image 'p2' of .*t.parquet cannot be read"):
        load_images(str(path))
    for shuffle in (False, True):
        data = load_images(str(path), skip_broken=True, shuffle=shuffle)
        numbers = [int(name[1:]) for name in data.ids]
        assert sorted(numbers) == [0, 1, 3, 4, 5, 6, 7, 8]
        assert data.skipped == ("p2",)
        assert data.labels.tolist() == [n % 3 for n in numbers]
        assert torch.equal(data.pixels, stack([make_picture(n) for n in numbers]))


def test_unknown_split_names_the_nearest(parquet_folder: Path) -> None:
    with pytest.raises(SpecError, match=r"Unknown split 'tset'.*test, train.*mean 'test'\?"):
        load_images(str(parquet_folder), split="tset")


def test_no_split_for_testing(parquet_folder: Path) -> None:
    (parquet_folder / "test-00000-of-00001.parquet").rename(parquet_folder / "extra.parquet")
    with pytest.raises(DataError, match=r"splits extra, train and none .*--split"):
        load_images(str(parquet_folder))


def test_missing_file_of_a_split(parquet_folder: Path) -> None:
    (parquet_folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"split 'train' of .* has 1 of 2 parquet files"):
        load_images(str(parquet_folder), split="train")
    assert len(load_images(str(parquet_folder), split="test")) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "imag"}, r"no column 'imag'.*id, image, label.*did you mean 'image'\?"),
        ({"label_column": "zzz"}, r"no column 'zzz'.*id, image, label.*--label-column"),
    ],
)
def test_missing_column_lists_the_columns(
    parquet_folder: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_images(str(parquet_folder), **options)  # type: ignore[arg-type]


def test_columns_that_cannot_be_told(
    tmp_path: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    image = [make_png(make_picture(0))]
    path = make_parquet(
        tmp_path / "a.parquet", image, [0], image="pic", image_feature=False, names=None
    )
    with pytest.raises(DataError, match=r"No image column can be told .*: pic, label"):
        load_images(str(path))
    path = make_parquet(tmp_path / "b.parquet", image, [0], label="y", names=None)
    with pytest.raises(DataError, match=r"No label column can be told .*: image, y"):
        load_images(str(path))


def test_image_column_of_another_type(parquet_folder: Path) -> None:
    with pytest.raises(DataError, match=r"column 'id' of .* holds string.*encoded images"):
        load_images(str(parquet_folder), image_column="id")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3, 5], r"2 of 3 labels .* out of range for 3 classes; the first is 3 of 'p1'"),
        ([0, -1, -1], r"2 of 3 labels .* negative .*the first is -1 of 'p1'"),
        ([0, 1, None], r"1 of 3 labels .* null; the first is None of 'p2'"),
        (["ant", "bee", "cow"], r"are strings \('ant', 'bee', 'cow'\).*--label-map"),
    ],
)
def test_wrong_labels(
    tmp_path: Path,
    make_parquet: Make,
    make_png: Make,
    make_picture: Make,
    labels: list[Any],
    message: str,
) -> None:
    images = [make_png(make_picture(n)) for n in range(3)]
    names = None if isinstance(labels[0], str) else ("ant", "bee", "cow")
    path = make_parquet(tmp_path / "t.parquet", images, labels, ids=["p0", "p1", "p2"], names=names)
    with pytest.raises(DataError, match=message):
        load_images(str(path))


def test_string_labels_with_a_map(
    tmp_path: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    images = [make_png(make_picture(n)) for n in range(3)]
    path = make_parquet(tmp_path / "t.parquet", images, ["b", "a", "b"], names=None)
    data = load_images(str(path), label_map="a=0,b=1")
    assert data.labels.tolist() == [1, 0, 1]
    assert data.classes == ("a", "b")
    assert "labels mapped a=0,b=1" in data.source


def test_numbers_that_are_no_class_indices(
    tmp_path: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    image = [make_png(make_picture(0))]
    path = make_parquet(tmp_path / "t.parquet", image, [10**12], names=None)
    with pytest.raises(DataError, match=r"column 'label' of .* values up to 1000000000000"):
        load_images(str(path))


def test_duplicate_and_missing_ids(
    tmp_path: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    images = [make_png(make_picture(n)) for n in range(3)]
    twice = make_parquet(tmp_path / "a.parquet", images, [0, 1, 2], ids=["x", "y", "x"])
    with pytest.raises(DataError, match=r"1 ids of .*a.parquet .* the first, 'x', 2 times"):
        load_images(str(twice))
    none = make_parquet(tmp_path / "b.parquet", images, [0, 1, 2], ids=["x", None, "z"])
    with pytest.raises(DataError, match=r"Row 1 of .*b.parquet has no id"):
        load_images(str(none))


def test_no_rows(tmp_path: Path, make_parquet: Make) -> None:
    path = make_parquet(tmp_path / "t.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(DataError, match=r"t.parquet has no rows"):
        load_images(str(path))


@pytest.mark.parametrize("keep", [0, 30, 300])
def test_damaged_file(parquet_folder: Path, keep: int) -> None:
    path = parquet_folder / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"parquet file .*test-00000.* cannot be read \("):
        load_images(str(parquet_folder))


def test_damage_behind_a_sound_footer(parquet_folder: Path) -> None:
    path = parquet_folder / "test-00000-of-00001.parquet"
    raw = bytearray(path.read_bytes())
    raw[4:400] = b"\xff" * 396
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"parquet file .*test-00000.* cannot be read \("):
        load_images(str(parquet_folder))


def test_files_of_a_split_with_other_columns(
    parquet_folder: Path, make_parquet: Make, make_png: Make, make_picture: Make
) -> None:
    path = parquet_folder / "train-00001-of-00002.parquet"
    make_parquet(path, [make_png(make_picture(0))], [0], label="other")
    with pytest.raises(
        DataError, match=r"train-00001.* has the columns image, other.*same columns"
    ):
        load_images(str(parquet_folder), split="train")


def test_metadata_that_make_no_sense_are_passed_over(
    tmp_path: Path, make_png: Make, make_picture: Make
) -> None:
    table = pa.table({"image": [make_png(make_picture(4))], "label": [1]})
    for number, text in enumerate(("{", "[]", '{"info": {}}')):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table.replace_schema_metadata({"huggingface": text}), path)
        assert ParquetRows([path], "test").classes == ("0", "1")
