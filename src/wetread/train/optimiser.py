"""What moves the weights: which parameters, how fast each, and in which epochs at all."""

from __future__ import annotations

import math
from typing import Any

from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW

from wetread.train.network import Network, TimmFeatures
from wetread.train.recipe import Recipe


def make(network: Network, recipe: Recipe) -> AdamW:
    """Return AdamW over all parameters of a network.

    Each group has ``factor``, its learning rate relative to the head's. In the backbone that is
    backbone_factor · layer_decay^d, where d counts the layers up to the head (Bao et al., *BEiT*, 2021) in timm's own
    grouping. Weight decay is on matrices and kernels only, and not on those that timm's model exempts.
    """
    o = recipe.optimise
    backbone: Any = network.backbone
    timms = isinstance(backbone, TimmFeatures)
    names = _names(backbone)
    whole = backbone.whole() if timms else backbone
    layers = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
    top = max(layers.values()) + (not timms)  # in timm's model the classifier is the last layer, or shares it
    exempt = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else set()
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        known = names.get(name)
        factor = 1.0 if known is None else o.backbone_factor * o.layer_decay ** (top - layers[known])
        decay = o.weight_decay if parameter.ndim > 1 and known not in exempt else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return AdamW(
        [
            {"params": parameters, "weight_decay": decay, "factor": factor}
            for (factor, decay), parameters in groups.items()
        ],
        lr=o.learning_rate,
    )


def _names(backbone: nn.Module) -> dict[str, str]:
    """Return for each of the backbone's tensors, as the network calls it, its name in the whole backbone."""
    if isinstance(backbone, TimmFeatures):
        return {f"backbone.net.{own}": name for own, name in backbone.whole_names().items()}
    return {f"backbone.{name}": name for name in backbone.state_dict()}


def rate(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def set_trainable(network: Network, recipe: Recipe, epoch: int) -> None:
    """Put a network into training mode for an epoch, counted from 0; what is frozen in it neither moves nor drifts.

    A function of the recipe and the epoch alone, so that a resumed run freezes what the whole run would have.
    """
    network.train().requires_grad_(True)
    if recipe.optimise.frozen_norm:
        for part in network.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
    if epoch < recipe.optimise.freeze_epochs:
        _freeze(network.backbone)


def head_only(network: Network) -> None:
    """Let the last layer alone learn; all that comes before it keeps its weights and its norms' statistics."""
    for name, part in network.named_children():
        if name not in ("head", "dropout"):
            _freeze(part)


def _freeze(part: nn.Module) -> None:
    part.eval().requires_grad_(False)
