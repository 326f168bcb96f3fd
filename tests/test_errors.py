"""Errors say the problem, the expectation and the fix, and survive pickling."""

from __future__ import annotations

import pickle

import pytest

from unperturb import errors
from unperturb.errors import MissingExtraError, UnperturbError, unknown_name

KINDS = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not MissingExtraError])
def test_message_and_pickle(kind: type[UnperturbError]) -> None:
    error = kind("eps is 8.", expected="a fraction", fix="write 8/255")
    assert str(error) == "eps is 8. Expected: a fraction. Fix: write 8/255."
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.problem, again.expected, again.fix) == ("eps is 8.", "a fraction", "write 8/255")


def test_parts_may_be_left_out() -> None:
    assert str(UnperturbError("it broke")) == "it broke."
    assert (
        str(UnperturbError("it broke", fix="did you mean it?")) == "it broke. Fix: did you mean it?"
    )


def test_missing_extra() -> None:
    error = MissingExtraError("timm", extra="timm", purpose="timm:NAME", detail="no torchvision")
    for part in ("'timm'", "(no torchvision)", "pip install 'unperturb[timm]'"):
        assert part in str(error)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(again) == str(error)
    assert isinstance(error, ImportError)


def test_unknown_name_names_the_nearest() -> None:
    text = str(unknown_name("attack", "PDG", ["fgsm", "pgd", "mim"]))
    assert "Unknown attack 'PDG'" in text
    assert "one of fgsm, mim, pgd" in text
    assert "did you mean 'pgd'?" in text


def test_unknown_name_without_a_near_one() -> None:
    text = str(unknown_name("attack", "qqqqqq", ["fgsm"]))
    assert "Fix" not in text
    assert "(none are registered)" in str(unknown_name("attack", "x", []))
