"""Fetching a list of studies: from Orthanc by C-GET, C-MOVE and DICOMweb, again after a stop, and from nobody."""

import csv
import itertools
import json
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from clinic_dimse import body, rows
from peers import free_port
from pulled import Books
from ward import SITE, dicom

from wetread.clinic import pull
from wetread.clinic.peers import PeerError
from wetread.clinic.pull import Outcome, State
from wetread.clinic.pull_sources import Wanted, WebSource, _part
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ConfigError


def table(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_list_names_studies_in_three_ways(tmp_path):
    path = table(tmp_path / "l.csv", "\ufeffPatientID,Accession,StudyInstanceUID,x", "P1,,,1", "", ",A2, 1.2.3 ,")
    assert pull.read_list(path) == [Wanted(2, patient_id="P1"), Wanted(4, "1.2.3", "A2")]


@pytest.mark.parametrize(
    "lines", [["Name", "Doe"], ["PatientID", "*"], ["PatientID", "a\\b"], ["PatientID,x", ",1"], [""]]
)
def test_a_list_that_could_mean_anything_is_refused(tmp_path, lines):
    with pytest.raises(ConfigError):
        pull.read_list(table(tmp_path / "l.csv", *lines))


def test_a_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        pull.read_list(tmp_path / "l.csv")


def test_only_what_is_missing_is_fetched_and_each_line_says_what_came(ward):
    ward.take(dicom(1))
    archive = Books(ward, {"a": [1, 2], "b": [3, 4], "c": [5], "d": []}, keeps=[4, 5])
    wanted = [Wanted(n, uid) for n, uid in enumerate("abcdxa")]
    assert list(pull.pull(wanted, archive, ward.database, SITE)) == [
        Outcome(0, "a", State.COMPLETE, 2, 1, 2, "kept some"),
        Outcome(1, "b", State.PARTIAL, 2, 1, 1, "kept some"),
        Outcome(2, "c", State.FAILED, 1, 0, 0, "kept some"),
        Outcome(3, "d", State.FAILED, 0, 0, 0, "the archive names no instances of it"),
        Outcome(4, "x", State.NOT_FOUND),
        Outcome(5, "a", State.HERE, 2, 0, 2),
    ]
    assert archive.brought == [2, 3]


def test_an_archive_that_is_down_is_not_asked_for_ever(ward):
    outcomes = list(pull.pull([Wanted(n, "1.2") for n in range(5)], Books(ward, {}, down=True), ward.database, SITE))
    assert [o.state for o in outcomes] == [State.FAILED] * 3 + [State.NOT_TRIED] * 2


def test_the_first_part_of_a_multipart_answer():
    from io import BytesIO

    content = bytes(range(256)) + b"\r\n--x"
    for answer in (
        b"--xx\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--xx--",
        b"\r\n--xx\r\n\r\n" + content + b"\r\n--xx--\r\n",
    ):
        assert _part(BytesIO(answer), 'multipart/related; boundary="xx"').read() == content
    assert _part(BytesIO(content), "application/dicom").read() == content


@pytest.fixture
def filled(orthanc):
    """An Orthanc with three studies: one compressed, one of two images, one with an accession number."""
    orthanc.empty()
    compressed = pydicom.dcmread(_file(dicom(0)))
    compressed.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    compressed.save_as(stream := _file(b""), enforce_file_format=True)
    kept = {"1.2.1.3": stream.getvalue()}
    kept["1.2.2.3"] = dicom(1)
    kept["1.2.2.4"] = dicom(1, SOPInstanceUID="1.2.2.4", SeriesInstanceUID="1.2.2.9")
    kept["1.2.3.3"] = dicom(2, AccessionNumber="A77")
    for content in kept.values():
        orthanc.upload(content)
    orthanc.kept = kept
    return orthanc


def _file(content):
    from io import BytesIO

    return BytesIO(content)


@pytest.mark.system
@pytest.mark.parametrize("way", ["get", "move", "web"])
def test_orthanc_gives_the_list_and_nothing_twice(filled, tmp_path, way):
    port = free_port()
    settings = Settings(
        dicom_port=port,
        dicom_host="127.0.0.1",
        dicom_ae_title="PULLER",
        dicom_peers=["ORTHANC@127.0.0.1=default"],
        ai=False,
    )
    filled.add_modality("puller", "PULLER", port)
    wanted = table(
        tmp_path / "l.csv",
        "StudyInstanceUID,AccessionNumber,PatientID",
        "1.2.1.1,,",
        ",,P1",
        ",A77,",
        "1.2.99.1,,",
    )
    said = []
    Store.open(tmp_path / "data").close()
    address = filled.dicomweb if way == "web" else filled.peer

    def run():
        return pull.run(
            wanted, address, tmp_path / "data", settings, by="move" if way == "move" else "get",
            out=tmp_path / "out.csv", say=said.append,
        )  # fmt: skip

    assert run() is False  # one is not there
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["state"] for line in lines] == ["complete", "complete", "complete", "not found"], lines
    assert [(line["expected"], line["came"]) for line in lines] == [("1", "1"), ("2", "2"), ("1", "1"), ("0", "0")]
    assert run() is False
    with (tmp_path / "out.csv").open() as file:
        assert [line["state"] for line in csv.DictReader(file)] == ["here already"] * 3 + ["not found"]

    class Opened:
        database = Store.open(tmp_path / "data")

    found = rows(Opened)
    assert {row.sop_uid for row in found} == set(filled.kept)
    for row in found:
        path = tmp_path / "data/archive" / row.sha256[:2] / row.sha256
        assert body(path.read_bytes()) == body(filled.kept[row.sop_uid])
    Opened.database.close()


