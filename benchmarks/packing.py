"""Packing in images/s beside a Pillow loop and beside bare decoding (`--images`, `--workers`; a minute).

The same JPEG files for all, from the page cache: phantoms of 2,320 × 2,828 pixels made on the fly, and the native-size
Kermany films where ../shared/data is there. *Bare decoding* is OpenCV at the same reduced scale and nothing else: no
resizing, no checks, no writing; packing cannot be faster. The rate of `pack` is that after its first shard, so that the
start of its processes does not count; everything it writes and synchronises to disk does. One process is timed by its
own processor time, so that other jobs on the machine do not count; several by the clock on the wall, as is the Pillow
loop that they are compared with.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from PIL import Image

from wetread.dataset import pack as packing
from wetread.dataset import sources, split
from wetread.radiograph import phantom
from wetread.radiograph.pixels import Transform, plain
from wetread.radiograph.read import reduction

NATIVE = Path(__file__).parents[2] / "shared" / "data" / "native" / "kermany"
FLAGS = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def write_large(folder: Path, count: int) -> None:
    """Write `count` phantoms in CheXpert's usual native size, in Kermany's layout."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = cv2.resize(phantom.make(number, size=1024).radiograph.pixels, (2828, 2320)).astype(np.int16)
        pixels += rng.normal(0, 3, pixels.shape).astype(np.int16)
        _, data = cv2.imencode(".jpg", np.clip(pixels, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])
        file = folder / ("NORMAL", "PNEUMONIA")[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.tobytes())


def with_pillow(file: str, size: int) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR))


def with_opencv(file: str, size: int) -> np.ndarray:
    return cv2.resize(cv2.imread(file, cv2.IMREAD_GRAYSCALE), (size, size), interpolation=cv2.INTER_AREA)


def bare(file: str, flag: int) -> None:
    cv2.imdecode(np.frombuffer(Path(file).read_bytes(), np.uint8), flag)


def rate(work: Callable[[str], object], files: list[str], seconds: float = 3.0) -> tuple[float, float]:
    """Images a second of processor time and of the clock, of a plain loop over at least `seconds` of the first."""
    for file in files:
        work(file)  # into the page cache
    done, start, wall = 0, time.process_time(), time.perf_counter()
    while time.process_time() - start < seconds:
        for file in files:
            work(file)
        done += len(files)
    return done / (time.process_time() - start), done / (time.perf_counter() - wall)


def bare_loop(files: list[str], flags: list[int], repeats: int) -> None:
    for _ in range(repeats):
        for file, flag in zip(files, flags, strict=True):
            bare(file, flag)


def rate_bare(files: list[str], transform: Transform, workers: int, images: int) -> float:
    flags = [FLAGS[reduction(*cv2.imread(file, cv2.IMREAD_GRAYSCALE).shape, transform.source)] for file in files]
    repeats = -(-images // (len(files) * workers))
    if workers == 1:
        start = time.process_time()
        bare_loop(files, flags, repeats)
        return repeats * len(files) / (time.process_time() - start)
    with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        list(pool.map(partial(bare_loop, files, flags), [1] * workers))  # started, and into the page cache
        start = time.perf_counter()
        list(pool.map(partial(bare_loop, files, flags), [repeats] * workers))
        return workers * repeats * len(files) / (time.perf_counter() - start)


def rate_pack(collection: sources.Collection, transform: Transform, workers: int) -> float:
    clock = time.process_time if workers == 1 else time.perf_counter
    times: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        packing.pack(
            collection,
            Path(folder) / "out",
            transform=transform,
            workers=workers,
            progress=lambda done, _: times.append((clock(), done)),
        )
    (start, first), (end, last) = times[0], times[-1]
    return (last - first) / (end - start)


def repeated(collection: sources.Collection, images: int) -> sources.Collection:
    """The same files over and over under other names, until there are `images`."""
    numbers = list(islice(cycle(range(collection.rows.height)), images))
    rows = collection.rows[numbers].with_columns(image=pl.format("{}/{}", pl.int_range(pl.len()), "image"))
    return replace(collection, rows=split.assign(rows, collection.task)[0])


def compare(title: str, root: Path, images: int, workers: list[int]) -> None:
    cv2.setNumThreads(1)
    transform = plain()
    collection = sources.collect("folders", root)
    files = collection.rows["file"].to_list()
    shapes = [cv2.imread(file, cv2.IMREAD_GRAYSCALE).shape for file in files]
    sides = " × ".join(f"{min(s[axis] for s in shapes)}–{max(s[axis] for s in shapes)}" for axis in (0, 1))
    print(f"\n{title}: {len(files)} files, {sides} pixels, to {transform.size}²")
    print(f"{'':<34}{'images/s':>10}{'× Pillow loop':>15}{'of bare decoding':>18}")
    pillow, pillow_wall = rate(partial(with_pillow, size=transform.size), files)

    def show(name: str, value: float, floor: float | None = None, peer: float = pillow) -> None:
        print(f"{name:<34}{value:>10.1f}{value / peer:>15.2f}" + (f"{value / floor:>18.0%}" if floor else ""))

    show("Pillow loop", pillow)
    show("OpenCV loop, full scale", rate(partial(with_opencv, size=transform.size), files)[0])
    show("Pillow loop, by the clock", pillow_wall, peer=pillow_wall)
    collection = repeated(collection, images)
    for number in workers:
        peer = pillow if number == 1 else pillow_wall
        floor = rate_bare(files, transform, number, images)
        show(f"bare decoding, {number} process{'es' * (number > 1)}", floor, peer=peer)
        ours = rate_pack(collection, transform, number)
        show(f"wetread pack, {number} worker{'s' * (number > 1)}", ours, floor, peer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=960, help="images per measurement of packing")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_large(Path(folder), 24)
        compare("phantoms of a native size", Path(folder), arguments.images, arguments.workers)
    if NATIVE.is_dir():
        compare("Kermany, native", NATIVE, arguments.images, arguments.workers)


if __name__ == "__main__":
    main()
