"""OpenVINO and ONNX Runtime behind one small interface.

Which one runs is a setting. ``auto`` takes OpenVINO for bf16 and int8 packages, whose precision only
pays there (on a CPU with AMX: DenseNet-121 at 162 images/s in bf16 and 226 in int8, against 40 in fp32),
and ONNX Runtime for fp32, where both are equally fast and ONNX Runtime starts sooner.

``cuda`` and ``tensorrt`` are ONNX Runtime on a GPU, where one that can is installed. No setting of the clinic has them
(a GPU is Triton's there), but `wetread bench` measures them.

Precision is always explicit: OpenVINO left to itself takes bf16 where the CPU has it, which moves
probabilities. A package of a precision that this machine or runtime lacks is refused, never run in another.
"""

from __future__ import annotations

import sys
import threading
from importlib import util
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from wetread.errors import ModelError
from wetread.model import golden
from wetread.model.golden import Outputs
from wetread.model.package import Package

__all__ = ["Engine", "Outputs", "load", "open_engine"]

_INPUTS = ("pixels", "present")
Runtime = Literal["auto", "openvino", "onnxruntime", "cuda", "tensorrt"]
Precision = Literal["fp32", "bf16", "int8"]


PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "onnxruntime": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
    "tensorrt": ("TensorrtExecutionProvider", {}),
}
"""What ONNX Runtime runs on, with options that keep fp32 what it is."""


def available() -> list[str]:
    """Return the runtimes that are to be had here."""
    import onnxruntime as ort

    listed = ort.get_available_providers()
    openvino = ["openvino"] if util.find_spec("openvino") else []
    return [*(name for name, (provider, _) in PROVIDERS.items() if provider in listed), *openvino]


class Engine(Protocol):
    """A graph ready to run. Any number of threads may call `run` at once."""

    @property
    def runtime(self) -> str:
        """Which runtime answers."""
        ...

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Run uint8 [B, 1, H, W], or a model of studies uint8 [B, 2, H, W], where a missing view is black.

        Raises
        ------
        ModelError
            For a wrong shape, a failed graph or non-finite outputs.
        """
        ...


def open_engine(package: Package, runtime: Runtime = "auto", threads: int = 2) -> Engine:
    """Load a package's graph and prove it on its golden radiographs.

    Parameters
    ----------
    package : Package
    runtime : {"auto", "openvino", "onnxruntime", "cuda", "tensorrt"}
        See the module's text for what ``auto`` takes.
    threads : int
        Threads of the runtime.

    Raises
    ------
    ModelError
        When the graph cannot be loaded, does not fit `model.json`, needs a precision that is not to be had
        here, or does not keep its golden outputs.
    """
    try:
        engine = load(package.onnx, precision=package.meta.precision, runtime=runtime, threads=threads)
    except ModelError as error:
        raise ModelError(f"{package.name}: {error}") from None
    golden.check(package, engine.run)
    return engine


def load(onnx: bytes, *, precision: Precision = "fp32", runtime: Runtime = "auto", threads: int = 2) -> Engine:
    """Load a graph without a golden check: for packaging, which makes the golden outputs with it."""
    if runtime == "auto":
        runtime = "onnxruntime" if precision == "fp32" else "openvino"
    if runtime == "openvino":
        return _OpenVino(onnx, precision, threads)
    return _OnnxRuntime(onnx, precision, threads, runtime)


class _OnnxRuntime:
    def __init__(self, onnx: bytes, precision: Precision, threads: int, runtime: str = "onnxruntime") -> None:
        import onnxruntime as ort

        self.runtime = runtime
        provider, more = PROVIDERS[runtime]
        if runtime not in available():
            raise ModelError(f"{runtime}: this ONNX Runtime has no {provider}; there is {', '.join(available())}")
        if precision == "bf16":
            raise ModelError('a bf16 package needs OpenVINO; set runtime = "openvino" or take the fp32 package')
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves the decoders
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(onnx, options, providers=[(provider, more)])
        except Exception as error:  # its exceptions share no base class
            raise ModelError(f"model.onnx: ONNX Runtime cannot load it: {_line(error)}") from None
        if provider not in self._session.get_providers():  # it falls back to the CPU without a word
            raise ModelError(
                f"{runtime}: ONNX Runtime cannot start {provider}; are driver and libraries of the GPU there?"
            )
        self._shape = _contract(
            {i.name: (i.type, i.shape) for i in self._session.get_inputs()},
            [o.name for o in self._session.get_outputs()],
            "tensor(uint8)",
        )

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        _fits(pixels, self._shape)
        try:
            values = self._session.run(list(Outputs._fields), feed(pixels))
        except Exception as error:
            raise ModelError(f"ONNX Runtime failed: {_line(error)}") from None
        return _outputs(values, len(pixels), self._shape[0])


class _OpenVino:
    runtime = "openvino"

    def __init__(self, onnx: bytes, precision: Precision, threads: int) -> None:
        core = _openvino().Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ModelError("this CPU has no bf16 (AMX or AVX512-BF16); take the fp32 package")
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # pinned threads fight with decoders and with other processes
        }
        try:
            self._compiled = core.compile_model(core.read_model(onnx), "CPU", properties)
        except Exception as error:
            raise ModelError(f"model.onnx: OpenVINO cannot load it: {_line(error)}") from None
        names = {name for output in self._compiled.outputs for name in output.names}
        self._shape = _contract(
            {
                next((n for n in _INPUTS if n in i.names), min(i.names, default="")): (  # it may have several names
                    i.element_type.get_type_name(),
                    [d.get_length() if d.is_static else "B" for d in i.partial_shape],
                )
                for i in self._compiled.inputs
            },
            sorted(names),
            "u8",
        )
        self._requests = threading.local()

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        _fits(pixels, self._shape)
        if not hasattr(self._requests, "own"):  # a request belongs to one thread at a time
            self._requests.own = self._compiled.create_infer_request()
        try:
            result = self._requests.own.infer(feed(np.ascontiguousarray(pixels)), share_inputs=True)
            values = [result[name] for name in Outputs._fields]
        except Exception as error:
            raise ModelError(f"OpenVINO failed: {_line(error)}") from None
        return _outputs(values, len(pixels), self._shape[0])


def _openvino() -> ModuleType:
    """Import OpenVINO without its telemetry: its stub takes the place of a package that cannot be imported."""
    name = "openvino_telemetry"
    blocked = name not in sys.modules
    if blocked:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if blocked:
            sys.modules.pop(name, None)
    module: ModuleType = openvino
    return module


def feed(pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return the inputs of a graph: of studies also which views are there."""
    return {"pixels": pixels} if pixels.shape[1] == 1 else {"pixels": pixels, "present": pixels.max((2, 3)) > 0}


