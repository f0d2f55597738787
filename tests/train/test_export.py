from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from wetread.evaluate.calibration import Calibration  # noqa: E402
from wetread.findings import CHEXPERT, COVID, NIH, PNEUMONIA  # noqa: E402
from wetread.infer import runtime  # noqa: E402
from wetread.train.export import Familiarity, Served, halve, to_onnx  # noqa: E402
from wetread.train.network import Network  # noqa: E402
from wetread.train.recipe import NetworkRecipe  # noqa: E402

SIDE = 64
TASKS = [CHEXPERT, NIH, PNEUMONIA, COVID]


def make(task, backbone: str = "small_cnn", mirror: bool = False) -> Served:
    torch.manual_seed(0)
    net = Network(NetworkRecipe.model_validate({"backbone": backbone, "normalise": "image"}), len(task.findings)).eval()
    torch.nn.init.normal_(net.head.weight, 0, 0.3)
    count = len(task.findings)
    rng = np.random.default_rng(0)
    slope = np.full(count, 1.3) if count == 2 else rng.uniform(0.5, 2, count)
    shift = rng.normal(size=count)
    intercept = np.array([-0.4, 0.4]) if count == 2 else shift
    with torch.inference_mode():
        features = net.features(pixels(40, 5)).mean((2, 3)).numpy()
    return Served(net, Calibration(task, slope, intercept), Familiarity.fit(features), (0.8, -0.2), mirror)


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
        logits = served.network(pixels())
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


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_maps_are_the_gradient_of_the_reported_log_odds(task, mirror):
    """Grad-CAM by automatic differentiation: features weighed by the mean gradient, before the ReLU."""
    served = make(task, mirror=mirror)
    own, looks = served.network.features, []

    def remember(x):
        looks.append(own(x).detach().requires_grad_())
        return looks[-1]

    served.network.features = remember
    out = served(pixels())
    assert len(looks) == 1 + mirror
    for column in range(len(task.findings)):
        odds = torch.logit(out[0][:, column].double()).sum()
        cam = 0
        for index, (last, gradient) in enumerate(
            zip(looks, torch.autograd.grad(odds, looks, retain_graph=True), strict=True)
        ):
            one = (gradient.mean((2, 3), keepdim=True) * last).sum(1)
            cam = cam + (one.flip(2) if index else one)
        cam = cam.detach()
        torch.testing.assert_close(out[2][:, column].detach(), cam, rtol=2e-3, atol=1e-4 * float(cam.abs().max()))


def test_with_the_mirror_an_image_and_its_mirror_image_score_alike():
    served = make(COVID, mirror=True)
    with torch.inference_mode():
        first, second = served(pixels()), served(pixels().flip(3))
        single = torch.softmax(served.network(pixels()), 1), torch.softmax(served.network(pixels().flip(3)), 1)
        plain, _, _ = served.look(pixels())
    torch.testing.assert_close(first[0], second[0])
    torch.testing.assert_close(first[2], second[2].flip(3))
    torch.testing.assert_close(torch.sigmoid(plain), (single[0] + single[1]) / 2, rtol=1e-4, atol=1e-5)


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
