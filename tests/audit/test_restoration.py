"""Whatever an audit shows a restoration network, every image of every batch has holes and noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from audit.doubles import digits, linear_net
from unperturb.audit import audit
from unperturb.classifiers import as_classifier
from unperturb.defense import Defense
from unperturb.errors import UnperturbError
from unperturb.purifiers import Restoration
from unperturb.purifiers.transforms import TRANSFORMS
from unperturb.threat import Linf

OPTIONS: dict[str, dict[str, Any]] = {
    "inpainting-gan": {"channels": 1, "width": 2, "coarse_width": 1},
    "masked-autoencoder": {
        "channels": 1, "token": 1, "width": 8, "depth": 1, "heads": 1, "decoder_width": 8,
        "decoder_depth": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_no_batch_of_an_audit_goes_unmasked_or_without_noise(kind: str, transform: str) -> None:
    images, labels = digits(10)
    purifier = Restoration(
        network=kind, options=OPTIONS[kind], transform=transform, image_shape=(1, 8, 8)
    )
    seen: list[tuple[Tensor, Tensor]] = []
    purifier.network.register_forward_pre_hook(
        lambda module, given: seen.append((given[0].detach().clone(), given[1].detach().clone()))
    )
    classifier = as_classifier(linear_net(), input_shape=(1, 8, 8))
    # Batches that do not divide the images: the last one is short.
    found = audit(
        Defense(classifier, purifier=purifier), images, labels, threat=Linf(0.1),
        attacks=["fgsm", "pgd-2", "stadv-1", "square-3"], batch_size=4, scoring_draws=2,
        gradient_draws=3, keep_images="none",
    )  # fmt: skip
    assert found.complete
    rows = int((found.rows["subject"] == "target").sum())
    passes = 4 if transform == "rt3" else 1
    assert sum(len(mask) for _, mask in seen) >= rows * passes
    for masked, mask in seen:
        kept = mask > 0
        share = (~kept).double().flatten(1).mean(1)
        assert torch.equal(share, torch.full_like(share, 0.25)), "an image went unmasked"
        assert not bool(masked[~kept].any()), "a dropped pixel was shown"
        outside = ((masked < 0) | (masked > 1)).flatten(1).any(1)
        # Half of a digit's pixels are 0: with noise, some of an image's lie below.
        assert bool(outside.all()) is (transform != "rt1"), "an image went without noise"


def test_an_audit_tries_the_gradients_it_is_told() -> None:
    images, labels = digits(4)
    purifier = Restoration(options=OPTIONS["inpainting-gan"], image_shape=(1, 8, 8))
    defense = Defense(as_classifier(linear_net(), input_shape=(1, 8, 8)), purifier=purifier)
    common: dict[str, Any] = {
        "threat": Linf(0.1), "attacks": ["pgd-2"], "attackers": ("adaptive",), "scoring_draws": 1,
        "gradient_draws": 2, "keep_images": "none",
    }  # fmt: skip

    def tried(**more: Any) -> list[str]:
        found = audit(defense, images, labels, **common, **more)
        rows = zip(found.rows["subject"], found.rows["attacker"], found.rows["backward"],
                   strict=True)  # fmt: skip
        return sorted({b for s, a, b in rows if (s, a) == ("target", "adaptive")})

    assert tried() == ["exact", "identity", "undefended"]
    assert tried(backwards=["exact"]) == ["exact"]
    assert tried(backwards=("undefended", "identity")) == ["identity", "undefended"]
    for wrong, words in (
        (["exat"], "did you mean 'exact'"),
        ([], "some of exact, identity, undefended, each once"),
        (["exact", "exact"], "each once"),
        ("exact", "a list of names, such as"),
    ):
        with pytest.raises(UnperturbError, match=words):
            audit(defense, images, labels, **common, backwards=wrong)
