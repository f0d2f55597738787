"""Measure prediction from file to findings against the bare runtime and PyTorch eager with Pillow.

DenseNet-121 with random weights (speed does not depend on them), files of 1024 px as JPEG and 12-bit DICOM, and
radiographs at native size where ../shared/data is there. Each round measures every case once, in turn, so that
what else the machine does hits all alike; the table gives the median round, in wall time, and the processor time per
image, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks._models import SIZE, films, random_package
from wetread.config import Settings
from wetread.infer import runtime
from wetread.infer.predict import Predictor

NATIVE = Path(__file__).parents[2] / "shared" / "data" / "native"


class Measured(NamedTuple):
    """One round of one case: images/s, processor seconds per image, p50 and p95 in s."""

    rate: float
    processor: float
    p50: float
    p95: float


def clients(work: Callable[[int], object], concurrency: int, seconds: float) -> Measured:
    """Let `concurrency` clients call `work` one after another for some seconds."""
    latencies: list[float] = []
    numbers = itertools.count()
    stop = time.perf_counter() + seconds

    def client() -> None:
        while (begun := time.perf_counter()) < stop:
            work(next(numbers))
            latencies.append(time.perf_counter() - begun)

    before, begun = time.process_time(), time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - begun
    p50, p95 = np.percentile(latencies, [50, 95])
    return Measured(len(latencies) / elapsed, (time.process_time() - before) / len(latencies), float(p50), float(p95))


def stream(work: Callable[[int], int], seconds: float) -> Measured:
    """Call `work(round)`, which answers how many images it did, until the time is up."""
    before, begun, done, each = time.process_time(), time.perf_counter(), 0, []
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        count = work(done)
        done += count
        each.append((time.perf_counter() - start) / count)
    elapsed = time.perf_counter() - begun
    return Measured(done / elapsed, (time.process_time() - before) / done, *map(float, np.percentile(each, [50, 95])))


def eager(backbone: str, threads: int) -> Callable[[Path], object]:
    """Return the usual script: Pillow, torchvision's steps, the network in eager mode."""
    import timm
    import torch
    from PIL import Image

    torch.set_num_threads(threads)
    model = timm.create_model(backbone, in_chans=1, num_classes=14).eval()

    def predict(file: Path) -> object:
        with Image.open(file) as picture:
            small = picture.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(small, np.float32)[None, None] / 127.5 - 1)
        with torch.inference_mode():
            return torch.sigmoid(model(pixels))

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder for packages and files")
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--runtime", default="auto", choices=["auto", "openvino", "onnxruntime"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5, help="per case and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--no-eager", action="store_true", help="leave PyTorch out")
    chosen = parser.parse_args()

    package = random_package(chosen.work / f"{chosen.backbone}-{chosen.precision}", chosen.backbone, chosen.precision)
    settings = Settings.model_validate(
        {"threads": chosen.threads, "runtime": chosen.runtime, "batch_size": chosen.batch}
    )
    jpeg, dicom = films(chosen.work / "films")
    native = sorted((NATIVE / "kermany").rglob("*.jp*g"))[:16]
    engine = runtime.open_engine(package, chosen.runtime, chosen.threads)
    batch = np.random.default_rng(0).integers(0, 256, (chosen.batch, 1, SIZE, SIZE), dtype=np.uint8)

    with Predictor(package, settings) as predictor:

        def bare(_: int) -> int:
            engine.run(batch)
            return len(batch)

        def many(files: Sequence[Path]) -> Callable[[int], int]:
            def work(_: int) -> int:
                listed = [*files] * max(1, 4 * chosen.batch // len(files))
                results = list(predictor.analyse_many(listed))
                if refused := [r for r in results if not r.suitable]:
                    raise SystemExit(f"refused: {refused[0].reason}")
                return len(results)

            return work

        def single(files: Sequence[Path]) -> Callable[[int], object]:
            return lambda index: predictor.analyse(predictor.read(files[index % len(files)]))

        def pixels_only(files: Sequence[Path]) -> Callable[[int], object]:
            transform = predictor.package.transform
            return lambda index: transform(predictor.read(files[index % len(files)]))

        cases: dict[str, Callable[[], Measured]] = {
            f"bare {engine.runtime}, batch {chosen.batch}": lambda: stream(bare, chosen.seconds),
            "JPEG 1024 px, many files": lambda: stream(many(jpeg), chosen.seconds),
            "DICOM 1024 px, many files": lambda: stream(many(dicom), chosen.seconds),
        }
        if native:
            cases["JPEG native size, many files"] = lambda: stream(many(native), chosen.seconds)
        for kind, files in (("JPEG", jpeg), ("DICOM", dicom)):
            for n in chosen.concurrency:
                cases[f"{kind} 1024 px, {n} client{'s' * (n > 1)}"] = lambda f=files, n=n: clients(  # type: ignore[misc]
                    single(f), n, chosen.seconds
                )
        cases["pixel path alone, JPEG 1024 px"] = lambda: clients(pixels_only(jpeg), 1, chosen.seconds / 2)
        if not chosen.no_eager:
            peer = eager(chosen.backbone, chosen.threads)
            peer(jpeg[0])
            cases["PyTorch eager + Pillow, JPEG 1024 px"] = lambda: clients(
                lambda index: peer(jpeg[index % len(jpeg)]), 1, chosen.seconds
            )
        bare(0)
        many(jpeg)(0)
        load = os.getloadavg()[0]
        rounds: dict[str, list[Measured]] = {name: [] for name in cases}
        for _ in range(chosen.rounds):
            for name, case in cases.items():
                rounds[name].append(case())

    print(
        f"{package.name} on {engine.runtime}, {chosen.threads} threads, {os.cpu_count()} cores, load before {load:.1f}"
    )
    print("| case | images/s | of bare | p50 ms | p95 ms | CPU ms/image | of bare |")
    print("|---|---|---|---|---|---|---|")
    reference = next(iter(rounds.values()))
    for name, measured in rounds.items():
        rate, processor, p50, p95 = (statistics.median(column) for column in zip(*measured, strict=True))
        share = statistics.median(m.rate / r.rate for m, r in zip(measured, reference, strict=True))
        work = statistics.median(r.processor / m.processor for m, r in zip(measured, reference, strict=True))
        times = " | ".join(f"{1e3 * seconds:.1f}" for seconds in (p50, p95, processor))
        print(f"| {name} | {rate:.1f} | {share:.0%} | {times} | {work:.0%} |")


if __name__ == "__main__":
    main()
