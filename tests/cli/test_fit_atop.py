"""``unperturb fit gan | mae | atop``: whole journeys, messages, help with examples that work."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from unperturb.cli import unperturb as program
from unperturb.cli.fit_atop import COMMANDS
from unperturb.recipes import load_recipe
from unperturb.restoration import FineTuneConfig, GANConfig, MAEConfig, load_restoration

Run = Callable[..., Any]
NAMES = tuple(command.name for command in COMMANDS)
QUICK = (
    "--data", "digits", "--epochs", "1", "--batch-size", "64", "--holdout", "1160",
    "--monitor-images", "16", "--samples", "2",
)  # fmt: skip
SMALL = {
    "gan": ("--width", "4", "--coarse-width", "2"),
    "mae": ("--width", "16", "--depth", "1", "--set", "decoder_depth=1"),
}


@pytest.fixture(autouse=True)
def _group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands stand in the group ``fit``, whoever else does."""
    there = program.commands.get("fit")
    others = there.commands if isinstance(there, click.Group) else {}
    group = click.Group("fit", commands={**others, **{c.name or "": c for c in COMMANDS}})
    monkeypatch.setitem(program.commands, "fit", group)


def fit(kind: str, out: Path, *more: object) -> list[object]:
    return ["fit", kind, *QUICK, *SMALL.get(kind, ()), "--out", out, *more]


@pytest.mark.parametrize(
    ("network", "kind"), [("gan", "gan"), ("mae", "mae"), ("atop-rt2", "atop")]
)
def test_the_defaults_are_those_of_the_recipes_and_of_python(network: str, kind: str) -> None:
    """A network that the command made is the recipe's, without another word."""
    wanted = load_recipe("atop/table-5", scale="cpu").networks[network].train
    made = {"gan": GANConfig, "mae": MAEConfig, "atop": FineTuneConfig}[kind]
    config = made(**wanted)
    command = next(command for command in COMMANDS if command.name == kind)
    options = {p.name: p.default for p in command.params}
    for name in ("epochs", "lr", "batch_size", "schedule", "augment", "precision", "holdout"):
        # The autoencoder's recipe has a batch size of its own.
        given = wanted.get(name, options[name]) if kind == "mae" else options[name]
        assert given == getattr(config, name), name
        assert kind == "mae" or getattr(config, name) == getattr(made(), name), name


@pytest.mark.parametrize("kind", SMALL)
def test_from_images_to_answers(
    kind: str, run: Run, nets: Any, digit_files: Path, tmp_path: Path
) -> None:
    start, out = tmp_path / kind, tmp_path / "atop"
    ran = run(*fit(kind, start, "--transform", "rt2", "--sigma", "0.1"))
    for words in ("epochs of 2 steps: about", "held-out error on dropped pixels", "by the mean"):
        assert words in ran.err + ran.out
    assert f"network: {start}" in ran.out
    facts = run(*fit(
        "atop", out, "--classifier", nets.standard, "--start", start, "--eps", "0.1", "--json"
    )).json  # fmt: skip
    assert facts["finished"]
    assert facts["card"]["config"]["sigma"] == 0.1, "the transform is that of --start"
    assert facts["card"]["config"]["eps"] == 0.1
    assert 0 <= facts["card"]["heldout"]["attacked"] <= 1
    defense = f"atop?purifier={out}&transform=rt3&passes=3"
    net = ("--classifier", nets.standard, "--defense", defense)
    told = run("predict", *net, digit_files, "--json").json
    assert len(told["predictions"]) == 6


def test_a_run_goes_on_with_the_same_command(run: Run, tmp_path: Path) -> None:
    command = fit("gan", tmp_path / "out", "--epochs", 2)
    ran = run(*command, "--stop-after", 1)
    assert "not finished: the same command without --stop-after goes on" in ran.out
    assert run(*command, "--json").json["finished"]
    ran = run(*command, code=2)
    assert "holds a finished training run" in ran.err


def test_a_start_and_other_settings(run: Run, tmp_path: Path) -> None:
    run(*fit("gan", tmp_path / "one", "--quiet"))
    more = ("--start", tmp_path / "one", "--set", "betas=0.5,0.9", "--set", "coarse_weight=1/2")
    facts = run(*fit("gan", tmp_path / "two", *more, "--lr", "1e-5", "--json")).json
    config = facts["card"]["config"]
    assert (config["betas"], config["coarse_weight"]) == ([0.5, 0.9], 0.5)
    assert facts["card"]["start"] == "one"


