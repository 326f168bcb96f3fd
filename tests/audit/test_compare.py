"""Audits side by side: figures against the raw rows, fairness said in words, refusals typed."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.doubles import EPS, conv_net, digits, linear_net
from audit.rich import make_rich
from audit.test_report import Page
from unperturb.attacks import FirstOrder
from unperturb.audit import audit, read_result
from unperturb.audit.compare import compare_audits, holm
from unperturb.audit.compare_report import (
    comparison_html,
    comparison_json,
    comparison_markdown,
    comparison_text,
    write_comparison,
)
from unperturb.errors import OutputError, RecordError
from unperturb.threat import L2, Linf

FGSM = FirstOrder(name="fgsm", steps=1, step_size=1.0)
PGD = FirstOrder(name="pgd-3", steps=3, step_size=0.5, random_start=True)
WEAK = FirstOrder(name="weak", steps=1, step_size=0.2)
LONGER = FirstOrder(name="pgd-3", steps=4, step_size=0.5, random_start=True)

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a small audit once for each set of arguments, and return its folder."""
    root = tmp_path_factory.mktemp("audits")

    def call(name: str, net: Any, count: int = 40, start: int = 1200, **more: Any) -> Path:
        folder = root / name
        if not folder.exists():
            images, labels = digits(count, start)
            given: dict[str, Any] = {"threat": Linf(EPS), "attacks": [FGSM, PGD], **more}
            given.setdefault("ids", [f"digit-{start + k}" for k in range(count)])
            given.setdefault("batch_size", 20)
            audit(net, images, labels, out=folder, name=name, **given)
        return folder

    return call


@pytest.fixture(scope="module")
def folders(run: Run) -> list[Path]:
    """Three nets under the same attacks."""
    nets = {"linear": linear_net(), "conv": conv_net(), "steep": linear_net(50.0)}
    return [run(name, net) for name, net in nets.items()]


def naive(folder: Path, attackers: tuple[str, ...], attacks: tuple[str, ...] | None = None) -> Any:
    """Id to whether it is right clean and in every row that counts: loops over raw rows."""
    found = read_result(folder)
    right = dict.fromkeys(found.plan["ids"], True)
    rows = found.rows
    for k in range(len(rows["draw"])):
        if rows["subject"][k] != "target":
            continue
        attack, attacker = rows["attack"][k], rows["attacker"][k]
        counted = attacker in attackers and (attacks is None or attack in attacks)
        if rows["goal"][k] == "predicted-label" and attacks is not None:
            counted = False
        if attack == "clean" or (counted and rows["inside"][k]):
            right[rows["image_id"][k]] &= bool(rows["correct"][k])
    return right


WHATS = {
    "clean": (), "worst case, oblivious": ("oblivious",), "worst case, adaptive": ("adaptive",),
    "worst case": ("oblivious", "adaptive"),
}  # fmt: skip


def binomial(only: int, both: int) -> float:
    """Two-sided exact p-value at one half, by summing what is at most as likely."""
    weights = [math.comb(both, k) for k in range(both + 1)]
    return sum(w for w in weights if w <= weights[only]) / 2**both


def test_accuracies_and_pairs_are_those_of_the_raw_rows(folders: list[Path]) -> None:
    found = compare_audits(folders)
    assert found["images"] == 40
    (block,) = found["blocks"]
    names = [folder.name for folder in folders]
    assert [audit["name"] for audit in found["audits"]] == names
    pairs = {(p["what"], p["first"], p["second"]): p for p in block["pairs"]}
    assert len(pairs) == 4 * 3
    different = 0
    for row in block["rows"]:
        right = [naive(folder, WHATS[row["what"]]) for folder in folders]
        assert [acc["correct"] for acc in row["accuracy"]] == [sum(r.values()) for r in right]
        ps = []
        for one, two in combinations(range(3), 2):
            pair = pairs[(row["what"], names[one], names[two])]
            first = sum(right[one][i] and not right[two][i] for i in right[one])
            second = sum(right[two][i] and not right[one][i] for i in right[one])
            assert (pair["only_first"], pair["only_second"]) == (first, second)
            assert pair["mcnemar_p"] == pytest.approx(binomial(first, first + second), rel=1e-9)
            assert pair["difference"] == pytest.approx((first - second) / 40)
            ps.append(pair["mcnemar_p"])
            different += first + second
        told = [pairs[(row["what"], names[a], names[b])]["holm_p"] for a, b in
                combinations(range(3), 2)]  # fmt: skip
        assert told == pytest.approx(holm(ps))
    assert different > 10, "nets that answer alike test nothing"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_its_definition(ps: list[float]) -> None:
    ordered = sorted(ps)
    want = {
        p: max(min(1.0, (len(ps) - j) * ordered[j]) for j in range(len(ps)) if ordered[j] <= p)
        for p in ps
    }
    found = holm(ps)
    # Equal p-values share the largest factor among them in the definition, ours the running one.
    for p, adjusted in zip(ps, found, strict=True):
        assert adjusted == pytest.approx(want[p])


