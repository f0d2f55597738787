"""What an image is besides its findings: sex, age band, view, source, size, quality, any column of the manifest.

Slices compare a model between these groups, and shortcuts ask whether they give a finding away.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from wetread.dataset.dataset import Dataset
from wetread.dataset.tables import COLUMNS
from wetread.errors import WetreadError
from wetread.evaluate.metrics import FloatArray

Names = NDArray[np.str_]

AGE_BANDS = ((0, "0-4"), (5, "5-17"), (18, "18-39"), (40, "40-59"), (60, "60-79"), (80, "80+"))
"""First year of each band, and its name."""

DEVICES = "Support Devices"
"""A chest tube is a treatment: with it a pneumothorax is known, and a model may have learnt the tube (Oakden-Rayner
and others 2020). No collection labels tubes alone, so this finding stands for them."""

MOST_VALUES = 20
QUALITY = ("exposure", "contrast", "sharpness")
_THIRDS = ("low", "middle", "high")


def age_bands(years: ArrayLike) -> Names:
    """Return the band of each age in years; ``""`` where it is not known (NaN)."""
    age = np.asarray(years, dtype=np.float64)
    names = np.array([name for _, name in AGE_BANDS])
    place = np.searchsorted([first for first, _ in AGE_BANDS], np.nan_to_num(age, nan=-1.0), side="right") - 1
    return np.where(np.isnan(age) | (place < 0), "", names[np.maximum(place, 0)])


def thirds(values: ArrayLike) -> Names:
    """Return ``low``, ``middle`` or ``high`` by the tertiles of the values; ``""`` for NaN."""
    x = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(x)
    if not known.any():
        return np.full(x.shape, "", dtype="<U6")
    cut = np.quantile(x[known], [1 / 3, 2 / 3])
    return np.where(known, np.array(_THIRDS)[np.searchsorted(cut, np.nan_to_num(x), side="left")], "")


def quality(pixels: NDArray[np.uint8], rows: NDArray[np.int64] | None = None) -> dict[str, FloatArray]:
    """Measure the pictures as a model sees them.

    Parameters
    ----------
    pixels : uint8 array, shape [N, H, W]
        May be memory-mapped: one image is in memory at a time.
    rows : int64 [M], optional
        Which of them; by default all.

    Returns
    -------
    dict of str to float64 [M]
        ``exposure``: mean grey value, 0 to 255. ``contrast``: 5th to 95th percentile, 0 to 255. ``sharpness``: variance
        of the Laplacian over that of the picture, so that contrast does not count twice (0 for a constant picture).
    """
    chosen = np.arange(len(pixels)) if rows is None else rows
    result = np.zeros((3, len(chosen)))
    for n, row in enumerate(chosen):
        image = np.asarray(pixels[row])
        low, high = np.percentile(image, [5, 95])
        variance = float(image.var())
        edges = float(cv2.Laplacian(np.ascontiguousarray(image), cv2.CV_32F).var())
        result[:, n] = image.mean(), high - low, edges / variance if variance else 0.0
    return dict(zip(QUALITY, result, strict=True))


def order(value: str) -> tuple[int, str]:
    """Return a key by which groups are listed: bands and thirds by size, others by name."""
    known = [name for _, name in AGE_BANDS] + list(_THIRDS)
    return (known.index(value), "") if value in known else (len(known), value)


def known(dataset: Dataset, rows: NDArray[np.int64]) -> dict[str, Names]:
    """Return what the manifest says of each image: sex, age band, view, source, image size, where it says it.

    Returns
    -------
    dict of str to array of str [len(rows)]
        ``""`` where unknown; a column of which nothing is known is left out. Columns beyond the usual ones
        (ethnicity, hospital ...) follow.
    """
    manifest = dataset.manifest[rows]
    found: dict[str, Names] = {
        name: _text(manifest, name) for name in ("sex", "view", "source") if name in manifest.columns
    }
    if "age_years" in manifest.columns:
        found["age"] = age_bands(manifest["age_years"].cast(pl.Float64).fill_null(float("nan")).to_numpy())
    if {"height", "width"} <= set(manifest.columns):
        found["image size"] = _sizes(manifest)
    usual = {*COLUMNS, "height", "width", *dataset.task.findings}
    for name in manifest.columns:
        few = manifest[name].drop_nulls().n_unique() <= MOST_VALUES
        if name not in usual and (few or manifest.schema[name].is_numeric()):  # free text makes no groups
            found[name] = column(dataset, rows, name)
    return {name: values for name, values in found.items() if (values != "").any()}


def column(dataset: Dataset, rows: NDArray[np.int64], name: str) -> Names:
    """Return any column of the manifest as groups: numbers with many values in thirds, findings as present or absent.

    Raises
    ------
    WetreadError
        When there is no such column, or it holds too many different texts to be groups.
    """
    manifest = dataset.manifest[rows]
    if name not in manifest.columns:
        raise WetreadError(f"{dataset.path}: no column {name!r}; it has {', '.join(manifest.columns)}")
    if name in dataset.task.findings:
        words = {1: "present", 0: "absent"}
        return np.array([words.get(value, "") for value in manifest[name]])
    if name == "age_years":
        return age_bands(manifest[name].cast(pl.Float64).fill_null(float("nan")).to_numpy())
    different = manifest[name].drop_nulls().n_unique()
    if different > MOST_VALUES:
        if manifest.schema[name].is_numeric():
            return thirds(manifest[name].cast(pl.Float64).fill_null(float("nan")).to_numpy())
        raise WetreadError(
            f"{dataset.path}: {name} has {different} values; a slice needs {MOST_VALUES} or fewer groups"
        )
    return _text(manifest, name)


def of(dataset: Dataset, rows: NDArray[np.int64], columns: Sequence[str] = ()) -> dict[str, Names]:
    """Return the groups by which images are sliced: what is known, devices, picture quality, and the named columns."""
    found = {name: values for name, values in known(dataset, rows).items() if name != "image size"}
    if DEVICES in dataset.manifest.columns:
        found[DEVICES] = column(dataset, rows, DEVICES)
    found |= {name: thirds(values) for name, values in quality(dataset.pixels, rows).items()}
    return found | {name: column(dataset, rows, name) for name in columns}


def _sizes(manifest: pl.DataFrame) -> Names:
    """Return width x height, or thirds of the area where there are too many different sizes to be groups."""
    sizes = manifest.select(pl.format("{} x {}", "width", "height").fill_null("")).to_series()
    if sizes.n_unique() <= MOST_VALUES:
        return sizes.to_numpy().astype(str)
    area = manifest["width"].cast(pl.Float64) * manifest["height"].cast(pl.Float64)
    return thirds(area.fill_null(float("nan")).to_numpy())


def _text(manifest: pl.DataFrame, name: str) -> Names:
    return manifest[name].cast(pl.String).fill_null("").to_numpy().astype(str)
