"""From a classifier to its corrected answers, with a real bank and by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import unperturb as up
from correction.fakes import config
from unperturb.banks import LogitBank, make_bank
from unperturb.classifiers import save_classifier
from unperturb.cli import main
from unperturb.correction import Corrector, fit_correction
from unperturb.data import load_images

PGD = "pgd-5?step_size=0.25"


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier that knows digits."""
    from unperturb.classifiers import new_classifier

    folder = tmp_path_factory.mktemp("classifier")
    net = new_classifier("small-cnn", in_channels=1, seed=0)
    data = load_images("digits", split="train").take(slice(0, 600))
    net.module.requires_grad_(True)
    optimizer = torch.optim.Adam(net.module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        for _ in range(6):
            for rows in torch.randperm(600, generator=generator).split(50):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(net(data.images(rows)), data.labels[rows])
                loss.backward()
                optimizer.step()
    net.module.requires_grad_(False)
    save_classifier(net, folder / "net")
    return folder / "net"


@pytest.fixture(scope="session")
def bank(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitBank:
    net = up.load_classifier(str(classifier))
    data = load_images("digits", split="train").take(slice(0, 600))
    out = tmp_path_factory.mktemp("bank") / "bank"
    return make_bank(net, data, attacks=PGD, threat=up.Linf(0.3), out=out, shard_size=128)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run a command in this process; returns what it wrote."""

    def call(*arguments: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert caught.value.code == code, err
        return out, err

    return call


SETTINGS = ("--width", 64, "--lr", 0.005, "--batch-size", 32, "--seed", 3, "--threads",
            torch.get_num_threads())  # fmt: skip


def test_a_corrector_of_a_real_bank_corrects_and_defends(classifier: Path, bank: LogitBank) -> None:
    assert bank.accuracy("clean") > 0.8
    assert bank.accuracy(PGD) < 0.3
    corrector = fit_correction(bank, config(width=64, epochs=8, clean_share=0.3), show=False)
    held = corrector.card["held_out"]
    assert held["corrected"]["adversarial"][PGD] > held["uncorrected"]["adversarial"][PGD] + 0.3
    assert corrector.classifier == up.load_classifier(str(classifier)).fingerprint()
    assert corrector.classes == bank.classes
    defense = up.logit_correction(up.load_classifier(str(classifier)), corrector=corrector)
    images = load_images("digits", split="train").images(slice(0, 600))
    wanted = corrector.correct(bank.logits("clean"))
    found = defense.predict(images)
    torch.testing.assert_close(found.scores, wanted.logits, rtol=1e-4, atol=1e-4)


def test_the_command_fits_and_says_how_well(
    bank: LogitBank, tmp_path: Path, run: Callable[..., tuple[str, str]]
) -> None:
    out = tmp_path / "corrector"
    command = ("fit", "logit-correction", "--bank", bank.folder, "--out", out, *SETTINGS,
               "--epochs", 3)  # fmt: skip
    told, said = run(*command, "--stop-after", 1)
    assert "540 rows of 10 logits, clean or under pgd-5?step_size=0.25; 60 held out" in said
    assert "2 layers of 64 hidden units, 3 epochs of 17 steps" in said
    assert "not finished: the same command without --stop-after goes on" in told
    told, _ = run(*command)
    assert "correction takes the accuracy on 60 held-out rows from clean " in told
    assert f"--defense 'logit-correction?corrector={out}'" in told
    corrector = up.load_corrector(out)
    whole = fit_correction(bank, config(width=64, epochs=3, holdout=0.1), show=False)
    assert corrector.fingerprint() == whole.fingerprint()
    _, said = run(*command, code=2)
    assert "holds a finished fit" in said


def test_the_command_speaks_json_and_keeps_quiet(
    bank: LogitBank, tmp_path: Path, run: Callable[..., tuple[str, str]]
) -> None:
    command = ("fit", "logit-correction", "--bank", bank.folder, *SETTINGS, "--epochs", 1)
    told, said = run(*command, "--out", tmp_path / "a", "--json")
    found = json.loads(told)
    assert found["finished"] is True
    assert found["fingerprint"] == up.load_corrector(tmp_path / "a").fingerprint()
    assert found["card"]["config"]["epochs"] == 1
    assert said == ""
    assert run(*command, "--out", tmp_path / "b", "--quiet") == ("", "")


def test_weak_attacks_are_told(
    classifier: Path, tmp_path: Path, run: Callable[..., tuple[str, str]]
) -> None:
    net = up.load_classifier(str(classifier))
    data = load_images("digits", split="train").take(slice(0, 60))
    weak = make_bank(net, data, attacks="fgsm", threat=up.Linf(1e-6), out=tmp_path / "bank")
    _, said = run("fit", "logit-correction", "--bank", weak.folder, *SETTINGS, "--epochs", 1,
                  "--out", tmp_path / "out")  # fmt: skip
    assert "warning: fgsm leaves" in said
    assert "UserWarning" not in said
    assert up.load_corrector(tmp_path / "out").card["weak"] == list(weak.weak)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bank", "nowhere"), "There is no logit bank in 'nowhere'"),
        (("--clean-share", "30"), "clean_share is 30.0. Expected: a share from 0 to 1"),
        (("--attacks", "mim"), "Unknown attack of the bank 'mim'"),
        (("--loss", "cee"), "Unknown loss 'cee'. Expected: one of ce, label-smoothing, margin"),
        (("--holdout", "0"), "holdout is 0: there are no held-out rows"),
        (("--width", "0"), "width is 0. Expected: a whole number from 1"),
    ],
)
def test_wrong_options_are_one_message(
    options: tuple[str, str], words: str, bank: LogitBank, tmp_path: Path,
    run: Callable[..., tuple[str, str]],
) -> None:  # fmt: skip
    given = ("--bank", bank.folder, "--out", tmp_path / "out", *options)
    told, said = run("fit", "logit-correction", *given, code=2)
    assert told == ""
    assert words in said
    assert said.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_an_audit_names_a_corrector_by_its_path(
    classifier: Path, bank: LogitBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[str, str]],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    fit_correction(bank, config(width=64, epochs=1), out="runs/corrector", show=False)
    audit = ("audit", "--classifier", classifier, "--data", "digits", "--limit", 6, "--attacks",
             "pgd-2", "--eps", "0.1", "--json")  # fmt: skip
    for number, path in enumerate(("runs/corrector", tmp_path / "runs" / "corrector")):
        told, _ = run(*audit, "--defense", f"logit-correction?corrector={path}",
                      "--out", f"runs/audit{number}")  # fmt: skip
        assert json.loads(told)["clean_accuracy"] >= 0
    record = "".join(p.read_text() for p in Path("runs/audit0").glob("*.json"))
    assert "logit-correction" in record
    assert "runs/corrector" not in record
    _, said = run(*audit, "--defense", "logit-correction?corrector=runs/corector",
                  "--out", "runs/audit2", code=2)  # fmt: skip
    assert "There is no corrector in 'runs/corector'" in said
    assert "unperturb fit logit-correction" in said
    Corrector(up.load_corrector("runs/corrector").network, "d" * 64).save("runs/other")
    _, said = run(*audit, "--defense", "logit-correction?corrector=runs/other",
                  "--out", "runs/audit3", code=2)  # fmt: skip
    assert "fitted on the logits of another classifier (dddddddddddd)" in said
    run(*audit, "--defense", "logit-correction?corrector=runs/other&any_classifier=true",
        "--out", "runs/audit4")  # fmt: skip
