"""DICOMweb with real peers: dicomweb-client and Orthanc's plugin against a running `wetread serve`."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import cv2
import films
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from serving import Server, serving

pytestmark = pytest.mark.system

ROOT = "1.2.826.0.1.77"


def image(number: int, syntax: str | None = None, plugin: str | None = None, **elements: object) -> bytes:
    """Return a radiograph of 12 bits, the same picture in whatever transfer syntax."""
    named = {
        "StudyInstanceUID": f"{ROOT}.{number}",
        "SeriesInstanceUID": f"{ROOT}.{number}.1",
        "SOPInstanceUID": f"{ROOT}.{number}.1.1",
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
        "PatientID": f"WEB{number}",
        "PatientName": f"Web^Number{number}",
        "StudyDate": f"202601{number:02}",
        "StudyTime": "120000",
        "AccessionNumber": f"A{number}",
    }
    dataset = films.dataset(films.scene(96, 80, bits=12, seed=number), **(named | elements))
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    if syntax is not None:
        dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    return films.to_bytes(dataset)


IMAGES = {
    1: image(1),
    2: image(2, RLELossless, "pylibjpeg"),
    3: image(3, JPEGLSLossless, "pyjpegls"),
    4: image(4, JPEG2000Lossless, "pylibjpeg"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("dicomweb") / "clinic") as running:
        yield running


@pytest.fixture(scope="module")
def web(server: Server) -> Iterator[DICOMwebClient]:
    """A client of the field's own, and the four images stored by it."""
    with requests.Session() as session:
        session.headers["Authorization"] = server.http.headers["Authorization"]
        client = DICOMwebClient(str(server.http.base_url.join("/dicomweb")), session=session)
        client.host = server.http.base_url.netloc.decode()  # else it leaves out the port in the Host header
        answer = client.store_instances([pydicom.dcmread(BytesIO(content)) for content in IMAGES.values()])
        assert len(answer.ReferencedSOPSequence) == 4
        assert "FailedSOPSequence" not in answer
        yield client


def place(number: int) -> tuple[str, str, str]:
    return f"{ROOT}.{number}", f"{ROOT}.{number}.1", f"{ROOT}.{number}.1.1"


def test_search(web: DICOMwebClient) -> None:
    found = web.search_for_studies(search_filters={"PatientName": "web*"}, limit=3, offset=1)
    assert [study["00100020"]["Value"] for study in found] == [["WEB3"], ["WEB2"], ["WEB1"]]
    found = web.search_for_studies(search_filters={"StudyDate": "20260102-20260103"}, fields=["00081030", "Rows"])
    assert [study["00280010"]["Value"] for study in found] == [[96], [96]]
    assert len(web.search_for_studies(fuzzymatching=True, search_filters={"PatientID": "WEB2"})) == 1
    assert len(web.search_for_series(place(1)[0], search_filters={"Modality": "CR"})) == 1
    assert web.search_for_series(place(1)[0], search_filters={"Modality": "MR"}) == []
    assert len(web.search_for_instances(search_filters={"PatientID": "WEB*"})) == 4
    [found] = web.search_for_instances(*place(2)[:2])
    assert pydicom.Dataset.from_json(found).SOPInstanceUID == place(2)[2]


@pytest.mark.parametrize("number", IMAGES)
def test_retrieved_pixels_are_those_of_pydicom(web: DICOMwebClient, number: int) -> None:
    sent = pydicom.dcmread(BytesIO(IMAGES[number]))
    plain = web.retrieve_instance(*place(number))
    assert np.array_equal(plain.pixel_array, sent.pixel_array)
    own = str(sent.file_meta.TransferSyntaxUID)
    [same] = web.retrieve_series(*place(number)[:2], media_types=(("application/dicom", own),))
    assert same.file_meta.TransferSyntaxUID == own
    assert same.PixelData == sent.PixelData
    assert same == sent
    [frame] = web.retrieve_instance_frames(*place(number), frame_numbers=[1])
    assert np.array_equal(np.frombuffer(frame, "<u2").reshape(96, 80), sent.pixel_array)
    [frame] = web.retrieve_instance_frames(
        *place(number), frame_numbers=[1], media_types=(("application/octet-stream", "1.2.840.10008.1.2.1"),)
    )
    assert np.array_equal(np.frombuffer(frame, "<u2").reshape(96, 80), sent.pixel_array)
    images = {3: "image/jls", 4: "image/jp2"}
    if number in images:
        [frame] = web.retrieve_instance_frames(*place(number), frame_numbers=[1], media_types=((images[number], own),))
        assert frame == next(generate_frames(sent.PixelData, number_of_frames=1))


