"""What to take away of ALU, in figures of its records; `alu_results.py` writes it."""

from __future__ import annotations

from results import Paper, Record, find, percent
from unperturb.recipes.render_changes import done_of
from unperturb.recipes.words import share_text

__all__ = ["nearest", "summary"]


def _count(cell: Record | None) -> str:
    """On how many images a cell is."""
    return f"{cell['n']:,}" if cell else "?"


def summary(paper: Paper) -> list[str]:
    """What a user should take away, in figures of the records."""
    record = paper.read("table-2")
    if record is None:
        return ["not run: no record of Table 2 yet.", ""]
    lines = []
    for row in record["rows"]:
        if not row["defense"] or not row["model"]:
            continue
        name = row["name"]
        clean = find(record, name, "Clean", "none")
        published = find(record, name, "PGD20", "oblivious")
        knowing = find(record, name, "PGD20 on 128 images", "adaptive")
        bare, plain = ((cell or {}).get("undefended") for cell in (knowing, published))
        other = row.get("baseline")
        what = f"{other}, trained on raw images" if other else "the undefended network"
        lines.append(
            f"- {name}: {percent(clean)} % of clean images are right, {percent(published)} % under "
            f"PGD-20 by an attacker who does not know ALU ({what}: {percent(plain)} %; "
            f"n = {_count(published)}), {percent(knowing)} % under PGD-20 by one who does "
            f"({percent(bare)} %; n = {_count(knowing)})."
        )
    return [*lines, *_gradients(paper), *_claim(paper), *_avoided(paper), ""]


def _subjects(paper: Paper, name: str) -> dict[str, Record]:
    """What was found for each subject of a recipe; nothing where there is no record."""
    record = paper.read(name)
    return {} if record is None else {
        one["name"]: one["found"] for one in done_of(record["changes"])
    }  # fmt: skip


def _gradients(paper: Paper) -> list[str]:
    """What the unified classifier owes to the gradient that an attacker takes."""
    found = _subjects(paper, "factors")
    names = ("classifier: unified", "together: unified, gradient: unrolled")
    if not all(name in found for name in names):
        return []
    simple, whole = (found[name] for name in names)
    return [
        "- Unified, attacked without its N steps, which is what the paper seems to have done "
        f"(N = 0, all steps of the attack run, n = {simple['n']:,}): "
        f"{percent(simple['attacked']['answer'])} %, as nothing but the logits before purification "
        f"is attacked; by the gradient of the whole (unrolled, n = {whole['n']:,}): "
        f"{percent(whole['attacked']['answer'])} %."
    ]


def _avoided(paper: Paper) -> list[str]:
    """Whether an attack that breaks the pattern costs more and succeeds less, as the paper says."""
    found = _subjects(paper, "appendix-e")
    lines = []
    for end, what in (("", "standard network"), (", PGD-AT", "PGD-AT")):
        pair = [f"{kind}, 20 steps{end}" for kind in ("both up", "cross-entropy")]
        if not all(name in found for name in pair):
            continue
        one, other = (found[name] for name in pair)
        fewer = one["effort"]["turned"]["rate"] < other["effort"]["turned"]["rate"]
        seen = "seen" if fewer else "not seen"
        lines.append(
            "- An attack that raises the logits of a wrong class and of the true one, "
            f"{what}, 20 steps: ALU is right on {percent(one['attacked']['answer'])} % "
            f"(cross-entropy: {percent(other['attacked']['answer'])} %). It makes the bare network "
            f"err on {share_text(one['effort']['turned'])} of the images that are right when clean "
            f"(cross-entropy: {share_text(other['effort']['turned'])}), first after a median of "
            f"{one['effort']['median']:g} gradients ({other['effort']['median']:g}); those that "
            "then raise the true logit are not counted. The paper says that such attacks cost "
            f"more and succeed less: less success is {seen} here."
        )
    return lines


def _claim(paper: Paper) -> list[str]:
    record = paper.read("figure-7")
    for subject in (record or {}).get("changes", {}).get("subjects", ()):
        if subject["status"] == "done":
            found = subject["found"]["successful"]
            return [
                f"- The true class's logit drops most in {share_text(found['drops_most'])} of the "
                f"successful attacks ({subject['name']}); the paper says 99.69 %."
            ]
    return ["- The 99.69 % claim: not run: no record of Figure 7 yet."]


def nearest(paper: Paper) -> list[str]:
    """The paper's figures, and the most that any factor leaves of each classifier."""
    table, found = paper.read("table-2"), _subjects(paper, "factors")
    if table is None or not found:
        return []
    kinds = {
        "PGD-AT": "PGD-AT + ALU", "TRADES": "TRADES + ALU", "unified": "Unified ALU",
        "asymmetric": "Asymmetric ALU",
    }  # fmt: skip
    best: dict[str, tuple[float, str]] = {}
    for name, one in found.items():
        kind = next((kind for kind in kinds if kind in name), "standard")
        share = 100 * one["attacked"]["answer"]["accuracy"]
        best[kind] = max(best.get(kind, (-1.0, "")), (share, name))
    lines = []
    for kind, row in {"standard": "Standard + ALU", **kinds}.items():
        stated = (find(table, row, "PGD20", "oblivious") or {}).get("paper")
        if isinstance(stated, int | float) and kind in best:
            lines.append(f"{kind} {stated:g} (here {best[kind][0]:.1f}, {best[kind][1]})")
    return [
        "PGD-20 in the paper's Table 2, in percent, beside the most that any row below leaves: "
        + "; ".join(lines)
        + ". What stays far apart is explained by none of these factors.",
        "",
    ]
