"""Masks: packed in the coordinates of the pixels, part of the hash, and survive a kill like the pixels."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.dataset import masks, sources, split
from wetread.dataset import pack as module
from wetread.dataset.dataset import Dataset
from wetread.dataset.pack import pack
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT
from wetread.radiograph import phantom
from wetread.radiograph.pixels import lungs, plain


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    root = phantom.write_chexpert(
        tmp_path_factory.mktemp("phantoms"), 8, seed=5, size=96, masks=True, valid=0.3, laterals=0
    )
    found = sources.collect("phantom", root)
    rows, refused = split.assign(found.rows, found.task)
    return replace(found, rows=rows, refused=found.refused + refused)


def test_masks_are_those_of_the_phantoms(collection, tmp_path):
    dataset = pack(collection, tmp_path / "out", transform=plain(32), workers=1, with_masks=True)
    assert dataset.masks is not None
    assert dataset.masks.shape == (8, 14, masks.SIDE, masks.SIDE)
    covered = 0
    for row, file in enumerate(collection.rows["file"]):
        for column, finding in enumerate(CHEXPERT.findings):
            picture = cv2.imread(masks.name(file, finding), cv2.IMREAD_GRAYSCALE)
            mask = np.zeros((96, 96)) if picture is None else picture / 255
            expected = cv2.resize(mask, (masks.SIDE, masks.SIDE), interpolation=cv2.INTER_AREA)
            np.testing.assert_allclose(dataset.masks[row, column] / 255, expected, atol=0.01)
            covered += picture is not None
    assert covered > 8  # or the collection shows nothing


def test_a_crop_of_the_pixels_is_a_crop_of_the_masks(collection, tmp_path):
    template = phantom.make(1, size=64).radiograph.pixels[8:56, 8:56].astype(np.uint8)
    transform = lungs(np.ascontiguousarray(template), source=64, min_match=-1)
    dataset = pack(collection, tmp_path / "out", transform=transform, workers=1, with_masks=True)
    file = collection.rows["file"][0]
    seen = transform(transform.read(sources.Path(file)))
    x, y, w, h = (round(value * 96) for value in seen.box)
    for column, finding in enumerate(CHEXPERT.findings):
        picture = cv2.imread(masks.name(file, finding), cv2.IMREAD_GRAYSCALE)
        if picture is not None:
            expected = (picture[y : y + h, x : x + w] > 0).mean()
            assert dataset.masks[0, column].mean() / 255 == pytest.approx(expected, abs=0.02)


def test_masks_belong_to_the_hash_and_survive_a_stop(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD", 3)
    whole = pack(collection, tmp_path / "whole", transform=plain(32), workers=1, with_masks=True)
    without = pack(collection, tmp_path / "without", transform=plain(32), workers=1)
    assert whole.hash != without.hash
    assert without.masks is None

    def stop(done, total):
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(collection, tmp_path / "again", transform=plain(32), workers=1, with_masks=True, progress=stop)
    again = pack(collection, tmp_path / "again", transform=plain(32), workers=2, with_masks=True)
    assert again.hash == whole.hash
    again.verify()
    np.testing.assert_array_equal(again.masks, whole.masks)


def test_a_mask_that_is_no_picture_refuses_its_image(collection, tmp_path):
    file = collection.rows["file"][2]
    place = sources.Path(masks.name(file, "Fracture"))
    kept = place.read_bytes() if place.exists() else None
    place.write_bytes(b"no picture")
    try:
        dataset = pack(collection, tmp_path / "out", transform=plain(32), workers=1, with_masks=True)
    finally:
        place.unlink() if kept is None else place.write_bytes(kept)
    assert len(dataset) == 7
    assert "fracture" in dataset.info["refused"][0]["reason"]


def test_masks_of_another_shape_are_refused(collection, tmp_path):
    pack(collection, tmp_path / "out", transform=plain(32), workers=1, with_masks=True)
    np.save(tmp_path / "out/masks.npy", np.zeros((8, 3, 4, 4), np.uint8))
    with pytest.raises(DatasetError, match=r"masks\.npy"):
        Dataset.open(tmp_path / "out")


@given(st.integers(0, 40), st.integers(0, 40), st.integers(8, 24))
def test_a_crop_covers_what_lies_in_its_box(x, y, side):
    mask = np.zeros((64, 64), bool)
    mask[y : y + side, x : x + side] = True
    part = masks.crop(mask, (x / 64, y / 64, side / 64, side / 64))
    assert part.min() >= 250  # but for rounding at the border, the box is all finding
    assert masks.crop(~mask, (x / 64, y / 64, side / 64, side / 64)).max() <= 5
