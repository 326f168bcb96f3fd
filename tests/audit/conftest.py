"""What the tests of audits share: audits that were done once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from audit.doubles import conv_net, digits, small
from audit.units import SMALL
from unperturb.audit import AuditResult, audit, read_result
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


@pytest.fixture(scope="session")
def _done(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return audit(**small(out=tmp_path_factory.mktemp("done")))


@pytest.fixture
def done(_done: AuditResult, tmp_path: Path) -> AuditResult:
    """A complete audit in a folder that the test may spoil."""
    shutil.copytree(_done.store.folder, tmp_path / "done")
    return read_result(tmp_path / "done")
