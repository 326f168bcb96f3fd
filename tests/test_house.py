"""The house: every part has its row and its page, and every row the general contract."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tables import ATTACK_ROWS, DECISION_ROWS, DETECTOR_ROWS, PURIFIER_ROWS, AttackRow, Row
from unperturb.attacks import ATTACKS, SUITES, Surface, describe_attack, make_attack
from unperturb.decisions import DECISIONS, Decision
from unperturb.defense import Defense
from unperturb.detectors import DETECTORS, Detector
from unperturb.errors import AttackError, UnperturbError
from unperturb.presets import PRESETS
from unperturb.purifiers import PURIFIERS, Purifier
from unperturb.randomness import Keys
from unperturb.stages import Stage, build_stage
from unperturb.threat import L2, Linf, Threat

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in (SOURCE / "unperturb").rglob("*.py")
)
GROUPS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "purifiers": (PURIFIERS, PURIFIER_ROWS),
    "detectors": (DETECTORS, DETECTOR_ROWS),
    "decisions": (DECISIONS, DECISION_ROWS),
    "attacks": (ATTACKS, ATTACK_ROWS),
}
PARTS = [(group, name) for group, (known, _) in GROUPS.items() for name in known]
HEAVY = (
    "art",
    "autoattack",
    "pyautoattack",
    "datasets",
    "foolbox",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "PIL",
    "pyarrow",
    "scipy",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
    "transformers",
)

LABELS = torch.tensor([0, 1, 2, 3])
IDS = ("a", "b", "c", "d")


def images() -> Tensor:
    """Four small images with pixels at 0 and at 1 among them."""
    generator = torch.Generator().manual_seed(7)
    return (torch.rand(4, 3, 8, 8, generator=generator) * 1.4 - 0.2).clamp(0, 1)


def keys(seed: int = 0) -> Keys:
    """Random numbers of the four images."""
    return Keys.of(seed, IDS)


@pytest.fixture
def net(conv: Any) -> nn.Module:
    """A smooth network, so that second derivatives say something."""
    return conv(classes=4, smooth=True)  # type: ignore[no-any-return]


# The table and the pages


@pytest.mark.parametrize("group", GROUPS)
def test_every_part_has_exactly_one_row(group: str) -> None:
    known, rows = GROUPS[group]
    named = [row.name for row in rows]
    assert sorted(named) == sorted(known), f"tests/tables.py and {group} name different parts"


@pytest.mark.parametrize(("group", "name"), PARTS)
def test_every_part_has_a_page(group: str, name: str) -> None:
    page = ROOT / "docs" / group / f"{name}.md"
    assert page.is_file(), f"write docs/{group}/{name}.md"
    assert name in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_page(name: str) -> None:
    assert (ROOT / "docs" / "defenses" / f"{name}.md").is_file()


@pytest.mark.parametrize("group", [*GROUPS, "defenses"])
def test_no_page_is_about_a_part_that_is_gone(group: str) -> None:
    known = PRESETS if group == "defenses" else GROUPS[group][0]
    pages = {path.stem for path in (ROOT / "docs" / group).glob("*.md")} - {"index"}
    assert pages == set(known)


def test_the_attack_page_shows_every_suite_as_it_is() -> None:
    text = (ROOT / "docs" / "attacks" / "index.md").read_text(encoding="utf-8")
    for name, suite in SUITES.items():
        row = f"| `{name}` | " + ", ".join(f"`{attack}`" for attack in suite.attacks) + " |"
        assert row in text, f"docs/attacks/index.md lacks the row {row}"


# The general contract of stages


def build(group: str, row: Row) -> Stage:
    return GROUPS[group][0][row.name](**row.options)  # type: ignore[no-any-return]


STAGES = [(g, row) for g in ("purifiers", "detectors", "decisions") for row in GROUPS[g][1]]
STAGE_NAMES = [row.name for _, row in STAGES]


@pytest.mark.parametrize(("group", "row"), STAGES, ids=STAGE_NAMES)
def test_settings_round_trip_through_json(group: str, row: Row) -> None:
    stage = build(group, row)
    assert stage.name == row.name
    written = json.loads(json.dumps(stage.describe()))
    again = build_stage(group, GROUPS[group][0], written)
    assert again.describe() == stage.describe()
    assert again.fingerprint() == stage.fingerprint()
    for option, value in row.options.items():
        assert written[option] == value, f"config() of {row.name} leaves out {option}"
    if row.options:
        plain = GROUPS[group][0][row.name]()
        assert plain.fingerprint() != stage.fingerprint(), "settings are not in the fingerprint"


@pytest.mark.parametrize(("group", "row"), STAGES, ids=STAGE_NAMES)
def test_wrong_settings_are_refused_with_their_value(group: str, row: Row) -> None:
    for options in row.wrong:
        with pytest.raises(UnperturbError, match="Expected: ") as caught:
            GROUPS[group][0][row.name](**options)
        (value,) = options.values()
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
        assert shown in caught.value.problem


@pytest.mark.parametrize("row", PURIFIER_ROWS, ids=lambda row: row.name)
def test_purifier_answers_alike_alone_and_in_a_batch(row: Row, net: nn.Module) -> None:
    purifier = build("purifiers", row)
    assert isinstance(purifier, Purifier)
    defense = Defense(net, purifier=purifier)
    whole = defense.predict(images(), keys=keys())
    again = defense.predict(images(), keys=keys())
    assert torch.equal(whole.scores, again.scores), "equal keys must give equal scores"
    alone = [defense.predict(images()[i : i + 1], keys=keys()[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(torch.cat([a.scores for a in alone]), whole.scores)
    if whole.purified is not None:
        assert whole.purified.shape == images().shape
        assert bool(torch.isfinite(whole.purified).all())
    if purifier.stochastic:
        other = defense.predict(images(), keys=keys(seed=1))
        assert not torch.equal(whole.scores, other.scores), "a random purifier must draw"


@pytest.mark.parametrize("row", PURIFIER_ROWS, ids=lambda row: row.name)
def test_every_backward_rule_gives_a_gradient_and_one_answer(row: Row, net: nn.Module) -> None:
    purifier = build("purifiers", row)
    assert isinstance(purifier, Purifier)
    assert purifier.adaptive, "an adaptive audit needs a rule to try"
    assert set(purifier.adaptive) <= set(purifier.backwards)
    defense = Defense(net, purifier=purifier)
    expected = defense(images(), keys=keys()).detach()
    for rule in purifier.backwards:
        leaf = images().requires_grad_()
        terms = defense.terms(leaf, keys=keys(), backward=rule)
        torch.testing.assert_close(terms.scores.detach(), expected, msg=f"{rule} changes scores")
        loss = nn.functional.cross_entropy(terms.scores, LABELS)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert bool(torch.isfinite(gradient).all()), rule
        assert bool((gradient.flatten(1).abs().amax(1) > 0).all()), rule


@pytest.mark.parametrize("row", PURIFIER_ROWS, ids=lambda row: row.name)
def test_purifier_leaves_the_module_as_it_was(row: Row, net: nn.Module, untouched: Any) -> None:
    purifier = build("purifiers", row)
    assert isinstance(purifier, Purifier)
    with untouched(net), torch.inference_mode():
        assert Defense(net, purifier=purifier)(images(), keys=keys()).shape == (4, 4)


def logits(count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Logits before and after, and flags."""
    generator = torch.Generator().manual_seed(3)
    before, after = torch.randn(2, count, 4, generator=generator)
    return before, after, torch.arange(count) % 2 == 0


