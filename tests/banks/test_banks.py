"""Logit banks: contents, resumption, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks import Surface, make_attack
from unperturb.banks import LogitBank, make_bank, open_bank
from unperturb.banks import write as writing
from unperturb.banks.settings import decode, encode, folder_of
from unperturb.classifiers import as_classifier
from unperturb.data import ImageSet
from unperturb.errors import ConfigError, InputError, OutputError, RecordError, SpecError
from unperturb.randomness import Keys
from unperturb.threat import Linf

THREAT = Linf(16 / 255)
PGD = "pgd-3?step_size=0.5"


def some_data(count: int = 20, classes: int = 5) -> ImageSet:
    generator = torch.Generator().manual_seed(11)
    return ImageSet(
        torch.rand(count, 3, 8, 8, generator=generator),
        torch.randint(0, classes, (count,), generator=generator),
        tuple(f"image {i}" for i in range(count)),
        tuple("abcde")[:classes],
        "somewhere/made here",
        "train",
    )


@pytest.fixture
def net(conv: Any) -> Any:
    return as_classifier(conv(classes=5))


def bank_of(net: Any, out: Path, **changes: Any) -> LogitBank:
    options: dict[str, Any] = {"attacks": PGD, "threat": THREAT, "shard_size": 8, "batch_size": 3}
    data = changes.pop("data", None) or some_data()
    return make_bank(net, data, out=out, **{**options, **changes})


def test_rows_are_the_classifiers_logits_and_those_of_the_attack(net: Any, tmp_path: Path) -> None:
    data = some_data()
    bank = bank_of(net, tmp_path / "bank", seed=4)
    torch.testing.assert_close(bank.logits("clean"), net(data.images()).detach())
    parts: list[Tensor] = []
    for rows in (slice(0, 3), slice(3, 6), slice(6, 8)):
        keys = Keys.of(4, data.ids[rows], domain=f"bank/{PGD}")
        found = make_attack(PGD).run(
            Surface(net), data.images(rows), data.labels[rows], threat=THREAT, keys=keys,
            stop="fixed",
        )  # fmt: skip
        parts.append(net(found.images).detach())
    torch.testing.assert_close(bank.rows(PGD, 0, 8), torch.cat(parts))
    assert torch.equal(bank.labels, data.labels)
    assert bank.ids == data.ids
    assert (bank.classes, bank.split, bank.source) == (tuple("abcde"), "train", "made here")
    assert bank.classifier == net.fingerprint()
    for source in ("clean", PGD):
        right = (bank.logits(source).argmax(1) == data.labels).float().mean()
        assert bank.accuracy(source) == pytest.approx(float(right))
    bank.verify()


@pytest.mark.parametrize(("start", "stop"), [(0, 20), (0, 8), (7, 9), (5, 18), (19, 20), (4, 4)])
def test_rows_of_any_range_are_those_of_the_whole(
    net: Any, tmp_path: Path, start: int, stop: int
) -> None:
    bank = bank_of(net, tmp_path / "bank")
    assert bank.shards == [(0, 8), (8, 16), (16, 20)]
    assert torch.equal(bank.rows(PGD, start, stop), bank.logits(PGD)[start:stop])


def test_attacks_step_away_from_the_predicted_label_where_asked(net: Any, tmp_path: Path) -> None:
    """Images that are right when clean get the same attack, wrong ones another."""
    true = bank_of(net, tmp_path / "true", attacks="fgsm")
    told = bank_of(net, tmp_path / "told", attacks="fgsm", labels="predicted")
    right = true.logits("clean").argmax(1) == true.labels
    assert 0 < int(right.sum()) < len(right)
    same = (true.logits("fgsm") == told.logits("fgsm")).all(1)
    assert bool(same[right].all())
    assert not bool(same[~right].any())
    assert true.digest != told.digest


def test_bfloat16_gradients_give_other_images_of_the_same_kind(net: Any, tmp_path: Path) -> None:
    exact = bank_of(net, tmp_path / "exact", attacks="pgd-10,deepfool-5")
    quick = bank_of(net, tmp_path / "quick", attacks="pgd-10,deepfool-5", precision="bfloat16")
    assert torch.equal(exact.logits("clean"), quick.logits("clean")), "recorded in float32"
    assert torch.equal(exact.logits("deepfool-5"), quick.logits("deepfool-5")), "kept in float32"
    assert not torch.equal(exact.logits("pgd-10"), quick.logits("pgd-10"))
    losses = [
        nn.functional.cross_entropy(bank.logits(source), bank.labels)
        for bank, source in ((exact, "clean"), (exact, "pgd-10"), (quick, "pgd-10"))
    ]
    assert losses[2] - losses[0] > 0.95 * (losses[1] - losses[0]) > 0
    assert exact.digest != quick.digest


def test_one_bank_holds_several_attacks_and_takes_more_later(net: Any, tmp_path: Path) -> None:
    once = bank_of(net, tmp_path / "once", attacks=f"fgsm,{PGD}")
    first = bank_of(net, tmp_path / "more", attacks="fgsm")
    stamp = (first.folder / "fgsm" / "00000.npy").stat().st_mtime_ns
    more = bank_of(net, tmp_path / "more", attacks=PGD)
    assert more.attacks == once.attacks == ("fgsm", PGD)
    assert more.digest == once.digest != first.digest
    assert (first.folder / "fgsm" / "00000.npy").stat().st_mtime_ns == stamp
    assert bank_of(net, tmp_path / "more", attacks=PGD).digest == once.digest


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_round_as_torch_does_and_say_by_how_much(
    net: Any, tmp_path: Path, dtype: str
) -> None:
    exact = bank_of(net, tmp_path / "exact").logits("clean")
    bank = bank_of(net, tmp_path / dtype, dtype=dtype)
    expected = exact.to(getattr(torch, dtype)).float()
    assert torch.equal(bank.logits("clean"), expected)
    off = bank.manifest["sources"]["clean"]["rounding"]
    assert off == pytest.approx(float((expected - exact).abs().max()))
    size = (bank.folder / "clean" / "00000.npy").stat().st_size
    assert size == pytest.approx(128 + 8 * 5 * (4 if dtype == "float32" else 2), abs=64)


def test_a_logit_too_large_for_its_dtype_is_refused() -> None:
    big = torch.tensor([[1e5, 0.0]])
    assert torch.equal(decode(encode(big, "bfloat16"), "bfloat16"), big.bfloat16().float())
    with pytest.raises(ConfigError, match="1e.05 does not fit the dtype float16.*bfloat16"):
        encode(big, "float16")


def test_memory_maps_are_closed_and_rows_are_copies(net: Any, tmp_path: Path) -> None:
    bank = bank_of(net, tmp_path / "bank")
    rows = bank.rows("clean", 0, 8)
    before = rows.clone()
    path = bank.folder / "clean" / "00000.npy"
    np.save(path, np.zeros((8, 5), np.float32))
    assert torch.equal(rows, before)


# Kills


def test_a_bank_cut_short_resumes_to_an_equal_digest(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bank_of(net, tmp_path / "whole", attacks=f"fgsm,{PGD}")
    save = writing._save_array
    for most in range(9):
        calls = []

        def some(path: Path, array: Any, *, most: int = most, calls: list[int] = calls) -> None:
            if len(calls) >= most:
                raise KeyboardInterrupt
            calls.append(1)
            save(path, array)

        out = tmp_path / f"cut-{most}"
        monkeypatch.setattr(writing, "_save_array", some)
        with pytest.raises(KeyboardInterrupt):
            bank_of(net, out, attacks=f"fgsm,{PGD}")
        monkeypatch.setattr(writing, "_save_array", save)
        with pytest.raises(RecordError, match="is not finished.*goes on where it stopped"):
            open_bank(out)
        again = bank_of(net, out, attacks=f"fgsm,{PGD}")
        assert again.digest == whole.digest
        again.verify()


KILLED = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_banks import PGD, some_data, bank_of
from conftest import conv_net
from unperturb.classifiers import as_classifier
torch.set_num_threads(1)
bank_of(as_classifier(conv_net(classes=5)), Path(sys.argv[1]), data=some_data(300),
        attacks=f"fgsm,{PGD}", shard_size=10)
"""


