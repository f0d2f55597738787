"""Storage commitment: on the same association, again and again, once only, and given up in the open."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from clinic_dimse import US, dataset, listening, send
from peers import free_port, wait
from pydicom import Dataset
from pydicom.uid import MRImageStorage, generate_uid
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from ward import dicom

from wetread.clinic import commitment, peers, store
from wetread.clinic.archive import ArchiveError
from wetread.clinic.commitment import Commitments
from wetread.clinic.peers import Caller, Peer
from wetread.errors import ReadError

CLASS = str(dataset(0).SOPClassUID)


def asked(uids, transaction=None):
    request = Dataset()
    request.TransactionUID = transaction or generate_uid()
    request.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CLASS, uid
        request.ReferencedSOPSequence.append(item)
    return request


def ask(link, request, action=1):
    status, _ = link.send_n_action(request, action, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    return status.Status


def rows(ward):
    with ward.database.read() as connection:
        return connection.execute(sa.select(store.commitment)).all()


def make_due(ward, **values):
    with ward.database.write() as connection:
        connection.execute(store.commitment.update().values(due_at=store.now(), **values))


def test_a_peer_without_an_address_gets_the_report_while_its_association_is_open(ward):
    got = []

    def report(event):
        got.append((event.event_type, event.event_information))
        return 0x0000, None

    with listening(ward) as listener:
        send(listener, dataset(1))
        handlers = [(evt.EVT_N_EVENT_REPORT, report)]
        context = [build_context(StorageCommitmentPushModel)]
        with peers.association(listener.us, context, US, evt_handlers=handlers) as link:
            request = asked(["1.2.2.3", "1.2.77"])
            assert ask(link, request) == 0
            assert listener.commitments.step() == 1
            wait(lambda: got, "the report")
            event_type, information = got[0]
            assert event_type == 2
            assert information.TransactionUID == request.TransactionUID
            assert [i.ReferencedSOPInstanceUID for i in information.ReferencedSOPSequence] == ["1.2.2.3"]
            [failed] = information.FailedSOPSequence
            assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == ("1.2.77", commitment.NO_SUCH_INSTANCE)
            assert ask(link, asked(["1.2.2.3"])) == 0
            assert listener.commitments.step() == 1
            wait(lambda: len(got) == 2, "the second report")
            assert got[1][0] == 1
            assert "FailedSOPSequence" not in got[1][1]
    assert [row.state for row in rows(ward)] == ["done", "done"]


def test_what_makes_no_sense_is_answered_so(ward):
    odd = Dataset()
    odd.TransactionUID = "1.2"
    context = [build_context(StorageCommitmentPushModel)]
    with listening(ward) as listener, peers.association(listener.us, context, US) as link:
        assert ask(link, asked(["1.2"]), action=2) == commitment.NO_SUCH_ACTION
        assert ask(link, asked([])) == commitment.INVALID_ARGUMENT
        assert ask(link, odd) == commitment.INVALID_ARGUMENT
    assert rows(ward) == []


def test_each_instance_is_judged_by_itself(ward):
    for seed in range(4):
        ward.take(dicom(seed))
    with ward.database.read() as connection:
        kept = {r.sop_uid: r.sha256 for r in connection.execute(sa.select(store.instance))}
    ward.archive.path(kept["1.2.2.3"]).unlink()
    path = ward.archive.path(kept["1.2.3.3"])
    path.write_bytes(path.read_bytes()[:-2])
    ward.take(dicom(3, PatientID="other", StudyInstanceUID="1.9"))  # quarantined beside 1.2.4.3
    judge = Commitments(ward.database, ward.archive, lambda ae, site: None, Caller())
    wanted = [
        (CLASS, "1.2.1.3"),
        (CLASS, "1.2.2.3"),
        (CLASS, "1.2.3.3"),
        (CLASS, "1.2.4.3"),
        (MRImageStorage, "1.2.1.3"),
    ]
    assert [reason for _, reason in judge.verify("default", wanted)] == [
        0,
        commitment.PROCESSING_FAILURE,
        commitment.PROCESSING_FAILURE,
        0,
        commitment.CLASS_CONFLICT,
    ]
    assert judge.verify("north", wanted[:1]) == [(wanted[0], commitment.NO_SUCH_INSTANCE)]


def test_a_changed_object_is_not_committed(ward, monkeypatch):
    ward.take(dicom(0))

    def changed(sha256):
        raise ReadError("archive s3://bucket: came back with other bytes")

    monkeypatch.setattr(ward.archive, "path", changed)
    judge = Commitments(ward.database, ward.archive, lambda ae, site: None, Caller())
    assert judge.verify("default", [(CLASS, "1.2.1.3")]) == [((CLASS, "1.2.1.3"), commitment.PROCESSING_FAILURE)]


def test_an_archive_that_cannot_be_reached_is_tried_again_and_given_up_in_the_open(ward, monkeypatch):
    ward.take(dicom(0))

    def unreachable(sha256):
        raise ArchiveError("archive s3://bucket: no answer")

    monkeypatch.setattr(ward.archive, "path", unreachable)
    tries = Commitments(ward.database, ward.archive, lambda ae, site: None, Caller())
    tries.add("PACS", "default", "1.2.3", [(CLASS, "1.2.1.3")])
    assert tries.step() == 0
    [row] = rows(ward)
    assert (row.state, "no answer" in row.error) == ("pending", True)
    make_due(ward, created_at=store.now() - commitment.GIVE_UP - timedelta(hours=1))
    assert tries.step() == 0
    assert rows(ward)[0].state == "failed"


def test_a_report_waits_longer_each_time_and_is_given_up_in_the_open(ward):
    where = Peer("PACS", "127.0.0.1", free_port())
    tries = Commitments(ward.database, ward.archive, lambda ae, site: where, Caller(timeout_s=2))
    tries.add("PACS", "default", "1.2.3", [(CLASS, "1.2")])
    waits = []
    for _ in range(3):
        assert tries.step() == 0
        [row] = rows(ward)
        assert (row.state, "cannot be reached" in row.error) == ("pending", True)
        waits.append(row.due_at - store.now())
        make_due(ward)
    assert waits[0] < waits[1] < waits[2]
    with ward.database.write() as connection:  # by a clock that was ahead
        connection.execute(store.commitment.update().values(due_at=store.now() + timedelta(days=300)))
    tries.step()
    assert rows(ward)[0].due_at < store.now() + timedelta(hours=2)
    make_due(ward, created_at=store.now() - commitment.GIVE_UP - timedelta(hours=1))
    assert tries.step() == 0
    assert rows(ward)[0].state == "failed"
    with ward.database.read() as connection:
        assert "commitment.failed" in connection.execute(sa.select(store.event.c.kind)).scalars().all()
    assert tries.step() == 0


def test_the_same_transaction_again_is_one_and_two_processes_report_once(ward):
    got = []
    entity = AE("PACS")
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)

    def report(event):
        got.append(event.event_type)
        return 0x0000, None

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)])
    try:
        where = Peer("PACS", "127.0.0.1", server.server_address[1])
        one, two = (Commitments(ward.database, ward.archive, lambda ae, site: where, Caller()) for _ in range(2))
        key = one.add("PACS", "default", "1.2.3", [(CLASS, "1.2")])
        assert one.add("PACS", "default", "1.2.3", [(CLASS, "1.2")]) == key
        [row] = rows(ward)
        assert [one._report(row), two._report(row)] == [True, False]
        assert got == [2]
    finally:
        server.shutdown()


@pytest.mark.parametrize("count", [1, 700])
def test_many_instances_are_found(ward, count):
    ward.take(dicom(0))
    judge = Commitments(ward.database, ward.archive, lambda ae, site: None, Caller())
    verdicts = judge.verify("default", [(CLASS, f"1.2.{n + 1}.3") for n in range(count)])
    assert [reason for _, reason in verdicts] == [0] + [commitment.NO_SUCH_INSTANCE] * (count - 1)
