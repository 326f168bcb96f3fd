"""The loop: resumed equals uninterrupted, nothing held out is trained on, errors are told."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import unperturb
from unperturb.classifiers import Classifier, load_classifier, new_classifier
from unperturb.data import ImageSet, load_images
from unperturb.errors import ConfigError, DataError, OutputError, RecordError
from unperturb.training import TrainConfig, train, train_classifier
from unperturb.training.loop import CHECKPOINT
from unperturb.training.monitor import depth

EPOCHS = 4


def config(**changes: Any) -> TrainConfig:
    found: dict[str, Any] = {
        "objective": "fgsm", "eps": 0.1, "monitor_eps": 0.1, "epochs": EPOCHS, "batch_size": 32,
        "lr": 0.05, "schedule": "one-cycle", "holdout": 30, "monitor_images": 20,
    }  # fmt: skip
    return TrainConfig(**{**found, **changes})


def digits(count: int = 160) -> ImageSet:
    return load_images("digits", split="train").take(slice(0, count))


def network() -> Classifier:
    return new_classifier("small-cnn", in_channels=1, seed=1)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def without_times(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in epochs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classifier]:
    """A run without any interruption."""
    out = tmp_path_factory.mktemp("whole")
    return out, train_classifier(network(), digits(), config(), out=out, show=False)


def test_a_run_in_parts_is_the_whole_run(tmp_path: Path, whole: tuple[Path, Classifier]) -> None:
    for stop in (1, 3, None):
        found = train_classifier(
            network(), digits(), config(), out=tmp_path, stop_after=stop, show=False
        )
        assert (tmp_path / CHECKPOINT).exists() == (stop is not None)
        assert (tmp_path / "training.json").exists() == (stop is None)
    assert equal(state(found.module), state(whole[1].module))
    ours, theirs = (
        json.loads((folder / "training.json").read_text()) for folder in (tmp_path, whole[0])
    )
    assert without_times(ours["epochs"]) == without_times(theirs["epochs"])
    assert (tmp_path / "model.safetensors").read_bytes() == (
        whole[0] / "model.safetensors"
    ).read_bytes()


SCRIPT = """
import sys
import torch
from training.test_loop import config, digits, network
from unperturb.training import train_classifier
torch.set_num_threads(int(sys.argv[2]))
print("ready", flush=True)
train_classifier(network(), digits(), config(), out=sys.argv[1], show=False)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, whole: tuple[Path, Classifier]
) -> None:
    paths = [str(Path(unperturb.__file__).parents[1]), str(Path(__file__).parents[1])]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(torch.get_num_threads())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    checkpoint = tmp_path / CHECKPOINT
    end = time.monotonic() + 600
    while not checkpoint.exists() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was killed in the middle"
    assert not (tmp_path / "training.json").exists()
    with safe_open(checkpoint, framework="pt") as stored:
        done = json.loads(stored.metadata()["run"])["epochs"]
    assert 1 <= len(done) < EPOCHS
    found = train_classifier(network(), digits(), config(), out=tmp_path, show=False)
    assert equal(state(found.module), state(whole[1].module))
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["epochs"][: len(done)] == done, "what was done was not done again"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_and_momenta_go_on_exactly(tmp_path: Path, momentum: float) -> None:
    settings = config(objective="standard", momentum=momentum, schedule="multistep")
    ends = []
    for stops in ((None,), (2, None)):
        for stop in stops:
            net = network().module.requires_grad_(True)
            out = tmp_path / str(len(stops))
            found = train(net, digits(), settings, out=out, stop_after=stop, show=False)
        ends.append((state(net), found.state, without_times(found.epochs)))
    assert equal(ends[0][0], ends[1][0])
    assert equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]
    assert equal(ends[0][0], ends[0][1]), "without a depth the last epoch is kept"


