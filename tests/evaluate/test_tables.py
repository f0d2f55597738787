import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.errors import DatasetError
from wetread.evaluate import tables

GOOD = "Study,Edema,Fracture\na,1,0.5\nb,0,2.81\n"


@pytest.fixture
def write(tmp_path):
    def to(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to


def numbers(table, columns=("Edema", "Fracture"), studies=("a", "b")):
    return table.values(columns, studies, allowed=None, missing=False)


def test_cells_are_joined_by_the_names_of_row_and_column(write):
    table = tables.read(write("Fracture,Study,Edema\n2.81,b,0\n0.5,a,1\n"))
    assert numbers(table).tolist() == numbers(tables.read(write(GOOD))).tolist() == [[1, 0.5], [0, 2.81]]
    assert table.columns == ("Fracture", "Edema")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),  # as spreadsheets save UTF-8
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        GOOD.rstrip("\n"),
        GOOD + "\n,,\n\n",
        GOOD.replace(",", " , "),
        GOOD.replace("\na,", '\n"a",'),
    ],
)
def test_what_spreadsheets_do_to_a_file_does_not_matter(write, content):
    assert numbers(tables.read(write(content))).tolist() == [[1, 0.5], [0, 2.81]]


def test_a_quoted_name_may_hold_commas_and_line_ends_which_count_as_spaces(write):
    table = tables.read(write('Study,Edema\n"one, two\nthree",high\n'))
    assert list(table.rows) == ["one, two three"]
    with pytest.raises(DatasetError, match="Study one, two three: Edema is 'high'"):
        numbers(table, ["Edema"], ["one, two three"])


@given(st.permutations(range(4)), st.permutations(range(3)))
def test_any_order_of_rows_and_columns_gives_the_same_values(rows, columns):
    names, findings = ["p", "q", "r", "s"], ["A", "B", "C"]
    cells = {names[r]: [f"{r}.{c}" for c in columns] for r in rows}
    table = tables.Table(None, "Study", cells, tuple(findings[c] for c in columns))
    expected = [[float(f"{r}.{c}") for c in range(3)] for r in range(4)]
    assert table.values(findings, names, allowed=None, missing=False).tolist() == expected


@pytest.mark.parametrize("empty", ["", "NaN", "NA", "null", " "])
def test_an_empty_cell_is_nan_where_it_may_be_and_an_error_elsewhere(write, empty):
    table = tables.read(write(f"Study,Edema\na,{empty}\nb,1\n"))
    found = table.values(["Edema"], ["a", "b"], allowed=(0, 1), missing=True)
    assert np.isnan(found[0, 0])
    assert found[1, 0] == 1
    with pytest.raises(DatasetError, match=r"t\.csv: Study a: Edema is .*; expected a finite number"):
        table.values(["Edema"], ["a", "b"], allowed=None, missing=False)


@pytest.mark.parametrize("cell", ["high", "inf", "-inf", "1e999", "1_0", "0x1", "1,5", "½"])
def test_a_cell_that_is_no_number_is_named_with_its_study(write, cell):
    table = tables.read(write(f'Study,Edema\na,0.5\nb,"{cell}"\n'))
    with pytest.raises(DatasetError, match=r"t\.csv: Study b: Edema is ") as caught:
        table.values(["Edema"], ["a", "b"], allowed=None, missing=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no column 'Study': it is empty"),
        ("\n", "no column 'Study'"),
        ("Study,Edema\n", "no row"),
        ("Path,Edema\na,1\n", "no column 'Study': its first row is 'Path', 'Edema'"),
        ("Study;Edema\na;1\n", "no column 'Study': its first row is 'Study;Edema'"),
        ("Study,Edema,Edema\na,1,0\n", "column 'Edema' is there twice"),
        ("Study,Edema\na,1\nb,0\na,1\n", r"Study 'a' is there twice \(again in line 4\)"),
        ("Study,Edema\na,1,2\n", "line 2 has 3 cells, the first line 2"),
        ("Study,Edema\na\n", "line 2 has 1 cells"),
        ("Study,Edema\n ,1\n", "line 2 has no Study"),
        (b"Study,Edema\nM\xfcller,1\n", r"not UTF-8 text \(byte 13\)"),
        ("Study,Edema\na,1\n".encode("utf-16"), "not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8 text"),
        ('Study,Edema\n"a,1\n', "line 2: not CSV"),
        ("Study,Edema\na," + "1" * 200_000 + "\n", "line 2: not CSV: field larger than"),
    ],
)
def test_a_file_that_is_wrong_is_named(write, content, words):
    with pytest.raises(DatasetError, match=words) as caught:
        tables.read(write(content))
    assert str(caught.value).startswith(str(write(content)))
    assert "\n" not in str(caught.value)


@given(st.one_of(st.binary(max_size=120), st.text('Study,Edema\n\r"\x00 a1;', max_size=60).map(str.encode)))
def test_any_bytes_are_a_table_or_an_error_of_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    try:
        table, message = tables.read(path), str(path)
    except DatasetError as error:
        table, message = tables.Table(path, "Study", {}, ()), str(error)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    assert all(len(cells) == len(table.columns) for cells in table.rows.values())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(DatasetError, match="cannot be read"):
            tables.read(path)


def test_studies_must_be_those_of_the_truth(write):
    truth = tables.read(write(GOOD, "truth.csv"))
    tables.read(write("Study,Edema\nb,1\na,0\n")).same_studies(truth)
    with pytest.raises(DatasetError, match=r"t\.csv: Study 'c' is not in .*truth\.csv \(nor are 1 more\)"):
        tables.read(write("Study,Edema\nb,1\na,0\nc,1\nd,1\n")).same_studies(truth)
    with pytest.raises(DatasetError, match=r"t\.csv: Study 'a' of .*truth\.csv is missing; every study"):
        tables.read(write("Study,Edema\nb,1\n")).same_studies(truth)


def test_a_missing_column_is_named_with_those_that_are_there(write):
    with pytest.raises(DatasetError, match="no column 'Hernia'; it has Edema, Fracture"):
        numbers(tables.read(write(GOOD)), ["Edema", "Hernia"])


def test_files_come_by_name_from_files_and_folders(write, tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    one, two = write(GOOD, "one.csv"), write(GOOD, "more/deep/two.csv")
    write("not a table", "more/notes.txt")
    assert tables.files([one, tmp_path / "more"]) == {"one": one, "two": two}
    write(GOOD, "more/one.csv")
    with pytest.raises(DatasetError, match="has the same name"):
        tables.files([one, tmp_path / "more"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty: no \.csv file"):
        tables.files([tmp_path / "empty"])
