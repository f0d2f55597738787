"""Datasets joined to one: the same images, where they lie or copied, and nobody on two sides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from squares import squares, write_dataset
from typer.testing import CliRunner

from wetread.cli import app
from wetread.dataset import join as joining
from wetread.dataset import parts
from wetread.dataset.dataset import Dataset
from wetread.dataset.join import copy, draft, join
from wetread.errors import DatasetError
from wetread.findings import Task

TASK = Task("sides", ("Left", "Right"))


def made(folder: Path, count: int, seed: int, **columns: list[str]) -> Dataset:
    """Write a dataset of squares; `columns` take the place of those of the manifest."""
    pixels, side = squares(count, seed)
    dataset = write_dataset(folder, TASK, np.stack([side == 0, side == 1], 1).astype(np.float32), pixels)
    names = {"image": [f"{folder.name}-{n}.png" for n in range(count)], "source": [folder.name] * count} | columns
    manifest = dataset.manifest.with_columns(pl.Series(name, values) for name, values in names.items())
    manifest.write_parquet(folder / "manifest.parquet")
    info = json.loads((folder / "dataset.json").read_text())
    info["sha256"] = joining.digest(TASK, dataset.transform, manifest, folder)
    (folder / "dataset.json").write_text(json.dumps(info))
    return Dataset.open(folder)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Dataset, Dataset]:
    return made(tmp_path / "base", 40, 0), made(tmp_path / "new", 12, 1)


def test_a_joined_dataset_holds_what_its_parts_hold(pair: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    both = join(pair, tmp_path / "deep" / "both", parent="abc")
    assert len(both) == 52
    both.verify()
    assert both.info["collection"]["parent"] == "abc"
    at = {image: row for row, image in enumerate(both.manifest["image"])}
    for dataset in pair:
        rows = [at[image] for image in dataset.manifest["image"]]
        np.testing.assert_array_equal(both.pixels[rows], dataset.pixels)
        np.testing.assert_array_equal(both.labels[rows], dataset.labels)
        assert both.manifest["split"][rows].to_list() == dataset.manifest["split"].to_list()
    assert sum(file.stat().st_size for file in both.path.iterdir()) < pair[0].pixels.nbytes / 2
    assert both.manifest["patient"].n_unique() == 52  # "p1" of two collections is two people
    everything = np.asarray(both.pixels)
    for key in (3, slice(2, 9), [5, 1], np.array([7]), np.arange(52) > 40, (np.array([4, 2]), None)):
        np.testing.assert_array_equal(both.pixels[key], everything[key])
    assert (both.pixels.shape, both.pixels.ndim, len(both.pixels)) == (everything.shape, 3, 52)
    again = join(pair, tmp_path / "again")
    assert again.hash == both.hash


def test_a_joined_dataset_can_be_joined_and_moved_with_its_parts(pair: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    both = join(pair, tmp_path / "both")
    three = join([both, made(tmp_path / "third", 5, 2)], tmp_path / "three")
    assert len(json.loads((three.path / parts.PARTS).read_text())) == 3
    assert "base/p0" in three.manifest["patient"].to_list()
    shutil.move(tmp_path, moved := tmp_path.with_name(f"{tmp_path.name}-moved"))
    try:
        found = Dataset.open(moved / "three")
        found.verify()
        assert len(found) == 57
    finally:
        shutil.rmtree(moved)


def test_replay_keeps_a_share_of_the_training_patients_and_all_who_judge(
    pair: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    half, less = (join(pair, tmp_path / name, replay=share) for name, share in (("half", 0.5), ("less", 0.2)))
    count = [d.manifest.filter(source="base")["split"].value_counts().rows_by_key("split") for d in (half, less)]
    whole = pair[0].manifest["split"].value_counts().rows_by_key("split")
    assert [c["valid"] for c in count] == [whole["valid"]] * 2
    assert (
        set(less.manifest["image"])
        < set(half.manifest["image"])
        < {*pair[0].manifest["image"], *pair[1].manifest["image"]}
    )
    assert half.manifest.filter(source="new").height == 12


def test_what_does_not_fit_is_named(pair: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    base, new = pair
    torn = made(tmp_path / "torn", 4, 3, source=["base"] * 4, split=["test"] * 4)
    with pytest.raises(DatasetError, match="patient 'p0' is in test and valid"):
        join([base, torn], tmp_path / "out")
    with pytest.raises(DatasetError, match=r"'new-0\.png' is in two"):
        join([new, new], tmp_path / "out")
    for share in (0, 1.5, float("nan")):
        with pytest.raises(DatasetError, match="replay"):
            join(pair, tmp_path / "out", replay=share)
    other = write_dataset(tmp_path / "other", Task("other", ("Left",)), np.ones((3, 1)), squares(3, 0)[0])
    with pytest.raises(DatasetError, match="its task"):
        join([base, other], tmp_path / "out")
    with pytest.raises(DatasetError, match="exists"):
        join(pair, base.path)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "new", "torn", "other"}


def test_a_part_that_changed_or_went_is_named(pair: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    join(pair, tmp_path / "both")
    info = pair[1].path / "dataset.json"
    kept = info.read_text()
    info.write_text(kept.replace(pair[1].hash, "0" * 64))
    with pytest.raises(DatasetError, match=r"part .*new has hash 0000"):
        Dataset.open(tmp_path / "both")
    info.unlink()
    with pytest.raises(DatasetError, match=r"part .*new is not there"):
        Dataset.open(tmp_path / "both")
    info.write_text(kept)
    Dataset.open(tmp_path / "both").verify()
    pixels = pair[1].path / "pixels.npy"
    content = bytearray(pixels.read_bytes())
    content[-1] ^= 1
    pixels.write_bytes(content)
    with pytest.raises(DatasetError, match="sha256 is"):
        Dataset.open(tmp_path / "both").verify()


@pytest.mark.parametrize(
    "places", [np.zeros((52, 2)), np.full((52, 2), 9), np.full((52, 2), -1), np.zeros(5, np.int64)]
)
def test_damaged_places_are_an_error(pair: tuple[Dataset, Dataset], tmp_path: Path, places: np.ndarray) -> None:
    join(pair, tmp_path / "both")
    np.save(tmp_path / "both" / parts.PLACES, places)
    with pytest.raises(DatasetError, match="join the datasets again"):
        Dataset.open(tmp_path / "both")
    (tmp_path / "both" / parts.PARTS).write_text("{")
    with pytest.raises(DatasetError, match="damaged"):
        Dataset.open(tmp_path / "both")


def test_a_copy_stands_by_itself(pair: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    base, new = pair
    places = np.array([[1, 3], [0, 2], [1, 0]])
    manifest = pl.concat([new.manifest[[3]], base.manifest[[2]], new.manifest[[0]]])
    with draft(tmp_path / "copied") as folder:
        copy(folder, manifest, pair, places, {"kind": "copied"}, [{"image": "x", "reason": "bad: it is"}])
    for dataset in pair:
        shutil.rmtree(dataset.path)
    found = Dataset.open(tmp_path / "copied")
    found.verify()
    np.testing.assert_array_equal(found.pixels, np.stack([new.pixels[3], base.pixels[2], new.pixels[0]]))
    assert found.info["refused_by_reason"] == {"bad": 1}


def test_the_command_joins_and_says_what_came_of_it(pair: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["join", str(tmp_path / "out"), *(str(d.path) for d in pair)])
    assert found.exit_code == 0, found.output
    assert "52 images of 52 patients" in found.output
    found = CliRunner().invoke(app, ["join", str(tmp_path / "again"), *(str(d.path) for d in pair), "--json"])
    assert json.loads(found.output)["sha256"] == Dataset.open(tmp_path / "out").hash
