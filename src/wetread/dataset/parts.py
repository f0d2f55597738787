"""Pixels that lie in several packed datasets, seen as one array: nothing is copied.

A joined dataset (`wetread.dataset.join`) has two files in place of ``pixels.npy``: ``parts.json``, where its parts are
and which hash each has, and ``places.npy``, in which part and row each of its images is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from wetread.errors import DatasetError

PARTS, PLACES = "parts.json", "places.npy"


@dataclass(frozen=True, eq=False)
class Gathered:
    """Rows of several arrays as one array [N, ...], read when they are asked for.

    Attributes
    ----------
    arrays : tuple of uint8 array, shape [M, ...]
        May be memory-mapped; all alike but for their length.
    places : int64 array, shape [N, 2]
        Number of the array, and row in it.
    """

    arrays: tuple[NDArray[np.uint8], ...]
    places: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return (len(self.places), *self.arrays[0].shape[1:])

    @property
    def ndim(self) -> int:
        """As of an array."""
        return self.arrays[0].ndim

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """Bytes."""
        return self.arrays[0].dtype

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        places = self.places[key]
        flat = places.reshape(-1, 2)
        found = np.empty((len(flat), *self.shape[1:]), np.uint8)
        for number in np.unique(flat[:, 0]):
            here = flat[:, 0] == number
            found[here] = self.arrays[number][flat[here, 1]]
        return found.reshape(*places.shape[:-1], *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)


def is_joined(folder: Path) -> bool:
    """Return whether the pixels of a dataset lie in other datasets."""
    return (folder / PARTS).is_file()


def write(folder: Path, datasets: Sequence[tuple[Path, str]], places: NDArray[np.int64]) -> None:
    """Write where the images of a joined dataset are.

    Parameters
    ----------
    datasets : sequence of (Path, str)
        Folder and hash of each part. Folders are kept as seen from `folder`, so that all may move together.
    places : int64 array, shape [N, 2]
    """
    parts = [{"folder": str(_from(folder, part)), "sha256": sha256} for part, sha256 in datasets]
    (folder / PARTS).write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    np.save(folder / PLACES, places.astype(np.int64))


def read(folder: Path) -> tuple[list[tuple[Path, str]], NDArray[np.int64]]:
    """Return folder and hash of each part, and the places of the images.

    Raises
    ------
    DatasetError
        When a file is damaged, or a part is gone or is another dataset by now.
    """
    try:
        said = json.loads((folder / PARTS).read_text(encoding="utf-8"))
        found = [(Path(folder, str(part["folder"])).resolve(), str(part["sha256"])) for part in said]
        places = np.load(folder / PLACES, allow_pickle=False)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, EOFError) as error:
        raise DatasetError(f"{folder}: {PARTS} or {PLACES} is damaged ({error}); join the datasets again") from None
    if not found or places.dtype != np.int64 or places.ndim != 2 or places.shape[1] != 2:
        raise DatasetError(f"{folder}: {PLACES} is {places.dtype} {list(places.shape)}; join the datasets again")
    for part, sha256 in found:
        try:
            now = json.loads((part / "dataset.json").read_text(encoding="utf-8"))["sha256"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise DatasetError(
                f"{folder}: its part {part} is not there; put it back, or join the datasets again"
            ) from None
        if now != sha256:
            raise DatasetError(f"{folder}: its part {part} has hash {now}, not {sha256}; join the datasets again")
    return found, places


def pixels(folder: Path, name: str) -> NDArray[np.uint8] | None:
    """Return the array of this name over all parts of a joined dataset; None where a part has none.

    Raises
    ------
    DatasetError
        When a part is not what it was, or a place lies outside of it.
    """
    found, places = read(folder)
    files = [part / name for part, _ in found]
    if not all(file.is_file() for file in files):
        return None
    arrays = tuple(np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
    if places.size and (places.min() < 0 or places[:, 0].max() >= len(arrays)):
        raise DatasetError(f"{folder}: {PLACES} names parts that there are not; join the datasets again")
    for number, array in enumerate(arrays):
        rows = places[places[:, 0] == number, 1]
        if (
            array.dtype != np.uint8
            or array.shape[1:] != arrays[0].shape[1:]
            or (rows.size and rows.max() >= len(array))
        ):
            raise DatasetError(f"{folder}: {files[number]} does not fit; join the datasets again")
    return cast(NDArray[np.uint8], Gathered(arrays, places))


def _from(folder: Path, part: Path) -> Path:
    """Return the path of a part as seen from a folder."""
    return Path(os.path.relpath(part.resolve(), folder.resolve()))
