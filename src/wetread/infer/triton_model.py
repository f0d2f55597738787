"""A Wetread graph behind Triton's Python back end, run by ONNX Runtime.

`wetread export-triton --backend python` copies this file as `model.py`. It runs in Triton's own Python, which needs
numpy and onnxruntime (onnxruntime-gpu for GPUs) and nothing of Wetread.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported: nothing leaves the machine

import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model: on one GPU, or on the CPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph that lies beside this file."""
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        options = ort.SessionOptions()
        threads = config["parameters"].get("intra_op_thread_count", {}).get("string_value", "0")
        options.intra_op_num_threads = int(threads)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            wanted = [("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}), *wanted]
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = ort.InferenceSession(graph, options, providers=wanted)
        if len(self._session.get_providers()) < len(wanted):
            # ONNX Runtime would go on with the CPU, and nobody would know.
            raise pb_utils.TritonModelException("no CUDA in this onnxruntime; install onnxruntime-gpu for this Python")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of a batch by one run of the graph."""
        given = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            for request in requests
        ]
        feed = {
            name: np.concatenate(arrays) for name, arrays in zip(self._inputs, zip(*given, strict=True), strict=True)
        }
        try:
            values = self._session.run(self._outputs, feed)
        except Exception as error:  # its exceptions share no base class
            failed = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"ONNX Runtime failed: {error}"))
            return [failed] * len(requests)
        ends = np.cumsum([len(arrays[0]) for arrays in given])[:-1]
        shares = zip(*(np.split(value, ends) for value in values), strict=True)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, value) for name, value in zip(self._outputs, share, strict=True)]
            )
            for share in shares
        ]
