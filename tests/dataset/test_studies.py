from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from squares import SIDE, write_dataset

from wetread.dataset.studies import apart, studies, wide
from wetread.errors import DatasetError
from wetread.findings import NIH

ROWS = [  # patient, study, view
    ("a", "1", "AP"),
    ("a", "1", "LATERAL"),
    ("a", "1", "PA"),
    ("a", "2", None),
    ("b", "1", "LATERAL"),
    ("c", "1", "PA"),
    ("c", "1", "LATERAL"),
    ("c", "1", "LATERAL"),
]
WANTED = {("a", "1"): (2, 1), ("a", "2"): (3, None), ("b", "1"): (None, 4), ("c", "1"): (5, 6)}


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (len(ROWS), SIDE, SIDE)).astype(np.uint8)
    labels = np.full((len(ROWS), 14), np.nan, np.float32)
    labels[:3, 0] = [0, 1, -1]
    labels[:3, 1] = [0, -1, np.nan]
    labels[:3, 2] = [np.nan, 0, np.nan]
    labels[3:5, 0] = [0, 1]
    made = write_dataset(tmp_path / "d", NIH, labels, pixels)
    patient, study, view = zip(*ROWS, strict=True)
    columns = [pl.Series("patient", patient), pl.Series("study", study), pl.Series("view", view)]
    split = pl.Series("split", ["valid" if p == "c" else "train" for p in patient])
    return replace(made, manifest=made.manifest.with_columns(*columns, split))


def test_each_study_has_its_best_frontal_and_first_lateral_view(dataset):
    found = studies(dataset)
    keys = list(zip(found.manifest["patient"], found.manifest["study"], strict=True))
    assert sorted(keys) == sorted(WANTED)
    views = apart(found.pixels[np.arange(len(found))][:, None])
    for key, pair in zip(keys, views, strict=True):
        for picture, row in zip(pair, WANTED[key], strict=True):
            expected = np.zeros((SIDE, SIDE), np.uint8) if row is None else dataset.pixels[row]
            np.testing.assert_array_equal(picture, expected)
    assert dict(zip(keys, found.manifest["view"], strict=True)) == {
        ("a", "1"): "FRONTAL+LATERAL",
        ("a", "2"): "FRONTAL",
        ("b", "1"): "LATERAL",
        ("c", "1"): "FRONTAL+LATERAL",
    }
    assert [keys[row] for row in found.rows("valid")] == [("c", "1")]
    assert found.hash == dataset.hash


def test_a_study_has_what_any_of_its_images_has(dataset):
    found = studies(dataset)
    row = list(zip(found.manifest["patient"], found.manifest["study"], strict=True)).index(("a", "1"))
    np.testing.assert_array_equal(found.labels[row][:4], [1, -1, 0, np.nan])
    assert found.manifest[row, NIH.findings[0]] == 1
    assert found.manifest[row, NIH.findings[3]] is None


def test_one_row_many_rows_and_a_slice_are_the_same_pictures(dataset):
    pixels = studies(dataset).pixels
    assert pixels.shape == (4, SIDE, 2 * SIDE) == (len(pixels), *pixels[0].shape)
    np.testing.assert_array_equal(np.stack([pixels[i] for i in range(4)]), pixels[:])
    np.testing.assert_array_equal(pixels[np.array([2, 0])], pixels[:][[2, 0]])


def test_maps_of_views_lie_as_their_pictures(dataset):
    pixels = studies(dataset).pixels[:]
    views = apart(pixels[:, None])
    np.testing.assert_array_equal(wide(views[:, :, None].astype(np.float32))[:, 0], pixels)
    images = pixels[:, None, :, :SIDE]
    assert apart(images) is images


def test_a_dataset_without_pairs_is_refused(dataset):
    frontal = replace(dataset, manifest=dataset.manifest.with_columns(view=pl.lit("PA")))
    with pytest.raises(DatasetError, match="pack it with --views all"):
        studies(frontal)
