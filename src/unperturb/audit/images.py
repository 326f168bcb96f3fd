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
    by_key = {
        (u.attack, u.attacker, u.backward, u.start): u
        for u in units
        if u.kind == "attack" and (u.subject == "target" or u.attacker == "oblivious")
    }
    size = plan["settings"]["batch_size"]
    for attacker, picks in chosen.items():
        for position, (attack, backward) in enumerate(picks):
            start = position // size * size
            unit = by_key[(attack, attacker, backward, start)]
            wanted.setdefault(unit.index, []).append((attacker, position, position - start))
    kept: dict[str, dict[int, torch.Tensor]] = {a: {} for a in attackers}
    for unit in units:
        if unit.index in wanted:
            images = _tensors(store, unit)["images"]
            for attacker, position, row in wanted[unit.index]:
                kept[attacker][position] = images[row]
    for attacker, found in kept.items():
        stacked = torch.stack([found[i] for i in range(len(plan["ids"]))])
        facts = {"attack": [a for a, _ in chosen[attacker]]}
        facts["backward"] = [b for _, b in chosen[attacker]]
        write_tensors(
            _worst_path(store, attacker),
            {"images": stacked},
            {"choice": json.dumps(facts), "ids": json.dumps(plan["ids"])},
        )


def _choose(plan: dict[str, Any], rows: Rows, attacker: str) -> list[tuple[str, str]]:
    """(attack, backward) of the worst image, for each image in order."""
    place = {image: position for position, image in enumerate(plan["ids"])}
    best: list[tuple[float, float, str, str]] = [(-1.0, float("-inf"), "", "")] * len(place)
    mask = (rows["attacker"] == attacker) & (rows["subject"] == "target") & (rows["draw"] == 0)
    for number in np.flatnonzero(mask):
        position = place[rows["image_id"][number]]
        worse = (float(not rows["correct"][number]), float(rows["margin"][number]))
        if worse > best[position][:2]:
            best[position] = (
                *worse,
                str(rows["attack"][number]),
                str(rows["backward"][number]),
            )
    return [(attack, backward) for _, _, attack, backward in best]


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
            attack, backward = chosen[attacker][i]
            unit = next(
                (
                    u
                    for u in firsts
                    if (u.attack, u.attacker, u.backward) == (attack, attacker, backward)
                    and (u.subject == "target" or attacker == "oblivious")
                ),
                None,
            )
            if unit is None:
                continue
            title = f"{attacker} {attack}"
            if attacker == "adaptive" and backward != "exact":
                title += f" ({backward})"
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
