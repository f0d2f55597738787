"""A package as a model repository of NVIDIA's Triton: for machines with GPUs, and for those who run Triton anyway.

`Remote` (`v2+http://host:8000/NAME`) asks such a server with the very names, types and shapes of our own `/v2`; only
what is one number an image comes as [B, 1], since Triton knows no empty shape. Two back ends: Triton's own ONNX
Runtime, and Python, whose `model.py` runs the graph with the onnxruntime of Triton's Python.
"""

from __future__ import annotations

import hashlib
import shutil
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from wetread.errors import ConfigError, ModelError
from wetread.model.package import Package

Backend = Literal["onnxruntime", "python"]


class Exported(NamedTuple):
    """What an export made.

    Attributes
    ----------
    folder : Path
        The model's folder in the repository.
    version : int
        Triton's number of the package.
    new : bool
        False when that package was the newest version already.
    """

    folder: Path
    version: int
    new: bool


def export(
    package: Package,
    repository: Path,
    *,
    backend: Backend = "onnxruntime",
    gpus: tuple[int, ...] = (),
    instances: int = 1,
    batch: int = 16,
    delay_ms: float = 5.0,
    threads: int = 2,
) -> Exported:
    """Write a package into a model repository, as the next version of the model of its name.

    Parameters
    ----------
    package : Package
        In fp32 or int8; bf16 is OpenVINO's.
    repository : Path
        Made when missing; other models in it are left alone.
    backend : {"onnxruntime", "python"}
    gpus : tuple of int
        GPUs that each have `instances` of the model; without any it runs on the CPU.
    instances : int
        Copies of the model on each GPU, or on the CPU.
    batch : int
        Most images in a batch.
    delay_ms : float
        Longest wait for a batch to fill, in ms.
    threads : int
        Threads of an instance on the CPU.

    Raises
    ------
    ModelError
        When Triton cannot run the package, or the folder is no model's.
    """
    if package.meta.precision == "bf16":
        raise ModelError(f"{package.name}: a bf16 package needs OpenVINO; export the fp32 package")
    if len(set(gpus)) != len(gpus) or any(gpu < 0 for gpu in gpus):
        raise ConfigError(f"gpus: {', '.join(map(str, gpus))}: give each once, by its number from 0")
    folder = repository / package.name
    if folder.exists() and not (folder / "config.pbtxt").is_file():
        raise ModelError(f"{folder}: exists and is no model of Triton; choose another folder or remove it")
    graph = package.onnx
    newest = max((int(path.name) for path in folder.glob("[1-9]*") if path.name.isdecimal()), default=0)
    code = (resources.files("wetread.infer") / "triton_model.py").read_bytes() if backend == "python" else None
    wanted = {"model.onnx": graph} | ({"model.py": code} if code else {})
    new = not newest or not _same(folder / str(newest), wanted)
    folder.mkdir(parents=True, exist_ok=True)
    if new:
        newest += 1
        # Triton heeds folders that are called by a number alone: a version appears whole or not at all.
        partial = folder / f".{newest}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, content in wanted.items():
            (partial / name).write_bytes(content)
        partial.rename(folder / str(newest))
    text = _config(package, backend, gpus, instances, batch, delay_ms, threads)
    partial = folder / ".config.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / "config.pbtxt")
    return Exported(folder, newest, new)


def _same(folder: Path, wanted: dict[str, bytes]) -> bool:
    found = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}
    return found == {name: hashlib.sha256(content).digest() for name, content in wanted.items()}


def _config(
    package: Package,
    backend: Backend,
    gpus: tuple[int, ...],
    instances: int,
    batch: int,
    delay_ms: float,
    threads: int,
) -> str:
    """Return `config.pbtxt`, in the text format of protobuf."""
    size, study = package.meta.input_size, package.meta.kind == "study"
    inputs = [_tensor("pixels", "TYPE_UINT8", (1 + study, size, size))]
    if study:
        inputs.append(_tensor("present", "TYPE_BOOL", (2,)))
    outputs = [_tensor(n, "TYPE_FP32", like.shape[1:]) for n, like in package.golden.outputs._asdict().items()]
    where = f"kind: KIND_GPU gpus: [ {', '.join(map(str, gpus))} ]" if gpus else "kind: KIND_CPU"
    own = {"package": package.id} | ({} if gpus else {"intra_op_thread_count": str(threads)})
    parameters = "\n".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in own.items()
    )
    return f"""# Written by `wetread export-triton`; the next export writes it again.
name: "{package.name}"
backend: "{backend}"
max_batch_size: {batch}
{_list("input", inputs)}
{_list("output", outputs)}
instance_group [ {{ count: {instances} {where} }} ]
dynamic_batching {{ max_queue_delay_microseconds: {round(1000 * delay_ms)} }}
{parameters}
"""


def _tensor(name: str, kind: str, shape: tuple[int, ...]) -> str:
    dims = ", ".join(map(str, shape)) or "1"
    return f'{{ name: "{name}" data_type: {kind} dims: [ {dims} ]{"" if shape else " reshape: { shape: [ ] }"} }}'


def _list(name: str, entries: list[str]) -> str:
    return f"{name} [\n  " + ",\n  ".join(entries) + "\n]"
