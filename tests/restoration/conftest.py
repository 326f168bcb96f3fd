"""What the tests of restoration training share: images, and a classifier for them."""

from __future__ import annotations

import pytest
import torch

from restoration.small import digits
from unperturb.classifiers import Classifier, new_classifier
from unperturb.data import ImageSet


@pytest.fixture
def data() -> ImageSet:
    """30 digits: three steps of eight, and six held out."""
    return digits()


@pytest.fixture
def classifier() -> Classifier:
    """A classifier with batch norms of all kinds, that was never trained."""
    net = new_classifier("small-cnn", in_channels=1, seed=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in net.module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) - 0.5)
    return net
