"""Every mistake gets one message that names value, expectation and fix, and its exit code."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

import unperturb.audit.run
from unperturb import tpap
from unperturb.classifiers import load_classifier, new_classifier, save_classifier
from unperturb.data import load_images
from unperturb.errors import ConfigError, SpecError
from unperturb.files import write_tensors

Run = Callable[..., Any]

DIGITS = ("--data", "digits", "--limit", 4)
TRAIN = ("--data", "digits", "--epochs", 1, "--holdout", 20, "--monitor-images", 8)


def _check(ran: Any, *words: str) -> None:
    """One message on standard error, nothing else anywhere."""
    assert ran.out == ""
    for word in words:
        assert word in ran.err, ran.err
    assert ran.err.count("error: ") == 1
    assert ran.err.endswith("\n")


@pytest.fixture
def fails(nets: Any, run: Run, tmp_path: Path) -> Callable[..., None]:
    """Audit the small classifier with something wrong: nothing is left behind."""

    def call(*words: str, more: tuple[object, ...] = (), code: int = 2) -> None:
        out = tmp_path / "audit"
        ran = run("audit", "--classifier", nets.fgsm, *DIGITS, "--out", out, *more, code=code)
        _check(ran, *words)
        assert not out.exists()

    return call


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
    _check(run(*_attack(nets.fgsm, tmp_path / "one", "8"), code=2), *words)
    train = ("train", "--start", nets.standard, "--eps", "8", *TRAIN, "--out", tmp_path / "two")
    _check(run(*train, code=2), *words)


def test_an_l2_ball_larger_than_the_images(
    nets: Any, run: Run, tmp_path: Path, fails: Callable[..., None]
) -> None:
    words = ("eps is 20 in the norm l2", "at most 8, the diagonal", "0.5 or 128/255")
    fails(*words, more=("--norm", "l2", "--eps", "20"))
    command = _attack(nets.fgsm, tmp_path / "one", "20")
    _check(run(*command, "--norm", "l2", code=2), *words)


# -- classifiers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cifar-resnet2O@w.safetensors", ("Unknown network 'cifar-resnet2o'", "'cifar-resnet20'")),
        ("cifar-resnet20@w.safetensors", ("no weights file 'w.safetensors'", "a safetensors file")),
        ("cifar-resnet20", ("an architecture without weights", "cifar-resnet20@FILE")),
        ("w.safetensors", ("a weights file without its architecture", "Expected: ARCH@FILE")),
        ("runs/nowhere", ("There is no folder 'runs/nowhere'", "check the path")),
        ("small-cnn@w.pth?classes=many", ("The option classes is 'many'", "a whole number")),
    ],
)
def test_a_classifier_that_is_not_there(
    spec: str, words: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in (("audit", *DIGITS), ("attack", *DIGITS), ("predict", tmp_path)):
        _check(run(*verb, "--classifier", spec, code=2), *words)


def test_weights_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    state = new_classifier("small-cnn").module.state_dict()
    state["extra.weight"] = state.pop("conv1.weight")
    write_tensors(tmp_path / "w.safetensors", state)
    spec = f"small-cnn@{tmp_path / 'w.safetensors'}"
    ran = run("predict", tmp_path, "--classifier", spec, code=2)
    _check(ran, "1 missing (conv1.weight)", "1 extra (extra.weight)", "do not fit")


def test_a_pickle_as_weights(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "w.pth"
    torch.save(new_classifier("small-cnn").module.state_dict(), source)
    ran = run("audit", "--classifier", f"small-cnn@{source}", *DIGITS, code=2)
    fix = f"Fix: unperturb convert {source} {tmp_path / 'w.safetensors'}"
    _check(ran, "are a pickle, which can run code when it is loaded", fix)


def test_an_unknown_schema(nets: Any, run: Run, tmp_path: Path) -> None:
    net = tmp_path / "net"
    shutil.copytree(nets.fgsm, net)
    config = json.loads((net / "config.json").read_text())
    (net / "config.json").write_text(json.dumps({**config, "schema_version": 99}))
    ran = run("audit", "--classifier", net, *DIGITS, code=2)
    _check(ran, "schema version 99", "Expected: schema version 1", str(net))


def test_an_unknown_schema_of_a_defense(nets: Any, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "defense"
    tpap(load_classifier(str(nets.fgsm))).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "schema_version": 99}))
    _check(run("audit", "--defense", folder, *DIGITS, code=2), "schema version 99")
    as_defense = run("audit", "--defense", nets.fgsm, *DIGITS, code=2)
    _check(as_defense, "a saved classifier is given as --classifier")


def test_neither_classifier_nor_defense(run: Run, tmp_path: Path) -> None:
    for verb in (("audit", *DIGITS), ("attack", *DIGITS), ("predict", tmp_path)):
        _check(run(*verb, code=2), "Neither a classifier nor a defense is named", "--classifier")
    _check(
        run("audit", *DIGITS, "--defense", "tpap", code=2),
        "The preset 'tpap' needs a classifier",
        "--classifier",
    )
    _check(run("audit", *DIGITS, "--defense", "tpa", code=2), "did you mean 'tpap'?")


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
    _check(run("audit", *net, *DIGITS, code=2), words)


def test_a_library_that_is_not_there(nets: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    ran = run("audit", "--classifier", nets.fgsm, "--data", "uoft-cs/cifar10", code=2)
    _check(ran, "needs the package 'datasets'", "pip install 'unperturb[hub]'")


# -- images -------------------------------------------------------------------------------------


def test_an_empty_folder(nets: Any, run: Run, tmp_path: Path, fails: Callable[..., None]) -> None:
    (tmp_path / "empty").mkdir()
    words = (f"The folder {tmp_path / 'empty'} is empty", "ROOT/CLASS/*.png")
    fails(*words, more=("--data", tmp_path / "empty"))
    ran = run("predict", tmp_path / "empty", "--classifier", nets.fgsm, code=2)
    _check(ran, f"No image files in {tmp_path / 'empty'}", "check the path")


def test_a_missing_file(nets: Any, run: Run, digit_files: Path) -> None:
    first = min(digit_files.iterdir())
    asked = digit_files / first.name.replace("digits", "digit")
    ran = run("predict", asked, "--classifier", nets.fgsm, code=2)
    _check(ran, f"There is no file or folder {str(asked)!r}", "did you mean")


def test_labels_out_of_range(
    class_folders: Callable[..., Path], nets: Any, run: Run, tmp_path: Path,
    fails: Callable[..., None],
) -> None:  # fmt: skip
    folder = class_folders(classes=12, side=8, channels=1)
    data = ("--data", folder, "--limit", 12)
    words = ("2 of 12 labels lie outside the classes: the first is 10", "labels from 0 to 9")
    fails(*words, more=data)
    ran = run("attack", "--classifier", nets.fgsm, *data, "--out", tmp_path / "new", code=2)
    _check(ran, *words)
    ran = run("train", "--start", nets.fgsm, *TRAIN, *data, "--holdout", 0, "--batch-size", 4,
              "--out", tmp_path / "new", code=2)  # fmt: skip
    _check(ran, *words)
    assert not (tmp_path / "new").exists()


def test_grey_images_for_a_color_network(weights: Path, run: Run, tmp_path: Path) -> None:
    net = ("--classifier", f"cifar-resnet20@{weights}", *DIGITS)
    words = (
        "Images have 1 channel",
        "Expected: 3 channels",
        "Fix: --channels 3 reads them as color",
    )
    for verb in ("audit", "attack"):
        _check(run(verb, *net, "--out", tmp_path / verb, code=2), *words)


def test_images_of_another_size(run: Run, tmp_path: Path, digit_files: Path) -> None:
    net = save_classifier(new_classifier("cifar-robust-resnet-2b"), tmp_path / "net")
    words = ("Images are 8x8", "32x32", "Fix: --image-size 32x32 resizes and crops them")
    ran = run(
        "audit", "--classifier", net, *DIGITS, "--channels", 3, "--out", tmp_path / "a", code=2
    )
    _check(ran, *words)
    _check(run("predict", digit_files, "--classifier", net, code=2), *words)
    run("predict", digit_files, "--classifier", net, "--image-size", "32")


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
    _check(run("train", *TRAIN, "--out", out, "--quiet", *more, code=2), *words)
    assert not out.exists()


def test_training_into_a_finished_run(nets: Any, run: Run) -> None:
    before = {path.name: path.read_bytes() for path in nets.fgsm.iterdir()}
    ran = run("train", "--start", nets.standard, *TRAIN, "--out", nets.fgsm, "--quiet", code=2)
    _check(ran, f"{nets.fgsm} holds a finished training run", "choose another --out")
    assert {path.name: path.read_bytes() for path in nets.fgsm.iterdir()} == before


def test_training_into_another_unfinished_run(run: Run, tmp_path: Path) -> None:
    command = ("train", "--arch", "small-cnn", *TRAIN, "--out", tmp_path / "run", "--quiet")
    run(*command, "--epochs", 2, "--stop-after", 1)
    ran = run(*command, "--epochs", 2, "--lr", "0.05", code=2)
    _check(ran, "belongs to another training run", "the same settings, images, start weights")


def test_training_into_the_folder_of_something_else(saved: Path, run: Run) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    ran = run("train", "--start", saved, *TRAIN, "--out", saved, code=2)
    _check(ran, "is not empty and holds no training run (config.json, model.safetensors)")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


# -- output -------------------------------------------------------------------------------------


def _outputs(net: Path, digit_files: Path) -> dict[str, tuple[object, ...]]:
    return {
        "audit": ("audit", "--classifier", net, *DIGITS, "--attacks", "fgsm", "--quiet"),
        "attack": ("attack", "--classifier", net, *DIGITS, "--attack", "fgsm", "--quiet"),
        "train": ("train", "--start", net, *TRAIN, "--quiet"),
        "predict": ("predict", digit_files, "--classifier", net),
        "demo": ("demo", "--quiet"),
    }


VERBS_THAT_WRITE = ("audit", "attack", "train", "predict", "demo")


@pytest.mark.parametrize("verb", VERBS_THAT_WRITE)
def test_a_place_under_a_file(
    verb: str, nets: Any, digit_files: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    command = _outputs(nets.fgsm, digit_files)[verb]
    ran = run(*command, "--out", tmp_path / "file" / "out" / "x", code=1)
    _check(ran, f"cannot be made: {tmp_path / 'file'} is a file", "Fix: choose another --out")
    if verb != "predict":
        ran = run(*command, "--out", tmp_path / "file", code=1)
        _check(ran, f"{tmp_path / 'file'} is a file", "Fix: choose another --out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("verb", VERBS_THAT_WRITE)
def test_a_folder_that_may_not_be_written_to(
    verb: str, nets: Any, digit_files: Path, run: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Permissions do not bind the root user, whom containers run as.
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    command = _outputs(nets.fgsm, digit_files)[verb]
    ran = run(*command, "--out", tmp_path / "new" / "out", code=1)
    words = f"there is no permission to write into {tmp_path}"
    _check(ran, words, "Expected: a folder that can be written to", "choose another --out")
    assert not (tmp_path / "new").exists()


def test_predictions_do_not_replace_a_folder(
    nets: Any, digit_files: Path, run: Run, tmp_path: Path
) -> None:
    ran = run("predict", digit_files, "--classifier", nets.fgsm, "--out", tmp_path, code=1)
    _check(ran, f"{tmp_path} is a folder", "Expected: a file")


def test_the_folder_of_another_audit(nets: Any, run: Run, tmp_path: Path) -> None:
    command = (*_outputs(nets.fgsm, tmp_path)["audit"], "--out", tmp_path / "audit")
    run(*command)
    ran = run(*command, "--eps", "0.2", "--seed", "1", code=2)
    _check(ran, "holds another audit", "seed: 0 there, 1 here", "threat.eps", "another --out")
    ran = run(*command, "--classifier", nets.standard, code=2)
    _check(ran, "holds another audit (baseline.", '"fgsm" there, "standard" here')


@pytest.mark.parametrize("verb", ["audit", "attack"])
def test_a_folder_that_is_not_empty(verb: str, nets: Any, run: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    command = _outputs(nets.fgsm, tmp_path)[verb]
    ran = run(*command, "--out", tmp_path / "full", code=2)
    _check(ran, f"{tmp_path / 'full'} is not empty", "choose another --out")
    assert [path.name for path in (tmp_path / "full").iterdir() if path.name != ".lock"] == [
        "letter.txt"
    ]


class Disk:
    """A disk that is full after some files."""

    def __init__(self, files: int) -> None:
        self.left = files

    def fsync(self, handle: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("files", [0, 1, 5, 8])
def test_a_full_disk_in_an_audit(
    files: int, nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = _outputs(nets.fgsm, tmp_path)["audit"]
    run(*command, "--out", tmp_path / "whole")
    out = tmp_path / "audit"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Disk(files).fsync)
        ran = run(*command, "--out", out, code=1)
    _check(ran, "Cannot write", "No space left on device", "what is finished is kept")
    there = _files(out)
    assert not [name for name in there if name.endswith(".tmp")]
    assert len(there) - (".lock" in there) == files
    run(*command, "--out", out)
    whole = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert json.loads((out / "manifest.json").read_text())["digest"] == whole["digest"]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("files", [0, 3, 5])
def test_a_full_disk_leaves_no_part_of_an_attack(
    files: int, there: bool, nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "images"
    if there:
        out.mkdir()
    command = (*_outputs(nets.fgsm, tmp_path)["attack"], "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Disk(files).fsync)
        ran = run(*command, code=1)
    _check(ran, "No space left on device", "free some space")
    assert out.exists() == there
    assert not there or not any(out.iterdir())
    run(*command)


def test_a_full_disk_in_training(
    nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "--start", nets.standard, *TRAIN, "--quiet", "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Disk(1).fsync)
        _check(run(*command, code=1), "Cannot write", "No space left on device")
    assert set(_files(tmp_path / "run")) == {"checkpoint.safetensors"}
    run(*command)
    assert (tmp_path / "run" / "training.json").is_file()


# -- records ------------------------------------------------------------------------------------


def test_reports_of_what_is_no_audit(nets: Any, run: Run, tmp_path: Path) -> None:
    for command in (("report", tmp_path), ("merge", tmp_path, "--out", tmp_path / "new")):
        _check(run(*command, code=2), f"{tmp_path} holds no audit: plan.json is missing")
    assert not (tmp_path / "new").exists()
    out = tmp_path / "audit"
    run(*_outputs(nets.fgsm, tmp_path)["audit"], "--out", out)
    plan = (out / "plan.json").read_text()
    (out / "plan.json").write_text(plan.replace('"schema_version": 2', '"schema_version": 99'))
    words = ("has schema version 99", "Expected: schema version 1 or 2")
    _check(run("report", out, code=2), *words)
    (out / "plan.json").write_text(plan[:100])
    _check(run("report", out, code=2), "plan.json is damaged")


def test_shards_of_two_audits_are_not_merged(nets: Any, run: Run, tmp_path: Path) -> None:
    command = _outputs(nets.fgsm, tmp_path)["audit"]
    run(*command, "--shard", "1/2", "--out", tmp_path / "one")
    run(*command, "--shard", "2/2", "--seed", 1, "--out", tmp_path / "two")
    ran = run("merge", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "new", code=2)
    _check(ran, "are not shards of one audit", "seed")
    assert not (tmp_path / "new").exists()


# -- attack and convert -------------------------------------------------------------------------


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
    _check(ran, *words)
    assert not (tmp_path / "new").exists()


def test_wrong_conversions(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "w.pth"
    torch.save({"weights": torch.zeros(3)}, source)
    target = tmp_path / "w.safetensors"
    _check(run("convert", tmp_path / "v.pth", target, code=2), "There is no checkpoint", "w.pth'?")
    _check(run("convert", source, tmp_path / "w.npz", code=1), "ends in .safetensors")
    _check(run("convert", source, tmp_path / "no" / "w.safetensors", code=1), "is not there")
    target.write_text("mine")
    _check(run("convert", source, target, code=1), "is there already", "allow overwriting")
    assert target.read_text() == "mine"
    run("convert", source, target, "--overwrite")


# -- what is nobody's mistake -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Memory ran out. What is finished is kept."),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            "Fix: a smaller --batch-size",
        ),
        (BrokenProcessPool("terminated abruptly"), "Fix: run the same command again with fewer"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_the_machine_gives_out(
    error: Exception, words: str, nets: Any, run: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def give_out(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(unperturb.audit.run, "_do", give_out)
    command = _outputs(nets.fgsm, tmp_path)["audit"]
    _check(run(*command, "--out", tmp_path / "audit", code=1), words)


def test_a_bug_of_ours_is_not_dressed_up(
    nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(unperturb.audit.run, "_do", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(*_outputs(nets.fgsm, tmp_path)["audit"], "--out", tmp_path / "audit")


# -- in Python ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, 3, ["digits"], b"digits"])
def test_entry_points_refuse_what_names_nothing(given: Any) -> None:
    with pytest.raises(SpecError, match="The data set is .* Expected: 'digits', a path, or a hub"):
        load_images(given)
    with pytest.raises(SpecError, match="The classifier is .* Fix: name one, or pass the torch"):
        load_classifier(given)


def test_paths_are_as_good_as_strings(class_folders: Callable[..., Path]) -> None:
    folder = class_folders(classes=2)
    assert load_images(folder).source == load_images(str(folder)).source


def test_image_size_is_checked_before_anything_is_read() -> None:
    from unperturb.cli.options import image_size

    assert image_size(None) is None
    assert image_size("224X192") == (224, 192)
    with pytest.raises(ConfigError, match="--image-size is ''"):
        image_size("")
