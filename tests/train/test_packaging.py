from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from squares import squares, write_dataset  # noqa: E402

from wetread.errors import TrainError  # noqa: E402
from wetread.evaluate import conformal  # noqa: E402
from wetread.evaluate.metrics import auroc  # noqa: E402
from wetread.findings import PNEUMONIA  # noqa: E402
from wetread.infer import runtime  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.packaging import package  # noqa: E402
from wetread.train.recipe import Recipe  # noqa: E402

RECIPE = Recipe.model_validate(
    {
        "name": "squares",
        "threads": 1,
        "network": {"backbone": "small_cnn"},
        "augment": {"gamma": 0.2, "noise": 0.3},
        "optimise": {"epochs": 6, "batch": 16, "learning_rate": 3e-3, "ema": 0.9},
        "package": {"population": "phantom", "half": True, "intended_use": "tests", "limits": ["only squares"]},
    }
)


@pytest.fixture(scope="module")
def run(square_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(RECIPE, square_dataset, folder)
    return folder


@pytest.mark.parametrize("stress", [False, True])
def test_a_run_becomes_a_package_that_keeps_its_golden_outputs(run, square_dataset, tmp_path, stress):
    recipe = RECIPE.model_copy(update={"package": RECIPE.package.model_copy(update={"stress": stress})})
    made, evaluation = package(run, square_dataset, tmp_path / "p", recipe=recipe, resamples=50)
    engine = runtime.open_engine(made, threads=1)
    valid = square_dataset.rows("valid")
    outputs = engine.run(np.asarray(square_dataset.pixels[valid])[:, None])
    labels = square_dataset.labels[valid][:, 1]
    assert auroc(labels, outputs.probability[:, 1]) == pytest.approx(evaluation.findings[1].auroc.value, abs=1e-6)
    assert made.meta.metrics["findings"]["Pneumonia"]["auroc"][0] > 0.95
    assert made.meta.dataset_hash == square_dataset.hash
    assert made.meta.population == "phantom"
    assert made.meta.points["screen"]["Pneumonia"] <= made.meta.points["balanced"]["Pneumonia"]
    assert (outputs.familiarity >= made.meta.familiarity_threshold).mean() >= 0.95
    assert "only squares" in made.card
    assert made.meta.metrics["rules"] == {"screen": "sensitivity", "balanced": "youden", "sensitivity": 0.98, "cost": 1}
    sets = conformal.Conformal.from_dict(made.task, made.meta.metrics["conformal"])
    assert sets.alpha == 0.1
    measured = made.meta.metrics["conformal"]["coverage"]["Pneumonia"]["present"]
    assert measured[1] <= measured[0] <= measured[2]


def test_the_recipe_chooses_how_operating_points_are_found(run, square_dataset, tmp_path):
    rules = {"screen": "youden", "balanced": "cost", "cost": 0.05, "conformal": 0.2}
    recipe = RECIPE.model_copy(update={"package": RECIPE.package.model_copy(update=rules)})
    made, _ = package(run, square_dataset, tmp_path / "p", recipe=recipe, resamples=20)
    usual, _ = package(run, square_dataset, tmp_path / "q", recipe=RECIPE, resamples=20)
    assert made.meta.points["screen"]["Pneumonia"] == pytest.approx(usual.meta.points["balanced"]["Pneumonia"])
    assert made.meta.points["balanced"]["Pneumonia"] >= made.meta.points["screen"]["Pneumonia"]
    assert made.meta.metrics["conformal"]["alpha"] == 0.2


def test_the_maps_point_at_the_square(run, square_dataset, tmp_path):
    made, _ = package(run, square_dataset, tmp_path / "p", recipe=RECIPE, resamples=50)
    pixels, side = squares(30, 9)
    outputs = runtime.open_engine(made, threads=1).run(pixels[:, None])
    right = side == 1
    assert (outputs.probability[:, 1] > 0.5)[right].mean() > 0.9
    assert outputs.maps.shape[2:] == (1, 1)  # 32 pixels through five poolings


def test_int8_is_a_package_of_its_own(run, square_dataset, tmp_path):
    made, evaluation = package(run, square_dataset, tmp_path / "p", recipe=RECIPE, precision="int8", resamples=50)
    assert made.meta.precision == "int8"
    engine = runtime.open_engine(made, threads=1)
    valid = square_dataset.rows("valid")
    scores = engine.run(np.asarray(square_dataset.pixels[valid])[:, None]).probability[:, 1]
    assert evaluation.findings[1].auroc.value > 0.95
    assert len(np.unique(scores)) > 0.9 * len(valid)


def test_another_dataset_is_refused(run, tmp_path):
    pixels, side = squares(20, 4)
    other = write_dataset(tmp_path / "d", PNEUMONIA, np.stack([1 - side, side], 1).astype(np.float32), pixels)
    with pytest.raises(TrainError, match="hash"):
        package(run, other, tmp_path / "p")


def test_a_folder_that_is_no_run_is_refused(square_dataset, tmp_path):
    with pytest.raises(TrainError, match="train first"):
        package(tmp_path, square_dataset, tmp_path / "p")
