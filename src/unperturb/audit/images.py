"""Which adversarial images an audit keeps, and what its pictures are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unperturb.audit.cases import Case, CaseView
from unperturb.audit.plan import Unit
from unperturb.audit.store import Rows, Store
from unperturb.files import write_tensors

__all__ = ["keep_worst", "load_cases", "worst_images"]

SHOWN = 6


def keep_worst(store: Store, plan: dict[str, Any], units: list[Unit], rows: Rows) -> None:
    """Keep the worst image for each image and attacker, and drop the rest.

    Worst is what the target answers wrongly, then what has the greatest margin. Files are
    dropped only after the kept ones stand.
    """
    if plan["settings"]["keep_images"] != "worst":
        return
    attackers = plan["settings"]["attackers"]
    # After a kill among the drops the kept ones stand, and can no longer be made again.
    if not all(_worst_path(store, a).exists() for a in attackers):
        _write_worst(store, plan, units, rows)
    for unit in units:
        path = store.pixels_path(unit)
        if not path.exists():
            continue
        tensors = _tensors(store, unit)
        if tensors.pop("images", None) is None:
            continue
        if tensors:
            write_tensors(path, tensors)
        else:
            path.unlink()


def _worst_path(store: Store, attacker: str) -> Path:
    return store.folder / "images" / f"{attacker}.safetensors"


def _write_worst(store: Store, plan: dict[str, Any], units: list[Unit], rows: Rows) -> None:
    attackers = plan["settings"]["attackers"]
    chosen = {a: _choose(plan, rows, a) for a in attackers}
    wanted: dict[int, list[tuple[str, int, int]]] = {}
    by_key = {(*_key(u), u.start): u for u in units if _pictured(u)}
    size = plan["settings"]["batch_size"]
    for attacker, picks in chosen.items():
        for position, key in enumerate(picks):
            start = position // size * size
            unit = by_key[(attacker, *key, start)]
            wanted.setdefault(unit.index, []).append((attacker, position, position - start))
    kept: dict[str, dict[int, torch.Tensor]] = {a: {} for a in attackers}
    for unit in units:
        if unit.index in wanted:
            images = _tensors(store, unit)["images"]
            for attacker, position, row in wanted[unit.index]:
                kept[attacker][position] = images[row]
    for attacker, found in kept.items():
        stacked = torch.stack([found[i] for i in range(len(plan["ids"]))])
        names = ("attack", "backward", "goal")
        facts = {name: [key[k] for key in chosen[attacker]] for k, name in enumerate(names)}
        write_tensors(
            _worst_path(store, attacker),
            {"images": stacked},
            {"choice": json.dumps(facts), "ids": json.dumps(plan["ids"])},
        )


Key = tuple[str, str, str]


def _key(unit: Unit) -> tuple[str, str, str, str]:
    """Attacker, attack, backward, goal."""
    return unit.attacker, unit.attack, unit.backward, "wrong" if unit.goal == "none" else unit.goal


def _pictured(unit: Unit) -> bool:
    """Whether a unit's images are shown to the target."""
    return unit.kind == "attack" and (
        unit.subject == "target" or (unit.attacker == "oblivious" and unit.scores != "baseline")
    )