def test_metadata_and_bulk_data(web: DICOMwebClient) -> None:
    [header] = web.retrieve_study_metadata(place(1)[0])
    assert header == web.retrieve_instance_metadata(*place(1)) == web.retrieve_series_metadata(*place(1)[:2])[0]
    sent = pydicom.dcmread(BytesIO(IMAGES[1]))
    uri = header["7FE00010"]["BulkDataURI"]
    assert web.retrieve_bulkdata(uri) == [sent.PixelData]
    dataset = pydicom.Dataset.from_json(header, lambda tag, vr, uri: bytes(web.retrieve_bulkdata(uri)[0]))
    for element in sent:
        if element.keyword != "SpecificCharacterSet":
            assert dataset[element.tag].value == element.value, element.keyword


def test_rendered(web: DICOMwebClient) -> None:
    png = web.retrieve_instance_rendered(*place(3), media_types=("image/png",), params={"window": "2048,4096,linear"})
    shown = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.abs(shown.astype(int) - pydicom.dcmread(BytesIO(IMAGES[3])).pixel_array / 4095 * 255).max() <= 1
    jpeg = web.retrieve_instance_frames_rendered(*place(4), frame_numbers=[1], media_types=("image/jpeg",))
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED).shape == (96, 80)


def test_refusals_reach_the_client(web: DICOMwebClient) -> None:
    with pytest.raises(requests.HTTPError) as error:
        web.retrieve_study("1.2.3")
    assert error.value.response.status_code == 404
    dataset = pydicom.dcmread(BytesIO(image(5)))
    with pytest.raises(requests.HTTPError) as error:
        web.store_instances([dataset], study_instance_uid="1.2.3")
    assert error.value.response.status_code == 409


def test_orthanc_stores_here_and_fetches_back(server: Server, orthanc) -> None:
    """By its own STOW client; then, emptied, by its own WADO client; the data sets are the same in the end."""
    orthanc.empty()
    unicode = {"PatientName": "Äöü^名", "SpecificCharacterSet": "ISO_IR 192"}
    contents = [image(11), image(12, JPEG2000Lossless, "pylibjpeg"), image(13, **unicode)]
    sent = {content: orthanc.upload(content) for content in contents}
    peer = {
        "Url": str(server.http.base_url.join("/dicomweb/")),
        "HttpHeaders": {"Authorization": server.http.headers["Authorization"]},
        "HasDelete": False,
    }
    orthanc.rest.put("/dicom-web/servers/wetread", json=peer).raise_for_status()
    resources = [orthanc.rest.get(f"/instances/{key}/study").json()["ID"] for key in sent.values()]
    body = {"Resources": resources, "Synchronous": True}
    answer = orthanc.rest.post("/dicom-web/servers/wetread/stow", json=body)
    assert answer.status_code == 200, answer.text
    query = {"Uri": "/studies", "Arguments": {"PatientID": "WEB1?"}}
    found = orthanc.rest.post("/dicom-web/servers/wetread/qido", json=query)
    assert found.status_code == 200, found.text
    assert len(found.json()) == 3
    orthanc.empty()
    studies = [{"Study": f"{ROOT}.{number}"} for number in (11, 12, 13)]
    body = {"Resources": studies, "Synchronous": True}
    answer = orthanc.rest.post("/dicom-web/servers/wetread/retrieve", json=body)
    assert answer.status_code == 200, answer.text
    back = [pydicom.dcmread(BytesIO(orthanc.file(key))) for key in orthanc.instances()]
    assert len(back) == 3
    for content in contents:
        original = pydicom.dcmread(BytesIO(content))
        [same] = [dataset for dataset in back if dataset.SOPInstanceUID == original.SOPInstanceUID]
        assert np.array_equal(same.pixel_array, original.pixel_array)
        assert str(same.PatientName) == str(original.PatientName)
