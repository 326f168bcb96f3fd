"""Images of an audit: which are kept, and what the record says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from audit.doubles import conv_net, digits
from audit.units import SMALL, column, kept, sha
from unperturb.audit import AuditResult, audit
from unperturb.audit.images import load_cases, worst_images
from unperturb.presets import tpap
from unperturb.threat import Linf


def test_hashes_are_those_of_the_kept_images(audited: AuditResult) -> None:
    images, _ = digits(30)
    for attacker, subject, backward in [
        ("oblivious", "baseline", "exact"),
        ("adaptive", "target", "identity"),
        ("adaptive", "target", "smoothed-sign"),
        ("adaptive", "target", "undefended"),
        ("adaptive", "baseline", "exact"),
    ]:
        where = {"attack": "pgd-4", "attacker": attacker, "subject": subject, "backward": backward}
        hashes, linf = column(audited, "pixels", **where), column(audited, "linf", **where)
        found = kept(audited, **where)
        assert [hashes[i] for i in audited.plan["ids"]] == [sha(image) for image in found]
        moved = (found - images).flatten(1).abs().amax(1)
        for i, distance in zip(audited.plan["ids"], moved, strict=True):
            assert linf[i] == pytest.approx(float(distance), abs=1e-7)
    clean = column(audited, "pixels", attack="clean", subject="target")
    assert [clean[i] for i in audited.plan["ids"]] == [sha(image) for image in images]


def test_eight_bit_figures_are_those_of_rounded_images(audited: AuditResult) -> None:
    _, labels = digits(30)
    defense = tpap(conv_net(), radius=0.1)
    where = {"attack": "fgsm", "attacker": "adaptive", "subject": "target", "backward": "identity"}
    rounded = (kept(audited, **where) * 255).round() / 255
    right = (defense(rounded).argmax(1) == labels).tolist()
    found = column(audited, "correct_8bit", **where)
    assert [bool(found[i]) for i in audited.plan["ids"]] == right


def test_eight_bits_are_rounded_and_not_truncated() -> None:
    class Threshold(nn.Module):
        """Class 0 above a mean of 100.8/255."""

        def forward(self, images: Tensor) -> Tensor:
            excess = 255 * images.mean((1, 2, 3)) - 100.8
            return torch.stack((excess, torch.zeros_like(excess)), 1)

    images = (torch.tensor([100.6, 100.4, 101.4]) / 255).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    labels = torch.tensor([1, 1, 0])
    found = audit(Threshold().eval(), images, labels, threat=Linf(1e-6), attacks="fgsm")
    where = {"attack": "fgsm", "attacker": "adaptive"}
    assert list(column(found, "correct", **where).values()) == [True, True, True]
    # 101, 100 and 101.
    assert list(column(found, "correct_8bit", **where).values()) == [False, True, True]


@pytest.fixture(scope="module")
def worst_kept(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    images, labels = digits(30)
    return audit(
        tpap(conv_net(), radius=0.1), images, labels, threat=Linf(SMALL), attacks="fgsm,pgd-4",
        batch_size=16, out=tmp_path_factory.mktemp("worst"),
    )  # fmt: skip


@pytest.mark.parametrize("attacker", ["oblivious", "adaptive"])
def test_the_worst_images_are_in_the_ball_and_wrong_where_the_record_says_so(
    worst_kept: AuditResult, audited: AuditResult, attacker: str
) -> None:
    images, labels = digits(30)
    worst = worst_images(worst_kept.store, attacker)
    assert worst.shape == images.shape
    assert bool(Linf(SMALL).contains(worst, images).all())
    right = tpap(conv_net(), radius=0.1)(worst).argmax(1) == labels
    rows = worst_kept.rows
    mask = (rows["subject"] == "target") & (rows["attacker"] == attacker)
    survived = dict.fromkeys(worst_kept.plan["ids"], True)
    for image, correct in zip(rows["image_id"][mask], rows["correct"][mask], strict=True):
        survived[image] = survived[image] and bool(correct)
    assert right.tolist() == [survived[i] for i in worst_kept.plan["ids"]]
    assert worst_kept.digest == audited.digest, "what is kept decides no result"
    path = worst_kept.store.folder / "images" / f"{attacker}.safetensors"
    with safe_open(path, framework="pt") as stored:
        choice = json.loads(stored.metadata()["choice"])
        assert json.loads(stored.metadata()["ids"]) == worst_kept.plan["ids"]
    for position, image in enumerate(worst_kept.plan["ids"]):
        tried = {
            (rows["attack"][i], rows["backward"][i], rows["goal"][i]): (
                not rows["correct"][i], rows["margin"][i],
            )
            for i in np.flatnonzero(mask & (rows["image_id"] == image))
        }  # fmt: skip
        # One oblivious attack is also the control, away from the predicted label.
        assert len(tried) == (3 if attacker == "oblivious" else 6)
        name, backward, goal = (choice[k][position] for k in ("attack", "backward", "goal"))
        assert tried[(name, backward, goal)] == max(tried.values()), (
            "wrong, and by the greatest margin"
        )
        where = mask & (rows["attack"] == name) & (rows["backward"] == backward)
        where &= rows["goal"] == goal
        assert rows["pixels"][where & (rows["image_id"] == image)] == [sha(worst[position])]


def test_dropped_images_are_gone_and_all_images_are_there(
    worst_kept: AuditResult, audited: AuditResult, tmp_path: Path
) -> None:
    images, labels = digits(30)
    for unit in worst_kept.units:
        path = worst_kept.store.pixels_path(unit)
        assert path.exists() == (unit.start == 0 and unit.kind != "benign")
        if path.exists():
            assert "images" not in load_file(path)
    assert not (audited.store.folder / "images").exists()
    for unit in audited.units:
        path = audited.store.pixels_path(unit)
        if unit.kind == "attack":
            assert len(load_file(path)["images"]) == unit.stop - unit.start
    none = audit(
        tpap(conv_net(), radius=0.1), images, labels, threat=Linf(SMALL), attacks="fgsm,pgd-4",
        batch_size=16, keep_images="none", out=tmp_path,
    )  # fmt: skip
    assert not (tmp_path / "images").exists()
    assert all("images" not in load_file(p) for p in (tmp_path / "pixels").iterdir())
    assert none.digest == audited.digest


def test_cases_show_what_was_sent_and_said(worst_kept: AuditResult) -> None:
    images, labels = digits(30)
    net, defense = conv_net(), tpap(conv_net(), radius=0.1)
    result = worst_kept
    cases = load_cases(result.store, result.plan, result.units, result.rows)
    clean_right = (defense(images).argmax(1) == labels).tolist()
    first = [str(i) for i, right in enumerate(clean_right[:12]) if right][:6]
    assert [case.image_id for case in cases] == first, "the first that are right, not hand-picked"
    for case in cases:
        position = int(case.image_id)
        assert case.label == int(labels[position])
        assert torch.equal(case.clean, images[position])
        assert [view.title.split(" ")[0] for view in case.views] == [
            "clean", "oblivious", "adaptive"
        ]  # fmt: skip
        for view in case.views:
            sent = view.image[None]
            assert bool(Linf(SMALL).contains(sent, images[position : position + 1]).all())
            with torch.no_grad():
                logits = net(sent)[0]
            answer = defense.predict(sent)
            torch.testing.assert_close(torch.tensor(view.baseline_logits), logits)
            torch.testing.assert_close(torch.tensor(view.target_scores), answer.scores[0])
            assert view.target_prediction == int(answer.labels)
            assert view.baseline_prediction == int(logits.argmax())
            assert view.purified is not None
            assert answer.purified is not None
            torch.testing.assert_close(view.purified, answer.purified[0])
        for attacker, view in zip(("oblivious", "adaptive"), case.views[1:], strict=True):
            assert torch.equal(view.image, worst_images(result.store, attacker)[position])
