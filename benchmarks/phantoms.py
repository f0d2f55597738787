"""Phantoms a second, on one thread: made, and written as JPEG and as DICOM.

    python -m benchmarks phantoms [--count 60] [--size 320]

Seconds of the processor, so that other work on the machine counts little; the wall clock stands beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2

from wetread.radiograph import phantom


def rate(work: Callable[[int], object], count: int) -> tuple[float, float]:
    """Return how often `work` runs in a second of the processor, and of the clock."""
    work(0)
    processor, clock = time.process_time(), time.perf_counter()
    for seed in range(1, count + 1):
        work(seed)
    return count / (time.process_time() - processor), count / (time.perf_counter() - clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--size", type=int, default=320)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    size = options.size
    cases: dict[str, Callable[[int], object]] = {
        "PA": lambda seed: phantom.make(seed, size=size),
        "AP": lambda seed: phantom.make(seed, view="AP", size=size),
        "LATERAL": lambda seed: phantom.make(seed, view="LATERAL", size=size),
        "PA, no finding": lambda seed: phantom.make(seed, size=size, findings=[]),
        "PA as JPEG": lambda seed: phantom.jpeg(phantom.make(seed, size=size)),
        "PA as DICOM": lambda seed: phantom.dicom(phantom.make(seed, size=size)),
    }
    print(f"| {size} px, one thread | a second of the processor | a second of the clock |\n|---|---|---|")
    for name, work in cases.items():
        processor, clock = rate(work, options.count)
        print(f"| {name} | {processor:.1f} | {clock:.1f} |", flush=True)


if __name__ == "__main__":
    main()