def test_killed_by_the_system_it_goes_on_to_an_equal_digest(net: Any, tmp_path: Path) -> None:
    here = Path(__file__).parent
    out = tmp_path / "killed"
    path = os.pathsep.join([str(here), str(here.parent), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out), str(here)], env={**os.environ, "PYTHONPATH": path}
    )
    limit = time.monotonic() + 60
    while not (out / folder_of(PGD) / "00001.json").exists():
        assert time.monotonic() < limit
        assert child.poll() is None or (out / "manifest.json").exists()
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    options: dict[str, Any] = {"data": some_data(300), "attacks": f"fgsm,{PGD}", "shard_size": 10}
    again = bank_of(net, out, **options)
    whole = bank_of(net, tmp_path / "whole", **options)
    assert again.digest == whole.digest
    assert not list(out.rglob("*.tmp"))


def test_a_full_disk_keeps_what_is_there(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = np.save, []

    def full(*args: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        save(*args, **options)

    monkeypatch.setattr(writing.np, "save", full)
    with pytest.raises(OutputError, match="No space left.*what is finished is kept"):
        bank_of(net, tmp_path / "bank")
    monkeypatch.setattr(writing.np, "save", save)
    assert sorted(p.name for p in (tmp_path / "bank" / "clean").iterdir()) == [
        "00000.json", "00000.npy", "00001.json", "00001.npy"
    ]  # fmt: skip
    assert bank_of(net, tmp_path / "bank").digest == bank_of(net, tmp_path / "other").digest


# An attack that fails


def test_an_attack_that_fails_to_hurt_is_called_out(net: Any, tmp_path: Path) -> None:
    data = some_data()
    data = ImageSet(
        data.pixels, net(data.images()).argmax(1), data.ids, data.classes, data.source, data.split
    )
    harmless = bank_of(net, tmp_path / "weak", data=data, threat=Linf(1e-6), attacks="fgsm")
    (words,) = harmless.weak
    assert words.startswith("fgsm leaves 100.0% of the images right, of 100.0% when clean")
    strong = bank_of(net, tmp_path / "strong", data=data, threat=Linf(0.5), attacks="pgd-10")
    assert strong.accuracy("pgd-10") < 0.5
    assert strong.weak == ()


# Wrong use


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"dtype": "float8"}, SpecError, "Unknown dtype of a bank 'float8'"),
        ({"labels": "none"}, SpecError, "Unknown kind of labels 'none'"),
        ({"precision": "half"}, SpecError, "Unknown precision of a bank 'half'"),
        ({"shard_size": 0}, ConfigError, "shard_size of the bank is 0"),
        ({"batch_size": 2.5}, ConfigError, "batch_size of the bank is 2.5"),
        ({"attacks": "pdg"}, SpecError, "did you mean 'pgd'"),
    ],
)
def test_wrong_settings_are_refused(
    net: Any, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        bank_of(net, tmp_path / "bank", **changes)
    assert not (tmp_path / "bank" / "plan.json").exists()


def test_labels_beyond_the_classes_are_refused(conv: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lie outside the classes"):
        bank_of(as_classifier(conv(classes=3)), tmp_path / "bank")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"dtype": "float16"}, "dtype: float32 there, float16 here"),
        ({"threat": Linf(8 / 255)}, "eps: "),
        ({"data": some_data(12)}, "data: "),
    ],
)
def test_a_bank_of_other_settings_is_not_gone_on_with(
    net: Any, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    bank_of(net, tmp_path / "bank")
    with pytest.raises(RecordError, match=words):
        bank_of(net, tmp_path / "bank", **changes)


def test_another_classifier_is_refused(net: Any, conv: Any, tmp_path: Path) -> None:
    bank_of(net, tmp_path / "bank")
    with pytest.raises(RecordError, match="classifier: "):
        bank_of(as_classifier(conv(classes=5, seed=9)), tmp_path / "bank")


def test_a_classifier_that_gives_nan_is_refused(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            flat = images.flatten(1)[:, :5]
            return flat / (flat > 0.02)

    with pytest.raises((RecordError, InputError), match="NaN|not finite"):
        bank_of(as_classifier(Broken(), num_classes=5), tmp_path / "bank")


def test_a_folder_of_something_else_is_left_alone(net: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecordError, match=r"holds no logit bank \(notes.txt\)"):
        bank_of(net, tmp_path)
    with pytest.raises(SpecError, match="There is no logit bank"):
        open_bank(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) in (["notes.txt"], [".lock", "notes.txt"])


def test_damage_is_named(net: Any, tmp_path: Path) -> None:
    bank = bank_of(net, tmp_path / "bank")
    path = bank.folder / "clean" / "00001.npy"
    kept = path.read_bytes()
    path.write_bytes(kept[:-4])
    with pytest.raises(RecordError, match=r"00001.npy cannot be read.*only it is redone"):
        bank.logits("clean")
    path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(RecordError, match=r"00001.npy is changed"):
        bank.verify()
    path.unlink()
    assert bank_of(net, tmp_path / "bank").digest == bank.digest
    with pytest.raises(SpecError, match="Unknown source of this bank 'pgd'"):
        bank.rows("pgd", 0, 1)
    plan = json.loads((bank.folder / "plan.json").read_text())
    for change, words in (
        ({"settings": {**plan["settings"], "seed": 5}}, "was changed"),
        ({"settings": {**plan["settings"], "schema_version": 9}}, "schema version 9"),
        ({"classes": None, "attacks": 3}, "is damaged"),
    ):
        (bank.folder / "plan.json").write_text(json.dumps({**plan, **change}))
        with pytest.raises(RecordError, match=words):
            open_bank(bank.folder)


def test_two_writers_never_share_a_bank(net: Any, tmp_path: Path) -> None:
    with (
        writing._locked(tmp_path / "bank"),
        pytest.raises(OutputError, match="Another process is writing"),
    ):
        bank_of(net, tmp_path / "bank")


def test_names_of_attacks_never_share_a_folder() -> None:
    names = ["clean", "pgd-10", "pgd-10?loss=dlr", "pgd-10-loss-dlr", "pgd-10?loss-dlr", "?", "é"]
    folders = [folder_of(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all(set(f) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for f in folders)
    assert not any(f.startswith((".", "-")) for f in folders)
