"""A small package of studies whose outputs have a closed form: the mean of each view, weighed per finding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tiny_package
from onnx import TensorProto, helper, numpy_helper

from wetread.findings import PNEUMONIA, Task
from wetread.infer import runtime
from wetread.model import golden, package
from wetread.radiograph.pixels import plain

SIZE, CELL = tiny_package.SIZE, tiny_package.CELL


def weights(findings: int) -> np.ndarray:
    """Return what a view adds to the log-odds of a finding, [2, F]."""
    return np.random.default_rng(3).normal(0, 4, (2, findings)).astype(np.float32)


def graph(findings: int) -> bytes:
    constants = {
        "scale": np.float32(1 / 255),
        "weights": weights(findings),
        "weight_maps": weights(findings)[None, :, :, None, None],
        "one": np.float32(1),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
        "zero": np.array([0], np.int64),
        "last": np.array([2, 3], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["pixels"], ["grey"], to=TensorProto.FLOAT),
        node("Cast", ["present"], ["there"], to=TensorProto.FLOAT),
        node("Mul", ["grey", "scale"], ["scaled"]),
        node("AveragePool", ["scaled"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        node("Unsqueeze", ["cells", "axis2"], ["apart"]),
        node("Mul", ["apart", "weight_maps"], ["maps"]),
        node("ReduceMean", ["scaled", "last"], ["means"], keepdims=0),
        node("Mul", ["means", "there"], ["features"]),
        node("MatMul", ["features", "weights"], ["logits"]),
        node("Sigmoid", ["logits"], ["probability"]),
        node("Slice", ["probability", "zero", "axis1", "axis1"], ["normal"]),
        node("Squeeze", ["normal", "axis1"], ["normal_flat"]),
        node("Sub", ["one", "normal_flat"], ["abnormal"]),
        node("ReduceMean", ["features", "axis1"], ["familiarity"], keepdims=0),
    ]
    shapes = {
        "probability": ["B", findings],
        "abnormal": ["B"],
        "maps": ["B", 2, findings, None, None],
        "features": ["B", 2],
        "familiarity": ["B"],
    }
    inputs = [
        helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 2, SIZE, SIZE]),
        helper.make_tensor_value_info("present", TensorProto.BOOL, ["B", 2]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "pair", inputs, outputs, initial)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def answer(pixels: np.ndarray, findings: int) -> np.ndarray:
    """Return the probabilities [B, F] of uint8 [B, 2, SIZE, SIZE]; a missing view is black."""
    return 1 / (1 + np.exp(-(pixels.mean((2, 3)) / 255) @ weights(findings)))


def write(folder: Path, task: Task = PNEUMONIA, **changes: Any) -> package.Package:
    """Write the package; keyword arguments change its `Meta`."""
    transform, content = plain(size=SIZE, source=SIZE), graph(len(task.findings))
    engine = runtime.load(content)
    changes = {"name": "pair", "kind": "study", "views": ["PA", "AP", "LATERAL"]} | changes
    return package.write(
        folder,
        onnx=content,
        meta=tiny_package.meta(task, transform, **changes),
        transform=transform,
        card="# pair\n",
        golden=golden.make(transform, engine.run, size=128, views=2),
    )
