"""Networks that others trained, to model packages: TorchXRayVision, timm and timm's models on the Hugging Face hub.

The package answers as the library does, for the same pixels: input range, labels and operating points are the
library's, and nothing is fitted here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from wetread import __version__, findings
from wetread.errors import ConfigError, TrainError
from wetread.evaluate.calibration import Calibration
from wetread.evaluate.report import card
from wetread.findings import NIH, TASKS, Task
from wetread.infer import runtime
from wetread.model import golden
from wetread.model.package import Meta, Package, write
from wetread.radiograph.pixels import plain
from wetread.train.export import Familiarity, Served, to_onnx
from wetread.train.imported import Foreign, Imported, known

PARITY = 1e-4
"""Largest difference of a logit between the library's forward pass and ours before a network is refused."""

_CHEXPERT_LIKE = ("chex", "mimic_nb", "mimic_ch")  # labelled by CheXpert's labeller, under the names of NIH
_CHEXPERT_NAMES = {"Effusion": "Pleural Effusion"}


def run(
    source: str,
    out: Path,
    *,
    weights: Path | None = None,
    task: str = "",
    name: str = "",
    population: str = "any",
    overwrite: bool = False,
) -> Package:
    """Make a package of a network from elsewhere.

    Parameters
    ----------
    source : str
        ``txrv:NAME`` (a name of TorchXRayVision's weights), ``timm:NAME`` (with `weights`), ``timm:FOLDER`` (with
        timm's config.json and model.safetensors) or ``hf-hub:OWNER/NAME``.
    out : Path
        Folder of the package.
    weights : Path, optional
        A file of the network's weights; without it they are fetched.
    task : str
        Name or TOML file of the task; its findings name the network's classes.
    name : str
        Of the model; by default made of the source.
    population : str
        Whom the model is for: adult, child, phantom or any.
    overwrite : bool
        Replace a package that is there.

    Raises
    ------
    ConfigError
        For a source, task or population that is none.
    TrainError
        When the weights cannot be had or do not fit, or the network's head has no exact maps.
    """
    kind, colon, rest = source.partition(":")
    if not colon or not rest or kind not in ("txrv", "timm", "hf-hub"):
        raise ConfigError(f"import {source!r}: give txrv:NAME, timm:NAME, timm:FOLDER or hf-hub:OWNER/NAME")
    if population not in ("adult", "child", "phantom", "any"):
        raise ConfigError(f"--population {population}: known are adult, child, phantom and any")
    if kind == "txrv":
        if task:
            raise ConfigError(f"--task {task}: belongs to timm and hf-hub; {source} brings its own labels")
        foreign = txrv(rest, weights)
    else:
        foreign = from_timm(source, weights, findings.task(task) if task else None)
    return _write(foreign, out, weights, name or _slug(rest), population, overwrite)


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "_.-" else "-" for c in Path(text).name.lower())
    return kept.strip("-._")[:64] or "imported"


def _write(foreign: Foreign, out: Path, weights: Path | None, name: str, population: str, overwrite: bool) -> Package:
    count = len(foreign.task.findings)
    imported = Imported(foreign)
    identity = Calibration(foreign.task, np.ones(count), np.zeros(count))
    with torch.inference_mode():
        width = imported(torch.zeros(1, 1, foreign.size, foreign.size, dtype=torch.uint8))[2][0].shape[1]
    served = Served(imported, identity, [Familiarity.blind(width)], None)
    graph = to_onnx(served, foreign.size)
    engine = runtime.load(graph, threads=torch.get_num_threads())
    transform = plain(foreign.size, source=max(256, foreign.size))
    recipe = {"imported": foreign.source}
    if weights:
        recipe["weights"] = f"{weights.name}, SHA-256 {hashlib.sha256(weights.read_bytes()).hexdigest()}"
    half = dict.fromkeys(foreign.task.findings, 0.5)
    meta = Meta(
        name=name.lower(),
        task=foreign.task.to_dict(),
        input_size=foreign.size,
        transform=transform.parameters(),
        precision="fp32",
        points={"screen": half, "balanced": half},
        cutoffs=dict.fromkeys(foreign.task.findings, (0.5, 0.5)),
        population=cast(Any, population),
        views=["PA", "AP"],
        familiarity_threshold=0.0,
        recipe=recipe,
        code_version=__version__,
        licence=foreign.licence,
        attribution=foreign.attribution,
        intended_use="Comparison, and research.",
        limits=[
            "Imported: probabilities and operating points are those of its library, and nothing was fitted or measured"
            " here; evaluate it before you believe it.",
            "It cannot tell that an image is unlike those that it was trained on.",
            *foreign.limits,
        ],
    )
    made = golden.make(transform, engine.run)
    return write(
        out,
        onnx=graph,
        meta=meta,
        transform=transform,
        card=card(None, meta.model_dump()),
        golden=made,
        overwrite=overwrite,
    )


