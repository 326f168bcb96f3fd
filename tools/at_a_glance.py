"""Write the table and the picture of README's "What is left", from committed records alone.

python tools/at_a_glance.py

One row for each defense: clean images, what the paper states under its attack, ours under the same
kind of attack by an attacker who does not know the defense, ours by one who knows it, and what that
one leaves of the network without the defense. What has no record yet is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from results import RESULTS, ROOT, Record, find, percent, read, single_draw
from unperturb.explain.canvas import INK, LINES, MUTED, new_figure, save_figure, tidy
from unperturb.files import write_text
from unperturb.recipes.words import header_of, line_of, threat_text

START, END = "<!-- at-a-glance: written by tools/at_a_glance.py -->", "<!-- /at-a-glance -->"
PICTURE = "docs/results/at-a-glance.png"


@dataclass(frozen=True)
class Entry:
    """A defense, and where its figures are.

    Attributes:
        title: What the row is called.
        paper: Folder of the records, and name of the page.
        record: The recipe.
        row: Its row.
        columns: Those of clean images, of the oblivious attacker and of the adaptive one.
    """

    title: str
    paper: str
    record: str
    row: str
    columns: tuple[str, str, str]


ALU = ("Clean", "PGD20", "PGD20 on 128 images")
ATOP = ("Standard", "PGD-20", "PGD-10 with EOT-20")
ENTRIES = (
    Entry("TPAP, FGSM-AT network", "tpap", "table-2", "TPAP", ("Clean", "PGD-20", "PGD-20")),
    Entry("Logit correction", "logit-correction", "table-1", "ResNet-20",
          ("Clean, full", "PGD, full", "PGD, full")),
    Entry("ALU, standard network", "alu", "table-2", "Standard + ALU", ALU),
    Entry("ALU, unified", "alu", "table-2", "Unified ALU", ALU),
    Entry("ALU, asymmetric", "alu", "table-2", "Asymmetric ALU", ALU),
    Entry("ALU, PGD-AT network", "alu", "table-2", "PGD-AT + ALU", ALU),
    *(Entry(f"AToP, {name}", "atop", "table-7", f"{name}, AToP", ATOP)
      for name in ("RT1", "RT2", "RT3")),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Cells of an entry: clean, oblivious, adaptive, and the network without the defense."""

    entry: Entry
    clean: Record
    oblivious: Record
    adaptive: Record
    bare: Record

    @property
    def stated(self) -> float | None:
        """Accuracy that the paper states under attack, in percent."""
        value = self.oblivious.get("paper")
        return float(value) if isinstance(value, int | float) else None


def collect() -> list[Found]:
    """Every entry that has its figures."""
    rows = []
    for entry in ENTRIES:
        record = read(RESULTS / "records" / entry.paper, entry.record)
        clean, published, known = entry.columns
        cells = (
            find(record, entry.row, clean, "none"),
            find(record, entry.row, published, "oblivious"),
            find(record, entry.row, known, "adaptive"),
        )
        bare = (cells[2] or {}).get("undefended")
        there = [single_draw(cell) for cell in cells if cell and cell.get("accuracy") is not None]
        if bare and len(there) == len(cells):
            rows.append(Found(entry, *there, bare))
    return rows


