from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

import timm  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from wetread.errors import ConfigError, TrainError, WetreadError  # noqa: E402
from wetread.findings import CHEXPERT, COVID, NIH, Task  # noqa: E402
from wetread.infer import runtime  # noqa: E402
from wetread.radiograph.pixels import plain  # noqa: E402
from wetread.radiograph.read import read  # noqa: E402
from wetread.train import pretrained  # noqa: E402
from wetread.train.imported import Foreign, Imported, at_half  # noqa: E402


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics with which logits of radiographs differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.8, 1.2, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    return net.eval()


@torch.no_grad()
def centre(net: nn.Module, classifier: nn.Linear, x, middle=0.0) -> None:
    """Give logits a deviation of 2 about `middle`: on both sides of any threshold, and none so large as to be cut."""
    logits = net(x)
    shrink = 2 / logits.std(0)
    classifier.weight.mul_(shrink[:, None])
    classifier.bias.copy_(torch.nan_to_num(middle - (logits.mean(0) - classifier.bias) * shrink + 0 * logits[0]))


@pytest.fixture(scope="module")
def radiographs(shared):
    """Real radiographs."""
    return [read(path) for path in sorted((shared / "data/nih1000").rglob("*.png"))[:5]]


def xrv(name: str, radiographs=()):
    """The library's own network, with random weights and its own labels and thresholds."""
    models = pytest.importorskip("torchxrayvision", reason="needs the txrv extra").models
    torch.manual_seed(1)
    facts = models.model_urls[name]
    net = shaken(models.DenseNet(num_classes=len(facts["labels"])))
    if radiographs:
        seen = torch.from_numpy(np.stack([plain(224, 256)(radiograph).array for radiograph in radiographs]))
        centre(
            net, net.classifier, (seen[:, None] / 255 * 2 - 1) * 1024, torch.logit(torch.tensor(facts["op_threshs"]))
        )
    return net, facts


@pytest.mark.parametrize("name", ["densenet121-res224-chex", "nih"])
def test_a_densenet_answers_as_torchxrayvision_does(name, radiographs, tmp_path):
    net, facts = xrv(name, radiographs)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    made = pretrained.run(f"txrv:{name}", tmp_path / "p", weights=tmp_path / "w.safetensors")
    pixels = np.stack([made.transform(radiograph).array for radiograph in radiographs])[:, None]
    outputs = runtime.open_engine(made, threads=1).run(pixels)

    from torchxrayvision.utils import normalize

    net.op_threshs = torch.tensor(facts["op_threshs"])
    net.input_resolution = facts["input_resolution"]
    with torch.inference_mode():
        wanted = net(torch.from_numpy(normalize(pixels, 255))).numpy()
    names = {label: column for column, label in enumerate(facts["labels"]) if label}
    if "chex" in name:
        assert set(made.task.findings) <= set(CHEXPERT.findings)
        names["Pleural Effusion"] = names.pop("Effusion")
    if "nih" in name:
        assert made.task == NIH
    assert set(names) == set(made.task.findings)
    order = [names[finding] for finding in made.task.findings]
    np.testing.assert_allclose(outputs.probability, wanted[:, order], atol=1e-4)
    assert 0.05 < (outputs.probability > 0.5).mean() < 0.95
    assert set(made.meta.points["screen"].values()) == {0.5}
    np.testing.assert_allclose(outputs.abnormal, outputs.probability.max(1))

    # the maps are Grad-CAM of the reported log-odds, before its ReLU
    from torchxrayvision.models import op_norm

    last = torch.relu(net.features(torch.from_numpy(normalize(pixels, 255)))).detach().requires_grad_()
    scores = op_norm(torch.sigmoid(net.classifier(last.mean((2, 3)))), net.op_threshs)
    for column, label in enumerate(order):
        (gradient,) = torch.autograd.grad(torch.logit(scores[:, label]).sum(), last, retain_graph=True)
        cam = (gradient.mean((2, 3), keepdim=True) * last).sum(1).detach().numpy()
        np.testing.assert_allclose(outputs.maps[:, column], cam, atol=2e-3 * np.abs(cam).max())


@pytest.mark.parametrize(("name", "count"), [("all", 18), ("pc", 15), ("rsna", 2), ("mimic_nb", 11), ("mimic_ch", 11)])
def test_the_labels_of_the_others_keep_their_names(name, count, tmp_path):
    net, facts = xrv(name)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    foreign = pretrained.txrv(name, tmp_path / "w.safetensors")
    effusion = "Pleural Effusion" if name.startswith("mimic") else "Effusion"
    labels = [effusion if label == "Effusion" else label for label in facts["labels"]]
    assert foreign.task.findings == tuple(label for label in labels if label)
    assert len(foreign.task.findings) == count
    assert [labels[row] for row in foreign.rows] == list(foreign.task.findings)
    assert list(foreign.thresholds) == [facts["op_threshs"][row] for row in foreign.rows]
    assert set(foreign.task.findings) <= {*CHEXPERT.findings, *NIH.findings}


