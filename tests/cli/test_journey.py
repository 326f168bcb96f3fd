"""What a user does, from training to a gate in continuous integration, on digits."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unperturb.audit.run
from unperturb import tpap
from unperturb.attacks import attack_names
from unperturb.classifiers import load_classifier
from unperturb.data import load_images

Run = Callable[..., Any]

KEYS = {
    "name", "attacker", "backward", "eps", "norm", "n", "robust_accuracy", "interval",
    "median_distance", "seconds",
}  # fmt: skip
ATTACKS = ("--attacks", "fgsm,pgd-3", "--eps", "0.1")


def _audit(net: Path, out: Path, *more: object) -> list[object]:
    data = ("--data", "digits", "--limit", 40, "--batch-size", 20)
    return ["audit", "--classifier", net, *data, *ATTACKS, "--out", out, *more]


def _written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}


def test_training_leaves_a_classifier_with_its_record(nets: Any) -> None:
    for folder, objective in ((nets.standard, "standard"), (nets.fgsm, "fgsm")):
        assert {path.name for path in folder.iterdir()} == {
            "config.json", "model.safetensors", "training.json",
        }  # fmt: skip
        record = json.loads((folder / "training.json").read_text())
        assert record["objective"] == objective
        assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    # It learned something, or the figures below say nothing.
    card = load_classifier(str(nets.fgsm)).origin.card
    assert card["monitor"]["heldout_clean"] > 0.5
    assert card["config"]["eps"] == 0.1


def test_training_that_was_cut_off_ends_with_the_same_weights(
    nets: Any, run: Run, tmp_path: Path
) -> None:
    command = [
        "train", "--arch", "small-cnn", "--data", "digits", "--epochs", 2, "--augment", "none",
        "--holdout", 200, "--monitor-images", 50, "--batch-size", 64, "--out", tmp_path / "run",
    ]  # fmt: skip
    first = run(*command, "--stop-after", 1)
    assert "not finished: the same command without --stop-after goes on" in first.out
    second = run(*command, "--json").json
    assert second["finished"] is True
    assert second["card"]["kept_epoch"] == 2
    whole, parts = (
        load_classifier(str(folder)).fingerprint() for folder in (nets.standard, tmp_path / "run")
    )
    assert whole == parts


def test_audit_report_and_resume(
    nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "audit"
    first = run(*_audit(nets.fgsm, out, "--defense", "tpap?radius=0.1"))
    assert "32 units of work" in first.err
    lines = first.out.strip().splitlines()
    assert lines[0] == "tpap around small-cnn (model.safetensors)"
    assert any(line.startswith("pgd-3") for line in lines)
    assert lines[-1] == f"report: {out / 'report.html'}"
    for name in ("report.html", "report.md", "report.json", "manifest.json"):
        assert (out / name).is_file()

    def redo(*arguments: object) -> None:
        pytest.fail("a finished unit was done again")

    before = _written(out)
    monkeypatch.setattr(unperturb.audit.run, "_do", redo)
    again = run(*_audit(nets.fgsm, out, "--defense", "tpap?radius=0.1"))
    assert again.out == first.out
    assert "units of work" not in again.err
    assert _written(out) == before

    (out / "report.html").unlink()
    told = run("report", out)
    written = ("report.html", "report.md", "report.json", "records.parquet")
    assert told.out.splitlines()[-4:] == [str(out / name) for name in written]
    assert (out / "report.html").is_file()
    elsewhere = tmp_path / "elsewhere"
    figures = run("report", out, "--json", "--out", elsewhere).json
    assert figures == json.loads((elsewhere / "report.json").read_text())


def test_json_is_one_object_with_the_promised_keys(nets: Any, run: Run, tmp_path: Path) -> None:
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", "--defense", "tpap", "--json"))
    assert ran.err == ""
    found = ran.json
    assert set(found) >= {"clean_accuracy", "worst_case_accuracy", "baseline", "attacks"}
    assert set(found["baseline"]) == {"clean_accuracy", "worst_case_accuracy"}
    assert 0 <= found["worst_case_accuracy"] <= found["clean_accuracy"] <= 1
    assert {(a["name"], a["attacker"]) for a in found["attacks"]} == {
        (name, attacker) for name in ("fgsm", "pgd-3") for attacker in ("oblivious", "adaptive")
    }
    for attack in found["attacks"]:
        assert set(attack) == KEYS
        assert attack["n"] == 40
        assert attack["eps"] == 0.1
        assert found["worst_case_accuracy"] <= attack["robust_accuracy"]
        low, high = attack["interval"]
        assert low <= attack["robust_accuracy"] <= high


def test_quiet_prints_nothing(nets: Any, run: Run, tmp_path: Path) -> None:
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", "--quiet"))
    assert (ran.out, ran.err) == ("", "")


def test_without_a_defense_the_classifier_itself_is_audited(
    nets: Any, run: Run, tmp_path: Path
) -> None:
    found = run(*_audit(nets.fgsm, tmp_path / "audit", "--json")).json
    plan = json.loads((tmp_path / "audit" / "plan.json").read_text())["settings"]
    assert plan["has_defense"] is False
    assert plan["target"]["fingerprint"] == plan["baseline"]["fingerprint"]
    data = load_images("digits", limit=40)
    net = load_classifier(str(nets.fgsm))
    with torch.no_grad():
        right = (net(data.images()).argmax(1) == data.labels).float().mean()
    assert found["clean_accuracy"] == pytest.approx(float(right))
    assert found["worst_case_accuracy"] < found["clean_accuracy"]
    assert found["baseline"] == {key: found[key] for key in found["baseline"]}
    assert {a["backward"] for a in found["attacks"]} == {"exact"}


def test_a_saved_defense_is_what_its_preset_is(nets: Any, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    tpap(load_classifier(str(nets.fgsm)), radius=0.1).save_pretrained(folder)
    rest = ("--data", "digits", "--limit", 20, "--attacks", "fgsm", "--eps", "0.1", "--json")
    one = run("audit", "--defense", folder, *rest, "--out", tmp_path / "one").json
    net = ("--classifier", nets.fgsm, "--defense", "tpap?radius=0.1")
    two = run("audit", *net, *rest, "--out", tmp_path / "two").json
    assert one["digest"] == two["digest"]
    told = run("audit", "--classifier", folder, *rest, "--out", tmp_path / "three", code=2)
    assert (
        f"is a saved defense. Expected: a classifier as --classifier. Fix: --defense {folder}"
        in (told.err)
    )
    told = run("audit", "--defense", f"{folder}?radius=0.2", *rest, "--out", tmp_path / "3", code=2)
    assert "Options (radius=0.2) are given for the saved defense" in told.err


def test_shards_and_merge_equal_the_whole(nets: Any, run: Run, tmp_path: Path) -> None:
    defense = ("--defense", "tpap", "--json")
    whole = run(*_audit(nets.fgsm, tmp_path / "whole", *defense)).json
    parts = [tmp_path / "part1", tmp_path / "part2"]
    for number, part in enumerate(parts, start=1):
        found = run(*_audit(nets.fgsm, part, *defense, "--shard", f"{number}/2")).json
        assert found["complete"] is False
        assert found["digest"] is None
    assert not set(_written(parts[0])) & set(_written(parts[1]))
    merged = run("merge", *parts, "--out", tmp_path / "merged", "--json").json
    assert merged["digest"] == whole["digest"]
    assert merged["worst_case_accuracy"] == whole["worst_case_accuracy"]
    assert (tmp_path / "merged" / "report.html").is_file()
    half = run("merge", parts[0], "--out", tmp_path / "half")
    assert "left out: " in half.out


def test_the_gate(nets: Any, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    worst = run(*_audit(nets.fgsm, out, "--json")).json["worst_case_accuracy"]
    assert 0 < worst < 1
    below = run(*_audit(nets.fgsm, out, "--fail-under", worst + 0.01), code=3)
    assert f"worst case {worst:.1%} is below the gate of {worst + 0.01:.1%}" in below.err
    run(*_audit(nets.fgsm, out, "--fail-under", worst), code=0)
    part = _audit(nets.fgsm, tmp_path / "part", "--shard", "1/2", "--fail-under", 0)
    assert "not complete: the gate cannot be judged" in run(*part, code=1).err


def test_a_time_budget_says_what_it_left_out(nets: Any, run: Run, tmp_path: Path) -> None:
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", "--time-budget", "0.000001"))
    assert "left out: " in ran.out
    assert "NOT COMPLETE" in ran.out


def test_ctrl_c_keeps_what_is_finished(
    nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "audit"
    whole = run(*_audit(nets.fgsm, tmp_path / "whole", "--json")).json
    do, calls = unperturb.audit.run._do, []

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        do(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(unperturb.audit.run, "_do", interrupted)
        stopped = run(*_audit(nets.fgsm, out), code=130)
    assert stopped.err.strip().splitlines()[-1] == "stopped; what is finished is kept"
    kept = _written(out)
    assert len(kept) == 3
    rest = run(*_audit(nets.fgsm, out))
    assert "10 units of work, 3 are done" in rest.err
    assert kept.items() <= _written(out).items()
    assert run(*_audit(nets.fgsm, out, "--json")).json["digest"] == whole["digest"]


def test_predict_as_table_json_and_csv(
    nets: Any, run: Run, digit_files: Path, tmp_path: Path
) -> None:
    net = ("--classifier", nets.fgsm, "--defense", "tpap?radius=0.1")
    found = run("predict", digit_files, *net, "--json").json
    assert found["skipped"] == []
    rows = found["predictions"]
    data = load_images("digits", limit=6)
    # Digits have 17 levels, which 8 bits do not hold exactly.
    images = (data.images() * 255).round() / 255
    defense = tpap(load_classifier(str(nets.fgsm)), radius=0.1)
    answer = defense.predict(images)
    assert [Path(row["file"]).stem for row in rows] == list(data.ids)
    assert [row["label"] for row in rows] == answer.labels.tolist()
    shares = answer.scores.softmax(1).amax(1)
    assert [row["softmax"] for row in rows] == pytest.approx(shares.tolist(), abs=1e-4)
    assert {row["flagged"] for row in rows} == {False}
    assert [row["class"] for row in rows] == [str(row["label"]) for row in rows]

    text = run("predict", digit_files, *net, "--format", "csv").out
    read = list(csv.DictReader(io.StringIO(text)))
    assert [row["file"] for row in read] == [row["file"] for row in rows]
    assert [int(row["label"]) for row in read] == [row["label"] for row in rows]

    table = run("predict", *sorted(digit_files.iterdir()), *net).out.splitlines()
    assert table[0].split() == ["file", "label", "class", "softmax", "flagged"]
    assert [line.split()[1] for line in table[1:]] == [str(row["label"]) for row in rows]

    target = tmp_path / "answers.json"
    assert run("predict", digit_files, *net, "--json", "--out", target).out == ""
    assert json.loads(target.read_text()) == found


def test_attack_writes_exact_images_pictures_and_a_table(
    nets: Any, run: Run, tmp_path: Path
) -> None:
    from safetensors import safe_open

    out = tmp_path / "adversarial"
    facts = run(
        "attack", "--classifier", nets.fgsm, "--data", "digits", "--limit", 10, "--attack",
        "pgd-3", "--eps", "0.1", "--batch-size", 4, "--out", out, "--json",
    ).json  # fmt: skip
    with safe_open(out / "images.safetensors", framework="pt") as stored:
        images, labels = stored.get_tensor("images"), stored.get_tensor("labels")
        ids = json.loads(stored.metadata()["ids"])
        settings = json.loads(stored.metadata()["settings"])
    assert settings == {
        "attack": "pgd-3", "access": "gradients", "bound": "threat", "backward": "exact",
        "goal": "wrong", "stop": "first-success", "norm": "linf", "eps": 0.1, "seed": 0,
    }  # fmt: skip
    data = load_images("digits", limit=10)
    assert tuple(ids) == data.ids
    assert torch.equal(labels, data.labels)
    moved = (images - data.images()).flatten(1).abs().amax(1)
    assert float(moved.max()) <= 0.1 + 1e-6
    with torch.no_grad():
        answers = load_classifier(str(nets.fgsm))(images).argmax(1)
    assert facts["robust_accuracy"] == pytest.approx(float((answers == labels).float().mean()))
    assert facts["robust_accuracy"] < facts["clean_accuracy"]

    with (out / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == ids
    assert [int(row["prediction"]) for row in rows] == answers.tolist()
    assert [row["success"] == "True" for row in rows] == (answers != labels).tolist()
    assert [float(row["linf"]) for row in rows] == pytest.approx(moved.tolist())
    assert sorted(path.name for path in (out / "png").iterdir()) == [
        f"{number:06d}.png" for number in range(10)
    ]
    for row, pixels in zip(rows, images, strict=True):
        with Image.open(out / row["png"]) as picture:
            assert picture.mode == "L"
            eight = torch.from_numpy(np.array(picture))
        assert torch.equal(eight, (pixels[0] * 255).round().to(torch.uint8))


def test_attack_on_a_defense_takes_its_strongest_gradient(
    nets: Any, run: Run, tmp_path: Path
) -> None:
    rest = ("--data", "digits", "--limit", 8, "--attack", "fgsm", "--eps", "0.1", "--json")
    net = ("--classifier", nets.fgsm, "--defense", "tpap")
    strongest = run("attack", *net, *rest, "--out", tmp_path / "one").json
    assert strongest["backward"] == tpap(load_classifier(str(nets.fgsm))).purifier.adaptive[0]
    chosen = run("attack", *net, *rest, "--backward", "smoothed-sign", "--out", tmp_path / "two")
    assert chosen.json["backward"] == "smoothed-sign"
    plain = run("attack", *net, *rest[:-1], "--out", tmp_path / "three").out
    assert plain.startswith("fgsm (")
    assert "n = 8" in plain


def test_list(run: Run) -> None:
    found = run("list", "--json").json
    assert {"fgsm", "bim", "pgd", "mim"} <= set(found["attacks"])
    assert {"alu", "atop", "logit-correction", "tpap"} <= set(found["presets"])
    assert found["norms"] == ["linf", "l2"]
    assert "cifar-resnet20" in found["networks"]
    everything = run("list").out
    for kind, members in found.items():
        assert f"{kind}\n" in everything
        assert all(f"  {member}\n" in everything for member in members)
    listed = run("list", "attacks").out.splitlines()
    assert listed == ["attacks", *(f"  {name}" for name in attack_names())]


def test_convert_then_use(nets: Any, run: Run, tmp_path: Path) -> None:
    module = load_classifier(str(nets.fgsm)).module
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "net.pth")
    target = tmp_path / "net.safetensors"
    refused = ("predict", tmp_path, "--classifier", f"small-cnn@{tmp_path / 'net.pth'}")
    assert f"Fix: unperturb convert {tmp_path / 'net.pth'} {target}" in run(*refused, code=2).err
    told = run("convert", tmp_path / "net.pth", target, "--strip-prefix", "module.").out
    numbers = sum(tensor.numel() for tensor in state.values())
    assert told == f"{target}: {len(state)} tensors, {numbers:,} numbers\n"
    assert "is there already" in run("convert", tmp_path / "net.pth", target, code=1).err
    one, two = (load_classifier(spec) for spec in (str(nets.fgsm), f"small-cnn@{target}"))
    images = load_images("digits", limit=4).images()
    assert torch.equal(one(images), two(images))


def test_skipped_images_are_counted(nets: Any, run: Run, digit_files: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for label, path in enumerate(sorted(digit_files.iterdir())):
        (data / str(label)).mkdir(parents=True)
        shutil.copy(path, data / str(label) / "a.png")
    (data / "2" / "a.png").write_bytes((data / "2" / "a.png").read_bytes()[:40])
    command = ("audit", "--classifier", nets.fgsm, "--data", data, "--attacks", "fgsm")
    broken = run(*command, "--out", tmp_path / "audit", code=2)
    assert "'2/a.png'" in broken.err
    assert "--skip-broken" in broken.err
    assert not (tmp_path / "audit").exists()
    ran = run(*command, "--out", tmp_path / "audit", "--skip-broken", "--json")
    assert "skipped 1 broken image: 2/a.png" in ran.err
    assert {attack["n"] for attack in ran.json["attacks"]} == {5}
    plan = json.loads((tmp_path / "audit" / "plan.json").read_text())
    assert plan["settings"]["data"]["skipped"] == ["2/a.png"]

    broken = run("predict", data, "--classifier", nets.fgsm, code=2)
    assert "2/a.png" in broken.err
    ran = run("predict", data, "--classifier", nets.fgsm, "--skip-broken", "--json")
    assert "skipped 1 broken image: " in ran.err
    assert len(ran.json["predictions"]) == 5
    assert len(ran.json["skipped"]) == 1


def test_training_on_folders_without_splits(
    run: Run, class_folders: Callable[..., Path], tmp_path: Path
) -> None:
    folder = class_folders(classes=3, each=6, side=8, channels=1)
    command = [
        "train", "--arch", "small-cnn", "--data", folder, "--epochs", 1, "--batch-size", 4,
        "--augment", "none", "--holdout", 6, "--monitor-images", 4, "--json",
    ]  # fmt: skip
    # In file order the last class would be held out as a whole.
    sorted_by_class = run(*command, "--out", tmp_path / "one", code=2)
    assert "All images of the class class02 are among the 6 at the end" in sorted_by_class.err
    assert "Fix: add --shuffle" in sorted_by_class.err
    card = run(*command, "--shuffle", "--out", tmp_path / "two").json["card"]
    assert card["classes"] == ["class00", "class01", "class02"]


def test_training_never_falls_back_to_a_test_split(
    run: Run, class_folders: Callable[..., Path], tmp_path: Path
) -> None:
    class_folders("data/test", classes=2, side=8, channels=1)
    told = run(
        "train", "--arch", "small-cnn", "--data", tmp_path / "data", "--out", tmp_path / "run",
        code=2,
    )  # fmt: skip
    assert "Unknown split 'train'" in told.err


def test_threads_are_set(nets: Any, run: Run, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        more = _audit(nets.fgsm, tmp_path / "audit", "--threads", before + 1, "--limit", 4)
        run(*more, "--attacks", "fgsm", "--quiet")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    plan = json.loads((tmp_path / "audit" / "plan.json").read_text())
    assert plan["environment"]["threads"] == before + 1


def test_one_channel_reads_as_three_where_asked(weights: Path, run: Run, tmp_path: Path) -> None:
    net = ("--classifier", f"cifar-resnet20@{weights}", "--data", "digits", "--limit", 2)
    rest = ("--attacks", "fgsm", "--out", tmp_path / "audit", "--channels", "3", "--json")
    assert run("audit", *net, *rest).json["attacks"][0]["n"] == 2
