"""Collections in their published layouts to rows and refusals; labels counted by csv alone."""

import csv
import io
import zipfile
from collections import Counter

import polars as pl
import pytest

from wetread.dataset import command, files, sources
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT, COVID, NIH, PNEUMONIA, Task
from wetread.radiograph import phantom


def reasons(collection):
    return Counter(entry["reason"].split(":")[0] for entry in collection.refused)


def value(text):
    return int(float(text)) if text else None


# --- CheXpert ---


def test_chexpert_gives_every_row_of_its_tables_as_they_say(chexpert):
    root, train = chexpert
    got = sources.collect("chexpert", root, views="all")
    assert not got.refused
    assert got.task is CHEXPERT
    rows = {row["image"]: row for row in got.rows.to_dicts()}
    for line in train:
        row = rows[line["Path"].removeprefix("CheXpert-v1.0/")]
        _, split, patient, study, name = line["Path"].split("/")
        assert (row["split"], row["patient"], row["study"]) == (split, patient, f"{patient}/{study}")
        assert row["view"] == ("LATERAL" if "lateral" in name else line["AP/PA"])
        assert row["sex"] == {"Male": "M", "Female": "F", "Unknown": None}[line["Sex"]]
        assert row["age_years"] == float(line["Age"])
        assert row["source"] == "chexpert"
        assert {f: row[f] for f in CHEXPERT.findings} == {f: value(line[f]) for f in CHEXPERT.findings}
    assert Counter(got.rows["split"])["train"] == len(train)
    assert got.rows.schema["Edema"] == pl.Int8


def test_the_published_batches_give_the_same_without_being_unpacked(chexpert, batches):
    root, _ = chexpert
    folder = sources.collect("chexpert", root, views="all")
    archives = sources.collect("chexpert", batches, views="all")
    place = ["path", "file", "member"]
    assert archives.rows.drop(place).equals(folder.rows.drop(place))
    assert archives.refused == folder.refused == []
    for left, right in zip(folder.rows.iter_rows(named=True), archives.rows.iter_rows(named=True), strict=True):
        assert files.read(left["file"], left["member"]) == files.read(right["file"], right["member"])
    assert not list(batches.rglob("*.jpg"))


def test_one_whole_archive_gives_the_same_too(chexpert, tmp_path):
    root, _ = chexpert
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, f"CheXpert-v1.0-small/{file.relative_to(root)}")
    whole = sources.collect("chexpert", tmp_path / "whole.zip", views="all")
    folder = sources.collect("chexpert", root, views="all")
    assert whole.rows.drop("path", "file", "member").equals(folder.rows.drop("path", "file", "member"))


@pytest.mark.parametrize(("views", "kept"), [("frontal", "frontal"), ("lateral", "lateral")])
def test_images_of_another_view_are_refused_by_name(chexpert, views, kept):
    root, _ = chexpert
    got = sources.collect("chexpert", root, views=views)
    assert all(kept in image for image in got.rows["image"])
    assert got.refused
    assert all(kept not in entry["image"] and entry["reason"].startswith("wrong view: ") for entry in got.refused)
    assert got.rows.height + len(got.refused) == len(list(root.rglob("*.jpg")))


def test_another_label_table_replaces_the_training_labels_and_no_others(chexpert):
    root, train = chexpert
    changed = [{**row, "Edema": "1.0"} for row in train]
    text = "\n".join([",".join(train[0]), *(",".join(row.values()) for row in changed)])
    (root / "train_visualCheXbert.csv").write_text(text)
    plain = sources.collect("chexpert", root, views="all").rows
    other = sources.collect("chexpert", root, views="all", labels="train_visualCheXbert.csv").rows
    assert other.filter(split="train")["Edema"].to_list() == [1] * len(train)
    assert other.filter(split="valid").equals(plain.filter(split="valid"))
    assert other.drop("Edema").equals(plain.drop("Edema"))


@pytest.mark.parametrize("name", ["test.csv", "test_labels.csv"])
def test_the_test_set_needs_neither_age_nor_view_columns(chexpert, name):
    root, _ = chexpert
    for view in ("view1_frontal", "view2_lateral"):
        file = root / f"test/patient00900/study1/{view}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    zeros = ",".join(["0"] * 13)
    lines = [f"test/patient00900/study1/{view}.jpg,1,{zeros}" for view in ("view1_frontal", "view2_lateral")]
    (root / name).write_text("\n".join(["Path," + ",".join(CHEXPERT.findings), *lines]))
    test = sources.collect("chexpert", root, views="all").rows.filter(split="test")
    assert test["No Finding"].to_list() == [1, 1]
    assert test["view"].to_list() == [None, "LATERAL"]
    assert test["age_years"].to_list() == [None, None]


