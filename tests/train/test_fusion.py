from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from squares import SIDE, write_dataset  # noqa: E402
from watched import last_features  # noqa: E402

from wetread.dataset.studies import apart, studies  # noqa: E402
from wetread.errors import TrainError  # noqa: E402
from wetread.evaluate.calibration import Calibration  # noqa: E402
from wetread.evaluate.metrics import auroc  # noqa: E402
from wetread.findings import CHEXPERT, PNEUMONIA  # noqa: E402
from wetread.infer import runtime, study  # noqa: E402
from wetread.infer.predict import Predictor  # noqa: E402
from wetread.radiograph import phantom  # noqa: E402
from wetread.train.ensemble import Ensemble  # noqa: E402
from wetread.train.export import Served, to_onnx  # noqa: E402
from wetread.train.looks import Look  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.network import Network  # noqa: E402
from wetread.train.packaging import package  # noqa: E402
from wetread.train.recipe import NetworkRecipe, Recipe  # noqa: E402

RECIPE = {
    "name": "pairs",
    "threads": 1,
    "network": {"backbone": "small_cnn", "views": "study", "neck": 32},
    "augment": {"noise": 0.3, "one_view": 0.1},
    "optimise": {"epochs": 8, "batch": 16, "learning_rate": 3e-3},
    "package": {"population": "phantom"},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Studies in which the finding shows in the frontal view, in the lateral, or is absent; some lack a view."""
    rng = np.random.default_rng(0)
    pixels, labels, study, view = [], [], [], []
    for number in range(200):
        kind = number % 4  # 0 and 1: absent; 2: in the frontal; 3: in the lateral
        lacking = {0: "LATERAL", 1: "PA"}.get((number // 4) % 5) if kind < 2 else None
        for side in ("PA", "LATERAL"):
            if side == lacking:
                continue
            image = rng.integers(1, 90, (SIDE, SIDE)).astype(np.uint8)
            if (kind, side) in ((2, "PA"), (3, "LATERAL")):
                y, x = rng.integers(2, 20, 2)
                image[y : y + 10, x : x + 10] += 120
            pixels.append(image)
            labels.append([kind < 2, kind >= 2])
            study.append(f"s{number}")
            view.append(side)
    made = write_dataset(
        tmp_path_factory.mktemp("pairs") / "d", PNEUMONIA, np.array(labels, np.float32), np.stack(pixels)
    )
    split = ["train" if (int(s[1:]) // 4) % 3 else "valid" for s in study]
    columns = [pl.Series("study", study), pl.Series("patient", study), pl.Series("view", view)]
    return replace(made, manifest=made.manifest.with_columns(*columns, pl.Series("split", split)))


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(Recipe.model_validate(RECIPE), pairs, folder)
    return folder


def make(task, seed: int = 0, backbone: str = "small_cnn") -> Network:
    torch.manual_seed(seed)
    recipe = NetworkRecipe.model_validate({"backbone": backbone, "views": "study", "neck": 24, "normalise": "image"})
    made = Network(recipe, len(task.findings))
    for parameter in (made.head.weight, made.fusion.other.weight, made.fusion.view):
        torch.nn.init.normal_(parameter, 0, 0.5)
    return made.eval()


def views(count: int = 4) -> torch.Tensor:
    """Both views, the frontal alone, the lateral alone, both."""
    base = torch.randint(1, 256, (count, 2, 8, 8), generator=torch.Generator().manual_seed(1)).float()
    pixels = torch.nn.functional.interpolate(base, 64, mode="bilinear").to(torch.uint8).clamp(min=1)
    pixels[1, 1] = 0
    pixels[2, 0] = 0
    return pixels


def test_a_missing_view_changes_nothing_but_being_missing():
    network = make(CHEXPERT)
    pixels = views()
    with torch.inference_mode():
        features = network.features(pixels)
        width = features.shape[3] // 2
        assert (features[1, ..., width:] == 0).all()
        assert (features[2, ..., :width] == 0).all()
        # alone, a view counts double: the mean over both halves is its own mean
        alone = network.features(pixels[1:2])
        torch.testing.assert_close(alone[0], features[1])
        mean = features[1].mean((1, 2))
        torch.testing.assert_close(mean, features[1, ..., :width].mean((1, 2)) / 2)
        both = pixels[:1]
        swapped = network(both.flip(1))
    assert not torch.allclose(network(both), swapped), "the views must be told apart"


def test_batch_norm_learns_from_the_views_that_are_there_alone():
    pixels = views()
    one, other = make(CHEXPERT).train(), make(CHEXPERT).train()
    one(pixels[1:3])
    only = torch.stack([pixels[1, 0], pixels[2, 1]])[:, None]
    other.backbone(other.prepare(only))
    for key, value in one.backbone.state_dict().items():
        torch.testing.assert_close(value, other.backbone.state_dict()[key])


def test_training_and_judging_agree_on_what_a_study_is():
    network = make(CHEXPERT)
    pixels = views()
    with torch.inference_mode():
        wanted = network(pixels)
        network.fusion.training = True  # the other way through, with the same statistics
        torch.testing.assert_close(network(pixels), wanted, rtol=1e-4, atol=1e-5)
        wide = torch.cat([pixels[:, :1], pixels[:, 1:]], 3)
        torch.testing.assert_close(network(wide), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("looks", [[Look()], [Look(), Look(mirror=True)]], ids=["plain", "mirror"])
@pytest.mark.parametrize("backbones", [["small_cnn"], ["small_cnn", "residual_cnn"]], ids=["one", "two"])
@pytest.mark.parametrize("task", [CHEXPERT, PNEUMONIA], ids=lambda t: t.name)
def test_maps_of_both_views_are_the_gradient_of_the_reported_log_odds(task, backbones, looks):
    networks = [make(task, seed, name) for seed, name in enumerate(backbones)]
    count = len(task.findings)
    slope = np.full(count, 1.4)
    served = Served(Ensemble(networks, task, looks), Calibration(task, slope, np.zeros(count)))
    remembered = last_features(networks)
    probability, _, maps, *_ = served(views(), torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]]).bool())
    assert maps.shape[:3] == (4, 2, count)
    for column in range(count):
        odds = torch.logit(probability[:, column].double()).sum()
        gradients = torch.autograd.grad(odds, remembered, retain_graph=True)
        cam = 0
        for index, (last, gradient) in enumerate(zip(remembered, gradients, strict=True)):
            one = (gradient.mean((2, 3), keepdim=True) * last).sum(1)
            halves = torch.stack(one.chunk(2, 2), 1)
            cam = cam + (halves.flip(3) if looks[index % len(looks)].mirror else halves)
        cam = cam.detach()
        torch.testing.assert_close(maps[:, :, column].detach(), cam, rtol=2e-3, atol=1e-4 * float(cam.abs().max()))
    assert (maps[1, 1] == 0).all()
    assert (maps[3, 1] == 0).all()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_both_runtimes_repeat_pytorch(name):
    served = Served(Ensemble([make(CHEXPERT)], CHEXPERT), Calibration(CHEXPERT, np.ones(14), np.zeros(14)))
    with torch.inference_mode():
        wanted = served(views())
    engine = runtime.load(to_onnx(served, 64), runtime=name, threads=1)
    for tensor, given in zip(wanted, engine.run(views().numpy()), strict=True):
        np.testing.assert_allclose(given, tensor.numpy(), rtol=1e-3, atol=1e-4)
    one = engine.run(views()[1:2].numpy())
    np.testing.assert_allclose(one.probability, wanted[0][1:2].numpy(), rtol=1e-3, atol=1e-4)


def test_a_fusion_finds_what_only_one_view_shows(run, pairs, tmp_path):
    made, evaluation = package(run, pairs, tmp_path / "p", resamples=50)
    assert (made.meta.kind, made.meta.views) == ("study", ["PA", "AP", "LATERAL"])
    engine = runtime.open_engine(made, threads=1)
    by_study = studies(pairs)
    valid = by_study.rows("valid")
    scores = engine.run(apart(by_study.pixels[valid][:, None])).probability[:, 1]
    labels = by_study.labels[valid][:, 1]
    assert auroc(labels, scores) == pytest.approx(evaluation.findings[1].auroc.value, abs=1e-6)
    assert auroc(labels, scores) > 0.95
    assert evaluation.images == len(valid)

    # the way from radiographs leads to the same answers, whatever the order of the files
    made.meta = made.meta.model_copy(update={"familiarity_threshold": -1.0, "population": "phantom"})
    frontal, lateral = (
        phantom.make(seed, view=view, size=128).radiograph for seed, view in ((1, "PA"), (2, "LATERAL"))
    )
    seen = [made.transform(one).array for one in (frontal, lateral)]
    nothing = np.zeros_like(seen[0])
    wanted = engine.run(np.stack([seen, [seen[0], nothing], [nothing, seen[1]]]))
    with Predictor(made) as predictor:
        whole, images = study.analyse(predictor, [lateral, frontal])
        one, other = predictor.analyse(frontal), predictor.analyse(lateral)
    assert [image.code for image in images] == [None, None], [image.reason for image in images]
    for given, row in ((whole, 0), (images[0], 0), (images[1], 0), (one, 1), (other, 2)):
        np.testing.assert_allclose([f.probability for f in given.findings], wanted.probability[row], atol=1e-5)
    np.testing.assert_allclose(images[1].maps, wanted.maps[0, 0], atol=1e-4)
    np.testing.assert_allclose(images[0].maps, wanted.maps[0, 1], atol=1e-4)
    np.testing.assert_allclose(other.maps, wanted.maps[2, 1], atol=1e-4)
    assert whole.view == "LATERAL+PA"


def test_an_int8_package_of_studies_is_one_too(run, pairs, tmp_path):
    made, evaluation = package(run, pairs, tmp_path / "p", precision="int8", resamples=50)
    assert made.meta.kind == "study"
    assert evaluation.findings[1].auroc.value > 0.95


def test_what_does_not_go_with_studies_is_named(pairs, square_dataset, run, tmp_path):
    for change in ({"augment": {"mixup": 0.2}}, {"optimise": {"epochs": 1, "localise": 1.0}}):
        with pytest.raises(TrainError, match=r"network\.views = study"):
            train(Recipe.model_validate(RECIPE | change), replace(pairs, masks=pairs.pixels[:, None]), tmp_path / "run")
    images = Recipe.model_validate(
        RECIPE | {"network": {"backbone": "small_cnn"}, "optimise": {"epochs": 1, "batch": 16}}
    )
    train(images, pairs, tmp_path / "images")
    with pytest.raises(TrainError, match="some judge images, others studies"):
        package(run, pairs, tmp_path / "p", members=[tmp_path / "images"])