# --- TorchXRayVision --------------------------------------------------------------------------------------------------


def txrv(name: str, weights: Path | None) -> Foreign:
    """Return a network of TorchXRayVision (Cohen et al., MIDL 2022) with its labels, range and operating points.

    Labels without a threshold were never trained and are left out. Labels keep their names, which are those of
    NIH ChestX-ray14 or of CheXpert; where CheXpert's labeller made them, *Effusion* is CheXpert's *Pleural Effusion*.

    Raises
    ------
    ConfigError
        When the library has no such weights.
    TrainError
        When the weights cannot be had or do not fit.
    """
    from torchxrayvision import models

    if name not in models.model_urls:
        raise ConfigError(f"txrv:{name}: no such weights; known are {', '.join(sorted(models.model_urls))}")
    facts = models.model_urls[name]
    resnet = name.startswith("resnet")
    state = _state(weights or _fetched(name), _txrv_classes())
    labels, thresholds = facts["labels"], np.asarray(facts["op_threshs"], float)
    if resnet:
        from torchvision.models import resnet50, resnet101

        net: Any = (resnet101 if name.startswith("resnet101") else resnet50)(num_classes=len(labels), weights=None)
        net.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        state = {key.removeprefix("model."): value for key, value in state.items()}
        stages = (net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4)
        features, head = nn.Sequential(*stages), net.fc
    else:
        net = models.DenseNet(num_classes=len(labels))
        features, head = nn.Sequential(net.features, nn.ReLU()), net.classifier
    state.pop("op_threshs", None)
    _load(net, state, weights or Path(name))

    trained = [row for row, label in enumerate(labels) if label and np.isfinite(thresholds[row])]
    collection = name.rsplit("-", 1)[-1]
    renamed = _CHEXPERT_NAMES if collection in _CHEXPERT_LIKE else {}
    rows = {renamed.get(labels[row], labels[row]): row for row in trained}
    task = NIH if set(rows) == set(NIH.findings) else Task(f"txrv-{collection}", tuple(rows))
    order = [rows[finding] for finding in task.findings]
    untrained = [label for row, label in enumerate(labels) if label and row not in trained]
    return Foreign(
        f"txrv:{name}",
        task,
        features,
        [head],
        order,
        int(facts["input_resolution"]),
        [2048 / 255],
        [-1024.0],
        [float(thresholds[row]) for row in order],
        licence="Apache-2.0",
        attribution="TorchXRayVision (Cohen et al., MIDL 2022)"
        + (f". {facts['description']}" if "description" in facts else f", weights {name}"),
        limits=(f"Without an operating point, and left out: {', '.join(untrained)}.",) if untrained else (),
    )


def _txrv_classes() -> list[Any]:
    """Return the classes that a pickled network of the library is made of; no others are let in."""
    from torchxrayvision import models

    own = [models.DenseNet, models._DenseBlock, models._DenseLayer, models._Transition]
    parts = [nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Linear, set]
    return [*own, *parts]


def _fetched(name: str) -> Path:
    from torchxrayvision import models

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return Path(models.get_weights(name))
    except Exception as error:  # requests has its own classes, the library none
        address = models.model_urls[name]["weights_url"]
        raise TrainError(
            f"txrv:{name}: {address} cannot be fetched ({type(error).__name__}); give the file with --weights"
        ) from None


