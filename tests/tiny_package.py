"""A small model package whose outputs have a closed form, for the tests of model, infer and clinic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from wetread.findings import PNEUMONIA, Task
from wetread.infer import runtime
from wetread.model import golden, package
from wetread.model.golden import Outputs
from wetread.radiograph.pixels import Transform, plain

SIZE, CELL, CHANNELS = 64, 8, 6
RAW = (
    np.random.default_rng(1).integers(0, 256, (70, 80), dtype=np.uint8),
    np.random.default_rng(2).integers(0, 65536, (90, 66), dtype=np.uint16),
)


def weights(findings: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return stem [C, 1, 1, 1], its bias [C] and head [F, C]."""
    rng = np.random.default_rng(seed)
    stem = rng.normal(0, 1, (CHANNELS, 1, 1, 1))
    return tuple(
        a.astype(np.float32) for a in (stem, rng.normal(0, 0.3, CHANNELS), rng.normal(0, 2, (findings, CHANNELS)))
    )


def graph(
    findings: int,
    seed: int = 0,
    *,
    drop: str | None = None,
    size: int | str = SIZE,
    kind: int = TensorProto.UINT8,
    poison: bool = False,
) -> bytes:
    """Return the ONNX graph: mean of each cell, 1x1 convolution, ReLU, global average, linear head, sigmoid.

    With `poison`, an image with a white corner has no finite familiarity.
    """
    stem, bias, head = weights(findings, seed)
    constants = {
        "scale": np.float32(1 / 255),
        "stem": stem,
        "bias": bias,
        "head": head[:, :, None, None],
        "one": np.float32(1),
        "first": np.array([0], np.int64),
        "ends": np.array([1], np.int64),
        "axis1": np.array([1], np.int64),
        "last": np.array([2, 3], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["pixels"], ["grey"], to=TensorProto.FLOAT),
        node("Mul", ["grey", "scale"], ["scaled"]),
        node("AveragePool", ["scaled"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        node("Conv", ["cells", "stem", "bias"], ["lines"]),
        node("Relu", ["lines"], ["last_features"]),
        node("ReduceMean", ["last_features", "last"], ["features"], keepdims=0),
        node("Conv", ["last_features", "head"], ["maps"]),
        node("ReduceMean", ["maps", "last"], ["logits"], keepdims=0),
        node("Sigmoid", ["logits"], ["probability"]),
        node("Slice", ["probability", "first", "ends", "axis1"], ["normal"]),
        node("Squeeze", ["normal", "axis1"], ["normal_flat"]),
        node("Sub", ["one", "normal_flat"], ["abnormal"]),
        node("ReduceMean", ["features", "axis1"], ["plain_familiarity" if poison else "familiarity"], keepdims=0),
    ]
    if poison:
        constants["white"] = np.float32(255)
        constants["all"] = np.array([1, 2, 3], np.int64)
        constants["corner_from"], constants["corner_to"] = np.array([0, 0], np.int64), np.array([1, 1], np.int64)
        nodes += [
            node("Slice", ["grey", "corner_from", "corner_to", "last"], ["corner_pixel"]),
            node("ReduceMean", ["corner_pixel", "all"], ["corner"], keepdims=0),
            node("Sub", ["white", "corner"], ["darkness"]),
            node("Div", ["darkness", "darkness"], ["unity"]),  # 0/0 where the corner is white
            node("Mul", ["plain_familiarity", "unity"], ["familiarity"]),
        ]
    shapes = {
        "probability": ["B", findings],
        "abnormal": ["B"],
        "maps": ["B", findings, None, None],
        "features": ["B", CHANNELS],
        "familiarity": ["B"],
    }
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("pixels", kind, ["B", 1, size, size])],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items() if n != drop],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def answer(pixels: np.ndarray, findings: int, seed: int = 0) -> Outputs:
    """Return what the graph must give for uint8 [B, 1, SIZE, SIZE], computed in float64."""
    stem, bias, head = (a.astype(np.float64) for a in weights(findings, seed))
    count, cells = len(pixels), SIZE // CELL
    means = (pixels.reshape(count, cells, CELL, cells, CELL) / 255.0).mean((2, 4))
    last = np.maximum(stem.reshape(1, -1, 1, 1) * means[:, None] + bias[None, :, None, None], 0)
    maps = np.einsum("fc,bchw->bfhw", head, last)
    probability = 1 / (1 + np.exp(-maps.mean((2, 3))))
    features = last.mean((2, 3))
    return Outputs(
        *(a.astype(np.float32) for a in (probability, 1 - probability[:, 0], maps, features, features.mean(1)))
    )


def meta(task: Task, transform: Transform, **changes: Any) -> package.Meta:
    """Return a sound model.json for a task; thresholds 0.3 and 0.5, cut-offs 0.2 and 0.7."""
    values: dict[str, Any] = {
        "name": "tiny",
        "task": task.to_dict(),
        "input_size": SIZE,
        "transform": transform.parameters(),
        "precision": "fp32",
        "points": {
            "screen": dict.fromkeys(task.findings, 0.3),
            "balanced": dict.fromkeys(task.findings, 0.5),
        },
        "cutoffs": dict.fromkeys(task.findings, (0.2, 0.7)),
        "population": "any",
        "views": ["PA", "AP"],
        "familiarity_threshold": -1.0,
    }
    return package.Meta(**(values | changes))


def write(
    folder: Path, task: Task = PNEUMONIA, *, seed: int = 0, poison: bool = False, **changes: Any
) -> package.Package:
    """Write the tiny package; keyword arguments change its `Meta`."""
    transform = plain(size=SIZE, source=SIZE)
    content = graph(len(task.findings), seed, poison=poison)
    engine = runtime.load(content, precision=changes.get("precision", "fp32"))
    return package.write(
        folder,
        onnx=content,
        meta=meta(task, transform, **changes),
        transform=transform,
        card="# tiny\n",
        golden=golden.Golden(RAW, engine.run(golden.see(transform, RAW))),
    )