@pytest.mark.system
def test_a_wrong_address_fails_each_line_and_move_needs_a_port(tmp_path):
    wanted = table(tmp_path / "l.csv", "StudyInstanceUID", "1.2.3")
    said = []
    with pytest.raises(ConfigError, match=r"there is no clinic.db"):
        pull.run(wanted, "A@127.0.0.1:104", tmp_path / "data", Settings(), say=said.append)
    assert not (tmp_path / "data").exists()
    Store.open(tmp_path / "data").close()
    for address in (f"NOBODY@127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}/dicom-web"):
        assert pull.run(wanted, address, tmp_path / "data", Settings(dicom_timeout_s=5), say=said.append) is False
    assert all("failed" in line or "0 of 1" in line for line in said), said
    with pytest.raises(ConfigError, match="dicom_port"):
        pull.run(wanted, "A@127.0.0.1:104", tmp_path / "data", Settings(), by="move", say=said.append)
    with pytest.raises(ConfigError, match="get or move"):
        pull.run(wanted, "A@127.0.0.1:104", tmp_path / "data", Settings(), by="fly", say=said.append)


class Paging:
    """A DICOMweb server of the standard library with a paging of its own; `asked` holds what it was asked for."""

    def __init__(self, number, page):
        self.items = [{"0020000D": {"vr": "UI", "Value": [f"1.2.{n}"]}} for n in range(number)]
        self.page, self.asked = page, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
                outer.asked.append(query)
                status, found = outer.page(outer.items, int(query["limit"]), int(query["offset"]))
                content = json.dumps(found).encode() if status == 200 else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def find(self, ward, **wanted):
        with closing(WebSource(f"http://127.0.0.1:{self.server.server_port}", ward.intake, SITE)) as source:
            return source.find(Wanted(1, **wanted))


def ended(items, limit, offset, cap=1000):
    part = items[offset : offset + min(limit, cap)]
    return (200, part) if part else (204, [])


@pytest.mark.parametrize(
    ("page", "requests"),
    [
        (ended, 2),
        (lambda items, limit, offset: ended(items, limit, offset, cap=100), 4),
        (lambda items, limit, offset: (200, items[offset : offset + 100]), 4),  # an empty list, not 204
        (lambda items, limit, offset: (200, items[offset : offset + 100]) if offset < 250 else (404, []), 4),
        (lambda items, limit, offset: (200, items), 2),  # heeds neither
        (lambda items, limit, offset: (200, items[max(0, offset - 30) :][:100]), 4),  # pages overlap
    ],
)
def test_every_way_of_paging_is_followed_to_its_end(ward, page, requests):
    with Paging(250, page) as archive:
        assert archive.find(ward, accession="A1") == sorted(f"1.2.{n}" for n in range(250))
    assert len(archive.asked) == requests
    assert {query["AccessionNumber"] for query in archive.asked} == {"A1"}


def test_an_archive_that_has_no_end_is_left(ward, monkeypatch):
    monkeypatch.setattr("wetread.clinic.pull_sources.MAX_MATCHES", 500)
    numbers = itertools.count()

    def endless(items, limit, offset):
        return 200, [{"0020000D": {"vr": "UI", "Value": [f"1.3.{next(numbers)}"]}} for _ in range(100)]

    with Paging(0, endless) as archive, pytest.raises(PeerError, match="more than 500 matches"):
        archive.find(ward, accession="A1")
    assert len(archive.asked) == 6


@pytest.mark.parametrize("nonsense", [{"error": 1}, [1], "text"])
def test_what_is_no_list_of_matches_is_an_error(ward, nonsense):
    with Paging(0, lambda items, limit, offset: (200, nonsense)) as archive, pytest.raises(PeerError, match="no sense"):
        archive.find(ward, accession="A1")


def test_an_archive_that_does_not_know_a_key_does_not_give_everything(ward):
    with Paging(3, lambda items, limit, offset: (200, items)) as archive:
        for number, item in enumerate(archive.items):
            item["00080050"] = {"vr": "SH", "Value": [f"A{number} "]}
        assert archive.find(ward, accession="a1") == ["1.2.1"]
        assert archive.find(ward, study_uid="1.2.2") == ["1.2.2"]
        assert archive.find(ward, accession="other") == []
