"""Scoring many images: a row for each, the same whether one process works or two, files or packed pixels."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import cv2
import films
import numpy as np
import polars as pl
import pytest
import study_package
import tiny_package
from polars.testing import assert_frame_equal
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
    if any("020.png" in str(item) for item in items):
        os._exit(1)
    return work(items)


@pytest.mark.system  # takes long
def test_a_file_that_kills_its_process_has_a_row_that_says_so(package, folder, tmp_path):
    def deadly(shards, work, rescue, workers):
        return in_order(shards, partial(killing, work), rescue, workers)

    found = score(package, folder, tmp_path / "s.parquet", workers=2, spread=deadly)
    assert found["codes"] == {"UNREADABLE": 3}
    died = pl.read_parquet(tmp_path / "s.parquet").filter(pl.col("image").str.ends_with("020.png"))
    assert "died" in died["reason"][0]


@pytest.mark.system  # takes long
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


def film(folder: Path, name: str, seed: int, view: str | None, study: str) -> Path:
    """Write a DICOM film that passes for a chest."""
    pixels = phantom.make(seed, size=128, view=view or "PA").radiograph.pixels
    more = {
        "StudyInstanceUID": study,
        "SOPInstanceUID": f"1.2.3.{seed}",
        "ViewPosition": {"LATERAL": "LL"}.get(view, view),
    }
    path = folder / name
    path.write_bytes(films.dicom(pixels, PatientAge="050Y", **more))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Three studies of one or two views, a broken file, and a picture that is a study of its own."""
    folder = tmp_path_factory.mktemp("archive")
    film(folder, "a1.dcm", 1, "PA", "1.1")
    film(folder, "a2.dcm", 2, "LATERAL", "1.1")
    film(folder, "a3.dcm", 3, "AP", "1.1")
    film(folder, "b1.dcm", 4, "LATERAL", "1.2")
    film(folder, "c1.dcm", 5, "AP", "1.3")
    (folder / "c2.dcm").write_bytes((folder / "c1.dcm").read_bytes()[:600])
    cv2.imwrite(str(folder / "d.png"), phantom.make(6, size=128).radiograph.pixels)
    return folder


def seen(package, *paths: Path | None) -> np.ndarray:
    size = package.transform.size
    views = [
        np.zeros((size, size), np.uint8) if p is None else package.transform(package.transform.read(p)).array
        for p in paths
    ]
    return np.stack(views)


def test_a_model_of_studies_gives_a_row_a_study(archive, tmp_path):
    package = study_package.write(tmp_path / "pair")
    found = score(package, archive, tmp_path / "s.parquet")
    rows = {row["study"]: row for row in pl.read_parquet(tmp_path / "s.parquet").to_dicts()}
    assert found["images"] == len(rows) == 4
    assert set(rows) == {"1.1", "1.2", "1.3", str((archive / "d.png").resolve())}
    for study, frontal, lateral in (("1.1", "a1.dcm", "a2.dcm"), ("1.2", None, "b1.dcm"), ("1.3", "c1.dcm", None)):
        paths = [archive / name if name else None for name in (frontal, lateral)]
        row = rows[study]
        assert [row["image"], row["lateral"]] == [str(path) if path else None for path in paths]
        wanted = study_package.answer(seen(package, *paths)[None], 2)[0]
        np.testing.assert_allclose([row[f] for f in PNEUMONIA.findings], wanted, atol=1e-5)
    assert (rows["1.1"]["files"], rows["1.1"]["view"]) == (3, "PA+LATERAL")
    assert "a3.dcm: not used" in rows["1.1"]["reason"]
    assert "c2.dcm: UNREADABLE" in rows["1.3"]["reason"]
    assert rows["1.1"]["code"] is None


def test_a_study_of_which_nothing_can_be_used_has_its_code(archive, tmp_path):
    package = study_package.write(tmp_path / "pair")
    (tmp_path / "list.csv").write_text("file,study\nc2.dcm,x\nmissing.dcm,y\na1.dcm,z\na2.dcm,z\n")
    score(package, archive, tmp_path / "s.parquet", listed=tmp_path / "list.csv")
    rows = pl.read_parquet(tmp_path / "s.parquet").select("study", "code", "files").rows()
    assert rows == [("x", "UNREADABLE", 1), ("y", "UNREADABLE", 1), ("z", None, 2)]


