"""CheXpert's table of patients joined to its images, from Excel and from CSV."""

import openpyxl
import pytest

from wetread.dataset import command, sources
from wetread.errors import DatasetError

HEADER = ["PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY"]
PATIENTS = [
    ["patient00001", "Female", 61, "White, non-Hispanic", "Non-Hispanic/Non-Latino"],
    ["patient00002", "Male", 47, "Asian", "Unknown"],
    ["patient00003", "Unknown", None, None, None],
    ["patient99999", "Male", 30, "Other", "Hispanic/Latino"],
]


def excel(path, rows, header=HEADER):
    book = openpyxl.Workbook()
    for row in (header, *rows):
        book.active.append(row)
    book.save(path)


def text(path, rows, header=HEADER):
    path.write_text("\n".join(",".join(f'"{"" if v is None else v}"' for v in row) for row in (header, *rows)))


WRITERS = [("CHEXPERT DEMO.xlsx", excel), ("CHEXPERT DEMO.csv", text), ("chexpert_demo.csv", text)]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_race_and_ethnicity_are_joined_by_patient(chexpert, name, write):
    root, _ = chexpert
    before = sources.collect("chexpert", root, views="all").rows
    write(root / name, PATIENTS)
    after = sources.collect("chexpert", root, views="all").rows
    assert after.drop("race", "ethnicity", "sex").equals(before.drop("sex"))
    known = before["sex"].is_not_null()  # what the label tables say stays
    assert after.filter(known)["sex"].equals(before.filter(known)["sex"])
    told = {row["patient"]: (row["race"], row["ethnicity"]) for row in after.to_dicts()}
    assert told["patient00001"] == ("White, non-Hispanic", "Non-Hispanic/Non-Latino")
    assert told["patient00002"] == ("Asian", "Unknown")
    assert {told[f"patient{number:05d}"] for number in range(3, 21)} == {(None, None)}
    assert after.height == before.height


def test_sex_and_age_are_filled_where_the_label_tables_are_blank(chexpert):
    root, train = chexpert
    rows = [{**row, "Sex": "Unknown", "Age": ""} for row in train]
    (root / "train.csv").write_text("\n".join([",".join(train[0]), *(",".join(row.values()) for row in rows)]))
    excel(root / "CHEXPERT DEMO.xlsx", PATIENTS)
    got = sources.collect("chexpert", root, views="all").rows
    told = {row["patient"]: (row["sex"], row["age_years"]) for row in got.filter(split="train").to_dicts()}
    assert [told[f"patient{number:05d}"] for number in range(1, 5)] == [
        ("F", 61),
        ("M", 47),
        (None, None),
        (None, None),
    ]


def test_a_packed_dataset_keeps_them_as_columns_covered_by_its_hash(chexpert, tmp_path, capsys):
    root, _ = chexpert
    plain = command.run(command.Request("chexpert", root, tmp_path / "plain", size=8, workers=1))
    text(root / "CHEXPERT DEMO.csv", PATIENTS)
    first = command.run(command.Request("chexpert", root, tmp_path / "first", size=8, workers=1))
    text(root / "CHEXPERT DEMO.csv", [[*PATIENTS[0][:3], "Black", "Unknown"], *PATIENTS[1:]])
    second = command.run(command.Request("chexpert", root, tmp_path / "second", size=8, workers=1))
    assert "Asian" in first.manifest["race"].to_list()
    assert len({plain.hash, first.hash, second.hash}) == 3
    for packed in (plain, first, second):
        packed.verify()


def test_the_same_row_twice_is_one(chexpert):
    text(chexpert[0] / "CHEXPERT DEMO.csv", [PATIENTS[0], PATIENTS[0]])
    assert "White, non-Hispanic" in sources.collect("chexpert", chexpert[0]).rows["race"].to_list()


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([PATIENTS[0], [*PATIENTS[0][:3], "Asian", "Unknown"]], HEADER, "patient00001 has two rows that differ"),
        ([["patient00001", "Female", "old", "Asian", "Unknown"]], HEADER, "patient patient00001: bad age: 'old'"),
        ([["a", "b"]], ["PATIENT", "GENDER"], "no column 'AGE_AT_CXR'"),
    ],
)
@pytest.mark.parametrize(("name", "write"), WRITERS[:2], ids=["xlsx", "csv"])
def test_a_table_that_contradicts_itself_is_an_error_that_names_the_patient(
    chexpert, name, write, rows, header, message
):
    write(chexpert[0] / name, rows, header)
    with pytest.raises(DatasetError, match=message):
        sources.collect("chexpert", chexpert[0])


def test_a_file_that_is_no_excel_table_is_an_error(chexpert):
    (chexpert[0] / "CHEXPERT DEMO.xlsx").write_bytes(b"not Excel")
    with pytest.raises(DatasetError, match="not an Excel table"):
        sources.collect("chexpert", chexpert[0])
