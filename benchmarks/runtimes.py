"""Compare ONNX Runtime and OpenVINO in each precision: time, and AUROC on real radiographs.

The same calibrated graph runs as it is (ONNX Runtime and OpenVINO in float32), in OpenVINO's bf16, quantised by ONNX
Runtime (dynamic; static with calibration images) and by NNCF. Static quantisation leaves the head alone. Speeds are
measured in interleaved rounds; processor time per image is given too, for it says something on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from wetread.dataset.dataset import Dataset
from wetread.errors import WetreadError
from wetread.evaluate.metrics import auroc
from wetread.infer import runtime
from wetread.infer.runtime import Engine
from wetread.model.package import Package
from wetread.train.quantise import _backbone, fold, quantise

Images = NDArray[np.uint8]


def prepared(graph: bytes, folder: Path) -> Path:
    """Write the graph as ONNX Runtime's quantiser wants it: constants folded, nodes named."""
    target = folder / "prepared.onnx"
    model = onnx.load_model_from_string(fold(graph))
    del model.graph.value_info[:]  # the exporter's notes on the head's shape are those before it was transposed
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    onnx.save_model(model, target)
    return target


def dynamic_int8(graph: bytes, _: Images) -> bytes:
    """Quantise weights, and activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "dynamic.onnx"
        quantize_dynamic(prepared(graph, Path(folder)), target, weight_type=QuantType.QUInt8)
        return target.read_bytes()


def static_int8(graph: bytes, calibration: Images) -> bytes:
    """Quantise weights and activations by calibration images, the head left out."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images: Iterator[Images] = iter(calibration)

        def get_next(self) -> dict[str, Images] | None:
            image = next(self.images, None)
            return None if image is None else {"pixels": image[None, None]}

    with tempfile.TemporaryDirectory() as folder:
        source, target = prepared(graph, Path(folder)), Path(folder) / "static.onnx"
        model = onnx.load_model(source)
        inside = _backbone(model)
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=[node.name for node in model.graph.node if node.name not in inside],
        )
        return target.read_bytes()


def unchanged(graph: bytes, _: Images) -> bytes:
    """Leave the graph as it is."""
    return graph


CASES: dict[str, tuple[runtime.Runtime, runtime.Precision, Callable[[bytes, Images], bytes]]] = {
    "ONNX Runtime fp32": ("onnxruntime", "fp32", unchanged),
    "ONNX Runtime dynamic int8": ("onnxruntime", "int8", dynamic_int8),
    "ONNX Runtime static int8": ("onnxruntime", "int8", static_int8),
    "OpenVINO f32": ("openvino", "fp32", unchanged),
    "OpenVINO bf16": ("openvino", "bf16", unchanged),
    "OpenVINO int8 (NNCF)": ("openvino", "int8", quantise),
}


def timed(engine: Engine, batch: Images, seconds: float) -> tuple[float, float]:
    """Return wall and processor seconds per image, the median over runs."""
    wall, processor, stop = [], [], time.perf_counter() + seconds
    while time.perf_counter() < stop or len(wall) < 3:
        clock, cpu = time.perf_counter(), time.process_time()
        engine.run(batch)
        wall.append((time.perf_counter() - clock) / len(batch))
        processor.append((time.process_time() - cpu) / len(batch))
    return statistics.median(wall), statistics.median(processor)


def scored(engine: Engine, pixels: Images) -> NDArray[np.float32]:
    """Return probabilities [N, F]."""
    return np.concatenate([engine.run(pixels[at : at + 16, None]).probability for at in range(0, len(pixels), 16)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="pneumonia", help="an fp32 package: name or path")
    parser.add_argument("--dataset", type=Path, help="a packed dataset of its task; without one only time is measured")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--limit", type=int, default=0, help="most images to score; 0 is all")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder that keeps the quantised graphs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1, help="per case, batch size and round")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()

    package = Package.open(chosen.package)
    size = package.meta.input_size
    rng = np.random.default_rng(0)
    pixels = labels = None
    calibration = rng.integers(0, 256, (32, size, size), dtype=np.uint8)
    if chosen.dataset:
        dataset = Dataset.open(chosen.dataset)
        if dataset.task != package.task or dataset.transform != package.transform:
            raise SystemExit(f"{chosen.dataset}: packed for another task or with another transform than {package.name}")
        rows = dataset.rows(chosen.split)
        rows = np.sort(rng.permutation(rows)[: chosen.limit]) if chosen.limit else rows
        pixels, labels = np.asarray(dataset.pixels[rows]), dataset.labels[rows]
        calibration = np.asarray(dataset.pixels[np.sort(rng.permutation(dataset.rows("train"))[:200])])

    graph, engines, loads = package.onnx, {}, {}
    for name, (where, precision, quantised) in CASES.items():
        try:
            made = chosen.work / f"{package.id[:12]}-{name.lower().replace(' ', '-')}.onnx"
            if not made.is_file():
                made.parent.mkdir(parents=True, exist_ok=True)
                made.write_bytes(quantised(graph, calibration))
            content = made.read_bytes()
            begun = time.process_time()
            engines[name] = runtime.load(content, precision=precision, runtime=where, threads=chosen.threads)
            loads[name] = time.process_time() - begun
        except WetreadError as error:
            print(f"{name}: {error}")

    load = os.getloadavg()[0]
    batches = {count: rng.integers(0, 256, (count, 1, size, size), dtype=np.uint8) for count in (1, 16)}
    times: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(chosen.rounds):
        for name, engine in engines.items():
            for count, batch in batches.items():
                times.setdefault((name, count), []).append(timed(engine, batch, chosen.seconds))

    print(f"{package.name}, {chosen.threads} threads, {os.cpu_count()} cores, load before {load:.1f}")
    print("| runtime | load CPU s | batch 1 ms | batch 16 images/s | CPU ms/image, batch 16 | speed by CPU time "
          "| AUROC | largest change of a probability | distinct scores |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    reference = scored(next(iter(engines.values())), pixels) if pixels is not None else None
    base = statistics.median(cpu for _, cpu in times[next(iter(engines)), 16])
    for name, engine in engines.items():
        one = statistics.median(wall for wall, _ in times[name, 1])
        many, cpu = (statistics.median(column) for column in zip(*times[name, 16], strict=True))
        line = f"| {name} | {loads[name]:.1f} | {1e3 * one:.1f} | {1 / many:.0f} | {1e3 * cpu:.1f} | {base / cpu:.2f}× "
        if pixels is None or labels is None or reference is None:
            print(line + "| – | – | – |")
            continue
        scores = scored(engine, pixels)
        normal = package.task.normal
        columns = [index for index, finding in enumerate(package.task.findings) if finding != normal]
        area = float(np.nanmean([auroc(labels[:, index], scores[:, index]) for index in columns]))
        distinct = min(len(np.unique(scores[:, index])) for index in columns)
        print(line + f"| {area:.4f} | {np.abs(scores - reference).max():.4f} | {distinct} of {len(scores)} |")


if __name__ == "__main__":
    main()
