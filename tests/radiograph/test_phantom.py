import csv
import io

import cv2
import numpy as np
import pydicom
import pytest

from wetread.errors import WetreadError
from wetread.findings import CHEXPERT
from wetread.radiograph import phantom as phantoms
from wetread.radiograph.read import read


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    steps = []
    phantoms.write_chexpert(
        folder, 40, 3, size=64, valid=0.3, test=0.2, laterals=0.5, masks=True, progress=lambda: steps.append(1)
    )
    assert len(steps) == 40
    return folder


def table(folder, split):
    with (folder / phantoms.COLLECTION / f"{split}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_table_has_the_published_columns_and_its_images_exist(collection):
    rows = [row for split in ("train", "valid", "test") for row in table(collection, split)]
    assert len(rows) == 40
    assert list(rows[0]) == ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT.findings]
    for row in rows:
        assert (collection / row["Path"]).is_file()
        assert row["Sex"] in ("Male", "Female")
        assert 18 <= int(row["Age"]) <= 95
        assert (row["Frontal/Lateral"] == "Lateral") == row["Path"].endswith("_lateral.jpg") == (row["AP/PA"] == "")
        assert {row[f] for f in CHEXPERT.findings} <= {"0.0", "1.0"}
    assert len({row["Frontal/Lateral"] for row in rows}) == 2
    assert any("study2" in row["Path"] for row in rows)


def test_splits_are_by_patient(collection):
    patients = [{row["Path"].split("/")[2] for row in table(collection, split)} for split in ("train", "valid", "test")]
    assert all(patients)
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]


def test_each_image_is_the_phantom_of_its_row(collection):
    row = table(collection, "train")[0]
    patient = int(row["Path"].split("/")[2].removeprefix("patient"))
    view = row["AP/PA"] or "LATERAL"
    phantom = phantoms.make(phantoms.patient_seed(3, patient), view=view, size=64)
    assert {f: int(float(row[f])) for f in CHEXPERT.findings} == phantom.labels
    stored = cv2.imread(str(collection / row["Path"]), cv2.IMREAD_GRAYSCALE)
    assert np.abs(stored.astype(int) - phantom.radiograph.pixels).mean() < 3
    for finding, mask in phantom.masks.items():
        path = (collection / row["Path"]).with_suffix(f".{finding.lower().replace(' ', '_')}.png")
        assert path.is_file() == mask.any()
        if mask.any():
            np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0, mask)


def test_the_jpeg_carries_the_mark_and_is_recognised(collection):
    path = next(collection.rglob("*_frontal.jpg"))
    data = path.read_bytes()
    assert data[:4] == b"\xff\xd8\xff\xfe"
    assert data[6 : 6 + len(phantoms.MARK)] == b"wetread-phantom"
    assert read(path).source == "phantom"


def test_workers_and_runs_agree(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        phantoms.write_chexpert(tmp_path / name, 4, 8, size=64, workers=workers)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) >= 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_start_continues_a_collection_with_new_patients(tmp_path):
    for name, start in (("first", 0), ("next", 50)):
        phantoms.write_chexpert(tmp_path / name, 3, 8, size=64, start=start, valid=0)
    first, following = ({row["Path"].split("/")[2] for row in table(tmp_path / n, "train")} for n in ("first", "next"))
    assert not first & following


def test_label_noise_touches_training_labels_only(tmp_path):
    phantoms.write_chexpert(tmp_path, 20, 4, size=64, label_noise=True, valid=0.5)
    noisy = {row[f] for row in table(tmp_path, "train") for f in CHEXPERT.findings}
    assert "" in noisy
    assert {row[f] for row in table(tmp_path, "valid") for f in CHEXPERT.findings} <= {"0.0", "1.0"}


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("view", ["PA", "AP", "LATERAL"])
def test_dicom_reads_back_as_the_same_picture(view, inverted):
    phantom = phantoms.make(5, view=view, size=64)
    data = phantoms.dicom(phantom, patient="P1", study="2", inverted=inverted)
    radiograph = read(data)
    original = phantom.radiograph
    assert radiograph.source == "phantom"
    assert (radiograph.view, radiograph.sex, radiograph.age_years) == (view, original.sex, original.age_years)
    assert radiograph.body_part == "CHEST"
    assert radiograph.spacing_mm == pytest.approx(original.spacing_mm, abs=1e-4)
    scale = (2**radiograph.bits - 1) / 255
    assert np.abs(radiograph.pixels / scale - original.pixels).max() <= 1.5


def test_dicom_is_conformant_and_repeats():
    phantom = phantoms.make(6, size=64)
    first, again = phantoms.dicom(phantom, study="1"), phantoms.dicom(phantom, study="1")
    assert first == again
    ds = pydicom.dcmread(io.BytesIO(first))
    other = pydicom.dcmread(io.BytesIO(phantoms.dicom(phantom, study="2")))
    assert ds.StudyInstanceUID != other.StudyInstanceUID
    assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
    assert ds.SOPInstanceUID.startswith("2.25.")
    assert ds.SOPInstanceUID.is_valid
    assert ds.Manufacturer == "Wetread phantom"
    assert (ds.BitsStored, ds.HighBit, ds.PhotometricInterpretation) == (12, 11, "MONOCHROME2")
    assert ds.pixel_array.max() <= 4095


def test_write_dicom_writes_the_same_patients_as_the_collection(tmp_path):
    paths = phantoms.write_dicom(tmp_path, 6, 3, size=64, laterals=0.5)
    assert len(paths) == 6
    data = [pydicom.dcmread(path) for path in paths]
    assert {ds.PhotometricInterpretation for ds in data} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({ds.SOPInstanceUID for ds in data}) == 6
    patient = int(paths[0].name[7:12])
    seed = phantoms.patient_seed(3, patient)
    assert int(data[0].PatientAge[:3]) == phantoms.make(seed, size=64).radiograph.age_years


@pytest.mark.parametrize(
    ("arguments", "part"),
    [({"count": 0}, "count = 0"), ({"size": 8}, "size = 8"), ({"valid": 1.5}, "valid = 1.5"), ({"seed": -2}, "seed")],
)
def test_numbers_out_of_range_are_named(tmp_path, arguments, part):
    with pytest.raises(WetreadError, match=part):
        phantoms.write_chexpert(tmp_path, **{"count": 1, "seed": 0, **arguments})


def test_the_command_writes_either_kind(tmp_path):
    from typer.testing import CliRunner

    from wetread.cli import app

    runner = CliRunner()
    result = runner.invoke(app, ["phantom", str(tmp_path / "a"), "3", "--size", "64", "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith("3 phantoms")
    assert len(list((tmp_path / "a").rglob("*.jpg"))) == 3
    result = runner.invoke(app, ["phantom", str(tmp_path / "b"), "2", "--size", "64", "--dicom", "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "b").glob("*.dcm"))) == 2
