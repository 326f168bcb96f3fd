"""Charts, pictures and printed numbers against closed forms and independent readers."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from audit.summaries import acc, make_cases, make_summary
from unperturb.audit import charts
from unperturb.audit import report_text as words
from unperturb.audit.cases import Case, CaseView
from unperturb.audit.report import render_html
from unperturb.audit.report_pictures import data_uri, perturbation_factor
from unperturb.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"


def parse(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def decode(uri: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def bars(root: ElementTree.Element, kind: str) -> list[float]:
    found = root.iter(f"{SVG}rect")
    return [float(rect.get("width", "nan")) for rect in found if rect.get("class") == kind]


def test_every_chart_of_a_page_is_well_formed_and_spoken() -> None:
    page = render_html(make_summary(), make_cases())
    drawn = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawn) > 12
    for text in drawn:
        root = parse(text)
        assert root.get("role") == "img"
        assert root.get("aria-label")


def test_bars_and_whiskers_are_proportional_to_accuracy_and_interval() -> None:
    rows = words.attack_rows(make_summary())
    root = parse(charts.accuracy_chart(rows, "oblivious", ["baseline", "target"], "label"))
    ticks = {t.text: float(t.get("x", "nan")) for t in root.iter(f"{SVG}text") if t.text}
    left, scale = ticks["0%"], ticks["100%"] - ticks["0%"]
    want = [row.cells["oblivious"]["target"]["accuracy"] * scale for row in rows]
    assert bars(root, "target") == pytest.approx(want, abs=0.01)
    want = [row.cells["oblivious"]["baseline"]["accuracy"] * scale for row in rows]
    assert bars(root, "baseline") == pytest.approx(want, abs=0.01)
    lines = [line for line in root.iter(f"{SVG}line") if line.get("class") == "whisker"]
    flat = [line for line in lines if line.get("y1") == line.get("y2")]
    assert len(flat) == 2 * len(rows)
    low, high = rows[1].cells["oblivious"]["target"]["interval"]
    ends = (left + low * scale, left + high * scale)
    assert (float(flat[3].get("x1", "nan")), float(flat[3].get("x2", "nan"))) == pytest.approx(
        ends, abs=0.01
    )


def test_everything_drawn_stays_inside_the_picture() -> None:
    full = make_summary()
    for row in full["table"]:
        row["cells"]["target"]["oblivious"] = acc(1000)
        row["attack"] = "a-very-long-name-of-an-attack?restarts=30&loss=margin"
    root = parse(charts.accuracy_chart(words.attack_rows(full), "oblivious", ["target"], ""))
    width = float(root.get("viewBox", "").split()[2])
    for text in root.iter(f"{SVG}text"):
        x, long = float(text.get("x", "nan")), 7.5 * len(text.text or "")
        start = {"start": x, "middle": x - long / 2, "end": x - long}[text.get("text-anchor", "")]
        assert start > -12
        assert start + long < width + 5


def test_a_missing_cell_is_named_and_draws_no_bar() -> None:
    summary = make_summary()
    summary["table"][0]["cells"]["target"]["adaptive"] = None
    rows = words.attack_rows(summary)
    root = parse(charts.accuracy_chart(rows, "adaptive", ["target"], "label"))
    assert len(bars(root, "target")) == len(rows) - 1
    assert [t.text for t in root.iter(f"{SVG}text")].count("not run") == 1
    assert bars(parse(charts.meter(None, "target")), "target") == []


def test_hostile_names_stay_text_in_charts() -> None:
    evil = '</text><script>&"'
    root = parse(charts.score_bars({"target": [3.0, 1.0]}, 0, [evil, evil]))
    assert root.find(f".//{SVG}script") is None
    assert any("</text><s" in (t.text or "") for t in root.iter(f"{SVG}text"))


@given(st.lists(st.floats(-60, 60), min_size=2, max_size=12))
def test_softmax_agrees_with_torch(scores: list[float]) -> None:
    want = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    assert charts.softmax(scores) == pytest.approx(want, abs=1e-12)


def test_softmax_of_scores_that_are_not_finite_draws_nothing() -> None:
    assert charts.softmax([float("nan"), 1.0]) == [0.0, 0.0]
    assert charts.softmax([float("inf"), 1.0]) == [0.0, 0.0]


def test_score_bars_show_the_true_class_even_when_it_is_last() -> None:
    scores = [float(-k) for k in range(10)]
    text = charts.score_bars({"baseline": scores, "target": scores}, 9, list("abcdefghij"))
    names = [t.text for t in parse(text).iter(f"{SVG}text") if "name" in (t.get("class") or "")]
    assert names == ["a", "b", "c", "✓ j"]


@pytest.mark.parametrize(("difference", "start", "width"), [(0.5, 60, 58), (-0.25, 31, 29)])
def test_gain_bars_lie_on_the_side_of_their_sign(
    difference: float, start: float, width: float
) -> None:
    rect = parse(charts.diverging_bar(difference, "better", 0.5)).find(f"{SVG}rect")
    assert rect is not None
    assert float(rect.get("x", "nan")) == pytest.approx(start)
    assert float(rect.get("width", "nan")) == pytest.approx(width)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_lossless_and_rounded(channels: int) -> None:
    levels = torch.arange(channels * 64).reshape(channels, 8, 8) % 256
    read = decode(data_uri((levels + 0.49) / 255))
    want = levels.numpy()[0] if channels == 1 else levels.numpy().transpose(1, 2, 0)
    assert np.array_equal(read, want)
    assert decode(data_uri((levels.clamp(max=254) + 0.51) / 255)).flat[0] == 1


def test_other_channel_counts_are_averaged_and_large_images_reduced() -> None:
    assert decode(data_uri(torch.full((2, 4, 4), 1.0))).tolist() == [[255] * 4] * 4
    assert decode(data_uri(torch.zeros(3, 600, 300))).shape == (256, 128, 3)


def test_a_batch_is_no_picture() -> None:
    with pytest.raises(InputError, match=r"has shape \(8, 8\).*one image \(C, H, W\)"):
        data_uri(torch.zeros(8, 8))


def _case(change: float) -> Case:
    clean = torch.full((1, 2, 2), 0.5)
    attacked = clean.clone()
    attacked[0, 0, 0] += change
    answers = ([1.0, 0.0], [1.0, 0.0], 0, 0)
    views = [CaseView("clean", clean, None, *answers)]
    views.append(CaseView("adaptive pgd-20", attacked, None, *answers))
    return Case("0", 0, "a", clean, views)


def test_the_largest_change_becomes_white_and_no_change_mid_gray() -> None:
    cases = [_case(0.125), _case(0.0625)]
    assert perturbation_factor(cases) == pytest.approx(4.0)
    page = render_html(make_summary(), cases)
    uris = re.findall(r'<img src="(data:[^"]+)" alt="perturbation, enlarged"', page)
    assert [decode(uri).tolist() for uri in uris] == [
        [[255, 128], [128, 128]],
        [[191, 128], [128, 128]],
    ]
    assert "multiplied by 4 around mid-gray" in page


def test_nothing_changed_is_said_so() -> None:
    assert perturbation_factor([_case(0.0)]) == 1.0
    assert "unchanged</p>" in render_html(make_summary(), [_case(0.0)])


def test_a_borderline_gain_is_one_point_whatever_floats_say() -> None:
    difference = 0.56 - 0.55
    assert difference != 0.01
    assert words.verdict({"difference": difference, "mcnemar_p": 0.001}) == "better"
    assert words.verdict({"difference": -0.02, "mcnemar_p": 0.001}) == "worse"
    assert words.verdict({"difference": 0.0099, "mcnemar_p": 1e-9}) == "no clear difference"
    assert words.verdict({"difference": 0.5, "mcnemar_p": 0.01}) == "no clear difference"


def test_large_samples_get_a_second_decimal() -> None:
    assert words.percent(acc(4, 10000)) == "0.04%"
    assert words.interval(acc(4, 10000)) == "0.02\N{EN DASH}0.10%"
    assert words.percent(acc(1, 100)) == "1.0%"


def test_settings_text_names_what_differs_from_plain() -> None:
    settings = {
        "name": "x", "steps": 40, "step_size": 0.25, "momentum": 1.0, "random_start": True,
        "restarts": 3, "loss": "margin", "draws": 10, "flow_bound": 0.05,
    }  # fmt: skip
    assert words.settings_text(settings) == (
        "40 steps of 0.25 eps, random start, momentum 1, restarts 3, draws 10, loss margin, "
        "flow bound 0.05"
    )
    assert "draws" not in words.settings_text(settings, random=False)