def _contract(inputs: dict[str, tuple[str, list[Any]]], outputs: list[str], uint8: str) -> tuple[int, int, int]:
    """Return the views, height and width of the input, after checking names, type and rank."""
    views = 2 if "present" in inputs else 1
    if set(inputs) != {*_INPUTS[:views]}:
        raise ModelError(f"model.onnx: inputs are {sorted(inputs)}, expected pixels, and present for studies")
    kind, shape = inputs["pixels"]
    if kind != uint8 or len(shape) != 4 or shape[1] != views or not all(isinstance(n, int) for n in shape[2:]):
        raise ModelError(f"model.onnx: pixels is {kind} {shape}, expected uint8 [B, {views}, H, W]")
    if views > 1 and ("bool" not in inputs["present"][0] or inputs["present"][1][1:] != [views]):
        raise ModelError(f"model.onnx: present is {list(inputs['present'])}, expected bool [B, {views}]")
    if missing := [name for name in Outputs._fields if name not in outputs]:
        raise ModelError(f"model.onnx: output {missing[0]!r} is missing; it has {outputs}")
    return views, int(shape[2]), int(shape[3])


def _fits(pixels: NDArray[np.uint8], shape: tuple[int, int, int]) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or not len(pixels) or pixels.shape[1:] != shape:
        raise ModelError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}, the model takes uint8 "
            f"[B, {shape[0]}, {shape[1]}, {shape[2]}]"
        )


def _outputs(values: list[Any], count: int, views: int) -> Outputs:
    # Copies: OpenVINO's results are views of memory that the next call overwrites.
    outputs = Outputs(*(np.array(value, np.float32) for value in values))
    for name, rank, value in zip(Outputs._fields, (2, 1, 3 + views, 2, 1), outputs, strict=True):
        if value.ndim != rank or len(value) != count:
            raise ModelError(f"model.onnx: {name} is {list(value.shape)}, expected rank {rank} for {count} images")
        if not np.isfinite(value).all():
            raise ModelError(f"the model gave a {name} that is not a finite number")
    return outputs


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
