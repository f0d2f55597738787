from __future__ import annotations

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from watched import last_features  # noqa: E402

from wetread.evaluate.calibration import Calibration  # noqa: E402
from wetread.findings import CHEXPERT, COVID, NIH, PNEUMONIA  # noqa: E402
from wetread.infer import runtime  # noqa: E402
from wetread.train.ensemble import Ensemble  # noqa: E402
from wetread.train.export import Familiarity, Served, halve, to_onnx  # noqa: E402
from wetread.train.looks import Look, looks  # noqa: E402
from wetread.train.network import Network  # noqa: E402
from wetread.train.recipe import NetworkRecipe, PackageRecipe  # noqa: E402

SIDE = 64
TASKS = [CHEXPERT, NIH, PNEUMONIA, COVID]


def net(task, backbone: str = "small_cnn", seed: int = 0) -> Network:
    torch.manual_seed(seed)
    made = Network(NetworkRecipe.model_validate({"backbone": backbone, "normalise": "image"}), len(task.findings))
    torch.nn.init.normal_(made.head.weight, 0, 0.3)
    return made.eval()


def make(task, backbones=("small_cnn",), looks=None) -> Served:
    ensemble = Ensemble([net(task, name, seed) for seed, name in enumerate(backbones)], task, looks or [Look()])
    count = len(task.findings)
    rng = np.random.default_rng(0)
    slope = np.full(count, 1.3) if count == 2 else rng.uniform(0.5, 2, count)
    shift = rng.normal(size=count)
    intercept = np.array([-0.4, 0.4]) if count == 2 else shift
    with torch.inference_mode():
        features = [part.numpy() for part in ensemble(pixels(40, 5))[2]]
    familiarity = [Familiarity.fit(part) for part in features]
    return Served(ensemble, Calibration(task, slope, intercept), familiarity, (0.8, -0.2))


def pixels(count: int = 5, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 256, (count, 1, 8, 8), generator=generator).float()
    return torch.nn.functional.interpolate(base, SIDE, mode="bilinear").to(torch.uint8)


@pytest.fixture(scope="module", params=TASKS, ids=lambda t: t.name)
def served(request) -> Served:
    return make(request.param)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_both_runtimes_repeat_pytorch(served, name):
    graph = to_onnx(served, SIDE)
    with torch.inference_mode():
        wanted = served(pixels())
    engine = runtime.load(graph, runtime=name, threads=1)
    for tensor, given in zip(wanted, engine.run(pixels().numpy()), strict=True):
        np.testing.assert_allclose(given, tensor.numpy(), rtol=1e-3, atol=1e-4)
    one = engine.run(pixels()[:1].numpy())
    np.testing.assert_allclose(one.probability, wanted[0][:1].numpy(), rtol=1e-3, atol=1e-4)


def test_the_tail_is_that_of_the_numpy_reference(served):
    task = served.task
    with torch.inference_mode():
        logits = served.ensemble.members[0](pixels())
        given = served(pixels())
    plain = torch.softmax(logits, 1) if task.exclusive else torch.sigmoid(logits)
    wanted = Calibration(task, served.slope.numpy().astype(float), served.intercept.numpy().astype(float))
    np.testing.assert_allclose(given[0].numpy(), wanted.apply(plain.numpy()), rtol=1e-3, atol=1e-4)
    if task.normal:
        np.testing.assert_allclose(given[1], 1 - given[0][:, task.findings.index(task.normal)], atol=1e-6)
    else:
        none = np.prod(1 - given[0].numpy().astype(float), 1)
        odds = np.log((1 - none) / none)
        np.testing.assert_allclose(given[1], 1 / (1 + np.exp(-(0.8 * odds - 0.2))), rtol=1e-3)
    if task.exclusive:
        np.testing.assert_allclose(given[0].sum(1), 1, atol=1e-5)


def test_no_child_is_likelier_than_its_parent():
    probability = make(CHEXPERT)(pixels(20))[0].detach().numpy()
    for child, parent in CHEXPERT.parents.items():
        f = CHEXPERT.findings.index
        assert (probability[:, f(child)] <= probability[:, f(parent)]).all()
    assert (np.diff(probability, axis=0) != 0).any()


