"""MIMIC-CXR-JPG in its published layout, small and hand-made."""

import gzip

import pytest

from wetread.dataset import command, sources
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT, COVID, NIH, PNEUMONIA, Task

HEADER = "subject_id,study_id," + ",".join(sorted(CHEXPERT.findings))
META = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)


def dicom_id(number):
    return "-".join(f"{number:08x}" for _ in range(5))


def labels(subject, study, **given):
    values = {name.replace("_", " "): value for name, value in given.items()}
    return f"{subject},{study}," + ",".join(values.get(name, "") for name in sorted(CHEXPERT.findings))


def meta(number, subject, study, view="PA", code="postero-anterior"):
    return f"{dicom_id(number)},{subject},{study},CHEST,{view},3056,2544,21800506,213014.5,CHEST,{code},Erect"


IMAGES = [  # number, subject, study, view, code, split
    (1, 10000032, 50414267, "PA", "postero-anterior", "train"),
    (2, 10000032, 50414267, "LATERAL", "lateral", "train"),
    (3, 10000764, 57375967, "AP", "antero-posterior", "validate"),
    (4, 10000898, 50771383, "", "left lateral", "test"),
    (5, 10000898, 50771383, "", "", "test"),
]
LABELS = [
    labels(10000032, 50414267, No_Finding="1.0"),
    labels(10000764, 57375967, Consolidation="-1.0", Lung_Opacity="1.0", Lung_Lesion="0.0", Pleural_Effusion="0.0"),
    labels(10000898, 50771383, Pneumonia="1.0", Lung_Lesion="1.0", Cardiomegaly="0.0"),
]


@pytest.fixture
def make(make_folders):
    """Write the collection; keyword arguments replace a table's text."""

    def write(images=IMAGES, packed=False, **tables):
        splits = [f"{dicom_id(n)},{study},{subject},{split}" for n, subject, study, _, _, split in images]
        texts = {
            "chexpert": "\n".join([HEADER, *LABELS]),
            "metadata": "\n".join([META, *(meta(*row[:5]) for row in images)]),
            "split": "\n".join(["dicom_id,study_id,subject_id,split", *splits]),
        } | tables
        files = {f"files/p{str(s)[:2]}/p{s}/s{t}/{dicom_id(n)}.jpg": n for n, s, t, *_ in images}
        for name, text in texts.items():
            data = (text + "\n").encode()
            ending, data = (".csv.gz", gzip.compress(data)) if packed else (".csv", data)
            files[f"{name}.csv" if name == "patients" else f"mimic-cxr-2.0.0-{name}{ending}"] = data
        return make_folders(files)

    return write


def rows(collection):
    return {row["image"].rsplit("/", 1)[-1]: row for row in collection.rows.to_dicts()}


@pytest.mark.parametrize("packed", [False, True])
def test_images_have_their_study_s_labels_their_view_and_the_published_split(make, packed):
    got = sources.collect("mimic", make(packed=packed), views="all")
    assert not got.refused
    assert got.task is CHEXPERT
    found = rows(got)
    assert [found[dicom_id(n)]["view"] for n in range(1, 6)] == ["PA", "LATERAL", "AP", "LATERAL", None]
    assert [found[dicom_id(n)]["split"] for n in range(1, 6)] == ["train", "train", "valid", "test", "test"]
    assert {found[dicom_id(n)]["patient"] for n in (1, 2)} == {"p10000032"}
    assert {found[dicom_id(n)]["study"] for n in (4, 5)} == {"s50771383"}
    third = {name: value for name in CHEXPERT.findings if (value := found[dicom_id(3)][name]) is not None}
    assert third == {"Consolidation": -1, "Lung Opacity": 1, "Lung Lesion": 0, "Pleural Effusion": 0}


def test_nih_s_task_gets_what_the_labels_tell_and_null_for_the_rest(make):
    found = rows(sources.collect("mimic", make(), task=NIH, views="all"))
    third, fifth = found[dicom_id(3)], found[dicom_id(5)]
    assert (third["Effusion"], third["Consolidation"]) == (0, -1)
    assert (third["Mass"], third["Nodule"]) == (0, 0)  # no lesion: neither
    assert (fifth["Mass"], fifth["Nodule"]) == (None, None)  # a lesion: one of them, or another
    for row in found.values():
        assert [row[name] for name in ("Emphysema", "Fibrosis", "Hernia")] == [None] * 3


def test_an_exclusive_task_takes_the_images_of_its_classes_only(make):
    got = sources.collect("mimic", make(), task=PNEUMONIA, views="all")
    assert {r["image"][-44:]: (r["Normal"], r["Pneumonia"]) for r in got.rows.to_dicts()} == {
        dicom_id(1): (1, 0),
        dicom_id(2): (1, 0),
        dicom_id(4): (0, 1),
        dicom_id(5): (0, 1),
    }
    assert [entry["reason"].split(":")[0] for entry in got.refused] == ["no class"]
    assert sources.collect("mimic", make(), task=COVID).rows.height == 2


