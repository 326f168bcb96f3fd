"""What the pages of results share: cells of records in percent, tables of them, small pictures."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from unperturb.files import write_text
from unperturb.recipes import Recipe, load_recipe, render
from unperturb.recipes.words import threat_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results"

Record = dict[str, Any]


def percent(cell: Record | None, reasons: list[str] | None = None) -> str:
    """Accuracy and Wilson interval of a cell, or why there is none.

    Where a table collects ``reasons`` below itself, the cell refers to the one that it has.
    """
    if cell is None or cell.get("accuracy") is None:
        reason = (cell or {}).get("reason") or "no record"
        if reasons is None:
            return f"not run: {reason}"
        if reason not in reasons:
            reasons.append(reason)
        return f"not run ({reasons.index(reason) + 1})"
    low, high = (100 * end for end in cell["interval"])
    return f"{100 * cell['accuracy']:.1f} ({low:.1f}-{high:.1f})"


def read(folder: Path, name: str) -> Record | None:
    """A committed record, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def find(record: Record | None, row: str, column: str, attacker: str) -> Record | None:
    """The cell of a row and a column; the clean one has no attacker."""
    for cell in (record or {}).get("cells", ()):
        same = cell["row"] == row and cell["column"] == column
        if same and cell["attacker"] in (attacker, "none"):
            return cell
    return None


def single_draw(cell: Record) -> Record:
    """The cell with the accuracy of a single draw, where the defense is random.

    That is what the papers print: each of their figures is of one draw.
    """
    drawn = (cell.get("draws") or {}).get("single")
    return cell if drawn is None else {**cell, **{k: drawn[k] for k in ("accuracy", "interval")}}


def compact(record: Record, *, whole: bool = False) -> list[str]:
    """One table: for each row the paper's figures, ours oblivious, ours adaptive, in percent.

    Below a defended row stands what the adaptive attacker leaves of the bare network, or of the
    classifier that the recipe compares it with.

    Args:
        record: The record.
        whole: Also what the paper and the oblivious attacker leave of the bare network, and what
            attacks that look for the nearest image leave at any distance.
    """
    names = [column["name"] for column in record["columns"]]
    counts = {
        name: next((c["n"] for c in record["cells"] if c["column"] == name and c.get("n")), None)
        for name in names
    }
    heads = [f"{name} (n = {counts[name]:,})" if counts[name] else name for name in names]
    lines = ["| | | " + " | ".join(heads) + " |", "|---" * (len(names) + 2) + "|"]
    reasons: list[str] = []
    for row in record["rows"]:
        cells = [
            next(
                filter(None, (find(record, row["name"], name, a) for a in record["attackers"])),
                None,
            )
            for name in names
        ]
        paper = ["" if c is None or c.get("paper") is None else str(c["paper"]) for c in cells]
        name = row["name"].replace("*", r"\*")
        # What was trained behind a defense is compared with what never saw it.
        what = f"{row['baseline']}, raw images" if row.get("baseline") else "bare network"
        lines.append(f"| **{name}** | paper | " + " | ".join(paper) + " |")
        for attacker in record["attackers"]:
            ours = [find(record, row["name"], name, attacker) for name in names]
            found = [
                "" if column.get("only") not in (None, attacker) else percent(cell, reasons)
                for column, cell in zip(record["columns"], ours, strict=True)
            ]
            lines.append(f"| | ours, {attacker} | " + " | ".join(found) + " |")
            if whole:
                lines += _some(f"ours, {attacker}, at any distance", ours, "as_returned")
        if whole:
            ours = [find(record, row["name"], name, "oblivious") for name in names]
            bare = [
                "" if (c or {}).get("paper_bare") is None else str(c["paper_bare"]) for c in ours
            ]
            if any(bare):
                lines.append("| | bare network, paper | " + " | ".join(bare) + " |")
            if len(record["attackers"]) > 1:
                lines += _some(f"{what}, oblivious", ours, "undefended")
            lines += _some(f"{what}, oblivious, at any distance", ours, "undefended_as_returned")
        last = [find(record, row["name"], name, record["attackers"][-1]) or {} for name in names]
        bare = ["" if not cell.get("undefended") else percent(cell["undefended"]) for cell in last]
        if any(bare):
            words = f"{what}, {record['attackers'][-1]}"
            lines.append(f"| | {words} | " + " | ".join(bare) + " |")
    told = [f"({i}) {reason}." for i, reason in enumerate(reasons, 1)]
    return [*lines, "", "Not run: " + " ".join(told)] if told else lines


def _some(words: str, cells: Sequence[Record | None], key: str) -> list[str]:
    """A line of figures that not every cell has; none where no cell has one."""
    found = [(cell or {}).get(key) for cell in cells]
    if not any(found):
        return []
    texts = [percent(part) if part else "" for part in found]
    return [f"| | {words} | " + " | ".join(texts) + " |"]


