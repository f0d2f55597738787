from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the train extra")
torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from squares import squares, write_dataset  # noqa: E402

from wetread.errors import TrainError  # noqa: E402
from wetread.evaluate import calibration, conformal  # noqa: E402
from wetread.evaluate.metrics import auroc  # noqa: E402
from wetread.findings import PNEUMONIA, Task  # noqa: E402
from wetread.infer import runtime  # noqa: E402
from wetread.simulate import case_mix  # noqa: E402
from wetread.train import packaging  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.packaging import package  # noqa: E402
from wetread.train.recipe import Recipe  # noqa: E402
from wetread.train.trained import Trained  # noqa: E402

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
    assert case_mix.Roc(made, "Pneumonia").at_fpf(1.0) == (1.0, 1.0)
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


FOUR = Task("four", ("north-west", "north-east", "south-west", "south-east"), exclusive=True)
TREE = Task("tree", ("right", "right-low", "low"), parents={"right-low": "right"})


@pytest.fixture(scope="module", params=[FOUR, TREE], ids=lambda task: task.name)
def odd_run(request, tmp_path_factory):
    """A run whose tail divides by a sum, or holds a child below its parent, and that is far from calibrated."""
    pixels, right = squares(320, 3)
    low = np.random.default_rng(2).integers(0, 2, len(pixels))
    pixels = np.where(low[:, None, None] == 1, np.roll(pixels, 12, 1), np.minimum(pixels, 150)).astype(np.uint8)
    if request.param.exclusive:
        labels = np.eye(4, dtype=np.float32)[2 * low + right]
    else:
        labels = np.stack([right, right * low, low], 1).astype(np.float32)
    folder = tmp_path_factory.mktemp("odd")
    dataset = write_dataset(folder / "data", request.param, labels, pixels)
    changed = {"epochs": 3, "batch": 16, "learning_rate": 2e-3}
    recipe = RECIPE.model_validate(RECIPE.model_dump() | {"optimise": changed, "labels": {"smoothing": 0.2}})
    train(recipe, dataset, folder / "run")
    return folder / "run", dataset


def test_int8_is_calibrated_before_the_tail_divides_and_takes_minima(odd_run, tmp_path):
    """The scores before the tail are had from the features: the head is not quantised."""
    run, dataset = odd_run
    task, valid = dataset.task, dataset.rows("valid")
    made, _ = package(run, dataset, tmp_path / "p", recipe=RECIPE, precision="int8", resamples=20)
    outputs = runtime.open_engine(made, threads=1).run(np.asarray(dataset.pixels[valid])[:, None])
    head = Trained.open(run).network.head
    with torch.inference_mode():
        logits = head(torch.from_numpy(outputs.features)).double()
    plain = torch.softmax(logits, 1) if task.exclusive else torch.sigmoid(logits)
    fitted = calibration.fit(task, plain.numpy(), dataset.labels[valid])
    wanted = fitted.apply(plain.numpy())
    np.testing.assert_allclose(outputs.probability, wanted, atol=2e-3)
    none = np.log1p(-wanted).sum(1)
    slope, intercept = calibration.fit_platt(np.log(np.expm1(-none)), (dataset.labels[valid] == 1).any(1))
    chance = calibration.sigmoid(slope * np.log(np.expm1(-none)) + intercept)
    np.testing.assert_allclose(outputs.abnormal, chance, atol=2e-3)


def test_what_is_proved_is_the_graph_that_ships(run, square_dataset, tmp_path, monkeypatch):
    """Weights that do not survive their rounding are found, though the graph before it was right."""

    def coarse(graph: bytes) -> bytes:
        model = onnx.load_model_from_string(graph)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("head.weight"):
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return model.SerializeToString()

    monkeypatch.setattr(packaging, "halve", coarse)
    with pytest.raises(TrainError, match=r"float16 weights move probabilities by .*package\.half = false"):
        package(run, square_dataset, tmp_path / "p", recipe=RECIPE, resamples=20)
    with pytest.raises(TrainError, match=r"int8 move probabilities by .*--precision fp32"):
        package(run, square_dataset, tmp_path / "p", recipe=RECIPE, precision="int8", resamples=20)
