"""Scoring many images: a row for each, the same whether one process works or two, files or packed pixels."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import tiny_package
from squares import write_dataset

from wetread.config import Settings
from wetread.dataset import dataset as datasets
from wetread.dataset.parallel import in_order
from wetread.errors import DatasetError, ReadError
from wetread.findings import PNEUMONIA
from wetread.infer import scoring
from wetread.radiograph import phantom
from wetread.radiograph.pixels import plain

SETTINGS = Settings(threads=1, runtime="onnxruntime")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return tiny_package.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Seventy pictures, so that there are two shards, and two files that are none."""
    folder = tmp_path_factory.mktemp("inbox")
    rng = np.random.default_rng(0)
    chest = phantom.make(0, size=128).radiograph.pixels.astype(np.int16)
    for number in range(70):
        noisy = np.clip(chest + rng.integers(-9, 10, chest.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:03d}.png"), noisy)
    (folder / "010.dcm").write_bytes(b"no image")
    (folder / "999.txt").write_text("")
    return folder


def score(package, source, out, **options):
    return scoring.score(str(package.path), source, out, settings=SETTINGS, **options)


def test_every_file_has_a_row_and_scored_ones_the_graph_s_probabilities(package, folder, tmp_path):
    found = score(package, folder, tmp_path / "new" / "scores.parquet")
    assert (found["images"], found["scored"], found["codes"]) == (72, 70, {"UNREADABLE": 2})
    table = pl.read_parquet(tmp_path / "new" / "scores.parquet")
    assert table["image"].to_list() == [str(path) for path in sorted(folder.iterdir())]
    scored = table.filter(pl.col("code").is_null())
    see = package.transform
    pixels = np.stack([see(see.read(Path(path))).array for path in scored["image"]])[:, None]
    wanted = tiny_package.answer(pixels, 2)
    np.testing.assert_allclose(scored.select(PNEUMONIA.findings).to_numpy(), wanted.probability, atol=1e-5)
    np.testing.assert_allclose(scored["abnormal"], wanted.abnormal, atol=1e-5)
    refused = table.filter(pl.col("code").is_not_null())
    assert refused.select(PNEUMONIA.findings).null_count().row(0) == (2, 2)
    assert refused["reason"].str.contains("010.dcm|999.txt").all()
    assert not list((tmp_path / "new").glob(".*"))


def packed(folder: Path) -> tuple[Path, np.ndarray]:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 64, 64), dtype=np.uint8)
    labels = np.eye(2, dtype=np.float32)[np.arange(9) % 2]
    import squares

    before, squares.SIDE = squares.SIDE, 64
    try:
        return write_dataset(folder, PNEUMONIA, labels, pixels).path, pixels
    finally:
        squares.SIDE = before


def test_a_packed_dataset_is_scored_row_by_row(package, tmp_path):
    path, pixels = packed(tmp_path / "data")
    found = score(package, path, tmp_path / "s.parquet")
    assert found["scored"] == 9
    table = pl.read_parquet(tmp_path / "s.parquet")
    assert table["image"].to_list() == datasets.Dataset.open(path).manifest["image"].to_list()
    np.testing.assert_allclose(
        table.select(PNEUMONIA.findings).to_numpy(), tiny_package.answer(pixels[:, None], 2).probability, atol=1e-5
    )


def test_unfamiliar_images_have_their_code_and_no_probability(tmp_path):
    package = tiny_package.write(tmp_path / "tiny", familiarity_threshold=1e9)
    path, _ = packed(tmp_path / "data")
    assert score(package, path, tmp_path / "s.parquet")["codes"] == {"UNFAMILIAR": 9}
    table = pl.read_parquet(tmp_path / "s.parquet")
    assert table["familiarity"].null_count() == 0
    assert table[PNEUMONIA.findings[0]].null_count() == 9


def test_an_image_on_which_the_graph_fails_has_its_code(tmp_path):
    package = tiny_package.write(tmp_path / "tiny", poison=True)
    path, _ = packed(tmp_path / "data")
    stored = np.load(path / "pixels.npy", mmap_mode="r+")
    stored[4, 0, 0] = 255
    stored.flush()
    score(package, path, tmp_path / "s.parquet")
    table = pl.read_parquet(tmp_path / "s.parquet")
    assert table["code"].to_list()[4] == "MODEL_FAILED"
    assert table["code"].null_count() == 9 - sum(image[0, 0] == 255 for image in np.asarray(stored))


def killing(work, items):
    """Work that dies of one file, as a decoder does that crashes."""
    if any(str(item).endswith("020.png") for item in items):
        os._exit(1)
    return work(items)


def test_a_file_that_kills_its_process_has_a_row_that_says_so(package, folder, tmp_path):
    def deadly(shards, work, rescue, workers):
        return in_order(shards, partial(killing, work), rescue, workers)

    found = score(package, folder, tmp_path / "s.parquet", workers=2, spread=deadly)
    assert found["codes"] == {"UNREADABLE": 3}
    died = pl.read_parquet(tmp_path / "s.parquet").filter(pl.col("image").str.ends_with("020.png"))
    assert "died" in died["reason"][0]


def test_two_processes_write_what_one_does(package, folder, tmp_path):
    for workers in (1, 2):
        score(package, folder, tmp_path / f"{workers}.parquet", workers=workers)
    one, two = (pl.read_parquet(tmp_path / f"{workers}.parquet") for workers in (1, 2))
    assert one.select("image", "code").equals(two.select("image", "code"))
    np.testing.assert_allclose(
        one.select(PNEUMONIA.findings).to_numpy(), two.select(PNEUMONIA.findings).to_numpy(), atol=1e-6
    )


def test_pixels_of_another_transform_and_empty_folders_are_refused(package, tmp_path):
    labels = np.eye(2, dtype=np.float32)
    path = write_dataset(tmp_path / "data", PNEUMONIA, labels, np.zeros((2, 32, 32), np.uint8)).path
    assert plain(32).size != package.transform.size
    with pytest.raises(DatasetError, match="transform"):
        score(package, path, tmp_path / "s.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="no file"):
        score(package, tmp_path / "empty", tmp_path / "s.parquet")
    with pytest.raises(ReadError, match="no such file"):
        score(package, tmp_path / "missing", tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()