# --- timm and the Hugging Face hub ------------------------------------------------------------------------------------


def from_timm(source: str, weights: Path | None, task: Task | None) -> Foreign:
    """Return a timm network with its labels, and the mean and deviation of its input.

    Parameters
    ----------
    source : str
        As in `run`.
    weights : Path, optional
    task : Task, optional
        Its findings are the classes: by name where the configuration names them, else in their order.

    Raises
    ------
    ConfigError
        When classes and findings do not fit, or nothing names the classes.
    TrainError
        When the weights cannot be had or do not fit, or the head has no exact maps.
    """
    net, config = _timm(source, weights, task)
    names = [str(label) for label in config.get("label_names") or []]
    count = int(net.num_classes)
    if task is None:
        task = next((t for t in TASKS.values() if names and set(names) == set(t.findings)), None)
        if task is None:
            known_by = ", ".join(names[:4]) if names else "nothing"
            raise ConfigError(f"import {source}: its classes are named by {known_by}; say what they are with --task")
    if names and set(names) != set(task.findings):
        raise ConfigError(
            f"task {task.name}: its findings are not the network's classes ({', '.join(names[:6])}); name them alike"
        )
    if len(task.findings) != count:
        raise ConfigError(
            f"task {task.name}: has {len(task.findings)} findings, the network {count} classes; give a task of its own"
        )
    rows = [names.index(finding) for finding in task.findings] if names else list(range(count))
    channels, side, _ = config["input_size"]
    mean, deviation = (_for_channels(config[key], channels) for key in ("mean", "std"))
    foreign = Foreign(
        source,
        task,
        _Last(net),
        _head(net, source),
        rows,
        int(side),
        list(1 / (255 * deviation)),
        list(-mean / deviation),
        licence=str(config.get("license") or ""),
        attribution=str(config.get("origin_url") or config.get("hf_hub_id") or ""),
    )
    _same(Imported(replace(foreign, rows=list(range(count)))), net, foreign)
    return foreign


def _for_channels(values: Sequence[float], channels: int) -> NDArray[np.float64]:
    """Return a value for each channel: those given, or their mean where a colour network was made grey."""
    given = np.asarray(values, float)
    return given if given.size == channels else np.full(channels, given.mean())


def _timm(source: str, weights: Path | None, task: Task | None) -> tuple[Any, dict[str, Any]]:
    """Return the network with its weights, and its configuration."""
    kind, _, rest = source.partition(":")
    folder = Path(rest)
    if kind == "timm" and (folder / "config.json").is_file():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            architecture = str(config.get("architecture", ""))
            own = {**config, **config.get("pretrained_cfg", {})}
            own = {**own, "label_names": own.get("label_names") or own.get("labels")}
            count = int(own.get("num_classes") or len(own["label_names"] or ()))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{folder / 'config.json'}: not timm's configuration: {error}") from None
        names = ("model.safetensors", "pytorch_model.bin")
        weights = weights or next((folder / n for n in names if (folder / n).is_file()), folder / names[0])
        return _filled(architecture, weights, count, own, config.get("model_args") or {})
    if kind == "timm" and weights is not None:
        if task is None:
            raise ConfigError(f"import {source}: say with --task what its classes are")
        return _filled(rest, weights, len(task.findings), {}, {})
    if kind == "timm":
        raise ConfigError(f"import {source}: give --weights FILE and --task; timm's own classes are no findings")
    try:
        net = timm.create_model(source, pretrained=True)
    except Exception as error:  # the hub's own classes, and timm's
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainError(f"{source} cannot be fetched: {line}; or give a folder that holds it as timm:FOLDER") from None
    return net.eval(), dict(cast(dict[str, Any], net.pretrained_cfg))


