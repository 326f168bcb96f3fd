"""``unperturb correct``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import check_output, echo_json, setup

if TYPE_CHECKING:
    from unperturb.correction.files import CorrectedFile


@click.command(short_help="Correct logits in a file, without images or the classifier.")
@click.argument("logits")
@click.option("--corrector", required=True,
              help="Folder that 'unperturb fit logit-correction' saved.")  # fmt: skip
@click.option("--out", required=True, help="File of the corrected logits, of the same kind.")
@click.option("--columns", help="Columns of the logits, in the order of the classes: FIRST:LAST or "
              "A,B,...; one column if it holds lists.  [default: all columns of floats (CSV: of "
              "numbers) with a name, ids and labels aside]")  # fmt: skip
@click.option("--id-column", help="A column that is no logits though it holds numbers.  "
              "[default: id]")  # fmt: skip
@click.option("--label-column", help="Column of the true classes, to score by; 'none' scores "
              "nothing.  [default: label, labels or fine_label]")  # fmt: skip
@click.option("--header", type=click.Choice(["auto", "yes", "no"]), default="auto",
              show_default=True, help="Whether a CSV file's first line names its columns; without "
              "names they are called 0, 1, ...")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=1024, show_default=True,
              help="Rows at a time.")  # fmt: skip
@click.option("--device", help="cpu, cuda ...  [default: cuda if there, else cpu]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def correct(logits: str, **options: Any) -> int:
    """Correct the logits of one classifier in the file LOGITS: .npy, .parquet or .csv.

    Logits are those before softmax, one row for each image. The output has float32 logits in
    place of those given; all other columns are carried through, and three are added:
    prediction_before, prediction and changed. For .npy they stand beside it, in
    NAME.predictions.csv.

    \b
    Example:
      unperturb correct logits.npy --corrector runs/corrector --out corrected.npy
    """
    from unperturb.correction import load_corrector
    from unperturb.correction.files import correct_file

    check_output(Path(options["out"]), folder=False)
    device = setup(options["device"], options["threads"])
    found = correct_file(
        load_corrector(options["corrector"], device=device),
        logits,
        options["out"],
        columns=options["columns"],
        id_column=options["id_column"],
        label_column=options["label_column"],
        header=options["header"],
        batch_size=options["batch_size"],
        show=not (options["quiet"] or options["as_json"]),
    )
    if options["as_json"]:
        echo_json(found.to_dict())
    elif not options["quiet"]:
        click.echo(_summary(found))
    return 0


def _summary(found: CorrectedFile) -> str:
    """What was found, where it stands, and whose logits the corrector knows."""
    plural = "s" * (found.changed != 1)
    rows = f"{found.rows:,} row{'s' * (found.rows != 1)}"
    lines = [f"{rows}, {found.changed:,} changed label{plural} ({found.changed / found.rows:.1%})"]
    for when, value in (found.accuracy() or {}).items():
        low, high = value["interval"]
        lines.append(
            f"accuracy {when}: {value['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})"
        )
    kind = found.arch or "an unnamed classifier"
    named = f"fingerprint {found.classifier[:12]}" if found.classifier else "fingerprint unknown"
    lines.append(
        f"the corrector was fitted on logits of {kind} ({named}); the file does not say whose "
        "logits it holds"
    )
    beside = f", {found.predictions}" if found.predictions is not None else ""
    lines.append(f"{found.out}{beside}")
    return "\n".join(lines)
