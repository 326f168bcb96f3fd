"""Networks and thresholds of a recipe: made once, found again, refused if they are others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes.purifying import TINY, write
from unperturb.errors import RecordError, UnperturbError
from unperturb.generative import fingerprint, load_vae
from unperturb.recipes import load_recipe, reproduce
from unperturb.recipes.needs import needed, needed_networks, needed_thresholds

Made = tuple[Path, dict[str, Any], list[str]]

WRONG = {
    "kind": ("kind: mae,", "kind: mea,", "did you mean 'mae'"),
    "data of a network": ("kind: vae\n    data: digits", "kind: vae\n    data: digit",
                          "did you mean 'digits'"),
    "model of a network": ("kind: denoiser\n    model: net", "kind: denoiser\n    model: nett",
                           "did you mean 'net'"),
    "start of a network": ("start: gan", "start: vae", "of the kind vae"),
    "architecture": ("net: {width: 4,", "net: {with: 4,", "did you mean 'width'"),
    "architecture's value": ("net: {width: 4,", "net: {width: 0,", "width of the VAE is 0"),
    "architecture of a gan": ("train: {width: 4, coarse", "net: {width: 4}\n      "
                              "train: {width: 4, coarse", "kind gan"),
    "training": ("train: {epochs: 2, batch_size: 32, augment", "train: {epoch: 2, augment",
                 "did you mean 'epochs'"),
    "training's value": ("train: {sigma: 0.1", "train: {sigma: much", "sigma is 'much'"),
    "no way": ("cpu: {zoo: nowhere}", "cpu: {}", "says nothing"),
    "VAE of a model": ("through: vae", "through: vea", "did you mean 'vae'"),
    "no VAE of a model": ("through: vae", "through: gan", "of the kind gan"),
    "level": ("through: vae, level: 0", "level: 0", "level without through"),
    "threshold's network": ("vae: {network: vae}, steps: 2", "vae: {network: vea}, steps: 2",
                            "did you mean 'vae'"),
    "threshold's option": ("steps: 2}", "step: 2}", "did you mean 'steps'"),
    "quantile": ("quantile: 0.9", "quantile: 9", "quantile is 9"),
    "statistic": ("statistic: max-change", "statistic: max", "max-change"),
    "threshold's model": ("own: {model: asymmetric,", "own: {model: net,", "fitted for net"),
    "another purifier": ("alu: {preset: alu, threshold", "alu: {preset: alu, steps: 3, threshold",
                         "steps is 3"),
    "one setting more": ("alu: {preset: alu, threshold", "alu: {preset: alu, lr: 0.1, threshold",
                         "lr is given"),
    "defense's network": ("purifier: {network: atop}", "purifier: {network: atp}",
                          "did you mean 'atop'"),
    "defense's option": ("steps: 1, decision", "stepps: 1, decision", "did you mean 'steps'"),
    "no such name": ("purifier: {network: atop}", "purifier: {netwrok: atop}",
                     "one of fit, network, threshold"),
    "several names": ("purifier: {network: atop}", "purifier: {network: atop, fit: x}",
                      "one of fit, network, threshold"),
    "no purifier": ("toy: {denoiser: {network: denoiser}, ", "toy: {", "neither a VAE"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folder, record and what was said."""
    folder = tmp_path_factory.mktemp("networks")
    said: list[str] = []
    record = reproduce(write(folder), scale="smoke", out=folder / "out", say=said.append)
    return folder, record, said


def test_every_defense_is_audited_with_what_it_names(made: Made) -> None:
    folder, record, said = made
    assert record["complete"], record["left_out"]
    assert {cell["row"] for cell in record["cells"]} == set(load_recipe(
        folder / "networks.yaml", scale="smoke").rows)  # fmt: skip
    assert set(record["networks"]) == {"vae", "denoiser", "gan", "atop"}
    assert set(record["thresholds"]) == {
        "latent/net", "own/asymmetric", "toy/net", "step/net"
    }  # fmt: skip
    assert record["networks"]["atop"]["transform"]["sigma"] == 0.1
    assert record["networks"]["atop"]["transform"]["patch"] == 2
    fitted = record["thresholds"]["latent/net"]
    assert fitted["fitted_on"]["quantile"] == 0.9
    assert fitted["fitted_on"]["images"]["count"] == 100
    assert fitted["fitted_on"]["classifier"] == record["models"]["net"]["fingerprint"]
    assert "unseen" not in record["settings"]["networks"]
    page = (folder / "out" / "table.md").read_text(encoding="utf-8")
    assert "## Networks of the defenses" in page
    assert "**latent/net**" in page
    preview = [words for words in said if words.startswith(("network", "threshold"))]
    assert [words.partition(":")[0] for words in preview[:4]] == [
        "network vae", "network denoiser", "network gan", "network atop"
    ]  # fmt: skip
    assert "threshold own of asymmetric: 100 images" in preview


