"""``unperturb audit``, ``report`` and ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import (
    check_fit,
    check_output,
    check_threat,
    classifier_of,
    classifier_options,
    data_options,
    echo_json,
    load_subject,
    read_data,
    run_options,
    setup,
    threat_of,
    threat_options,
)
from unperturb.errors import ConfigError, DataError, unknown_name

if TYPE_CHECKING:
    from unperturb.classifiers import Classifier
    from unperturb.defense import Defense
    from unperturb.threat import Threat


@click.command(short_help="Measure how much robustness a defense adds.")
@classifier_options()
@data_options()
@threat_options()
@click.option(
    "--attacks",
    default="quick",
    show_default=True,
    help="A suite (quick, standard, exhaustive ...) or attacks, such as fgsm,pgd-20; see "
    "'unperturb list'.",
)
@click.option(
    "--attacker",
    default="oblivious,adaptive",
    show_default=True,
    help="oblivious (ignores the defense, the published protocol), adaptive (knows it), or both.",
)
@click.option("--baseline", help="What gains are measured against: a classifier, named as in "
              "--classifier, or a saved defense.  [default: the defense's own]")  # fmt: skip
@click.option("--outside", multiple=True, metavar="NAME=PATH",
              help="Adversarial images made by another tool: a folder named by image id, or a "
              "parquet, safetensors or npy file. May be given again.")  # fmt: skip
@click.option("--probe-images", type=click.IntRange(min=0),
              help="Images on which the strength of one attack is varied (security curve, huge "
              "eps, more steps).  [default: the suite's own]")  # fmt: skip
@click.option("--no-probes", is_flag=True, help="Leave that out.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True,
              help="Images in a unit of work; part of what a digest depends on.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes.")  # fmt: skip
@click.option("--shard", help="Do part i of n only, as 1/4; put parts together with merge.")
@click.option("--time-budget", type=float, help="Start no new unit after so many seconds.")
@click.option(
    "--keep-images",
    type=click.Choice(["worst", "all", "none"]),
    default="worst",
    show_default=True,
    help="Adversarial images to keep: the worst per image and attacker, all, or none.",
)
@click.option(
    "--publish",
    metavar="URL",
    help="Copy records and report to an object store, such as s3://bucket/runs/tpap.",
)
@click.option("--fail-under", type=float, help="Exit with 3 if the worst case is below this.")
@run_options(out="runs/audit", out_help="Folder of records and report.")
def audit(**options: Any) -> int:
    """Find out how much robustness a defense adds: for attackers who ignore it and who know it.

    \b
    Example:
      unperturb audit --classifier cifar-resnet20@weights.safetensors --defense tpap \\
        --data cifar10/ --limit 1000 --attacks fgsm,pgd-20,mim --eps 8/255 --out runs/tpap

    A run that was cut off goes on with the same command.
    """
    gate = options["fail_under"]
    if gate is not None and not 0 <= gate <= 1:
        raise ConfigError(
            f"--fail-under is {gate:g}",
            expected="an accuracy between 0 and 1",
            fix=f"write {gate / 100:g}" if 1 < gate <= 100 else "",
        )
    shard = _shard(options["shard"])
    attackers = _attackers(options)
    outside = _outside(options["outside"])
    probes = _probes(options)
    threat = _threat(options)
    if options["publish"] is not None:
        from unperturb.audit.remote import check_url

        check_url(options["publish"])
    check_output(Path(options["out"]))
    device = setup(options["device"], options["threads"])
    subject, name = load_subject(
        options["classifier"],
        options["defense"],
        trust_remote_code=options["trust_remote_code"],
        device=device,
    )
    classifier = classifier_of(subject)
    baseline = _baseline(options, device)
    data = read_data(options)
    quiet = options["quiet"] or options["as_json"]

    from unperturb.audit import audit as run
    from unperturb.audit.report import terminal_table

    images = data.images()
    check_fit(classifier, images)
    check_threat(threat, images)
    found = run(
        subject,
        images,
        data.labels,
        ids=data.ids,
        threat=threat,
        attacks=options["attacks"],
        attackers=attackers,
        baseline=baseline,
        probe_images=probes,
        outside=outside,
        seed=options["seed"],
        batch_size=options["batch_size"],
        workers=options["workers"],
        shard=shard,
        time_budget=options["time_budget"],
        keep_images=options["keep_images"],
        device=device,
        out=options["out"],
        name=name,
        data={"source": data.source, "split": data.split, "classes": list(data.classes),
              "skipped": list(data.skipped)},
        show=not quiet,
        announce=None if quiet else lambda words: click.echo(words, err=True),
    )  # fmt: skip
    paths = found.save_report()
    if options["as_json"]:
        echo_json(found.to_json())
    elif not options["quiet"]:
        click.echo(terminal_table(found.summary))
        for given in found.plan["settings"]["outside"]:
            click.echo(f"outside: {_told(given)}")
        for words in found.summary["left_out"]:
            click.echo(f"left out: {words}")
        click.echo(f"report: {paths[0]}")
    if options["publish"] is not None:
        from unperturb.audit.objects import publish

        publish(options["out"], options["publish"])
        if not quiet:
            click.echo(f"published: {options['publish']}")
    worst = found.worst_case_accuracy
    if gate is None:
        return 0
    if not found.complete:
        click.echo("the audit is not complete: the gate cannot be judged", err=True)
        return 1
    if worst is None:
        click.echo("no attack of the threat model was run: the gate cannot be judged", err=True)
        return 1
    if found.summary["has_defense"] and "adaptive" not in found.plan["settings"]["attackers"]:
        click.echo(
            "warning: the gate was judged without an attacker who knows the defense "
            "(--attacker adaptive)",
            err=True,
        )
    if worst < gate:
        click.echo(f"worst case {worst:.1%} is below the gate of {gate:.1%}", err=True)
        return 3
    return 0


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise ConfigError(f"--shard is {text!r}", expected="i/n with 1 <= i <= n, such as 1/4")
    return index, count


def _baseline(options: dict[str, Any], device: str) -> Classifier | Defense | None:
    """What ``--baseline`` names: a classifier, or the folder of a saved defense."""
    from unperturb.saving import is_defense_folder

    named = options["baseline"]
    if named is None:
        return None
    defense = is_defense_folder(Path(named))
    found, _ = load_subject(
        None if defense else named,
        named if defense else None,
        trust_remote_code=options["trust_remote_code"],
        device=device,
    )
    return found


def _outside(given: tuple[str, ...]) -> dict[str, str]:
    """Name to path of each ``--outside``, checked before anything large is read."""
    from unperturb.audit.outside import outside_name

    found: dict[str, str] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator or not path:
            raise ConfigError(
                f"--outside is {text!r}",
                expected="NAME=PATH",
                fix=f"name them after their tool, such as --outside foolbox={text or 'images/'}",
            )
        if outside_name(name) in found:
            raise ConfigError(
                f"--outside names {name!r} twice", expected="a name of its own for each"
            )
        if not Path(path).expanduser().exists():
            raise DataError(
                f"There is no file or folder {path!r} (--outside {name})",
                expected="a folder of lossless images named by image id, or a file of them",
                fix="check the path",
            )
        found[name] = path
    return found


def _told(given: dict[str, Any]) -> str:
    """What was read from outside, in words."""
    words = f"{given['name'].removeprefix('import:')}, {given['n']} images"
    if given["missing"]:
        words += f" ({given['missing']} of the audit's are not among them)"
    return f"{words}. {given['note']}" if given["note"] else f"{words}, all inside the ball"


def _probes(options: dict[str, Any]) -> int | None:
    """Number of images of the probes; None for the suite's own."""
    if not options["no_probes"]:
        return options["probe_images"]  # type: ignore[no-any-return]
    if options["probe_images"]:
        raise ConfigError(
            f"--probe-images is {options['probe_images']}, and --no-probes is given",
            expected="one of the two",
        )
    return 0


