"""Who arrives, and whether what is said to be true of them is."""

from datetime import datetime
from io import BytesIO

import numpy as np
import pydicom
import pytest
from scipy import stats

from wetread.errors import ConfigError, DatasetError
from wetread.radiograph import phantom, synthesis
from wetread.simulate import department, patients
from wetread.simulate.department import Patient
from wetread.simulate.patients import Arrival, Files, Folder, Phantoms, arriving
from wetread.simulate.shift import Shift

NOW = datetime(2026, 3, 4, 5, 6, 7)


def arrivals(count, phase=""):
    return [Arrival(n, NOW, phase) for n in range(1, count + 1)]


def test_the_truth_of_a_phantom_is_what_was_drawn_into_it():
    for patient in arriving(Phantoms(4, size=64, laterals=0.0), arrivals(6), seed=4):
        body = phantom.patient_seed(4, int(patient.name.split("-")[1]))
        made = phantom.make(body, view=pydicom.dcmread(BytesIO(patient.files[0][1])).ViewPosition, size=64)
        assert patient.findings == made.labels
        assert patient.abnormal == 1 - made.labels["No Finding"]
        assert set(patient.boxes) == {finding for finding, mask in made.masks.items() if mask.any()}
        for finding, (x, y, w, h) in patient.boxes.items():
            rows, columns = np.nonzero(made.masks[finding])
            box = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
            assert [x, y, w, h] == pytest.approx([side / 64 for side in box], abs=1e-4)
        header = pydicom.dcmread(BytesIO(patient.files[0][1]), stop_before_pixels=True)
        assert patient.study_uid == header.StudyInstanceUID
        assert header.StudyDate + header.StudyTime == "20260304050607"


@pytest.fixture
def drawn(monkeypatch):
    """Draw findings only: the pictures of many patients would take long."""

    def quick(seed, number, time, *, abnormal=None, **_):
        body = phantom.patient_seed(seed, number)
        examination = next(n for n in range(99) if abnormal in (None, department._ill(body, n)))
        labels = synthesis.labels(synthesis.draw_findings(body, examination))
        return Patient(f"P{number}", (), abnormal=1 - labels["No Finding"], findings=labels, at=time)

    monkeypatch.setattr(patients, "phantom_patient", quick)


@pytest.mark.parametrize(("share", "size", "after"), [(0.3, 1.0, 6 / 13), (0.3, -2.0, 3 / 31), (None, -1.0, 39 / 61)])
def test_the_share_of_abnormal_studies_is_that_which_was_asked_for_before_and_after_a_drift(drawn, share, size, after):
    source, shift = Phantoms(5), Shift("prevalence", size=size)
    for phase, expected in (("before", share or source.prevalence), ("after", after)):
        who = arriving(source, arrivals(400, phase), seed=5, prevalence=share, shifts=[shift])
        ill = sum(patient.abnormal for patient in who)
        assert stats.binomtest(ill, 400, expected).pvalue > 0.001


def test_without_a_wish_phantoms_are_as_they_are_drawn(drawn):
    ill = sum(patient.abnormal for patient in arriving(Phantoms(6), arrivals(400), seed=6))
    assert stats.binomtest(ill, 400, 1 - synthesis.NORMAL).pvalue > 0.001


def folder(path, rows):
    path.mkdir()
    for name in rows:
        (path / name).write_bytes(name.encode())
    return path


def test_a_folder_is_sent_once_with_the_truth_of_its_table(tmp_path):
    rows = {"a.png": "1,0", "b.png": "0,0", "c.png": ",1", "d.png": "-1,0"}
    where = folder(tmp_path / "films", rows)
    table = where / "truth.csv"
    table.write_text("file,Edema,Fracture\n" + "\n".join(f"{name},{cells}" for name, cells in rows.items()))
    source = Folder(where, table)
    assert (source.count, source.prevalence) == (4, 0.5)
    found = list(arriving(source, arrivals(4), seed=0))
    assert [(p.name, p.abnormal, p.findings) for p in found] == [
        ("a.png", 1, {"Edema": 1, "Fracture": 0}),
        ("b.png", 0, {"Edema": 0, "Fracture": 0}),
        ("c.png", 1, {"Fracture": 1}),
        ("d.png", 0, {"Fracture": 0}),
    ]
    with pytest.raises(ConfigError, match="no further study left for arrival 5"):
        source.patient(Arrival(5, NOW), None)


def test_a_table_may_say_only_whether_a_study_is_abnormal_and_prevalence_chooses_among_them(tmp_path):
    where = folder(tmp_path / "films", [f"{n}.png" for n in range(20)])
    table = tmp_path / "truth.csv"
    table.write_text("file,abnormal\n" + "\n".join(f"{n}.png,{n % 2}" for n in range(20)))
    ill = [p.abnormal for p in arriving(Folder(where, table), arrivals(5), seed=1, prevalence=1.0)]
    assert ill == [1] * 5
    source = Folder(where, table)
    with pytest.raises(ConfigError, match="no abnormal study left for arrival 11"):
        list(arriving(source, arrivals(11), seed=1, prevalence=1.0))


def test_the_files_of_one_study_come_together(tmp_path):
    source = Phantoms(7, size=64, laterals=1.0)
    pair = source.patient(Arrival(1, NOW), None)
    where = tmp_path / "films"
    where.mkdir()
    for name, content in pair.files:
        (where / name).write_bytes(content)
    table = tmp_path / "t.csv"
    table.write_text("file,abnormal\n" + "\n".join(f"{name},1" for name, _ in pair.files))
    found = Folder(where, table)
    assert found.count == 1
    assert len(found.patient(Arrival(1, NOW), None).files) == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,abnormal\nb.png,1", "a.png"),
        ("file,abnormal\na.png,x", "says 0 or 1 in no column"),
        ("name,abnormal\na.png,1", "file"),
    ],
)
def test_a_table_that_is_none_is_refused_by_name(tmp_path, text, match):
    where = folder(tmp_path / "films", ["a.png"])
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises((ConfigError, DatasetError), match=match):
        Folder(where, tmp_path / "t.csv")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no files"):
        Folder(tmp_path, tmp_path / "t.csv")


def test_of_files_without_a_table_nothing_is_known(tmp_path):
    source = Files(folder(tmp_path / "films", ["a.png"]))
    found = list(arriving(source, arrivals(3), seed=0))
    assert [(p.name, p.abnormal) for p in found] == [("a.png", None)] * 3
    with pytest.raises(ConfigError, match="--table"):
        list(arriving(source, arrivals(1), seed=0, prevalence=0.5))
    with pytest.raises(ConfigError, match="0 to 1"):
        list(arriving(source, arrivals(1), seed=0, prevalence=1.5))
