"""``unperturb attack``."""

from __future__ import annotations

import csv
import io
import shutil
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

if TYPE_CHECKING:
    from unperturb.attacks import Attack, Surface
    from unperturb.classifiers import Classifier
    from unperturb.data import ImageSet
    from unperturb.threat import Threat


@click.command()
@classifier_options()
@data_options()
@threat_options()
@click.option("--attack", "name", default="pgd-20", show_default=True,
              help="One attack; see 'unperturb list attacks'.")  # fmt: skip
@click.option("--backward", help="Gradient through the purifier.  [default: its strongest]")
@click.option(
    "--goal",
    default="wrong",
    show_default=True,
    help="wrong, wrong-unflagged (past a detector that rejects) or branch:NAME.",
)
@click.option("--stop", default="first-success", show_default=True,
              help="fixed (all steps; to be shown to other models) or first-success; an attack "
              "that has neither keeps its own rule.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True,
              help="Images at a time.")  # fmt: skip
@run_options(out="runs/attack", out_help="A new folder for the adversarial images.")
def attack(**options: Any) -> int:
    """Write adversarial images against a classifier or a defense.

    Writes images.safetensors (exact, float32), png/ (rounded to 8 bits, scored too) and
    table.csv. An audit reads the folder back with --outside NAME=FOLDER.

    \b
    Example:
      unperturb attack --classifier runs/fgsm --defense tpap --data cifar10/ --limit 64 \\
        --attack pgd-20 --eps 8/255 --out runs/adversarial
    """
    from unperturb.attacks import Surface, describe_attack, make_attack
    from unperturb.attacks.base import STOPPING
    from unperturb.defense import Defense
    from unperturb.errors import unknown_name

    threat = threat_of(options["norm"], options["eps"])
    chosen = make_attack(options["name"], draws=20)
    told = describe_attack(chosen)
    stop = options["stop"]
    if stop not in STOPPING:
        raise unknown_name("stopping rule", stop, STOPPING)
    stop = stop if stop in told["rules"] else told["rules"][0]
    out = _new_folder(Path(options["out"]))
    device = setup(options["device"], options["threads"])
    subject, _ = load_subject(
        options["classifier"],
        options["defense"],
        trust_remote_code=options["trust_remote_code"],
        device=device,
    )
    backward = options["backward"] or (
        subject.purifier.adaptive[0] if isinstance(subject, Defense) else "exact"
    )
    surface = Surface(subject, backward=backward, goal=options["goal"])
    check = getattr(chosen, "check", None)
    if check is not None:
        check(surface, threat)
    data = read_data(options)
    rows, tensors = _attack(surface, classifier_of(subject), data, chosen, threat, stop, options)
    settings = {
        "attack": chosen.name,
        "access": told["access"],
        "bound": told["bound"],
        # An attack that sees no gradient takes none through the purifier.
        "backward": backward if told["access"] == "gradients" else "none",
        "goal": options["goal"],
        "stop": stop,
        **threat.to_dict(),
        "seed": options["seed"],
    }
    _write(out, rows, tensors, data, settings)
    count = len(rows)
    facts = {
        **settings,
        "n": count,
        "clean_accuracy": sum(r["clean_prediction"] == r["label"] for r in rows) / count,
        "robust_accuracy": 1 - sum(r["broken"] for r in rows) / count,
        "accuracy_as_returned": 1 - sum(r["success"] for r in rows) / count,
        "outside_ball": sum(not r["inside"] for r in rows),
        "out": str(out),
    }
    if options["as_json"]:
        echo_json(facts)
    elif not options["quiet"]:
        click.echo(_sentence(facts))
    return 0


def _sentence(facts: dict[str, Any]) -> str:
    """What was done and found, in one line."""
    rules = ", ".join(word for word in (facts["backward"], facts["stop"]) if word != "none")
    attacked = f"{facts['robust_accuracy']:.1%} attacked"
    if facts["outside_ball"]:
        attacked += (
            f" within eps ({facts['accuracy_as_returned']:.1%} as returned: "
            f"{facts['outside_ball']} images lie outside the ball)"
        )
    return (
        f"{facts['attack']} ({rules}): accuracy {facts['clean_accuracy']:.1%} clean, {attacked}, "
        f"n = {facts['n']}; {facts['out']}"
    )


