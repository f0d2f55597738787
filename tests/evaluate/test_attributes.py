import numpy as np
import polars as pl
import pytest
from squares import squares, write_dataset

from wetread.errors import WetreadError
from wetread.evaluate import attributes
from wetread.findings import Task

TASK = Task("t", ("Pneumothorax", "Support Devices"))


@pytest.fixture
def dataset(tmp_path):
    pixels, side = squares(60, 0)
    labels = np.stack([side, np.arange(60) % 3 == 0], 1).astype(float)
    labels[1, 1], labels[2, 1] = -1, np.nan
    return write_dataset(tmp_path / "data", TASK, labels, pixels)


ROWS = np.arange(60)


def test_age_bands_at_their_borders():
    ages = [0, 4.9, 5, 17, 18, 39.5, 40, 60, 79, 80, 101, np.nan]
    assert attributes.age_bands(ages).tolist() == [
        "0-4", "0-4", "5-17", "5-17", "18-39", "18-39", "40-59", "60-79", "60-79", "80+", "80+", "",
    ]  # fmt: skip


def test_thirds_hold_a_third_each():
    values = np.random.default_rng(0).normal(size=300)
    found = attributes.thirds(np.r_[values, np.nan])
    assert [(found == name).sum() for name in ("low", "middle", "high", "")] == [100, 100, 100, 1]
    assert values[found[:300] == "low"].max() < values[found[:300] == "high"].min()
    assert attributes.thirds([np.nan]).tolist() == [""]


def test_quality_measures_what_it_says():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (32, 32)).astype(np.uint8)
    ramp = np.tile(np.linspace(0, 255, 32), (32, 1)).astype(np.uint8)
    found = attributes.quality(np.stack([noise, ramp, ramp // 2, np.full((32, 32), 7, np.uint8)]))
    assert found["exposure"] == pytest.approx([noise.mean(), ramp.mean(), (ramp // 2).mean(), 7])
    assert found["contrast"][1] == pytest.approx(2 * found["contrast"][2], rel=0.05)
    assert found["sharpness"][0] > 10 * found["sharpness"][1]
    assert found["sharpness"][1] == pytest.approx(found["sharpness"][2], rel=0.5)  # contrast does not count
    assert found["sharpness"][3] == found["contrast"][3] == 0


def test_the_usual_groups_of_a_dataset(dataset):
    found = attributes.of(dataset, ROWS)
    assert set(found) == {"sex", "view", "source", "age", "Support Devices", *attributes.QUALITY}
    assert set(found["age"]) == {"40-59"}
    assert found["Support Devices"][:4].tolist() == ["present", "", "", "present"]


def test_further_columns_are_groups_of_their_own_and_sizes_are_known(dataset):
    more = dataset.manifest.with_columns(
        ethnicity=pl.Series(["x", "y", None] * 20),
        width=pl.Series([1024, 2048] * 30),
        height=pl.Series([1024, 2500] * 30),
        dose=pl.Series(np.linspace(0, 1, 60)),
        note=pl.Series([f"n{i}" for i in range(60)]),
    )
    object.__setattr__(dataset, "manifest", more)
    found = attributes.known(dataset, ROWS)
    assert found["ethnicity"][:3].tolist() == ["x", "y", ""]
    assert set(found["image size"]) == {"1024 x 1024", "2048 x 2500"}
    assert set(found["dose"]) == {"low", "middle", "high"}
    assert "image size" not in attributes.of(dataset, ROWS)
    assert "note" not in found  # sixty texts are no groups
    object.__setattr__(dataset, "manifest", more.with_columns(width=pl.Series(range(60)), note=pl.lit("n")))
    assert set(attributes.known(dataset, ROWS)["image size"]) == {"low", "middle", "high"}


def test_any_column_by_name(dataset):
    assert set(attributes.column(dataset, ROWS, "Pneumothorax")) == {"present", "absent"}
    assert set(attributes.column(dataset, ROWS, "age_years")) == {"40-59"}
    with pytest.raises(WetreadError, match="no column 'shoe'"):
        attributes.column(dataset, ROWS, "shoe")
    with pytest.raises(WetreadError, match="image has 60 values"):
        attributes.column(dataset, ROWS, "image")
