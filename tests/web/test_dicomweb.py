"""DICOMweb in this process: what goes in, what is found, what comes out, and what is refused."""

from __future__ import annotations

import json
from email import message_from_bytes
from io import BytesIO

import cv2
import films
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from ward import SITE, dicom, png

from wetread.clinic import access, store
from wetread.web import wado

JSON = "application/dicom+json"
DICOM = 'multipart/related; type="application/dicom"'


def body(*contents: bytes, boundary: str = "xyz", media: str = "application/dicom") -> tuple[bytes, dict[str, str]]:
    """Return a STOW-RS body and its headers."""
    parts = b"".join(
        f"--{boundary}\r\nContent-Type: {media}\r\n\r\n".encode() + content + b"\r\n" for content in contents
    )
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return parts + f"--{boundary}--\r\n".encode(), {"Content-Type": kind, "Accept": JSON}


def stow(client, *contents: bytes, study: str = "", **more: object):
    content, headers = body(*contents)
    return client("POST", f"/dicomweb/studies{study}", content=content, headers=headers, **more)


def get(client, path: str, accept: str = JSON, **more: object):
    return client("GET", f"/dicomweb{path}", headers={"Accept": accept}, **more)


def parts(response) -> list[tuple[str, bytes]]:
    """Split a multipart answer by the standard library's parser, which is not ours."""
    kind = response.headers["content-type"]
    message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + response.content)
    assert message.is_multipart()
    assert not message.defects
    # The library's text parser may alter line ends in binary content; take that from the bytes themselves.
    boundary = message.get_boundary().encode()
    pieces = response.content.split(b"--" + boundary)[1:-1]
    found = []
    for piece in pieces:
        head, _, content = piece[2:-2].partition(b"\r\n\r\n")
        found.append((head.decode().split(":", 1)[1].strip(), content))
    return found


def values(found: dict, tag: str) -> list:
    return found.get(tag, {}).get("Value", [])


def references(answer: dict, tag: str) -> list[tuple[str, int]]:
    """Return (SOP Instance UID, reason) of a sequence in an answer to STOW."""
    return [
        ((values(item, "00081155") or [""])[0], (values(item, "00081197") or values(item, "00081196") or [0])[0])
        for item in values(answer, tag)
    ]


# ------------------------------------------------------------------------------------------------- store


def test_stored_instances_are_named_with_their_addresses(client) -> None:
    response = stow(client, dicom(500), dicom(501))
    assert response.status_code == 200
    assert response.headers["content-type"] == JSON
    answer = response.json()
    assert references(answer, "00081199") == [("1.2.501.3", 0), ("1.2.502.3", 0)]
    assert "00081198" not in answer
    first = values(answer, "00081199")[0]
    assert values(first, "00081150") == ["1.2.840.10008.5.1.4.1.1.7"]
    url = values(first, "00081190")[0]
    assert url == "http://127.0.0.1/dicomweb/studies/1.2.501.1/series/1.2.501.2/instances/1.2.501.3"
    found = client("GET", url.removeprefix("http://127.0.0.1"), headers={"Accept": DICOM + "; transfer-syntax=*"})
    assert parts(found) == [("application/dicom; transfer-syntax=1.2.840.10008.1.2.1", dicom(500))]


def test_the_same_bytes_again_are_a_success(client) -> None:
    for _ in range(2):
        response = stow(client, dicom(510))
        assert response.status_code == 200
        assert references(response.json(), "00081199") == [("1.2.511.3", 0)]
    assert len(get(client, "/studies/1.2.511.1/instances").json()) == 1


def test_other_bytes_under_a_known_uid_are_kept_apart_and_not_served(client) -> None:
    assert stow(client, dicom(520)).status_code == 200
    other = dicom(521, SOPInstanceUID="1.2.521.3", StudyInstanceUID="1.2.521.1", SeriesInstanceUID="1.2.521.2")
    response = stow(client, other, dicom(522))
    assert response.status_code == 202
    assert references(response.json(), "00081199") == [("1.2.521.3", 0xB000), ("1.2.523.3", 0)]
    assert ["00081190" in one for one in values(response.json(), "00081199")] == [False, True]
    assert stow(client, other).status_code == 202
    found = get(client, "/studies/1.2.521.1", DICOM + "; transfer-syntax=*")
    assert [content for _, content in parts(found)] == [dicom(520)]
    assert len(get(client, "/instances", params={"SOPInstanceUID": "1.2.521.3"}).json()) == 1


def test_another_study_than_the_address_says_fails_by_instance(client) -> None:
    response = stow(client, dicom(530), dicom(531), study="/1.2.531.1")
    assert response.status_code == 202
    assert references(response.json(), "00081198") == [("1.2.532.3", 0xA900)]
    assert get(client, "/studies/1.2.532.1/metadata").status_code == 404
    assert stow(client, dicom(531), study="/1.2.531.1").status_code == 409


def test_missing_identifiers_are_derived_with_a_warning(client) -> None:
    content = dicom(540, SOPInstanceUID="", SeriesInstanceUID="")
    response = stow(client, content)
    assert response.status_code == 202
    [(uid, warning)] = references(response.json(), "00081199")
    assert uid.startswith("2.25.")
    assert warning == 0xB000
    [found] = get(client, "/studies/1.2.541.1/metadata").json()
    assert values(found, "00080018") == [uid]
    assert stow(client, content).status_code == 202


