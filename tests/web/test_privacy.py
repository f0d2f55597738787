"""Nobody's name, identifier or accession number is in a log, a metric or an address, whatever comes in and fails."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from io import BytesIO
from pathlib import Path

import films
import httpx
import numpy as np
import pytest
import tiny_package
from pynetdicom import AE
from pynetdicom.sop_class import SecondaryCaptureImageStorage

from wetread.clinic import access
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.infer.predict import Predictor
from wetread.radiograph import phantom
from wetread.radiograph.read import Radiograph

SECRETS = ("Zebedee", "Quixote", "MRN55512", "ACC99871", "19610412", "1961-04-12", "Strangelove")
PATIENT = {
    "PatientName": "Zebedee^Quixote",
    "PatientID": "MRN55512",
    "AccessionNumber": "ACC99871",
    "PatientBirthDate": "19610412",
    "ReferringPhysicianName": "Strangelove",
    "PatientAge": "062Y",
}


class Blind(Radiograph):
    """A radiograph whose identifiers cannot be looked at."""

    def __getattribute__(self, name: str) -> object:
        if name in ("patient", "study", "series", "instance", "acquired_at"):
            raise AssertionError(f"inference looked at {name}")
        return super().__getattribute__(name)


def test_inference_looks_at_pixels_age_sex_view_and_kind_only(tmp_path: Path) -> None:
    film = phantom.make(1, size=128).radiograph
    values = {field.name: getattr(film, field.name) for field in fields(film)} | {"source": "dicom", "age_years": 50}
    package = tiny_package.write(tmp_path / "tiny")
    with Predictor.open(package.path, Settings(runtime="onnxruntime")) as predictor:
        given: list[tuple[object, ...]] = []
        run = predictor._engine.run

        def looking(*arguments: object) -> object:
            given.append(arguments)
            return run(*arguments)  # type: ignore[arg-type]

        # The engine is called with an array of pixels and nothing else: that is all that its interface has.
        looking(np.zeros((1, 1, 64, 64), np.uint8))
        assert [type(argument) for argument in given[0]] == [np.ndarray]
        assert predictor.analyse(Blind(**values)).model == "tiny"


def file(seed: int, **changes: object) -> bytes:
    number = f"1.2.{seed}"
    uids = {"StudyInstanceUID": f"{number}.1", "SeriesInstanceUID": f"{number}.2", "SOPInstanceUID": f"{number}.3"}
    return films.dicom(films.scene(32, 32, bits=12, seed=seed), **{**PATIENT, **uids, **changes})


def hostile() -> dict[str, bytes]:
    """Files that fail in many ways, each with the patient in it."""
    good = file(1)
    broken = good.replace(b"19610412", b"Zebedee!")
    return {
        "good": good,
        "truncated": good[:-700],
        "no pixels": file(3, PixelData=None),
        "bad age": file(4).replace(b"062Y", b"Quix"),
        "other bytes": file(1, WindowCenter="7"),
        "other patient": file(1, SOPInstanceUID="1.2.1.9", PatientID="MRN55512X"),
        "no study": file(5, StudyInstanceUID=""),
        "path": file(6).replace(b"1.2.6.1", b"../Zebe"),
        "bad date": broken,
        "bad character set": file(7, SpecificCharacterSet="ISO_IR 100").replace(b"ISO_IR 100", b"Quixote100"),
        "bad bits": file(9, BitsAllocated=7),
        "short": good[:200],
        "hand": file(8, BodyPartExamined="HAND"),
    }


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path, int]]:
    """A server with every entrance open, whose log goes to a file."""
    import socket

    folder = tmp_path_factory.mktemp("privacy")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dicom_port = probe.getsockname()[1]
    database = Store.open(folder / "data")
    token = access.create(database, "me", "administrator", "default")
    database.close()
    environment = os.environ | {
        "WETREAD_MODELS": str(tiny_package.write(folder / "tiny").path),
        "WETREAD_RUNTIME": "onnxruntime",
        "WETREAD_WATCH": str(folder / "watch"),
        "WETREAD_DICOM_PORT": str(dicom_port),
        "WETREAD_DICOM_HOST": "127.0.0.1",
        "WETREAD_DICOM_PEERS": "*@*",
        "WETREAD_DICOM_CHECK_CALLED": "false",
    }
    (folder / "watch" / "incoming").mkdir(parents=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "wetread", "serve", "--data", str(folder / "data"), "--port", "0"],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            base = re.match(r"http://[^/]+", process.stdout.readline())
            assert base is not None, (folder / "log").read_text()
            with httpx.Client(base_url=base[0], headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
                yield http, folder, dicom_port
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


@pytest.mark.system
def test_no_log_metric_or_address_tells_who_a_patient_is(house) -> None:
    http, folder, dicom_port = house
    contents = hostile()
    answers: list[httpx.Response] = []

    def ask(method: str, path: str, **more: object) -> httpx.Response:
        answers.append(http.request(method, path, **more))  # type: ignore[arg-type]
        return answers[-1]

    studies = []
    for name, content in contents.items():  # by upload, twice, the second time as an archive
        answer = ask("POST", "/api/v1/studies", files=[("files", (f"Zebedee Quixote {name}.dcm", content))])
        if answer.status_code == 201:
            studies += [study["study"] for study in answer.json()["studies"]]
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"Quixote/{name}.dcm", content)
    ask("POST", "/api/v1/studies", files=[("files", ("Zebedee.zip", packed.getvalue()))])
    ask("POST", "/api/v1/studies", files=[("files", ("Zebedee.zip", packed.getvalue()[:900]))])
    ask("POST", "/api/v1/studies", json={"url": "https://zebedee.invalid/Quixote.dcm", "study": "Zebedee"})

    for content in contents.values():  # by STOW-RS
        body = b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b--\r\n"
        headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
        ask("POST", "/dicomweb/studies", content=body, headers=headers)
    for query in ("PatientName=Zebedee*", "PatientID=MRN55512", "AccessionNumber=ACC99871", "Zebedee=1", "PatientID="):
        ask("GET", f"/dicomweb/studies?{query}")

    peer = AE(ae_title="MODALITY")  # by C-STORE
    peer.add_requested_context(SecondaryCaptureImageStorage)
    association = peer.associate("127.0.0.1", dicom_port)
    assert association.is_established
    for name in ("good", "bad age", "other patient", "no study", "hand"):
        import pydicom

        association.send_c_store(pydicom.dcmread(BytesIO(contents[name]), force=True))
    association.release()

    for name, content in contents.items():  # by folder
        draft = folder / f"{name}.part"
        draft.write_bytes(content)
        shutil.move(draft, folder / "watch" / "incoming" / f"Zebedee Quixote {name}.dcm")
    until(lambda: not [path for path in (folder / "watch" / "incoming").rglob("*") if path.is_file()])
    until(lambda: 'wetread_jobs{state="queued"} 0' in http.get("/metrics").text)

    for study in studies[:3]:  # what people do with it
        ask("POST", f"/api/v1/studies/{study}/claim")
        ask(
            "POST", f"/api/v1/studies/{study}/reviews", json={"state": "draft", "note": "Zebedee", "added": ["Quixote"]}
        )
        ask("POST", f"/api/v1/studies/{study}/patient", json={"patient_name": "Quixote, Zebedee", "reason": "Quixote"})
    for path in (
        "/api/v1/studies/Zebedee",
        "/studies/MRN55512",
        "/api/v1/images/Quixote/preview.png",
        "/v2/models/zebedee",
    ):
        ask("GET", path)
    ask("POST", "/api/v1/studies", content=b"Zebedee", headers={"Content-Type": "multipart/form-data; boundary=x"})
    ask("POST", "/v2/models/tiny/infer", json={"inputs": [{"name": "Zebedee"}]})

    assert all(answer.status_code < 500 for answer in answers), [a for a in answers if a.status_code >= 500]
    addresses = [value for answer in answers for key, value in answer.headers.items() if key in ("location", "link")]
    for path in ["/", *(f"/studies/{study}" for study in studies)]:
        page = http.get(path, headers={"Accept": "text/html"}, follow_redirects=False)
        addresses += re.findall(r'(?:href|src|action|hx-\w+|data-\w*url)="([^"]*)"', html.unescape(page.text))
    assert len(addresses) > 10
    run = [sys.executable, "-m", "wetread", "export-learning", str(folder / "out"), "--data", str(folder / "data")]
    exported = subprocess.run(run, capture_output=True, text=True, cwd=folder, check=True)

    told = {
        "log": (folder / "log").read_text(),
        "metrics": http.get("/metrics").text,
        "addresses": "\n".join(addresses),
        "command": exported.stdout + exported.stderr,
    }
    assert told["log"]
    for where, text in told.items():
        lines = [line for line in text.splitlines() if any(secret.lower() in line.lower() for secret in SECRETS)]
        assert not lines, (where, lines[:5])