def shrink(picture: Path, out: Path) -> None:
    """Save a picture with fewer colors."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT).save(out, optimize=True)


def page_of(name: str, record: Record) -> str:
    """The page of a recipe, its pictures by the names that they have here."""
    return re.sub(r"\]\(([\w.-]+\.png)\)", rf"]({name}-\1)", render(record))


def collect(runs: Path, paper: str, names: Sequence[str], records: Path, pages: Path) -> None:
    """Take over records and pictures of runs that are finished; one that is not is passed by.

    A record that is not complete says why (``left_out``) once its run has ended.
    """
    for name in names:
        path = runs / name / "record.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if (record["recipe"], record["scale"]) != (f"{paper}/{name}", "cpu"):
            raise SystemExit(f"{path} is a record of {record['recipe']}, scale {record['scale']}")
        if not record["complete"] and not record["left_out"]:
            print(f"{name}: still being made, not taken over")
            continue
        records.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, records / f"{name}.json")
        for picture in path.parent.glob("*.png"):
            shrink(picture, pages / f"{name}-{picture.name}")


@dataclass(frozen=True)
class Paper:
    """The records of a paper's recipes, and its page of results.

    Args:
        name: The paper's folder of recipes, for example ``"alu"``.
        recipes: Names of the recipes.
        further: What the page of a recipe has besides, as words at the foot of its section.
    """

    name: str
    recipes: tuple[str, ...]
    further: str

    @property
    def records(self) -> Path:
        """The folder of the committed records."""
        return RESULTS / "records" / self.name

    @property
    def pages(self) -> Path:
        """The folder of the recipes' pages and pictures."""
        return RESULTS / self.name

    def read(self, name: str) -> Record | None:
        """The committed record of a recipe, or None."""
        return read(self.records, name)

    def recipe(self, name: str) -> Recipe:
        """A recipe, at the scale that is committed."""
        return load_recipe(f"{self.name}/{name}", scale="cpu")

    def head(self, name: str) -> list[str]:
        """What a recipe is of, as the first line of its section."""
        recipe = self.recipe(name)
        return [f"{recipe.title} ({recipe.paper.item}).", ""]

    def heading(self, name: str) -> list[str]:
        """The same as a heading of its own."""
        recipe = self.recipe(name)
        return [f"### {recipe.paper.item}. {recipe.title}", ""]

    def missing(self, name: str) -> list[str]:
        """A section without a record."""
        return [f"not run: no record yet (`unperturb reproduce {self.name}/{name}`).", ""]

    def foot(self, name: str, record: Record) -> list[str]:
        """What is left out, warnings of banks, scale, seed and threat model, and the whole page."""
        lines = [f"- left out: {words}" for words in record["left_out"]]
        for bank, facts in sorted(record.get("banks", {}).items()):
            lines += [f"- the bank {bank}: {words}" for words in facts["weak"]]
        lines += [""] if lines else []
        return [
            *lines,
            f"Scale `{record['scale']}`, seed {record['seed']}, {threat_text(record['threat'])} "
            f"unless said otherwise. {self.further}: [{name}]({self.name}/{name}.md).",
            "",
        ]

    def table(self, name: str) -> list[str]:
        """A table of accuracies: the paper, ours oblivious, ours adaptive."""
        record = self.read(name)
        if record is None:
            return [*self.head(name), *self.missing(name)]
        return [*self.head(name), *compact(record, whole=True), "", *self.foot(name, record)]

    def pictures(self, name: str) -> list[str]:
        """What a recipe has drawn."""
        # A recipe's name may begin like another's.
        longer = tuple(f"{other}-" for other in self.recipes if other.startswith(f"{name}-"))
        found = [
            path
            for path in sorted(self.pages.glob(f"{name}-*.png"))
            if not (longer and path.name.startswith(longer))
        ]
        return [line for path in found for line in (f"![{path.stem}]({self.name}/{path.name})", "")]

    def write(
        self,
        title: str,
        tool: str,
        introduction: str,
        parts: Callable[[], Sequence[tuple[str, Sequence[str]]]],
    ) -> None:
        """Write every page: that of each recipe, and the paper's, part by part.

        Reads the command line: ``--collect RUNS`` takes over what finished runs left there first.

        Args:
            title: The page's heading.
            tool: The command's path, for the page to name.
            introduction: What stands above the parts.
            parts: Heading and lines of each part, asked for when all records are taken over.
        """
        parser = argparse.ArgumentParser(description=f"Write the results of {self.name}.")
        parser.add_argument("--collect", type=Path, metavar="RUNS")
        options = parser.parse_args()
        self.pages.mkdir(parents=True, exist_ok=True)
        if options.collect is not None:
            collect(options.collect, self.name, self.recipes, self.records, self.pages)
        for name in self.recipes:
            record = self.read(name)
            if record is not None:
                write_text(self.pages / f"{name}.md", page_of(name, record))
        lines = [
            f"# {title}",
            "",
            f"Written by `{tool}` from the records in `docs/results/records/{self.name}/`.",
            "",
            introduction,
            "",
        ]
        for heading, found in parts():
            lines += [f"## {heading}", "", *found]
        write_text(RESULTS / f"{self.name}.md", "\n".join(lines).rstrip() + "\n")