@pytest.mark.parametrize("row", DETECTOR_ROWS, ids=lambda row: row.name)
def test_detector_scores_flags_and_slack_agree(row: Row) -> None:
    detector = build("detectors", row)
    assert isinstance(detector, Detector)
    assert detector.action in ("route", "reject")
    assert detector.reads <= {"before", "after"}
    before, after, _ = logits(64)
    before.requires_grad_()
    after.requires_grad_()
    score = detector(
        before if "before" in detector.reads else None,
        after if "after" in detector.reads else None,
    )
    assert score.shape == (64,)
    flags, slack = detector.flags(score), detector.slack(score)
    assert torch.equal(flags, slack < 0)
    assert 0 < int(flags.sum()) < 64, "choose a threshold that flags some of these logits"
    read = [t for n, t in (("before", before), ("after", after)) if n in detector.reads]
    gradients = torch.autograd.grad(slack.sum(), read)
    assert all(bool(torch.isfinite(g).all()) and bool((g != 0).any()) for g in gradients)


@pytest.mark.parametrize("row", DECISION_ROWS, ids=lambda row: row.name)
def test_decision_reads_only_what_it_declares(row: Row) -> None:
    decision = build("decisions", row)
    assert isinstance(decision, Decision)
    assert decision.reads
    assert decision.reads <= {"before", "after"}
    before, after, flagged = logits()
    shown = {"before": before, "after": after}
    given = [shown[n] if n in decision.reads else None for n in ("before", "after")]
    scores = decision(*given, flagged)
    assert scores.shape == (4, 4)
    assert bool(torch.isfinite(scores).all())
    for name, branch in decision.branches(*given).items():
        assert branch.shape == (4, 4), name


