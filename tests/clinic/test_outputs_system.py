"""Outputs against real peers: Orthanc by STOW-RS and C-STORE, DCMTK, PostgreSQL, and a process that is killed."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import highdicom as hd
import peers
import pydicom
import pytest
import receivers
import sqlalchemy as sa
from dicomweb_client.api import DICOMwebClient
from peers import Orthanc
from ward import SITE, Ward, dicom

from wetread.clinic import delivery, store
from wetread.clinic.corrections import Corrections
from wetread.clinic.delivery import Outbox
from wetread.config import Settings

pytestmark = pytest.mark.system


def completed(ward: Ward, seed: int, name: str = "pneumothorax.dcm") -> str:
    """Take in one image, analyse it, and let its study be complete; return the study."""
    got = ward.take(dicom(seed, PatientName="Doe^Jane", StudyDate="20240102", StudyTime="101112"), name)
    ward.work()
    with ward.database.write() as connection:
        connection.execute(store.study.update().values(complete_at=None))
        store.emit(connection, "study.completed", SITE, got.study)
    return got.study


@contextmanager
def sending(box: Outbox) -> Iterator[None]:
    box.start()
    try:
        yield
    finally:
        box.stop()


def states(ward: Ward) -> list[str]:
    found = delivery.listing(ward.database, SITE, states=("queued", "failed", "sent", "given_up", "nothing"))
    return sorted(row.state for row in found)


@pytest.mark.parametrize(("way", "seed"), [("stow", 9001), ("c-store", 9002)])
def test_orthanc_keeps_report_and_capture_beside_the_image(
    ward: Ward, orthanc: Orthanc, way: str, seed: int, tmp_path: Path
) -> None:
    to = f"dicomweb+{orthanc.dicomweb}" if way == "stow" else f"dicom://{orthanc.peer}"
    uid = f"1.2.{seed + 1}.1"
    orthanc.upload(dicom(seed, PatientName="Doe^Jane", StudyDate="20240102", StudyTime="101112"))
    box = Outbox(ward.database, ward.archive, Settings(outputs_sr=[to], outputs_sc=[to]))
    completed(ward, seed)
    with sending(box):
        peers.wait(lambda: states(ward) == ["sent", "sent"], f"deliveries: {states(ward)}")
    client = DICOMwebClient(orthanc.dicomweb)
    [study] = client.search_for_studies(search_filters={"StudyInstanceUID": uid})
    assert study["00201206"]["Value"] == [3]  # three series: the image's own and two of ours
    assert {s["00080060"]["Value"][0] for s in client.search_for_series(study_instance_uid=uid)} >= {"SR", "OT"}
    found = {str(i.Modality): i for i in client.retrieve_study(uid)}
    report, capture = hd.sr.ComprehensiveSR.from_dataset(found["SR"]), found["OT"]
    assert report.VerificationFlag == "UNVERIFIED"
    [referenced] = report.CurrentRequestedProcedureEvidenceSequence
    images = referenced.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert images[0].ReferencedSOPInstanceUID == f"1.2.{seed + 1}.3"
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == f"1.2.{seed + 1}.3"
    assert capture.pixel_array.shape[2] == 3
    # The original is as it was.
    [original] = client.search_for_instances(uid, search_filters={"SOPInstanceUID": f"1.2.{seed + 1}.3"})
    kept = client.retrieve_instance(uid, original["0020000E"]["Value"][0], f"1.2.{seed + 1}.3")
    assert kept.PixelData == pydicom.dcmread(BytesIO(dicom(seed))).PixelData
    file = tmp_path / "sr.dcm"
    report.save_as(file, enforce_file_format=True)
    assert peers.dcmtk("dsrdump", file).returncode == 0
    # What a killed sender would do: send both again. Nothing doubles.
    with ward.database.write() as connection:
        connection.execute(store.delivery.update().values(state="queued", due_at=store.now()))
    again = Outbox(ward.database, ward.archive, Settings(outputs_sr=[to], outputs_sc=[to]))
    with sending(again):
        peers.wait(lambda: states(ward) == ["sent", "sent"], "deliveries")
    assert len(client.search_for_instances(uid)) == 3


def test_what_an_archive_that_is_down_misses_comes_later(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, dicom_port = peers.free_port(), peers.free_port()
    settings = Settings(
        outputs_sr=[f"dicomweb+http://127.0.0.1:{port}/dicom-web"],
        outputs_sc=[f"dicom://LATE@127.0.0.1:{dicom_port}"],
        outputs_retry_s=0.05,
    )
    box = Outbox(ward.database, ward.archive, settings)
    completed(ward, 9003)
    with sending(box):
        peers.wait(lambda: states(ward) == ["failed", "failed"], "two failures")
        assert delivery.undelivered(ward.database, SITE) == 2
        ports = iter([port, dicom_port])
        monkeypatch.setattr(peers, "free_port", lambda: next(ports))
        with peers.orthanc(tmp_path / "late", "LATE") as late:
            peers.wait(lambda: states(ward) == ["sent", "sent"], "both sent")
            assert len(late.instances()) == 2


KILLED = """
import sys
from pathlib import Path
from wetread.clinic.archive import Archive
from wetread.clinic.delivery import Outbox
from wetread.clinic.store import Store
from wetread.config import Settings
data = Path(sys.argv[1])
box = Outbox(Store.open(data), Archive(data / "archive"), Settings(outputs_hl7=[sys.argv[2]]))
box.start()
box._threads[0].join()
"""


def test_kill_9_while_sending_loses_nothing(ward: Ward, tmp_path: Path) -> None:
    held = threading.Event()
    with receivers.mllp("AA") as receiver:
        first = receiver.answer

        def hold() -> str:
            held.wait(60)
            return str(first())

        receiver.answer = hold  # type: ignore[method-assign]
        to = f"mllp://127.0.0.1:{receiver.port}"
        box = Outbox(ward.database, ward.archive, Settings(outputs_hl7=[to]))
        completed(ward, 1)
        with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), to], env=dict(os.environ)) as process:
            peers.wait(lambda: len(receiver.got) == 1, "the first message")
            process.send_signal(signal.SIGKILL)
        held.set()
        assert states(ward) == ["queued"]  # sent, for all we know, but nobody saw the answer
        with ward.database.write() as connection:
            connection.execute(store.delivery.update().values(lease_until=store.now()))
        with sending(box):
            peers.wait(lambda: states(ward) == ["sent"], "the second message")
        assert len(receiver.got) == 2
        assert receiver.got[0] == receiver.got[1]


def test_many_senders_on_postgresql_send_each_once(tmp_path: Path, postgresql: str) -> None:
    ward = Ward(tmp_path, url=postgresql)
    try:
        with receivers.mllp("AA") as receiver:
            settings = Settings(outputs_hl7=[f"mllp://127.0.0.1:{receiver.port}"])
            boxes = [Outbox(store.Store(postgresql), ward.archive, settings) for _ in range(4)]
            ward.database.followers.append(boxes[0].follow)
            for seed in range(12):
                completed(ward, 100 + seed)
            for box in boxes:
                box.start()
            peers.wait(lambda: states(ward) == ["sent"] * 12, "twelve deliveries")
            for box in boxes:
                box.stop()
                box.database.close()
            assert len(receiver.got) == 12
            assert len({message.split("|")[9] for message in receiver.got}) == 12
    finally:
        ward.database.close()


def test_certificates_are_verified(ward: Ward, tmp_path: Path) -> None:
    files = peers.certificates(tmp_path / "certificates")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(files["server"], files["server_key"])
    (tmp_path / "token").write_text("letmein\n")
    with receivers.mllp("AA", tls=tls) as hl7, receivers.http((200, b"{}"), tls=tls) as fhir:
        known, stranger = (f"ca-file={files[name]}" for name in ("ca", "stranger"))
        settings = Settings(
            outputs_hl7=[f"mllps://127.0.0.1:{hl7.port}#{known}", f"mllps://localhost:{hl7.port}#{stranger}"],
            outputs_fhir=[
                f"fhir+https://127.0.0.1:{fhir.port}/fhir#{known}&token-file={tmp_path / 'token'}",
                f"fhir+https://localhost:{fhir.port}/fhir#token-file={tmp_path / 'token'}",
            ],
            outputs_tries=1,
        )
        box = Outbox(ward.database, ward.archive, settings)
        completed(ward, 1)
        with sending(box):
            peers.wait(lambda: not {"queued", "failed"} & set(states(ward)), "four tries")
        found = delivery.listing(ward.database, SITE, states=("sent", "given_up"))
        ends = {row.destination: (row.state, row.error or "") for row in found}
        assert len(hl7.got) == 1
        assert ends[f"mllps://127.0.0.1:{hl7.port}"][0] == "sent"
        assert "CERTIFICATE_VERIFY_FAILED" in ends[f"mllps://localhost:{hl7.port}"][1]
        assert "CERTIFICATE_VERIFY_FAILED" in ends[f"fhir+https://localhost:{fhir.port}/fhir"][1]
        [request] = fhir.got  # the token went only where the certificate was good
        assert request.headers["Authorization"] == "Bearer letmein"
        assert "answered no Bundle" in ends[f"fhir+https://127.0.0.1:{fhir.port}/fhir"][1]


def test_a_destination_that_hangs_keeps_no_other_waiting(ward: Ward) -> None:
    held = threading.Event()
    with receivers.mllp("AA") as slow, receivers.mllp("AA") as quick:
        slow.answer = lambda: (held.wait(60), "AA")[1]  # type: ignore[method-assign]
        addresses = [f"mllp://127.0.0.1:{receiver.port}" for receiver in (slow, quick)]
        box = Outbox(ward.database, ward.archive, Settings(outputs_hl7=addresses))
        completed(ward, 1)
        with sending(box):
            peers.wait(lambda: len(slow.got) == 1, "the slow one")
            peers.wait(lambda: states(ward) == ["queued", "sent"], "the quick one")
            held.set()
            peers.wait(lambda: states(ward) == ["sent", "sent"], "both")


def test_orthanc_gets_the_rejection_note_and_the_corrected_objects(
    ward: Ward, orthanc: Orthanc, tmp_path: Path
) -> None:
    seed, uid = 9011, "1.2.9012.1"
    orthanc.upload(dicom(seed, PatientName="Doe^Jane", StudyDate="20240102", StudyTime="101112"))
    stow, store_to = f"dicomweb+{orthanc.dicomweb}", f"dicom://{orthanc.peer}"
    box = Outbox(ward.database, ward.archive, Settings(outputs_sr=[stow], outputs_sc=[store_to], outputs_retry_s=0.05))
    study = completed(ward, seed)
    hand = Corrections(ward.database, lambda connection, site: ward.ranking)
    with sending(box):
        peers.wait(lambda: states(ward) == ["sent"] * 2, f"deliveries: {states(ward)}")
        hand.patient(SITE, study, {"patient_name": "Roe, Jane"}, "mixed up", "admin")
        peers.wait(lambda: states(ward) == ["sent"] * 4, f"deliveries: {states(ward)}")
    found = DICOMwebClient(orthanc.dicomweb).retrieve_study(uid)
    by = {kind: [i for i in found if i.Modality == kind] for kind in ("SR", "OT", "KO")}
    assert {kind: len(each) for kind, each in by.items()} == {"SR": 2, "OT": 2, "KO": 2}
    old = {i.SOPInstanceUID for i in by["SR"] + by["OT"] if str(i.PatientName) == "Doe^Jane"}
    assert len(old) == 2
    named = {
        o.ReferencedSOPInstanceUID
        for note in by["KO"]
        for each in note.CurrentRequestedProcedureEvidenceSequence
        for series in each.ReferencedSeriesSequence
        for o in series.ReferencedSOPSequence
    }
    assert named == old
    for number, note in enumerate(by["KO"]):
        note.save_as(file := tmp_path / f"{number}.dcm", enforce_file_format=True)
        read = peers.dcmtk("dsrdump", "+Pn", file)
        assert read.returncode == 0
        assert "Rejected for Patient Safety Reasons" in read.stdout
    # They come back, as a route without a filter sends everything: they attach, and reject nothing here.
    for made in by["SR"] + by["KO"]:
        made.save_as(buffer := BytesIO(), enforce_file_format=True)
        ward.intake.take(BytesIO(buffer.getvalue()), "back", SITE)
    with ward.database.read() as connection:
        shown = connection.execute(sa.select(store.instance.c.state)).scalars().all()
        assert connection.execute(sa.select(sa.func.count()).select_from(store.study)).scalar_one() == 1
    assert sorted(shown) == ["document"] * 4 + ["stored"]