def _threat(options: dict[str, Any]) -> Threat:
    """The threat model: what a paper's suite states, where the user states none."""
    from unperturb.attacks import SUITES
    from unperturb.threat import make_threat

    suite = SUITES.get(options["attacks"].strip().lower())
    stated = None if suite is None else suite.threat
    if stated is not None and options["eps"] is None and options["norm"].lower() == stated[0]:
        return make_threat(*stated)
    threat = threat_of(options["norm"], options["eps"])
    told = not (options["quiet"] or options["as_json"])
    if told and stated is not None and (threat.norm, threat.eps) != stated:
        eps = f"{stated[1] * 255:g}/255" if stated[0] == "linf" else f"{stated[1]:g}"
        click.echo(f"note: the paper of {options['attacks']} states {stated[0]} {eps}", err=True)
    return threat


def _attackers(options: dict[str, Any]) -> list[str]:
    """Names are checked before anything large is read."""
    from unperturb.attacks import resolve_attacks
    from unperturb.audit.plan import ATTACKERS

    resolve_attacks(options["attacks"])
    found = [name.strip().lower() for name in options["attacker"].split(",") if name.strip()]
    for name in found:
        if name not in ATTACKERS:
            raise unknown_name("attacker", name, ATTACKERS)
    if not found:
        raise ConfigError(
            f"--attacker is {options['attacker']!r}", expected="oblivious, adaptive, or both"
        )
    return found


@click.command(short_help="Write the report of an audit again, from its records.")
@click.argument("folder")
@click.option("--out", help="Where to write the report; needed for a URL.  [default: FOLDER]")
@click.option(
    "--json", "as_json", is_flag=True, help="Print all figures as one JSON object instead."
)
def report(folder: str, out: str | None, as_json: bool) -> int:
    """Write the report of an audit again, from its records in FOLDER or in an object store.

    \b
    Example:
      unperturb report runs/tpap
    """
    from unperturb.audit.objects import read_records
    from unperturb.audit.remote import is_url
    from unperturb.audit.report import terminal_table

    if out is not None:
        check_output(Path(out))
    elif is_url(folder) and not as_json:
        raise ConfigError(
            f"{folder} is in an object store", expected="--out, a folder for the report"
        )
    found = read_records(folder)
    paths = found.save_report(out) if out is not None or not as_json else []
    if as_json:
        echo_json(found.summary)
        return 0
    click.echo(terminal_table(found.summary))
    for path in paths:
        click.echo(path)
    return 0


@click.command(short_help="Put the shards of one audit together.")
@click.argument("folders", nargs=-1, required=True)
@click.option("--out", required=True, help="A new folder for the whole.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def merge(folders: tuple[str, ...], out: str, as_json: bool) -> int:
    """Put the shards of one audit together; the digest is that of an undivided run.

    \b
    Example:
      unperturb merge runs/part1 runs/part2 --out runs/whole
    """
    from unperturb.audit import merge as put_together
    from unperturb.audit.report import terminal_table

    check_output(Path(out))
    found = put_together(folders, out)
    paths = found.save_report()
    if as_json:
        echo_json(found.to_json())
        return 0
    click.echo(terminal_table(found.summary))
    for words in found.summary["left_out"]:
        click.echo(f"left out: {words}")
    click.echo(f"report: {paths[0]}")
    return 0
