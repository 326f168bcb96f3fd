"""The report as a whole: pure, offline, escaped, honest about what was not run."""

from __future__ import annotations

import copy
import json
import math
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from audit.rich import make_rich
from audit.summaries import acc, make_cases, make_summary, only_oblivious, without_defense
from unperturb.audit import report_text as words
from unperturb.audit.report import (
    render_html,
    render_json,
    render_markdown,
    terminal_table,
    write_reports,
)
from unperturb.errors import InputError, OutputError, RecordError

EVIL = "<script>alert(1)</script>|`x`&\"'"
VOID = {"meta", "img", "br", "rect", "line", "polyline", "polygon", "circle"}


class Page(HTMLParser):
    """Checks that tags balance, and gathers text, tags and references."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "data", "action"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def evil_summary() -> dict[str, Any]:
    """Every text a user or a file can bring is hostile."""
    summary = make_summary()
    summary.update(title=EVIL, lesson=EVIL, notes=[EVIL], left_out=[EVIL], command=EVIL)
    summary["data"].update(source=EVIL, classes=[EVIL] * 10)
    summary["flags"] = [{"id": "x", "title": EVIL, "evidence": EVIL, "meaning": EVIL}]
    summary["environment"] = {EVIL: EVIL}
    summary["target"]["describe"] = {"path": EVIL}
    summary["cost"]["note"] = EVIL
    summary["table"][0]["attack"] = EVIL
    for attack in summary["attacks"]:
        attack.update(name=EVIL, settings={"steps": 1, EVIL: EVIL})
    return summary


def hollow() -> dict[str, Any]:
    """All that may be None or empty is."""
    summary = make_rich()
    for entry in (*summary["own"], *summary["minimal"]):
        entry["cells"] = {"baseline": {"oblivious": None}, "target": {}}
    summary["own"].append({"attack": "fwa", "cells": {"target": {"adaptive": {
        "accuracy": acc(1), "measure": None, "median_linf": None, "median_l2": None,
    }}}})  # fmt: skip
    for row in summary["random"]["rows"]:
        row.update(single=None, worst_of_n=None, majority=None)
    summary["random"]["selection_draws"] = None
    summary["rejection"].update(
        baseline_wrong=None, gain=None, false_positive_rate=None, right_unflagged_clean=None,
        wrong_unflagged={"clean": None, "worst_case": None, "worst_by_attacker": {}},
    )  # fmt: skip
    summary["detection"].update(threshold=None, false_positive_rate=None)
    for entry in summary["detection"]["by_attack"]:
        entry.update(auroc=None, tpr=None, roc=[], successful={"n": 0, "auroc": None, "tpr": None})
    for found in summary["control"]["subjects"].values():
        found["wrong_when_clean"] = {"n": 0, "true_label": None, "predicted_label": None}
    for entry in summary["benign"]:
        entry.update(baseline=None, difference=None, changed=None)
    summary["failed_attacks"][0].update(n=0, target_wrong=None)
    summary["curves"]["huge"] = {"eps": 0.5, "eps_text": "0.5", "target": None, "baseline": None}
    summary["curves"]["series"][0]["points"] = []
    summary["outside"][0].update(checks=None, baseline=None, only_outside=[], only_outside_count=0)
    summary["target"]["worst_case_8bit"] = summary["baseline"]["worst_case_8bit"] = None
    summary["cost"].update(target_peak_mb=None, baseline_peak_mb=None, memory_ratio=None)
    return summary


def evil_rich() -> dict[str, Any]:
    """The same of all that the second schema added."""
    summary = make_rich()
    summary.update(suite=EVIL)
    for entry in (*summary["worst_of"], *summary["own"], *summary["minimal"]):
        entry["attack"] = EVIL
    for entry in summary["detection"]["by_attack"]:
        entry.update(attack=EVIL, backward=EVIL, goal=EVIL)
    summary["detection"].update(name=EVIL)
    summary["control"]["attack"] = EVIL
    summary["benign"][0]["name"] = summary["failed_attacks"][0]["attack"] = EVIL
    summary["random"]["rows"][1]["what"] = EVIL
    for entry in summary["curves"]["series"]:
        entry["attack"] = EVIL
        for point in entry["points"]:
            point["eps_text"] = EVIL
    summary["curves"]["huge"]["eps_text"] = EVIL
    summary["outside"][0].update(name=EVIL, only_outside=[EVIL], checks={"note": EVIL})
    summary["cost"]["memory_note"] = EVIL
    return summary


def variants() -> dict[str, dict[str, Any]]:
    summary = make_summary()
    lone = only_oblivious(summary)
    flat = copy.deepcopy(summary)
    flat["threat"] = {"norm": "l2", "eps": 0.5, "eps_text": "0.5"}
    for attack in flat["attacks"]:
        attack.update(norm="l2", eps=0.5, median_distance=0.4321)
    cut = copy.deepcopy(summary)
    cut.update(complete=False, left_out=["7 of 40 units are not done"], digest=None, cost=None)
    cut["table"][1]["cells"]["target"]["adaptive"] = None
    cut["target"].update(worst_case=None, worst_by_attacker={"oblivious": acc(276)})
    nothing = {**cut, "table": [], "attacks": [], "gains": [], "flags": [], "notes": []}
    nothing["target"] = {**cut["target"], "clean": None, "worst_by_attacker": {}}
    return {
        "whole": summary,
        "no defense": without_defense(summary),
        "no defense, one attacker": without_defense(lone),
        "oblivious only": lone,
        "l2": flat,
        "incomplete": cut,
        "nothing": nothing,
        "evil": evil_summary(),
        "rich": make_rich(),
        "rich, no defense": without_defense(make_rich()),
        "rich, oblivious only": only_oblivious(make_rich()),
        "rich and evil": evil_rich(),
        "rich and hollow": hollow(),
    }


@pytest.mark.parametrize("name", variants())
def test_every_variant_is_a_balanced_page_that_refers_to_nothing_outside(name: str) -> None:
    text = render_html(variants()[name], make_cases((1, 8, 8), purified=name == "l2"))
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert page.references
    for reference in page.references:
        assert reference.startswith(("#", "data:image/png;base64,")), reference[:60]
        if reference.startswith("#"):
            assert reference[1:] in page.ids
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().replace("decision", "").split()


@pytest.mark.parametrize("name", variants())
def test_every_variant_has_markdown_tables_of_one_width_and_a_terminal_table(name: str) -> None:
    summary = variants()[name]
    widths = []
    for block in render_markdown(summary).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        widths += [{len(re.findall(r"(?<!\\)\|", row)) for row in rows}] if rows else []
    assert widths
    assert all(len(width) == 1 for width in widths)
    table = terminal_table(summary)
    assert table.isascii()
    assert max(map(len, table.splitlines())) <= 100
    assert "\x1b" not in table


def test_html_shows_the_sections_in_the_order_of_importance() -> None:
    text = Page(render_html(make_summary(), make_cases())).text
    order = [
        "tpap around cifar-resnet20 (resnet20-overfit.safetensors)",
        "1,000 images of cifar10/test.parquet (test) · L∞ 8/255 · seed 0 · digest 3f7a91c0d2e4",
        "the attacker ignores the defense",
        "27.6%",
        "24.9\N{EN DASH}30.5%",
        "276 of 1,000",
        "the attacker knows the defense",
        "0.2%",
        "Worst case per image",
        "Clean accuracy",
        "An attacker who knows it leaves 0.2%",
        "A one-step attack beats an iterative one",
        "Accuracy under each attack",
        "What the defense adds",
        "What it looks like",
        "Details of each attack",
        "A defended answer takes 3.37\N{MULTIPLICATION SIGN}",
        "least of 3 timings",
        "Settings, and how to repeat this audit",
        "3f7a91c0d2e45b68" * 4,
        "Glossary",
    ]
    place = -1
    for piece in order:
        # The macro of the title comes twice: in <title>, too, hence the search from the last hit.
        found = text.replace(" %", "%").find(piece, place + 1)
        assert found > place, piece
        place = found


def test_each_cell_of_the_table_stands_in_its_row_and_column() -> None:
    text = render_html(make_summary(), [])
    body = text[text.index('<table class="accuracies">') :]
    row = re.search(r'<th scope="row">pgd-20</th>(.*?)</tr>', body, re.S)
    assert row is not None
    cells = re.findall(r">([\d.]+%)<small>", row.group(1))
    assert cells == ["0.0%", "82.1%", "0.0%", "0.2%"]
    assert re.findall(r"<th scope=\"col\" class=\"num [a-z]*\">([a-z]+)</th>", body)[:4] == [
        "undefended", "defended", "undefended", "defended",
    ]  # fmt: skip


def test_published_attacks_stay_visible_beside_the_worst_case() -> None:
    text = Page(render_html(make_summary(), [])).text
    assert re.search(r"by attack: fgsm 31\.8% pgd-20 82\.1% mim-10 79\.2%", text)
    assert re.search(r"by attack: fgsm 30\.5% pgd-20 0\.2% mim-10 1\.1%", text)


@pytest.mark.parametrize("make", [evil_summary, evil_rich])
def test_hostile_text_is_shown_and_never_obeyed(make: Any) -> None:
    summary = {**make(), "command": EVIL}
    cases = make_cases()
    text = render_html(summary, cases)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 20
    assert EVIL in "".join(Page(text).words)
    markdown = render_markdown(summary)
    fence = markdown[markdown.index("\n```") :].split("\n```")[1]
    assert "<script" not in markdown.replace(fence, "")
    assert json.loads(render_json(summary)) == summary


def test_terminal_escapes_cannot_reach_a_terminal() -> None:
    summary = make_summary()
    summary["title"] = "\x1b[2Jtpap\n" + "long " * 60
    summary["table"][0]["attack"] = "\x1b]0;x\x07" + "a" * 99
    table = terminal_table(summary)
    assert "\x1b" not in table
    assert "\x07" not in table
    assert max(map(len, table.splitlines())) <= 100


def test_terminal_table_sets_both_attackers_side_by_side() -> None:
    lines = terminal_table(make_summary()).splitlines()
    by_name = {line[:26].strip(): line.split() for line in lines if line[:26].strip()}
    assert by_name["pgd-20"] == ["pgd-20", "0.0%", "82.1%", "0.0%", "0.2%"]
    assert by_name["worst case"] == ["worst", "case", "0.0%", "27.6%", "0.0%", "0.2%"]
    heading = next(line for line in lines if "undefended" in line).split()
    assert heading == ["undefended", "defended", "undefended", "defended"]
    assert any("defended 0.2% [0.1-0.7%], undefended 0.0% [0.0-0.4%]" in line for line in lines)
    assert "Red flags: 1" in lines


def test_what_was_not_run_is_said_so() -> None:
    summary = only_oblivious(make_summary())
    summary["table"][1]["cells"]["target"]["oblivious"] = None
    page = Page(render_html(summary, []))
    assert "not run Without this attacker the audit says nothing about one who knows" in page.text
    assert "pgd-20 not run" in page.text
    assert "Plan with" not in page.text
    markdown = render_markdown(summary)
    assert (
        "| **Informed attacker**: the attacker knows the defense (adaptive) | not run |" in markdown
    )
    row = next(line for line in markdown.splitlines() if line.startswith("| pgd-20 |"))
    assert row == "| pgd-20 | 0.0% (0.0\N{EN DASH}0.4%) | not run |"
    table = terminal_table(summary)
    assert "Informed attacker (the attacker knows the defense): not run" in table


def test_an_incomplete_audit_carries_a_banner_everywhere() -> None:
    summary = {**make_summary(), "complete": False, "left_out": ["7 of 40 units are not done"]}
    for text in (Page(render_html(summary, [])).text, render_markdown(summary)):
        assert "This audit is not complete" in text
        assert "7 of 40 units are not done" in text
    assert "NOT COMPLETE: 7 of 40 units are not done" in terminal_table(summary)
    whole = Page(render_html(make_summary(), [])).text
    assert "not complete" not in whole


def test_no_flag_is_stated_and_called_no_proof() -> None:
    summary = {**make_summary(), "flags": []}
    assert words.NO_FLAG in Page(render_html(summary, [])).text
    assert words.NO_FLAG in render_markdown(summary)
    assert "Red flags: none (not a proof)" in terminal_table(summary)
    assert words.NO_FLAG not in render_html(make_summary(), [])


def test_without_a_defense_there_is_one_classifier_and_no_gain() -> None:
    text = Page(render_html(without_defense(make_summary()), make_cases())).text
    assert "undefended" not in text[: text.index("Scored on")]
    assert "there is no defense to compare it with" in text
    assert "stops at first success" in text


def test_details_follow_the_order_of_the_table() -> None:
    summary = make_summary()
    summary["attacks"] = sorted(summary["attacks"], key=lambda a: (a["subject"], a["attacker"]))
    found = [(a["attacker"], a["subject"]) for a in words.ordered_attacks(summary)]
    block = [
        ("oblivious", "baseline"), ("oblivious", "target"),
        ("adaptive", "baseline"), ("adaptive", "target"), ("adaptive", "target"),
    ]  # fmt: skip
    assert found == 3 * block


def test_an_oblivious_attack_is_timed_once_though_it_is_scored_on_both() -> None:
    summary = make_summary()
    summary["attacks"] = [a for a in summary["attacks"] if a["name"] == "pgd-20"]
    # Oblivious once, adaptive on two backward rules, adaptive on the baseline: 4 x 34 s.
    assert "took 136 seconds in all" in Page(render_html(summary, [])).text


def test_pictures_say_how_they_were_chosen() -> None:
    cases = make_cases()
    text = Page(render_html(make_summary(), cases)).text
    assert words.cases_note(True, True) in text
    wrong = copy.deepcopy(cases)
    clean = wrong[0].views[0]
    object.__setattr__(clean, "target_prediction", (wrong[0].label + 1) % 10)
    assert words.cases_note(False, True) in Page(render_html(make_summary(), wrong)).text
    said = Page(render_html({**make_summary(), "cases_note": "Drawn by lot."}, cases)).text
    assert "Drawn by lot." in said
    assert "What it looks like" not in Page(render_html(make_summary(), [])).text


def test_reports_are_pure_functions_of_their_arguments() -> None:
    summary, cases = make_summary(), make_cases()
    before, state = copy.deepcopy(summary), torch.random.get_rng_state()
    pixels = cases[0].views[1].image.clone()
    one = (render_html(summary, cases), render_markdown(summary), terminal_table(summary))
    two = (render_html(summary, cases), render_markdown(summary), terminal_table(summary))
    assert one == two
    assert summary == before
    assert torch.equal(cases[0].views[1].image, pixels)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_json_reads_back_equal() -> None:
    summary = make_summary()
    assert json.loads(render_json(summary)) == summary


def test_json_refuses_nan_with_a_message() -> None:
    summary = make_summary()
    summary["attacks"][0]["median_distance"] = math.nan
    with pytest.raises(RecordError, match=r"cannot be written as JSON.*finite numbers.*NaN"):
        render_json(summary)


@pytest.mark.parametrize("render", [render_markdown, render_json, terminal_table])
def test_another_schema_is_refused(render: Any) -> None:
    with pytest.raises(
        RecordError, match=r"schema_version 9\. Expected: schema_version 1 or 2\. Fix"
    ):
        render({**make_summary(), "schema_version": 9})


def test_a_summary_that_lacks_parts_is_refused() -> None:
    summary = make_summary()
    del summary["gains"], summary["flags"]
    with pytest.raises(RecordError, match=r"The summary lacks gains, flags\..*records"):
        render_html(summary, [])


def test_a_picture_of_another_rank_is_refused() -> None:
    cases = make_cases()
    object.__setattr__(cases[0].views[1], "image", torch.zeros(2, 3, 8, 8))
    with pytest.raises(
        InputError, match=r"'oblivious pgd-20' has shape \(2, 3, 8, 8\).*\(C, H, W\)"
    ):
        render_html(make_summary(), cases)


def test_write_reports_writes_three_files_and_nothing_else(tmp_path: Path) -> None:
    summary, cases = make_summary(), make_cases()
    folder = tmp_path / "new" / "audit"
    paths = write_reports(summary, cases, folder)
    assert [path.name for path in paths] == ["report.html", "report.md", "report.json"]
    assert sorted(folder.iterdir()) == sorted(paths)
    assert paths[0].read_text(encoding="utf-8") == render_html(summary, cases)
    assert paths[1].read_text(encoding="utf-8") == render_markdown(summary)
    assert json.loads(paths[2].read_text(encoding="utf-8")) == summary
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o400 for path in paths)


def test_write_reports_leaves_an_older_report_whole_when_one_part_fails(tmp_path: Path) -> None:
    write_reports(make_summary(), [], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    summary = {**make_summary(), "title": "another", "seed": math.inf}
    with pytest.raises(RecordError, match="cannot be written as JSON"):
        write_reports(summary, [], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_write_reports_into_a_file_is_refused(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(OutputError, match=r"Cannot write .*report\.html"):
        write_reports(make_summary(), [], blocked)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
