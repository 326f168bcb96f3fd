"""What the tests of corrected files share: a corrector that was never trained."""

from __future__ import annotations

import pytest

from correction.saved import K
from unperturb.correction import Corrector
from unperturb.networks.corrector import CorrectionNetwork


@pytest.fixture
def corrector() -> Corrector:
    """One that changes some labels and not others."""
    return Corrector(
        CorrectionNetwork(num_classes=K, width=32, seed=3),
        classifier="ab" * 32,
        arch="small-cnn",
        classes=("ape", "bee", "cat", "dog", "eel"),
    )
