from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

import timm  # noqa: E402
from timm.optim import param_groups_layer_decay  # noqa: E402

from wetread.errors import ConfigError  # noqa: E402
from wetread.train import checkpoint  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.network import Network  # noqa: E402
from wetread.train.optimiser import head_only, make, rate, set_trainable  # noqa: E402
from wetread.train.recipe import Recipe, check  # noqa: E402


def recipe(backbone: str = "small_cnn", network=None, **optimise) -> Recipe:
    return Recipe.model_validate(
        {"name": "t", "threads": 1, "network": {"backbone": backbone} | (network or {}), "optimise": optimise}
    )


def built(chosen: Recipe) -> Network:
    torch.manual_seed(0)
    return Network(chosen.network, 2)


def by_name(network: Network, chosen: Recipe, key: str) -> dict[str, float]:
    """What each parameter's group says; a parameter in two groups or in none fails."""
    optimiser = make(network, chosen)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    pairs = [(names[id(p)], group[key]) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(name for name, _ in pairs) == sorted(names.values())
    return dict(pairs)


FAMILIES = [
    ("resnet18", {}),
    ("densenet121", {}),
    ("mobilenetv3_small_100", {}),
    ("efficientnet_b0", {}),
    ("convnext_atto", {}),
    ("vit_tiny_patch16_224", {"img_size": 64}),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}),
    ("legacy_xception", {}),
    ("inception_resnet_v2", {}),
]


