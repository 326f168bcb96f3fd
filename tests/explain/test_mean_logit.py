"""The mean logit of clean and attacked images: numbers and picture."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from unperturb.errors import ConfigError, InputError
from unperturb.explain import figure_mean_logits, mean_logits
from unperturb.explain.canvas import save_figure


def _logits(count: int, seed: int, *, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(count, 30, generator=generator) + shift


def test_histograms_are_those_of_numpy_with_common_edges() -> None:
    clean = _logits(200, 0)
    attacked = {"pgd-10": _logits(150, 1, shift=1.0), "deepfool": _logits(90, 2)}
    found = mean_logits(clean, attacked)
    joined = np.concatenate([z.double().mean(1).numpy() for z in (clean, *attacked.values())])
    edges = np.linspace(joined.min(), joined.max(), 21)
    np.testing.assert_allclose(found.edges.numpy(), edges)
    for name, logits in {"clean": clean, **attacked}.items():
        values = logits.double().mean(1).numpy()
        expected, _ = np.histogram(values, bins=edges)
        assert found.counts[name].tolist() == expected.tolist()
        assert int(found.counts[name].sum()) == len(logits)
        assert found.means[name] == pytest.approx(values.mean())
        assert found.spreads[name] == pytest.approx(values.std())
    for name, logits in attacked.items():
        scores = np.concatenate([clean.double().mean(1), logits.double().mean(1)])
        truth = np.repeat([0, 1], [200, len(logits)])
        assert found.aurocs[name] == pytest.approx(roc_auc_score(truth, scores))
    assert found.aurocs["pgd-10"] > 0.7
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["n"] == {"clean": 200, "pgd-10": 150, "deepfool": 90}


def test_equal_means_fall_into_one_bin() -> None:
    found = mean_logits(torch.ones(5, 3), {"a": torch.ones(4, 3)}, bins=4)
    assert (int(found.counts["clean"].max()), int(found.counts["a"].max())) == (5, 4)
    assert found.aurocs["a"] == 0.5
    figure_mean_logits(found)


def test_half_precision_is_averaged_in_double() -> None:
    logits = (100 + _logits(20, 3)).half()
    found = mean_logits(logits, {"a": logits})
    assert found.means["clean"] == pytest.approx(float(logits.double().mean()), abs=1e-9)


def test_mistakes_are_named() -> None:
    good = torch.zeros(2, 3)
    wrong: list[tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, Any], type, str]] = [
        (good, {}, {}, InputError, "no attacked logits"),
        (good, {"clean": good}, {}, InputError, "named 'clean'"),
        (good, {"a": torch.zeros(2, 4)}, {}, InputError, "4 classes"),
        (torch.full((2, 3), torch.inf), {"a": good}, {}, InputError, "NaN or infinity"),
        (good, {"a": good}, {"bins": 0}, ConfigError, "bins is 0"),
    ]
    for clean, attacked, more, kind, words in wrong:
        with pytest.raises(kind, match=words):
            mean_logits(clean, attacked, **more)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_legend_lies_over_no_panel_and_every_word_inside(count: int, tmp_path: Any) -> None:
    attacked = {
        f"pgd-10?step_size=0.125&and=a-very-long-name-{k}": _logits(40, k) for k in range(count)
    }
    figure = figure_mean_logits(mean_logits(_logits(50, 9), attacked))
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    legend = figure.legends[0].get_window_extent(renderer)
    assert len(figure.axes) == count
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_window_extent(renderer))
        whole = axes.get_tightbbox(renderer)
        assert whole is not None
        assert not legend.overlaps(whole)
        assert figure.bbox.x0 <= whole.x0 <= whole.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 <= whole.y0 <= whole.y1 <= figure.bbox.y1 + 1
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])  # type: ignore[union-attr]
    save_figure(figure, tmp_path / "hist.svg")
