from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

import numpy as np  # noqa: E402
import timm  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from wetread.errors import TrainError  # noqa: E402
from wetread.evaluate.calibration import Calibration  # noqa: E402
from wetread.findings import PNEUMONIA  # noqa: E402
from wetread.infer import runtime  # noqa: E402
from wetread.train.ensemble import Ensemble  # noqa: E402
from wetread.train.export import Served, to_onnx  # noqa: E402
from wetread.train.looks import Look  # noqa: E402
from wetread.train.network import Network, load_weights  # noqa: E402
from wetread.train.recipe import NetworkRecipe  # noqa: E402


def network(backbone: str, findings: int = 3, **values) -> Network:
    torch.manual_seed(0)
    return Network(NetworkRecipe.model_validate({"backbone": backbone, **values}), findings).eval()


def pixels(count: int = 2, side: int = 64):
    return torch.randint(0, 256, (count, 1, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("small_cnn", {}),
        ("residual_cnn", {}),
        ("resnet18", {}),
        ("densenet121", {}),
        ("mobilenetv2_100", {"pad_type": "same"}),
        ("mobilenetv3_small_100", {}),
        ("efficientnet_b0", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 64}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}),
    ],
)
def test_every_kind_of_backbone_gives_a_map_that_the_head_averages(backbone, options):
    net = network(backbone, options=options)
    with torch.inference_mode():
        features = net.features(pixels())
        logits = net(pixels())
        maps = torch.einsum("fc,bchw->bfhw", net.head.weight, features) + net.head.bias[:, None, None]
    assert features.shape[:2] == (2, net.head.in_features)
    torch.testing.assert_close(maps.mean((2, 3)), logits, rtol=1e-3, atol=1e-4)


PAPER = [  # the ensemble of Pham et al. (2021), but for densenet121, which stands above
    pytest.param("densenet169", 64, marks=pytest.mark.system),
    pytest.param("densenet201", 64, marks=pytest.mark.system),
    pytest.param("inception_resnet_v2", 96, marks=pytest.mark.system),
    pytest.param("legacy_xception", 64, marks=pytest.mark.system),
    pytest.param("nasnetalarge", 64, marks=pytest.mark.system),
]


