"""From rows to answers: for every image, how often a subject is right, and its worst attack.

Deterministic subjects have one draw. Random ones are judged on two independent sets of draws:
the worst attack of an image is *selected* on one (``select``) and *scored* on the other
(``score``); judged on the draws it was picked on, the worst of many equally bad attacks would
look worse than any of them is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unperturb.audit.plan import Unit
from unperturb.audit.statistics import Bools, Floats, accuracy, mean
from unperturb.audit.store import Rows

__all__ = ["ATTACKERS", "PROBE", "Answers", "Cell", "Key", "Outcome"]

ATTACKERS = ("oblivious", "adaptive", "outside")
"""Those whose images count for a worst case."""

PROBE = "probe"

Ints = NDArray[np.int64]
Array = np.ndarray[Any, Any]


class Key(NamedTuple):
    """What tells the rows of one attack from those of another."""

    subject: str
    attack: str
    attacker: str
    backward: str
    goal: str
    eps: float

    @property
    def probe(self) -> bool:
        """Whether it varies an attack's strength rather than being one of the plan's attacks."""
        return self.attacker == "adaptive" and self.attack.partition("-")[0] == PROBE


class Outcome(NamedTuple):
    """Answers of a subject, one for each image of the plan."""

    share: Floats  # (N,) share of the scoring draws that are right; NaN where not (all) done
    which: Ints  # (N,) which of the attacks that were compared is the worst; -1 where not done

    @property
    def done(self) -> Bools:
        """Images of which everything that was planned is there, (N,)."""
        return ~np.isnan(self.share)

    @property
    def right(self) -> Bools:
        """Whether most draws are right, (N,); False where not done."""
        return self.share > 0.5

    def majority(self) -> dict[str, Any] | None:
        """Accuracy of the answer that most draws give."""
        return accuracy(self.right[self.done])

    def single(self) -> dict[str, Any] | None:
        """Mean accuracy of one draw."""
        return mean(self.share[self.done])

    def worst_of_n(self) -> dict[str, Any] | None:
        """Share of images that every draw gets right."""
        return accuracy(self.share[self.done] == 1)


class Cell:
    """Rows of one attack on one subject.

    Args:
        key: What they are.
        answers: Where they are.
        score: Numbers of the rows it is scored on.
        select: Numbers of the rows it is selected on; those it is scored on where there are none.
        asked: Images that the plan has this attack for, (N,) bool.
    """

    def __init__(self, key: Key, answers: Answers, score: Ints, select: Ints, asked: Bools) -> None:
        self.key, self.asked = key, asked
        self._answers = answers
        self._numbers = {"score": score, "select": select if len(select) else score}
        self.random = len(select) > 0
        self._known: dict[tuple[str, str], Floats] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing of it has been done."""
        return not len(self._numbers["score"])

    @property
    def rule(self) -> str:
        """Its stopping rule."""
        return str(self._answers.rows["rule"][self._numbers["score"][0]])

    def share(self, column: str, purpose: str = "score") -> Floats:
        """Mean of a column over draws, for each image; NaN where it has not been done."""
        known = self._known.get((column, purpose))
        if known is None:
            numbers, size = self._numbers[purpose], self._answers.size
            place = self._answers.position[numbers]
            count = np.bincount(place, minlength=size)
            values = self._answers.rows[column][numbers].astype(np.float64)
            total = np.bincount(place, weights=values, minlength=size)
            known = np.where(count > 0, total / np.maximum(count, 1), np.nan)
            self._known[(column, purpose)] = known
        return known

    def first(self, column: str) -> Floats:
        """A column in the first scoring draw, for each image; NaN where it has not been done."""
        numbers = self._numbers["score"]
        numbers = numbers[self._answers.rows["draw"][numbers] == 0]
        values = np.full(self._answers.size, np.nan)
        values[self._answers.position[numbers]] = self._answers.rows[column][numbers]
        return values

    @property
    def outside(self) -> Bools:
        """Images whose result lies outside the ball of the threat model, (N,)."""
        found: Bools = self.first("inside") == 0
        return found

    @property
    def done(self) -> Bools:
        """Images that have been done, (N,)."""
        return ~np.isnan(self.share("correct"))


