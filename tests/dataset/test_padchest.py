"""PadChest in its published layout, small and hand-made."""

import csv
import gzip
import io
import zipfile

import cv2
import numpy as np
import pytest

from wetread.dataset import command, sources
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT, COVID, NIH, PNEUMONIA, Task

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = [
    *("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "ReportID", "Report"),
    *("MethodLabel", "Labels", "Localizations"),
]
ROWS = {  # name: what differs from `DEFAULT`
    "a": {"Labels": "['normal']"},
    "b": {"Labels": "['pleural effusion', ' Cardiomegaly', '']", "Projection": "AP_horizontal"},
    "c": {"Labels": "['consolidation', 'pneumonia']", "PatientID": "2", "PatientSex_DICOM": "M"},
    "d": {"Labels": "['subcutaneous emphysema', 'alveolar pattern']", "PatientID": "3", "PatientBirth": ""},
    "e": {"Labels": "['unchanged', 'pacemaker']", "PatientID": "4"},
    "f": {"Labels": '["costophrenic angle blunting"]', "PatientID": "5"},
    "g": {"Labels": "['tuberculosis']", "PatientID": "6", "Projection": "L"},
}
DEFAULT = {
    "ImageDir": "0",
    "StudyDate_DICOM": "20140915",
    "StudyID": "s1",
    "PatientID": "1",
    "PatientBirth": "1930.0",
    "PatientSex_DICOM": "F",
    "Projection": "PA",
    "MethodLabel": "Physician",
    "Report": "silueta, cardiaca",
}


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 4096, (40, 48)).astype(np.uint16) * 16
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture
def make(make_folders):
    def write(rows=ROWS, packed=False):
        stream = io.StringIO()
        writer = csv.DictWriter(stream, ["", *COLUMNS])
        writer.writeheader()
        for number, (name, row) in enumerate(rows.items()):
            writer.writerow({"": number, "ImageID": f"2168_{name}.png", **DEFAULT, **row})
        text = stream.getvalue().encode()
        files = {f"{i % 2}/2168_{name}.png": png(i) for i, name in enumerate(rows)}
        table = {f"{TABLE}.gz": gzip.compress(text)} if packed else {TABLE: text}
        return make_folders(table | files)

    return write


def by_name(collection):
    return {row["image"][5:-4]: row for row in collection.rows.to_dicts()}


def test_a_finding_is_present_when_a_word_of_it_is_named_and_absent_otherwise(make):
    got = sources.collect("padchest", make(), views="all")
    assert not got.refused
    found = by_name(got)
    assert {f for f in CHEXPERT.findings if found["a"][f] == 1} == {"No Finding"}
    assert {found["a"][f] for f in CHEXPERT.findings[1:]} == {0}
    assert {f for f in CHEXPERT.findings if found["b"][f] == 1} == {"Pleural Effusion", "Cardiomegaly"}
    assert {f for f in CHEXPERT.findings if found["c"][f] == 1} == {"Lung Opacity", "Consolidation", "Pneumonia"}
    assert found["b"]["No Finding"] == found["c"]["No Finding"] == 0


def test_an_absent_parent_of_a_present_child_is_null_since_the_reports_know_no_tree(make):
    assert by_name(sources.collect("padchest", make()))["b"]["Enlarged Cardiomediastinum"] is None


def test_words_that_leave_a_finding_open_make_it_null(make):
    found = by_name(sources.collect("padchest", make()))
    assert found["d"]["Consolidation"] is None  # alveolar pattern
    assert found["d"]["Lung Opacity"] == 1
    assert found["f"]["Pleural Effusion"] is None  # blunting
    assert found["f"]["Pneumothorax"] == 0


def test_a_report_that_says_unchanged_denies_nothing(make):
    row = by_name(sources.collect("padchest", make()))["e"]
    assert {f: row[f] for f in CHEXPERT.findings if row[f] is not None} == {"Support Devices": 1}


def test_nih_s_emphysema_is_not_air_under_the_skin(make):
    found = by_name(sources.collect("padchest", make(), task=NIH))
    assert found["d"]["Emphysema"] == 0
    assert found["d"]["Infiltration"] == 1
    assert found["b"]["Effusion"] == 1