@pytest.mark.parametrize(("name", "side"), PAPER)
def test_the_papers_networks_end_as_timm_has_them_and_read_grey_as_three_equal_channels(name, side, tmp_path):
    torch.manual_seed(3)
    colour = timm.create_model(name, num_classes=0).eval()
    save_file(colour.state_dict(), tmp_path / "w.safetensors")
    net = network(name)
    load_weights(net, tmp_path / "w.safetensors")
    grey = pixels(side=side)
    with torch.inference_mode():
        features, logits = net.features(grey), net(grey)
        maps = net.maps(features)
        pooled = colour(net.prepare(grey).expand(-1, 3, -1, -1))
    torch.testing.assert_close(maps.mean((2, 3)) + net.head.bias, logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(features.mean((2, 3)), pooled, rtol=1e-3, atol=1e-4 * float(pooled.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "convnext_atto"])
def test_imagenet_input_is_what_a_colour_network_sees_of_a_grey_picture(name, tmp_path):
    """Whatever the mean of each colour, and at the borders too, where padding is no grey at all."""
    options = {"img_size": 64} if name.startswith("vit") else {}
    torch.manual_seed(3)
    colour = timm.create_model(name, num_classes=0, **options).eval()
    save_file(colour.state_dict(), tmp_path / "w.safetensors")
    net = network(name, normalise="imagenet", options=options)
    load_weights(net, tmp_path / "w.safetensors")
    picture = pixels().expand(-1, 3, -1, -1).float() / 255
    mean, deviation = (torch.tensor(colour.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        seen = colour.forward_features((picture - mean) / deviation)
        ours = net.backbone.net.forward_features(net.prepare(pixels()))
    torch.testing.assert_close(ours, seen, rtol=1e-3, atol=1e-4)


def test_imagenet_input_is_for_timms_backbones():
    with pytest.raises(TrainError, match=r"network\.normalise = 'imagenet'.*small_cnn"):
        network("small_cnn", normalise="imagenet")


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18", "convnext_atto"])
def test_a_pyramid_gives_maps_as_fine_as_its_first_stage(name):
    net = network(name, pyramid=2, neck=24)
    stride = net.backbone.net.feature_info.reduction()[1]
    with torch.inference_mode():
        features = net.features(pixels())
        assert features.shape == (2, 24, 64 // stride, 64 // stride)
        torch.testing.assert_close(net.maps(features).mean((2, 3)) + net.head.bias, net(pixels()), rtol=1e-3, atol=1e-4)


def test_a_pyramid_takes_the_weights_of_the_whole_backbone(tmp_path):
    torch.manual_seed(3)
    whole = timm.create_model("mobilenetv2_100", in_chans=1).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    net = network("mobilenetv2_100", pyramid=3)
    load_weights(net, tmp_path / "w.safetensors")
    with torch.inference_mode():
        x = net.prepare(pixels())
        expected = whole.forward_intermediates(x, indices=[2, 3, 4], intermediates_only=True)
        for ours, theirs in zip(net.backbone.stages(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "stage"), [("small_cnn", 2), ("convnext_atto", 5)])
def test_a_pyramid_of_stages_that_are_not_there_is_refused(name, stage):
    with pytest.raises(TrainError, match=rf"network\.pyramid = {stage}.*{name}"):
        network(name, pyramid=stage)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenetv2_100", "convnext_atto"])
def test_features_are_those_of_timm(name):
    """The pooled features are what timm's own classifier would see."""
    net = network(name)
    x = net.prepare(pixels())
    with torch.inference_mode():
        plain = net.backbone.net.forward_head(net.backbone.net.forward_features(x), pre_logits=True)
        ours = net.features(pixels()).mean((2, 3))
    if name == "convnext_atto":  # timm norms after pooling, the maps need it at each position: near, not equal
        assert torch.nn.functional.cosine_similarity(ours, plain).min() > 0.5
    else:
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_mobilenetv3_does_its_last_convolution_at_each_position():
    net = network("mobilenetv3_small_100")
    assert net.head.in_features == timm.create_model("mobilenetv3_small_100").conv_head.out_channels


def test_image_normalisation_removes_exposure_and_fixed_does_not():
    image = pixels()
    darker = (image.float() * 0.5 + 20).to(torch.uint8)
    same, fixed = network("small_cnn", normalise="image"), network("small_cnn", normalise="fixed")
    assert (same.prepare(image) - same.prepare(darker)).abs().max() < 0.05
    assert (fixed.prepare(image) - fixed.prepare(darker)).abs().max() > 0.5
    constant = torch.full((1, 1, 32, 32), 7, dtype=torch.uint8)
    assert torch.isfinite(same.prepare(constant)).all()


def test_colour_weights_become_grey_ones_that_say_the_same(tmp_path):
    torch.manual_seed(3)
    colour = timm.create_model("resnet18", num_classes=5).eval()
    save_file(colour.state_dict(), tmp_path / "w.safetensors")
    net = network("resnet18")
    load_weights(net, tmp_path / "w.safetensors")
    x = net.prepare(pixels())
    with torch.inference_mode():
        torch.testing.assert_close(
            net.backbone(x), colour.forward_features(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
        )


VIT = ("vit_tiny_patch16_224", {"img_size": 64}, 64)
SWIN = ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}, 64)
SMALL = [
    ("resnet18", {}, 64),
    ("resnet18d", {}, 64),  # a stem of three convolutions
    ("densenet121", {}, 64),
    ("mobilenetv3_small_100", {}, 64),
    ("efficientnet_b0", {}, 64),
    ("convnext_atto", {}, 64),
    ("tresnet_m", {}, 64),  # a stem after space to depth
    VIT,
    SWIN,
]
LARGE = [
    ("densenet169", {}, 64),
    ("densenet201", {}, 64),
    ("inception_resnet_v2", {}, 96),
    ("legacy_xception", {}, 64),
    ("nasnetalarge", {}, 96),
]
FAMILIES = [pytest.param(*one, id=one[0]) for one in SMALL]
FAMILIES += [pytest.param(*one, id=one[0], marks=pytest.mark.system) for one in LARGE]


def shaken(model):
    """Give every tensor values of its own, so that no norm and no bias is neutral."""
    generator = torch.Generator().manual_seed(4)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.mul_(torch.empty_like(value).uniform_(0.8, 1.2, generator=generator))
            value.add_(torch.empty_like(value).uniform_(-0.01, 0.02, generator=generator))
    return model.eval()


def alike(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()
    assert theirs.std() > 0


@pytest.mark.parametrize(("backbone", "options", "side"), FAMILIES)
def test_colour_weights_say_the_same_of_grey_in_every_family(backbone, options, side, tmp_path):
    torch.manual_seed(3)
    colour = shaken(timm.create_model(backbone, num_classes=5, **options))
    save_file(colour.state_dict(), tmp_path / "w.safetensors")
    image = pixels(side=side)
    grey, exact = (network(backbone, options=options, normalise=name) for name in ("fixed", "imagenet"))
    mean, deviation = (torch.tensor(colour.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        for net, x in ((grey, image / 127.5 - 1), (exact, (image / 255 - mean) / deviation)):
            load_weights(net, tmp_path / "w.safetensors")
            wanted = colour.forward_features(x.expand(-1, 3, -1, -1))
            alike(net.backbone.net.forward_features(net.prepare(image)), wanted)


@pytest.mark.parametrize(("backbone", "options", "side"), FAMILIES)
def test_every_family_exports_with_maps_whose_mean_is_the_logit(backbone, options, side):
    net = network(backbone, options=options, normalise="imagenet")
    task = PNEUMONIA
    net.head = torch.nn.Linear(net.head.in_features, len(task.findings))
    served = Served(Ensemble([net], task, [Look()]), Calibration(task, np.ones(2), np.zeros(2)))
    image = pixels(side=side)
    with torch.inference_mode():
        wanted = served(image)
        features = net.features(image)
        means = net.maps(features).mean((2, 3)) + net.head.bias
        torch.testing.assert_close(means, net(image), rtol=1e-3, atol=1e-4)
    given = runtime.load(to_onnx(served, side), runtime="onnxruntime", threads=1).run(image.numpy())
    for tensor, output in zip(wanted, given, strict=True):
        np.testing.assert_allclose(output, tensor.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch finds fault with how timm indexes
@pytest.mark.parametrize(("backbone", "options"), [VIT[:2], SWIN[:2], ("resnet18", {}), ("convnext_atto", {})])
@pytest.mark.parametrize("normalise", ["fixed", "imagenet"])
def test_a_file_of_weights_is_read_as_timm_reads_it(backbone, options, normalise, tmp_path):
    """Positions and windows of another image size are resampled by timm in either way."""
    save_file(shaken(timm.create_model(backbone)).state_dict(), tmp_path / "w.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.safetensors")}}
    theirs = network(backbone, options=options | overlay, weights="hub", normalise=normalise)
    ours = network(backbone, options=options, normalise=normalise)
    load_weights(ours, tmp_path / "w.safetensors")
    wanted = theirs.backbone.state_dict()
    for key, value in ours.backbone.state_dict().items():
        torch.testing.assert_close(value, wanted[key], msg=key)


def test_a_pyramid_whose_tensors_timm_renames_takes_the_same_weights(tmp_path):
    whole = shaken(timm.create_model("convnext_atto"))
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    net = network("convnext_atto", pyramid=1)
    load_weights(net, tmp_path / "w.safetensors")
    x = net.prepare(pixels())
    with torch.inference_mode():
        expected = whole.forward_intermediates(x.expand(-1, 3, -1, -1), intermediates_only=True)
        for ours, theirs in zip(net.backbone.stages(x), expected, strict=True):
            alike(ours, theirs)


def test_imagenet_s_input_is_for_networks_that_have_weights():
    with pytest.raises(TrainError, match=r"network\.normalise = 'imagenet'.*small_cnn"):
        network("small_cnn", normalise="imagenet")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(TrainError, match=r"w\.safetensors.*not in it"):
        load_weights(network("mobilenetv2_100"), tmp_path / "w.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04hello")
    with pytest.raises(TrainError, match=r"bad\.safetensors"):
        load_weights(network("small_cnn"), tmp_path / "bad.safetensors")
    with pytest.raises(TrainError, match="none"):
        load_weights(network("small_cnn"), tmp_path / "none.safetensors")


def test_an_unknown_backbone_or_option_is_named():
    with pytest.raises(TrainError, match="densenet999"):
        network("densenet999")
    with pytest.raises(TrainError, match="no_such_option"):
        network("resnet18", options={"no_such_option": 1})


def test_shared_imagenet_weights_load(shared):
    net = network("mobilenetv2_100", options={"pad_type": "same"})
    before = net.backbone.net.conv_stem.weight.clone()
    load_weights(net, shared / "data" / "weights" / "mobilenetv2_100.imagenet.safetensors")
    assert not torch.equal(before, net.backbone.net.conv_stem.weight)
