"""Whole radiographs from which a lung template is averaged: a packed dataset, or any folder of radiographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.dataset.dataset import INFO, Dataset
from wetread.errors import DatasetError, ReadError
from wetread.radiograph import lungs, pixels
from wetread.radiograph.read import read

_SUFFIXES = frozenset({"", ".dcm", ".dicom", ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"})


def average(folder: Path, *, limit: int = 500, seed: int = 0) -> pixels.Transform:
    """Make the ``"lungs"`` transform whose template is averaged over a collection.

    Parameters
    ----------
    folder : Path
        A dataset packed with the plain transform (its training rows are used), or a folder of frontal radiographs.
    limit : int
        Most radiographs to use, drawn at random.
    seed : int
        Of the draw.

    Raises
    ------
    DatasetError
        When the folder holds no radiographs, or a dataset whose arrays are crops already.
    """
    draw = np.random.default_rng(seed)
    wholes = _packed(folder, limit, draw) if (folder / INFO).is_file() else _files(folder, limit, draw)
    if not wholes:
        raise DatasetError(f"{folder}: no frontal radiographs to average; give a packed dataset or a folder of films")
    return pixels.lungs(lungs.average(wholes))


def _packed(folder: Path, limit: int, draw: np.random.Generator) -> list[NDArray[np.uint8]]:
    dataset = Dataset.open(folder)
    if dataset.transform.name != "plain":
        raise DatasetError(f"{folder}: its arrays are crops already; pack with --transform plain to make a template")
    rows = draw.permutation(dataset.rows("train"))[:limit]
    side = (lungs.SOURCE, lungs.SOURCE)
    return [np.asarray(cv2.resize(dataset.pixels[row], side), dtype=np.uint8) for row in np.sort(rows)]


def _files(folder: Path, limit: int, draw: np.random.Generator) -> list[NDArray[np.uint8]]:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
    wholes: list[NDArray[np.uint8]] = []
    for index in draw.permutation(len(files)):
        if len(wholes) == limit:
            break
        try:
            radiograph = read(files[index], reduce_to=lungs.SOURCE)
        except ReadError:
            continue  # masks, tables and the like lie beside films
        if radiograph.view != "LATERAL" and "lateral" not in files[index].name.lower():
            wholes.append(lungs.squash(radiograph, lungs.SOURCE))
    return wholes
