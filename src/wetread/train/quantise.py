"""Static int8 quantisation with calibration images; the head and all after it stay float32.

A quantised head left 129 distinct scores where the float one had 896: the order of a worklist would
be chance. So everything behind the last features is left alone.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from wetread.dataset.studies import apart
from wetread.errors import TrainError
from wetread.infer.runtime import feed


def _backbone(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes up to the backbone's last features."""
    makes = {output: node for node in model.graph.node for output in node.output}
    reached: set[str] = set()
    # The fusion of a study's views is behind the backbone, with the head.
    fused = [node.input[0] for node in model.graph.node if any(".fusion.own." in name for name in node.input)]
    waiting = fused or ["features"]
    while waiting:
        node = makes.get(waiting.pop())
        if node is not None and node.name not in reached:
            reached.add(node.name)
            waiting += node.input
    return reached


def fold(graph: bytes) -> bytes:
    """Return the graph with its constants folded: weights that are cast or transposed become weights again.

    Raises
    ------
    TrainError
        When the graph cannot be loaded.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise TrainError(f"quantising failed: {str(error).splitlines()[0]}") from None
        return target.read_bytes()


def quantise(graph: bytes, pixels: NDArray[np.uint8]) -> bytes:
    """Return the graph with an int8 backbone.

    Parameters
    ----------
    graph : bytes
        ONNX in float32, with the inputs and outputs of the package contract.
    pixels : uint8 array, shape [N, S, S], of studies [N, S, 2 S]
        Training images by which the ranges are set, some hundreds.

    Raises
    ------
    TrainError
        When the graph cannot be quantised.
    """
    os.environ.setdefault("NNCF_CI", "1")  # read at import: no telemetry
    import nncf

    nncf.set_log_level(logging.ERROR)
    model = onnx.load_model_from_string(fold(graph))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    inside = _backbone(model)
    outside = [node.name for node in model.graph.node if node.name not in inside]
    images = nncf.Dataset([feed(apart(image[None, None])) for image in pixels])
    try:
        quantised = nncf.quantize(
            model, images, subset_size=len(pixels), ignored_scope=nncf.IgnoredScope(names=outside, validate=False)
        )
    except Exception as error:  # nncf raises many unrelated classes
        raise TrainError(f"quantising failed: {str(error).splitlines()[0]}") from None
    return bytes(quantised.SerializeToString())