def test_ground_truth_by_study_is_given_to_every_image_of_the_study(shared, tmp_path):
    text = (shared / "data/chexpert_test_labels/groundtruth.csv").read_text()
    (tmp_path / "groundtruth.csv").write_text(text)
    lines = list(csv.DictReader(io.StringIO(text)))
    for line in lines[:3]:
        for view in ("view1_frontal.jpg", "view2_lateral.jpg"):
            file = tmp_path / line["Study"].split("/", 1)[1] / view
            file.parent.mkdir(parents=True) if not file.parent.exists() else None
            file.write_bytes(b"x")
    got = sources.collect("chexpert", tmp_path, views="all")
    assert got.rows.height == 6
    assert reasons(got) == {"missing file": len(lines) - 3}
    for line in lines[:3]:
        study = got.rows.filter(pl.col("study") == line["Study"].split("/", 2)[2])
        assert study.height == 2
        for finding in CHEXPERT.findings:
            assert study[finding].to_list() == [value(line[finding])] * 2


def test_every_defect_of_a_row_is_refused_with_its_reason(chexpert):
    root, train = chexpert
    rows = [dict(row) for row in train]
    rows[0]["Edema"] = "2.0"
    rows[1]["Age"] = "411"
    rows[2]["Age"] = "old"
    rows.append({**rows[3], "Path": "CheXpert-v1.0/train/patient99999/study1/view1_frontal.jpg"})
    rows.append(dict(rows[4]))
    rows.append({**rows[3], "Path": "nonsense"})
    (root / "train.csv").write_text("\n".join([",".join(train[0]), *(",".join(row.values()) for row in rows)]))
    (root / "train/patient77777/study1").mkdir(parents=True)
    (root / "train/patient77777/study1/view1_frontal.jpg").write_bytes(b"x")
    got = sources.collect("chexpert", root, views="all")
    found = {entry["image"]: entry["reason"] for entry in got.refused}
    name = [row["Path"].removeprefix("CheXpert-v1.0/") for row in rows]
    assert found[name[0]] == "unknown label: Edema = '2.0'"
    assert found[name[1]] == "bad age: '411'"
    assert found[name[2]] == "bad age: 'old'"
    assert found["train/patient99999/study1/view1_frontal.jpg"].startswith("missing file")
    assert found[name[4]].startswith("duplicate")
    assert found["train/patient77777/study1/view1_frontal.jpg"].startswith("unlabelled")
    assert found["train/nonsense"].startswith("missing file")
    assert len(got.refused) == 7
    assert name[4] in got.rows["image"]


