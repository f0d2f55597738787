"""Static int8 quantisation with calibration images; the head and all after it stay float32.

A quantised head left 129 distinct scores where the float one had 896: the order of a worklist would
be chance. So everything behind the last features is left alone.
"""

from __future__ import annotations

import logging

import nncf
import numpy as np
import onnx
from numpy.typing import NDArray

from wetread.errors import TrainError


def _backbone(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes up to the last convolution or matrix product before `features`."""
    makes = {output: node for node in model.graph.node for output in node.output}
    reached: set[str] = set()
    waiting = ["features"]
    while waiting:
        node = makes.get(waiting.pop())
        if node is not None and node.name not in reached:
            reached.add(node.name)
            waiting += node.input
    return reached


def quantise(graph: bytes, pixels: NDArray[np.uint8]) -> bytes:
    """Return the graph with an int8 backbone.

    Parameters
    ----------
    graph : bytes
        ONNX in float32, with the inputs and outputs of the package contract.
    pixels : uint8 array, shape [N, S, S]
        Training images by which the ranges are set, some hundreds.

    Raises
    ------
    TrainError
        When the graph cannot be quantised.
    """
    nncf.set_log_level(logging.ERROR)
    model = onnx.load_model_from_string(graph)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    inside = _backbone(model)
    outside = [node.name for node in model.graph.node if node.name not in inside]
    images = nncf.Dataset([image[None, None] for image in pixels], lambda image: {"pixels": image})
    try:
        quantised = nncf.quantize(
            model, images, subset_size=len(pixels), ignored_scope=nncf.IgnoredScope(names=outside, validate=False)
        )
    except Exception as error:  # nncf raises many unrelated classes
        raise TrainError(f"quantising failed: {str(error).splitlines()[0]}") from None
    return bytes(quantised.SerializeToString())