def test_what_is_no_dicom_is_a_failure_and_makes_no_study(client) -> None:
    before = client("GET", "/api/v1/worklist").json()["counts"]["unread"]
    response = stow(client, b"hello", png(550), b"", dicom(551))
    assert response.status_code == 202
    assert references(response.json(), "00081198") == [("", 0xC000)] * 3
    assert stow(client, b"hello").status_code == 409
    assert client("GET", "/api/v1/worklist").json()["counts"]["unread"] == before + 1


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {"Content-Type": "application/dicom"}, 415),
        (b"", {"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=x'}, 415),
        (b"", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
        (b"", {}, 415),
        (b"", {"Content-Type": 'multipart/related; type="application/dicom"'}, 400),
        (b"", {"Content-Type": f'multipart/related; type="application/dicom"; boundary={"x" * 300}'}, 400),
        (b"--x--\r\n", {"Content-Type": "multipart/related; boundary=x"}, 400),
        (b"nonsense", {"Content-Type": "multipart/related; boundary=x"}, 400),
        (b"--x\r\n\r\nno end", {"Content-Type": "multipart/related; boundary=x"}, 400),
        (b"--x\r\n" + b"A: " + b"a" * 9999 + b"\r\n\r\n--x--", {"Content-Type": "multipart/related; boundary=x"}, 400),
        (b"--x\r\n" + b"A: b\r\n" * 200 + b"\r\n--x--", {"Content-Type": "multipart/related; boundary=x"}, 400),
        (b"--x\r\nContent-Type: text/html\r\n\r\na\r\n--x--", {"Content-Type": "multipart/related; boundary=x"}, 415),
        (b"--x\r\n\r\n\r\n" * 30 + b"--x--", {"Content-Type": "multipart/related; boundary=x"}, 413),
        (body(dicom(560))[0], body()[1] | {"Accept": "application/dicom+xml"}, 406),
        (b" " * (4 * 2**20 + 1), {"Content-Type": "multipart/related; boundary=x"}, 413),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_taken(client, content: bytes, headers: dict[str, str], status: int) -> None:
    response = client("POST", "/dicomweb/studies", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_what_came_whole_before_the_body_broke_off_is_kept(client) -> None:
    content, headers = body(dicom(570), dicom(571))
    response = client("POST", "/dicomweb/studies", content=content[: len(content) - 1000], headers=headers)
    assert response.status_code == 400
    assert len(get(client, "/studies/1.2.571.1/instances").json()) == 1
    assert get(client, "/studies/1.2.572.1/metadata").status_code == 404
    assert stow(client, dicom(570), dicom(571)).status_code == 200


def test_a_file_above_the_limit_and_a_full_disk_are_out_of_resources(client, monkeypatch) -> None:
    import errno
    import os

    big = films.dicom(films.scene(1100, 1100, bits=8))
    assert stow(client, big).status_code == 413
    assert references(stow(client, big, dicom(580)).json(), "00081198") == [("1.2.3.4", 0xA701)]

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        response = stow(client, dicom(581))
        assert response.status_code == 507
        assert references(response.json(), "00081198") == [("1.2.582.3", 0xA700)]
    assert stow(client, dicom(581)).status_code == 200


# ------------------------------------------------------------------------------------------------ search


@pytest.fixture(scope="module")
def ward(client):
    """Four studies, five series, six instances, found by their accession numbers."""
    more = {"AccessionNumber": "QIDO", "StudyTime": "101500", "ReferringPhysicianName": "Grey^Ann"}
    contents = [
        dicom(600, PatientName="Doe^Jane", StudyDate="20260110", Modality="CR", InstanceNumber=1, **more),
        dicom(601, PatientName="Doe^John", StudyDate="20260120", Modality="DX", StudyDescription="Chest 100%", **more),
        dicom(602, PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 192", StudyDate="20260131", **more),
        dicom(
            603, PatientName="Smith_A", StudyDate="20251231", ReferringPhysicianName="White^Bo", AccessionNumber="QIDO"
        ),
    ]
    contents += [
        dicom(604, StudyInstanceUID="1.2.601.1", PatientID="P600", PatientName="Doe^Jane", StudyDate="20260110",
              Modality="DX", InstanceNumber=1, **more),
        dicom(605, StudyInstanceUID="1.2.601.1", SeriesInstanceUID="1.2.605.2", PatientID="P600", InstanceNumber=2,
              PatientName="Doe^Jane", StudyDate="20260110", Modality="DX", **more),
    ]  # fmt: skip
    assert stow(client, *contents).status_code == 200
    return client


def ids(response, tag: str = "0020000D") -> list[str]:
    assert response.status_code == 200, response.text
    return [values(found, tag)[0] for found in response.json()]


ALL = ["1.2.603.1", "1.2.602.1", "1.2.601.1", "1.2.604.1"]  # the newest first


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ({}, ALL),
        ({"PatientName": "doe*"}, ["1.2.602.1", "1.2.601.1"]),
        ({"PatientName": "Doe^J?ne"}, ["1.2.601.1"]),
        ({"PatientName": "Doe"}, []),
        ({"00100010": "Müller^Jörg"}, ["1.2.603.1"]),
        ({"PatientName": "Smith_A"}, ["1.2.604.1"]),
        ({"PatientName": "Smith?A"}, ["1.2.604.1"]),
        ({"PatientName": "%"}, []),
        ({"PatientID": "P60*"}, ALL),
        ({"PatientID": "P601"}, ["1.2.602.1"]),
        ({"StudyDescription": "*100%"}, ["1.2.602.1"]),
        ({"StudyDescription": "CHEST*"}, ["1.2.602.1"]),
        ({"PatientID": "p601"}, []),
        ({"StudyDate": "20260120"}, ["1.2.602.1"]),
        ({"StudyDate": "20260101-20260120"}, ["1.2.602.1", "1.2.601.1"]),
        ({"StudyDate": "20260120-"}, ["1.2.603.1", "1.2.602.1"]),
        ({"StudyDate": "-20251231"}, ["1.2.604.1"]),
        ({"StudyTime": "1015"}, ["1.2.603.1", "1.2.602.1", "1.2.601.1"]),
        ({"StudyTime": "1016-"}, []),
        ({"ReferringPhysicianName": "grey*"}, ["1.2.603.1", "1.2.602.1", "1.2.601.1"]),
        ({"ReferringPhysicianName": "White^Bo", "PatientID": "P601"}, []),
        ({"ModalitiesInStudy": "DX"}, ["1.2.602.1", "1.2.601.1"]),
        ({"ModalitiesInStudy": "XX,DX"}, ["1.2.602.1", "1.2.601.1"]),
        ({"StudyInstanceUID": "1.2.604.1,1.2.602.1"}, ["1.2.602.1", "1.2.604.1"]),
        ({"StudyInstanceUID": "1.2.604.1\\1.2.602.1"}, ["1.2.602.1", "1.2.604.1"]),
        ({"PatientSex": "F", "limit": "2"}, ALL[:2]),
        ({"PatientSex": "F", "limit": "2", "offset": "1"}, ALL[1:3]),
        ({"limit": "2"}, ALL[:2]),
        ({"limit": "2", "offset": "3"}, ALL[3:]),
        ({"limit": "0"}, []),
        ({"PatientBirthDate": ""}, ALL),
        ({"PatientName": '""'}, ALL),
        ({"SOPInstanceUID": "1.2.606.3"}, ["1.2.601.1"]),
    ],
)
def test_studies_are_found_by(ward, key: dict[str, str], expected: list[str]) -> None:
    assert ids(get(ward, "/studies", params={"AccessionNumber": "QIDO", **key})) == expected


def test_a_study_says_what_a_list_of_studies_shows(ward) -> None:
    [found] = get(ward, "/studies", params={"StudyInstanceUID": "1.2.601.1"}).json()
    assert found["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}
    assert [values(found, tag) for tag in ("00080061", "00201206", "00201208", "00080020", "00080030", "00100020")] == [
        ["CR", "DX"], [2], [3], ["20260110"], ["101500"], ["P600"]
    ]  # fmt: skip
    assert values(found, "00081190") == ["http://127.0.0.1/dicomweb/studies/1.2.601.1"]
    assert found["00080090"]["Value"] == [{"Alphabetic": "Grey^Ann"}]
    assert "00280010" not in found
    [found] = get(ward, "/studies", params={"PatientID": "P602", "includefield": "Rows,00280011"}).json()
    assert (values(found, "00280010"), values(found, "00280011")) == ([32], [32])
    assert found["00080005"]["Value"] == ["ISO_IR 192"]


def test_series_and_instances_below_a_study(ward) -> None:
    series = get(ward, "/studies/1.2.601.1/series")
    assert {values(one, "0020000E")[0]: values(one, "00201209")[0] for one in series.json()} == {
        "1.2.601.2": 1,
        "1.2.605.2": 2,
    }
    assert ids(get(ward, "/studies/1.2.601.1/series", params={"Modality": "CR"}), "0020000E") == ["1.2.601.2"]
    instances = get(ward, "/studies/1.2.601.1/instances", params={"InstanceNumber": "2"})
    assert ids(instances, "00080018") == ["1.2.606.3"]
    assert values(instances.json()[0], "00280010") == [32]
    assert ids(get(ward, "/studies/1.2.601.1/series/1.2.601.2/instances"), "00080018") == ["1.2.601.3"]
    assert ids(get(ward, "/series", params={"AccessionNumber": "QIDO", "Modality": "CR"}))[:1] == ["1.2.603.1"]
    everything = get(ward, "/studies/1.2.601.1/instances", params={"includefield": "all"}).json()[0]
    assert values(everything, "00185101") == ["PA"]
    assert everything["7FE00010"]["vr"] == "OW"


def test_warnings_say_what_was_not_done(ward) -> None:
    response = get(ward, "/studies", params={"fuzzymatching": "true", "PatientID": "P601", "Colour": "red"})
    assert ids(response) == ["1.2.602.1"]
    said = response.headers["warning"]
    assert "299 wetread" in said
    assert "Only literal matching has been performed" in said
    assert "not known and was ignored" in said
    assert "warning" not in get(ward, "/studies", params={"limit": "1"}).headers


def test_more_than_the_most_is_said(ward, monkeypatch) -> None:
    from wetread.clinic import query

    monkeypatch.setattr(query, "MAX_RESULTS", 2)
    response = get(ward, "/studies", params={"AccessionNumber": "QIDO"})
    assert "exceeded the maximum" in response.headers["warning"]
    monkeypatch.setattr(query, "SCANNED", 1)
    response = get(ward, "/studies", params={"AccessionNumber": "QIDO", "ReferringPhysicianName": "White*"})
    assert response.json() == []
    assert "newest 1 entries" in response.headers["warning"]


@pytest.mark.parametrize(
    "key", [{"limit": "-1"}, {"limit": "many"}, {"offset": "1e9"}, {"StudyDate": "January"}, {"PatientID": "a\0b"}]
)
def test_queries_that_cannot_be(client, key: dict[str, str]) -> None:
    assert get(client, "/studies", params=key).status_code == 400


def test_pictures_without_a_dicom_header_are_left_out(client) -> None:
    receipt = client.send(("edema.png", png(650)))
    with client.clinic.database.read() as connection:
        uid = connection.execute(
            store.sa.select(store.study.c.study_uid).where(store.study.c.id == receipt["studies"][0]["study"])
        ).scalar_one()
    assert get(client, "/studies", params={"StudyInstanceUID": uid}).json() == []
    assert get(client, f"/studies/{uid}/metadata").status_code == 404


def test_another_site_sees_nothing(client) -> None:
    assert stow(client, dicom(660)).status_code == 200
    secret = access.create(client.clinic.database, "elsewhere", "administrator", "elsewhere")
    other = {"Authorization": f"Bearer {secret}", "Accept": "*/*"}
    place = "/dicomweb/studies/1.2.661.1"
    for path in ("", "/metadata", "/series/1.2.661.2/instances/1.2.661.3/frames/1", "/thumbnail"):
        assert client.http.get(place + path, headers=other).status_code == 404
    for path in ("/dicomweb/studies", "/dicomweb/series", "/dicomweb/instances", place + "/instances"):
        assert client.http.get(path, headers=other).json() == []
    assert client("GET", place + "/metadata", role="service").status_code == 200
    assert SITE != "elsewhere"


def test_nobody_is_let_in_without_a_token(client) -> None:
    content, headers = body(dicom(670))
    assert client.http.post("/dicomweb/studies", content=content, headers=headers).status_code == 401
    for path in ("/studies", "/studies/1.2/metadata", "/studies/1.2/series/1.3/instances/1.4/rendered"):
        assert client.http.get("/dicomweb" + path).status_code == 401


# ---------------------------------------------------------------------------------------------- retrieve


def test_metadata_is_what_pydicom_says(client) -> None:
    content = dicom(700, PatientName="Doe^Jane", WindowCenter=2000, WindowWidth=3000)
    assert stow(client, content).status_code == 200
    response = get(client, "/studies/1.2.701.1/series/1.2.701.2/metadata")
    assert response.headers["content-type"] == JSON
    [found] = response.json()
    uri = found["7FE00010"].pop("BulkDataURI")
    assert uri.startswith("http://127.0.0.1/dicomweb/studies/1.2.701.1/")
    expected = pydicom.dcmread(BytesIO(content)).to_json_dict(bulk_data_threshold=1, bulk_data_element_handler=str)
    expected["7FE00010"].pop("BulkDataURI")
    assert found.pop("00083002") == {"vr": "UI", "Value": ["1.2.840.10008.1.2.1"]}
    assert found.pop("00080005")["Value"] == ["ISO_IR 192"]
    assert found == json.loads(json.dumps(expected))
    data = get(client, uri.removeprefix("http://127.0.0.1/dicomweb"), "application/octet-stream")
    assert data.content == pydicom.dcmread(BytesIO(content)).PixelData


def test_metadata_of_a_hostile_header_is_valid_json(client) -> None:
    content = dicom(705, PatientComments="x")
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.add_new(0x00180050, "DS", "1.5")
    dataset.add_new(0x00189087, "FD", float("nan"))
    dataset.add_new(0x00091010, "UN", bytes(5000))
    dataset.add_new(0x00091011, "OB", b"small")
    broken = films.to_bytes(dataset).replace(b"1.5 ", b"abc ")
    assert stow(client, broken).status_code == 200
    response = get(client, "/studies/1.2.706.1/metadata")
    [found] = json.loads(response.content, parse_constant=lambda name: pytest.fail(name))
    assert "00180050" not in found
    assert "00189087" not in found
    assert found["00091010"]["BulkDataURI"].endswith("/bulkdata/00091010")
    assert found["00091011"]["InlineBinary"]
    value = get(client, "/studies/1.2.706.1/series/1.2.706.2/instances/1.2.706.3/bulkdata/00091010", "*/*")
    assert [content for _, content in parts(value)] == [bytes(5000)]


@pytest.fixture(scope="module")
def syntaxes(client) -> dict[str, tuple[bytes, np.ndarray, str]]:
    """The same picture in several transfer syntaxes: name → (file, pixels by pydicom, address)."""
    scene, found = films.scene(40, 32, bits=12, seed=9), {}
    for number, (name, syntax, plugin) in enumerate(
        [
            ("native", None, None),
            ("implicit", ImplicitVRLittleEndian, None),
            ("rle", RLELossless, "pylibjpeg"),
            ("jpegls", JPEGLSLossless, "pyjpegls"),
            ("j2k", JPEG2000Lossless, "pylibjpeg"),
        ],
        start=7100,
    ):
        dataset = films.dataset(
            scene, SOPInstanceUID=f"1.3.{number}", SeriesInstanceUID="1.3.2", StudyInstanceUID="1.3.1", PatientID="S"
        )
        if syntax is ImplicitVRLittleEndian:
            dataset.file_meta.TransferSyntaxUID = syntax
        elif syntax is not None:
            dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
        content = films.to_bytes(dataset)
        assert stow(client, content).status_code == 200
        pixels = pydicom.dcmread(BytesIO(content)).pixel_array
        found[name] = (content, pixels, f"/studies/1.3.1/series/1.3.2/instances/1.3.{number}")
    return found


@pytest.mark.parametrize("name", ["native", "implicit", "rle", "jpegls", "j2k"])
def test_pixels_by_every_way_are_those_of_pydicom(client, syntaxes, name: str) -> None:
    content, pixels, place = syntaxes[name]
    own = str(pydicom.dcmread(BytesIO(content)).file_meta.TransferSyntaxUID)
    original = get(client, place, DICOM + "; transfer-syntax=*")
    assert parts(original) == [(f"application/dicom; transfer-syntax={own}", content)]
    assert parts(get(client, place, DICOM + f"; transfer-syntax={own}"))[0][1] == content
    assert get(client, place, "application/dicom; transfer-syntax=*").content == content
    [(kind, native)] = parts(get(client, place, DICOM))
    assert kind == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    again = pydicom.dcmread(BytesIO(native))
    assert np.array_equal(again.pixel_array, pixels)
    assert again.SOPInstanceUID == again.file_meta.MediaStorageSOPInstanceUID == place.split("/")[-1]
    for accept in ("*/*", 'multipart/related; type="application/octet-stream"', 'multipart/related; type="*/*"'):
        [(kind, frame)] = parts(get(client, place + "/frames/1", accept))
        assert kind == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
        assert np.array_equal(np.frombuffer(frame, "<u2").reshape(pixels.shape), pixels)
    assert get(client, place + "/frames/1", "application/octet-stream").content == pixels.tobytes()
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"  # as OHIF asks
    [(kind, frame)] = parts(get(client, place + "/frames/1", accept))
    stored = pydicom.dcmread(BytesIO(content))
    if stored.file_meta.TransferSyntaxUID.is_encapsulated:
        assert own in kind
        assert frame == next(pydicom.encaps.generate_frames(stored.PixelData, number_of_frames=1))
    else:
        assert frame == pixels.tobytes()


def test_a_frame_as_an_image_type_when_that_is_what_it_is(client, syntaxes) -> None:
    _, _, place = syntaxes["j2k"]
    [(kind, frame)] = parts(get(client, place + "/frames/1", 'multipart/related; type="image/jp2"'))
    assert kind == "image/jp2; transfer-syntax=1.2.840.10008.1.2.4.90"
    assert frame[:4] == b"\xff\x4f\xff\x51"
    for wanted in ('multipart/related; type="image/jls"', 'multipart/related; type="image/jpeg"', "text/html"):
        refused = get(client, place + "/frames/1", wanted)
        assert refused.status_code == 406
        assert "image/jp2" in refused.json()["detail"]


def test_many_instances_come_in_one_answer(client, syntaxes) -> None:
    found = parts(get(client, "/studies/1.3.1", DICOM + "; transfer-syntax=*"))
    assert sorted(content for _, content in found) == sorted(content for content, _, _ in syntaxes.values())
    found = parts(get(client, "/studies/1.3.1/series/1.3.2", DICOM))
    assert {kind for kind, _ in found} == {"application/dicom; transfer-syntax=1.2.840.10008.1.2.1"}
    assert get(client, "/studies/1.3.1", "application/dicom").status_code == 406


@pytest.mark.parametrize(
    ("path", "accept", "status"),
    [
        ("/studies/1.3.1", "text/html", 406),
        ("/studies/1.3.1", 'multipart/related; type="application/dicom+xml"', 406),
        ("/studies/1.3.1", DICOM + "; transfer-syntax=1.2.840.10008.1.2.4.50", 406),
        ("/studies/1.3.1/metadata", 'multipart/related; type="application/dicom+xml"', 406),
        ("/studies", "application/dicom+xml", 406),
        ("/studies/1.3.1/series/1.3.2/instances/1.3.7100/rendered", "image/gif", 406),
        ("/studies/1.3.1/series/1.3.2/instances/1.3.7100/rendered", "image/png;q=0", 406),
        ("/studies/1.3.1/series/1.3.2/instances/1.3.7100/frames/2", "*/*", 404),
        ("/studies/1.3.1/series/1.3.2/instances/1.3.7100/frames/0", "*/*", 404),
        ("/studies/1.3.1/series/1.3.2/instances/1.3.7100/frames/a", "*/*", 422),
        ("/studies/1.3.1/series/1.3.2/instances/1.3.7100/bulkdata/00100010", "*/*", 404),
        ("/studies/1.3.1/series/1.3.9/metadata", "*/*", 404),
        ("/studies/../../etc/passwd/metadata", "*/*", 404),
        ("/studies/%2e%2e%2f/metadata", "*/*", 404),
        ("/studies/1.2%00/metadata", "*/*", 422),
    ],
)
def test_what_cannot_be_had(client, syntaxes, path: str, accept: str, status: int) -> None:
    assert get(client, path, accept).status_code == status


def test_the_query_may_name_what_is_accepted(client, syntaxes) -> None:
    place = syntaxes["native"][2] + "/rendered"
    assert get(client, place, "*/*", params={"accept": "image/png"}).headers["content-type"] == "image/png"


def test_rendered_as_the_window_says(client, syntaxes) -> None:
    content, pixels, place = syntaxes["native"]
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.WindowCenter, dataset.WindowWidth = 1500, 1000
    expected = pydicom.pixels.apply_voi_lut(pixels, dataset)
    expected = (expected / expected.max() * 255).astype(np.float64)
    answer = get(client, place + "/rendered", "image/png", params={"window": "1500,1000,linear"})
    assert answer.headers["content-type"] == "image/png"
    shown = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert shown.shape == pixels.shape
    assert np.abs(shown - expected).max() <= 1
    jpeg = get(client, place + "/frames/1/rendered", "image/jpeg", params={"viewport": "16,16", "quality": "50"})
    assert cv2.imdecode(np.frombuffer(jpeg.content, np.uint8), cv2.IMREAD_UNCHANGED).shape == (16, 13)
    for window in ("1,2,circular", "1", "a,b", "1,nan"):
        assert get(client, place + "/rendered", "*/*", params={"window": window}).status_code == 422
    for path in (place, "/studies/1.3.1", "/studies/1.3.1/series/1.3.2"):
        small = get(client, path + "/thumbnail", "*/*")
        assert small.headers["content-type"] == "image/jpeg"
        assert max(cv2.imdecode(np.frombuffer(small.content, np.uint8), 0).shape) == 128


def test_all_pictures_of_a_study_or_series_at_once(client) -> None:
    scenes = [films.scene(16, 16 + 2 * number, bits=8, seed=number) for number in range(3)]
    uids = [("1.9.2", "1.9.21"), ("1.9.2", "1.9.22"), ("1.9.3", "1.9.31")]
    files = [
        films.dicom(scene, StudyInstanceUID="1.9.1", SeriesInstanceUID=series, SOPInstanceUID=instance)
        for scene, (series, instance) in zip(scenes, uids, strict=True)
    ]
    named = {"StudyInstanceUID": "1.9.1", "SeriesInstanceUID": "1.9.4"}
    report = films.dataset(scenes[0], SOPInstanceUID="1.9.41", Modality="SR", **named)
    del report.PixelData
    assert stow(client, *files, films.to_bytes(report)).status_code == 200
    accept = 'multipart/related; type="image/png"'
    for path, wanted in (("/studies/1.9.1", 3), ("/studies/1.9.1/series/1.9.2", 2), ("/studies/1.9.1/series/1.9.3", 1)):
        answer = get(client, path + "/rendered", accept)
        assert answer.status_code == 200
        found = parts(answer)
        assert len(found) == wanted
        for head, content in found:
            kind, _, place = head.partition("\r\nContent-Location: ")
            assert kind == "image/png"
            alone = client("GET", place, headers={"Accept": "image/png"})
            assert alone.content == content
    [small, *_] = parts(get(client, "/studies/1.9.1/rendered", "*/*", params={"viewport": "8,8"}))
    assert small[0].startswith("image/jpeg")
    assert max(cv2.imdecode(np.frombuffer(small[1], np.uint8), -1).shape) == 8
    window = get(client, "/studies/1.9.1/series/1.9.3/rendered", "image/png", params={"window": "100,50"})
    plain = get(client, "/studies/1.9.1/series/1.9.3/rendered", "image/png")
    assert window.headers["content-type"] == plain.headers["content-type"] == "image/png"
    assert window.content != plain.content
    assert np.array_equal(cv2.imdecode(np.frombuffer(plain.content, np.uint8), -1), scenes[2])
    # What is not one picture cannot go plain, what has none cannot be drawn.
    for path, accepted in (("", "image/png"), ("", 'multipart/related; type="image/gif"'), ("/series/1.9.4", "*/*")):
        assert get(client, f"/studies/1.9.1{path}/rendered", accepted).status_code == 406
    assert get(client, "/studies/1.9.9/rendered", "*/*").status_code == 404
    broken = films.dataset(scenes[0], SOPInstanceUID="1.9.23", StudyInstanceUID="1.9.1", SeriesInstanceUID="1.9.2")
    broken.PixelData = bytes(10)
    assert stow(client, films.to_bytes(broken)).status_code == 200
    answer = get(client, "/studies/1.9.1/series/1.9.2/rendered", "*/*")
    assert (answer.status_code, len(parts(answer))) == (206, 2)


def test_more_pictures_than_go_into_one_answer(client, monkeypatch) -> None:
    files = [dicom(960 + n, StudyInstanceUID="1.10.1", SeriesInstanceUID="1.10.2") for n in range(3)]
    assert stow(client, *files).status_code == 200
    monkeypatch.setattr(wado, "MAX_PICTURES", 2)
    answer = get(client, "/studies/1.10.1/rendered", "*/*")
    assert answer.status_code == 413
    assert "3 pictures, more than 2" in answer.json()["detail"]


def test_inverted_and_coloured_pictures_are_shown_right(client) -> None:
    scene = films.scene(16, 16, bits=8, seed=3)
    colour = np.stack([scene, 255 - scene, scene // 2], -1)
    named = {"SeriesInstanceUID": "1.4.2", "StudyInstanceUID": "1.4.1"}
    dark = films.dicom(scene, PhotometricInterpretation="MONOCHROME1", SOPInstanceUID="1.4.11", **named)
    rgb = films.dicom(colour, SOPInstanceUID="1.4.12", **named)
    assert stow(client, dark, rgb).status_code == 200
    place = "/studies/1.4.1/series/1.4.2/instances/"
    shown = cv2.imdecode(np.frombuffer(get(client, place + "1.4.11/rendered", "image/png").content, np.uint8), -1)
    assert np.array_equal(shown, 255 - scene)
    shown = cv2.imdecode(np.frombuffer(get(client, place + "1.4.12/rendered", "image/png").content, np.uint8), -1)
    assert np.array_equal(shown[..., ::-1], colour)
    assert get(client, place + "1.4.12/frames/1", "application/octet-stream").content == colour.tobytes()


def test_frames_of_several(client) -> None:
    frames = np.stack([films.scene(8, 8, bits=8, seed=s) for s in range(3)])
    dataset = films.dataset(frames[0], NumberOfFrames=3, StudyInstanceUID="1.5.1", SeriesInstanceUID="1.5.2")
    dataset.SOPInstanceUID, dataset.PixelData = "1.5.3", frames.tobytes()
    assert stow(client, films.to_bytes(dataset)).status_code == 200
    found = parts(get(client, "/studies/1.5.1/series/1.5.2/instances/1.5.3/frames/3,1", "*/*"))
    assert [content for _, content in found] == [frames[2].tobytes(), frames[0].tobytes()]
    for number, frame in enumerate(frames, 1):
        place = f"/studies/1.5.1/series/1.5.2/instances/1.5.3/frames/{number}/thumbnail"
        small = get(client, place, "image/png", params={"viewport": "8,8"})
        assert np.array_equal(cv2.imdecode(np.frombuffer(small.content, np.uint8), -1), frame)


def test_broken_pixels_are_406_and_their_bytes_can_be_had(client) -> None:
    scene = films.scene(16, 16, bits=8)
    named = {"StudyInstanceUID": "1.6.1", "SeriesInstanceUID": "1.6.2"}
    short = films.dataset(scene, SOPInstanceUID="1.6.3", **named)
    short.PixelData = bytes(10)
    lying = films.compressed(b"\xff\xd8\xff\xe0 no JPEG at all", scene, SOPInstanceUID="1.6.4", **named)
    document = films.dataset(scene, SOPInstanceUID="1.6.5", Modality="SR", **named)
    del document.PixelData
    contents = [films.to_bytes(short), lying, films.to_bytes(document)]
    assert stow(client, *contents).status_code == 200
    for uid, content in zip(("1.6.3", "1.6.4", "1.6.5"), contents, strict=True):
        place = f"/studies/1.6.1/series/1.6.2/instances/{uid}"
        for path in ("/frames/1", "/rendered", "/thumbnail"):
            assert get(client, place + path, "*/*").status_code == 406
        assert parts(get(client, place, DICOM + "; transfer-syntax=*"))[0][1] == content
    assert len(parts(get(client, "/studies/1.6.1", DICOM))) == 3


def test_a_file_without_preamble_becomes_a_whole_file(client) -> None:
    content = dicom(720)[132:]
    assert stow(client, content).status_code == 200
    found = get(client, "/studies/1.2.721.1/series/1.2.721.2/instances/1.2.721.3", DICOM + "; transfer-syntax=*")
    dataset = pydicom.dcmread(BytesIO(parts(found)[0][1]))
    assert np.array_equal(dataset.pixel_array, pydicom.dcmread(BytesIO(dicom(720))).pixel_array)


def test_the_patient_in_force_is_the_database_s(client) -> None:
    assert stow(client, dicom(730, PatientName="Wrong^Name", PatientBirthDate="19700101")).status_code == 200
    with client.clinic.database.write() as connection:
        connection.execute(
            store.study.update()
            .where(store.study.c.study_uid == "1.2.731.1")
            .values(patient_name="Right, Name", patient_id="P-right", birth_date="1980-02-03")
        )
    for found in (
        get(client, "/studies", params={"PatientName": "right^*"}).json(),
        get(client, "/studies/1.2.731.1/metadata").json(),
    ):
        assert found[0]["00100010"]["Value"] == [{"Alphabetic": "Right^Name"}]
        assert (values(found[0], "00100020"), values(found[0], "00100030")) == (["P-right"], ["19800203"])


def test_a_lost_file_is_told_and_does_not_hide_the_study(client) -> None:
    assert stow(client, dicom(740)).status_code == 200
    with client.clinic.database.read() as connection:
        sha256 = connection.execute(
            store.sa.select(store.instance.c.sha256).where(store.instance.c.sop_uid == "1.2.741.3")
        ).scalar_one()
    client.clinic.archive.path(sha256).unlink()
    assert ids(get(client, "/studies", params={"PatientID": "P740"})) == ["1.2.741.1"]
    for path in ("", "/metadata", "/thumbnail"):
        assert get(client, "/studies/1.2.741.1" + path, "*/*").status_code == 404


# ------------------------------------------------------------------------------------------- other origins


def test_pages_of_other_origins_may_call_only_dicomweb_and_only_if_named(tmp_path, client) -> None:
    from starlette.testclient import TestClient

    from wetread.config import Settings
    from wetread.web.app import create_app

    def asked(http: TestClient, origin: str, path: str = "/dicomweb/studies"):
        wanted = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        return http.options(path, headers={"Origin": origin, **wanted})

    viewer = "https://ohif.example"
    assert "access-control-allow-origin" not in asked(client.http, viewer).headers
    app = create_app(tmp_path, Settings.model_validate({"dicomweb_origins": [viewer]}), models=[])
    with TestClient(app, base_url="http://127.0.0.1") as http:
        answer = asked(http, viewer)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, viewer)
        assert "access-control-allow-credentials" not in answer.headers
        assert "access-control-allow-origin" not in asked(http, "https://evil.example").headers
        assert "access-control-allow-origin" not in asked(http, viewer, "/api/v1/worklist").headers
        secret = access.create(app.state.clinic.database, "ohif", "service", "default")
        headers = {"Origin": viewer, "Authorization": f"Bearer {secret}"}
        found = http.get("/dicomweb/studies", params={"fuzzymatching": "true"}, headers=headers)
        assert found.headers["access-control-allow-origin"] == viewer
        assert "Warning" in found.headers["access-control-expose-headers"]
        denied = http.get("/dicomweb/studies", headers={"Origin": viewer})
        assert (denied.status_code, denied.headers["access-control-allow-origin"]) == (401, viewer)


@pytest.mark.parametrize("origin", ["*", "https://*.example", "ohif.example", "https://ohif.example/", "null"])
def test_origins_are_whole(origin: str) -> None:
    from wetread import config
    from wetread.errors import ConfigError

    with pytest.raises(ConfigError, match="dicomweb_origins"):
        config.load(environment={"WETREAD_DICOMWEB_ORIGINS": origin})


# ------------------------------------------------------------------------------------- the life of an image


def test_the_header_in_force_is_served(client) -> None:
    """A corrected header around the same pixels replaces the old one; the old bytes are not served any more."""
    old, new = dicom(750, PatientName="Old^Name"), dicom(750, PatientName="New^Name")
    assert stow(client, old).status_code == 200
    response = stow(client, new)
    assert references(response.json(), "00081199") == [("1.2.751.3", 0)]
    found = parts(get(client, "/studies/1.2.751.1", DICOM + "; transfer-syntax=*"))
    assert [content for _, content in found] == [new]
    [header] = get(client, "/studies/1.2.751.1/metadata").json()
    assert header["00100010"]["Value"] == [{"Alphabetic": "New^Name"}]
    assert stow(client, old).status_code in (200, 202)
    assert len(get(client, "/studies/1.2.751.1/instances").json()) == 1


def test_a_corrected_header_from_who_may_not_correct_is_kept_with_a_warning(client) -> None:
    old, new = dicom(755, PatientName="Old^Name"), dicom(755, PatientName="New^Name")
    assert stow(client, old, role="service").status_code == 200
    response = stow(client, new, role="service")
    assert response.status_code == 202
    assert references(response.json(), "00081199") == [("1.2.756.3", 0xB000)]
    [header] = get(client, "/studies/1.2.756.1/metadata").json()
    assert header["00100010"]["Value"] == [{"Alphabetic": "Old^Name"}]
    assert stow(client, new).status_code == 200  # by an administrator
    [header] = get(client, "/studies/1.2.756.1/metadata").json()
    assert header["00100010"]["Value"] == [{"Alphabetic": "New^Name"}]


def test_a_rejected_image_is_not_served(client) -> None:
    assert stow(client, dicom(760)).status_code == 200
    with client.clinic.database.read() as connection:
        image = connection.execute(
            store.sa.select(store.instance.c.id).where(store.instance.c.sop_uid == "1.2.761.3")
        ).scalar_one()
    place = f"/api/v1/images/{image}/rejection"
    rejected = client("POST", place, json={"reason": "wrong patient"})
    assert rejected.status_code == 201, rejected.text
    assert get(client, "/studies/1.2.761.1/metadata").status_code == 404
    assert get(client, "/instances", params={"SOPInstanceUID": "1.2.761.3"}).json() == []
    assert client("DELETE", place).status_code == 200
    assert get(client, "/studies/1.2.761.1/metadata").status_code == 200


def test_a_document_is_served_beside_its_images(client) -> None:
    document = films.dataset(films.scene(8, 8, bits=8), Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33")
    document.StudyInstanceUID, document.SeriesInstanceUID, document.SOPInstanceUID = (
        "1.2.771.1",
        "1.2.771.8",
        "1.2.771.9",
    )
    document.PatientID = "P770"
    del document.PixelData
    content = films.to_bytes(document)
    assert stow(client, dicom(770), content).status_code == 200
    found = get(client, "/studies/1.2.771.1/series")
    assert {values(one, "00080060")[0] for one in found.json()} == {"CR", "SR"}
    place = "/studies/1.2.771.1/series/1.2.771.8/instances/1.2.771.9"
    assert parts(get(client, place, DICOM))[0][1] == content
    assert "7FE00010" not in get(client, place + "/metadata").json()[0]
    [study] = get(client, "/studies", params={"ModalitiesInStudy": "SR", "PatientID": "P770"}).json()
    assert values(study, "00080061") == ["CR", "SR"]
