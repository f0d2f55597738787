"""VinDr-CXR in its published layout, small and hand-made."""

from itertools import product

import pytest
from films import dicom, scene

from wetread.dataset import command, sources
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT, NIH, PNEUMONIA

LABELS = [
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation"),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis"),
    *("Other diseases", "No finding"),
]


def line(*keys, on=(), off="0"):
    return ",".join([*keys, *("1" if name in on else off for name in LABELS)])


def train(image, *readers):
    return [line(image, f"R{number}", on=on) for number, on in enumerate(readers, 1)]


NOTHING, SICK = ("No finding",), ("Pneumonia", "Lung Opacity")
TRAIN = [
    *train("agree", SICK, SICK, SICK),
    *train("normal", NOTHING, NOTHING, NOTHING),
    *train("split", SICK, NOTHING, SICK),
    *train("nodule", ("Nodule/Mass",), ("Nodule/Mass",), ("Nodule/Mass",)),
]
TEST = [line("held", on=("Pleural effusion",))]


@pytest.fixture
def make(make_folders):
    def write(train=TRAIN, test=TEST, picture=b"x"):
        last = {"train": "Other diseases", "test": "Other disease"}  # as published
        heads = {"train": ["image_id", "rad_id"], "test": ["image_id"]}
        files = {}
        for split, lines in (("train", train), ("test", test)):
            header = ",".join([*heads[split], *LABELS]).replace("Other diseases", last[split])
            files[f"annotations/image_labels_{split}.csv"] = "\n".join([header, *lines, ""]).encode()
            files |= {f"{split}/{text.split(',')[0]}.dicom": picture for text in lines}
        return make_folders(files)

    return write


def by_name(collection):
    return {row["study"]: row for row in collection.rows.to_dicts()}


def test_what_all_readers_say_stands_and_what_they_dispute_is_uncertain(make):
    got = sources.collect("vindr", make())
    assert not got.refused
    found = by_name(got)
    assert found["agree"]["Pneumonia"] == found["agree"]["Lung Opacity"] == 1
    assert found["normal"]["No Finding"] == 1
    assert {found["normal"][f] for f in ("Pneumonia", "Edema", "Fracture", "Pleural Other")} == {0}
    assert [found["split"][f] for f in ("No Finding", "Pneumonia", "Lung Opacity")] == [-1, -1, -1]
    assert found["split"]["Edema"] == 0
    assert found["held"]["Pleural Effusion"] == 1
    assert [found[name]["split"] for name in ("agree", "held")] == ["train", "test"]
    assert [found[name]["readers"] for name in ("agree", "held")] == [3, 1]
    assert {row["view"] for row in found.values()} == {"PA"}


def test_a_label_that_it_does_not_have_is_null(make):
    for row in by_name(sources.collect("vindr", make())).values():
        assert [row[f] for f in ("Support Devices", "Enlarged Cardiomediastinum")] == [None, None]
    for row in by_name(sources.collect("vindr", make(), task=NIH)).values():
        assert row["Hernia"] is None


def test_a_label_for_two_findings_denies_both_and_asserts_neither(make):
    found = by_name(sources.collect("vindr", make(), task=NIH))
    assert (found["nodule"]["Mass"], found["nodule"]["Nodule"]) == (None, None)
    assert (found["normal"]["Mass"], found["normal"]["Nodule"]) == (0, 0)


@pytest.mark.parametrize("votes", list(product([0, 1], repeat=3)))
def test_three_votes_give_present_absent_or_uncertain(make, votes):
    lines = train("x", *(("Edema",) if vote else () for vote in votes))
    row = by_name(sources.collect("vindr", make(train=lines)))["x"]
    assert row["Edema"] == {0: 0, 3: 1}.get(sum(votes), -1)


def test_a_reader_who_leaves_a_blank_has_said_nothing(make):
    lines = [line("x", "R1", on=("Edema",), off=""), line("x", "R2", on=("Edema",)), line("x", "R3", on=("Edema",))]
    row = by_name(sources.collect("vindr", make(train=lines)))["x"]
    assert (row["Edema"], row["Cardiomegaly"]) == (1, None)


def test_an_exclusive_task_refuses_what_the_readers_dispute(make):
    got = sources.collect("vindr", make(), task=PNEUMONIA)
    assert {name: row["Pneumonia"] for name, row in by_name(got).items()} == {"agree": 1, "normal": 0}
    assert {entry["reason"] for entry in got.refused} == {"no class: certainly none of Normal, Pneumonia"}
    assert len(got.refused) == 3


def test_bad_rows_are_refused_with_reasons(make):
    bad = [
        line("odd", "R1", on=()),
        line("odd", "R1", on=()),
        line("two", "R1", off="2"),
        line("minus", "R1", off="-1"),
    ]
    root = make(train=[*TRAIN, *bad])
    (root / "train/agree.dicom").unlink()
    (root / "train/stray.dicom").write_bytes(b"x")
    found = {e["image"]: e["reason"] for e in sources.collect("vindr", root).refused}
    assert found == {
        "train/odd": "contradiction: two rows of reader R1",
        "train/two": "unknown label: Aortic enlargement = '2'",
        "train/minus": "unknown label: Aortic enlargement = '-1'",
        "train/agree": "missing file: listed in the table but not in the collection",
        "train/stray.dicom": "unlabelled: no table has a row for it",
    }


def test_dicom_headers_tell_age_and_sex_and_the_films_are_packed(make, tmp_path, capsys):
    film = dicom(scene(), PatientAge="061Y", PatientSex="F", ViewPosition="PA", BodyPartExamined="CHEST")
    packed = command.run(command.Request("vindr", make(picture=film), tmp_path / "out", size=16, workers=1, valid=0))
    assert packed.manifest.select("sex", "age_years").unique().rows() == [("F", 61.0)]
    assert set(packed.task.findings) == set(CHEXPERT.findings)
    assert len(packed) == 5


def test_missing_tables_and_columns_are_errors(make):
    root = make()
    with pytest.raises(DatasetError, match=r"no label table other\.csv"):
        sources.collect("vindr", root, labels="other.csv")
    (root / "annotations/image_labels_test.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="has no column 'image_id'"):
        sources.collect("vindr", root)
    for name in ("train", "test"):
        (root / f"annotations/image_labels_{name}.csv").unlink()
    with pytest.raises(DatasetError, match="no label table"):
        sources.collect("vindr", root)
