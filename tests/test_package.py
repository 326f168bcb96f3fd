"""The package's face: lazy, light, complete."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import unperturb


def _fresh(code: str) -> str:
    """Run code in a new interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    code = """
        import sys
        import unperturb
        print([m for m in ("torch", "numpy", "sklearn", "scipy", "PIL") if m in sys.modules])
    """
    assert _fresh(code) == "[]"


def test_a_defense_needs_no_heavy_module() -> None:
    code = """
        import sys
        import unperturb as up
        up.Defense, up.tpap, up.Linf, up.make_attack, up.ThresholdDetector, up.load_classifier
        heavy = ("sklearn", "scipy", "PIL", "pyarrow", "datasets", "transformers",
                 "huggingface_hub", "jinja2", "foolbox", "art")
        print([m for m in heavy if m in sys.modules])
    """
    assert _fresh(code) == "[]"


@pytest.mark.parametrize("name", [n for n in unperturb.__all__ if n != "audit"])
def test_every_name_is_there(name: str) -> None:
    assert getattr(unperturb, name) is not None
    assert name in dir(unperturb)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'unperturb' has no attribute 'Defence'"):
        _ = unperturb.Defence


ORDERS = {
    "api first": "import unperturb.audit.api as api",
    "name first": "import unperturb as up; up.audit",
}


@pytest.mark.parametrize("order", ORDERS)
def test_audit_is_a_function_and_a_package_in_any_order(order: str) -> None:
    code = f"""
        {ORDERS[order]}
        import unperturb as up
        import unperturb.audit.plan as plan
        import unperturb.audit.api as api
        from unperturb import audit
        api.audit = lambda *args, **options: (args, options)
        print(up.audit(1, x=2), audit is up.audit, plan is up.audit.plan)
    """
    assert _fresh(code) == "((1,), {'x': 2}) True True"