def test_holm_keeps_one_and_corrects_many() -> None:
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    assert holm([0.5, 0.01, 0.02]) == pytest.approx([0.5, 0.03, 0.04])


def test_the_same_attacks_need_no_second_comparison_and_no_warning(folders: list[Path]) -> None:
    found = compare_audits(folders)
    assert len(found["blocks"]) == 1
    assert not any("Not the same attack" in note for note in found["notes"])
    assert not any("Not the same images" in note for note in found["notes"])
    # They are different networks, and that is said.
    assert any("undefended classifier" in note for note in found["notes"])
    assert all(entry["same_settings"] for entry in found["matrix"])


def test_other_attacks_are_called_out_and_compared_over_the_shared_ones(run: Run) -> None:
    two = [run("whole", conv_net(), attacks=[WEAK, PGD]), run("few", conv_net(), attacks=[WEAK])]
    found = compare_audits(two)
    note = next(note for note in found["notes"] if note.startswith("Not the same attacks"))
    assert "only whole ran pgd-3" in note
    assert "The worst case of the one with fewer attacks flatters it" in note
    whole, shared = found["blocks"]
    assert whole["attacks"] is None
    assert shared["attacks"] == ["weak"]
    for row in shared["rows"]:
        want = [sum(naive(folder, WHATS[row["what"]], ("weak",)).values()) for folder in two]
        assert [acc["correct"] for acc in row["accuracy"]] == want
    worst = [{row["what"]: row["accuracy"] for row in block["rows"]}["worst case"]
             for block in (whole, shared)]  # fmt: skip
    # One network: what looks like a difference is the missing attack.
    assert worst[0][0]["correct"] < worst[0][1]["correct"]
    assert worst[1][0] == worst[1][1] == worst[0][1]
    (entry,) = [e for e in found["matrix"] if (e["attack"], e["attacker"]) == ("pgd-3", "adaptive")]
    assert entry["cells"][1] is None
    text = comparison_text(found)
    assert "Compared over the attacks they share" in text
    assert "Not the same attacks" in re.sub(r"\s+", " ", text)


def test_an_attack_of_the_same_name_with_other_settings_is_not_shared(
    run: Run, folders: list[Path]
) -> None:
    longer = run("longer", conv_net(), attacks=[FGSM, LONGER])
    found = compare_audits([folders[0], longer])
    assert any("pgd-3 ran with other settings" in note for note in found["notes"])
    assert found["blocks"][1]["attacks"] == ["fgsm"]
    same = {entry["attack"]: entry["same_settings"] for entry in found["matrix"]}
    assert same == {"fgsm": True, "pgd-3": False}


def test_other_attackers_are_called_out(run: Run, folders: list[Path]) -> None:
    blind = run("blind", conv_net(), attackers=("oblivious",))
    found = compare_audits([folders[0], blind])
    assert any(
        "Not the same attackers (linear: adaptive, oblivious; blind: oblivious)" in note
        for note in found["notes"]
    )
    whats = {row["what"]: row["accuracy"] for row in found["blocks"][0]["rows"]}
    assert whats["worst case, adaptive"][1] is None
    assert {row["what"] for row in found["blocks"][1]["rows"]} == {
        "clean", "worst case, oblivious", "worst case",
    }  # fmt: skip


def test_seeds_and_other_image_counts_are_said_and_allowed(run: Run, folders: list[Path]) -> None:
    other = run("other", linear_net(), count=24, start=1210, seed=7)
    found = compare_audits([folders[0], other])
    assert found["images"] == 24
    assert any("Not the same seeds: linear 0, other 7." in note for note in found["notes"])
    assert any("linear 40, other 24" in note and "24 that all" in note for note in found["notes"])
    clean = found["blocks"][0]["rows"][0]["accuracy"]
    # One network, and the same images whatever their places were.
    assert clean[0] == clean[1]
    assert clean[0]["n"] == 24
    assert found["audits"][0]["clean"]["n"] == 40