# The general contract of attacks


SPECS = [(row, spec) for row in ATTACK_ROWS for spec in row.specs]


@pytest.mark.parametrize("threat", [Linf(4 / 255), L2(0.25)], ids=["linf", "l2"])
@pytest.mark.parametrize(("row", "spec"), SPECS, ids=[spec for _, spec in SPECS])
def test_attack_keeps_its_contract(
    row: AttackRow, spec: str, threat: Threat, net: nn.Module, untouched: Any
) -> None:
    attack = make_attack(spec)
    surface, clean = Surface(net), images()
    labels = net(clean).argmax(1).detach()
    if threat.norm not in getattr(attack, "norms", ("linf", "l2")):
        with pytest.raises(AttackError, match="no form for the norm"):
            attack.run(surface, clean, labels, threat=threat, keys=keys())
        return

    def run(seed: int = 0) -> Tensor:
        found = attack.run(surface, clean, labels, threat=threat, keys=keys(seed), stop="fixed")
        assert found.success.dtype == torch.bool
        assert torch.equal(found.success, net(found.images).argmax(1) != labels), "not re-checked"
        assert not bool(found.nan_gradients.any())
        assert bool((found.queries > 0).all())
        return found.images

    with untouched(net):
        first = run()
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    if row.bound == "threat":
        assert bool(threat.contains(first, clean).all())
    if row.moves:
        assert bool((threat.distance(first, clean) > 0).all()), "the attack did not move"
    assert torch.equal(first, run()), "equal keys must give equal images"
    if row.one_step:
        # Many steps may end in one corner of the ball from every start; one step does not.
        attack = replace(attack, steps=1)
    if row.random is not None:
        assert torch.equal(run(), run(seed=1)) is not row.random


@pytest.mark.parametrize("row", ATTACK_ROWS, ids=lambda row: row.name)
def test_attack_settings_round_trip_and_rise(row: AttackRow, net: nn.Module) -> None:
    attack = make_attack(row.name)
    assert getattr(attack, "steps", None) == row.steps
    assert type(attack)(**json.loads(json.dumps(attack.to_dict()))) == attack
    facts = describe_attack(attack)
    assert (facts["access"], facts["bound"]) == (row.access, row.bound)
    assert json.loads(json.dumps(facts)) == facts
    clean = images()
    labels = net(clean).argmax(1).detach()
    found = attack.run(Surface(net), clean, labels, threat=Linf(4 / 255), keys=keys(), stop="fixed")
    before = nn.functional.cross_entropy(net(clean), labels, reduction="none")
    after = nn.functional.cross_entropy(net(found.images), labels, reduction="none")
    assert bool((after > before).any()), "an attack raises the loss on a smooth network"
    if row.moves:
        assert bool((after > before).all()), "an attack raises the loss on a smooth network"


