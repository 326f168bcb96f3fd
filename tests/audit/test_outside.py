"""Adversarial images of other tools in an audit: checked, and never believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.doubles import EPS, digits, linear_net
from audit.pictures import SHAPE, floats, picture
from unperturb.audit import audit
from unperturb.audit.outside import Outside, check_outside, read_outside
from unperturb.defense import Defense
from unperturb.purifiers import FGSMStep
from unperturb.threat import L2, Linf

# -- the check ----------------------------------------------------------------------------------


def _outside(images: Tensor) -> Outside:
    return read_outside(images, [str(n) for n in range(len(images))], images.shape[1:])


def test_images_out_of_the_ball_are_told_from_those_inside() -> None:
    clean = torch.full((4, 1, 2, 2), 0.5, dtype=torch.float64).float()
    moves = torch.tensor([0.0, 0.1, 0.100001, 0.3]).view(4, 1, 1, 1)
    found = check_outside(_outside(clean + moves), clean, Linf(0.1))
    assert found.inside.tolist() == [True, True, True, False]
    assert found.excess == pytest.approx(0.2, abs=1e-6)
    assert found.distance.tolist() == pytest.approx([0.0, 0.1, 0.1, 0.3], abs=1e-5)
    assert found.note.startswith("1 of 4 images of outside lie outside the ball (the farthest at")
    assert "grey" not in found.note
    # Four pixels moved by d are 2d away in L2.
    far = check_outside(_outside(clean + moves), clean, L2(0.5))
    assert far.inside.tolist() == [True, True, True, False]
    assert far.excess == pytest.approx(0.1, abs=1e-6)


def test_all_inside_has_no_note() -> None:
    clean = floats()
    found = check_outside(_outside((clean + 8 / 255).clamp(0, 1)), clean, Linf(8 / 255))
    assert bool(found.inside.all())
    assert (found.excess, found.note) == (0.0, "")


@pytest.mark.parametrize("threat", [Linf(3.6 / 255), L2(3.6 / 255 * 72**0.5)])
def test_what_rounding_to_8_bits_pushed_out_is_said_and_stays_out(threat: Any) -> None:
    clean = torch.full((3, *SHAPE), 128 / 255)
    exact = clean + 3.6 / 255
    exact[1] += 0.1
    exact[2] = clean[2]
    assert check_outside(_outside(exact), clean, threat).inside.tolist() == [True, False, True]
    found = check_outside(_outside((exact * 255).round() / 255), clean, threat)
    assert found.inside.tolist() == [False, False, True]
    assert "2 of 3 images" in found.note
    assert "1 of them by no more than rounding to 8 bits adds" in found.note
    assert "round toward the clean image" in found.note
    # Floats that are as far out were not pushed out by rounding.
    exact[0] += 0.3 / 255
    assert "rounding" not in check_outside(_outside(exact), clean, threat).note


def test_only_some_images_are_compared_with_their_own_clean_ones() -> None:
    clean = floats()
    ids = ["a", "b", "c", "d", "e"]
    moved = read_outside(clean + 0, ids, SHAPE)
    some = Outside("some", moved.images[[1, 4]], torch.tensor([1, 4]), moved.facts)
    assert check_outside(some, clean, Linf(1e-3)).inside.tolist() == [True, True]
    wrong = Outside("some", moved.images[[4, 1]], torch.tensor([1, 4]), moved.facts)
    assert check_outside(wrong, clean, Linf(1e-3)).inside.tolist() == [False, False]


# -- in an audit --------------------------------------------------------------------------------


def _linear_attack(images: Tensor, labels: Tensor, size: float) -> Tensor:
    """Against the class with the nearest score: what FGSM on the margin does, in closed form."""
    net = linear_net()
    weight = net[1].weight.detach()  # type: ignore[index]
    scores = net(images).detach()
    rival = scores.scatter(1, labels[:, None], float("-inf")).argmax(1)
    step = (weight[rival] - weight[labels]).sign().view_as(images)
    return (images + size * step).clamp(0, 1)


def test_an_audit_counts_outside_images_and_rejects_those_out_of_the_ball(tmp_path: Path) -> None:
    images, labels = digits(24)
    inside, out = _linear_attack(images, labels, EPS), _linear_attack(images, labels, 3 * EPS)
    out[:4] = images[:4]
    source = tmp_path / "far.npz"
    np.savez(source, images=out[:20].numpy(), ids=[str(n) for n in range(20)])
    net = linear_net()
    found = audit(
        Defense(net, purifier=FGSMStep(radius=0.02)), images, labels, threat=Linf(EPS),
        attacks="fgsm", batch_size=8, outside={"near": inside, "far": source},
    )  # fmt: skip
    near, far = found.plan["settings"]["outside"]
    assert (near["n"], near["rejected"], far["n"], far["rejected"]) == (24, 0, 20, 16)
    assert far["missing"] == 4
    rows = found.rows
    for name, pixels, count in (("near", inside, 24), ("far", out, 20)):
        mask = (rows["attack"] == f"import:{name}") & (rows["subject"] == "baseline")
        assert int(mask.sum()) == count
        order = np.argsort([int(i) for i in rows["image_id"][mask]])
        answers = net(pixels[:count]).argmax(1)
        assert rows["prediction"][mask][order].tolist() == answers.tolist()
        expected = Linf(EPS).contains(pixels[:count], images[:count])
        assert rows["inside"][mask][order].tolist() == expected.tolist()
        assert set(rows["attacker"][mask]) == {"outside"}
    told = {entry["name"]: entry for entry in found.summary["outside"]}
    clean = (net(images).argmax(1) == labels).numpy()
    broken = clean[:20] & (net(out[:20]).argmax(1) != labels[:20]).numpy()
    assert broken[4:].any(), "the far images would break it, were they allowed to"
    # Nothing of the far ones counts, so they are right as often as the clean images are.
    far_told = told["far"]["baseline"]
    assert far_told["correct"] == int(clean[:20].sum())
    near_told = told["near"]["baseline"]
    assert near_told["correct"] == int((clean & (net(inside).argmax(1) == labels).numpy()).sum())
    assert near_told["correct"] < clean.sum()


def test_images_of_foolbox_come_in_as_its_users_save_them(tmp_path: Path) -> None:
    foolbox = pytest.importorskip("foolbox")
    images, labels = digits(12)
    net = linear_net()
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfFastGradientAttack()
    _, made, broken = attack(model, images, labels, epsilons=EPS)
    names = [f"digit/{n}" for n in range(12)]
    for name, pixels in zip(names, made, strict=True):
        path = tmp_path / "png" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture((pixels * 255).round().to(torch.uint8).numpy()).save(path)
    np.save(tmp_path / "exact.npy", made.numpy())
    found = audit(
        net, images, labels, threat=Linf(EPS), attacks="fgsm", ids=names,
        outside={"exact": tmp_path / "exact.npy", "png": tmp_path / "png"},
    )  # fmt: skip
    told = {entry["name"]: entry for entry in found.summary["outside"]}
    assert told["exact"]["inside"] == 12
    assert told["exact"]["target"]["correct"] == 12 - int(broken.sum())
    assert int(broken.sum()) > 0
    # 38.25 grey levels round to 38 or, from between two levels, to 39: some are out by that alone.
    note = told["png"]["checks"]["note"]
    assert told["png"]["inside"] < 12
    assert f"{12 - told['png']['inside']} of them by no more than rounding to 8 bits" in note


def test_other_outside_images_make_another_audit(tmp_path: Path) -> None:
    images, labels = digits(8)
    hashes = [
        audit(
            linear_net(), images, labels, threat=Linf(EPS), attacks="fgsm", outside={"mine": given}
        ).plan["settings_hash"]
        for given in (images, images.clone(), (images + 0.01).clamp(0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
