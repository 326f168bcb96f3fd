"""Two units that would find the same images are one: what is shared, and that nothing changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit.doubles import conv_net, digits
from unperturb.attacks import BaseAttack
from unperturb.audit import audit, work
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.threat import Linf


def _runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Names of the attacks that are run from now on, and whether the victim is bare."""
    seen: list[tuple[str, bool]] = []
    real = BaseAttack.run

    def run(self: Any, surface: Any, *arguments: Any, **options: Any) -> Any:
        seen.append((self.name, not isinstance(surface.target, Defense)))
        return real(self, surface, *arguments, **options)

    monkeypatch.setattr(BaseAttack, "run", run)
    return seen


def test_what_both_attackers_find_of_a_bare_net_is_sought_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, labels = digits(10)
    given: dict[str, Any] = {
        "attacks": "deepfool-4,cw-l2-4?search=1,ddn-4", "threat": Linf(0.2), "batch_size": 5,
        "keep_images": "all",
    }  # fmt: skip
    defense = tpap(conv_net(), radius=0.1)
    seen = _runs(monkeypatch)
    shared = audit(defense, images, labels, out=tmp_path / "shared", **given)
    bare = [name for name, alone in seen if alone]
    # Two blocks each; DDN draws random numbers, which differ between the attackers.
    assert {name: bare.count(name) for name in set(bare)} == {
        "deepfool-4": 2, "cw-l2-4?search=1": 2, "ddn-4": 4
    }  # fmt: skip
    monkeypatch.setattr(work, "_KNOWN_BYTES", 0)
    seen.clear()
    again = audit(defense, images, labels, out=tmp_path / "again", **given)
    assert [name for name, alone in seen if alone].count("deepfool-4") == 4
    assert again.digest == shared.digest


def test_padding_of_a_short_block_is_never_attacked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, labels = digits(10)
    sizes: list[int] = []
    real = BaseAttack.run

    def run(self: Any, surface: Any, images: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(images))
        return real(self, surface, images, *arguments, **options)

    monkeypatch.setattr(BaseAttack, "run", run)
    given: dict[str, Any] = {"attacks": "pgd-2", "threat": Linf(0.2), "keep_images": "all"}
    defense = tpap(conv_net(), radius=0.1)
    found = audit(defense, images, labels, out=tmp_path / "short", batch_size=8, **given)
    assert set(sizes) == {8, 2}
    whole = audit(defense, images, labels, out=tmp_path / "whole", batch_size=10, **given)
    # The two images of the short block are judged like all others.
    assert found.summary["target"] == whole.summary["target"]
    assert found.summary["baseline"] == whole.summary["baseline"]