def test_a_study_labelled_with_two_classes_is_a_contradiction(make):
    both = labels(10000032, 50414267, No_Finding="1.0", Pneumonia="1.0")
    root = make(chexpert="\n".join([HEADER, both, *LABELS[1:]]))
    got = sources.collect("mimic", root, task=PNEUMONIA, views="all")
    assert {entry["reason"] for entry in got.refused} >= {"contradiction: Normal and Pneumonia"}


def test_every_defect_is_refused_with_its_reason(make):
    images = [
        *IMAGES,
        (6, 10000032, 50414267, "LAO", "", "train"),
        (7, 11111111, 59999999, "PA", "", "train"),  # a study without labels
        (8, 12222222, 58888888, "PA", "", "train"),  # a bad label
        (9, 13333333, 57777777, "PA", "", "elsewhere"),
        (10, 14444444, 56666666, "PA", "", "train"),  # two rows of labels
    ]
    table = [
        HEADER,
        *LABELS,
        labels(12222222, 58888888, Edema="2.0"),
        labels(13333333, 57777777),
        labels(14444444, 56666666),
        labels(14444444, 56666666, Edema="1.0"),
    ]
    root = make(images, chexpert="\n".join(table))
    next(root.rglob(f"{dicom_id(1)}.jpg")).unlink()
    stray = root / f"files/p10/p10000032/s50414267/{dicom_id(99)}.jpg"
    stray.write_bytes(b"x")
    got = sources.collect("mimic", root, views="all")
    found = {entry["image"].rsplit("/", 1)[-1].removesuffix(".jpg"): entry["reason"] for entry in got.refused}
    assert found == {
        dicom_id(1): "missing file: listed in the table but not in the collection",
        dicom_id(6): "wrong view: LAO is neither frontal nor lateral",
        dicom_id(7): "unlabelled: study s59999999 has no row of labels",
        dicom_id(8): "unknown label: Edema = '2.0'",
        dicom_id(9): "unknown split: 'elsewhere'",
        dicom_id(10): "contradiction: study 56666666 has two rows of labels",
        dicom_id(99): "unlabelled: no row of the metadata names it",
    }
    assert got.rows.height == 4


def test_another_label_table_replaces_the_first(make):
    root = make(negbio="\n".join([HEADER, *(labels(s, t, Edema="1.0") for _, s, t, *_ in IMAGES[1:4])]))
    got = sources.collect("mimic", root, views="all", labels="mimic-cxr-2.0.0-negbio.csv")
    assert got.rows["Edema"].to_list() == [1] * 5
    assert got.rows["No Finding"].to_list() == [None] * 5


def test_the_radiologists_test_set_has_no_subject_and_another_name_for_opacity(make):
    root = make()
    (root / "mimic-cxr-2.1.0-test-set-labeled.csv").write_text("study_id,Airspace Opacity,Edema\n50771383,1,0\n")
    task = Task("two", ("Lung Opacity", "Edema"))
    got = sources.collect("mimic", root, task=task, views="all", labels="mimic-cxr-2.1.0-test-set-labeled.csv")
    assert got.rows.select("split", "Lung Opacity", "Edema").rows() == [("test", 1, 0)] * 2
    assert len(got.refused) == 3


def test_mimic_iv_s_patients_tell_sex_and_age(make):
    patients = "subject_id,gender,anchor_age,anchor_year,anchor_year_group\n10000032,F,52,2178,2014 - 2016"
    found = rows(sources.collect("mimic", make(patients=patients), views="all"))
    assert (found[dicom_id(1)]["sex"], found[dicom_id(1)]["age_years"]) == ("F", 54)
    assert (found[dicom_id(3)]["sex"], found[dicom_id(3)]["age_years"]) == (None, None)


def test_it_packs(make, tmp_path, capsys):
    packed = command.run(command.Request("mimic", make(), tmp_path / "out", size=16, workers=1))
    assert packed.manifest["split"].to_list() == ["train", "valid", "test"]
    packed.verify()


@pytest.mark.parametrize("name", ["chexpert", "metadata", "split"])
def test_a_missing_or_foreign_table_is_named(make, name):
    root = make(**{name: "a,b\n1,2"})
    with pytest.raises(DatasetError, match=f"mimic-cxr-2.0.0-{name}.csv has no column"):
        sources.collect("mimic", root)
    (root / f"mimic-cxr-2.0.0-{name}.csv").unlink()
    with pytest.raises(DatasetError, match=f"no label table mimic-cxr-2.0.0-{name}.csv"):
        sources.collect("mimic", root)
    (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match=f"{name}.csv.gz"):
        sources.collect("mimic", root)


def test_a_task_of_which_it_labels_nothing_is_an_error(make):
    with pytest.raises(DatasetError, match="labels none of its findings"):
        sources.collect("mimic", make(), task=Task("bones", ("Scoliosis",)))
