"""From pixels to finding maps to logits.

Every backbone ends the same way: a feature map, one linear layer at each of its positions
(the finding maps), and their average (the logits). The maps are therefore exactly the class
activation maps of Zhou et al., *Learning deep features for discriminative localization* (2016),
and no second pass is needed to show why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from wetread.errors import TrainError
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
        Fetch timm's weights from the hub; RGB stems are summed to grey.
    options : dict
        Keyword arguments of `timm.create_model`.
    stage : int
        Stop after this stage, counted from 1 (each has half the height and width of the one before); 0 is the end.

    Raises
    ------
    TrainError
        For an unknown backbone or option, or when the hub cannot be reached.
    """

    def __init__(
        self, name: str, pretrained: bool = False, options: dict[str, Any] | None = None, stage: int = 0
    ) -> None:
        super().__init__()
        options = dict(options or {})
        if stage:
            options |= {"features_only": True, "out_indices": (stage - 1,)}
        if not timm.is_model(name):
            close = timm.list_models(f"{name[:6]}*")[:4]
            raise TrainError(f"backbone {name!r}: timm has no such model; perhaps one of {', '.join(close) or '?'}")
        try:
            classes: dict[str, Any] = {} if stage else {"num_classes": 0}
            self.net = timm.create_model(name, pretrained=pretrained, in_chans=1, **classes, **options)
        except (TypeError, ValueError, RuntimeError, OSError) as error:
            raise TrainError(f"backbone {name!r} with options {options}: {str(error).splitlines()[0]}") from None
        self.stage = stage
        if stage:
            self.num_features = int(cast(Any, self.net).feature_info.channels()[-1])
            return
        self.num_features = int(cast(Any, getattr(self.net, "head_hidden_size", 0) or self.net.num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, C, h, w], NCHW whatever the backbone's own layout."""
        net = cast(Any, self.net)
        if self.stage:
            return cast(Tensor, net(x)[-1])
        x = net.forward_features(x)
        if x.ndim == 3:  # ViT: drop class and register tokens, tokens to a grid
            x = x[:, getattr(net, "num_prefix_tokens", 0) :]
            rows, columns = net.patch_embed.grid_size
            return x.transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
        if x.shape[-1] == net.num_features != x.shape[1]:  # Swin: NHWC
            return x.permute(0, 3, 1, 2)
        if isinstance(getattr(net, "conv_head", None), nn.Conv2d) and not hasattr(net, "bn2"):
            # MobileNetV3 pools before its last convolution; at each position it is the same layer.
            x = net.conv_head(x)
            x = net.norm_head(x) if hasattr(net, "norm_head") else x
            return cast(Tensor, net.act2(x))
        norm = getattr(getattr(net, "head", None), "norm", None)
        return cast(Tensor, norm(x) if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity) else x)


class Network(nn.Module):
    """Pixels to finding maps and logits.

    Parameters
    ----------
    recipe : NetworkRecipe
    findings : int
        How many findings to score.
    """

    def __init__(self, recipe: NetworkRecipe, findings: int) -> None:
        super().__init__()
        plain: dict[str, type[SmallCNN] | type[ResidualCNN]] = {"small_cnn": SmallCNN, "residual_cnn": ResidualCNN}
        self.backbone: SmallCNN | ResidualCNN | TimmFeatures
        if recipe.backbone in plain:
            self.backbone = plain[recipe.backbone]()
        else:
            self.backbone = TimmFeatures(recipe.backbone, recipe.weights == "hub", recipe.options, recipe.stage)
        self.normalise = recipe.normalise
        self.dropout = nn.Dropout(recipe.dropout)
        width = self.backbone.num_features
        self.neck: nn.Module = nn.Identity()
        if recipe.neck:  # mixes the channels of a stage that was not made to be the last
            self.neck = nn.Sequential(
                nn.Conv2d(width, recipe.neck, 1, bias=False), nn.BatchNorm2d(recipe.neck), nn.ReLU()
            )
            width = recipe.neck
        self.head = nn.Linear(width, findings)
        nn.init.zeros_(self.head.bias)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Return float pixels [B, 1, S, S] of about -1 to 1 from uint8 ones; what exposure means is decided here."""
        x = pixels.float()
        if self.normalise == "fixed":
            return x / 127.5 - 1
        mean = x.mean((1, 2, 3), keepdim=True)
        deviation = (x - mean).square().mean((1, 2, 3), keepdim=True).sqrt()
        return 0.5 * (x - mean) / (deviation + 1.0)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the last features [B, C, h, w] of uint8 pixels [B, 1, S, S]."""
        return cast(Tensor, self.neck(self.backbone(self.prepare(pixels))))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [B, F] of uint8 pixels [B, 1, S, S]."""
        return cast(Tensor, self.head(self.dropout(self.features(pixels).mean((2, 3)))))


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
        state = {f"backbone.net.{key}": value for key, value in state.items()}
    fitting: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in own:
            if value.ndim == 4 and value.shape[1] == 3 and own[key].shape[1] == 1:
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
