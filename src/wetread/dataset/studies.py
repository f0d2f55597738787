"""A packed dataset seen study by study: each is one wide picture, the frontal view left, the lateral right.

A view that a study lacks is black. So whatever takes pictures takes studies, and only what looks at the views
one by one needs `apart`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wetread.dataset.dataset import Dataset
from wetread.errors import DatasetError
from wetread.findings import ABSENT, PRESENT, UNCERTAIN

_ORDER = {"PA": 0, "AP": 1, None: 2}  # the frontal view to take where a study has several


@dataclass(frozen=True, eq=False)
class WidePixels:
    """Pictures [N, S, V S], put together from those of the images when they are asked for.

    Attributes
    ----------
    images : uint8 array, shape [M, S, S]
    rows : int64 array, shape [N, V]
        Row of each view of each study, of the frontal and of the lateral one, say; -1 where there is none.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of studies, height and width."""
        side = self.images.shape[1]
        return len(self.rows), side, self.rows.shape[1] * side

    @property
    def ndim(self) -> int:
        """Three."""
        return 3

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        rows = self.rows[key]
        side = self.images.shape[1]
        views = np.zeros((*rows.shape, side, side), np.uint8)
        there = rows >= 0
        views[there] = self.images[rows[there]]
        return np.concatenate([views[..., view, :, :] for view in range(rows.shape[-1])], -1)


def studies(dataset: Dataset) -> Dataset:
    """Return a dataset whose rows are studies.

    Of several frontal views the first PA counts, else the first AP, else the first that names no view; of several
    lateral ones the first. A finding is present in a study when it is in any of its images, else uncertain when it is
    in any, else absent when it is in any. The column `view` says which views a study has: FRONTAL, LATERAL or both.

    Parameters
    ----------
    dataset : Dataset
        Packed with ``--views all``.

    Raises
    ------
    DatasetError
        When no study has both views.
    """
    found = _images(dataset)
    pairs = np.full((len(found), 2), -1, np.int64)
    for number, images in enumerate(found):
        frontal = [(_ORDER.get(view, 2), row) for row, view in images if view != "LATERAL"]
        lateral = [row for row, view in images if view == "LATERAL"]
        pairs[number] = min(frontal)[1] if frontal else -1, lateral[0] if lateral else -1
    both = (pairs >= 0).all(1)
    if not both.any():
        raise DatasetError(f"{dataset.path}: no study has a frontal and a lateral view; pack it with --views all")
    named = np.where(both, "FRONTAL+LATERAL", np.where(pairs[:, 0] >= 0, "FRONTAL", "LATERAL"))
    return _wide(dataset, found, pairs, named.tolist())


def sheets(dataset: Dataset, views: Sequence[str]) -> Dataset:
    """Return a dataset whose rows are studies, each with all its images of these views side by side, black behind them.

    For models of images, whose results become the study's. Images that name no view count too; a study that has
    none is left out. Labels are those of `studies`.

    Raises
    ------
    DatasetError
        When there is no such image.
    """
    found = [[(row, view) for row, view in images if view is None or view in views] for images in _images(dataset)]
    found = [images for images in found if images]
    if not found:
        raise DatasetError(f"{dataset.path}: no image of the model's views ({', '.join(views)})")
    rows = np.full((len(found), max(2, *map(len, found))), -1, np.int64)
    for number, images in enumerate(found):
        rows[number, : len(images)] = [row for row, _ in images]
    named = ["+".join(dict.fromkeys(view or "unknown" for _, view in images)) for images in found]
    return _wide(dataset, found, rows, named)


def _images(dataset: Dataset) -> list[list[tuple[int, str | None]]]:
    """Return the rows and views of the images of each study, in order of its first image."""
    found: dict[tuple[str, str], list[tuple[int, str | None]]] = {}
    rows = dataset.manifest.with_row_index("row").select("row", "patient", "study", "view")
    for row, patient, study, view in rows.iter_rows():
        found.setdefault((patient, study), []).append((row, view))
    return list(found.values())


def _wide(
    dataset: Dataset, found: list[list[tuple[int, str | None]]], rows: NDArray[np.int64], views: list[str]
) -> Dataset:
    labels = np.full((len(found), len(dataset.task.findings)), np.nan, np.float32)
    for number, images in enumerate(found):
        said = dataset.labels[[row for row, _ in images]]
        for value in (ABSENT, UNCERTAIN, PRESENT):  # the last that is said counts
            labels[number, (said == value).any(0)] = value
    manifest = dataset.manifest[[next(int(row) for row in study if row >= 0) for study in rows]].with_columns(
        pl.Series("view", views),
        *(
            pl.Series(finding, [None if np.isnan(v) else int(v) for v in labels[:, column]], dtype=pl.Int8)
            for column, finding in enumerate(dataset.task.findings)
        ),
    )
    pixels = cast(NDArray[np.uint8], WidePixels(dataset.pixels, rows))
    return replace(dataset, manifest=manifest, pixels=pixels, labels=labels, masks=None)


def wide(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the maps [B, F, h, 2 w] of wide pictures of those of their views [B, 2, F, h, w]; others as they are."""
    return np.concatenate([maps[:, 0], maps[:, 1]], 3) if maps.ndim == 5 else maps


def apart(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the views [B, V, S, S] of wide pictures [B, 1, S, V S]; anything else as it is."""
    views = pixels.shape[3] // pixels.shape[2]
    if pixels.shape[1] > 1 or views < 2:
        return pixels
    return np.ascontiguousarray(np.concatenate(np.split(pixels, views, 3), 1))
