"""The packages that come along are those of their recipes, and say what the recipes say about them."""

import tomllib
from pathlib import Path

import pytest

import wetread
from wetread.model.package import Package

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(file.parent.name for file in (Path(wetread.__file__).parent / "shipped").glob("*/model.json"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_package_is_what_its_recipe_promises(name):
    promised = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))["package"]
    meta = Package.open(name).meta
    assert meta.name == name
    assert meta.population == promised["population"]
    told = ("licence", "attribution", "intended_use", "limits")
    assert {key: getattr(meta, key) for key in told if key in promised} == {
        k: promised[k] for k in told if k in promised
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_package_is_small_enough_for_git_and_has_a_card(name):
    folder = Path(wetread.__file__).parent / "shipped" / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20 * 2**20
    assert Package.open(name).meta.metrics
    assert (folder / "card.md").read_text(encoding="utf-8").startswith("#")