def test_a_task_of_five_findings_takes_their_columns_only(chexpert):
    five = Task("five", ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"))
    got = sources.collect("chexpert", chexpert[0], task=five)
    assert got.rows.columns == [*sources.COLUMNS, *five.findings, *sources.PLACE]
    with pytest.raises(DatasetError, match="no column 'Effusion' of task 'nih'"):
        sources.collect("chexpert", chexpert[0], task=NIH)


def test_phantoms_in_chexpert_s_layout_are_known_as_phantoms(tmp_path):
    phantom.write_chexpert(tmp_path, 4, seed=1, size=64, label_noise=True)
    got = sources.collect("chexpert", tmp_path, views="all")
    assert (got.about["kind"], got.about["licence"]) == ("phantom", "Apache-2.0")
    assert set(got.rows["source"]) == {"phantom"}
    lines = [row for table in tmp_path.rglob("*.csv") for row in csv.DictReader(io.StringIO(table.read_text()))]
    for finding in CHEXPERT.findings:
        assert Counter(got.rows[finding]) == Counter(value(line[finding]) for line in lines)


# --- NIH ---

NIH_ROWS = [
    ("00000001_000.png", "Cardiomegaly|Emphysema", "58", "M", "PA"),
    ("00000001_001.png", "No Finding", "058Y", "M", "AP"),
    ("00000002_000.png", "Pleural_Thickening", "011M", "F", "PA"),
    ("00000003_005.png", "Hernia", "", "F", "PA"),
]


@pytest.mark.parametrize("header", ["Patient Gender", "Patient Sex"])
def test_nih_labels_are_present_when_named_and_absent_otherwise(make_nih, header):
    root = make_nih(NIH_ROWS, sex=header)
    got = sources.collect("nih", root)
    assert not got.refused
    rows = got.rows.sort("image").to_dicts()
    for row, (name, text, _, sex, view) in zip(rows, NIH_ROWS, strict=True):
        assert {f for f in NIH.findings if row[f] == 1} == set(text.split("|")) - {"No Finding"}
        assert {row[f] for f in NIH.findings} <= {0, 1}
        assert (row["image"], row["patient"], row["sex"], row["view"]) == (name, name[:8], sex, view)
    assert [row["age_years"] for row in rows[:3]] == pytest.approx([58, 58, 11 / 12], rel=1e-6)
    assert rows[3]["age_years"] is None
    assert [row["study"] for row in rows] == ["00000001-0", "00000001-1", "00000002-0", "00000003-5"]


def test_nih_s_published_lists_give_the_splits(make_nih):
    names = [row[0] for row in NIH_ROWS]
    root = make_nih(NIH_ROWS, lists={"train_val_list.txt": names[:2], "test_list.txt": names[3:]})
    assert sources.collect("nih", root).rows.sort("image")["split"].to_list() == ["train", "train", None, "test"]


def test_nih_s_defects_are_refused_with_reasons(make_nih, picture):
    rows = [
        *NIH_ROWS,
        ("00000004_000.png", "Pneumonya", "50", "F", "PA"),
        ("00000004_001.png", "No Finding|Edema", "50", "F", "PA"),
        ("00000004_002.png", "Edema", "412", "F", "PA"),
        ("00000004_003.png", "", "50", "F", "PA"),
    ]
    root = make_nih(rows)
    (root / "images_001/images/00000009_000.png").write_bytes(picture(0))
    next(root.rglob("00000003_005.png")).unlink()
    got = sources.collect("nih", root)
    assert {entry["image"].rsplit("/", 1)[-1]: entry["reason"].split(":")[0] for entry in got.refused} == {
        "00000003_005.png": "missing file",
        "00000004_000.png": "unknown label",
        "00000004_001.png": "contradiction",
        "00000004_002.png": "bad age",
        "00000004_003.png": "unknown label",
        "00000009_000.png": "unlabelled",
    }


def test_nih_rejects_a_task_whose_findings_it_does_not_label(make_nih):
    with pytest.raises(DatasetError, match="'Normal' is no NIH label"):
        sources.collect("nih", make_nih(NIH_ROWS), task=PNEUMONIA)


def test_nih1000_is_counted_as_its_csv_counts(shared):
    root = shared / "data/nih1000"
    got = sources.collect("nih", root)
    with (root / "Data_Entry_2017.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert got.rows.height == len(lines) == 799
    assert got.rows["patient"].n_unique() == len({line["Patient ID"] for line in lines})
    counted = Counter(label for line in lines for label in line["Finding Labels"].split("|"))
    assert {f: got.rows[f].sum() for f in NIH.findings} == {f: counted[f] for f in NIH.findings}
    assert int((got.rows["age_years"] < 18).sum()) == 86


# --- folders ---

KERMANY = {
    "train/PNEUMONIA/person12_bacteria_46.jpeg": 1,
    "train/PNEUMONIA/person12_bacteria_47.jpeg": 2,
    "train/PNEUMONIA/person12_virus_33.jpeg": 3,
    "train/PNEUMONIA/person447_virus_921_1.jpeg": 4,
    "train/NORMAL/IM-0115-0001.jpeg": 5,
    "train/NORMAL/IM-0115-0001-0002.jpeg": 6,
    "train/NORMAL/NORMAL2-IM-0115-0001.jpeg": 7,
    "val/NORMAL/NORMAL2-IM-1427-0001.jpeg": 8,
    "test/NORMAL/IM-0001-0001.jpeg": 9,
}


def test_kermany_s_patients_are_subtype_and_number(make_folders):
    got = sources.collect("kermany", make_folders(KERMANY))
    assert not got.refused
    assert got.task is PNEUMONIA
    patients = dict(got.rows.select("image", "patient").iter_rows())
    assert patients == {
        "train/PNEUMONIA/person12_bacteria_46.jpeg": "bacteria-12",
        "train/PNEUMONIA/person12_bacteria_47.jpeg": "bacteria-12",
        "train/PNEUMONIA/person12_virus_33.jpeg": "virus-12",
        "train/PNEUMONIA/person447_virus_921_1.jpeg": "virus-447",
        "train/NORMAL/IM-0115-0001.jpeg": "IM-0115",
        "train/NORMAL/IM-0115-0001-0002.jpeg": "IM-0115",
        "train/NORMAL/NORMAL2-IM-0115-0001.jpeg": "NORMAL2-IM-0115",
        "val/NORMAL/NORMAL2-IM-1427-0001.jpeg": "NORMAL2-IM-1427",
        "test/NORMAL/IM-0001-0001.jpeg": "IM-0001",
    }
    splits = dict(got.rows.select("image", "split").iter_rows())
    assert splits["val/NORMAL/NORMAL2-IM-1427-0001.jpeg"] == "train"  # 16 images are no validation split
    assert splits["test/NORMAL/IM-0001-0001.jpeg"] == "test"
    assert set(got.rows["view"]) == {"AP"}


def test_patients_who_share_a_byte_identical_file_become_one_through_chains(make_folders, picture):
    root = make_folders(
        {
            "PNEUMONIA/person1_virus_1.jpeg": picture(1),
            "PNEUMONIA/person2_virus_1.jpeg": picture(1),
            "PNEUMONIA/person2_virus_2.jpeg": picture(2),
            "PNEUMONIA/person3_virus_1.jpeg": picture(2),
            "PNEUMONIA/person4_virus_1.jpeg": picture(4),
            "NORMAL/IM-0001-0001.jpeg": picture(5),
        }
    )
    rows = sources.collect("kermany", root).rows
    by_image = {image.rsplit("/", 1)[-1]: patient for image, patient in rows.select("image", "patient").iter_rows()}
    assert {by_image[f"person{n}_virus_1.jpeg"] for n in (1, 2, 3)} == {"virus-1"}
    assert by_image["person4_virus_1.jpeg"] == "virus-4"


def test_identical_files_of_different_classes_are_refused(make_folders, picture):
    root = make_folders(
        {"NORMAL/a.png": picture(1), "PNEUMONIA/b.png": picture(1), "NORMAL/c.png": picture(2), "PNEUMONIA/d.png": 3}
    )
    got = sources.collect("folders", root)
    assert {entry["image"]: entry["reason"] for entry in got.refused} == {
        "NORMAL/a.png": "contradiction: byte-identical to PNEUMONIA/b.png",
        "PNEUMONIA/b.png": "contradiction: byte-identical to NORMAL/a.png",
    }


def test_a_name_that_is_none_of_kermany_s_is_refused_there_and_a_patient_of_its_own_elsewhere(make_folders):
    root = make_folders({"NORMAL/IM-0001-0001.jpeg": 1, "PNEUMONIA/scan.jpeg": 2})
    got = sources.collect("kermany", root)
    assert reasons(got) == {"unknown patient": 1}
    assert sources.collect("folders", root).rows["patient"].to_list() == ["IM-0001", "scan"]


def test_films_of_one_dicom_patient_stay_together_under_a_pseudonym(make_folders, tmp_path):
    films = {
        f"{label}/{number}{suffix}": phantom.dicom(phantom.make(number, size=64), patient=patient)
        for number, (label, patient, suffix) in enumerate(
            [("A", "DOE-1", ".dcm"), ("B", "DOE-1", ""), ("A", "DOE-2", ".dcm"), ("B", "", ".DCM")]
        )
    }
    root = make_folders(films | {"B/9.dcm": b"hostile", "B/8": b"bytes"})
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        for file in [*root.rglob("*.*"), root / "B/1", root / "B/8"]:
            archive.write(file, file.relative_to(root))
    for place in (root, tmp_path / "films.zip"):
        patients = dict(sources.collect("folders", place).rows.select("image", "patient").iter_rows())
        assert patients["A/0.dcm"] == patients["B/1"]
        assert len({patients[image] for image in ("A/0.dcm", "A/2.dcm", "B/3.DCM", "B/9.dcm", "B/8")}) == 5
        assert not any("DOE" in patient for patient in patients.values())


def test_the_collection_s_double_folder_is_refused_as_duplicates(make_folders):
    doubled = {f"chest_xray/{path}": seed for path, seed in KERMANY.items()}
    doubled |= {f"chest_xray/chest_xray/{path}": seed for path, seed in KERMANY.items()}
    got = sources.collect("kermany", make_folders(doubled))
    assert set(got.rows["image"]) == set(KERMANY)
    assert reasons(got) == {"duplicate": len(KERMANY)}


def test_kermany224_is_as_published(shared):
    got = sources.collect("kermany", shared / "data/kermany224")
    names = [file.name for file in (shared / "data/kermany224").rglob("*.jpeg")]
    assert got.rows.height == len(names) == 5216
    assert not got.refused
    numbers = {kind: {n.split("_")[0] for n in names if f"_{kind}_" in n} for kind in ("bacteria", "virus")}
    normals = {"-".join(n.split("-")[: 3 if n.startswith("NORMAL2") else 2]) for n in names if "IM-" in n}
    assert got.rows["patient"].n_unique() == sum(map(len, numbers.values())) + len(normals) == 3654
    assert len(numbers["bacteria"] & numbers["virus"]) == 808  # of the collection's 979; the rest touch the test images
    assert {f: got.rows[f].sum() for f in PNEUMONIA.findings} == {"Normal": 1341, "Pneumonia": 3875}


FOUR = ["NORMAL", "PNEUMONIA", "COVID19", "TURBERCULOSIS"]


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title])
def test_the_four_class_set_is_the_covid_task_whatever_the_case(make_folders, change):
    contents = {
        f"{split}/{change(name)}/{split}{name}.png": i * 9 + j
        for i, split in enumerate(["train", "val", "test"])
        for j, name in enumerate(FOUR)
    }
    got = sources.collect("folders", make_folders(contents))
    assert got.task is COVID
    assert not got.refused
    assert Counter(got.rows["split"]) == {"train": 4, "valid": 4, "test": 4}
    for name, finding in zip(FOUR, COVID.findings, strict=True):
        assert got.rows.filter(pl.col("image").str.contains(f"(?i)/{name}/"))[finding].to_list() == [1, 1, 1]
    assert (got.rows.select(COVID.findings).sum_horizontal() == 1).all()


