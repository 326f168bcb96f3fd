from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unperturb.data.labels import parse_label_map, resolve_labels
from unperturb.errors import DataError

CLASSES = ("ant", "bee", "cow")


def resolve(
    raw: list[Any], label_map: Any = None, classes: tuple[str, ...] = CLASSES
) -> tuple[list[int], tuple[str, ...]]:
    ids = [f"i{row}" for row in range(len(raw))]
    labels, names = resolve_labels(raw, ids, classes, parse_label_map(label_map), "here")
    return labels.tolist(), names


@given(st.lists(st.integers(0, 2), min_size=1))
def test_valid_labels_pass_unchanged(raw: list[int]) -> None:
    assert resolve(raw) == (raw, CLASSES)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([0, None, None], r"2 of 3 labels of here are null; the first is None of 'i1'"),
        ([0, 1, -1], r"1 of 3 labels of here are negative .*; the first is -1 of 'i2'"),
        (
            [3, 0, 9],
            r"2 of 3 labels of here are out of range for 3 classes; the first is 3 of 'i0'",
        ),
        ([0.0, 1], r"1 of 2 labels of here are not whole numbers; the first is 0.0 of 'i0'"),
        (["bee", "ant"], r"labels of here are strings \('ant', 'bee'\).*label_map=\{'ant': 0"),
    ],
)
def test_wrong_labels_are_counted_and_the_first_named(raw: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolve(raw)


def test_map_to_indices_by_class_name_and_by_label() -> None:
    assert resolve([0, 1, 2, 0], {"ant": 7, "bee": 0, "cow": 2}) == (
        [7, 0, 2, 7],
        ("bee", "1", "cow", "3", "4", "5", "6", "ant"),
    )
    assert resolve([0, 2], "0=1,2=0") == ([1, 0], ("cow", "ant"))


def test_map_of_strings() -> None:
    assert resolve(["bee", "ant"], "ant=0,bee=1", ()) == ([1, 0], ("ant", "bee"))


def test_map_to_names_numbers_them_as_the_map_names_them() -> None:
    got = resolve([0, 1, 2], {"cow": "mammal", "ant": "insect", "bee": "insect"})
    assert got == ([1, 1, 0], ("mammal", "insect"))


def test_map_to_names_of_the_source_keeps_its_indices() -> None:
    assert resolve([0, 1, 2], "ant=bee,bee=bee,cow=cow") == ([1, 1, 2], CLASSES)


def test_map_may_rescue_labels_out_of_range() -> None:
    assert resolve([-1, 0], {"-1": 1, "ant": 0})[0] == [1, 0]


def test_classes_two_sources_share_are_named_by_index() -> None:
    assert resolve([0, 1], {"ant": 0, "bee": 0, "cow": 1})[1] == ("0", "cow")


def test_unmapped_labels_are_named() -> None:
    with pytest.raises(DataError, match=r"2 labels of here are not in the label map: 'ant', 'cow'"):
        resolve([0, 1, 2], {"bee": 0})


def test_null_is_refused_with_a_map_too() -> None:
    with pytest.raises(DataError, match="1 of 2 labels of here are null"):
        resolve([None, 1], {"bee": 0})


def test_map_from_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "map=1.json"
    path.write_text(json.dumps({"ant": 1, "bee": 0}))
    assert parse_label_map(str(path)) == {"ant": 1, "bee": 0}


@pytest.mark.parametrize(
    ("given_map", "message"),
    [
        ("nowhere.json", r"label map 'nowhere.json' cannot be read .*No such file"),
        ("cat", r"label map 'cat' cannot be read"),
        ("cat=3,dog", r"has the part 'dog'.*cat=3,dog=5"),
        ("cat=3,=4", r"has the part '=4'"),
        ("cat=3,cat=4", r"names 'cat' twice"),
        ({}, r"holds no pairs"),
        ({"cat": 1, "dog": "x"}, r"targets of type int, str.*indices only"),
        ({"cat": True}, r"targets of type bool"),
        ({"cat": -2}, r"sends 'cat' to -2"),
    ],
)
def test_wrong_maps(given_map: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_label_map(given_map)


def test_a_long_inline_map_is_no_path() -> None:
    text = ",".join(f"class-{n}={n}" for n in range(200))
    found = parse_label_map(text)
    assert found is not None
    assert found["class-199"] == 199
