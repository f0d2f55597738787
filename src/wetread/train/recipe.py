"""A training recipe: every choice of a run, typed, in one TOML file.

An unknown key or a bad value is an error that names it, so that a misspelt choice never
trains silently with its default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wetread.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkRecipe(_Section):
    """What is trained."""

    backbone: str = Field("mobilenetv2_100", description="A timm name, or small_cnn, residual_cnn.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the backbone.")
    stage: int = Field(
        0, ge=0, le=5, description="Stop after this stage of a timm backbone, for finer maps; 0 is the end."
    )
    neck: int = Field(0, ge=0, le=4096, description="Channels of a 1 x 1 convolution before the head; 0 is none.")
    weights: str = Field(
        "", description="Where to start: empty (random), hub (timm's), or a file of weights (.safetensors or a run's)."
    )
    normalise: Literal["fixed", "image"] = Field(
        "fixed", description="fixed: 0..255 to -1..1. image: each image to mean 0 and deviation 0.5 (removes exposure)."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="On the pooled features.")


class LabelsRecipe(_Section):
    """How labels become targets."""

    uncertain: Literal["ignore", "ones", "zeros", "ones-lsr", "zeros-lsr"] = Field(
        "ignore", description="What -1 means in training; the -lsr policies draw a soft target, once for the run."
    )
    missing: Literal["ignore", "zeros"] = Field("ignore", description="What a finding that is not mentioned means.")
    close_up: bool = Field(True, description="A positive finding makes its ancestors positive.")
    smoothing: float = Field(0.0, ge=0, lt=0.5, description="Targets move this far from 0 and 1.")
    balance: bool = Field(False, description="Weigh classes so that positives and negatives count alike.")


class AugmentRecipe(_Section):
    """Random changes to a training image; each is off at its default."""

    share: float = Field(1.0, ge=0, le=1, description="Chance that exposure and sharpness of an image change at all.")
    flip: float = Field(0.0, ge=0, le=1, description="Chance to mirror left and right.")
    rotate: float = Field(0.0, ge=0, le=180, description="Largest rotation, in degrees.")
    shift: float = Field(0.0, ge=0, le=0.5, description="Largest shift, as a fraction of the side.")
    zoom: float = Field(0.0, ge=0, lt=1, description="Largest relative change of scale.")
    stretch: float = Field(0.0, ge=0, lt=1, description="Largest relative change of aspect.")
    gamma: float = Field(0.0, ge=0, le=2, description="Exposure: exponent from exp(-gamma) to exp(gamma).")
    contrast: float = Field(0.0, ge=0, lt=1, description="Largest relative change of contrast.")
    brightness: float = Field(0.0, ge=0, lt=1, description="Largest shift of grey, as a fraction of the range.")
    equalise: float = Field(0.0, ge=0, le=1, description="Chance of histogram equalisation, blended by chance.")
    blur: float = Field(0.0, ge=0, le=1, description="Chance of a Gaussian blur of 0.3 to 2 pixels.")
    sharpen: float = Field(0.0, ge=0, le=1, description="Chance of unsharp masking.")
    noise: float = Field(0.0, ge=0, le=1, description="Chance of Gaussian noise of up to 12 grey levels.")
    jpeg: float = Field(0.0, ge=0, le=1, description="Chance of a JPEG round trip at quality 30 to 90.")
    erase: float = Field(0.0, ge=0, le=1, description="Chance to fill one rectangle of up to a third of each side.")
    mixup: float = Field(0.0, ge=0, le=4, description="Beta parameter of mixing pairs of a batch; 0 is off.")


class OptimiseRecipe(_Section):
    """How the weights move."""

    epochs: int = Field(10, ge=1, le=10_000, description="How often the training images are seen.")
    batch: int = Field(32, ge=1, le=65_536, description="Images in a step.")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Of AdamW, at its highest.")
    backbone_factor: float = Field(1.0, ge=0, le=1, description="Learning rate of the backbone relative to the head.")
    weight_decay: float = Field(0.05, ge=0, le=10, description="Of AdamW; not on biases and norms.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Fraction of all steps in which the rate rises linearly.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 is off.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the averaged weights that are evaluated; 0 is off.")
    patience: int = Field(0, ge=0, description="Stop after this many epochs without a better AUROC; 0 is never.")
    keep: Literal["best", "last"] = Field(
        "best", description="Keep the epoch of the best AUROC, or the last, where the best is a matter of luck."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass.")
    per_epoch: int = Field(0, ge=0, description="Images drawn each epoch; 0 is all of the training split.")


class PackageRecipe(_Section):
    """What the package says of itself; no part of training."""

    population: Literal["adult", "child", "phantom", "any"] = Field(
        "any", description="Whom the model is for; others are refused."
    )
    views: list[Literal["PA", "AP", "LATERAL"]] = Field(
        ["PA", "AP"], min_length=1, description="Views that it may judge."
    )
    mirror: bool = Field(False, description="Look at the mirror image too and take the mean: twice the work.")
    half: bool = Field(False, description="Store large weights as float16; the arithmetic stays float32.")
    stress: bool = Field(
        False,
        description="Calibrate and choose operating points also on copies changed by the augmentation.",
    )
    licence: str = Field("", description="Licence of the weights.")
    attribution: str = Field("", description="Whose data they were trained on; empty takes the dataset's.")
    intended_use: str = Field("", description="One or two sentences for the card.")
    limits: list[str] = Field(default_factory=list, description="What the model is known not to do.")


class Recipe(_Section):
    """Every choice of a training run."""

    name: str = Field(description="Of the run, and of its package.", min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(0, ge=0, description="Of every choice by chance.")
    threads: int = Field(2, ge=1, le=1024, description="Threads of PyTorch; part of what makes a run reproducible.")
    network: NetworkRecipe = Field(default_factory=lambda: NetworkRecipe.model_validate({}))
    labels: LabelsRecipe = Field(default_factory=lambda: LabelsRecipe.model_validate({}))
    augment: AugmentRecipe = Field(default_factory=lambda: AugmentRecipe.model_validate({}))
    optimise: OptimiseRecipe = Field(default_factory=lambda: OptimiseRecipe.model_validate({}))
    package: PackageRecipe = Field(default_factory=lambda: PackageRecipe.model_validate({}))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def load(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `--set` changes.

    Parameters
    ----------
    path : Path
        A TOML file with the keys of `Recipe`.
    changes : sequence of str
        ``key=value`` with dotted keys, e.g. ``optimise.epochs=3``; values are TOML, or else a string.

    Raises
    ------
    ConfigError
        For a file that is missing or no TOML, an unknown key, or a bad value, naming it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: cannot be read as TOML: {error}") from None
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change!r}: write key=value, e.g. optimise.epochs=3")
        *sections, last = key.strip().split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {change!r}: {section!r} is a value, not a section")
        place[last] = _value(text.strip())
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"recipe {path}: unknown key {key!r}; see docs/training.md for the known ones") from None
        raise ConfigError(f"recipe {path}: {key} = {first['input']!r}: {first['msg']}") from None
