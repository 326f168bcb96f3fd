"""Penultimate features, their figures, and maps of them in the plane."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from unperturb.attacks import Surface, make_attack
from unperturb.classifiers import new_classifier
from unperturb.errors import ConfigError, InputError, MissingExtraError, SpecError
from unperturb.explain import Embedding, embedding, figure_embedding, penultimate_features
from unperturb.explain.clustering import neighbor_agreement, silhouette
from unperturb.explain.tsne import plane
from unperturb.presets import tpap
from unperturb.randomness import Keys
from unperturb.threat import Linf

Net = Callable[..., nn.Module]
COUNT = 24
LABELS = torch.arange(COUNT) % 5


# -- features -------------------------------------------------------------------------------------


class _Stacked(nn.Module):
    """Calls its convolutions ``features``, as libraries do: that is not what is meant here."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.features, self.head = net[:6], net[6:]  # type: ignore[index]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrap", [lambda net: net, _Stacked], ids=["plain", "stacked"])
def test_features_are_what_the_last_linear_layer_reads(
    wrap: Callable[..., nn.Module], conv: Net, pixels: Callable[..., Tensor], untouched: Any
) -> None:
    inner = conv()
    net, images = wrap(inner).eval(), pixels(7)
    with untouched(net):
        features, logits = penultimate_features(net, images, batch_size=3)
    assert features.shape == (7, 48)
    torch.testing.assert_close(inner[-1](features), net(images))  # type: ignore[index]
    torch.testing.assert_close(logits, net(images).detach())
    assert not features.requires_grad


def test_a_networks_own_features_come_first(pixels: Callable[..., Tensor]) -> None:
    classifier = new_classifier("cifar-resnet20", seed=0)
    images = pixels(2, side=16)
    features, logits = penultimate_features(classifier, images)
    with torch.no_grad():
        torch.testing.assert_close(features, classifier.features(images))
        # The linear layer reads the very same.
        torch.testing.assert_close(classifier.module.linear(features), logits)  # type: ignore[operator]


def test_networks_without_features_and_broken_ones_are_refused(
    pixels: Callable[..., Tensor], conv: Net
) -> None:
    bare = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(InputError, match="no linear layer.*a method features"):
        penultimate_features(bare, pixels(2))
    with pytest.raises(ConfigError, match="batch_size is 0"):
        penultimate_features(conv(), pixels(2), batch_size=0)
    net = conv()
    net[0].bias.data[0] = float("nan")  # type: ignore[index]
    with pytest.raises(InputError, match="NaN"):
        penultimate_features(net, pixels(2))


# -- figures --------------------------------------------------------------------------------------


def _points(count: int = 60, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (count,), generator=generator)
    return torch.randn(count, size, generator=generator) + labels[:, None] * 0.5, labels


@pytest.mark.parametrize("neighbors", [1, 10])
def test_neighbor_agreement_is_that_of_another_implementation(neighbors: int) -> None:
    points, labels = _points()
    found = NearestNeighbors(n_neighbors=neighbors + 1).fit(points.numpy())
    nearest = found.kneighbors(points.numpy(), return_distance=False)[:, 1:]
    expected = (labels.numpy()[nearest] == labels.numpy()[:, None]).mean()
    assert neighbor_agreement(points, labels, neighbors=neighbors) == pytest.approx(expected)


def test_neighbors_of_equal_points_and_of_few() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    # Twins: an image is not its own neighbor, even where another lies in the same place.
    twins = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    assert neighbor_agreement(twins, labels, neighbors=1) == 0
    # Only three others: one of each has the same label.
    assert neighbor_agreement(twins, labels, neighbors=10) == pytest.approx(1 / 3)


def test_silhouette_is_defined_or_none() -> None:
    points, labels = _points()
    expected = silhouette_score(points.double().numpy(), labels.numpy())
    assert silhouette(points, labels) == pytest.approx(float(expected))
    assert silhouette(points, torch.zeros_like(labels)) is None
    assert silhouette(points, torch.arange(len(labels))) is None


# -- the plane ------------------------------------------------------------------------------------


def test_the_plane_depends_on_features_and_seed_only() -> None:
    points, _ = _points(30)
    with torch.random.fork_rng(devices=[]):
        first = plane(points, perplexity=5.0, seed=3)
        torch.manual_seed(9)
        state = np.random.get_state()  # noqa: NPY002
        np.random.seed(4)  # noqa: NPY002
        again = plane(points, perplexity=5.0, seed=3)
        np.random.set_state(state)  # noqa: NPY002
    assert first.shape == (30, 2)
    assert torch.equal(first, again)
    wide = plane(points[:, :1], perplexity=5.0, seed=3)
    assert not torch.equal(wide, plane(points[:, :1], perplexity=5.0, seed=4))


