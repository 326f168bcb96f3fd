"""The smallest recipe with selected images, banks and correctors, and one that explains them."""

from __future__ import annotations

from pathlib import Path

TINY = """
title: A corrector of a test
kind: table
data: digits
paper: {source: nobody, item: Table 9}
datasets:
  digits: {title: digits, spec: digits, train_limit: 200, select: {model: net, per_class: 1}}
models:
  net:
    title: a small network
    data: digits
    smoke:
      train:
        - {arch: small-cnn, epochs: 3, batch_size: 32, lr: 0.1, schedule: one-cycle, augment: none,
           holdout: 40, monitor_images: 20}
bank_settings: {threat: {eps: 0.15}}
banks:
  train: {model: net, attacks: [pgd-2, mim-2]}
  test: {model: net, attacks: pgd-2, part: selected}
  other: {model: net, attacks: pgd-2, part: test, limit: 30}
fit_settings: {width: 16, epochs: 4, batch_size: 32, lr: 0.01}
fits:
  both: {bank: train}
  one: {bank: train, attacks: [pgd-2], epochs: 2}
defenses:
  both: {preset: logit-correction, corrector: {fit: both}}
  one: {preset: logit-correction, corrector: {fit: one}, any_classifier: true}
threat: {eps: 0.15}
n: 8
batch_size: 8
columns:
  Clean: {}
  PGD: {attack: pgd-2}
  Clean, selected: {selected: true}
  Own: {attack: own, selected: true}
rows:
  corrected:
    model: net
    defense: both
    attack: mim-2
    paper: {Clean: 90, PGD: 75, "Clean, selected": 96.5, Own: 87.8}
    bare: {Clean: 91, PGD: 0.5, "Clean, selected": 100, Own: 0.25}
  fitted on one: {model: net, defense: one, attack: "deepfool-3?form=l2",
                  threat: {norm: l2, eps: 0.4}}
"""

EXPLAIN = """
explanation:
  top: 3
  controls: 4
  draw: [mean-logit, supporting, instance]
  subjects:
    PGD: {fit: both, bank: test}
    PGD, another corrector: {fit: one, bank: test}
    other images: {fit: both, bank: other}
    bare: {bank: other}
  paper: {PGD / other images: 0.9662}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "corrector.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def explained(text: str) -> str:
    """The recipe as one that explains."""
    head = text[: text.index("defenses:")].replace("kind: table", "kind: explanation")
    return head + "threat: {eps: 0.15}\n" + EXPLAIN.lstrip()
