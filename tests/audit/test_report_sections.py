"""What the second schema added to a report: every figure in its place, records to take along."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

from audit.rich import EPS, make_rich
from audit.summaries import acc, make_cases, make_summary, without_defense
from unperturb.audit.report import (
    records_bytes,
    render_html,
    render_markdown,
    terminal_table,
    write_reports,
)
from unperturb.audit.report_curves import Curve, Point, roc_chart, security_chart
from unperturb.audit.report_records import LARGEST_INLINE
from unperturb.audit.report_sections import sections
from unperturb.audit.report_tables import Section

SVG = "{http://www.w3.org/2000/svg}"
DASH = "\N{EN DASH}"


def section(name: str, summary: dict[str, Any] | None = None) -> Section:
    found = {one.id: one for one in sections(summary or make_rich())}
    return found[name]


def cells(row: Sequence[Any]) -> list[str]:
    return [cell.value for cell in row]


def test_every_row_is_as_wide_as_its_table() -> None:
    for summary in (make_rich(), without_defense(make_rich())):
        found = sections(summary)
        assert len(found) >= 8
        for one in found:
            for table in (*one.tables, *one.folded):
                assert {len(row) for row in table.rows} == {len(table.columns)}, one.id


def test_an_older_summary_has_no_new_sections_and_still_a_report() -> None:
    assert sections(make_summary()) == []
    assert "Details of each attack" in render_html(make_summary(), [])


def test_a_random_defense_stands_with_single_worst_and_majority() -> None:
    one = section("random")
    assert one.tables[0].columns == ("accuracy", "single draw", "worst of 10", "majority of 10")
    rows = {row[0].value: cells(row)[1:] for row in one.tables[0].rows}
    assert rows["clean"] == ["78.3%", "61.1%", "80.0%"]
    assert rows["worst case, oblivious"] == ["27.1%", "10.1%", "27.6%"]
    assert "selected on 10 draws and scored on 10 fresh ones" in one.words[0]
    line = "Worst case on a single draw 1.3%, worst of 10 draws 0.0%, majority 0.2%"
    assert line in render_html(make_rich(), [])
    assert line in render_markdown(make_rich())
    assert line in re.sub(r"\s+", " ", terminal_table(make_rich()))


def test_shared_draws_are_called_shared() -> None:
    summary = make_rich()
    summary["random"]["selection_draws"] = None
    assert "Selection and scoring share 10 draws" in section("random", summary).words[0]


def test_attacks_with_a_bound_of_their_own_stand_apart() -> None:
    summary = make_rich()
    rows = [cells(row) for row in section("own-bounds").tables[0].rows]
    assert rows[1] == [
        "stadv", "oblivious", "defended", "40.2%", "0.0312", "0.05", "54.31/255", "2.54",
    ]  # fmt: skip
    page = render_html(summary, [])
    table = page[page.index('<table class="accuracies">') :].split("</table>")[0]
    assert "pgd-20" in table
    assert "stadv" not in table


def test_minimal_attacks_show_both_accuracies_and_the_distance() -> None:
    rows = [cells(row) for row in section("minimal").tables[0].rows]
    assert rows[-1] == [
        "ddn-100", "adaptive", "defended", "4.4%", "0.2%", "998", "3.09/255",
    ]  # fmt: skip


def test_rejection_is_the_headline_and_stands_before_the_cards() -> None:
    page = render_html(make_rich(), [])
    head = page.index("Wrong and not flagged")
    assert head < page.index('<article class="card oblivious')
    card = page[head : page.index("</article>", head)]
    assert re.findall(r'<p class="big[^>]*>([^<]+)', card) == [
        "21.1%", "64.0%", "64.0%", "12.3%", "5.2%",
    ]  # fmt: skip
    assert "right and kept 77.1%" in card
    assert "36.0 points fewer images are fooled than undefended: better" in card
    assert "Wrong and not flagged" not in render_html(make_summary(), [])
    markdown = render_markdown(make_rich())
    assert f"| Worst case | 64.0% (61.0{DASH}66.9%) | 100.0% (99.6{DASH}100.0%) |" in markdown
    assert "Clean images rejected: **5.2%**" in markdown
    assert "clean images rejected: 5.2%" in terminal_table(make_rich())


def test_a_detector_that_routes_enters_no_headline() -> None:
    summary = make_rich()
    summary["detection"]["action"], summary["rejection"] = "route", None
    assert "Wrong and not flagged" not in render_html(summary, [])
    assert "flags enter no headline" in section("detector", summary).words[0]


def test_detector_rates_stand_by_attack() -> None:
    one = section("detector")
    assert "flags above 1.25" in one.words[0]
    assert "52 of 1,000 clean test images" in one.words[0]
    assert f"5.2% (4.0{DASH}6.8%)" in one.words[0]
    rows = [cells(row) for row in one.tables[0].rows]
    assert rows[0][:3] == ["pgd-20", "oblivious", "undefended"]
    assert rows[0][3] == f"{1 / 1.15:.3f}"
    assert rows[3] == [
        "mim-10", "adaptive (wrong-unflagged)", "defended", "0.500", "5.0%", "none", "none", "0",
    ]  # fmt: skip


def test_many_attacks_are_folded_and_those_the_detector_misses_are_drawn() -> None:
    summary = make_rich()
    entries = summary["detection"]["by_attack"]
    plain = entries[0]
    for k in range(12):
        entries.append({**plain, "attack": f"a-{k}", "auroc": 0.9 - 0.01 * k})
    entries.append({**plain, "attack": "a-11", "auroc": 0.3, "backward": "identity"})
    entries.append({**plain, "attack": "control", "auroc": 0.1, "goal": "predicted-label"})
    one = section("detector", summary)
    assert len(one.folded[0].rows) == len(entries)
    named = [cells(row)[:2] for row in one.tables[0].rows]
    assert named == [
        ["a-11", "oblivious (identity)"], ["fgsm", "oblivious"],
        ["mim-10", "adaptive (wrong-unflagged)"], ["pgd-20", "adaptive"],
    ]  # fmt: skip
    legend = one.charts[0].svg
    assert "a-11, oblivious (identity): 0.300" in legend
    assert "a-0, " not in legend


def test_harmless_changes_and_failed_attacks() -> None:
    one = section("harmless")
    rows = [cells(row) for row in one.tables[0].rows]
    assert rows[2] == [
        "jpeg-75", "worse", "54.8%", "52.0%", "\N{MINUS SIGN}2.8", "< 0.001", "3.9%",
    ]  # fmt: skip
    assert rows[1][1] == "no clear difference"
    assert cells(one.tables[1].rows[0]) == ["fgsm", "803", "62.4%"]
    summary = make_rich()
    summary["failed_attacks"] *= 9
    long = section("harmless", summary)
    assert (len(long.tables), len(long.folded)) == (1, 1)
    alone = section("harmless", without_defense(make_rich()))
    assert cells(alone.tables[0].rows[0]) == ["uniform-noise", "79.0%", "3.9%"]


def test_the_control_for_label_leaking() -> None:
    rows = [cells(row) for row in section("leaking").tables[0].rows]
    assert rows[1] == ["defended", "80.0%", "82.1%", "70.2%", "200", "35.5%", "4.5%"]


def test_outside_images_are_counted_and_named() -> None:
    one = section("outside")
    assert cells(one.tables[0].rows[0]) == [
        "foolbox-pgd", "980", "19", "0.0%", "4.5%", "3.1%", "2",
    ]  # fmt: skip
    text = " ".join(one.words)
    assert "for 20 images of this audit it brought none" in text
    assert "by no attack of ours: 00017, 00231." in text
    assert "Images from foolbox-pgd: 980 scored, 961 inside the ball" in terminal_table(make_rich())


def test_memory_stands_beside_time() -> None:
    told = "Peak memory for each image: 2.31 MB against 0.770 MB, 3.00\N{MULTIPLICATION SIGN}"
    assert told in render_html(make_rich(), [])
    assert told in render_markdown(make_rich())


def test_long_parts_are_folded_and_the_headline_is_not() -> None:
    page = render_html(make_rich(), make_cases(), b"PAR1")
    open_part = re.sub(r"<details>.*?</details>", "", page, flags=re.S)
    for wanted in ("Wrong and not flagged", "Red flags", 'class="accuracies"', "records.parquet"):
        assert wanted in open_part
    assert '<table class="details">' not in open_part
    assert page.count("<details>") == page.count("</details>") >= 4


# -- curves -------------------------------------------------------------------------------------


def _places(root: ElementTree.Element, kind: str, tag: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]  # type: ignore[misc]
        for line in root.iter(f"{SVG}{tag}")
        if line.get("class") == kind
    ]


def _ticks(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    return {
        t.text or "": (float(t.get("x", "nan")), float(t.get("y", "nan")))
        for t in root.iter(f"{SVG}text")
    }


def test_a_security_curve_passes_through_its_points() -> None:
    points = (
        Point(0.0, 0.9, 0.85, 0.95, "0"), Point(EPS, 0.4, 0.3, 0.5, "8/255"),
        Point(4 * EPS, 0.1, 0.05, 0.2, "32/255"),
    )  # fmt: skip
    curve = Curve(
        name="defended", kind="target", points=points, huge=Point(0.5, 0.2, 0.1, 0.3, "0.5")
    )
    root = ElementTree.fromstring(security_chart([curve], eps=EPS, eps_text="8/255", label="label"))
    ticks = _ticks(root)
    zero, top = ticks["0%"][1] - 4, ticks["100%"][1] - 4
    left, right = ticks["0"][0], ticks["32/255"][0]
    (line, _legend) = _places(root, "curve target", "polyline")
    for point, (x, y) in zip(points, line, strict=True):
        assert x == pytest.approx(left + (right - left) * point.x / (4 * EPS), abs=0.02)
        assert y == pytest.approx(zero + (top - zero) * point.y, abs=0.02)
    (band,) = _places(root, "band target", "polygon")
    highs, lows = [y for _, y in band[:3]], [y for _, y in reversed(band[3:])]
    assert highs == pytest.approx([zero + (top - zero) * p.high for p in points], abs=0.02)
    assert lows == pytest.approx([zero + (top - zero) * p.low for p in points], abs=0.02)
    dots = [c for c in root.iter(f"{SVG}circle") if c.get("class") == "target"]
    beyond = max(dots, key=lambda c: float(c.get("cx", "nan")))
    assert float(beyond.get("cx", "nan")) > right
    assert float(beyond.get("cy", "nan")) == pytest.approx(zero + (top - zero) * 0.2, abs=0.02)
    assert "(huge)" in ticks
    assert ticks["8/255"][0] == pytest.approx(left + (right - left) / 4, abs=0.02)


def test_curves_are_drawn_and_their_numbers_folded() -> None:
    one = section("curve")
    assert "defended, pgd-20 (n = 256)" in one.charts[0].svg
    assert "defended, ddn-100 (n = 256)" in one.charts[0].svg
    (table,) = one.folded
    assert table.columns[2:] == (
        "0", "2/255", "4/255", "8/255", "16/255", "32/255", "0.5, huge",
    )  # fmt: skip
    assert [row[0].value for row in table.rows] == ["defended", "undefended"]
    assert table.rows[0][2].value == "80.1%"
    assert table.rows[0][-1].value == "1.2%"


def test_no_tick_runs_into_another() -> None:
    summary = make_rich()
    for entry in summary["curves"]["series"]:
        entry["points"] = [
            {"eps": k / 255, "eps_text": f"{k}/255", **acc(900 - 10 * k)} for k in range(33)
        ]
    root = ElementTree.fromstring(section("curve", summary).charts[0].svg)
    marks = sorted(
        float(t.get("x", "nan"))
        for t in root.iter(f"{SVG}text")
        if "tick" in (t.get("class") or "") and "/255" in (t.text or "")
    )
    assert len(marks) > 4
    assert min(np.diff(marks)) >= 43.9


def test_a_roc_runs_from_corner_to_corner_with_a_ring_at_the_threshold() -> None:
    points = tuple(Point(k / 10, (k / 10) ** 0.5, 0, 0) for k in range(11))
    curve = Curve(name="pgd-20", kind="s0", points=points, marks=False)
    drawn = roc_chart([curve], threshold=[Point(0.25, 0.5, 0, 0)], label="label")
    root = ElementTree.fromstring(drawn)
    line = _places(root, "curve s0", "polyline")[0]
    (x0, y0), (x1, y1) = line[0], line[-1]
    assert x1 - x0 == pytest.approx(y0 - y1)
    (ring,) = [c for c in root.iter(f"{SVG}circle") if c.get("class") == "ring s0"]
    assert float(ring.get("cx", "nan")) == pytest.approx(x0 + 0.25 * (x1 - x0), abs=0.02)
    assert float(ring.get("cy", "nan")) == pytest.approx(y0 + 0.5 * (y1 - y0), abs=0.02)


# -- records ------------------------------------------------------------------------------------


def some_rows(count: int = 40) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "image_id": np.array([f"image {k % 7}\u00e9" for k in range(count)], dtype=object),
        "pixels": np.array([random.bytes(16).hex() for _ in range(count)], dtype=object),
        "eps": np.full(count, EPS),
        "draw": np.arange(count, dtype=np.int32),
        "correct": random.random(count) < 0.5,
        "detector": np.where(random.random(count) < 0.5, np.nan, 1).astype(np.float32),
    }


def test_records_read_back_as_they_were() -> None:
    rows = some_rows()
    content = records_bytes(rows, {"digest": "abc"})
    assert content == records_bytes(rows, {"digest": "abc"})
    found = pq.ParquetFile(io.BytesIO(content))
    assert found.metadata.metadata[b"digest"] == b"abc"
    table = found.read()
    assert table.column_names == list(rows)
    for name, values in rows.items():
        read = table.column(name).to_numpy(zero_copy_only=False)
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read, values)
    assert {found.metadata.row_group(0).column(k).compression for k in range(len(rows))} == {"ZSTD"}


def test_small_records_are_in_the_page_and_beside_it(tmp_path: Path) -> None:
    content = records_bytes(some_rows(), {})
    paths = write_reports(make_rich(), [], tmp_path, content)
    assert [path.name for path in paths] == [
        "report.html", "report.md", "report.json", "records.parquet",
    ]  # fmt: skip
    assert paths[3].read_bytes() == content
    page = paths[0].read_text(encoding="utf-8")
    (uri,) = re.findall(r'<a download="records.parquet" href="data:[^;]+;base64,([^"]+)"', page)
    assert base64.b64decode(uri) == content
    assert 'href="records.parquet"' in page


def test_large_records_are_only_beside_the_page_and_it_says_so(tmp_path: Path) -> None:
    content = bytes(LARGEST_INLINE + 1)
    page = write_reports(make_rich(), [], tmp_path, content)[0].read_text(encoding="utf-8")
    assert "base64" not in page
    assert 'href="records.parquet"' in page
    assert "too large to be held in this page" in page
    assert "4.0 MB" in page
    held = render_html(make_rich(), [], bytes(LARGEST_INLINE))
    assert "so the page alone is enough" in held
    assert "records" not in [one.id for one in sections(make_rich())]
    assert 'id="records"' not in render_html(make_rich(), [])
