"""The maps of an exported graph against Grad-CAM by autograd through timm's own network and head.

Grad-CAM (Selvaraju et al. 2017), written from the paper: the weight of a channel is the mean over the
positions of the gradient of a score with respect to it, the map is the weighted sum of the channels.
The score is the reported finding's log-odds; the ReLU at the end is left to the viewer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wetread.evaluate.calibration import Calibration
from wetread.findings import CHEXPERT, COVID, PNEUMONIA, Task
from wetread.infer import runtime

torch = pytest.importorskip("torch", reason="needs the train extra")
timm = pytest.importorskip("timm", reason="needs the train extra")

pytestmark = pytest.mark.train

SIZE = 96
BACKBONES: dict[str, tuple[dict[str, Any], str]] = {
    # options, and the module whose output is the last feature map
    "resnet18": ({}, "layer4"),
    "densenet121": ({"growth_rate": 8, "block_config": (2, 2, 2, 2)}, "features"),
    "mobilenetv2_100": ({}, "bn2"),
}


def reported_odds(looks: list[Any], task: Task, slope: Any, intercept: Any) -> Any:
    """Return the log-odds [B, F] that the package reports for the logits of its looks, with autograd, in float64."""
    first = sum(torch.softmax(logits, 1) if task.exclusive else torch.sigmoid(logits) for logits in looks) / len(looks)
    probability = torch.sigmoid(slope * torch.log(first / (1 - first)) + intercept)
    if task.exclusive:
        probability = probability / probability.sum(1, keepdim=True)
    else:
        column = task.findings.index
        paths = [[column(step) for step in task.path(finding)] for finding in task.findings]
        probability = torch.stack([probability[:, path].amin(1) for path in paths], 1)
    return torch.log(probability / (1 - probability))


def grad_cam(
    model: Any, layer: str, images: Any, mirror: bool, task: Task, slope: Any, intercept: Any
) -> tuple[Any, Any]:
    """Return probability [B, F] and Grad-CAM before its ReLU [B, F, h, w], that of the mirror image turned back."""
    kept: list[Any] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    looks = [model(images), model(images.flip(3))] if mirror else [model(images)]
    hook.remove()
    odds = reported_odds(looks, task, slope, intercept)
    maps = []
    for finding in range(odds.shape[1]):
        gradients = torch.autograd.grad(odds[:, finding].sum(), kept, retain_graph=True)
        cams = [(g.mean((2, 3), keepdim=True) * a).sum(1) for g, a in zip(gradients, kept, strict=True)]
        maps.append(cams[0] + cams[1].flip(2) if mirror else cams[0])
    return torch.sigmoid(odds).detach().numpy(), torch.stack(maps, 1).detach().numpy()


CASES = [(backbone, CHEXPERT, False) for backbone in BACKBONES]
CASES += [("resnet18", PNEUMONIA, True), ("resnet18", COVID, True)]


@pytest.mark.parametrize(("backbone", "task", "mirror"), CASES, ids=lambda value: getattr(value, "name", None))
def test_maps_are_grad_cam_of_the_reported_log_odds(backbone: str, task: Task, mirror: bool) -> None:
    from wetread.train.ensemble import Ensemble
    from wetread.train.export import Familiarity, Served, to_onnx
    from wetread.train.looks import Look
    from wetread.train.network import Network
    from wetread.train.recipe import NetworkRecipe

    options, layer = BACKBONES[backbone]
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 256, (6, 1, SIZE // 8, SIZE // 8), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    findings = len(task.findings)
    slope, intercept = rng.uniform(0.5, 1.5, findings), rng.normal(0, 0.3, findings)
    if task.exclusive and findings == 2:  # as calibration fits them: the two sum to one
        slope[0], intercept[0] = slope[1], -intercept[1]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = Network(NetworkRecipe(backbone=backbone, options=options), findings)
        torch.nn.init.normal_(network.head.weight, std=0.05)
        torch.nn.init.normal_(network.head.bias, std=0.2)
        network.train()
        with torch.no_grad():  # a few batches give the normalisation layers statistics that mean something
            for _ in range(5):
                network(torch.from_numpy(pixels))
        model = timm.create_model(backbone, in_chans=1, num_classes=findings, **options)
    network.eval()

    state = {k.removeprefix("backbone.net."): v for k, v in network.state_dict().items() if k.startswith("backbone")}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model.get_classifier().load_state_dict(network.head.state_dict())
    model.double().eval()
    images = network.prepare(torch.from_numpy(pixels)).double()
    tail = (task, torch.from_numpy(slope), torch.from_numpy(intercept))
    probability, maps = grad_cam(model, layer, images, mirror, *tail)

    width = network.head.in_features
    familiarity = Familiarity.fit(rng.normal(size=(50, width)).astype(np.float32), axes=4)
    ensemble = Ensemble([network], task, [Look(), Look(mirror=True)] if mirror else [Look()])
    graph = to_onnx(Served(ensemble, Calibration(task, slope, intercept), [familiarity]), SIZE)
    outputs = runtime.load(graph).run(pixels)
    np.testing.assert_allclose(outputs.probability, probability, atol=1e-4)
    assert outputs.maps.shape == maps.shape
    assert np.abs(maps).max(axis=(0, 2, 3)).min() > 1e-4, "a map of zeros proves nothing"
    np.testing.assert_allclose(outputs.maps, maps, atol=2e-4 * np.abs(maps).max())
