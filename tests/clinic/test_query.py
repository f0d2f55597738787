"""QIDO-RS on both databases: what is found, in which order, a page at a time."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from ward import SITE, Ward, dicom

from wetread.clinic import blind, dicomweb, listing, query, store
from wetread.clinic.dicomweb import Headers
from wetread.config import Settings
from wetread.errors import ClinicError


@pytest.fixture(
    scope="module",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)],
)
def ward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """Thirty studies of one image each, every third without a date, and one of two series."""
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else ""
    ward = Ward(tmp_path_factory.mktemp("query"), url=url)
    for number in range(30):
        more = {} if number % 3 == 0 else {"StudyDate": f"202601{number + 1:02}", "StudyTime": "0800"}
        name = ["Doe^Jane", "ÄRGER^ß", "O'Neil^50%_"][number % 3]
        ward.take(dicom(number, PatientName=name, SpecificCharacterSet="ISO_IR 192", InstanceNumber=number, **more))
    ward.take(dicom(40, StudyInstanceUID="1.2.3.1", PatientID="P2", Modality="DX", StudyDate="20260103"))
    yield ward
    ward.database.close()


def found(ward: Ward, level: str = "studies", **keys: str) -> list[str]:
    answer = query.search(ward.database, Headers(ward.archive), SITE, query.parse(level, keys.items()))
    tag = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}[level]
    return [dicomweb.first(one, tag) for one in answer.found]


def test_pages_make_the_whole_and_the_newest_come_first(ward: Ward) -> None:
    whole = found(ward)
    assert len(whole) == len(set(whole)) == 30
    assert whole[:2] == ["1.2.30.1", "1.2.29.1"]
    assert set(whole[20:]) == {f"1.2.{number + 1}.1" for number in range(0, 30, 3)}  # without a date: last
    assert [uid for start in range(0, 30, 7) for uid in found(ward, limit="7", offset=str(start))] == whole
    by_header = [uid for start in range(0, 30, 7) for uid in found(ward, Rows="32", limit="7", offset=str(start))]
    assert by_header == whole


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"PatientName": "doe^*"}, 10),
        ({"PatientName": "ÄRGER*"}, 10),
        ({"PatientName": "o'neil^50%_"}, 10),
        ({"PatientName": "O'Neil^50%?"}, 10),
        ({"PatientName": "_"}, 0),
        ({"PatientName": "'; DROP TABLE study; --"}, 0),
        ({"StudyDate": "20260102-20260110"}, 6),
        ({"ModalitiesInStudy": "DX"}, 1),
        ({"ModalitiesInStudy": "CR", "PatientID": "P2"}, 1),
        ({"InstanceNumber": "7"}, 1),
        ({"StudyInstanceUID": ",".join(f"1.2.{number}.1" for number in range(1, 100))}, 30),
    ],
)
def test_keys(ward: Ward, keys: dict[str, str], count: int) -> None:
    assert len(found(ward, **keys)) == count


def test_levels(ward: Ward) -> None:
    assert found(ward, "series", StudyInstanceUID="1.2.3.1") == ["1.2.3.2", "1.2.41.2"]
    assert found(ward, "instances", StudyInstanceUID="1.2.3.1") == ["1.2.3.3", "1.2.41.3"]
    assert len(found(ward, "instances")) == 31
    [one] = query.search(
        ward.database, Headers(ward.archive), SITE, query.parse("studies", [("PatientID", "P2")])
    ).found
    assert [dicomweb.values(one, tag) for tag in ("00080061", "00201206", "00201208")] == [["CR", "DX"], ["2"], ["2"]]


def test_a_nul_is_refused_before_the_database_sees_it(ward: Ward) -> None:
    with pytest.raises(ClinicError, match="no attribute"):
        found(ward, PatientID="a\0b")


def test_what_is_kept_from_a_reader_is_no_list_of_parameters(ward: Ward) -> None:
    with ward.database.read() as connection:
        studies = list(connection.execute(sa.select(store.study.c.id)).scalars())
        assert blind.covered(connection, Settings(), SITE, "dr") is None
        for settings in (Settings(blind_share=0.5), Settings(blind_sites=[SITE])):
            wanted = blind.covered(connection, settings, SITE, "dr")
            assert wanted is not None
            hidden = blind.hidden(connection, settings, SITE, studies, "dr")
            assert set(connection.execute(wanted).scalars()) == hidden
            assert 0 < len(hidden) < len(studies) or settings.blind_sites
            assert len(wanted.compile().params) <= 3  # SQLite takes 32,766 of them
            for level in ("studies", "series", "instances"):
                asked = query.parse(level, ())
                answer = query.search(ward.database, Headers(ward.archive), SITE, asked, wanted)
                assert answer == query.search(ward.database, Headers(ward.archive), SITE, asked)
            page = listing.page(ward.database, SITE, listing.Query(sort="why"), covered=wanted)
            assert {row.study for row in page.rows} == set(studies)


@given(st.text("ab?*", max_size=8), st.text("ab?*", max_size=8))
def test_wildcards_match_as_in_a_shell(pattern: str, text: str) -> None:
    assert query._fits(pattern, text) == fnmatch.fnmatchcase(text, pattern)


def test_many_wildcards_end_at_once() -> None:
    assert not query._fits("*?" * 40 + "~", "konica minolta healthcare americas inc")  # a regular expression would not
