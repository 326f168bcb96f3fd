"""What a correction network does on the rows of a bank that it is not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unperturb.correction.stream import BUFFER, finite, pieces_of

if TYPE_CHECKING:
    from unperturb.banks import LogitBank

__all__ = ["HeldOut", "figures", "score"]

_BATCH = 512


class HeldOut:
    """Held-out rows of a bank: clean, and under each attack.

    Where all of them take at most ``keep`` bytes they stay in memory, otherwise they are read
    again each time.

    Args:
        bank: The bank.
        attacks: Names of its attacks.
        trained: Rows that are trained on (N,) bool; the others are held out.
        targets: What is right for each row (N,); None: its true label.
        keep: Bytes of logits that may stay in memory.
    """

    def __init__(
        self,
        bank: LogitBank,
        attacks: Sequence[str],
        trained: Tensor,
        *,
        targets: Tensor | None = None,
        keep: int = BUFFER,
    ) -> None:
        self.targets = bank.labels if targets is None else targets
        self.bank, self.sources, self.held = bank, ("clean", *attacks), ~trained
        self.count = int(self.held.sum())
        row = 4 * bank.num_classes
        self._pieces = pieces_of(bank, max(1, BUFFER // 24 // row))
        fits = self.count * row * len(self.sources) <= keep
        self._kept = {name: [_joined(self._read(name))] for name in self.sources} if fits else {}

    def _read(self, source: str) -> Iterator[tuple[Tensor, Tensor]]:
        for start, stop in self._pieces:
            held = self.held[start:stop]
            if bool(held.any()):
                logits = finite(self.bank.rows(source, start, stop), source, start)
                yield logits[held], self.targets[start:stop][held]

    def accuracies(self, network: nn.Module | None, device: torch.device) -> dict[str, float]:
        """Share of the held-out rows that are right, by source.

        Args:
            network: From logits to corrected logits, in eval mode; None: as they are.
            device: Where it is.
        """
        found = {}
        with torch.no_grad():
            for source in self.sources:
                correct = 0
                for logits, labels in self._kept.get(source) or self._read(source):
                    for part, true in zip(logits.split(_BATCH), labels.split(_BATCH), strict=True):
                        answers = part if network is None else network(part.to(device))
                        correct += int((answers.argmax(1).cpu() == true).sum())
                found[source] = correct / self.count
        return found


def _joined(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    logits, labels = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(labels)


def score(accuracies: dict[str, float], clean_share: float) -> float:
    """``p * clean accuracy + (1 - p) * mean adversarial accuracy``.

    Example:
        >>> score({"clean": 0.9, "pgd": 0.5, "mim": 0.7}, 0.5)
        0.75
    """
    attacks = [value for name, value in accuracies.items() if name != "clean"]
    return clean_share * accuracies["clean"] + (1.0 - clean_share) * sum(attacks) / len(attacks)


def figures(accuracies: dict[str, float], clean_share: float) -> dict[str, Any]:
    """Accuracies as they are recorded."""
    return {
        "clean": accuracies["clean"],
        "adversarial": {name: value for name, value in accuracies.items() if name != "clean"},
        "score": score(accuracies, clean_share),
    }
