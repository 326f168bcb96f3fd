"""The smallest recipe whose defenses have networks and thresholds of their own."""

from __future__ import annotations

from pathlib import Path

TINY = """
title: Networks of a test
kind: table
data: digits
paper: {source: nobody, item: Table 9}
datasets:
  digits: {title: digits, spec: digits, train_limit: 200}
models:
  net:
    title: a small network
    data: digits
    smoke:
      train:
        - {arch: small-cnn, epochs: 2, batch_size: 32, lr: 0.1, augment: none, holdout: 40,
           monitor_images: 20}
  asymmetric:
    title: one that reads an inner layer
    data: digits
    smoke:
      train:
        - {arch: small-cnn, through: vae, level: 0, epochs: 1, batch_size: 32, lr: 0.1,
           augment: none, holdout: 40, monitor_images: 20}
networks:
  vae:
    title: a VAE
    kind: vae
    data: digits
    smoke:
      net: {width: 4, downsample: 1, latent_channels: 2}
      train: {epochs: 2, batch_size: 32, augment: none, holdout: 40}
  denoiser:
    kind: denoiser
    model: net
    smoke:
      net: {width: 2, depth: 1}
      train: {epochs: 1, attack_steps: 1, batch_size: 32, lr: 0.05, augment: none, holdout: 40}
  gan:
    kind: gan
    data: digits
    smoke:
      train: {width: 4, coarse_width: 2, discriminator_width: 4, patch: 2, epochs: 1,
              batch_size: 64, augment: none, holdout: 40, monitor_images: 8, samples: 0}
  atop:
    kind: atop
    start: gan
    model: net
    smoke:
      train: {sigma: 0.1, epochs: 1, batch_size: 64, augment: none, holdout: 40,
              monitor_images: 8, samples: 0}
  unseen: {kind: mae, data: digits, cpu: {zoo: nowhere}}
threshold_settings: {n: 100, quantile: 0.9}
thresholds:
  latent: {vae: {network: vae}, steps: 2}
  own: {model: asymmetric, steps: 1}
  toy: {denoiser: {network: denoiser}, statistic: max-change}
  step: {purifier: "fgsm-step?radius=0.1"}
defenses:
  alu: {preset: alu, threshold: {threshold: latent}}
  own: {preset: alu, threshold: {threshold: own}}
  toy: {preset: alu, threshold: {threshold: toy}}
  step: {preset: alu, threshold: {threshold: step}}
  purified: {preset: alu, vae: {network: vae}, steps: 1, decision: logits-after}
  atop: {preset: atop, purifier: {network: atop}}
threat: {eps: 0.1}
n: 6
batch_size: 6
attackers: [oblivious]
columns:
  Clean: {}
  FGSM: {attack: fgsm}
rows:
  plug-in: {model: net, defense: alu}
  asymmetric: {model: asymmetric, defense: own}
  toy: {model: net, defense: toy}
  step: {model: net, defense: step}
  purified: {model: net, defense: purified}
  restored: {model: net, defense: atop}
"""


def write(folder: Path, text: str = TINY) -> Path:
    path = folder / "networks.yaml"
    path.write_text(text, encoding="utf-8")
    return path
