"""A training recipe: every choice of a run, typed, in one TOML file.

An unknown key or a bad value is an error that names it, so that a misspelt choice never
trains silently with its default.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from wetread.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Uncertain = Literal["ignore", "ones", "zeros", "ones-lsr", "zeros-lsr"]
Missing = Literal["ignore", "zeros"]


def _ascending(span: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= span[0] <= span[1] <= 1:
        raise ValueError("must be two numbers from 0 to 1, the lower one first")
    return span


Span = Annotated[tuple[float, float], AfterValidator(_ascending)]


class NetworkRecipe(_Section):
    """What is trained."""

    backbone: str = Field("mobilenetv2_100", description="A timm name, or small_cnn, residual_cnn.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the backbone.")
    pyramid: int = Field(
        0,
        ge=0,
        le=5,
        description="Merge a timm backbone's stages from this one on: maps as fine. 0: the end alone.",
    )
    neck: int = Field(192, ge=1, le=4096, description="Channels of the merged stages, and of fused views.")
    views: Literal["image", "study"] = Field(
        "image", description="image: each by itself. study: frontal and lateral together, either may be missing."
    )
    weights: str = Field(
        "", description="Where to start: empty (random), hub (timm's), or a file of weights (.safetensors or a run's)."
    )
    normalise: Literal["fixed", "image", "imagenet"] = Field(
        "fixed",
        description="fixed: -1..1. image: each image to mean 0, deviation 0.5. imagenet: as timm's weights expect.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="On the pooled features.")
    hierarchy: Literal["flat", "conditional", "hmlc"] = Field(
        "flat", description="flat: each finding by itself. conditional, hmlc: given its parent, in two stages."
    )


class LabelsRecipe(_Section):
    """How labels become targets."""

    uncertain: Uncertain | dict[str, Uncertain] = Field(
        "ignore", description="What -1 means: ignore, ones, zeros, ones-lsr, zeros-lsr; or a table by finding."
    )
    missing: Missing | dict[str, Missing] = Field(
        "ignore", description="What a finding that is not mentioned means: ignore, zeros; or a table by finding."
    )
    ones_lsr: Span | dict[str, Span] = Field(
        (0.55, 0.85), description="From where to where ones-lsr draws its soft targets; or a table by finding."
    )
    zeros_lsr: Span | dict[str, Span] = Field(
        (0.0, 0.3), description="From where to where zeros-lsr draws its soft targets; or a table by finding."
    )
    redraw: Literal["once", "epoch"] = Field("once", description="When soft targets are drawn: for the run, or anew.")
    close_up: bool = Field(True, description="A positive finding makes its ancestors positive.")
    close_down: bool = Field(False, description="A negative finding makes its descendants negative.")
    smoothing: float = Field(0.0, ge=0, lt=0.5, description="Targets move this far from 0 and 1.")
    balance: bool = Field(False, description="Weigh classes so that positives and negatives count alike.")


class LossRecipe(_Section):
    """What a wrong answer costs."""

    kind: Literal["cross-entropy", "focal", "asymmetric", "auc-margin"] = Field(
        "cross-entropy", description="cross-entropy, focal, asymmetric; auc-margin follows cross-entropy, balanced."
    )
    gamma: float = Field(2.0, ge=0, le=10, description="focal: how much less the easy counts.")
    gamma_positive: float = Field(0.0, ge=0, le=10, description="asymmetric: the same of positives.")
    gamma_negative: float = Field(4.0, ge=0, le=10, description="asymmetric: the same of negatives.")
    clip: float = Field(0.05, ge=0, lt=1, description="asymmetric: probability below which a negative is free.")
    margin: float = Field(1.0, gt=0, le=1, description="auc-margin: by how much positives should score higher.")


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
    one_view: float = Field(
        0.0, ge=0, le=1, description="Chance that a study of two views shows but one of them (views = study)."
    )
    mixup: float = Field(0.0, ge=0, le=4, description="Beta parameter of mixing pairs of a batch; 0 is off.")


class OptimiseRecipe(_Section):
    """How the weights move."""

    epochs: int = Field(10, ge=1, le=10_000, description="How often the training images are seen.")
    batch: int = Field(32, ge=1, le=65_536, description="Images in a step.")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Of AdamW, at its highest.")
    backbone_factor: float = Field(1.0, ge=0, le=1, description="Learning rate of the backbone relative to the head.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Learning rate of each layer of the backbone relative to the next one; 1 is off."
    )
    freeze_epochs: int = Field(0, ge=0, description="Epochs, the first ones, in which the backbone does not move.")
    frozen_norm: bool = Field(False, description="Batch norms keep the statistics that they began with.")
    weight_decay: float = Field(0.05, ge=0, le=10, description="Of AdamW; not on biases and norms.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Fraction of all steps in which the rate rises linearly.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 is off.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the averaged weights that are evaluated; 0 is off.")
    patience: int = Field(0, ge=0, description="Stop after this many epochs without a better AUROC; 0 is never.")
    keep: Literal["best", "last"] = Field(
        "best", description="Keep the epoch of the best AUROC, or the last, where the best is a matter of luck."
    )
    second: float = Field(
        0.4, gt=0, lt=1, description="Share of the epochs of the second stage, where the method has one."
    )
    second_factor: float = Field(0.1, gt=0, le=1, description="Learning rate of the second stage, relative.")
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle", description="balanced: each draw takes a finding, then present or absent, by equal chance."
    )
    localise: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Weight of the loss that draws maps' peaks into the dataset's masks; 0 is off.",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass.")
    accumulate: int = Field(
        1,
        ge=1,
        le=65_536,
        description="Parts in which a step's images pass the network: less memory.",
    )
    per_epoch: int = Field(0, ge=0, description="Images drawn each epoch; 0 is all of the training split.")


class PackageRecipe(_Section):
    """What the package says of itself; no part of training."""

    population: Literal["adult", "child", "phantom", "any"] = Field(
        "any", description="Whom the model is for; others are refused."
    )
    views: list[Literal["PA", "AP", "LATERAL"]] = Field(
        ["PA", "AP"], min_length=1, description="Views that it may judge."
    )
    aggregate: Literal["max", "mean"] = Field(
        "max", description="How the results of a study's images become the study's."
    )
    mirror: bool = Field(False, description="Look at the mirror image too and take the mean: twice the work.")
    rotate: float = Field(
        0.0, ge=0, le=45, description="Look also at copies turned by this either way, in degrees: two more looks."
    )
    zoom: float = Field(
        0.0, ge=0, le=0.5, description="Look also at copies enlarged and shrunk by this: two more looks."
    )
    shift: float = Field(
        0.0, ge=0, le=0.5, description="Look also at copies shifted by this fraction each way: four more looks."
    )
    half: bool = Field(False, description="Store large weights as float16; the arithmetic stays float32.")
    stress: bool = Field(
        False,
        description="Calibrate and choose operating points also on copies changed by the augmentation.",
    )
    screen: Literal["sensitivity", "youden", "cost"] = Field(
        "sensitivity", description="What the operating point `screen` seeks: a proved sensitivity, or as below."
    )
    balanced: Literal["sensitivity", "youden", "cost"] = Field(
        "youden", description="What `balanced` seeks: the most sensitivity + specificity, or the least cost of errors."
    )
    sensitivity: float = Field(
        0.98, gt=0, lt=1, description="Target of that rule: its lower 95 % limit reaches it on validation."
    )
    cost: float = Field(1.0, gt=0, le=10_000, description="For the rule cost: false alarms that one miss is worth.")
    conformal: float = Field(
        0.1, gt=0, lt=1, description="Share of true answers that the conformal sets of a finding may miss."
    )
    licence: str = Field("", description="Licence of the weights.")
    attribution: str = Field("", description="Whose data they were trained on; empty takes the dataset's.")
    intended_use: str = Field("", description="One or two sentences for the card.")
    limits: list[str] = Field(default_factory=list, description="What the model is known not to do.")


class TrackingRecipe(_Section):
    """Where the numbers of a run go; no part of training."""

    sinks: list[Literal["mlflow", "tensorboard", "wandb"]] = Field(
        ["mlflow"], description="Any of mlflow, tensorboard, wandb (offline); all keep files beside the run."
    )


class Recipe(_Section):
    """Every choice of a training run."""

    name: str = Field(description="Of the run, and of its package.", min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(0, ge=0, description="Of every choice by chance.")
    threads: int = Field(2, ge=1, le=1024, description="Threads of PyTorch; part of what makes a run reproducible.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="What computes; auto: a GPU where there is one.")
    loaders: int = Field(1, ge=1, le=1024, description="Threads that prepare batches ahead of each process.")
    network: NetworkRecipe = Field(default_factory=lambda: NetworkRecipe.model_validate({}))
    labels: LabelsRecipe = Field(default_factory=lambda: LabelsRecipe.model_validate({}))
    loss: LossRecipe = Field(default_factory=lambda: LossRecipe.model_validate({}))
    augment: AugmentRecipe = Field(default_factory=lambda: AugmentRecipe.model_validate({}))
    optimise: OptimiseRecipe = Field(default_factory=lambda: OptimiseRecipe.model_validate({}))
    package: PackageRecipe = Field(default_factory=lambda: PackageRecipe.model_validate({}))
    tracking: TrackingRecipe = Field(default_factory=lambda: TrackingRecipe.model_validate({}))
    sweep: dict[str, Any] = Field(
        default_factory=dict, description="For `wetread sweep`: keys of the recipe and what to try for each."
    )

    def facts(self) -> dict[str, Any]:
        """Return what decides the weights of a run: everything but where it computes and what is done with it."""
        return self.model_dump(mode="json", exclude={"device", "loaders", "package", "tracking", "sweep"})

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.optimise.localise and self.augment.mixup:
            raise ValueError("augment.mixup blends images, so optimise.localise has no mask for them; leave one out")
        if self.labels.balance and self.loss.kind in ("asymmetric", "auc-margin"):
            own = "its two exponents" if self.loss.kind == "asymmetric" else "balanced batches"
            raise ValueError(
                f"labels.balance = true with loss.kind = {self.loss.kind!r}: this loss weighs by {own} and would ignore"
                " it; set labels.balance = false, or loss.kind to 'cross-entropy' or 'focal'"
            )
        return self


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
    return check(values, f"recipe {path}")


def check(values: dict[str, Any], where: str) -> Recipe:
    """Return the recipe of nested values.

    Raises
    ------
    ConfigError
        For an unknown key or a bad value, naming it after `where`.
    """
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = max(error.errors(), key=lambda one: len(one["loc"]))  # of a value that may be a table the one inside it
        key = ".".join(str(part) for part in first["loc"] if "[" not in str(part))  # and not which kind was tried
        if not key:  # values that do not go together: the message names them
            raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: unknown key {key!r}; see docs/training.md for the known ones") from None
        raise ConfigError(f"{where}: {key} = {first['input']!r}: {first['msg']}") from None


def dumps(recipe: Recipe) -> str:
    """Return a recipe as TOML that `load` reads back: what was chosen, without what was left at its default."""
    values = recipe.model_dump(exclude_unset=True)
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {_literal(value)}" for key, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_key(key)} = {_literal(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    """Return a value as TOML, on one line; a string of JSON is one of TOML."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(key)} = {_literal(v)}" for key, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal(v) for v in value)}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