def test_the_kept_epoch_survives_an_interruption(tmp_path: Path) -> None:
    depths = iter([0.1, 0.9, 0.3, 0.2])
    states: list[dict[str, Tensor]] = []

    def monitor(net: nn.Module) -> dict[str, Any]:
        assert not any(module.training for module in net.modules())
        states.append(state(net))
        return {"depth": next(depths)}

    for stop in (3, None):
        net = network().module.requires_grad_(True)
        found = train(
            net, digits(), config(), out=tmp_path, monitor=monitor, stop_after=stop, show=False,
            depth=lambda record: record["depth"],
        )  # fmt: skip
        assert found.kept_epoch == 2
        assert equal(found.state, states[1])
        assert not equal(found.state, states[-1])
    assert [epoch["epoch"] for epoch in found.epochs] == [1, 2, 3, 4]


def test_the_deepest_epoch_is_kept_and_recorded(whole: tuple[Path, Classifier]) -> None:
    record = json.loads((whole[0] / "training.json").read_text())
    depths = [depth(epoch) for epoch in record["epochs"]]
    kept = record["kept_epoch"]
    assert depths[kept - 1] == max(depths)
    chosen = record["epochs"][kept - 1]
    for name in ("train_fgsm", "train_pgd", "heldout_clean", "robust_overfitting"):
        assert record["monitor"][name] == chosen[name]
    assert record["monitor"]["train_eps"] == 0.1


@pytest.mark.parametrize(
    ("change", "kept"),
    [({}, 1), ({"keep": "deepest"}, 1), ({"keep": "last"}, 2), ({"objective": "standard"}, 2)],
)
def test_which_epoch_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kept: int
) -> None:
    from unperturb.training import run

    monkeypatch.setattr(run, "depth", lambda record: -record["epoch"])
    settings = config(epochs=2, **change)
    train_classifier(network(), digits(), settings, out=tmp_path, show=False)
    assert json.loads((tmp_path / "training.json").read_text())["kept_epoch"] == kept


def test_what_a_run_leaves_is_a_classifier(whole: tuple[Path, Classifier]) -> None:
    out, trained = whole
    found = load_classifier(str(out))
    images = digits().images(slice(0, 10))
    torch.testing.assert_close(found(images), trained(images), rtol=1e-5, atol=1e-6)
    card = dict(found.origin.card)
    assert card["objective"] == "fgsm"
    assert TrainConfig.from_dict(card["config"]) == config()
    assert card["data"]["fingerprint"] == digits().fingerprint()
    assert not any(p.requires_grad for p in trained.module.parameters())
    assert not any(module.training for module in trained.module.modules())
    text = (out / "config.json").read_text() + (out / "training.json").read_text()
    assert str(out) not in text, "paths of this machine say nothing to anyone else"
    with pytest.raises(RecordError, match="holds a finished training run.*choose another --out"):
        train_classifier(network(), digits(), config(), out=out, show=False)


def test_it_does_train() -> None:
    data = digits(600)
    net = network().module.requires_grad_(True)
    settings = config(objective="standard", epochs=3, augment="none", holdout=100)
    losses = [epoch["loss"] for epoch in train(net, data, settings, show=False).epochs]
    assert losses[-1] < 0.5 * losses[0]
    net.eval()
    with torch.no_grad():
        right = net(data.images(slice(500, 600))).argmax(1) == data.labels[500:]
    assert right.float().mean() > 0.7


