"""G1 and G2: what the same plan promises, whatever happens on the way."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unperturb
from audit.doubles import KINDS, DiesInWorkers, arguments, conv_net, digits, standard
from unperturb.attacks import resolve_attacks
from unperturb.audit import AuditResult, audit, merge, read_result
from unperturb.audit import run as engine
from unperturb.errors import ConfigError, OutputError, RecordError, UnperturbError
from unperturb.presets import tpap
from unperturb.threat import Linf

UNITS = 48


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """The audit as it is without any disturbance."""
    return audit(**arguments(out=tmp_path_factory.mktemp("whole")))


def started(out: Path, *, workers: int = 1, kind: str = "usual") -> subprocess.Popen[str]:
    """The same audit in a process of its own, past its imports."""
    tests = Path(__file__).parents[1]
    paths = [str(Path(unperturb.__file__).parents[1]), str(tests), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "audit.doubles"),
            *(str(out), str(workers), str(torch.get_num_threads()), kind),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Names of the finished units, with the inode and the time of their rows."""
    found = {}
    for path in (out / "rows").glob("*.parquet"):
        stat = path.stat()
        found[path.name] = (stat.st_ino, stat.st_mtime_ns)
    return found


def wait_until(true: Any, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)


def temporaries(out: Path) -> list[Path]:
    return list(out.rglob("*.tmp"))


