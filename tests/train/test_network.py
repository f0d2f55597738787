from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

import timm  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from wetread.errors import TrainError  # noqa: E402
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


def test_an_earlier_stage_gives_finer_maps_and_takes_the_same_weights(tmp_path):
    torch.manual_seed(3)
    whole = timm.create_model("mobilenetv2_100", in_chans=1).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    net = network("mobilenetv2_100", stage=4, neck=48)
    load_weights(net, tmp_path / "w.safetensors")
    with torch.inference_mode():
        assert net.features(pixels()).shape == (2, 48, 4, 4)
        x = net.prepare(pixels())
        expected = whole.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
        torch.testing.assert_close(net.backbone(x), expected)


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