def test_other_folder_names_make_a_task_of_their_own(make_folders):
    got = sources.collect("folders", make_folders({"Nodule/a.png": 1, "normal/b.png": 2, "Hernia/c.png": 3}))
    assert got.task == Task("folders", ("normal", "Hernia", "Nodule"), exclusive=True, normal="normal")
    assert (got.rows.select("normal", "Hernia", "Nodule").sum_horizontal() == 1).all()


def test_a_given_task_refuses_folders_that_it_does_not_know(make_folders):
    root = make_folders({"NORMAL/a.png": 1, "COVID19/sub/b.png": 2, "Broken Leg/c.png": 3, "readme.txt": b"hi"})
    got = sources.collect("folders", root, task=COVID)
    assert got.rows["image"].to_list() == ["COVID19/sub/b.png", "NORMAL/a.png"]
    assert {entry["image"]: entry["reason"] for entry in got.refused} == {
        "Broken Leg/c.png": "unknown label: folder 'Broken Leg' is no finding of task 'covid'",
        "readme.txt": "no class: not in a class folder",
    }


@pytest.mark.parametrize("names", [["only"], [f"class{i}" for i in range(65)], []])
def test_folders_that_are_no_classes_are_an_error(make_folders, tmp_path, names):
    root = make_folders({f"{name}/a.png": i for i, name in enumerate(names)}) if names else tmp_path
    with pytest.raises(DatasetError, match=f"{len(names)} class folders"):
        sources.collect("folders", root)


def test_a_folder_name_is_shown_as_it_is_and_steers_no_terminal(make_folders, tmp_path, capsys):
    root = make_folders({"[red]one/a.png": 1, "\x1b[31mtwo/b.png": 2, "\x1b[31mtwo/c.png": b"bad"})
    command.run(command.Request("folders", root, tmp_path / "out", size=16, workers=1))
    out = capsys.readouterr().out
    assert "[red]one" in out
    assert "\x1b" not in out
    assert "�[31mtwo" in out