def test_far_groups_stay_apart_in_the_plane() -> None:
    points, _ = _points(30)
    groups = torch.arange(30) % 3
    found = plane(points + 100.0 * nn.functional.one_hot(groups, 6), perplexity=5.0)
    assert neighbor_agreement(found, groups, neighbors=3) == 1.0


def test_points_that_cannot_be_laid_out_are_refused() -> None:
    points, _ = _points(10)
    for perplexity in (10.0, 0.0, float("nan")):
        with pytest.raises(ConfigError, match="for 10 points"):
            plane(points, perplexity=perplexity)
    with pytest.raises(InputError, match="same features"):
        plane(points[:1].expand(10, -1), perplexity=3.0)


# -- rows and panels ------------------------------------------------------------------------------


def _embed(subjects: Any, images: Tensor, **changes: Any) -> Embedding:
    settings = {"attacks": "pgd-2,fgsm", "threat": Linf(0.1), "perplexity": 5.0, **changes}
    return embedding(subjects, images, LABELS, **settings)


@pytest.fixture
def found(conv: Net, pixels: Callable[..., Tensor]) -> Embedding:
    """A bare classifier, and another with a defense."""
    subjects = {"bare": conv(seed=1), "defended": tpap(conv(), radius=0.05)}
    return _embed(subjects, pixels(COUNT))


def test_each_panel_states_the_figures_of_its_own_features(
    conv: Net, pixels: Callable[..., Tensor], found: Embedding
) -> None:
    assert [row.name for row in found.rows] == ["bare", "defended"]
    assert [panel.name for panel in found.rows[1].panels] == ["clean", "pgd-2", "fgsm"]
    net = conv()
    defense = tpap(net, radius=0.05)
    images = pixels(COUNT)
    keys = Keys.of(0, [str(k) for k in range(COUNT)], domain="attack/fgsm")
    attack = make_attack("fgsm")
    made = attack.run(Surface(net), images, LABELS, threat=Linf(0.1), keys=keys, stop="fixed")
    for panel, given in zip(
        (found.rows[1].panels[0], found.rows[1].panels[2]), (images, made.images), strict=True
    ):
        told = defense.predict(given)
        assert torch.equal(panel.predictions, told.labels)
        assert panel.accuracy == pytest.approx(float((told.labels == LABELS).double().mean()))
        assert told.purified is not None
        features, _ = penultimate_features(net, told.purified)
        assert panel.neighbors == pytest.approx(neighbor_agreement(features, LABELS))
        assert panel.silhouette == pytest.approx(silhouette(features, LABELS), abs=1e-5)
    clean = found.rows[0].panels[0]
    features, logits = penultimate_features(conv(seed=1), images)
    assert torch.equal(clean.predictions, logits.argmax(1))
    assert clean.neighbors == pytest.approx(neighbor_agreement(features, LABELS))


def test_the_panels_of_a_row_share_one_plane(conv: Net, pixels: Callable[..., Tensor]) -> None:
    net, images = conv(), pixels(COUNT)
    (row,) = _embed(net, images, attacks=("fgsm",)).rows
    whole = torch.cat([panel.coordinates for panel in row.panels])
    features = [penultimate_features(net, images)[0]]
    assert row.dimensions == 48
    assert len(whole) == 2 * COUNT
    # An attack that all but moves nothing leaves each point beside its clean self.
    (still,) = _embed(net, images, attacks=("fgsm",), threat=Linf(1e-6)).rows
    clean, moved = (panel.coordinates for panel in still.panels)
    # (Two images may lie closer to each other than rounding lets t-SNE put one of them twice.)
    near = torch.cdist(moved, clean).argmin(1) == torch.arange(COUNT)
    assert float(near.float().mean()) > 0.75
    # Alone, the same images lie otherwise: the map is of all columns together.
    assert not torch.allclose(plane(features[0], perplexity=5.0), row.panels[0].coordinates)


def test_equal_seeds_give_equal_files(
    conv: Net, pixels: Callable[..., Tensor], found: Embedding
) -> None:
    subjects = {"bare": conv(seed=1), "defended": tpap(conv(), radius=0.05)}
    again = _embed(subjects, pixels(COUNT))
    assert again.to_csv() == found.to_csv()
    assert again.to_dict() == found.to_dict()
    other = _embed({"bare": conv(seed=1)}, pixels(COUNT), seed=1)
    assert other.to_csv() != _embed({"bare": conv(seed=1)}, pixels(COUNT)).to_csv()


def test_what_is_written_is_complete(found: Embedding) -> None:
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(rows) == 2 * 3 * COUNT
    last = rows[-1]
    assert (last["row"], last["column"], last["id"]) == ("defended", "fgsm", str(COUNT - 1))
    panel = found.rows[1].panels[2]
    assert int(last["prediction"]) == int(panel.predictions[-1])
    assert float(last["x"]) == pytest.approx(float(panel.coordinates[-1, 0]), rel=1e-5)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["n"] == COUNT
    assert (facts["attacks"], facts["eps"], facts["neighbors"]) == (["pgd-2", "fgsm"], 0.1, 10)
    # Classes of 5, 5, 5, 5 and 4 images.
    assert facts["chance"] == pytest.approx((4 * 5 * 4 + 4 * 3) / (24 * 23))
    assert facts["rows"][0]["panels"][1]["accuracy"] == found.rows[0].panels[1].accuracy


