"""Claims beside scores: three words, by the package's own cut-offs, and no recommendation."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_package
from rich.console import Console

from wetread.errors import ReadError
from wetread.findings import CHEXPERT
from wetread.infer import claims

# The cut-offs of the tiny package: unlikely below 0.2, likely from 0.7 on.
ROWS = [
    {"study": "1.1", "image": "/films/a.dcm", "code": None, "Edema": 0.7, "Pneumonia": 0.19999, "No Finding": 0.5},
    {
        "study": "1.2",
        "image": "/films/b.dcm",
        "code": "NOT_CHEST",
        "Edema": None,
        "Pneumonia": None,
        "No Finding": None,
    },
    {"study": "1.3", "image": "/films/c.dcm", "code": None, "Edema": 0.1, "Pneumonia": 0.2, "No Finding": 0.9},
    {"study": "1.3", "image": "/films/d.dcm", "code": None, "Edema": 0.9, "Pneumonia": 0.1, "No Finding": 0.1},
    {
        "study": "1.3",
        "image": "/films/e.dcm",
        "code": "UNREADABLE",
        "Edema": None,
        "Pneumonia": None,
        "No Finding": None,
    },
    {"study": "1.4", "image": "/other/a.dcm", "code": None, "Edema": 0.1, "Pneumonia": 0.1, "No Finding": 0.1},
]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return tiny_package.write(tmp_path_factory.mktemp("claims") / "tiny", CHEXPERT)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rows = [dict.fromkeys(CHEXPERT.findings) | row for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "s.parquet")
    return tmp_path / "s.parquet"


def compare(scores: Path, package, text: str) -> list[tuple[str, str]]:
    path = scores.with_name("claims.csv")
    path.write_text(text, encoding="utf-8")
    return [(one.verdict, one.why) for one in claims.compare(path, scores, package)]


def test_the_verdict_is_the_package_s_call(scores, package) -> None:
    found = compare(
        scores, package, "study,claim\n1.1,Edema; pneumonia\n1.1,NO FINDING\n1.3,Edema|Pneumonia|No Finding\n"
    )
    assert [verdict for verdict, _ in found] == [
        "supported", "not supported", "cannot say", "supported", "cannot say", "not supported",
    ]  # fmt: skip
    assert "between 0.200 and 0.700" in found[2][1]


def test_what_cannot_be_said_says_why(scores, package) -> None:
    text = "study,file,diagnosis\n1.2,,Edema\n1.9,,Edema\n,,Edema\n1.1,,Broken heart\n,a.dcm,Edema\n,z.dcm,Edema\n"
    found = compare(scores, package, text)
    assert {verdict for verdict, _ in found} == {"cannot say"}
    for (_, why), wanted in zip(
        found,
        ("refused: NOT_CHEST", "no image of this study", "no image of this study", "Broken heart is not a finding",
         "2 scored images have this name", "no image of this name"),
        strict=True,
    ):  # fmt: skip
        assert wanted in why


def test_files_are_found_by_path_and_by_a_name_that_only_one_has(scores, package) -> None:
    found = compare(scores, package, "file,finding\n/films/a.dcm,Edema\nd.dcm,Edema\n/other/a.dcm,Edema\n")
    assert [verdict for verdict, _ in found] == ["supported", "supported", "not supported"]


def test_the_mean_counts_where_the_package_says_so(scores, tmp_path) -> None:
    package = tiny_package.write(tmp_path / "mean", CHEXPERT, aggregate="mean")
    assert compare(scores, package, "study,claim\n1.3,Edema\n")[0][0] == "cannot say"


def test_what_is_written_and_shown_recommends_nothing_and_is_no_formula(scores, package, tmp_path) -> None:
    path = tmp_path / "claims.csv"
    path.write_text('study,claim\n1.1,Edema\n1.1,"=HYPERLINK(1)"\n')
    found = claims.compare(path, scores, package)
    as_csv, as_json = claims.write(found, scores, package)
    assert (as_csv.name, as_json.name) == ("s.claims.csv", "s.claims.json")
    with as_csv.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["verdict"] for row in rows] == ["supported", "cannot say"]
    assert rows[1]["claim"] == "'=HYPERLINK(1)"
    about = json.loads(as_json.read_text())
    assert "recommends nothing" in about["note"]
    assert about["model_id"] == package.id
    console = Console(width=200, file=io.StringIO())
    console.print(claims.render(found))
    shown = console.file.getvalue()
    assert "recommends nothing" in shown
    assert "0.700" in shown


@pytest.mark.parametrize("text", ["study\n1\n", "claim\nEdema\n", "study,claim\n", ""])
def test_a_list_without_its_columns_is_refused(scores, package, text: str) -> None:
    with pytest.raises(ReadError, match=r"claims\.csv"):
        compare(scores, package, text)