def _new_folder(out: Path) -> Path:
    from unperturb.errors import RecordError

    check_output(out)
    if out.is_dir() and any(out.iterdir()):
        raise RecordError(
            f"{out} is not empty",
            expected="a new folder for adversarial images",
            fix="choose another --out",
        )
    return out


def _attack(
    surface: Surface,
    classifier: Classifier,
    data: ImageSet,
    chosen: Attack,
    threat: Threat,
    stop: str,
    options: dict[str, Any],
) -> tuple[list[dict[str, Any]], Any]:
    import torch

    from unperturb.checks import check_labels
    from unperturb.progress import progress
    from unperturb.randomness import Keys

    device = next(classifier.parameters(), torch.empty(0)).device
    images = data.images().to(device)
    labels = data.labels.to(device)
    check_fit(classifier, images)
    check_threat(threat, images)
    check_labels(labels, count=len(images), num_classes=classifier.num_classes)
    keys = Keys.of(options["seed"], data.ids, domain=f"attack/{chosen.name}")
    rows: list[dict[str, Any]] = []
    parts = []
    show = not (options["quiet"] or options["as_json"])
    with progress(total=len(data), desc=chosen.name, show=show, unit="image") as bar:
        for start in range(0, len(data), options["batch_size"]):
            part = slice(start, start + options["batch_size"])
            clean = surface.judge(images[part], labels[part], keys[part].within("score"))
            found = chosen.run(
                surface, images[part], labels[part], threat=threat, keys=keys[part],
                stop=stop,
            )  # fmt: skip
            rounded = (found.images * 255).round() / 255
            eight = surface.judge(rounded, labels[part], keys[part].within("score"))
            parts.append(found.images.cpu().contiguous())
            linf = (found.images - images[part]).flatten(1).abs().amax(1)
            l2 = (found.images - images[part]).flatten(1).norm(dim=1)
            inside = threat.contains(found.images, images[part])
            measure = None if found.measure is None else found.measure.tolist()
            for row, name in enumerate(data.ids[part]):
                rows.append(
                    {
                        "id": name,
                        "png": f"png/{start + row:06d}.png",
                        "label": int(labels[start + row]),
                        "clean_prediction": int(clean.predictions[row]),
                        "prediction": int(found.judged.predictions[row]),
                        "success": bool(found.success[row]),
                        "success_8bit": bool(eight.success[row]),
                        "inside": bool(inside[row]),
                        # What lies outside the ball is no attack of this threat model: there the
                        # verdict on the clean image counts.
                        "broken": bool((found if inside[row] else clean).success[row]),
                        "linf": float(linf[row]),
                        "l2": float(l2[row]),
                        "measure": "" if measure is None else measure[row],
                        "queries": int(found.queries[row]),
                    }
                )
            bar.update(len(clean.predictions))
    return rows, torch.cat(parts)


def _write(
    out: Path, rows: list[dict[str, Any]], images: Any, data: Any, settings: dict[str, Any]
) -> None:
    """Write all, or leave the folder as it was: new or empty."""
    there = out.exists()
    complete = False
    try:
        _write_files(out, rows, images, data, settings)
        complete = True
    finally:
        if not complete:
            for name in ("table.csv", "images.safetensors"):
                (out / name).unlink(missing_ok=True)
            shutil.rmtree(out / "png" if there else out, ignore_errors=True)


def _write_files(
    out: Path, rows: list[dict[str, Any]], images: Any, data: Any, settings: dict[str, Any]
) -> None:
    import json

    import torch
    from PIL import Image

    from unperturb.files import write_atomic, write_tensors, write_text

    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    for row, pixels in zip(rows, (images * 255).round().to(torch.uint8), strict=True):
        array = pixels.permute(1, 2, 0).numpy()
        picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
        write_atomic(
            out / row["png"],
            lambda path, p=picture: p.save(path, format="PNG"),  # type: ignore[misc]
        )
    write_tensors(
        out / "images.safetensors",
        {"images": images, "labels": data.labels},
        {"ids": json.dumps(list(data.ids)), "settings": json.dumps(settings)},
    )
    write_text(out / "table.csv", stream.getvalue())
