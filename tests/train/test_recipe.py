from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from wetread.errors import ConfigError  # noqa: E402
from wetread.train.recipe import Recipe, check, load  # noqa: E402

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


def keys(model, prefix=""):
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def test_every_key_is_described_and_in_the_manual():
    for key, field in keys(Recipe):
        assert field.description, key
        assert f"| `{key}` |" in MANUAL
        assert field.description in MANUAL


MANUAL = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", MANUAL, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_manual_is_sound(example):
    assert check({"name": "example"} | tomllib.loads(example), "docs/training.md")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('name = "r"\n[optimise]\nepochs = 4\n')
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_the_project_is_sound(path):
    assert load(path).name


def test_set_changes_any_key(file):
    recipe = load(
        file, ["optimise.epochs=7", "network.backbone=resnet18", 'network.options={pad_type="same"}', "seed=3"]
    )
    assert (recipe.optimise.epochs, recipe.network.backbone, recipe.seed) == (7, "resnet18", 3)
    assert recipe.network.options == {"pad_type": "same"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimise.epoch=3", "optimise.epoch"),
        ("optimise.epochs=0", "optimise.epochs"),
        ("optimise.precision=fp8", "precision"),
        ("name.x=1", "is a value"),
        ("epochs", "key=value"),
        ("labels.uncertain=maybe", r"r\.toml: labels\.uncertain = 'maybe'"),
        ("labels.ones_lsr=[0.9, 0.1]", r"labels\.ones_lsr = \[0\.9, 0\.1\]: .*lower one first"),
        ("labels.ones_lsr={ Edema = [0.9, 0.1] }", r"labels\.ones_lsr\.Edema = \[0\.9, 0\.1\]: .*lower one first"),
    ],
)
def test_a_bad_change_is_named(file, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(file, [change])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["asymmetric", "auc-margin"])
def test_a_loss_that_cannot_use_class_weights_refuses_them(file, kind):
    with pytest.raises(ConfigError, match=rf"r\.toml: labels\.balance = true .*'{kind}'.*set labels\.balance = false"):
        load(file, ["labels.balance=true", f"loss.kind={kind}"])
    for good in (["labels.balance=true", "loss.kind=focal"], [f"loss.kind={kind}"]):
        assert load(file, good)


def test_values_that_do_not_go_together_are_named_without_the_rest(file):
    with pytest.raises(ConfigError) as caught:
        load(file, ["optimise.localise=1", "augment.mixup=0.2"])
    assert str(caught.value).startswith(f"recipe {file}: augment.mixup blends")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b""])
def test_a_file_that_is_no_recipe_is_named(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load(tmp_path / "none.toml")
