"""How fast this machine runs models: each package on each runtime that takes its precision, in a process of its own.

Measured are the graph alone, on arrays that are ready, and the whole way from the bytes of a DICOM file (a phantom of
1024 px in 12 bits) to the model's answer, as the clinic's workers go it, by one caller and by several at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wetread import __version__
from wetread.config import Settings
from wetread.errors import ConfigError, WetreadError
from wetread.infer.machine import Machine, Word, look, memory
from wetread.infer.predict import Predictor
from wetread.infer.remote import address, local_name
from wetread.infer.runtime import available
from wetread.model.package import Package

RUNTIMES = {
    "fp32": ("onnxruntime", "openvino", "cuda", "tensorrt"),
    "bf16": ("openvino",),
    "int8": ("onnxruntime", "openvino"),
}
"""Which runtimes take which precision."""

SIDE = 1024
LEAST = 20
"""Calls at least, however short the time."""

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Conditions(_Record):
    """How it is measured."""

    threads: Annotated[int, Field(ge=1, le=1024)] = Field(description="Of the runtime.")
    seconds: Annotated[float, Field(gt=0, le=3600)] = Field(default=3.0, description="Of each measurement.")
    batch: Annotated[int, Field(ge=1, le=256)] = Field(default=16, description="Images in a batch of the graph alone.")
    callers: Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=16)] = Field(
        default=(1, 2, 4, 8), description="How many ask at once, each for one image after another; 1 is measured too."
    )


class Latency(_Record):
    """Times of single calls, in ms."""

    p50_ms: Positive
    p95_ms: Positive
    calls: Count


class Throughput(_Record):
    """Batches of the graph alone."""

    batch: Count
    images_s: Positive
    cpu_ms: float = Field(
        ge=0, description="Processor time per image, of all threads together; says something on a busy machine too."
    )


class Callers(Latency):
    """Several callers at once, from the file to the answer."""

    callers: Count
    images_s: Positive


class Figures(_Record):
    """What was measured of one package on one runtime."""

    load_s: Positive = Field(description="To open the package and prove it on its golden radiographs.")
    graph: Latency = Field(description="The graph alone, one image.")
    single: Latency = Field(description="From the file to the answer, one caller.")
    throughput: Throughput
    concurrency: tuple[Callers, ...] = Field(max_length=16)
    base_rss_bytes: int = Field(ge=0, description="Memory of the process before the package was opened.")
    peak_rss_bytes: Count = Field(description="The most that the process had in memory, its decoders apart.")


class Result(_Record):
    """One package on one runtime: figures, or why there are none."""

    model: Word
    model_id: Word
    precision: Word
    runtime: Word
    package_bytes: int = Field(ge=0)
    graph_bytes: int = Field(ge=0)
    figures: Figures | None = None
    error: Annotated[str, Field(max_length=1000)] = ""


class Report(_Record):
    """What `wetread bench --json` prints."""

    schema_version: Literal[1] = 1
    wetread: Word
    at: datetime
    machine: Machine
    plan: Conditions
    results: tuple[Result, ...] = Field(max_length=1000)


def run(
    models: Sequence[str],
    plan: Conditions,
    *,
    runtime: str | None = None,
    name: str = "",
    data: Path | None = None,
    settings: Settings | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure packages on this machine.

    Parameters
    ----------
    models : sequence of str
        Names, ids or paths as `Package.open` takes them, or ``v2+http(s)://host/NAME`` for a server elsewhere.
    plan : Conditions
    runtime : {"onnxruntime", "openvino", "cuda", "tensorrt"}, optional
        Only this one.
    name : str
        What to call the machine.
    data : Path, optional
        Data folder in which packages are looked up too.
    settings : Settings, optional
        For remote models; threads and runtime are the plan's.
    progress : callable
        Told what is measured next.

    Raises
    ------
    ModelError
        When there is no such package.
    ConfigError
        For a runtime that is not to be had here or takes none of the packages.
    """
    if runtime is not None and runtime not in available():
        raise ConfigError(f"--runtime {runtime}: not to be had here; there is {', '.join(available())}")
    machine, results = look(name), []
    for model, package, where in _cases(models, runtime, data):
        progress(f"{package.name} ({package.meta.precision}) on {where}")
        common = {
            "model": package.name,
            "model_id": package.id,
            "precision": package.meta.precision,
            "runtime": where,
            "package_bytes": _size(package.path),
            "graph_bytes": len(package.onnx),
        }
        chosen = (settings or Settings.model_validate({})).model_copy(
            update={"threads": plan.threads, "runtime": "auto" if where == "remote" else where}
        )
        outcome: dict[str, Figures | str]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            try:
                outcome = {"figures": process.submit(measure, model, data, chosen, plan).result()}
            except WetreadError as error:
                outcome = {"error": str(error)[:1000]}
            except BrokenProcessPool:
                outcome = {"error": "its process died; out of memory?"}
        results.append(Result.model_validate(common | outcome))
    if not results:
        raise ConfigError(f"--runtime {runtime}: takes none of these packages' precisions")
    return Report(wetread=__version__, at=datetime.now(UTC), machine=machine, plan=plan, results=tuple(results))


