from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from squares import squares, write_dataset  # noqa: E402

from wetread.errors import TrainError  # noqa: E402
from wetread.findings import PNEUMONIA  # noqa: E402
from wetread.infer import runtime  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.packaging import package  # noqa: E402
from wetread.train.recipe import Recipe  # noqa: E402
from wetread.train.trained import Trained, soup  # noqa: E402

BASE = {
    "name": "squares",
    "threads": 1,
    "network": {"backbone": "small_cnn"},
    "augment": {"noise": 0.3},
    "optimise": {"epochs": 4, "batch": 16, "learning_rate": 3e-3},
    "package": {"population": "phantom"},
}


@pytest.fixture(scope="module")
def runs(square_dataset, tmp_path_factory):
    """One run from scratch, two that go on from it, and one of another network, in this order."""
    folder = tmp_path_factory.mktemp("runs")
    changes = [{}]
    start = {"network": {"backbone": "small_cnn", "weights": str(folder / "0" / "best.safetensors")}}
    changes += [start | {"seed": seed} for seed in (1, 2)]
    changes += [{"network": {"backbone": "residual_cnn"}, "optimise": BASE["optimise"] | {"epochs": 1}}]
    for index, change in enumerate(changes):
        train(Recipe.model_validate(BASE | change), square_dataset, folder / str(index))
    return [folder / str(index) for index in range(len(changes))]


def test_a_soup_has_the_mean_weights_and_statistics_of_its_own(runs, square_dataset):
    first, second = (Trained.open(run) for run in runs[1:3])
    mean = soup([first, second], square_dataset)
    states = [one.network.state_dict() for one in (mean, first, second)]
    for key, value in states[0].items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(value, (states[1][key] + states[2][key]) / 2)
    images = torch.from_numpy(np.asarray(square_dataset.pixels[square_dataset.rows("train")])[:, None])
    with torch.inference_mode():
        own = mean.network.backbone.layers[0](mean.network.prepare(images)).mean((0, 2, 3))
    torch.testing.assert_close(states[0]["backbone.layers.1.running_mean"], own, rtol=0.05, atol=0.02)
    assert mean.auroc(square_dataset) > 0.95


def test_a_soup_of_frozen_norms_keeps_their_statistics(runs, square_dataset):
    first, second = (Trained.open(run) for run in runs[1:3])
    frozen = first.recipe.optimise.model_copy(update={"frozen_norm": True})
    pair = [replace(run, recipe=first.recipe.model_copy(update={"optimise": frozen})) for run in (first, second)]
    second.network.load_state_dict(first.network.state_dict() | {"head.bias": second.network.head.bias.detach()})
    mean = soup(pair, square_dataset).network.state_dict()
    for key, value in first.network.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(mean[key], value)


def test_a_soup_repeats_itself_where_the_backbone_drops_paths(square_dataset, tmp_path):
    network = {"backbone": "resnet10t", "options": {"drop_path_rate": 0.5}}
    short = {"epochs": 1, "batch": 60, "per_epoch": 60}
    train(Recipe.model_validate(BASE | {"network": network, "optimise": short}), square_dataset, tmp_path / "run")
    made = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made.append(soup([Trained.open(tmp_path / "run")] * 2, square_dataset).network.state_dict())
    for key, value in made[0].items():
        torch.testing.assert_close(made[1][key], value, rtol=0, atol=0)


def test_a_soup_of_one_run_is_that_run(runs, square_dataset):
    one = Trained.open(runs[0])
    assert soup([one], square_dataset) is one


def test_runs_whose_mean_is_worse_than_each_make_no_soup(runs, square_dataset):
    one, other = Trained.open(runs[0]), Trained.open(runs[0])
    with torch.no_grad():  # two minus signs: the same function, of weights that cancel
        convolution, norm = other.network.backbone.layers[:2]
        for tensor in (convolution.weight, norm.running_mean, norm.weight):
            tensor.neg_()
    assert other.auroc(square_dataset) == pytest.approx(one.auroc(square_dataset), abs=1e-6)
    with pytest.raises(TrainError, match=r"AUROC of 0\.5000.*--member"):
        soup([one, other], square_dataset)


def test_different_networks_make_no_soup(runs, square_dataset, tmp_path):
    with pytest.raises(TrainError, match=r"run .*3: its recipe's network is not that"):
        package(runs[0], square_dataset, tmp_path / "p", soup=[runs[3]])


def test_an_ensemble_is_one_package_with_the_mean_of_its_members(runs, square_dataset, tmp_path):
    made, evaluation = package(runs[1], square_dataset, tmp_path / "p", members=[runs[3]], soup=[runs[2]], resamples=50)
    assert [run.role for run in made.meta.runs] == ["soup", "member"]
    assert made.meta.runs[1].recipe["network"]["backbone"] == "residual_cnn"
    pixels = np.asarray(square_dataset.pixels[square_dataset.rows("valid")])[:, None]
    outputs = runtime.open_engine(made, threads=1).run(pixels)
    networks = [soup([Trained.open(run) for run in runs[1:3]], square_dataset).network, Trained.open(runs[3]).network]
    with torch.inference_mode():
        mean = torch.stack([torch.softmax(one(torch.from_numpy(pixels)), 1) for one in networks]).mean(0).numpy()
    # Platt scaling keeps the order of the mean and is one line in log-odds
    x, y = (np.log(p[:, 1] / p[:, 0]) for p in (mean, outputs.probability))
    slope, intercept = np.polyfit(x, y, 1)
    assert slope > 0
    np.testing.assert_allclose(slope * x + intercept, y, atol=0.02)
    assert outputs.features.shape[1] == 256 + 512
    assert evaluation.findings[1].auroc.value > 0.9


def test_a_run_of_another_dataset_cannot_join(runs, square_dataset, tmp_path):
    pixels, side = squares(40, 4)
    other = write_dataset(tmp_path / "d", PNEUMONIA, np.stack([1 - side, side], 1).astype(np.float32), pixels)
    train(Recipe.model_validate(BASE | {"optimise": BASE["optimise"] | {"epochs": 1}}), other, tmp_path / "run")
    with pytest.raises(TrainError, match=r"its hash .* is not that of the run .*run,"):
        package(runs[0], square_dataset, tmp_path / "p", members=[tmp_path / "run"])