def test_clean_images_alone(conv: Net, pixels: Callable[..., Tensor]) -> None:
    (row,) = _embed(conv(), pixels(COUNT), attacks=()).rows
    assert (row.name, [panel.name for panel in row.panels]) == ("classifier", ["clean"])


def test_an_adaptive_attacker_attacks_the_defense(
    conv: Net, pixels: Callable[..., Tensor], found: Embedding
) -> None:
    subjects = {"bare": conv(seed=1), "defended": tpap(conv(), radius=0.05)}
    adaptive = _embed(subjects, pixels(COUNT), attacker="adaptive")
    for name in ("accuracy", "neighbors"):
        for mine, theirs in zip(adaptive.rows[0].panels, found.rows[0].panels, strict=True):
            assert getattr(mine, name) == getattr(theirs, name)
    defense = subjects["defended"]
    keys = Keys.of(0, [str(k) for k in range(COUNT)], domain="attack/fgsm")
    surface = Surface(defense, backward="identity")
    made = make_attack("fgsm").run(
        surface, pixels(COUNT), LABELS, threat=Linf(0.1), keys=keys, stop="fixed"
    )
    panel = adaptive.rows[1].panels[2]
    assert torch.equal(panel.predictions, defense.predict(made.images).labels)
    assert panel.neighbors != found.rows[1].panels[2].neighbors


def test_the_picture_carries_the_figures_and_one_scale_a_row(found: Embedding) -> None:
    figure = figure_embedding(found, classes=["a", "b$", "c$", "d", "e"])
    cells = figure.axes
    assert len(cells) == 6
    panels = [panel for row in found.rows for panel in row.panels]
    for axes, panel in zip(cells, panels, strict=True):
        said = " ".join(text.get_text() for text in axes.texts)
        assert panel.name in said
        assert f"accuracy {panel.accuracy:.1%}" in said
        assert f"10-NN {panel.neighbors:.1%}" in said
        assert f"silhouette {panel.silhouette:.2f}" in said
        offsets = torch.as_tensor(np.asarray(axes.collections[0].get_offsets()))
        torch.testing.assert_close(offsets.float(), panel.coordinates)
    assert {axes.get_xlim() for axes in cells[:3]} == {cells[0].get_xlim()}
    assert cells[3].get_xlim() != cells[0].get_xlim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "a",
        "b$",
        "c$",
        "d",
        "e",
    ]
    figure.canvas.draw()


def test_many_classes_have_colors_and_no_legend(linear: Net, pixels: Callable[..., Tensor]) -> None:
    images = pixels(30, channels=1, side=4)
    shown = embedding(
        linear(classes=30), images, torch.arange(30), attacks=(), perplexity=5.0
    )  # fmt: skip
    figure = figure_embedding(shown)
    assert not figure.legends
    assert len(np.unique(figure.axes[0].collections[0].get_facecolors(), axis=0)) == 30  # type: ignore[attr-defined]
    assert "silhouette undefined" in " ".join(text.get_text() for text in figure.axes[0].texts)


def test_mistakes_are_named(
    conv: Net, linear: Net, pixels: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, images = conv(), pixels(COUNT)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"perplexity": 24.0}, InputError, "24 images for the perplexity 24.*at least 25 images"),
        ({"perplexity": 0.0}, ConfigError, "perplexity is 0"),
        ({"perplexity": float("inf")}, ConfigError, "perplexity is inf"),
        ({"attacks": "pdg"}, SpecError, "did you mean 'pgd'"),
        ({"attacker": "both"}, SpecError, "oblivious"),
        ({"ids": ["a"]}, InputError, "1 ids and 24 images"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"images": images[:0]}, InputError, "There is no image"),
        ({"images": images[:, :1]}, InputError, "1 channel"),
        ({"images": images, "subjects": linear(channels=3)}, InputError, r"shape \(3, 8, 8\)"),
        ({"subjects": {}}, InputError, "no subject"),
        ({"subjects": {"a": "b"}}, SpecError, "The classifier is a str"),
    ]
    for changes, kind, words in wrong:
        given = {"subjects": net, "images": images, **changes}
        with pytest.raises(kind, match=words):
            _embed(given.pop("subjects"), given.pop("images"), **given)
    with pytest.raises(InputError, match="labels from 0 to 4"):
        embedding(net, images, LABELS + 1, attacks=(), perplexity=5.0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shown = _embed(net, images, attacks=())
    with pytest.raises(MissingExtraError, match=r"unperturb\[explain\]"):
        figure_embedding(shown)
