"""Every kind of bad file, by DICOM: the sender gets the right status, the reader a code, and nobody waits."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from bad_files import FILES, Suits, numbered
from clinic_dimse import US, Listening, listening
from peers import wait
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import build_context
from pynetdicom.dimse_primitives import C_STORE
from ward import Ward

from wetread.clinic import peers, store
from wetread.clinic.receive import Status


def codes(ward: Ward) -> dict[str, str | None]:
    """Return SOP Instance UID → code of the result."""
    join = store.instance.join(store.image_result, store.image_result.c.instance == store.instance.c.id)
    with ward.database.read() as connection:
        chosen = sa.select(store.instance.c.sop_uid, store.image_result.c.code).select_from(join)
        return {row.sop_uid: row.code for row in connection.execute(chosen)}


@pytest.fixture
def bad_ward(tmp_path: Path) -> Ward:
    return Ward(tmp_path, [Suits()])  # type: ignore[list-item]


@pytest.mark.system
def test_whatever_is_taken_in_is_in_the_list_with_its_code(bad_ward: Ward) -> None:
    taken = {name: bad_ward.take(numbered(make(), n), name) for n, (name, (make, _)) in enumerate(FILES.items())}
    bad_ward.work()
    with bad_ward.database.read() as connection:
        results = connection.execute(sa.select(store.image_result.c.instance, store.image_result.c.code)).all()
        found = {row.instance: row.code for row in results}
        listed = set(connection.execute(sa.select(store.study.c.id)).scalars())
    assert {name: found[received.image] for name, received in taken.items()} == {n: c for n, (_, c) in FILES.items()}
    assert {received.study for received in taken.values()} <= listed
    bad_ward.database.close()


def put(listener: Listening, files: dict[str, bytes]) -> dict[str, int]:
    """Store the data sets of files over one association, byte for byte; return name → status."""
    contexts = [build_context(SecondaryCaptureImageStorage, ExplicitVRLittleEndian)]
    statuses = {}
    with peers.association(listener.us, contexts, US) as link:
        link._reactor_checkpoint.clear()
        wait(lambda: link._is_paused, "the reactor pauses")
        for number, (name, data) in enumerate(files.items()):
            request = C_STORE()
            request.MessageID, request.Priority = number + 1, 2
            request.AffectedSOPClassUID = SecondaryCaptureImageStorage
            request.AffectedSOPInstanceUID = f"1.{100 + number}.4"
            request.DataSet = BytesIO(data[max(0, data.find(b"\x08\0\x16\0UI")) :])
            link.dimse.send_msg(request, link.accepted_contexts[0].context_id)
            _, response = link.dimse.get_msg(block=True)
            statuses[name] = response.Status
        link._reactor_checkpoint.set()
    return statuses


@pytest.mark.system
def test_by_dicom_each_is_answered_and_the_association_goes_on(bad_ward: Ward) -> None:
    wanted = {name: code for name, (_, code) in FILES.items() if name != "no preamble"}
    files = {name: numbered(FILES[name][0](), number) for number, name in enumerate(wanted)}
    with listening(bad_ward) as listener:
        assert put(listener, files) == dict.fromkeys(files, Status.SUCCESS)
        assert put(listener, {"none": b"no data set" * 20}) == {"none": Status.CANNOT_UNDERSTAND}
    bad_ward.work()
    found = codes(bad_ward)
    assert {name: found[f"1.{100 + number}.4"] for number, name in enumerate(wanted)} == wanted
    bad_ward.database.close()
