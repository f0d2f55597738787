"""From pixels to finding maps to logits.

Every backbone ends the same way: a feature map, one linear layer at each of its positions
(the finding maps), and their average (the logits). The maps are therefore exactly the class
activation maps of Zhou et al., *Learning deep features for discriminative localization* (2016),
and no second pass is needed to show why.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from wetread.errors import TrainError
from wetread.train.fusion import Fusion
from wetread.train.recipe import NetworkRecipe


class SmallCNN(nn.Module):
    """The plain baseline: five 3 x 3 convolutions, each followed by pooling."""

    num_features = 256

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (16, 32, 64, 128, self.num_features):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            channels = width
        self.layers = nn.Sequential(*layers)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of the names of each layer's parameters, as timm's models do."""
        return {f"layer{index}": rf"^layers\.(?:{4 * index}|{4 * index + 1})\." for index in range(5)}

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, 256, S/32, S/32]."""
        return cast(Tensor, self.layers(x))


class Bottleneck(nn.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up, around a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width // 4
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        nn.init.zeros_(cast(nn.BatchNorm2d, self.body[-1]).weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same or half the height and width."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResidualCNN(nn.Module):
    """The residual baseline: a stem and eight bottleneck blocks."""

    num_features = 512

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks: list[nn.Module] = []
        channels = 32
        for width, stride in ((64, 1), (128, 2), (256, 2), (self.num_features, 2)):
            blocks += [Bottleneck(channels, width, stride), Bottleneck(width, width, 1)]
            channels = width
        self.blocks = nn.Sequential(*blocks)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of the names of each layer's parameters, as timm's models do."""
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, 512, S/32, S/32]."""
        return cast(Tensor, self.blocks(self.stem(x)))


class TimmFeatures(nn.Module):
    """A timm backbone up to the last features that a linear head may average.

    Parameters
    ----------
    name : str
        timm's name of the backbone.
    pretrained : bool
        Fetch timm's weights from the hub; with one channel RGB stems are summed to grey.
    options : dict
        Keyword arguments of `timm.create_model`.
    channels : {1, 3}
        Of the input.
    pyramid : int
        Give the features of this stage, counted from 1 (each has half the height and width of the one before), and of
        all later ones; 0 is the end alone.

    Raises
    ------
    TrainError
        For an unknown backbone or option, or when the hub cannot be reached.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
        pyramid: int = 0,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.name, self.options, self.channels = name, dict(options or {}), channels
        if not timm.is_model(name):
            close = timm.list_models(f"{name[:6]}*")[:4]
            raise TrainError(f"backbone {name!r}: timm has no such model; perhaps one of {', '.join(close) or '?'}")
        try:
            kind: dict[str, Any] = {"features_only": True} if pyramid else {"num_classes": 0}
            self.net = self._create(pretrained=pretrained, **kind)
        except (TypeError, ValueError, RuntimeError, OSError) as error:
            raise TrainError(f"backbone {name!r} with options {self.options}: {str(error).splitlines()[0]}") from None
        self.pyramid = pyramid
        self.widths: list[int] = []
        if pyramid:
            self.widths = cast(Any, self.net).feature_info.channels()[pyramid - 1 :]
            if not self.widths:
                raise TrainError(f"network.pyramid = {pyramid}: backbone {name!r} has fewer stages")
            return
        net = cast(Any, self.net)
        # MobileNetV3 pools before its last convolution; at each position it is the same layer.
        self.late = isinstance(getattr(net, "conv_head", None), nn.Conv2d) and not hasattr(net, "bn2")
        self.num_features = int(net.head_hidden_size if self.late else net.num_features)

    def _create(self, **kind: Any) -> nn.Module:
        return timm.create_model(self.name, in_chans=self.channels, **kind, **self.options)

    def whole(self) -> nn.Module:
        """Return timm's whole model, with a classifier: its own names, layers and shapes, without values."""
        with torch.device("meta"):
            return self._create(num_classes=1)

    def whole_names(self) -> dict[str, str]:
        """Return for each tensor of `net` its name in `whole`: timm flattens the first levels of a pyramid's."""
        known = self.whole().state_dict().keys()
        return {
            name: next((n for n in (name, name.replace("_", ".", 1), name.removeprefix("model.")) if n in known), name)
            for name in self.net.state_dict()
        }

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stages of the pyramid, the finest first."""
        return cast(list[Tensor], cast(Any, self.net)(x)[self.pyramid - 1 :])

    def forward(self, x: Tensor) -> Tensor:
        """Return the last features [B, C, h, w], NCHW whatever the backbone's own layout."""
        net = cast(Any, self.net)
        x = net.forward_features(x)
        if x.ndim == 3:  # ViT: drop class and register tokens, tokens to a grid
            x = x[:, getattr(net, "num_prefix_tokens", 0) :]
            norm = getattr(net, "fc_norm", None)  # where timm norms after pooling, the maps need it at each position
            x = norm(x) if norm is not None else x
            rows, columns = net.patch_embed.grid_size
            return x.transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
        if getattr(net, "output_fmt", "NCHW") == "NHWC":  # Swin
            return x.permute(0, 3, 1, 2)
        if self.late:
            x = net.conv_head(x)
            x = net.norm_head(x) if hasattr(net, "norm_head") else x
            return cast(Tensor, net.act2(x))
        norm = getattr(getattr(net, "head", None), "norm", None)
        return cast(Tensor, norm(x) if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity) else x)