def test_a_list_names_files_or_studies(package, archive, tmp_path):
    (tmp_path / "files.csv").write_text("\ufeffFile ,note\na1.dcm,x\nmissing.dcm,y\n")
    (tmp_path / "studies.csv").write_text("study_uid\n1.3\n1.9\n1.1\n")
    score(package, archive, tmp_path / "f.parquet", listed=tmp_path / "files.csv")
    files = pl.read_parquet(tmp_path / "f.parquet")
    assert files["code"].to_list() == [None, "UNREADABLE"]
    assert files["study"].to_list() == ["1.1", None]
    assert "no such file" in files["reason"][1]
    score(package, archive, tmp_path / "s.parquet", listed=tmp_path / "studies.csv")
    studies = pl.read_parquet(tmp_path / "s.parquet")
    names = [Path(image).name if image else None for image in studies["image"]]
    assert names == ["c1.dcm", None, "a1.dcm", "a2.dcm", "a3.dcm"] or names[:2] == ["c1.dcm", "c2.dcm"]
    assert studies.filter(pl.col("study") == "1.9")["code"].to_list() == ["UNREADABLE"]


@pytest.mark.parametrize("text", ["", "file\n", "other\nx\n", "file,study\nx\n", "\xff"])
def test_a_list_that_is_none_is_refused(package, archive, tmp_path, text):
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ReadError, match=r"list\.csv"):
        score(package, archive, tmp_path / "s.parquet", listed=tmp_path / "list.csv")


def test_an_interrupted_run_goes_on_and_another_begins_anew(package, folder, tmp_path):
    done = []

    def torn(shards, work, rescue, workers):
        for number, result in enumerate(in_order(shards, work, rescue, workers)):
            if number == 1:
                raise KeyboardInterrupt
            done.append(len(result))
            yield result

    with pytest.raises(KeyboardInterrupt):
        score(package, folder, tmp_path / "s.parquet", spread=torn)
    assert not (tmp_path / "s.parquet").exists()
    worked = []

    def counting(shards, work, rescue, workers):
        shards = list(shards)
        worked.append(sum(map(len, shards)))
        yield from in_order(shards, work, rescue, workers)

    found = score(package, folder, tmp_path / "s.parquet", spread=counting)
    assert worked == [72 - done[0]]
    assert (found["images"], found["codes"]) == (72, {"UNREADABLE": 2})
    score(package, folder, tmp_path / "t.parquet")
    assert_frame_equal(pl.read_parquet(tmp_path / "s.parquet"), pl.read_parquet(tmp_path / "t.parquet"), abs_tol=1e-6)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(KeyboardInterrupt):
        score(package, folder, tmp_path / "s.parquet", spread=torn)
    other = tiny_package.write(tmp_path / "other", seed=3)
    score(other, folder, tmp_path / "s.parquet", spread=counting)
    assert worked[-1] == 72


def test_packed_studies_are_scored_by_a_model_of_studies(tmp_path):
    package = study_package.write(tmp_path / "pair")
    path, pixels = packed(tmp_path / "data")
    manifest = pl.read_parquet(path / "manifest.parquet").with_columns(
        pl.Series("patient", list("aabbccdde")),
        pl.Series("study", list("112233445")),
        pl.Series("view", ["PA", "LATERAL"] * 4 + ["PA"]),
    )
    manifest.write_parquet(path / "manifest.parquet")
    found = score(package, path, tmp_path / "s.parquet")
    assert found["scored"] == 5
    table = pl.read_parquet(tmp_path / "s.parquet")
    assert table["view"].to_list() == ["FRONTAL+LATERAL"] * 4 + ["FRONTAL"]
    both = np.concatenate([pixels, np.zeros_like(pixels[:1])]).reshape(5, 2, 64, 64)
    np.testing.assert_allclose(table.select(PNEUMONIA.findings).to_numpy(), study_package.answer(both, 2), atol=1e-5)
