"""What the tests of audits share: an audit that was done once."""

from __future__ import annotations

import pytest

from audit.doubles import conv_net, digits
from audit.units import SMALL
from unperturb.audit import AuditResult, audit
from unperturb.presets import tpap
from unperturb.threat import Linf


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """A deterministic defense under both attackers, every image kept; without probes."""
    images, labels = digits(30)
    return audit(
        tpap(conv_net(), radius=0.1), images, labels, threat=Linf(SMALL), attacks="fgsm,pgd-4",
        batch_size=16, keep_images="all", out=tmp_path_factory.mktemp("audited"),
    )  # fmt: skip