def _filled(
    architecture: str, weights: Path, count: int, config: dict[str, Any], options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return timm's network of a name with weights from a file; grey or colour is what the first layer says."""
    if not timm.is_model(architecture):
        raise ConfigError(f"timm:{architecture}: timm has no such model; see timm.list_models()")
    state = _state(weights)
    try:
        default = timm.get_pretrained_cfg(architecture)
        first = (config.get("first_conv") or (default.first_conv if default else "")) or ""
        first = first if isinstance(first, str) else first[0]
        stem = state.get(f"{first}.weight")
        channels = 3 if stem is None else int(stem.shape[1])
        net = cast(Any, timm.create_model(architecture, num_classes=count, in_chans=channels, **options))
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise TrainError(f"timm:{architecture}: {str(error).splitlines()[0]}") from None
    _load(net, state, weights)
    given = {key: value for key, value in config.items() if value is not None}
    merged = {**net.pretrained_cfg, **given}
    size = tuple(merged.get("input_size") or (3, 224, 224))
    return net.eval(), {**merged, "input_size": (channels, *size[1:])}


class _Last(nn.Module):
    """A timm network up to its last features, NCHW."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, D, h, w]."""
        net = cast(Any, self.net)
        x = net.forward_features(x)
        if x.ndim == 3:  # ViT: drop class and register tokens, tokens to a grid
            x = x[:, getattr(net, "num_prefix_tokens", 0) :]
            rows, columns = net.patch_embed.grid_size
            return x.transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
        if x.shape[-1] == net.num_features != x.shape[1]:  # Swin: NHWC
            return x.permute(0, 3, 1, 2)
        return x


def _head(net: Any, source: str) -> list[nn.Module]:
    """Return what stands between the averaged features and the logits."""
    owner = getattr(net, "head", None)
    between = [getattr(owner, "norm", None), getattr(net, "fc_norm", None)]
    if isinstance(getattr(net, "conv_head", None), nn.Conv2d) and not hasattr(net, "bn2"):  # MobileNetV3
        between += [net.conv_head, getattr(net, "norm_head", None), net.act2]
    steps = [m for m in (*between, net.get_classifier()) if m is not None and not isinstance(m, nn.Identity)]
    if odd := [type(m).__name__ for m in steps if not known(m)]:
        raise TrainError(f"{source}: maps through a head of {odd[0]} are not known exactly; choose another network")
    return steps


@torch.inference_mode()
def _same(imported: Imported, net: Any, foreign: Foreign) -> None:
    """Compare our logits with the network's own forward pass."""
    noise = torch.randint(0, 256, (2, 1, foreign.size, foreign.size), generator=torch.Generator().manual_seed(0))
    x = imported.prepare(noise)
    wanted = net(x)
    given = imported.logits(imported.backbone(x).mean((2, 3)))[0]
    if wanted.shape != given.shape or not torch.allclose(wanted, given, rtol=PARITY, atol=PARITY):
        raise TrainError(
            f"{foreign.source}: its logits are not a function of the average of its last features (a class token, or"
            " another pooling), so its maps are not known exactly; choose another network"
        )


# --- weights ----------------------------------------------------------------------------------------------------------


def _state(path: Path, classes: list[Any] | None = None) -> dict[str, Tensor]:
    """Read weights from safetensors or a checkpoint of PyTorch, of which only tensors and `classes` are unpickled.

    Raises
    ------
    TrainError
        When the file is missing or is neither.
    """
    if not path.is_file():
        raise TrainError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals(classes or []):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many unrelated classes for a broken or hostile file
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TrainError(f"weights {path}: cannot be read as safetensors or as tensors of PyTorch: {line}") from None
    if isinstance(found, nn.Module):
        for module in found.modules():  # pickled by an older PyTorch
            module.__dict__.setdefault("_non_persistent_buffers_set", set())
        found = found.state_dict()
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise TrainError(f"weights {path}: holds no tensors by name; save the network's state_dict()")
    return {key.removeprefix("module."): value for key, value in found.items()}


def _load(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = net.state_dict()
    for key in sorted(set(own) | set(state)):
        if key.endswith("num_batches_tracked"):
            continue
        if key not in state or key not in own:
            raise TrainError(f"weights {path}: {key} is {'missing' if key in own else 'not part of the network'}")
        if own[key].shape != state[key].shape:
            raise TrainError(
                f"weights {path}: {key} is {list(state[key].shape)}, the network's is {list(own[key].shape)}"
            )
    net.load_state_dict(state, strict=False)
    net.eval()
