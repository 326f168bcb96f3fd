"""``unperturb explain``: a group, to which each kind of explanation adds one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.explain_change import logit_change
from unperturb.cli.explain_logits import mean_logits, supporting_classes
from unperturb.cli.options import (
    check_fit,
    check_threat,
    classifier_of,
    classifier_options,
    data_options,
    load_subject,
    read_data,
    run_options,
    setup,
    threat_of,
    threat_options,
)
from unperturb.cli.pictures import outputs, tell, watched

if TYPE_CHECKING:
    from unperturb.classifiers import Classifier
    from unperturb.data import ImageSet
    from unperturb.defense import Defense


@click.group(short_help="Show where a classifier looks, and by what a corrector corrects.")
def explain() -> None:
    """Show where a classifier looks and how it orders images, clean, attacked and purified; and by
    which classes a corrector of logits corrects.

    \b
    Example:
      unperturb explain gradcam --classifier runs/fgsm --defense tpap --data cifar10/ --out cam.png
      unperturb explain embedding --classifier runs/fgsm --defense tpap --data cifar10/ \\
        --versus runs/pgd --limit 500 --out map.png
      unperturb explain supporting-classes --corrector runs/corrector --bank runs/bank \\
        --out supporting.png
      unperturb explain panels --classifier runs/standard --defense 'atop?purifier=runs/atop' \\
        --data cifar10/ --out panels.png
      unperturb explain logit-change --defense runs/alu --data cifar10/ --limit 512 --out change.png
    """


ATTACKER_HELP = (
    "oblivious (attacks the undefended classifier, the published protocol) or adaptive (attacks "
    "the defense)."
)


@explain.command(short_help="Grad-CAM heat maps of clean, attacked and purified images.")
@classifier_options()
@data_options()
@threat_options()
@click.option("--images", "shown", type=click.IntRange(1, 50), default=6, show_default=True,
              help="Images to show, the first of the data, one row each.")  # fmt: skip
@click.option("--attack", "name", default="pgd-20", show_default=True,
              help="One attack; see 'unperturb list attacks'.")  # fmt: skip
@click.option("--attacker", default="oblivious", show_default=True, help=ATTACKER_HELP)
@click.option("--target", default="predicted", show_default=True,
              help="Explain the predicted or the true class of each image.")  # fmt: skip
@click.option("--layer", help="Dotted name of a layer.  [default: the last that gives maps]")
@click.option("--maps", is_flag=True, help="Also write maps and images to a .safetensors file "
              "beside the picture.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True,
              help="Images at a time.")  # fmt: skip
@run_options(out="gradcam.png", out_help="The picture: .png, .svg or .pdf.")
def gradcam(**options: Any) -> int:
    """Heat maps of where the evidence for a class lies: clean and attacked, and both purified.

    Above each image stands what the classifier says of it, green where that is right.

    \b
    Example:
      unperturb explain gradcam --classifier runs/fgsm --defense tpap --data cifar10/ \\
        --images 6 --attack pgd-20 --eps 8/255 --out cam.png
    """
    import json

    from unperturb.attacks import make_attack
    from unperturb.explain import figure_gradcam, gradcam_columns, save_figure
    from unperturb.files import write_tensors

    out, maps = outputs(options, ".safetensors")
    threat = threat_of(options["norm"], options["eps"])
    chosen = make_attack(options["name"], draws=20)
    subject, _ = _load(options["classifier"], options["defense"], options)
    shown = options["shown"]
    options["limit"] = shown if options["limit"] is None else min(options["limit"], shown)
    data = _data(subject, options)
    check_threat(threat, data.images(slice(0, 1)))
    found = gradcam_columns(
        subject, data.images(), data.labels, attack=chosen, threat=threat,
        attacker=options["attacker"], target=options["target"], layer=options["layer"],
        ids=data.ids, seed=options["seed"], batch_size=options["batch_size"],
        show=watched(options),
    )  # fmt: skip
    save_figure(figure_gradcam(found, classes=_classes(data, subject)), out)
    facts = {**found.to_dict(), "out": str(out)}
    if options["maps"]:
        about = {"ids": json.dumps(found.ids), "settings": json.dumps(found.settings)}
        write_tensors(maps, found.tensors(), about)
        facts["maps"] = str(maps)
    right = ", ".join(f"{c['accuracy']:.0%} {c['name']}" for c in facts["columns"])
    tell(options, facts, f"{chosen.name}, {facts['n']} images, right: {right}; {out}")
    return 0


@explain.command(short_help="What transforms and a restoration network make of images (AToP).")
@classifier_options()
@data_options()
@threat_options()
@click.option("--images", "shown", type=click.IntRange(1, 50), default=4, show_default=True,
              help="Images to show, the first of the data, two rows each.")  # fmt: skip
@click.option("--transform", "transforms", multiple=True, default=("rt1", "rt2", "rt3"),
              show_default=True, help="A random transform; may be given again.")  # fmt: skip
@click.option("--all-passes", is_flag=True, help="rt3: show every pass, not the first alone.")
@click.option("--attack", "name", default="fgsm", show_default=True,
              help="One attack; see 'unperturb list attacks'.")  # fmt: skip
@click.option("--attacker", default="oblivious", show_default=True, help=ATTACKER_HELP)
@click.option("--tensors", is_flag=True, help="Also write all images, exact, to a .safetensors "
              "file beside the picture.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True,
              help="Images at a time.")  # fmt: skip
@run_options(out="panels.png", out_help="The picture: .png, .svg or .pdf.")
def panels(**options: Any) -> int:
    """Every stage between an image and what the classifier reads, clean and attacked.

    Of a defense with a restoration network (AToP): original, noisy, masked and restored images
    under each random transform; above each what the classifier says of it, green where that is
    right.

    \b
    Example:
      unperturb explain panels --classifier runs/standard --defense 'atop?purifier=runs/atop' \\
        --data cifar10/ --images 4 --transform rt1 --transform rt2 --out panels.png
    """
    import json

    from unperturb.attacks import make_attack
    from unperturb.explain import figure_panels, restoration_panels, save_figure
    from unperturb.files import write_tensors

    out, tensors = outputs(options, ".safetensors")
    threat = threat_of(options["norm"], options["eps"])
    chosen = make_attack(options["name"], draws=20)
    subject, _ = _load(options["classifier"], options["defense"], options)
    shown = options["shown"]
    options["limit"] = shown if options["limit"] is None else min(options["limit"], shown)
    data = _data(subject, options)
    check_threat(threat, data.images(slice(0, 1)))
    found = restoration_panels(
        subject, data.images(), data.labels, transforms=options["transforms"],
        all_passes=options["all_passes"], attack=chosen, threat=threat,
        attacker=options["attacker"], ids=data.ids, seed=options["seed"],
        batch_size=options["batch_size"], show=watched(options),
    )  # fmt: skip
    save_figure(figure_panels(found, classes=_classes(data, subject)), out)
    facts = {**found.to_dict(), "out": str(out)}
    if options["tensors"]:
        about = {"ids": json.dumps(found.ids), "settings": json.dumps(found.settings)}
        write_tensors(tensors, found.tensors(), about)
        facts["tensors"] = str(tensors)
    right = ", ".join(
        f"{c['transform'] or c['stage']} {c['accuracy']['clean']:.0%} clean "
        f"{c['accuracy']['attacked']:.0%} attacked"
        for c in facts["columns"]
        if c["stage"] in ("original", "restored")
    )
    tell(options, facts, f"{chosen.name}, {facts['n']} images, right: {right}; {out}")
    return 0


@explain.command(short_help="Features of clean and attacked images in the plane (t-SNE).")
@classifier_options()
@click.option("--versus", multiple=True, help="Another classifier, named as in --classifier, or a "
              "saved defense: a row of its own, above. May be given again.")  # fmt: skip
@data_options()
@threat_options()
@click.option("--attack", "names", multiple=True, default=("pgd-20",), show_default=True,
              help="An attack, one column each; may be given again.")  # fmt: skip
@click.option("--attacker", default="oblivious", show_default=True, help=ATTACKER_HELP)
@click.option("--perplexity", type=float, default=30.0, show_default=True,
              help="Neighbors that t-SNE keeps for a point; fewer than images.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True,
              help="Images at a time.")  # fmt: skip
@run_options(out="embedding.png", out_help="The picture: .png, .svg or .pdf; a .csv of all "
             "points and a .json of all figures go beside it.")  # fmt: skip
def embedding(**options: Any) -> int:
    """Penultimate features of clean and attacked images, by t-SNE, a row for each classifier.

    Of a defense the features are those of the purified images. Each panel states its accuracy, and
    the silhouette and the 10-nearest-neighbor agreement of the true classes among the features.

    \b
    Example:
      unperturb explain embedding --classifier runs/fgsm --defense tpap --versus runs/pgd \\
        --data cifar10/ --limit 500 --attack fgsm --attack pgd-20 --eps 8/255 --out map.png
    """
    from unperturb.attacks import resolve_attacks
    from unperturb.explain import embedding as embed
    from unperturb.explain import figure_embedding, save_figure
    from unperturb.files import write_json, write_text

    out, table, figures = outputs(options, ".csv", ".json")
    threat = threat_of(options["norm"], options["eps"])
    attacks = resolve_attacks(",".join(options["names"]), draws=20)
    subjects: dict[str, Classifier | Defense] = {}
    for spec in options["versus"]:
        _add(subjects, *_load_other(spec, options))
    _add(subjects, *_load(options["classifier"], options["defense"], options))
    first, *others = subjects.values()
    data = _data(first, options)
    for other in others:
        check_fit(classifier_of(other), data.images(slice(0, 2)).to(_device(other)))
    check_threat(threat, data.images(slice(0, 1)))
    found = embed(
        subjects, data.images(), data.labels, attacks=attacks, threat=threat,
        attacker=options["attacker"], ids=data.ids, perplexity=options["perplexity"],
        seed=options["seed"], batch_size=options["batch_size"], show=watched(options),
    )  # fmt: skip
    save_figure(figure_embedding(found, classes=_classes(data, first)), out)
    write_text(table, found.to_csv())
    facts = {**found.to_dict(), "out": str(out), "table": str(table)}
    write_json(figures, found.to_dict())
    near = f"{found.settings['neighbors']}-NN"
    lines = [
        f"{row.name}: "
        + ", ".join(
            f"{p.name} {p.accuracy:.1%} right, {near} {p.neighbors:.1%}" for p in row.panels
        )
        for row in found.rows
    ]
    tell(options, facts, "\n".join([*lines, f"n = {facts['n']}; {out}, {table}, {figures}"]))
    return 0


def _load(
    classifier: str | None, defense: str | None, options: dict[str, Any]
) -> tuple[Classifier | Defense, str]:
    """A subject and a short name for its row."""
    from unperturb.files import short_paths

    device = setup(options["device"], options["threads"])
    subject, name = load_subject(
        classifier, defense, trust_remote_code=options["trust_remote_code"], device=device
    )
    if classifier is None:
        return subject, name
    bare = short_paths(classifier.rstrip("/"))
    return subject, bare if defense is None else f"{bare} + {name}"


def _load_other(spec: str, options: dict[str, Any]) -> tuple[Classifier | Defense, str]:
    from unperturb.saving import is_defense_folder

    saved = is_defense_folder(Path(spec))
    return _load(None if saved else spec, spec if saved else None, options)


def _add(
    subjects: dict[str, Classifier | Defense], subject: Classifier | Defense, name: str
) -> None:
    """Another row; the second of a name is counted."""
    count, own = 1, name
    while own in subjects:
        count += 1
        own = f"{name} ({count})"
    subjects[own] = subject


def _device(subject: Classifier | Defense) -> Any:
    from unperturb.explain.given import device_of

    return device_of(classifier_of(subject))


def _data(subject: Classifier | Defense, options: dict[str, Any]) -> ImageSet:
    data = read_data(options)
    check_fit(classifier_of(subject), data.images(slice(0, 2)).to(_device(subject)))
    return data


def _classes(data: ImageSet, subject: Classifier | Defense) -> tuple[str, ...]:
    """Names of the classes: those of the data, else those on the classifier's card."""
    classifier = classifier_of(subject)
    if len(data.classes) == classifier.num_classes:
        return data.classes
    card = classifier.origin.card.get("classes")
    return tuple(str(name) for name in card) if isinstance(card, list | tuple) else data.classes


for command in (supporting_classes, mean_logits, logit_change):
    explain.add_command(command)
