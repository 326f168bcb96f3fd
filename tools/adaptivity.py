"""Does any attack of another library break a defense where our adaptive suite does not?

    python tools/adaptivity.py --case tpap --data DATA/cifar10 --out FOLDER --record FILE.json
    python tools/adaptivity.py --case random --weights WEIGHTS.safetensors --data ... --out ...

Two defenses: TPAP around the robust-overfitted network of the zoo (the radius of the first audit),
and noise with masks, a random purifier, around an adversarially trained network. First our suite as
the adaptive attacker of an audit runs it: every attack, by every gradient that an audit tries, on
the images that are left. Then, on the images that survive all of it, the outside attacks, fixed
beforehand:

- Foolbox ``LinfPGD``, 100 steps of eps / 4, 5 restarts;
- ART ``ProjectedGradientDescent``, 100 steps of eps / 4, 5 random starts;
- pyautoattack, ``standard`` on TPAP and ``rand`` on the random purifier;

each on the defense's exact and on its identity (BPDA) gradient, the random one with EOT over 20
draws (Foolbox's own wrapper, means over 20 draws for ART, pyautoattack's own). An image is broken,
by either side, where it lies inside the ball and most of 21 fresh draws answer wrongly (one draw,
where nothing is random). Finished blocks lie in ``--out`` and are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strength import Made, Make, blocks, inside
from unperturb.attacks import Attack, Surface, describe_attack
from unperturb.attacks.outside import SurfaceModule, fenced
from unperturb.audit.arsenal import adaptive_backwards, arsenal
from unperturb.audit.plan import environment
from unperturb.audit.statistics import wilson
from unperturb.classifiers import load_classifier
from unperturb.context import Context
from unperturb.data import ImageSet, load_images
from unperturb.defense import Defense
from unperturb.files import short_paths, write_json
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Linf, parse_eps

ROOT = Path(__file__).resolve().parent.parent
FGSM = ROOT / "zoo" / "cifar10-resnet20-fgsm"
RADIUS = ROOT / "docs" / "results" / "records" / "radius.json"
STEPS, RESTARTS, DRAWS, VOTES = 100, 5, 20, 21
RULES = ("exact", "identity")
LIMIT = 0.005


class NoiseAndMasks(Purifier):
    """Gaussian noise of 0.05, and blocks of 4 x 4 pixels that turn grey, each with chance 0.1."""

    name = "noise-and-masks"
    stochastic = True
    sigma, chance, block = 0.05, 0.1, 4

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Noise, then masks."""
        height, width = images.shape[2:]
        small = (1, -(-height // self.block), -(-width // self.block))
        masked = (ctx.uniform("mask", small) < self.chance).repeat_interleave(self.block, 2)
        masked = masked.repeat_interleave(self.block, 3)[:, :, :height, :width]
        noisy = images + self.sigma * ctx.noise("noise", images.shape[1:])
        shown = torch.where(masked, 0.5, noisy)
        return Purified(shown, shown)


def defend(options: argparse.Namespace, device: torch.device) -> Defense:
    """The defense of a case."""
    if options.case == "random":
        if options.weights is None:
            sys.exit("--case random needs --weights of an adversarially trained network")
        net = load_classifier(f"{options.network}@{options.weights}").to(device)
        return Defense(net, purifier=NoiseAndMasks())
    radius = parse_eps(json.loads(RADIUS.read_text(encoding="utf-8"))["chosen"])
    return tpap(load_classifier(FGSM).to(device), radius=radius)


def _told(defense: Defense) -> dict[str, Any]:
    """What the defense is made of, without paths of this machine or its network's lineage."""
    told = defense.describe()
    told["classifier"] = {
        key: short_paths(value) if key == "spec" else value
        for key, value in told["classifier"].items()
        if key != "card"
    }
    return {**told, "fingerprint": defense.fingerprint()}


def majority(defense: Defense, images: Tensor, labels: Tensor, keys: Keys) -> Tensor:
    """Whether most fresh draws answer wrongly, (N,) bool."""
    votes = torch.zeros(len(images), device=images.device)
    draws = VOTES if defense.stochastic else 1
    with torch.no_grad():
        for draw in range(draws):
            for rows in torch.arange(len(images), device=images.device).split(50):
                answers = defense(images[rows], keys=keys[rows].draw(draw)).argmax(1)
                votes[rows] += (answers != labels[rows]).float()
    return votes > draws / 2


def ours(
    defense: Defense, attacks: dict[str, Attack], threat: Linf, seed: int, ids: tuple[str, ...]
) -> Make:
    """The adaptive attacker: every attack by every gradient, on the images that are left."""

    def make(clean: Tensor, labels: Tensor, rows: slice) -> Made:
        found, keys = clean.clone(), Keys.of(seed, ids[rows]).to(clean.device)
        broken = majority(defense, clean, labels, keys.within("adaptivity/clean"))
        left, counts = (~broken).nonzero().flatten(), {"clean": int(broken.sum())}
        for backward in adaptive_backwards(defense):
            surface = Surface(defense, backward=backward)
            for attack in attacks.values():
                blind = getattr(attack, "access", "gradients") != "gradients"
                if not len(left) or (blind and backward != adaptive_backwards(defense)[0]):
                    continue
                name, some = f"{attack.name}/{backward}", clean[left]
                named = keys[left].within(f"adaptivity/{name}")
                made = attack.run(surface, some, labels[left], threat=threat, keys=named)
                judged = keys[left].within(f"adaptivity/{name}/judge")
                out = majority(defense, made.images, labels[left], judged)
                out &= threat.contains(made.images, some)
                found[left[out]] = made.images[out]
                counts[name] = counts.get(name, 0) + int(out.sum())
                left = left[~out]
        return found, {"broken": counts, "left": left.tolist()}

    return make


Outside = Callable[[Surface, Tensor, Tensor, float, int], Tensor]


def by_foolbox(
    surface: Surface, clean: Tensor, labels: Tensor, eps: float, seed: int
) -> Tensor:  # fmt: skip
    """Foolbox's PGD."""
    import importlib

    foolbox: Any = importlib.import_module("foolbox")
    model: Any = foolbox.PyTorchModel(
        SurfaceModule(surface, seed=seed), bounds=(0, 1), device=clean.device
    )
    if surface.stochastic:
        model = foolbox.models.ExpectationOverTransformationWrapper(model, n_steps=DRAWS)
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=STEPS, random_start=True)
    _, images, _ = pgd.repeat(RESTARTS)(model, clean, labels, epsilons=eps)
    found: Tensor = images
    return found


def by_art(surface: Surface, clean: Tensor, labels: Tensor, eps: float, seed: int) -> Tensor:
    """ART's PGD."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classes = surface.count_classes(clean[:1], Keys.of(0, ["any"]).to(clean.device))
    wrapped = PyTorchClassifier(
        SurfaceModule(surface, seed=seed, draws=DRAWS), loss=nn.CrossEntropyLoss(),
        input_shape=tuple(clean.shape[1:]), nb_classes=classes, clip_values=(0.0, 1.0),
        device_type="gpu" if clean.is_cuda else "cpu",
    )  # fmt: skip
    pgd = ProjectedGradientDescent(
        wrapped, norm=np.inf, eps=eps, eps_step=eps / 4, max_iter=STEPS,
        num_random_init=RESTARTS, batch_size=len(clean), verbose=False,
    )  # fmt: skip
    made = pgd.generate(clean.cpu().numpy(), labels.cpu().numpy())
    return torch.tensor(made, device=clean.device)


def by_autoattack(
    surface: Surface, clean: Tensor, labels: Tensor, eps: float, seed: int
) -> Tensor:  # fmt: skip
    """AutoAttack by its authors' package."""
    from pyautoattack import AutoAttack

    made = AutoAttack(
        SurfaceModule(surface, seed=seed), norm="Linf", eps=eps, seed=seed, device=clean.device,
        version="rand" if surface.stochastic else "standard",
    )  # fmt: skip
    images, _ = made.run_standard_evaluation(clean, labels, batch_size=len(clean))
    return images  # type: ignore[no-any-return]


OUTSIDE: dict[str, Outside] = {
    "foolbox": by_foolbox,
    "art": by_art,
    "pyautoattack": by_autoattack,
}


def outside(
    defense: Defense, name: str, backward: str, data: ImageSet, threat: Linf, seed: int
) -> Make:
    """One outside attack by one gradient."""
    surface = Surface(defense, backward=backward)

    def make(clean: Tensor, labels: Tensor, rows: slice) -> Made:
        with fenced(seed, "auto-attack"):
            images = OUTSIDE[name](surface, clean, labels, threat.eps, seed)
        images = images.detach().contiguous()
        keys = Keys.of(seed, data.ids[rows], domain=f"adaptivity/{name}/{backward}/judge")
        turned = majority(defense, images, labels, keys.to(clean.device)).cpu().numpy()
        lies = inside(images, clean, threat.norm, threat.eps)
        here = data.ids[rows]
        return images, {
            "broken": [here[i] for i in np.flatnonzero(turned & lies)],
            "outside_the_ball": [here[i] for i in np.flatnonzero(turned & ~lies)],
        }

    return make


def main() -> None:
    """Ours, then theirs on what ours has left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", choices=("tpap", "random"), required=True)
    parser.add_argument("--data", required=True, help="CIFAR-10, as for unperturb audit")
    parser.add_argument("--network", default="cifar-robust-cnn-wide", help="of --case random")
    parser.add_argument("--weights", type=Path, help="its weights")
    parser.add_argument("--n", type=int, help="first test images (tpap: 1000; random: 256)")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--block", type=int, help="images at once (tpap: 125; random: 32)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of finished blocks")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random = options.case == "random"
    options.n = options.n or (256 if random else 1000)
    options.block = options.block or (32 if random else 125)
    device = torch.device(options.device)
    record = compare(options, defend(options, device), device)
    if options.record:
        write_json(options.record, record)
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


def compare(
    options: argparse.Namespace, defense: Defense, device: torch.device
) -> dict[str, Any]:  # fmt: skip
    """Both sides, block by block."""
    threat, seed = Linf(parse_eps(options.eps)), options.seed
    data = load_images(options.data, split="test", limit=options.n)
    ids = tuple(data.ids)
    chosen = arsenal(
        options.suite, defense, threat, attackers=("adaptive",), probe_images=0,
        gradient_draws=DRAWS if defense.stochastic else 1, shape=(len(ids), 3, 32, 32),
    )  # fmt: skip
    attacks = {
        name: attack
        for name, attack in chosen.attacks.items()
        if getattr(attack, "bound", "threat") != "own"
    }
    shared = {
        "defense": defense.describe(), "ids": list(ids), "threat": threat.to_dict(),
        "seed": seed, "block": options.block, "device": device.type,
    }  # fmt: skip
    facts = [describe_attack(attack) for attack in attacks.values()]
    began = time.perf_counter()
    _, notes = blocks(
        options.out, "ours", {**shared, "attacks": facts}, data, options.block,
        ours(defense, attacks, threat, seed, ids), device,
    )  # fmt: skip
    survivors = [
        options.block * number + place
        for number, note in enumerate(notes)
        for place in note["left"]
    ]
    rest = data.take(torch.tensor(survivors, dtype=torch.int64))
    found: dict[str, Any] = {}
    only: dict[str, list[str]] = {}
    for name in OUTSIDE:
        for backward in RULES:
            if not survivors:
                continue
            key = f"{name}-{backward}"
            settings = {**shared, "outside": key, "survivors": list(rest.ids)}
            _, made = blocks(
                options.out, key, settings, rest, options.block,
                outside(defense, name, backward, rest, threat, seed), device,
            )  # fmt: skip
            broken = [image for note in made for image in note["broken"]]
            for image in broken:
                only.setdefault(image, []).append(key)
            found[key] = {
                "broken": broken,
                "outside_the_ball": [i for note in made for i in note["outside_the_ball"]],
                "seconds": sum(note["seconds"] for note in made),
            }
    counts: dict[str, int] = {}
    for note in notes:
        for name, number in note["broken"].items():
            counts[name] = counts.get(name, 0) + number
    robust = len(survivors)
    return {
        "case": options.case,
        "defense": _told(defense),
        "weights": short_paths(str(options.weights)) if options.weights else None,
        "n": len(ids),
        "threat": threat.to_dict(),
        "seed": seed,
        "votes": VOTES if defense.stochastic else 1,
        "draws": DRAWS if defense.stochastic else 1,
        "outside_settings": {"steps": STEPS, "restarts": RESTARTS, "step_size": "eps / 4"},
        "suite": {"name": options.suite, "attacks": facts, "broken_by": counts},
        "robust_accuracy_ours": {
            "right": robust, "accuracy": robust / len(ids),
            "interval": list(wilson(robust, len(ids))),
        },
        "outside": found,
        "outside_breaks_ours_does_not": only,
        "limit": LIMIT * len(ids),
        "holds": len(only) <= LIMIT * len(ids),
        "seconds": {
            "ours": sum(note["seconds"] for note in notes),
            "this_run": time.perf_counter() - began,
        },
        "environment": environment(device),
    }  # fmt: skip


if __name__ == "__main__":
    main()