def test_a_setting_of_the_transform_gives_way(run: Run, nets: Any, tmp_path: Path) -> None:
    run(*fit("gan", tmp_path / "gan", "--quiet", "--sigma", "0.1", "--patch", "2"))
    both = ("--classifier", nets.standard, "--start", tmp_path / "gan", "--quiet")
    run(*fit("atop", tmp_path / "rt3", *both, "--transform", "rt3", "--passes", "2"))
    found = load_restoration(tmp_path / "rt3").transform
    assert (found.name, found.patch, found.sigma, found.passes) == ("rt3", 2, 0.1, 2)


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("gan", ("--transform", "rt4"), ("Unknown random transform 'rt4'", "rt1, rt2, rt3")),
        ("gan", ("--transform", "rt1", "--sigma", "0.1"), ("sigma is 0.1 with the transform rt1",)),
        ("gan", ("--rate", "1.5"), ("The missing rate is 1.5",)),
        ("gan", ("--patch", "8"), ("8x8 have 1 patch of 8x8", "at least 2 for rt2")),
        ("gan", ("--form", "wgan"), ("Unknown form 'wgan'", "hinge, wasserstein")),
        ("gan", ("--lr", "0"), ("lr is 0.0", "above 0")),
        ("gan", ("--milestones", "x"), ("--milestones is 'x'",)),
        ("gan", ("--set", "width=3"), ("--set width=3", "use --width")),
        ("gan", ("--set", "betas=a,b"), ("--set betas=a,b", "a number, a fraction")),
        ("gan", ("--set", "betaz=1"), ("Unknown setting 'betaz'", "did you mean 'betas'")),
        ("gan", ("--set", "betas"), ("--set betas", "NAME=VALUE")),
        ("gan", ("--start", "nowhere"), ("no weights to start from in 'nowhere'",)),
        ("gan", ("--holdout", "1290"), ("held out leave", "lower holdout")),
        ("gan", ("--device", "cdua"), ("'cdua' cannot be used",)),
        ("mae", ("--token", "2"), ("tokens of 2x2 are dropped in part",)),
        ("mae", ("--width", "15"), ("width is 15 with 4 heads",)),
        ("atop", ("--start", "nowhere"), ("no restoration network in 'nowhere'",)),
        ("atop", ("--examples", "noisy"), ("Unknown examples 'noisy'", "adversarial, clean")),
        ("atop", ("--against", "x"), ("Unknown against 'x'", "classifier, whole")),
        ("atop", ("--eps", "8"), ("eps is 8", "8/255")),
        ("atop", ("--lambda", "-1"), ("cls_weight is -1.0", "0 or more")),
        ("atop", ("--set", "cls_weight=1"), ("use --lambda",)),
        ("atop", ("--channels", "3"), ("3 channels",)),
    ],
)
def test_a_wrong_value(
    kind: str,
    more: tuple[str, ...],
    words: tuple[str, ...],
    run: Run,
    nets: Any,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    base: tuple[object, ...] = ()
    if kind == "atop":
        base = ("--classifier", nets.standard, "--start", made)
    ran = run(*fit(kind, Path("out"), *base, *more, "--quiet"), code=2)
    for word in words:
        assert word in ran.err, ran.err
    assert ran.err.count("error: ") == 1
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_too_few_images_are_refused_before_the_time_is_estimated(run: Run, tmp_path: Path) -> None:
    ran = run(*fit("gan", tmp_path / "out", "--holdout", "1290"), code=2)
    assert ran.err.startswith("error: ")
    assert "0 steps" not in ran.err


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained network for digits that was never trained."""
    from unperturb.data import load_images
    from unperturb.restoration import GANConfig, plan_pretrain, save_restoration

    data = load_images("digits", split="train", limit=8)
    plan = plan_pretrain(data, GANConfig(width=4, coarse_width=2, discriminator_width=4))
    return save_restoration(plan.net, tmp_path_factory.mktemp("made") / "gan")


def test_places_that_cannot_be_written_are_refused_first(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = run(*fit("gan", tmp_path / "file" / "out"), code=1)
    assert "choose another --out" in ran.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    ran = run(*fit("mae", tmp_path / "full"), code=2)
    assert "holds no training run (notes.txt)" in ran.err
    run("fit", "atop", "--data", "digits", code=2)


# -- help -----------------------------------------------------------------------------------------


def examples(text: str) -> list[list[str]]:
    text = re.sub(r"\\\n\s*", "", text)
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    unper")]


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_help_explains_every_option_and_shows_an_example(command: click.Command, run: Run) -> None:
    text = run("fit", command.name, "--help").out
    assert examples(text)
    assert all(words[:2] == ["fit", command.name] for words in examples(text))
    silent = [option.opts[0] for option in command.params if not getattr(option, "help", None)]
    assert not silent, f"options without a word: {silent}"


def test_defaults_are_those_of_the_settings() -> None:
    from unperturb.restoration import FineTuneConfig, GANConfig, MAEConfig

    kinds = {"gan": GANConfig, "mae": MAEConfig, "atop": FineTuneConfig}
    given = ["--data", "x", "--classifier", "x", "--start", "x"]
    for command in COMMANDS:
        config = kinds[command.name or ""]()
        words = given if command.name == "atop" else given[:2]
        found = command.make_context(command.name, list(words)).params
        for name, value in found.items():
            if hasattr(config, name) and name not in ("transform", "eps", "milestones"):
                assert value == getattr(config, name), name


def test_examples_of_the_help_and_the_guide_work(
    run: Run,
    tmp_path: Path,
    class_folders: Callable[..., Path],
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class_folders("cifar10/train", classes=10, each=1)
    class_folders("cifar10/test", classes=10)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "standard").symlink_to(saved)
    monkeypatch.chdir(tmp_path)
    less = shlex.split("--epochs 1 --batch-size 2 --holdout 6 --monitor-images 2 --quiet")
    few = {"audit": ["--limit", "2", "--attacks", "fgsm", "--quiet"], "fit": less}
    found = [words for name in NAMES for words in examples(run("fit", name, "--help").out)]
    pages = Path(__file__).resolve().parents[2] / "docs"
    for page in ("defenses/atop.md", "guide/restoration.md"):
        text = (pages / page).read_text(encoding="utf-8").replace("$ unper", "    unper")
        found += [words for words in examples(text) if words[0] in few]
    assert len(found) >= 8
    done = set()
    for words in found:
        # The same folder is written once.
        out = words[words.index("--out") + 1]
        if out not in done:
            run(*words, *few[words[0]])
        done.add(out)
    assert json.loads((tmp_path / "runs" / "atop" / "training.json").read_text())["epochs"]