# The package


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module: str) -> None:
    importlib.import_module(module)


def test_the_version_is_that_of_pyproject() -> None:
    import unperturb

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if unperturb.__version__ == "0+uninstalled":
        pytest.skip("unperturb runs from its source folder and is not installed")
    assert unperturb.__version__ == project["version"]


def run_python(code: str) -> str:
    """Output of a fresh interpreter that sees the source folder."""
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["unperturb", "unperturb.cli"])
def test_importing_costs_next_to_nothing(module: str) -> None:
    # `--help` must answer at once, so the command line may not import torch on its way either.
    loaded = run_python(
        f"import sys; before = set(sys.modules); import {module}; import json; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    assert not set(json.loads(loaded)) & set(HEAVY)


def test_the_pipeline_needs_no_optional_package() -> None:
    optional = sorted(set(HEAVY) - {"torch"})
    code = (
        "import sys\n"
        f"for name in {optional!r}: sys.modules[name] = None\n"
        "import unperturb as up, torch\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))\n"
        "print(tuple(up.tpap(net)(torch.rand(2, 3, 2, 2)).shape))"
    )
    assert run_python(code) == "(2, 2)"


def test_every_public_name_of_the_package_is_there() -> None:
    import unperturb

    for name in unperturb.__all__:
        assert getattr(unperturb, name) is not None, name


@pytest.mark.parametrize("module", MODULES)
def test_user_errors_are_typed_and_nothing_global_is_seeded(module: str) -> None:
    path = SOURCE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type is not None else ""
            assert caught not in ("", "Exception", "BaseException"), f"blanket except in {file}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.manual_seed", "np.random.seed", "random.seed"), called


# The repository


def tracked() -> list[Path]:
    """Files that are, or would be, committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


# Written in pieces, so that this file does not contain what it forbids.
LOCAL_PATHS = re.compile(
    r"(?<![\w.~-])/(?:wo" + r"rk|tm" + r"p/team|opt/(?:wheels|pypi))\b(?:/|$)"
    r"|\.\./sha" + r"red\b|\bthis ses" + r"sion\b|\bwork" + r"place\b",
    re.IGNORECASE | re.MULTILINE,
)
HOME = re.compile(r"(?<![\w.~-])/(?:home|Users|root)/\w")
ONLY_THERE = {".ci/run": {".." + "/shared"}}  # CI is told where real data may lie.


def test_no_file_names_the_machine_it_was_written_on() -> None:
    found = []
    for path in tracked():
        if path.suffix in {".safetensors", ".png", ".parquet"}:
            continue
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8", errors="replace")
        for match in [*LOCAL_PATHS.finditer(text), *HOME.finditer(text)]:
            if match.group().strip() not in ONLY_THERE.get(name, set()):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name}:{line}: {match.group()}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("root", ["/wo" + "rk", "/op" + "t/wheels", "see .." + "/shared"])
def test_the_search_for_local_paths_finds_them(root: str) -> None:
    assert LOCAL_PATHS.search(f"{root}/data")


def test_no_pickle_and_no_data_set_is_committed() -> None:
    refused = {".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt", ".parquet", ".npz", ".h5"}
    # Rows of an audit's records are parquet too; they hold no images.
    records = ROOT / "docs" / "results" / "records"
    assert not [
        path.name
        for path in tracked()
        if path.suffix.lower() in refused and records not in path.parents
    ]


def test_the_lock_pins_every_requirement_exactly() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for pin in pins:
        (only,) = pin.specifier
        assert only.operator == "==", f"{pin} is not pinned"
        assert "+" not in only.version, f"{pin} is pinned to one build"
        versions[canonicalize_name(pin.name)] = only.version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["hub"], *extras["transformers"]]
    wanted += [*extras["docs"], *extras["dev"]]
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name == "unperturb":
            continue
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"requirements.lock lacks {requirement.name}: run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} against {version}"
