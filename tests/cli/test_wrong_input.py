"""Every wrong option gets one message that names value, expectation and fix, and its exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.mistakes import DIGITS, TRAIN, check
from unperturb.errors import ConfigError

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--defense", "tpapp", ("Unknown defense 'tpapp'", "one of ", "did you mean 'tpap'?")),
        ("--attacks", "pdg-20", ("Unknown attack 'pdg'", "fgsm, ", "did you mean 'pgd'")),
        ("--attacks", "quik", ("Unknown attack 'quik'", "did you mean 'quick'?")),
        ("--attacks", "pgd-20?restart=2", ("'restart'", "did you mean 'restarts'")),
        ("--attacks", "fgsm-3", ("fgsm-3 does not exist", "bim-3")),
        ("--attacks", " , ", ("No attack is named", "fgsm,pgd-20")),
        ("--attacker", "adaptve", ("Unknown attacker 'adaptve'", "did you mean 'adaptive'?")),
        ("--attacker", ",", ("--attacker is ','", "oblivious, adaptive, or both")),
        ("--norm", "l1nf", ("Unknown norm 'l1nf'", "l2, linf", "did you mean 'linf'?")),
        ("--eps", "8", ("eps is 8 in the norm linf", "at most 1", "Fix: write 8/255")),
        ("--eps", "300", ("eps is 300 in the norm linf", "at most 1")),
        ("--eps", "abc", ("eps is 'abc'", "a number or a fraction, such as 8/255")),
        ("--eps", "8/0", ("eps is '8/0'", "8/255")),
        ("--eps", "0", ("eps is '0'", "above 0")),
        ("--eps", "-0.1", ("eps is '-0.1'", "above 0")),
        ("--eps", "nan", ("eps is 'nan'", "above 0")),
        ("--shard", "3/2", ("--shard is '3/2'", "1 <= i <= n, such as 1/4")),
        ("--shard", "0/2", ("--shard is '0/2'", "1 <= i <= n")),
        ("--shard", "half", ("--shard is 'half'", "i/n")),
        ("--shard", "1/2/3", ("--shard is '1/2/3'", "i/n")),
        ("--fail-under", "40", ("--fail-under is 40", "between 0 and 1", "Fix: write 0.4")),
        ("--fail-under", "-1", ("--fail-under is -1", "between 0 and 1")),
        ("--fail-under", "nan", ("--fail-under is nan", "between 0 and 1")),
        ("--limit", "0", ("limit is 0", "at least 1")),
        ("--limit", "-3", ("limit is -3", "at least 1")),
        ("--seed", "-1", ("seed is -1", "0 to 2**64 - 1")),
        ("--image-size", "big", ("--image-size is 'big'", "HEIGHTxWIDTH", "224x224")),
        ("--image-size", "0", ("--image-size is '0'", "HEIGHTxWIDTH")),
        ("--image-size", "8x8x8", ("--image-size is '8x8x8'", "HEIGHTxWIDTH")),
        ("--image-size", "8x-8", ("--image-size is '8x-8'", "HEIGHTxWIDTH")),
        ("--split", "tests", ("Unknown split 'tests'", "did you mean 'test'?")),
        ("--data", "digitss", ("Unknown data set 'digitss'", "did you mean 'digits'?")),
        ("--data", "./nowhere", ("There is no file or folder 'nowhere'", "check the path")),
        ("--device", "cdua", ("The device 'cdua' cannot be used", "Fix: --device cpu")),
        ("--device", "meta", ("The device 'meta' cannot be used", "Fix: --device cpu")),
        ("--time-budget", "0", ("time_budget is 0", "seconds above 0")),
        ("--defense", "tpap?radius=big", ("The purification radius is 'big'", "such as 8 / 255")),
        ("--defense", "tpap?radius=6", ("The purification radius is 6", "write 6/255")),
        ("--defense", "tpap?raduis=0.1", ("raduis", "did you mean 'radius'?")),
        ("--defense", "tpap?radius=-0.1", ("option radius of --defense is '-0.1'", "above 0")),
        ("--defense", "tpap?radius=a/b", ("The purification radius is 'a/b'", "such as 8 / 255")),
        ("--defense", "logit-correction", ("No corrector is named", "unperturb fit")),
        ("--defense", "atop", ("lacks its option 'purifier'", "atop?purifier=...")),
        ("--defense", "atop?purifier=no/where", ("no restoration network in 'no/where'",)),
        ("--defense", "./nowhere", ("There is no folder './nowhere'", "a saved defense")),
        ("--channels", "3", ("Images have 3 channels", "1 channel", "Fix: --channels 1 reads")),
    ],
)  # fmt: skip
def test_a_wrong_value(
    option: str, value: str, words: tuple[str, ...], fails: Callable[..., None]
) -> None:
    fails(*words, more=(option, value))


def test_an_absent_cuda_device(fails: Callable[..., None]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    fails("The device 'cuda' cannot be used", "Fix: --device cpu", more=("--device", "cuda"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "--classifier", "x", "--data", "digits", "--batch-size", "0"),
        ("audit", "--classifier", "x", "--data", "digits", "--keep-images", "best"),
        ("audit", "--classifier", "x"),
        ("train", "--arch", "small-cnn", "--data", "digits", "--stop-after", "0"),
        ("predict", "--classifier", "x"),
        ("merge", "--out", "x"),
        ("convert", "only-one"),
    ],
)
def test_what_the_parser_refuses_shows_the_usage(arguments: tuple[str, ...], run: Run) -> None:
    ran = run(*arguments, code=2)
    assert ran.out == ""
    assert ran.err.startswith(f"Usage: unperturb {arguments[0]} ")
    assert f"Try 'unperturb {arguments[0]} --help' for help." in ran.err
    assert "Error: " in ran.err


# -- eps ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[str]]:
    """Somebody at a terminal who answers; the questions are kept."""

    def answer(yes: bool) -> list[str]:
        questions: list[str] = []

        def confirm(text: str, **options: Any) -> bool:
            assert options["err"] is True, "a question on standard output would spoil --json"
            questions.append(text)
            return yes

        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("click.confirm", confirm)
        return questions

    return answer


def _attack(net: Path, out: Path, eps: str) -> tuple[object, ...]:
    rest = ("--attack", "fgsm", "--out", out, "--eps", eps, "--json")
    return ("attack", "--classifier", net, *DIGITS, *rest)


def test_eps_8_is_asked_about_once(
    nets: Any, run: Run, tmp_path: Path, asked: Callable[[bool], list[str]]
) -> None:
    questions = asked(True)
    found = run(*_attack(nets.fgsm, tmp_path / "one", "8")).json
    assert found["eps"] == 8 / 255
    assert questions == ["--eps 8 is larger than any image. Did you mean 8/255?"]
    audit = ("--attacks", "fgsm", "--eps", "8", "--out", tmp_path / "two", "--json")
    found = run("audit", "--classifier", nets.fgsm, *DIGITS, *audit).json
    assert {attack["eps"] for attack in found["attacks"]} == {8 / 255}
    fgsm = ("--objective", "fgsm", "--eps", "8", "--out", tmp_path / "three", "--json")
    found = run("train", "--start", nets.standard, *fgsm, *TRAIN).json
    assert found["card"]["config"]["eps"] == 8 / 255
    assert len(questions) == 3


def test_eps_8_after_a_no_is_refused(
    nets: Any, run: Run, tmp_path: Path, asked: Callable[[bool], list[str]]
) -> None:
    questions = asked(False)
    ran = run(*_attack(nets.fgsm, tmp_path / "one", "8"), code=2)
    assert "eps is 8 in the norm linf. Expected: at most 1" in ran.err
    assert len(questions) == 1


def test_nobody_is_asked_about_what_may_be_meant(
    nets: Any, run: Run, tmp_path: Path, asked: Callable[[bool], list[str]]
) -> None:
    questions = asked(True)
    run(*_attack(nets.fgsm, tmp_path / "one", "0.5"))
    run(*_attack(nets.fgsm, tmp_path / "two", "4"), "--norm", "l2")
    run(*_attack(nets.fgsm, tmp_path / "three", "300"), code=2)
    assert questions == []


def test_without_a_terminal_train_and_attack_refuse_eps_8(
    nets: Any, run: Run, tmp_path: Path
) -> None:
    words = ("eps is 8 in the norm linf", "Fix: write 8/255")
    check(run(*_attack(nets.fgsm, tmp_path / "one", "8"), code=2), *words)
    train = ("train", "--start", nets.standard, "--eps", "8", *TRAIN, "--out", tmp_path / "two")
    check(run(*train, code=2), *words)


def test_an_l2_ball_larger_than_the_images(
    nets: Any, run: Run, tmp_path: Path, fails: Callable[..., None]
) -> None:
    words = ("eps is 20 in the norm l2", "at most 8, the diagonal", "0.5 or 128/255")
    fails(*words, more=("--norm", "l2", "--eps", "20"))
    command = _attack(nets.fgsm, tmp_path / "one", "20")
    check(run(*command, "--norm", "l2", code=2), *words)


# -- presets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("step=pdg", "did you mean 'pgd'?"),
        ("steps=3", "The option 'steps' of tpap does not belong to step='fgsm'"),
        ("step=cw&radius=8/255", "The option 'radius' of tpap does not belong to step='cw'"),
        ("step=pgd&steps=2.5", "steps is 2.5. Expected: a whole number"),
        ("radius=-1", "The option radius of --defense is '-1'"),
        ("steps", "The option steps of --defense is ''"),
    ],
)
def test_an_option_of_a_preset_that_does_not_fit(
    nets: Any, run: Run, options: str, words: str
) -> None:
    net = ("--classifier", nets.fgsm, "--defense", f"tpap?{options}")
    check(run("audit", *net, *DIGITS, code=2), words)


# -- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), ("One of --arch and --start is needed, and not both",)),
        (("--arch", "small-cnn", "--start", "x"), ("One of --arch and --start is needed",)),
        (("--arch", "smal-cnn"), ("Unknown network 'smal-cnn'", "did you mean 'small-cnn'")),
        (("--arch", "small-cnn", "--objective", "fsgm"), ("Unknown objective", "'fgsm'")),
        (("--arch", "small-cnn", "--schedule", "one"), ("Unknown schedule", "'one-cycle'")),
        (("--arch", "small-cnn", "--augment", "flop"), ("Unknown augment", "'flip'")),
        (("--arch", "small-cnn", "--precision", "float16"), ("Unknown precision", "'bfloat16'")),
        (("--arch", "small-cnn", "--keep", "deepst"), ("Unknown keep 'deepst'", "'deepest'")),
        (("--arch", "small-cnn", "--normalize", "imgnet"), ("Unknown normalization", "'imagenet'")),
        (("--arch", "small-cnn", "--milestones", "50"), ("--milestones is '50'", "0.5,0.75")),
        (("--arch", "small-cnn", "--milestones", "a"), ("--milestones is 'a'", "fractions")),
        (("--arch", "small-cnn", "--epochs", "0"), ("epochs is 0", "at least 1")),
        (("--arch", "small-cnn", "--lr", "0"), ("lr is 0", "above 0")),
        (("--arch", "small-cnn", "--holdout", "1290"), ("1290 held out leave 7", "lower holdout")),
    ],
)
def test_wrong_training_settings(
    more: tuple[str, ...], words: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    check(run("train", *TRAIN, "--out", out, "--quiet", *more, code=2), *words)
    assert not out.exists()


# -- attacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--attack", "pdg"), ("Unknown attack 'pdg'", "did you mean 'pgd'")),
        (("--stop", "never"), ("'never'", "fixed", "first-success")),
        (("--backward", "smooth-sign"), ("'smooth-sign'", "smoothed-sign")),
    ],
)
def test_wrong_settings_of_an_attack(
    more: tuple[str, ...], words: tuple[str, ...], nets: Any, run: Run, tmp_path: Path
) -> None:
    net = ("--classifier", nets.fgsm, "--defense", "tpap")
    ran = run("attack", *net, *DIGITS, "--quiet", "--out", tmp_path / "new", *more, code=2)
    check(ran, *words)
    assert not (tmp_path / "new").exists()


# -- in Python ----------------------------------------------------------------------------------


def test_image_size_is_checked_before_anything_is_read() -> None:
    from unperturb.cli.options import image_size

    assert image_size(None) is None
    assert image_size("224X192") == (224, 192)
    with pytest.raises(ConfigError, match="--image-size is ''"):
        image_size("")