def test_a_pickled_network_is_read_and_nothing_else_in_it_is_run(tmp_path):
    net, _ = xrv("densenet121-res224-all")
    torch.save(net, tmp_path / "whole.pt")
    torch.save(net.state_dict(), tmp_path / "state.pt")
    first, second = (pretrained.txrv("all", tmp_path / f"{name}.pt") for name in ("whole", "state"))
    for key, value in first.features.state_dict().items():
        torch.testing.assert_close(value, second.features.state_dict()[key])

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(TrainError, match=r"evil\.pt: cannot be read"):
        pretrained.txrv("all", tmp_path / "evil.pt")
    assert not (tmp_path / "opened").exists()


def test_a_resnet_has_its_range_and_labels_and_leaves_out_the_untrained(tmp_path):
    models = pytest.importorskip("torchxrayvision", reason="needs the txrv extra").models
    from torchvision.models import resnet50

    torch.manual_seed(0)
    net = resnet50(num_classes=18, weights=None)
    net.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    shaken(net)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    foreign = pretrained.txrv("resnet50-res512-all", tmp_path / "w.pt")
    assert foreign.size == 512
    assert len(foreign.task.findings) == 16
    assert "Lung Lesion, Enlarged Cardiomediastinum" in foreign.limits[0]
    pixels = torch.randint(0, 256, (1, 1, 512, 512), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    facts = models.model_urls["resnet50-res512-all"]
    with torch.inference_mode():
        odds = Imported(foreign)(pixels)[0]
        scores = torch.sigmoid(net((pixels / 255 * 2 - 1) * 1024))
        wanted = models.op_norm(scores, torch.tensor(facts["op_threshs"]))
    order = [facts["labels"].index(finding) for finding in foreign.task.findings]
    torch.testing.assert_close(torch.sigmoid(odds), wanted[:, order], rtol=1e-4, atol=1e-5)


def test_at_half_is_the_library_s_op_norm_and_its_slope_the_derivative():
    models = pytest.importorskip("torchxrayvision", reason="needs the txrv extra").models
    thresholds = torch.tensor([0.0005, 0.03, 0.5, 0.9])
    odds = torch.linspace(-9, 9, 41)[:, None].expand(-1, 4).contiguous().requires_grad_()
    moved, slope = at_half(odds, thresholds)
    torch.testing.assert_close(torch.sigmoid(moved), models.op_norm(torch.sigmoid(odds), thresholds))
    (gradient,) = torch.autograd.grad(moved.sum(), odds)
    torch.testing.assert_close(slope, gradient, rtol=1e-4, atol=1e-5)
    at, _ = at_half(torch.logit(thresholds)[None], thresholds)
    torch.testing.assert_close(at, torch.zeros(1, 4), rtol=0, atol=1e-4)


BACKBONES = {
    "resnet10t": {},
    "densenet121": {},
    "efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"global_pool": "avg", "class_token": False},
    "swin_s3_tiny_224": {},
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("task", [NIH, COVID], ids=lambda t: t.name)
def test_heads_of_timm_give_its_logits_and_their_exact_gradient(backbone, task):
    torch.manual_seed(0)
    net = shaken(timm.create_model(backbone, num_classes=len(task.findings), **BACKBONES[backbone]))
    size = net.pretrained_cfg["input_size"][1]
    rows = range(len(task.findings))
    foreign = Foreign(
        backbone, task, pretrained._Last(net), pretrained._head(net, backbone), rows, size, [1 / 60] * 3, [-2.0] * 3
    )
    imported = Imported(foreign)
    pretrained._same(imported, net, foreign)
    pixels = torch.randint(0, 256, (2, 1, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    centre(net, net.get_classifier(), torch.cat([imported.prepare(pixels), torch.randn(3, 3, size, size)]))
    kept = []
    own = imported.backbone.forward
    imported.backbone.forward = lambda x: kept.append(own(x).detach().requires_grad_()) or kept[-1]
    odds, maps, _ = imported(pixels)
    with torch.inference_mode():
        logits = net(pixels / 60 - 2.0 + torch.zeros(1, 3, 1, 1))
    plain = torch.softmax(logits, 1) if task.exclusive else torch.sigmoid(logits)
    torch.testing.assert_close(torch.sigmoid(odds), plain, rtol=1e-3, atol=1e-4)
    for column in rows:
        (gradient,) = torch.autograd.grad(odds[:, column].sum(), kept, retain_graph=True)
        cam = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).detach()
        scale = float(cam.abs().max())
        torch.testing.assert_close(maps[:, column].detach(), cam, rtol=1e-3, atol=1e-4 * scale)


def folder(path, *, names, net, **config):
    """What timm pushes to the Hugging Face hub."""
    path.mkdir()
    save_file(net.state_dict(), path / "model.safetensors")
    about = {"input_size": [3, 64, 64], "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "label_names": names}
    values = {"architecture": "resnet10t", "num_classes": len(names), "pretrained_cfg": about} | config
    (path / "config.json").write_text(json.dumps(values))
    return path


def test_a_folder_of_the_hub_answers_as_timm_does(radiographs, tmp_path):
    names = ["Tuberculosis", "Normal", "COVID-19", "Pneumonia"]
    torch.manual_seed(0)
    net = shaken(timm.create_model("resnet10t", num_classes=4))
    given = folder(tmp_path / "hub", names=names, net=net)
    made = pretrained.run(f"timm:{given}", tmp_path / "p", name="Mine", population="adult")
    assert made.task == COVID
    assert (made.name, made.meta.population, made.meta.input_size) == ("mine", "adult", 64)
    pixels = np.stack([made.transform(radiograph).array for radiograph in radiographs])[:, None]
    with torch.inference_mode():
        mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.4, 0.5, 0.6], [0.1, 0.2, 0.3]))
        wanted = torch.softmax(net((torch.from_numpy(pixels) / 255 - mean) / deviation), 1).numpy()
    outputs = runtime.open_engine(made, threads=1).run(pixels)
    np.testing.assert_allclose(outputs.probability, wanted[:, [names.index(f) for f in COVID.findings]], atol=1e-4)
    np.testing.assert_allclose(outputs.abnormal, 1 - outputs.probability[:, 0], atol=1e-6)

    again = timm.create_model(f"local-dir:{given}", pretrained=True).eval()  # the folder is what timm means by one
    with torch.inference_mode():
        torch.testing.assert_close(again(torch.zeros(1, 3, 64, 64)), net(torch.zeros(1, 3, 64, 64)))


def test_grey_weights_and_a_task_file(tmp_path):
    task = tmp_path / "lines.toml"
    task.write_text('name = "lines"\nfindings = ["Central line", "Chest tube"]\n')
    net = shaken(timm.create_model("resnet10t", num_classes=2, in_chans=1))
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "w.pth")
    foreign = pretrained.from_timm("timm:resnet10t", tmp_path / "w.pth", Task("lines", ("Central line", "Chest tube")))
    pixels = torch.randint(0, 256, (2, 1, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.inference_mode():
        odds = Imported(foreign)(pixels)[0]
        wanted = net((pixels / 255 - 0.449) / 0.226)
    torch.testing.assert_close(odds, wanted, rtol=1e-2, atol=1e-2)


def test_what_cannot_be_imported_is_named(tmp_path):
    net = timm.create_model("resnet10t", num_classes=2)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    weights = tmp_path / "w.safetensors"
    two = Task("two", ("A", "B"))
    hub = folder(tmp_path / "hub", names=["A", "B"], net=net)
    (tmp_path / "text.pt").write_text("no weights")
    cases = [
        ("keras:vgg", {}, ConfigError, "give txrv:NAME"),
        ("txrv:", {}, ConfigError, "give txrv:NAME"),
        ("timm:resnet10t", {}, ConfigError, "--weights"),
        ("timm:resnet10t", {"weights": weights}, ConfigError, "--task"),
        (
            "timm:resnet10t",
            {"weights": weights, "task": "nih"},
            TrainError,
            r"fc.bias is \[2\], the network's is \[14\]",
        ),
        ("timm:nonsense", {"weights": weights, "task": "nih"}, ConfigError, "no such model"),
        ("timm:resnet18", {"weights": weights, "task": "pneumonia"}, TrainError, "conv1"),
        ("timm:resnet10t", {"weights": tmp_path / "none", "task": "nih"}, TrainError, "no such file"),
        ("timm:resnet10t", {"weights": tmp_path / "text.pt", "task": "nih"}, TrainError, "cannot be read"),
        (f"timm:{hub}", {}, ConfigError, "named by A, B"),
        (f"timm:{hub}", {"task": "pneumonia"}, ConfigError, "its findings are not the network's classes"),
        (f"timm:{hub}", {"population": "martian"}, ConfigError, "martian"),
    ]
    for source, options, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            pretrained.run(source, tmp_path / "p", **options)
        assert isinstance(caught.value, WetreadError)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "p").exists()
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(TrainError, match="class token"):
        pretrained.from_timm("timm:vit_tiny_patch16_224", tmp_path / "vit.safetensors", two)


def test_unknown_names_of_torchxrayvision_are_refused(tmp_path):
    pytest.importorskip("torchxrayvision", reason="needs the txrv extra")
    with pytest.raises(ConfigError, match=r"no such weights; known are all, chex"):
        pretrained.run("txrv:densenet121-res224-mars", tmp_path / "p")
    with pytest.raises(ConfigError, match="brings its own labels"):
        pretrained.run("txrv:all", tmp_path / "p", task="nih")