class Pyramid(nn.Module):
    """Stages of a backbone to one map of features: what the late ones know, at the places that the early ones see.

    The sum over stages of Lin et al., *Feature pyramid networks for object detection* (2017).
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(count, width, 1, bias=False) for count in channels)
        self.mix = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Return features [B, C, h, w] as fine as the first stage."""
        levels = [level(stage) for level, stage in zip(self.levels, stages, strict=True)]
        total = levels[0]
        for level in levels[1:]:
            total = total + nn.functional.interpolate(level, total.shape[-2:])
        return cast(Tensor, self.mix(total))


class Network(nn.Module):
    """Pixels to finding maps and logits.

    Parameters
    ----------
    recipe : NetworkRecipe
    findings : int
        How many findings to score.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, recipe: NetworkRecipe, findings: int) -> None:
        super().__init__()
        plain: dict[str, type[SmallCNN] | type[ResidualCNN]] = {"small_cnn": SmallCNN, "residual_cnn": ResidualCNN}
        self.backbone: SmallCNN | ResidualCNN | TimmFeatures
        self.pyramid: Pyramid | None = None
        self.normalise = recipe.normalise
        coloured = recipe.normalise == "imagenet"
        if recipe.backbone in plain:
            if coloured:
                raise TrainError(
                    f"network.normalise = 'imagenet': {recipe.backbone!r} is no backbone of timm; use fixed"
                )
            self.backbone = plain[recipe.backbone]()
        else:
            self.backbone = TimmFeatures(
                recipe.backbone, recipe.weights == "hub", recipe.options, recipe.pyramid, 3 if coloured else 1
            )
        if coloured:
            expected = cast(Any, self.backbone.net).pretrained_cfg
            mean, deviation = (torch.tensor(expected[key])[:, None, None] for key in ("mean", "std"))
            self.register_buffer("scale", 1 / (255 * deviation), persistent=False)
            self.register_buffer("offset", -mean / deviation, persistent=False)
        self.conditional = recipe.hierarchy != "flat"
        self.dropout = nn.Dropout(recipe.dropout)
        if recipe.pyramid:
            if not isinstance(self.backbone, TimmFeatures):
                raise TrainError(f"network.pyramid = {recipe.pyramid}: {recipe.backbone!r} is no backbone of timm")
            self.pyramid = Pyramid(self.backbone.widths, recipe.neck)
        width = recipe.neck if recipe.pyramid else self.backbone.num_features
        self.fusion: Fusion | None = None
        if recipe.views == "study":
            self.fusion = Fusion(width, recipe.neck)
            width = recipe.neck
        self.head = nn.Linear(width, findings)
        nn.init.zeros_(self.head.bias)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Return float pixels of about -1 to 1 from uint8 ones [B, 1, S, S]; what exposure means is decided here.

        They are [B, 1, S, S]; for `imagenet` [B, 3, S, S]: each colour of the grey image as the backbone's weights
        expect it. One channel could not say the same: the colours differ in what padding with 0 stands for.
        """
        x = pixels.float()
        if self.normalise == "imagenet":
            return x * self.scale + self.offset
        if self.normalise == "fixed":
            return x / 127.5 - 1
        mean = x.mean((1, 2, 3), keepdim=True)
        deviation = (x - mean).square().mean((1, 2, 3), keepdim=True).sqrt()
        return 0.5 * (x - mean) / (deviation + 1.0)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the last features [B, C, h, w] of uint8 pixels [B, 1, S, S]; for a study see `Fusion`."""
        return self._features(pixels) if self.fusion is None else self.fusion(pixels, self._features)

    def _features(self, pixels: Tensor) -> Tensor:
        x = self.prepare(pixels)
        if self.pyramid is not None:
            return cast(Tensor, self.pyramid(cast(TimmFeatures, self.backbone).stages(x)))
        return cast(Tensor, self.backbone(x))

    def maps(self, features: Tensor) -> Tensor:
        """Return the finding maps [B, F, h, w] of features, without the bias: their mean and it are the logit."""
        return torch.conv2d(features, self.head.weight[:, :, None, None])

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B, F] of features."""
        return cast(Tensor, self.head(self.dropout(features.mean((2, 3)))))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [B, F] of uint8 pixels [B, 1, S, S]."""
        return self.logits(self.features(pixels))


def load_weights(network: Network, path: Path) -> None:
    """Start from a file of weights.

    Parameters
    ----------
    network : Network
    path : Path
        A timm backbone as `.safetensors` (an RGB stem is summed to grey, its classifier left out), or the
        `best.safetensors` of a run, from which head and backbone are taken where their shapes agree.

    Raises
    ------
    TrainError
        When the file cannot be read, or does not fit the backbone.
    """
    try:
        state = {key: value.float() for key, value in load_file(path).items()}
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainError(f"weights {path}: cannot be read as safetensors: {error}") from None
    except Exception as error:  # safetensors raises its own class, derived from Exception alone
        raise TrainError(f"weights {path}: not a safetensors file: {error}") from None
    own = network.state_dict()
    if not any(key.startswith("backbone.") for key in state):
        state = _named(network.backbone, state)
    fitting: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in own:
            if value.ndim == 4 and value.shape[1] == 3 * own[key].shape[1]:  # a stem of RGB
                value = adapt_input_conv(1, value)
            if value.shape == own[key].shape:
                fitting[key] = value
    missing = [key for key in own if key.startswith("backbone.") and key not in fitting and "num_batches" not in key]
    if missing:
        raise TrainError(
            f"weights {path}: {len(missing)} of the backbone's tensors are not in it, the first is {missing[0]!r};"
            " check network.backbone and network.options"
        )
    network.load_state_dict(fitting, strict=False)


def _named(backbone: SmallCNN | ResidualCNN | TimmFeatures, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a timm model under a network's names, resampled to its grid where timm knows how."""
    if isinstance(backbone, TimmFeatures):
        whole = backbone.whole()
        resample = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
        if resample:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch finds fault with how timm indexes
                state = resample(state, whole)
        state = {own: state[name] for own, name in backbone.whole_names().items() if name in state}
    return {f"backbone.net.{key}": value for key, value in state.items()}
