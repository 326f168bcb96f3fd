"""``unperturb demo``: the whole job on data that ships with a dependency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import check_output, echo_json, setup
from unperturb.errors import RecordError

if TYPE_CHECKING:
    from unperturb.audit import AuditResult
    from unperturb.classifiers import Classifier

EPS = 0.15
EPOCHS = 20
ATTACKS = "quick"


@click.command(short_help="Train, defend and audit on digits; writes report.html.")
@click.option("--out", default="demo", show_default=True, help="Folder of weights and report.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the run.")
@click.option("--device", help="cpu, cuda ...  [default: cuda if there, else cpu]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress, no table.")
def demo(
    out: str, seed: int, device: str | None, threads: int | None, as_json: bool, quiet: bool
) -> int:
    """Train on scikit-learn's digits, defend, audit under both attackers, write report.html.

    Takes a minute or two on two cores and needs no network. It goes on where it was cut off.

    \b
    Example:
      unperturb demo --out demo
    """
    folder = Path(out)
    check_output(folder)
    place = setup(device, threads)
    show = not (quiet or as_json)

    def say(words: str) -> None:
        if show:
            click.echo(words, err=True)

    say("1/3  train: a small network on digits, first as usual, then on FGSM examples")
    net = _trained(folder, seed, place, show)
    say("2/3  defend with TPAP, and audit: attackers who ignore the defense, and who know it")
    found = _audited(net, folder, seed, place, show)
    say("3/3  report")
    paths = found.save_report(folder)
    if as_json:
        echo_json({**found.to_json(), "report": str(paths[0])})
    elif not quiet:
        from unperturb.audit.report import terminal_table

        # The lesson below says the same in plainer words.
        click.echo(terminal_table({**found.summary, "lesson": ""}))
        click.echo("")
        click.echo(lesson(found.summary, bool(net.origin.card["monitor"]["robust_overfitting"])))
        click.echo(f"\nreport: {paths[0]}")
        click.echo(
            "next:   unperturb audit --classifier cifar-resnet20@YOUR.safetensors --defense tpap "
            "\\\n          --data PATH/TO/cifar10 --limit 200 --eps 8/255 --out runs/mine"
        )
    return 0


def _trained(folder: Path, seed: int, device: str, show: bool) -> Classifier:
    from unperturb.classifiers import load_classifier, new_classifier
    from unperturb.data import load_images
    from unperturb.training import TrainConfig, train_classifier

    data = load_images("digits", split="train")
    shared: dict[str, Any] = {
        "batch_size": 64,
        "schedule": "one-cycle",
        "augment": "none",
        "holdout": 200,
        "monitor_images": 200,
        "monitor_eps": EPS,
        "seed": seed,
    }
    plans = (
        ("standard", TrainConfig(objective="standard", epochs=EPOCHS, lr=0.1, **shared)),
        ("fgsm", TrainConfig(objective="fgsm", eps=EPS, epochs=EPOCHS, lr=0.05, **shared)),
    )
    previous = None
    for name, config in plans:
        place = folder / name
        if not (place / "training.json").exists():
            net = (
                new_classifier("small-cnn", num_classes=10, in_channels=1, seed=seed)
                if previous is None
                else load_classifier(str(previous))
            )
            train_classifier(net, data, config, out=place, device=device, show=show)
        previous = place
    found = load_classifier(str(previous), device=device)
    begun = found.origin.card["config"]["seed"]
    if begun != seed:
        raise RecordError(
            f"{folder} holds a demo of the seed {begun}",
            expected=f"the seed {seed}, or a new folder",
            fix="choose another --out, or delete that folder",
        )
    return found


def _audited(net: Classifier, folder: Path, seed: int, device: str, show: bool) -> AuditResult:
    from unperturb.audit import audit
    from unperturb.data import load_images
    from unperturb.presets import tpap
    from unperturb.threat import Linf

    data = load_images("digits", split="test")
    return audit(
        tpap(net, radius=EPS),
        data.images(),
        data.labels,
        ids=data.ids,
        threat=Linf(EPS),
        attacks=ATTACKS,
        seed=seed,
        batch_size=125,
        out=folder / "audit",
        device=device,
        name="tpap",
        data={"source": data.source, "split": data.split, "classes": list(data.classes)},
        show=show,
        announce=(lambda words: click.echo(words, err=True)) if show else None,
    )


def lesson(summary: dict[str, Any], reached: bool) -> str:
    """What the demo shows, in plain words; every sentence follows from the figures."""
    target, baseline = summary["target"], summary["baseline"]

    def percent(acc: dict[str, Any]) -> str:
        return f"{acc['accuracy']:.0%}"

    oblivious, adaptive = target["worst_by_attacker"]["oblivious"], target["worst_case"]
    state = "reached" if reached else "never reached"
    lines = [
        "What this shows: TPAP needs a network in robust overfitting, which is right on nearly all",
        f"FGSM examples and on next to no PGD examples. That was {state} on digits (its paper",
        "reports failure at large eps on MNIST too).",
        f"Worst case where the attacker ignores the defense:  {percent(oblivious)} with TPAP, "
        f"{percent(baseline['worst_by_attacker']['oblivious'])} without.",
        f"Worst case over all attacks, informed ones as well: {percent(adaptive)} with TPAP, "
        f"{percent(baseline['worst_case'])} without.",
    ]
    gain = adaptive["accuracy"] - baseline["worst_case"]["accuracy"]
    if gain < -0.01:
        lines.append(
            f"Here TPAP costs {-gain * 100:.0f} points against an informed attacker: do not "
            "deploy it so."
        )
    elif gain <= 0.01:
        lines.append("Here TPAP adds nothing against an informed attacker: do not deploy it so.")
    else:
        lines.append(f"Here TPAP adds {gain * 100:.0f} points against an informed attacker.")
    return "\n".join(lines)