def _choose(plan: dict[str, Any], rows: Rows, attacker: str) -> list[Key]:
    """(attack, backward, goal) of the worst image, for each image in order.

    Worst is what most draws answer wrongly inside the ball, then what has the greatest margin; of
    a random defense on the draws that select, none of which it is scored on.
    """
    place = {image: position for position, image in enumerate(plan["ids"])}
    settings = plan["settings"]
    names = [str(attack["name"]) for attack in settings["attacks"]]
    own = {str(a["name"]) for a in settings["attacks"] if a.get("bound") == "own"}
    mask = (rows["attacker"] == attacker) & (rows["subject"] == "target")
    mask &= (rows["eps"] == settings["threat"]["eps"]) & np.isin(rows["attack"], names)
    if len(own) < len(names):
        mask &= ~np.isin(rows["attack"], list(own))
    selecting = mask & (rows["purpose"] == "select")
    numbers = np.flatnonzero(selecting if selecting.any() else mask)
    keys: dict[Key, list[int]] = {}
    parts = (rows[name][numbers].tolist() for name in ("attack", "backward", "goal"))
    for number, key in zip(numbers.tolist(), zip(*parts, strict=True), strict=True):
        keys.setdefault(key, []).append(number)
    best: list[tuple[float, float]] = [(-1.0, float("-inf"))] * len(place)
    picks: list[Key] = [("", "", "")] * len(place)
    order = {name: k for k, name in enumerate(names)}
    for key in sorted(keys, key=lambda k: (order.get(k[0], -1), k)):
        at = np.array(keys[key])
        where = np.array([place[image] for image in rows["image_id"][at]])
        wrong, margin, count = (np.zeros(len(place)) for _ in range(3))
        inside = rows["inside"][at]
        np.add.at(wrong, where, (~rows["correct"][at] & inside).astype(float))
        # An image outside of the ball is none of this threat model: any other is shown before it.
        np.add.at(margin, where, np.where(inside, rows["margin"][at], -1e30))
        np.add.at(count, where, 1.0)
        for position in np.flatnonzero(count):
            share = wrong[position] / count[position]
            worse = (share, margin[position] / count[position])
            if worse > best[position]:
                best[position], picks[position] = worse, key
    return picks


def worst_images(store: Store, attacker: str) -> torch.Tensor:
    """Worst images of an attacker (N, C, H, W), in the plan's order."""
    from safetensors.torch import load_file

    return load_file(_worst_path(store, attacker))["images"]


def _tensors(store: Store, unit: Unit) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(store.pixels_path(unit))


def load_cases(store: Store, plan: dict[str, Any], units: list[Unit], rows: Rows) -> list[Case]:
    """The first images by order that the target answers correctly when clean: not hand-picked.

    For each, the clean image, and for each attacker the worst of its attacks.
    """
    settings = plan["settings"]
    firsts = [u for u in units if u.start == 0 and store.pixels_path(u).exists()]
    clean = next((u for u in firsts if u.kind == "clean"), None)
    if clean is None:
        return []
    classes = settings["data"].get("classes") or []
    found = {u.index: _tensors(store, u) for u in firsts}
    base = found[clean.index]
    labels = plan["labels"]
    right = [
        i
        for i in range(len(base["case_images"]))
        if int(base["case_scores"][i].argmax()) == labels[i]
    ]
    chosen = {a: _choose(plan, rows, a) for a in settings["attackers"]}
    cases = []
    for i in right[:SHOWN]:
        views = [_view("clean", base, i)]
        for attacker in settings["attackers"]:
            attack, backward, goal = chosen[attacker][i]
            wanted = (attacker, attack, backward, goal)
            unit = next((u for u in firsts if _pictured(u) and _key(u) == wanted), None)
            if unit is None:
                continue
            title = f"{attacker} {attack}"
            if attacker == "adaptive" and backward not in ("exact", "none"):
                title += f" ({backward})"
            if goal != "wrong":
                title += f", {goal}"
            views.append(_view(title, found[unit.index], i))
        label = labels[i]
        name = classes[label] if label < len(classes) else str(label)
        cases.append(Case(plan["ids"][i], label, name, base["case_images"][i], views))
    return cases


def _view(title: str, tensors: dict[str, torch.Tensor], i: int) -> CaseView:
    purified = tensors["case_purified"][i] if "case_purified" in tensors else None
    logits, scores = tensors["case_logits"][i], tensors["case_scores"][i]
    return CaseView(
        title,
        tensors["case_images"][i],
        purified,
        logits.tolist(),
        scores.tolist(),
        int(logits.argmax()),
        int(scores.argmax()),
    )
