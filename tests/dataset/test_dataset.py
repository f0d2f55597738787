"""Opening packed datasets: what they say, and what they are when somebody tampered with them."""

import contextlib
import csv
import io
import json
import shutil
from collections import Counter

import cv2
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wetread.dataset import sources, split
from wetread.dataset.dataset import Dataset, canonical, counts, digest
from wetread.dataset.pack import pack
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT
from wetread.radiograph.pixels import plain


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A packed four-class collection of 12 images."""
    from wetread.radiograph import phantom

    root = tmp_path_factory.mktemp("phantoms")
    phantom.write_chexpert(root, 14, seed=3, size=64, label_noise=True)
    collection = sources.collect("chexpert", root, views="all")
    rows, _ = split.assign(collection.rows, collection.task, valid=0.3)
    done = sources.Collection(rows, [], collection.task, collection.about)
    out = tmp_path_factory.mktemp("packed") / "dataset"
    return pack(done, out, transform=plain(16, 16), workers=1), root


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed[0].path, tmp_path / "copy")


def test_it_says_what_the_tables_say(packed):
    dataset, root = packed
    lines = {
        row["Path"].removeprefix("CheXpert-v1.0-small/"): row
        for table in root.rglob("*.csv")
        for row in csv.DictReader(io.StringIO(table.read_text()))
    }
    assert len(dataset) == len(lines) == 14
    assert dataset.labels.shape == (14, 14)
    assert dataset.labels.dtype == np.float32
    for image, values in zip(dataset.manifest["image"], dataset.labels, strict=True):
        expected = [float(lines[image][finding] or "nan") for finding in CHEXPERT.findings]
        np.testing.assert_array_equal(values, np.float32(expected))
    assert dataset.manifest.columns == [*sources.COLUMNS, *CHEXPERT.findings, "height", "width"]
    sizes = {
        image: cv2.imread(str(root / "CheXpert-v1.0-small" / image)).shape[:2] for image in dataset.manifest["image"]
    }
    rows = dataset.manifest.select("image", "height", "width").iter_rows()
    assert {image: (height, width) for image, height, width in rows} == sizes


def test_splits_partition_the_rows(packed):
    dataset, _ = packed
    rows = [dataset.rows(name) for name in split.SPLITS]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(14))
    assert (np.diff(rows[0]) > 0).all()
    with pytest.raises(DatasetError, match="split 'dev'"):
        dataset.rows("dev")


def test_pixels_stay_on_disk_and_cannot_be_written(packed):
    pixels = packed[0].pixels
    assert isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


def test_counts_are_those_of_a_counter(packed):
    dataset, _ = packed
    assert dataset.info["counts"] == counts(dataset.manifest, CHEXPERT)
    for name in split.SPLITS:
        rows = [row for row in dataset.manifest.to_dicts() if row["split"] == name]
        said = dataset.info["counts"]["splits"][name]
        assert (said["images"], said["patients"]) == (len(rows), len({row["patient"] for row in rows}))
        for finding in CHEXPERT.findings:
            found = Counter(row[finding] for row in rows)
            assert list(said["labels"][finding].values()) == [found[1], found[0], found[-1], found[None]]


def test_verify_passes_as_packed_and_fails_when_one_pixel_differs(packed, copy):
    packed[0].verify()
    with (copy / "pixels.npy").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)[0]
        stream.seek(-1, 2)
        stream.write(bytes([last ^ 1]))
    with pytest.raises(DatasetError, match="recorded is"):
        Dataset.open(copy).verify()


def test_the_hash_depends_on_task_transform_manifest_and_pixels_and_on_nothing_else(packed, copy):
    dataset, _ = packed
    assert digest(dataset.task, dataset.transform, dataset.manifest, copy) == dataset.hash
    changed = dataset.manifest.with_columns(split=pl.lit("test"))
    assert digest(dataset.task, dataset.transform, changed, copy) != dataset.hash
    assert digest(dataset.task, plain(16, 32), dataset.manifest, copy) != dataset.hash
    reordered = dataset.manifest.select(reversed(dataset.manifest.columns))
    assert digest(dataset.task, dataset.transform, reordered, copy) == dataset.hash


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_canonical_json_does_not_depend_on_the_order_of_keys(values):
    assert canonical(values) == canonical(dict(reversed(values.items())))
    assert json.loads(canonical(values)) == values


@pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet", "pixels.npy", "transform.npz"])
@pytest.mark.parametrize("data", [None, b"", b"{}", b"[1]", bytes(100), b"PAR1" + bytes(50) + b"PAR1"])
def test_a_missing_or_broken_file_is_one_line_that_names_the_dataset(copy, name, data):
    if data is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(data)
    with pytest.raises(DatasetError, match=str(copy)) as error:
        Dataset.open(copy)
    assert "\n" not in str(error.value)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_hostile_bytes_anywhere_never_raise_anything_else(packed, tmp_path, data):
    folder = tmp_path / "hostile"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(packed[0].path, folder)
    file = folder / data.draw(st.sampled_from(["dataset.json", "manifest.parquet", "pixels.npy", "transform.npz"]))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    file.write_bytes(content)
    with contextlib.suppress(DatasetError):
        Dataset.open(folder)


def rewrite(folder, **changes):
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema_version = 99"),
        ({"sha256": None}, "sha256 is missing"),
        ({"task": {"name": "x", "findings": []}}, "findings must be distinct and not empty"),
        ({"task": {"name": "x", "findings": ["Absent"]}}, "no column 'Absent'"),
        ({"task": {"name": "x", "findings": ["Edema", "Fracture"], "exclusive": True}}, "is exclusive"),
    ],
)
def test_a_dataset_json_that_does_not_fit_is_an_error(copy, changes, message):
    rewrite(copy, **changes)
    with pytest.raises(DatasetError, match=message):
        Dataset.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.head(5), r"uint8 \[14, 16, 16\], but manifest and transform ask for uint8 \[5, 16, 16\]"),
        (lambda m: m.drop("patient"), "no column 'patient'"),
        (lambda m: m.drop("Edema"), "no column 'Edema'"),
        (lambda m: m.with_columns(split=pl.lit("dev")), "split 'dev'"),
        (lambda m: m.with_columns(Edema=pl.lit(7, pl.Int8)), "'Edema' = 7"),
        (lambda m: m.with_columns(Edema=pl.lit("yes")), "'Edema'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_an_error(copy, change, message):
    change(pl.read_parquet(copy / "manifest.parquet")).write_parquet(copy / "manifest.parquet")
    with pytest.raises(DatasetError, match=message):
        Dataset.open(copy)


def test_pixels_of_another_kind_are_an_error(copy):
    np.save(copy / "pixels.npy", np.zeros((14, 16, 16), np.float32))
    with pytest.raises(DatasetError, match="float32"):
        Dataset.open(copy)
    np.save(copy / "pixels.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DatasetError, match="not a packed dataset"):
        Dataset.open(copy)


def test_a_folder_that_is_no_dataset_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(DatasetError, match="make one with `wetread pack`"):
        Dataset.open(tmp_path)
