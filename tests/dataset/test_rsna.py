"""The RSNA Pneumonia Detection Challenge in its published layout, small and hand-made."""

import json

import pytest
from films import dicom, scene

from wetread.dataset import command, sources
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT, COVID, NIH, PNEUMONIA

NOT_NORMAL = "No Lung Opacity / Not Normal"
FILM = dicom(scene(), PatientAge="051Y", PatientSex="M", ViewPosition="AP", BodyPartExamined="CHEST")
BOXES = ["aa,,,,,0", "bb,264.0,152.0,213.0,379.0,1", "bb,562.0,152.0,256.0,453.0,1", "cc,,,,,0", "dd,,,,,0"]
CLASSES = [f"aa,{NOT_NORMAL}", "bb,Lung Opacity", "bb,Lung Opacity", "cc,Normal", "dd,Normal"]


@pytest.fixture
def make(make_folders):
    def write(boxes=BOXES, classes=CLASSES, mapping=None):
        names = {line.split(",")[0] for line in boxes}
        files = {f"stage_2_train_images/{name}.dcm": FILM for name in names}
        files["stage_2_train_labels.csv"] = "\n".join(["patientId,x,y,width,height,Target", *boxes]).encode()
        files["stage_2_detailed_class_info.csv"] = "\n".join(["patientId,class", *classes]).encode()
        if mapping is not None:
            files["pneumonia-challenge-dataset-mappings_2018.json"] = mapping
        return make_folders(files)

    return write


def by_name(collection):
    return {row["image"]: row for row in collection.rows.to_dicts()}


def test_three_classes_tell_about_three_findings_and_no_other(make):
    got = sources.collect("rsna", make())
    assert not got.refused
    told = {n: {f: v for f in CHEXPERT.findings if (v := row[f]) is not None} for n, row in by_name(got).items()}
    assert told == {
        "aa": {"No Finding": 0, "Lung Opacity": 0, "Pneumonia": 0},
        "bb": {"No Finding": 0, "Lung Opacity": 1, "Pneumonia": 1},
        "cc": {"No Finding": 1, "Lung Opacity": 0, "Pneumonia": 0},
        "dd": {"No Finding": 1, "Lung Opacity": 0, "Pneumonia": 0},
    }
    assert by_name(got)["aa"]["class"] == NOT_NORMAL
    nih = by_name(sources.collect("rsna", make(), task=NIH))
    assert [[row[f] for f in NIH.findings if f != "Pneumonia"] for row in nih.values()] == [[None] * 13] * 4


@pytest.mark.parametrize("task", [PNEUMONIA, COVID])
def test_an_image_that_is_neither_normal_nor_opaque_has_no_class(make, task):
    got = sources.collect("rsna", make(), task=task)
    assert {n: [f for f in task.findings if row[f]] for n, row in by_name(got).items()} == {
        "bb": ["Pneumonia"],
        "cc": ["Normal"],
        "dd": ["Normal"],
    }
    assert [(e["image"], e["reason"].split(":")[0]) for e in got.refused] == [("aa", "no class")]


def test_headers_tell_age_sex_and_view(make):
    row = by_name(sources.collect("rsna", make()))["bb"]
    assert (row["age_years"], row["sex"], row["view"]) == (51, "M", "AP")


def test_rsna_s_mapping_tells_which_images_are_of_one_patient(make):
    pairs = [("aa", "00000001_000.png"), ("cc", "00000001_004.png"), ("bb", "00000002_000.png")]
    mapping = json.dumps([{"subset_img_id": a, "img_id": b, "SOPInstanceUID": a} for a, b in pairs]).encode()
    rows = by_name(sources.collect("rsna", make(mapping=mapping)))
    assert {name: row["patient"] for name, row in rows.items()} == {
        "aa": "00000001",
        "bb": "00000002",
        "cc": "00000001",
        "dd": "dd",
    }
    for bad in (b"no json", b"[1]", b'[{"img_id": "x"}]'):
        with pytest.raises(DatasetError, match="not RSNA's list"):
            sources.collect("rsna", make(mapping=bad))


def test_bad_rows_are_refused_with_reasons(make):
    boxes = [*BOXES, "e1,,,,,0", "e1,1,1,1,1,1", "e2,,,,,2", "e3,,,,,0", "e4,,,,,0", "e5,,,,,0", "e6,,,,,0"]
    classes = [*CLASSES, "e1,Normal", "e2,Normal", "e3,Normal", f"e3,{NOT_NORMAL}", "e4,Broken", "e5,Lung Opacity"]
    root = make(boxes, classes)
    (root / "stage_2_train_images/cc.dcm").unlink()
    test = root / "stage_2_test_images/zz.dcm"
    test.parent.mkdir()
    test.write_bytes(FILM)
    got = sources.collect("rsna", root)
    assert {entry["image"]: entry["reason"] for entry in got.refused} == {
        "cc": "missing file: listed in the table but not in the collection",
        "e1": "contradiction: Target = '0' and '1'",
        "e2": "unknown label: Target = '2'",
        "e3": f"contradiction: class = '{NOT_NORMAL}' and 'Normal'",
        "e4": "unknown label: class = 'Broken'",
        "e5": "contradiction: Target 0, class 'Lung Opacity'",
        "e6": "unknown label: class = ''",
        "stage_2_test_images/zz.dcm": "unlabelled: no table has a row for it",
    }
    assert sorted(by_name(got)) == ["aa", "bb", "dd"]


def test_it_packs_with_its_class_as_a_column_for_slices(make, tmp_path, capsys):
    packed = command.run(command.Request("rsna", make(), tmp_path / "out", size=16, workers=1))
    assert sorted(packed.manifest["class"]) == sorted([NOT_NORMAL, "Lung Opacity", "Normal", "Normal"])
    packed.verify()


@pytest.mark.parametrize("name", ["stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"])
def test_a_missing_table_is_named(make, name):
    root = make()
    (root / name).unlink()
    with pytest.raises(DatasetError, match=name):
        sources.collect("rsna", root)
