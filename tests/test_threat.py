"""Threat models: projection, distance, random starts, reading eps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unperturb.errors import ConfigError, SpecError
from unperturb.randomness import Keys
from unperturb.threat import L2, Linf, Threat, make_threat, parse_eps

SHAPE = (3, 2, 4, 5)


def _pair(seed: int, spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    origin = torch.rand(SHAPE, generator=generator)
    return origin, origin + spread * torch.randn(SHAPE, generator=generator)


threats = st.one_of(st.builds(Linf, st.floats(1e-3, 1.0)), st.builds(L2, st.floats(1e-3, 3.0)))


@given(threat=threats, seed=st.integers(0, 10**6), spread=st.floats(0, 3))
@settings(max_examples=80, deadline=None)
def test_projection(threat: Threat, seed: int, spread: float) -> None:
    origin, images = _pair(seed, spread)
    kept_origin, kept_images = origin.clone(), images.clone()
    found = threat.project(images, origin)
    assert bool(threat.contains(found, origin).all())
    torch.testing.assert_close(threat.project(found, origin), found, rtol=1e-5, atol=1e-6)
    assert torch.equal(origin, kept_origin)
    assert torch.equal(images, kept_images)
    # A point that is inside already stays where it is.
    inside = threat.contains(images, origin)
    torch.testing.assert_close(found[inside], images[inside], rtol=1e-5, atol=1e-6)
    # Nothing is pushed beyond where it wanted to go.
    assert bool(((found - origin) * (images - origin) >= -1e-6).all())
    assert bool(((found - origin).abs() <= (images - origin).abs() + 1e-6).all())


@given(seed=st.integers(0, 10**6), eps=st.floats(1e-3, 1.0))
@settings(max_examples=40, deadline=None)
def test_linf_projection_is_the_nearest_point(seed: int, eps: float) -> None:
    origin, images = _pair(seed, 1.0)
    found = Linf(eps).project(images, origin)
    wanted = [
        min(max(i, o - eps, 0.0), min(o + eps, 1.0))
        for i, o in zip(images.flatten().tolist(), origin.flatten().tolist(), strict=True)
    ]
    torch.testing.assert_close(found.flatten(), torch.tensor(wanted), rtol=1e-6, atol=1e-6)


def test_l2_projection_scales_the_perturbation() -> None:
    origin = torch.full((1, 1, 1, 2), 0.5)
    found = L2(0.1).project(origin + torch.tensor([[[[0.3, 0.4]]]]), origin)
    torch.testing.assert_close(found - origin, torch.tensor([[[[0.06, 0.08]]]]))


@pytest.mark.parametrize("kind", [Linf, L2])
def test_contains_sees_each_fault(kind: type[Threat]) -> None:
    threat, origin = kind(0.1), torch.full((4, 1, 3, 3), 0.05)
    images = origin.clone()
    images[1, 0, 0, 0] += 0.1002
    images[2, 0, 0, 0] = -0.001
    images[3, 0, 0, 0] = float("nan")
    assert threat.contains(images, origin).tolist() == [True, False, False, False]
    assert threat.contains(images + 0.9501, origin + 0.9501).tolist()[1] is False


def test_distances() -> None:
    origin = torch.zeros(2, 1, 1, 2)
    images = torch.tensor([[[[0.3, -0.4]]], [[[0.0, 0.2]]]])
    assert Linf(1.0).distance(images, origin).tolist() == pytest.approx([0.4, 0.2])
    assert L2(1.0).distance(images, origin).tolist() == pytest.approx([0.5, 0.2])


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-25, 1e25])
def test_ascent_has_unit_size_whatever_the_gradient(scale: float) -> None:
    gradient = _pair(3, 1.0)[1] * scale
    assert Linf(0.1).ascent(gradient).abs().unique().tolist() == [1.0]
    found = L2(0.1).ascent(gradient)
    assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 3, rel=1e-4)
    cosine = torch.cosine_similarity(found.flatten(1), gradient.flatten(1) / scale, dim=1)
    assert cosine.tolist() == pytest.approx([1.0] * 3, abs=1e-5)


@pytest.mark.parametrize("kind", [Linf, L2])
def test_ascent_of_a_zero_gradient_is_zero(kind: type[Threat]) -> None:
    assert not kind(0.1).ascent(torch.zeros(SHAPE)).any()


def test_l2_start_fills_the_ball_evenly() -> None:
    from scipy.stats import kstest

    keys, shape = Keys.of(0, [str(i) for i in range(600)]), (1, 2, 3)
    threat = L2(0.7)
    start = threat.start(keys.uniform("u", shape), keys.normal("n", shape))
    length = start.flatten(1).norm(dim=1).double() / 0.7
    assert float(length.max()) <= 1.0 + 1e-6
    # In a ball of dimension d the d-th power of the radius is uniform.
    assert kstest((length**6).numpy(), "uniform").pvalue > 1e-3
    assert float(start.flatten(1).mean(0).abs().max()) < 0.06


def test_linf_start_fills_the_cube() -> None:
    from scipy.stats import kstest

    keys = Keys.of(0, [str(i) for i in range(200)])
    start = Linf(0.1).start(keys.uniform("u", (1, 4, 4)), None)
    assert kstest((start.flatten().double() / 0.2 + 0.5).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (" 8 / 255 ", 8 / 255), ("8", 8.0)]
)
def test_parse_eps(text: str, value: float) -> None:
    assert parse_eps(text) == value


@pytest.mark.parametrize("text", ["", "eight", "8/0", "0", "-1/255", "nan", "inf", "8/255/2", "/"])
def test_parse_eps_refuses(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_eps(text)
    assert f"eps is {text!r}" in str(caught.value)
    assert "8/255" in str(caught.value)


@pytest.mark.parametrize("eps", [0, -0.1, float("nan"), math.inf, "8/255", None])
@pytest.mark.parametrize("kind", [Linf, L2])
def test_bad_eps(kind: type[Threat], eps: float) -> None:
    with pytest.raises(ConfigError, match="above 0, in pixel units such as 8/255"):
        kind(eps)


def test_eps_written_as_8_is_asked_about() -> None:
    with pytest.raises(ConfigError, match=r"eps is 8 in the norm linf.*write 8/255"):
        Linf(8)
    assert L2(8).eps == 8


def test_by_name() -> None:
    assert make_threat("L2", 0.5) == L2(0.5)
    assert make_threat("linf", 0.5) != L2(0.5)
    assert L2(0.5).to_dict() == {"norm": "l2", "eps": 0.5}
    with pytest.raises(SpecError, match="Unknown norm 'linff'.*did you mean 'linf'"):
        make_threat("linff", 0.1)