class Recording(nn.Module):
    """Remembers the pixels of every image it is shown in training."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: set[bytes] = set()

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen |= {image.contiguous().numpy().tobytes() for image in images.detach()}
        return self.net(images)  # type: ignore[no-any-return]


def test_what_is_held_out_is_never_trained_on() -> None:
    data = digits(158)
    net = Recording(network().module.requires_grad_(True))
    settings = config(objective="standard", augment="none", epochs=6, batch_size=40)
    train(net, data, settings, show=False)
    names = [image.contiguous().numpy().tobytes() for image in data.images()]
    assert len(set(names)) == len(names)
    assert not net.seen & set(names[128:])
    assert net.seen == set(names[:128]), "every other one is, over a few epochs"


def test_an_epoch_shows_an_image_at_most_once_in_another_order(tmp_path: Path) -> None:
    orders: list[list[bytes]] = []

    class Ordered(Recording):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                orders[-1].extend(i.contiguous().numpy().tobytes() for i in images.detach())
            return self.net(images)  # type: ignore[no-any-return]

    net = Ordered(network().module.requires_grad_(True))
    settings = config(objective="standard", augment="none", epochs=2)

    def monitor(_: nn.Module) -> dict[str, Any]:
        orders.append([])
        return {}

    orders.append([])
    train(net, digits(), settings, monitor=monitor, show=False)
    assert len(orders[0]) == len(set(orders[0])) == 128
    assert orders[0] != orders[1]


def test_rates_of_the_last_steps_are_recorded() -> None:
    net = network().module.requires_grad_(True)
    epochs = train(net, digits(), config(epochs=2), show=False).epochs
    # 130 images in batches of 32: 4 steps an epoch.
    assert [epoch["lr"] for epoch in epochs] == [config().rate(3, 8), config().rate(7, 8)]


@pytest.mark.parametrize("change", ["seed", "data", "weights", "lr"])
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, change: str) -> None:
    train_classifier(network(), digits(), config(), out=tmp_path, stop_after=1, show=False)
    before = (tmp_path / CHECKPOINT).read_bytes()
    net, data, settings = network(), digits(), config()
    if change == "data":
        data = digits(159)
    elif change == "weights":
        with torch.no_grad():
            next(net.module.parameters()).mul_(1.01)
    else:
        settings = config(**{change: 3})
    words = r"belongs to another training run \(\w{12}, this one is \w{12}\).*choose another --out"
    with pytest.raises(RecordError, match=words):
        train_classifier(net, data, settings, out=tmp_path, show=False)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"\0" * 100)
    with pytest.raises(RecordError, match=r"checkpoint\.safetensors is damaged.*delete"):
        train_classifier(network(), digits(), config(), out=tmp_path, show=False)


def test_a_loss_that_is_not_a_number_is_told(tmp_path: Path) -> None:
    settings = config(objective="standard", lr=1e12, schedule="multistep")
    words = (
        r"The training loss is (nan|inf) in epoch 1, step \d+\. "
        r"Expected: a finite loss\. Fix: lower lr"
    )
    with pytest.raises(ConfigError, match=words):
        train_classifier(network(), digits(), settings, out=tmp_path, show=False)
    assert not (tmp_path / CHECKPOINT).exists()


def test_too_few_images() -> None:
    words = "60 training images less 30 held out leave 30.*at least one batch of 32.*lower holdout"
    with pytest.raises(DataError, match=words):
        train(network().module, digits(60), config(), show=False)
    with pytest.raises(DataError, match="20 training images less 30 held out leave 0"):
        train(network().module, digits(20), config(), show=False)


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    net = network()
    before = state(net.module)
    with pytest.raises(OutputError, match="Cannot write"):
        train_classifier(net, digits(), config(), out=tmp_path / "file" / "out", show=False)
    assert equal(state(net.module), before), "not a step was taken"


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, Classifier]
) -> None:
    train_classifier(network(), digits(), config(), out=tmp_path, stop_after=2, show=False)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left.*what is finished is kept"):
            train_classifier(network(), digits(), config(), out=tmp_path, show=False)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))
    found = train_classifier(network(), digits(), config(), out=tmp_path, show=False)
    assert equal(state(found.module), state(whole[1].module))


def test_a_copy_leaves_the_users_module_alone(untouched: Any, tmp_path: Path) -> None:
    user = network().module
    with untouched(user):
        train(copy.deepcopy(user).requires_grad_(True), digits(), config(epochs=1), show=False)


def test_bfloat16_trains(tmp_path: Path) -> None:
    net = network().module.requires_grad_(True)
    found = train(net, digits(), config(epochs=1, precision="bfloat16"), show=False)
    assert found.epochs[0]["loss"] > 0
    assert {p.dtype for p in net.parameters()} == {torch.float32}