PLAIN, MIRRORED = Look(), Look(mirror=True)
SHIFTED = Look(right=8 / SIDE, down=-4 / SIDE)
CASES = {
    "one": (("small_cnn",), (PLAIN,)),
    "mirror": (("small_cnn",), (PLAIN, MIRRORED)),
    "two": (("small_cnn", "small_cnn"), (PLAIN,)),
    "grids": (("small_cnn", "residual_cnn", "resnet10t"), (PLAIN, MIRRORED)),
    "looks": (("small_cnn", "residual_cnn"), (PLAIN, Look(angle=7), Look(zoom=0.02), SHIFTED)),
}


def on_grid(cam: np.ndarray, look: Look, grid: tuple[int, int]) -> np.ndarray:
    """A look's map [h, w] in the frame and on the grid of the image: OpenCV's affine warp and its bilinear resize."""
    size = cam.shape[0]
    centre = ((size - 1) / 2, (size - 1) / 2)
    forward = cv2.getRotationMatrix2D(centre, look.angle, 1 + look.zoom)
    forward[:, 2] += np.array([look.right, look.down]) * size
    cam = cam[:, ::-1].copy() if look == MIRRORED else cam
    if look != MIRRORED:
        cam = cv2.warpAffine(cam, forward, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    scale = cam.size / np.prod(grid) * (1 + look.zoom) ** 2
    return cv2.resize(cam, grid[::-1], interpolation=cv2.INTER_LINEAR) * scale


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_maps_are_the_gradient_of_the_reported_log_odds(task, case):
    """Grad-CAM by automatic differentiation: features weighed by the mean gradient, before the ReLU."""
    backbones, looks = CASES[case]
    served = make(task, backbones, looks)
    remembered = last_features(served.ensemble.members)
    out = served(pixels())
    assert len(remembered) == len(backbones) * len(looks)
    grid = tuple(max(last.shape[axis] for last in remembered) for axis in (2, 3))
    assert out[2].shape[2:] == grid
    for column in range(len(task.findings)):
        odds = torch.logit(out[0][:, column].double()).sum()
        gradients = torch.autograd.grad(odds, remembered, retain_graph=True)
        wanted = np.zeros((len(pixels()), *grid))
        for index, (last, gradient) in enumerate(zip(remembered, gradients, strict=True)):
            cams = (gradient.mean((2, 3), keepdim=True) * last).sum(1).detach().numpy()
            wanted += np.stack([on_grid(cam, looks[index % len(looks)], grid) for cam in cams])
        scale = np.abs(wanted).max()
        assert scale > 0
        # OpenCV rounds places to 1/32 of a cell
        close = 0.04 if case == "looks" else 1e-4
        np.testing.assert_allclose(out[2][:, column].detach().numpy(), wanted, rtol=2e-3, atol=close * scale)


@pytest.mark.parametrize("look", [Look(angle=7), Look(zoom=0.1), Look(right=0.1), Look(True, -9, -0.05, 0.02, 0.07)])
def test_a_look_moves_the_picture_as_opencv_does_and_its_map_comes_back(look):
    image = cv2.GaussianBlur(pixels()[0, 0].numpy().astype(np.float32), (0, 0), 3)
    centre = ((SIDE - 1) / 2, (SIDE - 1) / 2)
    forward = cv2.getRotationMatrix2D(centre, look.angle, 1 + look.zoom)
    forward[:, 2] += np.array([look.right, look.down]) * SIDE
    turned = np.ascontiguousarray(image[:, ::-1]) if look.mirror else image
    wanted = cv2.warpAffine(turned, forward, (SIDE, SIDE))
    seen = look.see(torch.from_numpy(image)[None, None])
    np.testing.assert_allclose(seen[0, 0].numpy(), wanted, atol=2.5)
    back = look.back(seen)[0, 0].numpy() / (1 + look.zoom) ** 2
    inside = slice(16, -16)
    np.testing.assert_allclose(back[inside, inside], image[inside, inside], atol=4)


def test_a_map_that_comes_back_keeps_its_sum():
    spot = torch.zeros(1, 1, 16, 16)
    spot[..., 5:8, 6:9] = 1
    for look in looks(PackageRecipe(mirror=True, rotate=7, zoom=0.02, shift=5 / 224)):
        assert float(look.back(spot).sum()) == pytest.approx(9, rel=0.02)


def test_the_ten_looks_of_the_paper():
    ten = looks(PackageRecipe(mirror=True, rotate=7, zoom=0.02, shift=5 / 224))
    assert len(set(ten)) == 10
    assert ten[0] == Look()
    assert looks(PackageRecipe()) == (Look(),)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_ensemble_with_many_looks_runs_as_one_graph(name):
    ten = looks(PackageRecipe(mirror=True, rotate=7, zoom=0.02, shift=5 / 224))
    served = make(CHEXPERT, ("small_cnn", "residual_cnn"), ten)
    with torch.inference_mode():
        wanted = served(pixels())
    given = runtime.load(to_onnx(served, SIDE), runtime=name, threads=1).run(pixels().numpy())
    assert given.features.shape[1] == 256 + 512
    for tensor, value in zip(wanted, given, strict=True):
        np.testing.assert_allclose(value, tensor.numpy(), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_an_ensemble_gives_the_mean_probability_of_its_members_and_looks(task):
    networks = [net(task, "small_cnn", seed) for seed in range(3)]
    with torch.inference_mode():
        odds, _, features = Ensemble(networks, task, (PLAIN, MIRRORED))(pixels())
        logits = torch.stack([network(x) for network in networks for x in (pixels(), pixels().flip(3))])
    plain = torch.softmax(logits, 2) if task.exclusive else torch.sigmoid(logits)
    torch.testing.assert_close(torch.sigmoid(odds), plain.mean(0), rtol=1e-4, atol=1e-5)
    assert [part.shape for part in features] == [(5, 256)] * 3


def test_an_ensemble_of_one_network_twice_is_that_network():
    once, twice = (Ensemble([net(NIH)] * count, NIH) for count in (1, 2))
    with torch.inference_mode():
        first, second = once(pixels()), twice(pixels())
    torch.testing.assert_close(first[0].clamp(-10, 10), second[0].clamp(-10, 10), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first[1], second[1], rtol=1e-4, atol=1e-5)


def test_with_the_mirror_an_image_and_its_mirror_image_score_alike():
    served = make(COVID, looks=(PLAIN, MIRRORED))
    with torch.inference_mode():
        first, second = served(pixels()), served(pixels().flip(3))
    torch.testing.assert_close(first[0], second[0])
    torch.testing.assert_close(first[2], second[2].flip(3))


def test_half_weights_halve_the_file_and_hardly_move_the_answer():
    served = make(PNEUMONIA)
    graph = to_onnx(served, SIDE)
    small = halve(graph)
    assert len(small) < 0.6 * len(graph)
    first, second = (runtime.load(g, threads=1).run(pixels().numpy()) for g in (graph, small))
    np.testing.assert_allclose(first.probability, second.probability, atol=5e-3)


def test_familiarity_is_the_mahalanobis_distance_where_all_axes_are_kept():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6))).astype(np.float32)
    fitted = Familiarity.fit(features, axes=5)
    new = torch.from_numpy(features[:50] + 1)
    covariance = np.cov(features.T, bias=True)
    centred = new.numpy() - features.mean(0)
    wanted = np.einsum("nd,de,ne->n", centred, np.linalg.inv(covariance), centred)
    np.testing.assert_allclose(fitted.distance(new).numpy(), wanted, rtol=0.02)


def test_what_was_never_seen_is_less_familiar():
    served = make(PNEUMONIA)
    with torch.inference_mode():
        known = served(pixels(40, 5))[4]
        strange = served(torch.randint(0, 256, (10, 1, SIDE, SIDE)).to(torch.uint8))[4]
    assert known.median() > strange.max()
    assert ((known > 0) & (known <= 1)).all()