def test_patients_views_ages_and_the_method_are_taken_from_the_table(make):
    found = by_name(sources.collect("padchest", make(packed=True), views="all"))
    assert [found[name]["patient"] for name in "abc"] == ["1", "1", "2"]
    assert [found[name]["view"] for name in "abcg"] == ["PA", "AP", "PA", "LATERAL"]
    assert [found[name]["sex"] for name in "ac"] == ["F", "M"]
    assert (found["a"]["age_years"], found["d"]["age_years"]) == (84, None)
    assert found["a"]["method"] == "physician"
    assert {row["split"] for row in found.values()} == {None}


def test_exclusive_tasks_take_the_images_of_their_classes(make):
    pneumonia = sources.collect("padchest", make(), task=PNEUMONIA, views="all")
    assert {name: row["Pneumonia"] for name, row in by_name(pneumonia).items()} == {"a": 0, "c": 1}
    covid = by_name(sources.collect("padchest", make(), task=COVID, views="all"))
    assert {n: [f for f in COVID.findings if row[f]] for n, row in covid.items()} == {
        "a": ["Normal"],
        "c": ["Pneumonia"],
        "g": ["Tuberculosis"],
    }


def test_a_label_of_its_own_can_be_a_finding_of_a_task(make):
    found = by_name(sources.collect("padchest", make(), task=Task("own", ("Subcutaneous Emphysema", "Rickets"))))
    assert [found[name]["Subcutaneous Emphysema"] for name in "ade"] == [0, 1, None]
    assert {row["Rickets"] for row in found.values()} == {None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Labels": ""}, "unknown label: Labels = ''"),
        ({"Labels": "[]"}, "unknown label: Labels = '[]'"),
        ({"Labels": "['']"}, "unknown label: Labels = '['']'"),
        ({"Labels": "['nodule'"}, "unknown label: Labels = '['nodule''"),
        ({"Labels": "__import__('os')"}, "unknown label: Labels = '__import__('os')'"),
        ({"Labels": "['exclude']"}, "no class: the report says ['exclude']"),
        ({"Labels": "['suboptimal study', 'nodule']"}, "no class: the report says ['suboptimal study', 'nodule']"),
        ({"Labels": "['normal', 'nodule']"}, "contradiction: ['normal', 'nodule']"),
        ({"Labels": "['nodule']", "PatientBirth": "young"}, "bad age: born young, seen 20140915"),
        ({"Labels": "['nodule']", "PatientBirth": "2020"}, "bad age: born 2020, seen 20140915"),
        ({"Labels": "['nodule']", "StudyDate_DICOM": ""}, "bad age: born 1930.0, seen ?"),
        ({"Labels": "['nodule']", "Projection": "COSTAL"}, "wrong view: COSTAL is neither frontal nor lateral"),
        ({"Labels": "['nodule']", "Projection": "EXCLUDE"}, "wrong view: EXCLUDE is neither frontal nor lateral"),
        ({"Labels": "['nodule']", "PatientID": " "}, "unknown patient: PatientID is blank"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(make, change, reason):
    got = sources.collect("padchest", make({"a": ROWS["a"], "x": change}), views="all")
    assert got.refused == [{"image": "2168_x.png", "reason": reason}]
    assert got.rows.height == 1


def test_images_without_rows_and_rows_without_images_are_refused(make):
    root = make()
    (root / "1/2168_z.png").write_bytes(b"x")
    (root / "0/2168_a.png").unlink()
    found = {
        e["image"].rsplit("/", 1)[-1]: e["reason"].split(":")[0] for e in sources.collect("padchest", root).refused
    }
    assert found == {"2168_a.png": "missing file", "2168_z.png": "unlabelled", "2168_g.png": "wrong view"}


def test_the_published_archives_are_packed_in_place_at_sixteen_bits(make, tmp_path, capsys):
    root = make()
    for folder in "01":
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
            for file in sorted((root / folder).iterdir()):
                archive.write(file, file.name)
                file.unlink()
    packed = command.run(command.Request("padchest", root, tmp_path / "out", size=16, workers=1))
    assert len(packed) == 6
    assert packed.pixels.std() > 1
    assert packed.manifest["method"].to_list() == ["physician"] * 6
    packed.verify()


def test_no_table_is_an_error(make):
    root = make()
    (root / TABLE).unlink()
    with pytest.raises(DatasetError, match="no label table PADCHEST"):
        sources.collect("padchest", root)