def draw(rows: Sequence[Found]) -> None:
    """The picture: one line for each defense, a mark for each figure."""
    height = 1.05 + 0.36 * len(rows)
    figure = new_figure(7.4, height)
    axes = figure.add_axes((0.235, 0.5 / height, 0.745, 1 - 1.05 / height))
    places = list(range(len(rows)))
    marks: tuple[tuple[str, list[Any], dict[str, Any]], ...] = (
        ("clean images", [one.clean["accuracy"] for one in rows],
         {"marker": "o", "color": LINES[0], "markerfacecolor": "none"}),
        ("the paper, under attack",
         [None if one.stated is None else one.stated / 100 for one in rows],
         {"marker": "D", "color": MUTED, "markerfacecolor": "none"}),
        ("ours, attacker does not know it", [one.oblivious["accuracy"] for one in rows],
         {"marker": "o", "color": LINES[2]}),
        ("ours, attacker knows it", [one.adaptive["accuracy"] for one in rows],
         {"marker": "o", "color": LINES[1]}),
        ("without the defense", [one.bare["accuracy"] for one in rows],
         {"marker": "|", "color": INK, "markersize": 9}),
    )  # fmt: skip
    for key, color in (("oblivious", LINES[2]), ("adaptive", LINES[1])):
        ends = [getattr(one, key)["interval"] for one in rows]
        axes.hlines(places, *zip(*ends, strict=True), color=color, linewidth=1.4)
    for label, values, style in marks:
        there = [(v, at) for v, at in zip(values, places, strict=True) if v is not None]
        if there:
            axes.plot(*zip(*there, strict=True), linestyle="none", label=label,
                      **{"markersize": 4.5, **style})  # fmt: skip
    axes.set_yticks(places, [one.entry.title for one in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share of images that is right", fontsize=8, color=MUTED)
    tidy(axes, 8)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=3, loc="lower center",
                bbox_to_anchor=(0.36, 1.0), columnspacing=1.2, handletextpad=0.3)  # fmt: skip
    save_figure(figure, ROOT / PICTURE)


def lines(rows: Sequence[Found]) -> list[str]:
    """The part of the README."""
    told = [
        START,
        f"![Accuracy of each defense, clean and attacked, as stated and as found]({PICTURE})",
        "",
        *header_of(["percent right", "clean", "the paper, under attack",
                    "ours, attacker does not know the defense",
                    "**ours, attacker knows the defense**", "without the defense", "attack"]),
    ]  # fmt: skip
    for one in rows:
        page = f"docs/results/{one.entry.paper}.md"
        n, few = one.oblivious["n"], one.adaptive["n"]
        attack, known = (cell["attack"].split("?")[0] for cell in (one.oblivious, one.adaptive))
        other = "" if attack == known else f"{known}, "
        counts = f"n = {n:,}" if n == few else f"n = {n:,}; who knows: {other}{few:,}"
        told.append(
            line_of([
                f"[{one.entry.title}]({page})", percent(one.clean),
                "" if one.stated is None else f"{one.stated:g}", percent(one.oblivious),
                f"**{percent(one.adaptive)}**", percent(one.bare),
                f"{attack}, {threat_text(one.oblivious['threat'])}, {counts}",
            ])
        )  # fmt: skip
    return [
        *told,
        "",
        "CIFAR-10, first n test images, ResNet-20, seed 0, Wilson 95 % intervals, two CPU cores; "
        "the papers have larger networks and 10,000 images (AToP's: 512). Who does not know the "
        "defense runs all his steps and his last image counts, as published; who knows it stops at "
        "the first success. *Without the defense* is the work of the one who knows, on the network "
        "alone (of unified and asymmetric ALU: on a standard one). A figure under attack above the "
        "clean one is no robustness: the attack tells the true label ([label leaking](docs/"
        "concepts.md#threat-model-and-attacker)). ALU's paper says that it took the "
        "gradient through VAE and classifier, which is another attack than ours beside it: [one "
        "factor at a time](docs/results/alu.md#why-ours-differ-from-the-papers)." + about_atop(),
        END,
    ]


def about_atop() -> str:
    """What its rows are of, and what is left without fine-tuning."""
    record = read(RESULTS / "records" / "atop", "table-7")
    cells = [find(record, name, ATOP[2], "adaptive") for name in ("RT2", "RT3")]
    before = [percent(single_draw(cell)) for cell in cells if cell]
    if len(before) < len(cells):
        return ""
    return (
        " AToP is random: figures of a single draw; who knows it takes the mean over 20 draws in "
        "each gradient. Without fine-tuning the same networks keep "
        f"{before[0]} and {before[1]} % right against him (RT2, RT3): [does fine-tuning "
        "help?](docs/results/atop.md#does-fine-tuning-help)"
    )


def main() -> None:
    """Write both."""
    rows = collect()
    draw(rows)
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START, 1)
    after = rest.split(END, 1)[1]
    write_text(readme, before + "\n".join(lines(rows)) + after)


if __name__ == "__main__":
    main()