def _cases(models: Sequence[str], runtime: str | None, data: Path | None) -> Iterator[tuple[str, Package, str]]:
    here = available()
    for model in models:
        package = Package.open(local_name(model), data)
        if address(model):
            yield model, package, "remote"
            continue
        for where in RUNTIMES[package.meta.precision]:
            if runtime in (None, where) and where in here:
                yield model, package, where


def measure(model: str, data: Path | None, settings: Settings, plan: Conditions) -> Figures:
    """Measure one package on one runtime, in this process.

    Raises
    ------
    ModelError
        When the package does not run here, or a remote server does not answer for it.
    """
    import cv2

    from wetread.errors import ModelError
    from wetread.radiograph import phantom
    from wetread.radiograph.suitability import suit

    cv2.setNumThreads(1)  # as where the clinic decodes; only the runtime has several
    film = phantom.dicom(phantom.make(0, size=SIDE))
    base, begun = memory()[0], time.perf_counter()
    with Predictor.open(model, settings, data) as predictor:
        load_s, meta = time.perf_counter() - begun, predictor.package.meta
        views = 2 if meta.kind == "study" else 1

        def prepare() -> np.ndarray:
            radiograph = predictor.read(film)
            suit(radiograph, population=meta.population, views=meta.views)  # its verdict on a phantom does not matter
            return np.stack([predictor.package.transform(radiograph).array] * views)[None]

        def ask() -> object:
            return predictor.infer(prepare(), wait_s=60.0)

        image = prepare()
        batch = np.concatenate([image] * plan.batch)
        # Warm up: runtimes prepare themselves anew for each size of a batch, and decoders start as callers come.
        for count in {*range(1, min(max(plan.callers), settings.batch_size) + 1), plan.batch}:
            predictor.engine.run(np.concatenate([image] * count))
        _repeat(ask, max(plan.callers), 0.0)
        graph, _, _ = _repeat(lambda: predictor.engine.run(image), 1, plan.seconds)
        many, many_s, cpu_s = _repeat(lambda: predictor.engine.run(batch), 1, plan.seconds)
        images = len(many) * plan.batch
        concurrency = []
        for callers in sorted({1, *plan.callers}):
            times, elapsed, _ = _repeat(ask, callers, plan.seconds)
            concurrency.append(Callers(callers=callers, images_s=len(times) / elapsed, **_quantiles(times)))
        if predictor.remote is not None and (predictor.remote.reason or predictor.remote.since()["local"]):
            said = f"the server did not answer for it throughout: {predictor.remote.reason}"
            raise ModelError(f"{predictor.package.name}: {said}")
    alone = concurrency[0]
    return Figures(
        load_s=load_s,
        graph=Latency.model_validate(_quantiles(graph)),
        single=Latency(p50_ms=alone.p50_ms, p95_ms=alone.p95_ms, calls=alone.calls),
        throughput=Throughput(batch=plan.batch, images_s=images / many_s, cpu_ms=1e3 * cpu_s / images),
        concurrency=tuple(concurrency),
        base_rss_bytes=base,
        peak_rss_bytes=memory()[1],
    )


def _repeat(work: Callable[[], object], callers: int, seconds: float) -> tuple[list[float], float, float]:
    """Let callers do the same over and over; return the time of each call, of all, and the processor's, in s."""
    times: list[float] = []
    failed: list[Exception] = []
    begun, cpu = time.perf_counter(), time.process_time()
    until = begun + seconds

    def caller() -> None:
        try:
            while (start := time.perf_counter()) < until or len(times) < LEAST:
                work()
                times.append(time.perf_counter() - start)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return times, time.perf_counter() - begun, time.process_time() - cpu


def _quantiles(times: list[float]) -> dict[str, float]:
    p50, p95 = 1e3 * np.percentile(times, [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "calls": len(times)}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