def test_classifiers_see_through_the_recipe_s_vae(made: Made) -> None:
    from unperturb.classifiers import load_classifier
    from unperturb.generative import vae_of

    models = made[0] / "models" / "smoke"
    found = vae_of(load_classifier(str(models / "asymmetric" / "stage1")))
    assert found is not None
    assert found.level == 0
    assert fingerprint(found.vae) == fingerprint(load_vae(models / "networks" / "vae"))


def test_nothing_is_done_twice(made: Made) -> None:
    said: list[str] = []
    again = reproduce(
        made[0] / "networks.yaml", scale="smoke", out=made[0] / "out", say=said.append
    )
    assert again["cells"] == made[1]["cells"]
    assert not [words for words in said if words.startswith(("training", "auditing"))]
    assert not [words for words in said if "/thresholds/" in words]
    assert "network vae: trained before" in said
    assert "threshold latent of net: fitted before" in said


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("net: {width: 4,", "net: {width: 5,", "another architecture"),
        ("train: {epochs: 2, batch", "train: {epochs: 3, batch", "epochs: 2 there, 3 here"),
        ("train_limit: 200", "train_limit: 190", "other images"),
        ("quantile: 0.9", "quantile: 0.8", "quantile: 0.9 there, 0.8 here"),
        ("vae: {network: vae}, steps: 2", "vae: {network: vae}, steps: 3", "purifier: "),
        ("train: {sigma: 0.1", "train: {sigma: 0.2", "sigma: 0.1 there, 0.2 here"),
        ("through: vae, level: 0", "through: vae, level: 1", "another VAE"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    made: Made, tmp_path: Path, old: str, new: str, told: str
) -> None:
    shutil.copytree(made[0] / "models", tmp_path / "models")
    assert old in TINY
    with pytest.raises(RecordError, match="there|another|other") as caught:
        reproduce(write(tmp_path, TINY.replace(old, new)), scale="smoke", out=tmp_path / "out")
    assert told in str(caught.value)


def test_the_user_names_a_network(made: Made, tmp_path: Path) -> None:
    from unperturb.generative import save_generative
    from unperturb.networks.vae import VAE

    other = save_generative(VAE(image_shape=(1, 8, 8), width=2), tmp_path / "vae")
    text = TINY[: TINY.index("rows:")] + "rows:\n  purified: {model: net, defense: purified}\n"
    models = made[0] / "models"
    record = reproduce(
        write(tmp_path, text), scale="smoke", out=tmp_path / "out", models_dir=models,
        networks={"vae": str(other)},
    )  # fmt: skip
    assert record["networks"]["vae"]["from"] == "given"
    assert record["networks"]["vae"]["fingerprint"] == fingerprint(load_vae(other))
    with pytest.raises(UnperturbError, match="did you mean 'vae'"):
        reproduce(
            write(tmp_path, text), scale="smoke", out=tmp_path / "out", networks={"vea": str(other)}
        )


def test_a_spent_budget_says_so(tmp_path: Path) -> None:
    record = reproduce(write(tmp_path), scale="smoke", out=tmp_path / "out", time_budget=1e-6)
    assert {cell["reason"] for cell in record["cells"]} == {"time budget"}


def test_what_is_needed_comes_first(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path), scale="smoke")
    assert needed(recipe) == ["net", "asymmetric"]
    assert needed_networks(recipe) == ["vae", "denoiser", "gan", "atop"]
    assert needed_thresholds(recipe)[1] == ("own", "asymmetric")


def test_a_circle_is_refused(tmp_path: Path) -> None:
    text = TINY.replace("{arch: small-cnn, epochs: 2", "{arch: small-cnn, through: vae, epochs: 2")
    recipe = load_recipe(write(tmp_path, text), scale="smoke")
    assert needed_networks(recipe)[0] == "vae"
    circle = TINY.replace("arch: small-cnn, through: vae, level: 0", "start: asymmetric")
    with pytest.raises(UnperturbError, match="model asymmetric needs model asymmetric"):
        load_recipe(write(tmp_path, circle), scale="smoke")


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told_where_they_are(tmp_path: Path, name: str) -> None:
    old, new, told = WRONG[name]
    assert old in TINY
    with pytest.raises(UnperturbError) as caught:
        load_recipe(write(tmp_path, TINY.replace(old, new, 1)), scale="smoke")
    assert told in str(caught.value)
