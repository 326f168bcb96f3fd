"""The smallest recipe with a random defense: draws, gradients, pairs of rows, a network's curve."""

from __future__ import annotations

from pathlib import Path

TINY = """
title: A random defense of a test
kind: curves
data: digits
paper: {source: nobody, item: Table 9}
datasets:
  digits: {title: digits, spec: digits, train_limit: 300}
models:
  net:
    title: a small network
    data: digits
    smoke:
      train:
        - {arch: small-cnn, epochs: 4, batch_size: 32, lr: 0.1, schedule: one-cycle, augment: none,
           holdout: 40, monitor_images: 20}
networks:
  gan:
    kind: gan
    data: digits
    smoke:
      train: {width: 4, coarse_width: 2, discriminator_width: 4, sigma: 0.1, epochs: 2, lr: 0.005,
              batch_size: 16, augment: none, holdout: 40, monitor_images: 8, samples: 0}
  tuned:
    kind: atop
    start: gan
    model: net
    smoke:
      train: {epochs: 2, batch_size: 16, lr: 0.005, augment: none, holdout: 40, monitor_images: 8,
              samples: 0}
  missing: {kind: mae, data: digits, cpu: {zoo: nowhere}}
defenses:
  gan: {preset: atop, purifier: {network: gan}}
  tuned: {preset: atop, purifier: {network: tuned}}
panels:
  one:
    lines:
      right, clean: {network: tuned, figure: clean}
      right, FGSM: {network: tuned, figure: attacked}
      of the model: {model: net, figure: heldout_clean}
      nothing: {network: missing, figure: clean}
threat: {eps: 0.1}
n: 12
batch_size: 6
scoring_draws: 4
columns:
  Clean: {}
  FGSM: {attack: fgsm, only: oblivious}
  PGD:
    attack: "pgd-2?draws=2"
    n: 8
    gradients: [exact, undefended]
    only: adaptive
  StAdv: {attack: "stadv-1?draws=2", n: 8, gradients: [identity]}
pairs:
  tuning: [tuned, not tuned]
  unlike: [tuned, bare]
rows:
  bare: {model: net}
  not tuned: {model: net, defense: gan}
  tuned: {model: net, defense: tuned}
"""


def write(folder: Path, text: str = TINY) -> Path:
    path = folder / "comparing.yaml"
    path.write_text(text, encoding="utf-8")
    return path