def kill_and_resume(out: Path, kills: int, whole: AuditResult, kind: str = "usual") -> None:
    chance, units = random.Random(kills), len(whole.units)
    kept: dict[str, tuple[int, int]] = {}
    for number in range(kills):
        room = units - 1 - len(finished(out))
        # Up to this many units more before the kill, at any moment within a unit.
        more = chance.randint(0, max(0, min(room, 2 * room // (kills - number))))
        process = started(out, kind=kind)
        aim = len(kept) + more
        wait_until(lambda aim=aim, p=process: len(finished(out)) >= aim or p.poll() is not None)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
        process.communicate()
        now = finished(out)
        assert kept.items() <= now.items(), "a finished unit was done again"
        kept = now
    found = audit(**KINDS[kind](out=out))
    assert found.complete
    assert found.digest == whole.digest
    assert kept.items() <= finished(out).items(), "a finished unit was done again"
    assert not temporaries(out)
    for name in ("oblivious", "adaptive"):
        ours, theirs = (
            load_file(folder / "images" / f"{name}.safetensors")["images"]
            for folder in (out, whole.store.folder)
        )
        assert torch.equal(ours, theirs)


def test_three_kills_leave_an_equal_digest(tmp_path: Path, whole: AuditResult) -> None:
    kill_and_resume(tmp_path / "out", 3, whole)


@pytest.mark.slow
def test_twenty_kills_leave_an_equal_digest(tmp_path: Path, whole: AuditResult) -> None:
    kill_and_resume(tmp_path / "out", 20, whole)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_over_every_attack_of_standard(tmp_path: Path, kills: int) -> None:
    whole = audit(**standard(out=tmp_path / "whole"))
    ran = {unit.attack for unit in whole.units if unit.kind == "attack"}
    assert ran == {attack.name for attack in resolve_attacks("standard")}
    kill_and_resume(tmp_path / "out", kills, whole, "standard")


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_two_workers_killed_leave_no_process_and_two_others_an_equal_digest(
    tmp_path: Path, whole: AuditResult
) -> None:
    process = started(tmp_path / "out", workers=2)
    wait_until(lambda: len(finished(tmp_path / "out")) >= 3 or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    def nobody_left() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(nobody_left, 120)
    process.communicate()
    kept = finished(tmp_path / "out")
    assert 3 <= len(kept) < UNITS
    found = audit(**arguments(out=tmp_path / "out", workers=2))
    assert found.complete
    assert found.digest == whole.digest, "the number of workers does not matter"
    assert kept.items() <= finished(tmp_path / "out").items()


def test_the_plan_has_the_units_the_tests_count_on(whole: AuditResult) -> None:
    assert len(whole.units) == len(finished(whole.store.folder)) == UNITS
    assert whole.complete
    assert whole.digest is not None
    assert len(whole.digest) == 64


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_units_does_not_matter(
    tmp_path: Path, whole: AuditResult, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    ordered = engine._run_units

    def shuffled(bench: Any, store: Any, todo: list[Any], *rest: Any) -> None:
        mixed = random.Random(seed).sample(todo, len(todo))
        assert mixed != todo
        ordered(bench, store, mixed, *rest)

    monkeypatch.setattr(engine, "_run_units", shuffled)
    assert audit(**arguments(out=tmp_path / "out")).digest == whole.digest


def test_another_seed_gives_another_digest(tmp_path: Path, whole: AuditResult) -> None:
    # Without this an engine that ignored its seed would pass all else here.
    assert audit(**arguments(seed=1)).digest != whole.digest


def test_a_second_run_in_memory_is_equal(whole: AuditResult) -> None:
    assert audit(**arguments()).digest == whole.digest


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = {}
    for count in (2, 3):
        found[count] = [tmp_path_factory.mktemp(f"shard-{i}-of-{count}") for i in range(count)]
        for number, folder in enumerate(found[count], 1):
            part = audit(**arguments(out=folder, shard=(number, count)))
            assert not part.complete
            assert part.digest is None
            assert not (folder / "manifest.json").exists()
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_shards_merged_in_any_order_are_the_whole(
    tmp_path: Path, whole: AuditResult, shards: dict[int, list[Path]], count: int
) -> None:
    orders = list(itertools.permutations(shards[count]))
    for number, folders in enumerate([orders[0], orders[-1]]):
        found = merge(folders, tmp_path / str(number))
        assert found.complete
        assert found.digest == whole.digest
        assert found.summary["left_out"] == []
        assert found.to_json()["worst_case_accuracy"] == whole.worst_case_accuracy
        worst = load_file(tmp_path / str(number) / "images" / "adaptive.safetensors")["images"]
        theirs = load_file(whole.store.folder / "images" / "adaptive.safetensors")["images"]
        assert torch.equal(worst, theirs)


def test_a_part_of_the_shards_is_incomplete_and_can_be_completed(
    tmp_path: Path, whole: AuditResult, shards: dict[int, list[Path]]
) -> None:
    out = tmp_path / "out"
    part = merge(shards[3][:2], out)
    assert not part.complete
    assert part.digest is None
    assert part.worst_case_accuracy is None, "no image has been met by every attack"
    assert part.summary["left_out"][0] == "16 of 48 units are not done"
    rows = finished(out)
    # What is left can be merged in later, or simply be run.
    assert merge(shards[3][2:], out).digest == whole.digest
    assert rows.items() <= finished(out).items()
    again = tmp_path / "again"
    merge(shards[3][1:], again)
    assert audit(**arguments(out=again)).digest == whole.digest


def test_a_whole_audit_may_be_merged_again(tmp_path: Path, whole: AuditResult) -> None:
    # Its units have dropped the images that the worst were chosen from.
    found = merge([whole.store.folder], tmp_path / "out")
    assert found.digest == whole.digest
    assert (tmp_path / "out" / "images" / "adaptive.safetensors").exists()


def test_merging_refuses_what_is_not_of_one_audit(
    tmp_path: Path, whole: AuditResult, shards: dict[int, list[Path]]
) -> None:
    other = tmp_path / "other"
    audit(**arguments(out=other, seed=7, shard=(2, 2)))
    with pytest.raises(RecordError, match=r"not shards of one audit \(seed: 7 there, 0 here\)"):
        merge([shards[2][0], other], tmp_path / "out")
    with pytest.raises(RecordError, match="holds another audit"):
        merge(shards[2], other)
    kept = tmp_path / "kept"
    audit(**arguments(out=kept, keep_images="none", shard=(2, 2)))
    with pytest.raises(RecordError, match='keep_images: "none" there, "worst" here'):
        merge([shards[2][0], kept], tmp_path / "out")
    with pytest.raises(RecordError, match="No folder is named"):
        merge([], tmp_path / "out")
    with pytest.raises(RecordError, match=r"holds no audit: plan\.json is missing"):
        merge([tmp_path / "nothing"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("")
    with pytest.raises(RecordError, match=r"is not empty and holds no audit \(thesis\.tex\)"):
        merge(shards[2], strange)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write into"):
        merge(shards[2], tmp_path / "file" / "out")


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_shards_out_of_range(shard: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"The shard is .*i/n with 1 <= i <= n"):
        audit(**arguments(shard=shard))


def test_a_kill_between_two_drops_of_images_is_survived(
    tmp_path: Path, whole: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unperturb.audit import images

    class Killed(BaseException):
        pass

    honest, written = images.write_tensors, []

    def dying(path: Path, *rest: Any) -> None:
        if path.parent.name == "pixels":
            written.append(path)
            if len(written) == 2:
                raise Killed
        honest(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(images, "write_tensors", dying)
        with pytest.raises(Killed):
            audit(**arguments(out=tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    found = audit(**arguments(out=tmp_path / "out"))
    assert found.digest == whole.digest
    ours, theirs = (
        sorted(p.stat().st_size for p in (folder / "pixels").iterdir())
        for folder in (tmp_path / "out", whole.store.folder)
    )
    assert ours == theirs


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    images, labels = digits(4)
    common = {"threat": Linf(0.1), "attacks": "fgsm", "out": tmp_path}
    # A kill before the plan stood: the folder is still as good as new.
    (tmp_path / ".plan.json.abcd1234.tmp").write_bytes(b"half")
    assert audit(conv_net(), images, labels, **common).complete
    (tmp_path / "rows" / ".00000.parquet.abcd1234.tmp").write_bytes(b"half")
    (tmp_path / ".mine.tmp").write_bytes(b"not ours")
    assert audit(conv_net(), images, labels, **common).complete
    assert temporaries(tmp_path) == [tmp_path / ".mine.tmp"]


def test_g2_another_batch_size(tmp_path: Path) -> None:
    images, labels = digits(60)
    common: dict[str, Any] = {
        "images": images, "labels": labels, "threat": Linf(0.1), "attacks": "fgsm,pgd-5,mim-3",
    }  # fmt: skip
    one, two = (
        audit(tpap(conv_net(), radius=0.05), batch_size=size, out=tmp_path / str(size), **common)
        for size in (60, 13)
    )
    assert one.digest != two.digest, "the batch size is part of the plan"
    ours, theirs = (_by_key(result) for result in (one, two))
    assert ours.keys() == theirs.keys()
    same = [ours[key]["correct"] == theirs[key]["correct"] for key in ours]
    assert sum(same) >= 0.99 * len(same)
    for name in ("clean", "worst_case"):
        first, second = (r.summary["target"][name]["accuracy"] for r in (one, two))
        assert abs(first - second) <= 0.5 / 100 + 1 / 60
    logits = [
        load_file(tmp_path / size / "pixels" / "00000.safetensors")["case_logits"]
        for size in ("60", "13")
    ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.realdata
def test_g2_on_a_thousand_real_images(assets: Path) -> None:
    """Another batch size: success equal on 99 % of 1,000 images, accuracies within 0.5 points."""
    weights = assets / "models" / "cifar10-robust-resnet-4b.safetensors"
    net = unperturb.load_classifier(f"cifar-robust-resnet-4b@{weights}")
    data = unperturb.load_images(str(assets / "data" / "cifar10"), split="test", limit=1000)
    one, two = (
        audit(
            net, data.images(), data.labels, ids=data.ids, threat=Linf(8 / 255),
            attacks="fgsm,pgd-10", attackers=("adaptive",), batch_size=size, keep_images="none",
        )
        for size in (128, 90)
    )  # fmt: skip
    assert len(one.rows["correct"]) == 3000
    assert (one.rows["image_id"] == two.rows["image_id"]).all()
    for attack in ("clean", "fgsm", "pgd-10"):
        chosen = one.rows["attack"] == attack
        first, second = one.rows["correct"][chosen], two.rows["correct"][chosen]
        assert (first == second).mean() >= 0.99
        assert abs(first.mean() - second.mean()) <= 0.005


def test_g2_the_same_random_draws(whole: AuditResult) -> None:
    other = audit(**arguments(batch_size=5))
    ours, theirs = (_by_key(result) for result in (whole, other))
    clean = [key for key in ours if key[1] == "clean" and key[0] == "target"]
    assert len(clean) == 24 * 3
    margins = [torch.tensor([found[key]["margin"] for key in clean]) for found in (ours, theirs)]
    torch.testing.assert_close(*margins, rtol=1e-4, atol=1e-4)
    spread = margins[0].view(-1, 3).std(1)
    assert bool((spread > 1e-3).all()), "the draws of an image differ, so equal ones say something"
    same = [ours[key]["correct"] == theirs[key]["correct"] for key in ours]
    assert sum(same) >= 0.99 * len(same)


def _by_key(result: AuditResult) -> dict[tuple[Any, ...], dict[str, Any]]:
    names = ("subject", "attack", "attacker", "backward", "image_id", "draw")
    rows = result.rows
    return {
        tuple(rows[name][i] for name in names): {c: rows[c][i] for c in ("correct", "margin")}
        for i in range(len(rows["draw"]))
    }


def test_nothing_is_redone_when_all_is_done(tmp_path: Path, whole: AuditResult) -> None:
    folder = whole.store.folder
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}
    assert audit(**arguments(out=folder)).digest == whole.digest
    after = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}
    lock = folder / ".lock"
    before.pop(lock, None)
    after.pop(lock, None)
    assert after == before
    assert read_result(folder).digest == whole.digest


def test_a_worker_that_dies_is_told(tmp_path: Path, whole: AuditResult) -> None:
    dying = DiesInWorkers(conv_net())
    with pytest.raises(UnperturbError, match="A worker process ended .*what is finished is kept"):
        audit(**arguments(defense=dying, workers=2, out=tmp_path))
    assert not temporaries(tmp_path)
    assert audit(**arguments(defense=dying, out=tmp_path)).complete


def test_modules_that_cannot_be_sent_to_workers_are_told(tmp_path: Path) -> None:
    class Local(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :10]

    with pytest.raises(ConfigError, match=r"cannot be sent to 2 worker processes.*use workers=1"):
        audit(**arguments(defense=Local().eval(), workers=2, out=tmp_path))