class Answers:
    """All rows of an audit, by subject and attack.

    An image whose result lies outside the threat model's ball counts with its clean answer: there
    the attack has found nothing that this threat model allows.

    Args:
        rows: What ``Store.rows`` reads.
        ids: Image ids in the plan's order.
        units: The planned units.
        finished: Indices of the finished ones.
        bounds: Attack to its bound; ``own``-bounded attacks are no attacks of the threat model.
        subjects: Who is judged: ``target``, and ``baseline`` where it is another.
    """

    def __init__(
        self,
        rows: Rows,
        ids: Sequence[str],
        units: Iterable[Unit] = (),
        finished: Iterable[int] = (),
        bounds: dict[str, str] | None = None,
        subjects: Sequence[str] = ("target", "baseline"),
    ) -> None:
        self.size, self.bounds, self.subjects = len(ids), bounds or {}, tuple(subjects)
        units = list(units)
        held = np.asarray(rows["correct"], dtype=bool) | np.asarray(rows["flagged"], dtype=bool)
        self.rows: Rows = {**rows, "held": held}
        place = {image: position for position, image in enumerate(ids)}
        codes, names = _coded(rows["image_id"])
        self.position = np.array([place[name] for name in names], dtype=np.int64)[codes]
        score, select = self._grouped()
        asked = self._asked(units)
        done = set(finished)
        left = self._asked(u for u in units if u.index not in done)
        nothing = np.array([], dtype=np.int64)
        self.cells: dict[Key, Cell] = {}
        for key in sorted({*score, *select, *asked}):
            cell = Cell(
                key, self, score.get(key, nothing), select.get(key, nothing),
                asked.get(key, np.zeros(self.size, dtype=bool)),
            )  # fmt: skip
            if key not in asked:
                cell.asked = cell.done
            elif key.attacker == "outside":
                # Its images may be fewer than the plan's: what is not there was not brought.
                cell.asked = cell.done | left.get(key, np.zeros(self.size, dtype=bool))
            self.cells[key] = cell
        self._clean = {c.key.subject: c for c in self.cells.values() if c.key.attacker == "none"}
        self._known: dict[tuple[Key, str, str], Floats] = {}
        self._worst: dict[tuple[str, tuple[str, ...], str], Outcome | None] = {}

    def _grouped(self) -> tuple[dict[Key, Ints], dict[Key, Ints]]:
        """Numbers of the scoring and of the selecting rows of each attack."""
        names, number = [], np.zeros(len(self.rows["draw"]), dtype=np.int64)
        for column in (*Key._fields, "purpose"):
            codes, values = _coded(self.rows[column])
            number = number * max(len(values), 1) + codes
            names.append(values)
        order = np.argsort(number, kind="stable")
        cuts = np.flatnonzero(np.diff(number[order])) + 1
        found: dict[str, dict[Key, list[Ints]]] = {"score": {}, "select": {}}
        for numbers in np.split(order, cuts) if len(order) else []:
            first = numbers[0]
            values = [self.rows[column][first] for column in Key._fields]
            purpose = str(self.rows["purpose"][first])
            found[purpose].setdefault(_key(*values), []).append(numbers)
        score, select = (
            {key: np.concatenate(parts) for key, parts in found[purpose].items()}
            for purpose in ("score", "select")
        )
        return score, select

    def _asked(self, units: Iterable[Unit]) -> dict[Key, Bools]:
        """Images that each planned attack is made for."""
        found: dict[Key, Bools] = {}
        for unit in units:
            for subject in self.subjects if unit.scores == "both" else (unit.scores,):
                key = _key(subject, unit.attack, unit.attacker, unit.backward, unit.goal, unit.eps)
                found.setdefault(key, np.zeros(self.size, dtype=bool))[unit.start : unit.stop] = (
                    True
                )
        return found

    # -- choosing -------------------------------------------------------------------------------

    def where(self, **wanted: object) -> list[Cell]:
        """Attacks with these values, in a fixed order."""
        return [
            cell
            for key, cell in self.cells.items()
            if all(getattr(key, name) == value for name, value in wanted.items())
        ]

    def clean(self, subject: str) -> Cell | None:
        """Answers to the unperturbed images."""
        return self._clean.get(subject)

    def attacks(self, subject: str, attackers: Iterable[str] = ATTACKERS) -> list[Cell]:
        """All attacks of the threat model on a subject, by these attackers."""
        named = set(attackers)
        return [
            c for c in self.where(subject=subject) if c.key.attacker in named and self.counts(c)
        ]

    def counts(self, cell: Cell) -> bool:
        """Whether an attack counts for a worst case."""
        own = self.bounds.get(cell.key.attack) == "own"
        return cell.key.attacker in ATTACKERS and not own

    # -- answers --------------------------------------------------------------------------------

    def within(self, cell: Cell, column: str = "correct", purpose: str = "score") -> Floats:
        """Mean of a column over draws; for an image outside the ball that of the clean one."""
        known = self._known.get((cell.key, column, purpose))
        if known is None:
            known, outside = cell.share(column, purpose), cell.outside
            if outside.any():
                clean = self.clean(cell.key.subject)
                instead = np.nan if clean is None else clean.share(column, purpose)
                known = np.where(outside, instead, known)
            self._known[(cell.key, column, purpose)] = known
        return known

    def worst(self, cells: Sequence[Cell], column: str = "correct") -> Outcome | None:
        """The worst attack of each image: selected on one set of draws and scored on another.

        Worst is the lowest share of right answers, then the greatest mean margin. An image for
        which something of the plan is missing has no worst case yet.

        Args:
            cells: What is compared, of one subject.
            column: What counts as right: ``correct``, ``correct_8bit``, or ``held`` (right, or
                flagged).

        Returns:
            None where there is nothing to compare.
        """
        return self._choose(cells, column, self.within)

    def returned(self, cells: Sequence[Cell], column: str = "correct") -> Outcome | None:
        """As ``worst``, of the images as they came back, whether in the ball or not."""
        return self._choose(cells, column, Cell.share)

    def _choose(
        self, cells: Sequence[Cell], column: str, read: Callable[[Cell, str, str], Floats]
    ) -> Outcome | None:
        if not cells:
            return None

        def stacked(what: str, purpose: str) -> Floats:
            return np.stack([read(cell, what, purpose) for cell in cells])

        asked = np.stack([cell.asked for cell in cells])
        select = np.where(asked, stacked(column, "select"), np.inf)
        missing = np.isnan(select).any(0) | ~asked.any(0)
        least = np.where(np.isnan(select), np.inf, select).min(0)
        # A margin that is not a number belongs to an answer that is none: the worst there is.
        margins = np.nan_to_num(
            stacked("margin", "select"), nan=np.inf, posinf=np.inf, neginf=np.finfo("f8").min
        )
        which = np.where(select == least, margins, -np.inf).argmax(0)
        share = np.take_along_axis(stacked(column, "score"), which[None], 0)[0]
        return Outcome(np.where(missing, np.nan, share), np.where(missing, -1, which))

    def worst_case(
        self,
        subject: str,
        attackers: Iterable[str] = ATTACKERS,
        column: str = "correct",
    ) -> tuple[Outcome, list[Cell]] | None:
        """Per-image worst case over all attacks, the unperturbed image included.

        Returns:
            The answers, and what ``which`` points into; None without clean images or attacks.
        """
        clean, named = self.clean(subject), tuple(attackers)
        cells = self.attacks(subject, named)
        if clean is None or not cells:
            return None
        compared = [clean, *cells]
        if (subject, named, column) not in self._worst:
            self._worst[(subject, named, column)] = self.worst(compared, column)
        found = self._worst[(subject, named, column)]
        return None if found is None else (found, compared)


def _key(subject: str, attack: str, attacker: str, backward: str, goal: str, eps: float) -> Key:
    """A key, without what says nothing where nobody attacks."""
    if attacker in ("oblivious", "adaptive"):
        return Key(subject, attack, attacker, backward, goal, float(eps))
    return Key(subject, attack, attacker, "none", "none", 0.0)


def _coded(values: Array) -> tuple[Ints, list[Any]]:
    """Values as numbers, and what the numbers stand for."""
    if values.dtype == object:
        import pyarrow as pa

        # Ten times as fast as sorting strings.
        found = pa.array(values, type=pa.string()).dictionary_encode()
        return found.indices.to_numpy().astype(np.int64), found.dictionary.to_pylist()
    names, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int64), names.tolist()
