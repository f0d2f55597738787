"""From native-size files to what a model sees: beside a Pillow loop, and beside decoding alone; one thread.

`python benchmarks/pixels.py [--repeat N]` (needs ../shared/data; one thread at a time).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wetread.errors import ReadError
from wetread.radiograph.pixels import Transform, lungs, plain
from wetread.radiograph.read import read

DATA = Path(__file__).parents[2] / "shared" / "data"


def milliseconds(work: Callable[[bytes], object], files: list[bytes], repeat: int) -> float:
    """Return the mean over the files of each file's fastest run in ms, other processes that decode included."""
    best = np.full(len(files), np.inf)
    for _ in range(repeat):
        for index, data in enumerate(files):
            start = time.perf_counter()
            work(data)
            best[index] = min(best[index], time.perf_counter() - start)
    return 1000 * float(best.mean())


def pillow(data: bytes) -> np.ndarray:
    """Do what most training scripts do."""
    return np.asarray(Image.open(BytesIO(data)).convert("L").resize((224, 224)))


def bare(flag: int) -> Callable[[bytes], object]:
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flag)


def seen_by(transform: Transform) -> Callable[[bytes], object]:
    return lambda data: transform(transform.read(data))


def as_jpeg(file: Path) -> bytes:
    stream = BytesIO()
    Image.open(file).convert("L").save(stream, "JPEG", quality=90)
    return stream.getvalue()


def pictures(repeat: int) -> None:
    kermany = [f.read_bytes() for f in sorted((DATA / "native/kermany").rglob("*.jpeg"))]
    largest = sorted(kermany, key=lambda data: -Image.open(BytesIO(data)).size[0] * Image.open(BytesIO(data)).size[1])
    nih = sorted((DATA / "native/nih").iterdir())
    groups = {
        "kermany, as published": kermany,
        "kermany, the 10 largest": largest[:10],
        "nih 1024², PNG": [f.read_bytes() for f in nih],
        "nih 1024², as JPEG": [as_jpeg(f) for f in nih],
    }
    template = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (224, 224), dtype=np.uint8), (0, 0), 9)
    ways: dict[str, Callable[[bytes], object]] = {
        "Pillow": pillow,
        "OpenCV, bare decoding": bare(cv2.IMREAD_GRAYSCALE),
        "OpenCV, bare decoding at 1/4": bare(cv2.IMREAD_REDUCED_GRAYSCALE_4),
        "plain, full decoding": seen_by(Transform("plain", reduced=False)),
        "plain": seen_by(plain()),
        "lungs": seen_by(lungs(np.asarray(template, np.uint8), min_match=-1)),
    }
    print(f"| ms an image (× Pillow) | {' | '.join(groups)} |\n|---|{'---|' * len(groups)}")
    first: list[float] = []
    for name, work in ways.items():
        times = [milliseconds(work, files, repeat) for files in groups.values()]
        first = first or times
        cells = " | ".join(f"{t:.1f} ({f / t:.1f})" for t, f in zip(times, first, strict=True))
        print(f"| {name} | {cells} |")
    for name, files in groups.items():
        sides = [Image.open(BytesIO(data)).size for data in files]
        widths, heights = zip(*sides, strict=True)
        print(f"{name}: {len(files)} files, median {int(np.median(widths))}×{int(np.median(heights))}")


def codecs(repeat: int) -> None:
    print("\n| DICOM file | pixels | read, ms | what a model sees, ms |\n|---|---|---|---|")
    transform = plain()
    for file in sorted((DATA / "dicom").iterdir()):
        data = file.read_bytes()
        try:
            film = read(data)
        except ReadError as error:
            print(f"| {file.name} | {error} | | |")
            continue
        times = [milliseconds(work, [data], repeat) for work in (read, seen_by(transform))]
        print(f"| {file.name} | {film.full_size[1]}×{film.full_size[0]} | {times[0]:.1f} | {times[1]:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each file; the fastest counts")
    repeat = parser.parse_args().repeat
    cv2.setNumThreads(1)
    pictures(repeat)
    codecs(repeat)
