"""Random defenses in recipes: draws and gradients of a cell, rows image by image, curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.checks import check_cells, check_page
from recipes.comparing import TINY, write
from unperturb.audit import AuditResult, read_result
from unperturb.audit.paired import compare_pair, outcome_of
from unperturb.audit.statistics import mcnemar
from unperturb.errors import InputError, UnperturbError
from unperturb.recipes import load_recipe, read_record, render, reproduce
from unperturb.recipes.words import cells_of

Made = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("comparing")
    return folder / "out", reproduce(write(folder), scale="smoke", out=folder / "out")


def audit_of(made: Made, row: str, column: str, attacker: str) -> AuditResult:
    out, record = made
    return read_result(out / "audits" / cells_of(record, row, column)[attacker]["audit"])


def share(found: AuditResult, attack: str, attacker: str) -> Any:
    """Share of the scoring draws that are right of each image, by a plain loop over rows."""
    rows, ids = found.rows, found.plan["ids"]
    total = np.zeros((2, len(ids)))
    for i in range(len(rows["image_id"])):
        if (
            rows["subject"][i] == "target"
            and rows["attack"][i] == attack
            and rows["attacker"][i] == attacker
            and rows["purpose"][i] == "score"
        ):
            place = ids.index(rows["image_id"][i])
            total[:, place] += (rows["correct"][i], 1)
    return total[0] / total[1]


def test_the_page_agrees_with_the_record(made: Made) -> None:
    out, record = made
    check_cells(record, out)
    page = (out / "table.md").read_text(encoding="utf-8")
    assert page == render(record) == render(read_record(out))
    check_page(record, page)
    assert "| single draw | worst of 4 | more than half of 4 |" in page
    assert "### Compared image by image" in page
    assert "takes only these gradients through it: exact, undefended." in page
    assert not record["complete"]
    (left,) = record["left_out"]
    assert left.endswith(": network missing")
    assert {c["attacker"] for c in record["cells"] if c["column"] == "PGD"} == {"adaptive"}


def test_draws_are_those_of_the_audit(made: Made) -> None:
    _, record = made
    oblivious = cells_of(record, "tuned", "FGSM")["oblivious"]["draws"]
    found = audit_of(made, "tuned", "FGSM", "oblivious")
    attacked, clean = share(found, "fgsm", "oblivious"), share(found, "clean", "none")
    assert oblivious["n"] == 4
    for part, shares in ((oblivious, attacked), (oblivious["clean"], clean)):
        assert part["single"]["accuracy"] == pytest.approx(shares.mean())
        assert part["worst_of_n"]["correct"] == int((shares == 1).sum())
        assert part["majority"]["correct"] == int((shares > 0.5).sum())
    own = cells_of(record, "tuned", "StAdv")["adaptive"]["draws"]
    assert own["single"]["n"] == 8
    assert "clean" not in cells_of(record, "tuned", "Clean")["none"]["draws"]
    for cell in record["cells"]:
        assert ("draws" in cell) is (cell["row"] != "bare" and cell["status"] == "done")


def test_an_attacker_takes_the_gradients_that_a_column_names(made: Made) -> None:
    _, record = made
    cell = cells_of(record, "tuned", "PGD")["adaptive"]
    assert cell["backwards"] == ["exact", "undefended"]
    assert set(cell["by_gradient"]) == {"exact", "undefended"}
    plan = audit_of(made, "tuned", "PGD", "adaptive").plan["settings"]
    assert plan["backwards"] == ["exact", "undefended"]
    assert record["audits"][cell["audit"]]["backwards"] == ["exact", "undefended"]
    assert cells_of(record, "tuned", "StAdv")["adaptive"]["backwards"] == ["identity"]
    assert "by_gradient" not in cells_of(record, "tuned", "StAdv")["adaptive"]
    # A bare network has one gradient, whatever a column says.
    assert cells_of(record, "bare", "PGD")["adaptive"]["backwards"] == ["exact"]
    entries = {
        e["backward"]: e["robust_accuracy"]
        for e in audit_of(made, "tuned", "PGD", "adaptive").summary["attacks"]
        if e["subject"] == "target" and e["attacker"] == "adaptive"
    }
    assert {k: v["accuracy"] for k, v in cell["by_gradient"].items()} == entries


def test_pairs_are_compared_on_the_same_images(made: Made) -> None:
    _, record = made
    found = {(p["pair"], p["column"], p["attacker"]): p for p in record["pairs"]}
    assert {key for key in found if key[0] == "tuning"} == {
        ("tuning", "Clean", "none"), ("tuning", "FGSM", "oblivious"),
        ("tuning", "PGD", "adaptive"), ("tuning", "StAdv", "oblivious"),
        ("tuning", "StAdv", "adaptive"),
    }  # fmt: skip
    for (pair, column, attacker), part in found.items():
        rows = {"tuning": ("tuned", "not tuned"), "unlike": ("tuned", "bare")}[pair]
        cells = [cells_of(record, row, column)[attacker] for row in rows]
        assert part["rows"] == list(rows)
        assert [part["one"]["correct"], part["other"]["correct"]] == [c["correct"] for c in cells]
    part = found["tuning", "FGSM", "oblivious"]
    one, other = (
        share(audit_of(made, row, "FGSM", "oblivious"), "fgsm", "oblivious") > 0.5
        for row in ("tuned", "not tuned")
    )
    test = mcnemar(one, other)
    assert (part["only_one"], part["only_other"], part["mcnemar_p"]) == tuple(test)
    assert part["difference"] == pytest.approx(one.mean() - other.mean())
    low, high = part["interval"]
    assert low <= part["difference"] <= high


def test_audits_of_other_images_are_not_compared(made: Made) -> None:
    one, other = (audit_of(made, "tuned", *what) for what in (("FGSM", "oblivious"),
                                                              ("PGD", "adaptive")))  # fmt: skip
    with pytest.raises(InputError, match="on 12 and 8 images, which are not the same"):
        compare_pair(one, other)
    assert outcome_of(one, "pgd-2", "adaptive") is None
    assert compare_pair(one, one, "pgd-2", "adaptive") is None


def test_curves_of_a_network_are_its_epochs(made: Made) -> None:
    out, record = made
    folder = out.parent / "models" / "smoke" / "networks" / "tuned"
    epochs = json.loads((folder / "training.json").read_text(encoding="utf-8"))["epochs"]
    points = record["curves"]["network tuned"]["epochs"]
    assert points[1:] == epochs
    assert points[0] == {"epoch": 0, **epochs[0]["before"]}
    assert 0 <= points[0]["attacked"] <= 1
    assert record["curves"]["net"]["status"] == "done"
    assert record["curves"]["network missing"]["status"] == "not run"
    assert record["panels"][0]["lines"][-1] == ["nothing", "network missing", "clean"]
    assert (out / "figure.png").stat().st_size > 1000
    assert set(record["networks"]) == {"gan", "tuned"}


WRONG = {
    "row of a pair": ("tuning: [tuned,", "tuning: [tund,", "did you mean 'tuned'"),
    "a pair of one": ("unlike: [tuned, bare]", "unlike: [tuned]", "a list of two rows"),
    "a quoted row": ("  bare: {model: net}", "  bare: {note: quoted}", "row that only quotes"),
    "attacker": ("only: adaptive", "only: adaptiv", "did you mean 'adaptive'"),
    "gradient": ("[exact, undefended]", "[exakt]", "did you mean 'exact'"),
    "network of a line": ("right, clean: {network: tuned", "right, clean: {network: tund",
                          "did you mean 'tuned'"),
    "line of two": ("{model: net, figure: heldout_clean}",
                    "{model: net, network: gan, figure: heldout_clean}", "unknown setting 'model'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_by_name(case: str, tmp_path: Path) -> None:
    old, new, words = WRONG[case]
    assert old in TINY
    with pytest.raises(UnperturbError) as caught:
        load_recipe(write(tmp_path, TINY.replace(old, new)), scale="smoke")
    assert words.lower() in str(caught.value).lower()