@pytest.mark.parametrize(("name", "options"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_layers_learn_at_the_rates_that_timm_gives_them_below_a_classifier(name, options):
    chosen = recipe(name, {"options": options}, layer_decay=0.7, backbone_factor=0.5, weight_decay=0.02)
    network = built(chosen)
    ours = {key: by_name(network, chosen, key) for key in ("factor", "weight_decay")}
    whole = timm.create_model(name, in_chans=1, num_classes=2, **options)
    exempt = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    names = {id(parameter): key for key, parameter in whole.named_parameters()}
    seen = 0
    for group in param_groups_layer_decay(whole, 0.02, exempt, layer_decay=0.7):
        for parameter in group["params"]:
            own = f"backbone.net.{names[id(parameter)]}"
            if own in ours["factor"]:  # all but the classifier
                assert ours["factor"][own] == pytest.approx(0.5 * group["lr_scale"])
                assert ours["weight_decay"][own] == group["weight_decay"]
                seen += 1
    assert seen == len(list(network.backbone.parameters()))
    assert ours["factor"]["head.weight"] == ours["factor"]["head.bias"] == 1


@pytest.mark.parametrize(
    ("name", "options"), [("mobilenetv2_100", {}), ("convnext_atto", {}), ("vit_tiny_patch16_224", {"img_size": 64})]
)
def test_a_pyramid_s_backbone_has_the_rates_of_the_whole_one(name, options):
    whole = recipe(name, {"options": options}, layer_decay=0.7)
    part = recipe(name, {"options": options, "pyramid": 1, "neck": 8}, layer_decay=0.7)
    factors = by_name(built(whole), whole, "factor")
    network = built(part)
    ours = by_name(network, part, "factor")
    plain = {key.replace("_", "."): value for key, value in factors.items()}
    shared = {key: key.replace("net.model.", "net.").replace("_", ".") for key in ours if key.startswith("backbone.")}
    assert {key: ours[key] for key in shared} == {key: plain[name] for key, name in shared.items()}
    assert len(set(ours.values())) > 5
    assert {value for key, value in ours.items() if not key.startswith("backbone.")} == {1.0}


def test_each_convolution_of_the_baseline_is_a_layer():
    chosen = recipe(layer_decay=0.5)
    factors = by_name(built(chosen), chosen, "factor")
    for layer in range(5):
        for name in (f"{4 * layer}.weight", f"{4 * layer + 1}.weight", f"{4 * layer + 1}.bias"):
            assert factors[f"backbone.layers.{name}"] == 0.5 ** (5 - layer)
    assert len(make(built(recipe()), recipe()).param_groups) == 2  # one rate: with and without decay


def test_no_decay_of_biases_norms_and_positions():
    chosen = recipe("vit_tiny_patch16_224", {"options": {"img_size": 64}}, weight_decay=0.1)
    network = built(chosen)
    decay = by_name(network, chosen, "weight_decay")
    for name, parameter in network.named_parameters():
        free = parameter.ndim == 1 or name in ("backbone.net.pos_embed", "backbone.net.cls_token")
        assert decay[name] == (0 if free else 0.1), name


def test_rate_rises_then_falls_to_nothing():
    values = [rate(step, 100, 0.1) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(values[9:]))
    assert values[-1] < 0.001
    assert values[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def step(network: Network, chosen: Recipe) -> set[str]:
    """The tensors that one pass and one step in the present mode change."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimiser = make(network, chosen)
    pixels = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    network(pixels).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize(
    "network",
    [
        {"backbone": "small_cnn"},
        {"backbone": "resnet18"},
        {"backbone": "mobilenetv2_100", "pyramid": 3, "neck": 8},
        {"backbone": "vit_tiny_patch16_224", "options": {"img_size": 64}},
    ],
    ids=lambda values: values["backbone"],
)
def test_what_is_frozen_neither_moves_nor_drifts(network):
    chosen = recipe(network=network, freeze_epochs=2)
    net = built(chosen)
    torch.nn.init.normal_(net.head.bias)
    everything = set(net.state_dict())
    behind = {key for key in everything if not key.startswith("backbone.")}
    for epoch in (0, 1):
        set_trainable(net, chosen, epoch)
        assert step(net, chosen) == behind
    set_trainable(net, chosen, 2)
    kernels = {name for name, parameter in net.named_parameters() if parameter.ndim == 4}
    assert step(net, chosen) >= kernels | {key for key in everything if "running" in key}
    head_only(net)
    assert step(net, chosen) == {"head.weight", "head.bias"}
    assert net.dropout.training
    set_trainable(net, chosen, 3)
    assert all(p.requires_grad for p in net.parameters())
    assert all(part.training for part in net.modules())


def test_frozen_norms_keep_their_statistics_and_learn_their_slopes():
    chosen = recipe("resnet18", frozen_norm=True)
    net = built(chosen)
    set_trainable(net, chosen, 0)
    changed = step(net, chosen)
    assert not [key for key in changed if "running" in key or "num_batches" in key]
    assert {"backbone.net.bn1.weight", "backbone.net.conv1.weight", "head.weight"} <= changed


@pytest.mark.parametrize("stops", [(1,), (2,), (1, 1)])
def test_a_resumed_run_freezes_what_the_whole_run_would_have(square_dataset, tmp_path, stops):
    chosen = recipe(
        epochs=4, batch=64, freeze_epochs=2, layer_decay=0.5, backbone_factor=0.5, ema=0.5, weight_decay=0.1
    )
    whole = train(chosen, square_dataset, tmp_path / "whole")
    for stop in stops:
        train(chosen, square_dataset, tmp_path / "parts", stop_after=stop)
    parts = train(chosen, square_dataset, tmp_path / "parts")
    assert parts == whole
    ends = [checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "parts")]
    for key in ("network", "average"):
        assert all(torch.equal(value, ends[1][key][name]) for name, value in ends[0][key].items())
    for index, state in ends[0]["optimizer"]["state"].items():
        assert all(torch.equal(value, ends[1]["optimizer"]["state"][index][name]) for name, value in state.items())


def test_the_loop_leaves_a_frozen_backbone_as_it_began(square_dataset, tmp_path):
    chosen = recipe(epochs=2, batch=64, freeze_epochs=1)
    train(chosen, square_dataset, tmp_path / "run", stop_after=1)
    torch.manual_seed(chosen.seed)
    began = Network(chosen.network, 2).state_dict()
    first = checkpoint.load(tmp_path / "run" / "last.pt")["network"]
    assert {key for key in began if not torch.equal(began[key], first[key])} == {"head.weight", "head.bias"}
    train(chosen, square_dataset, tmp_path / "run")
    second = checkpoint.load(tmp_path / "run" / "last.pt")["network"]
    assert not torch.equal(began["backbone.layers.0.weight"], second["backbone.layers.0.weight"])
    assert not torch.equal(began["backbone.layers.1.running_mean"], second["backbone.layers.1.running_mean"])


@pytest.mark.parametrize(("key", "value"), [("layer_decay", 0), ("layer_decay", 1.5), ("freeze_epochs", -1)])
def test_values_that_make_no_sense_are_named(key, value):
    with pytest.raises(ConfigError, match=rf"optimise\.{key} = {value}"):
        check({"name": "t", "optimise": {key: value}}, "recipe")
