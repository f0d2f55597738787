"""A synthetic department: who arrives, and when.

Arrivals are a Poisson process, as in the queueing model of a reading room; its rate may follow the
hour of the day. Patients are phantoms, or the files of a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wetread.errors import ConfigError


@dataclass(frozen=True)
class Patient:
    """One arrival: the files of one study, as a modality would send them.

    Attributes
    ----------
    name : str
        What to call the arrival in messages.
    files : tuple of (str, bytes)
        File names and contents.
    """

    name: str
    files: tuple[tuple[str, bytes], ...]


def gaps(
    per_minute: float, *, seed: int, hourly: Sequence[float] | None = None, start_hour: float = 0.0
) -> Iterator[float]:
    """Yield the waiting times of a Poisson process, in s.

    Parameters
    ----------
    per_minute : float
        Mean rate over a day, > 0.
    seed : int
        The same seed gives the same times.
    hourly : sequence of 24 floats, optional
        Relative rate in each hour of the day, >= 0 and not all 0. By default the rate is constant.
    start_hour : float
        Hour of the day at which the first wait begins, 0 to 24.

    Raises
    ------
    ConfigError
        For a rate that is not positive, or weights that are not 24 numbers >= 0.

    Notes
    -----
    Rates that change are drawn by thinning (Lewis and Shedler 1979): arrivals at the highest rate,
    each kept with the probability that its hour has.
    """
    if not (np.isfinite(per_minute) and per_minute > 0):
        raise ConfigError(f"rate = {per_minute}: arrivals per minute must be more than 0")
    weights = np.asarray([1.0] * 24 if hourly is None else hourly, dtype=float)
    if weights.shape != (24,) or not np.all(np.isfinite(weights)) or weights.min() < 0 or weights.max() == 0:
        raise ConfigError(f"hourly: 24 weights >= 0 that are not all 0 are needed, got {list(weights)}")
    keep = weights / weights.max()
    fastest = per_minute / 60 / weights.mean() * weights.max()
    return _thinned(np.random.default_rng(seed), fastest, keep, start_hour * 3600)


def _thinned(rng: np.random.Generator, fastest: float, keep: np.ndarray, now: float) -> Iterator[float]:
    last = now
    while True:
        now += rng.exponential(1 / fastest)
        if rng.random() < keep[int(now // 3600) % 24]:
            yield now - last
            last = now


def folder(path: Path) -> Iterator[Patient]:
    """Yield one patient a file, in order of name, over and over.

    Raises
    ------
    ConfigError
        When the folder holds no file.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise ConfigError(f"{path}: no files in this folder; give one that holds radiographs")
    return _repeated(files)


def _repeated(files: list[Path]) -> Iterator[Patient]:
    while True:
        for file in files:
            yield Patient(file.name, ((file.name, file.read_bytes()),))
