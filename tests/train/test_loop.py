from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from safetensors.torch import load_file  # noqa: E402
from squares import squares, write_dataset  # noqa: E402

from wetread.dataset.dataset import Dataset  # noqa: E402
from wetread.errors import TrainError  # noqa: E402
from wetread.findings import CHEXPERT, PNEUMONIA  # noqa: E402
from wetread.train.batches import Batches, class_weight, mixed, targets  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.packaging import Trained  # noqa: E402
from wetread.train.recipe import LabelsRecipe, Recipe  # noqa: E402


def recipe(**changes) -> Recipe:
    values = {
        "name": "squares",
        "threads": 1,
        "network": {"backbone": "small_cnn", "dropout": 0.1},
        "augment": {"gamma": 0.1, "mixup": 0.2},
        "optimise": {"epochs": 4, "batch": 16, "learning_rate": 3e-3, "ema": 0.9},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return Recipe.model_validate(values)


def test_it_learns_and_leaves_a_record(square_dataset, tmp_path):
    result = train(recipe(optimise={"epochs": 6}), square_dataset, tmp_path / "run")
    assert result["best"] > 0.95
    assert json.loads((tmp_path / "run" / "history.json").read_text()) == result["history"]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("wetread").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["valid_auroc"] == pytest.approx(result["history"][-1]["valid_auroc"])
    assert run.data.params["optimise.batch"] == "16"


def with_masks(dataset: Dataset, folder: Path) -> Dataset:
    """Return the squares with the mask of the square for the finding that says on which side it is."""
    masks = np.zeros((len(dataset), 2, 16, 16), np.uint8)
    for row, image in enumerate(np.asarray(dataset.pixels)):
        bright = (image > 100).astype(np.uint8) * 255
        masks[row, int(dataset.labels[row, 1])] = cv2.resize(bright, (16, 16), interpolation=cv2.INTER_AREA)
    shutil.copytree(dataset.path, folder)
    np.save(folder / "masks.npy", masks)
    return Dataset.open(folder)


def test_localising_draws_the_peaks_of_the_maps_into_the_masks(square_dataset, tmp_path):
    masked = with_masks(square_dataset, tmp_path / "data")
    rows = masked.rows("valid")
    present = masked.labels[rows].argmax(1)
    hits = {}
    for weight in (0.0, 1.0):
        network = {"backbone": "resnet10t", "pyramid": 2, "neck": 32}
        chosen = recipe(network=network, augment={"mixup": 0, "shift": 0.05}, optimise={"localise": weight})
        train(chosen, masked, tmp_path / f"run{weight}")
        trained = Trained.open(tmp_path / f"run{weight}").network
        with torch.inference_mode():
            maps = trained.maps(trained.features(torch.from_numpy(np.asarray(masked.pixels[rows]))[:, None]))
        peaks = maps.flatten(2).argmax(2).numpy()[np.arange(len(rows)), present]
        masks = masked.masks[rows, present].reshape(len(rows), 8, 2, 8, 2).max((2, 4)).reshape(len(rows), 64)
        hits[weight] = (masks[np.arange(len(rows)), peaks] > 0).mean()
    assert hits[1.0] > 0.9
    assert hits[1.0] > hits[0.0]


def test_localising_without_masks_or_with_mixup_is_refused(square_dataset, tmp_path):
    with pytest.raises(TrainError, match=r"optimise\.localise = 1.*--masks"):
        train(recipe(augment={"mixup": 0}, optimise={"localise": 1}), square_dataset, tmp_path / "run")
    with pytest.raises(ValueError, match=r"augment\.mixup"):
        recipe(optimise={"localise": 1})


def test_a_resumed_run_equals_one_that_was_not_stopped_bit_for_bit(square_dataset, tmp_path):
    whole = train(recipe(), square_dataset, tmp_path / "whole")
    train(recipe(), square_dataset, tmp_path / "parts", stop_after=1)
    train(recipe(), square_dataset, tmp_path / "parts", stop_after=2)
    parts = train(recipe(), square_dataset, tmp_path / "parts")
    assert parts == whole
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.system
def test_a_killed_run_resumes_to_the_same_weights(square_dataset, tmp_path):
    whole = train(recipe(), square_dataset, tmp_path / "whole")
    path = tmp_path / "recipe.json"
    path.write_text(recipe().model_dump_json())
    code = (
        "import sys, time; from pathlib import Path\n"
        "from wetread.dataset.dataset import Dataset; from wetread.train.recipe import Recipe\n"
        "from wetread.train.loop import train\n"
        "r = Recipe.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "train(r, Dataset.open(sys.argv[2]), Path(sys.argv[3]), progress=lambda *a: time.sleep(0.1))\n"
    )
    arguments = [sys.executable, "-c", code, str(path), str(square_dataset.path), str(tmp_path / "killed")]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "last.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "killed" / "last.pt").exists()
    resumed = train(recipe(), square_dataset, tmp_path / "killed")
    assert resumed["history"] == whole["history"]
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_recipe_does_not_continue_a_run(square_dataset, tmp_path):
    train(recipe(), square_dataset, tmp_path / "run", stop_after=1)
    with pytest.raises(TrainError, match="another recipe"):
        train(recipe(seed=1), square_dataset, tmp_path / "run")


def test_a_diverging_run_says_so(square_dataset, tmp_path):
    with pytest.raises(TrainError, match="learning_rate"):
        train(
            recipe(
                optimise={"learning_rate": 10, "clip": 0, "ema": 0, "epochs": 60},
                augment={"mixup": 0},
                network={"backbone": "small_cnn"},
                labels={"smoothing": 0},
            ),
            _nan_dataset(tmp_path),
            tmp_path / "run",
        )


def _nan_dataset(tmp_path):
    """A dataset whose labels overflow the loss: 1e38 is no label that `pack` would let through."""
    pixels, side = squares(40, 2)
    dataset = write_dataset(tmp_path / "data", PNEUMONIA, np.stack([1 - side, side], 1).astype(np.float32), pixels)
    object.__setattr__(dataset, "labels", dataset.labels * np.float32(3e38))
    return dataset


def test_a_dataset_without_validation_is_refused(tmp_path):
    pixels, side = squares(8, 3)
    dataset = write_dataset(tmp_path / "data", PNEUMONIA, np.stack([1 - side, side], 1).astype(np.float32), pixels)
    object.__setattr__(
        dataset, "manifest", dataset.manifest.with_columns(split=dataset.manifest["split"].replace("valid", "train"))
    )
    with pytest.raises(TrainError, match="--valid"):
        train(recipe(), dataset, tmp_path / "run")


def test_patience_stops_early(square_dataset, tmp_path):
    result = train(
        recipe(optimise={"epochs": 30, "patience": 2, "learning_rate": 1e-2}), square_dataset, tmp_path / "run"
    )
    assert result["epochs"] <= result["epoch"] + 1 + 3
    assert result["epochs"] < 30


def test_no_global_seed_is_touched(square_dataset, tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    train(recipe(optimise={"epochs": 1}), square_dataset, tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


def test_targets_follow_the_recipe():
    f = CHEXPERT.findings.index
    labels = np.full((1, 14), np.nan, np.float32)
    labels[0, f("Pneumonia")], labels[0, f("Edema")], labels[0, f("Fracture")] = 1, -1, 0
    rng = np.random.default_rng(0)

    def make(**values):
        return targets(CHEXPERT, labels, LabelsRecipe.model_validate(values), rng)[0]

    plain = make()
    assert plain[f("Consolidation")] == plain[f("Lung Opacity")] == 1
    assert np.isnan(plain[f("Edema")])
    assert np.isnan(make(close_up=False)[f("Lung Opacity")])
    assert make(uncertain="ones")[f("Edema")] == 1
    assert make(uncertain="zeros")[f("Edema")] == 0
    assert 0.55 <= make(uncertain="ones-lsr")[f("Edema")] <= 0.85
    assert make(missing="zeros")[f("Cardiomegaly")] == 0
    smooth = make(smoothing=0.1)
    assert smooth[f("Pneumonia")] == pytest.approx(0.9)
    assert smooth[f("Fracture")] == pytest.approx(0.1)


def test_class_weights_balance():
    exclusive = np.repeat(np.eye(2, dtype=np.float32), [30, 10], axis=0)
    weight = class_weight(PNEUMONIA, exclusive).numpy()
    np.testing.assert_allclose(weight * exclusive.sum(0), [20, 20])
    wanted = np.array([[1], [0], [0], [0], [np.nan]], np.float32)
    assert class_weight(CHEXPERT, wanted).item() == pytest.approx(3)


def test_batches_cover_every_row_once_and_repeat(square_dataset):
    rows = square_dataset.rows("train")
    batches = Batches(square_dataset.pixels, rows, square_dataset.labels, recipe(augment={"gamma": 0, "mixup": 0}))
    seen = torch.cat([batch.pixels for batch in batches.epoch(3)]).numpy()[:, 0]
    assert sorted(image.tobytes() for image in seen) == sorted(square_dataset.pixels[r].tobytes() for r in rows)
    again = torch.cat([batch.pixels for batch in batches.epoch(3)]).numpy()[:, 0]
    np.testing.assert_array_equal(seen, again)
    other = torch.cat([batch.pixels for batch in batches.epoch(4)]).numpy()[:, 0]
    assert (other != seen).any()


def test_mixing_blends_targets_as_it_blends_pixels():
    x = torch.tensor([0, 200], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    y = torch.tensor([[0.0], [1.0]])
    for seed in range(20):
        pixels, blended = mixed(x, y, 0.4, np.random.default_rng(seed))
        np.testing.assert_allclose(pixels[:, 0, 0, 0].numpy() / 200, blended[:, 0].numpy(), atol=0.003)
    assert mixed(x, y, 0.0, np.random.default_rng(0))[0] is x