def test_an_unfinished_audit_is_named_and_counts_what_is_done(
    run: Run, folders: list[Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(folders[1], cut)
    (cut / "manifest.json").unlink()
    (cut / "rows.parquet").unlink(missing_ok=True)
    units = read_result(folders[1]).units
    last = [unit for unit in units if unit.start == 20 and unit.attack == "pgd-3"]
    for unit in last:
        (cut / "rows" / f"{unit.name}.parquet").unlink()
    found = compare_audits([folders[0], cut])
    assert any(note.startswith("cut is not complete") for note in found["notes"])
    assert [audit["complete"] for audit in found["audits"]] == [True, False]
    sizes = {pair["what"]: pair["n"] for pair in found["blocks"][0]["pairs"]}
    assert sizes["clean"] == 40
    assert sizes["worst case"] == 20
    first = naive(folders[0], ("oblivious", "adaptive"))
    ids = read_result(folders[0]).plan["ids"][:20]
    (pair,) = [p for p in found["blocks"][0]["pairs"] if p["what"] == "worst case"]
    assert pair["first_accuracy"]["correct"] == sum(first[i] for i in ids)


def edited(folder: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same audit with another plan."""
    shutil.copytree(folder, to)
    plan = json.loads((to / "plan.json").read_text())
    change(plan)
    (to / "plan.json").write_text(json.dumps(plan))
    return to


def test_another_threat_model_is_refused(run: Run, folders: list[Path]) -> None:
    for threat, told in ((L2(0.5), "L2 0.5"), (Linf(0.1), "Linf 0.1")):
        other = run(told.replace(" ", "-"), linear_net(), count=4, threat=threat, attacks=[FGSM])
        with pytest.raises(
            RecordError, match=rf"linear is under Linf 0\.15, .* under {told}\. Expected: .*Fix: "
        ):
            compare_audits([folders[0], other])


def test_other_images_are_refused(run: Run, folders: list[Path]) -> None:
    far = run("far", linear_net(), count=4, start=1300, attacks=[FGSM])
    with pytest.raises(
        RecordError, match=r"no image in common: linear has 40 \(digit-1200.*far has 4 \(digit-1300"
    ):
        compare_audits([folders[0], far])
    ids = [f"digit-{1200 + k}" for k in range(4)]
    swapped = run("swapped", linear_net(), count=4, start=1300, attacks=[FGSM], ids=ids)
    with pytest.raises(RecordError, match=r"Image digit-1200 (of|has).*Fix: run them on the same"):
        compare_audits([folders[0], swapped])


def test_the_same_label_and_other_pixels_are_refused(folders: list[Path], run: Run) -> None:
    images, labels = digits(4)
    folder = folders[0].parent / "dimmed"
    audit(
        linear_net(), images * 0.9, labels, threat=Linf(EPS), attacks=[FGSM], out=folder,
        ids=[f"digit-{1200 + k}" for k in range(4)],
    )  # fmt: skip
    with pytest.raises(RecordError, match=r"digit-1200 of linear is not that of dimmed.*pixels"):
        compare_audits([folders[0], folder])


def test_other_classes_are_refused(folders: list[Path], tmp_path: Path) -> None:
    def name(*classes: str) -> Callable[[dict[str, Any]], None]:
        return lambda plan: plan["settings"]["data"].update(classes=list(classes))

    one = edited(folders[0], tmp_path / "one", name("cat", "dog"))
    two = edited(folders[1], tmp_path / "two", name("cat", "cow"))
    with pytest.raises(
        RecordError, match=r"label sets: class 1 is 'dog' in one \(2 classes\) and 'cow' in two"
    ):
        compare_audits([one, two])
    three = edited(folders[1], tmp_path / "three", name("cat", "dog", "emu"))
    with pytest.raises(RecordError, match=r"class 2 is not there in one .* and 'emu' in three"):
        compare_audits([one, three])

    def fewer(plan: dict[str, Any]) -> None:
        plan["settings"]["target"]["describe"]["num_classes"] = 7

    seven = edited(folders[1], tmp_path / "seven", fewer)
    with pytest.raises(RecordError, match=r"linear has 10 classes, seven 7"):
        compare_audits([folders[0], seven])


def test_another_label_of_an_image_is_refused(folders: list[Path], tmp_path: Path) -> None:
    other = edited(folders[1], tmp_path / "x", lambda plan: plan["labels"].__setitem__(3, 11))
    with pytest.raises(RecordError, match=r"Image digit-1203 has the label \d in linear and 11"):
        compare_audits([folders[0], other])


def test_what_is_no_pair_of_audits_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"1 audit is named\. Expected: at least two"):
        compare_audits(folders[:1])
    with pytest.raises(RecordError, match=r"is named twice"):
        compare_audits([folders[0], folders[0] / "."])
    with pytest.raises(RecordError, match=r"holds no audit: plan\.json is missing"):
        compare_audits([folders[0], tmp_path])


def test_folders_of_one_name_are_told_apart(folders: list[Path], tmp_path: Path) -> None:
    for part, folder in zip("ab", folders, strict=False):
        shutil.copytree(folder, tmp_path / part / "audit")
    found = compare_audits([tmp_path / "a" / "audit", tmp_path / "b" / "audit"])
    assert [audit["name"] for audit in found["audits"]] == ["a/audit", "b/audit"]


# -- the page -----------------------------------------------------------------------------------


def with_curves(comparison: dict[str, Any], name: str = "") -> dict[str, Any]:
    """The same with a fabricated curve for each audit."""
    found = json.loads(json.dumps(comparison))
    for entry in found["curves"]:
        entry["curves"] = make_rich()["curves"]
    if name:
        for audit_ in found["audits"]:
            audit_.update(name=name, title=name, flags=[name])
        for block in found["blocks"]:
            for pair in block["pairs"]:
                pair.update(first=name, second=name)
        for entry in found["curves"]:
            entry["name"] = name
        for entry in found["matrix"]:
            entry["attack"] = name
        found["notes"] = [name]
    return found


def test_the_page_is_balanced_offline_and_says_what_differs(run: Run, folders: list[Path]) -> None:
    few = run("few", conv_net(), attacks=[WEAK])
    found = with_curves(compare_audits([*folders, few]))
    text = comparison_html(found)
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for reference in page.references:
        assert reference.startswith("#")
        assert reference[1:] in page.ids
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    for wanted in ("Before you compare", "Not the same attacks", "Each audit by itself",
                   "Compared as audited", "Compared over the attacks they share",
                   "Accuracy under each attack"):  # fmt: skip
        assert wanted in page.text
    for number, folder in enumerate([*folders, few]):
        assert f"{folder.name}, pgd-20 (n = 256)" in text
        assert f'class="curve s{number}"' in text
    assert comparison_html(found) == text
    markdown = comparison_markdown(found)
    assert "**Before you compare:**" in markdown
    for block in markdown.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1
    assert json.loads(comparison_json(found)) == found


def test_hostile_names_are_shown_and_never_obeyed(folders: list[Path]) -> None:
    evil = "<script>alert(1)</script>|`x`&\"'\x1b[2J"
    found = with_curves(compare_audits(folders), evil)
    text = comparison_html(found)
    Page(text)
    assert "<script" not in text
    assert "<script" not in comparison_markdown(found)
    shown = comparison_text(found)
    assert "\x1b" not in shown
    assert shown.isascii()
    assert max(map(len, shown.splitlines())) <= 100


def test_a_clear_difference_is_read_with_holms_p(folders: list[Path]) -> None:
    found = compare_audits(folders[:2])
    (pair,) = [p for p in found["blocks"][0]["pairs"] if p["what"] == "worst case"]
    pair.update(difference=0.2, mcnemar_p=0.004, holm_p=0.012)
    assert "linear is better" not in comparison_text(found)
    pair.update(holm_p=0.004)
    assert "linear is better" in comparison_text(found)
    pair.update(difference=-0.2)
    assert "conv is better" in comparison_text(found)


def test_three_files_are_written_and_a_file_in_the_way_is_refused(
    folders: list[Path], tmp_path: Path
) -> None:
    found = compare_audits(folders[:2])
    paths = write_comparison(found, tmp_path / "new")
    assert [path.name for path in paths] == ["compare.html", "compare.md", "compare.json"]
    assert json.loads(paths[2].read_text(encoding="utf-8")) == found
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(OutputError, match=r"Cannot write .*compare\.html"):
        write_comparison(found, blocked)
