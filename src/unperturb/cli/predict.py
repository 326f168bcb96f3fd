"""``unperturb predict``."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import click

from unperturb.cli.options import (
    check_fit,
    check_output,
    classifier_of,
    classifier_options,
    echo_json,
    image_size,
    load_subject,
    setup,
    tell_skipped,
)


@click.command(short_help="Classify image files, with a defense or without.")
@click.argument("files", nargs=-1, required=True)
@classifier_options()
@click.option("--format", "style", type=click.Choice(["table", "json", "csv"]), default="table",
              show_default=True, help="How the answers are written.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--out", help="Write to this file instead of the screen.")
@click.option("--image-size", help="Resize and crop to HEIGHTxWIDTH (or one number).")
@click.option("--skip-broken", is_flag=True, help="Leave unreadable images out and count them.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True,
              help="Images at a time.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of a random defense.")
@click.option("--device", help="cpu, cuda ...  [default: cuda if there, else cpu]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
def predict(files: tuple[str, ...], **options: Any) -> int:
    """Classify image FILES, or all images in folders, with a defended or bare classifier.

    \b
    Example:
      unperturb predict photos/ --classifier runs/fgsm --defense tpap
    """
    from unperturb.data import load_image_files

    if options["out"] is not None:
        check_output(Path(options["out"]), folder=False)
    device = setup(options["device"], options["threads"])
    subject, _ = load_subject(
        options["classifier"],
        options["defense"],
        trust_remote_code=options["trust_remote_code"],
        device=device,
    )
    classifier = classifier_of(subject)
    data = load_image_files(
        [Path(name) for name in files],
        channels=classifier.input_shape[0],
        image_size=image_size(options["image_size"]),
        skip_broken=options["skip_broken"],
    )
    tell_skipped(data)
    rows = _rows(subject, classifier, data, device, options)
    style = "json" if options["as_json"] else options["style"]
    if style == "json" and options["out"] is None:
        echo_json({"predictions": rows, "skipped": list(data.skipped)})
        return 0
    text = _render(rows, list(data.skipped), style)
    if options["out"] is None:
        click.echo(text, nl=False)
    else:
        from unperturb.files import write_text

        write_text(Path(options["out"]), text)
    return 0


def _rows(
    subject: Any, classifier: Any, data: Any, device: str, options: dict[str, Any]
) -> list[dict[str, Any]]:
    import torch

    from unperturb.defense import Defense
    from unperturb.randomness import Keys

    defense = subject if isinstance(subject, Defense) else Defense(classifier)
    classes = list(classifier.origin.card.get("classes", []))
    check_fit(classifier, data.images(slice(0, 2)).to(device))
    rows = []
    for start in range(0, len(data), options["batch_size"]):
        part = slice(start, start + options["batch_size"])
        images = data.images(part).to(device)
        keys = Keys.of(options["seed"], data.ids[part], domain="predict")
        with torch.inference_mode():
            answer = defense.predict(images, keys=keys, batch_size=options["batch_size"])
        shares = answer.scores.softmax(1).amax(1)
        for row, name in enumerate(data.ids[part]):
            label = int(answer.labels[row])
            rows.append(
                {
                    "file": name,
                    "label": label,
                    "class": classes[label] if label < len(classes) else str(label),
                    "softmax": round(float(shares[row]), 6),
                    "flagged": bool(answer.flagged[row]),
                }
            )
    return rows


def _render(rows: list[dict[str, Any]], skipped: list[str], style: str) -> str:
    import json

    if style == "json":
        return json.dumps({"predictions": rows, "skipped": skipped}, indent=2) + "\n"
    names = list(rows[0]) if rows else ["file", "label", "class", "softmax", "flagged"]
    if style == "csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = (
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
