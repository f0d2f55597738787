"""Receiving by DICOM: DCMTK, Orthanc and hostile senders against the listener of a ward."""

import hashlib
import random
import socket
import struct
import tracemalloc
import zlib
from contextlib import suppress
from io import BytesIO

import pydicom
import pytest
import sqlalchemy as sa
from clinic_dimse import US, body, dataset, listening, rows, send
from peers import wait
from prometheus_client import generate_latest
from pydicom.uid import JPEGLosslessSV1, MRImageStorage, SecondaryCaptureImageStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import Verification
from ward import dicom as dicom_file

from wetread.clinic import peers, store
from wetread.clinic.dimse import _WORDS, Listener
from wetread.clinic.peers import Caller, Peer, PeerError
from wetread.clinic.receive import STATUS_MEANS, Body, Status, file_header
from wetread.clinic.senders import Sender
from wetread.config import Settings
from wetread.errors import ConfigError, FullError


@pytest.fixture
def listener(ward):
    with listening(ward) as opened:
        yield opened


def test_what_is_acknowledged_is_there_byte_for_byte(ward, listener, tmp_path):
    path = tmp_path / "x.dcm"
    path.write_bytes(ward_file := dicom_file(3))
    [sent] = send(listener, path)
    assert sent.status == Status.SUCCESS
    [row] = rows(ward)
    kept = ward.archive.path(row.sha256).read_bytes()
    assert body(kept) == body(ward_file)
    assert hashlib.sha256(kept).hexdigest() == row.sha256
    assert pydicom.dcmread(BytesIO(kept)).pixel_array.tolist() == dataset(3).pixel_array.tolist()
    with ward.database.read() as connection:
        assert connection.execute(sa.select(store.audit.c.actor)).scalars().all() == ["AE MODALITY"]


def test_the_same_again_changes_nothing_whoever_sends_it(ward, listener):
    assert [send(listener, dataset(1), caller=Caller(ae))[0].status for ae in ("A", "B")] == [0, 0]
    assert len(rows(ward)) == 1


def test_other_bytes_under_a_known_uid_are_success_kept_apart_and_an_event(ward, listener):
    other = dataset(
        2, SOPInstanceUID="1.2.2.3", StudyInstanceUID="1.2.2.1", SeriesInstanceUID="1.2.2.2", PatientID="P1"
    )
    assert [s.status for s in send(listener, dataset(1), other)] == [0, 0]
    assert [row.state for row in rows(ward)] == ["stored", "quarantined"]
    with ward.database.read() as connection:
        assert "instance.quarantined" in connection.execute(sa.select(store.event.c.kind)).scalars().all()


def raw_store(listener, data, sop_class=SecondaryCaptureImageStorage, sop_uid="1.2.3.4", syntax="1.2.840.10008.1.2.1"):
    """Send bytes as a data set, whatever they are, and return status and comment."""
    from pynetdicom.dimse_primitives import C_STORE

    with peers.association(listener.us, [build_context(sop_class, syntax)], US) as link:
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, sop_uid
        request.DataSet = BytesIO(data)
        link._reactor_checkpoint.clear()
        wait(lambda: link._is_paused, "the reactor pauses")
        link.dimse.send_msg(request, link.accepted_contexts[0].context_id)
        _, response = link.dimse.get_msg(block=True)
        link._reactor_checkpoint.set()
        return response.Status, response.ErrorComment


def test_a_data_set_that_is_none_cannot_be_understood(ward, listener):
    assert raw_store(listener, b"not a data set")[0] == Status.CANNOT_UNDERSTAND
    assert raw_store(listener, bytes(100_000))[0] == Status.CANNOT_UNDERSTAND
    assert rows(ward) == []


def test_a_deflated_bomb_is_not_inflated(ward, listener):
    """A hundred MiB of zeros in a tenth of one: the header is read, the rest is not."""
    data = dataset(1)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    plain = body(dicom_file(1))
    packed = packer.compress(plain) + packer.compress(bytes(100 * 2**20)) + packer.flush()
    tracemalloc.start()
    status, _ = raw_store(
        listener, packed + b"\0" * (len(packed) % 2), data.SOPClassUID, data.SOPInstanceUID, "1.2.840.10008.1.2.1.99"
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status == Status.SUCCESS
    assert peak < 50 * 2**20


def test_a_data_set_of_another_class_or_instance_does_not_match(ward, listener):
    data = dataset(1)
    encoded = body(dicom_file(1))
    status, comment = raw_store(listener, encoded, MRImageStorage, data.SOPInstanceUID)
    assert (status, comment) == (Status.MISMATCH, "SOP Class UID is not that of the request")
    assert raw_store(listener, encoded, data.SOPClassUID, "1.2.9")[0] == Status.MISMATCH
    assert rows(ward) == []


def test_what_says_nothing_of_its_study_is_kept(ward, listener):
    assert send(listener, dataset(1, StudyInstanceUID=""))[0].status == 0
    assert send(listener, dataset(2, StudyInstanceUID=None, PatientID=None))[0].status == 0
    assert len(rows(ward)) == 2


def test_too_large_is_refused_without_being_kept_in_memory(ward, listener):
    big = dataset(1)
    big.Rows = big.Columns = 1024
    big.PixelData = bytes(2 * 1024 * 1024)
    sent = send(listener, big, dataset(2))
    assert [s.status for s in sent] == [Status.TOO_LARGE, Status.SUCCESS]
    assert [row.sop_uid for row in rows(ward)] == ["1.2.3.3"]


def test_a_body_drops_what_is_too_much():
    body = Body(b"header", 10)
    assert body.write(b"12345") == 5
    body.file.seek(0)
    assert body.file.read() == b"header12345"
    body.write(b"6789012")
    assert (body.size, body.file.closed) == (12, True)
    body.write(b"3")
    body.close()


class Refusing:
    def __init__(self, error):
        self.error = error

    def __call__(self, *_, **__):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FullError("archive: full"), Status.OUT_OF_RESOURCES),
        (sa.exc.OperationalError("", {}, Exception("gone")), Status.OUT_OF_RESOURCES),
        (ZeroDivisionError("a bug"), Status.PROCESSING_FAILURE),
    ],
)
def test_what_cannot_be_kept_is_not_acknowledged(ward, listener, monkeypatch, error, status):
    monkeypatch.setattr(ward.intake, "take", Refusing(error))
    assert send(listener, dataset(1))[0].status == status
    monkeypatch.undo()
    assert send(listener, dataset(1))[0].status == 0


def test_without_room_associations_are_refused_for_now(ward, listener, monkeypatch):
    monkeypatch.setattr(ward.archive, "free", lambda: 0)
    with pytest.raises(PeerError, match=r"(?i)transient.*congestion"):
        send(listener, dataset(1))
    assert rows(ward) == []


def test_each_status_is_explained():
    assert set(STATUS_MEANS) == set(Status)


@pytest.mark.parametrize(
    ("text", "ae", "address", "allowed"),
    [
        ("CR1@10.0.0.7", "CR1", "10.0.0.7", True),
        ("CR1@10.0.0.7", "CR1", "10.0.0.8", False),
        ("CR1@10.0.0.7", "CR2", "10.0.0.7", False),
        ("*@10.0.0.0/24=north", "ANY", "10.0.0.200", True),
        ("*@10.0.0.0/24=north", "ANY", "10.0.1.1", False),
        ("CR1@*", "CR1", "203.0.113.9", True),
        ("CR1@localhost:104", "CR1", "127.0.0.1", True),
        ("CR1@[::1]:104", "CR1", "::1", True),
        ("CR1@10.0.0.7", "CR1", "::ffff:10.0.0.7", True),
        ("CR1@does-not-exist.invalid", "CR1", "10.0.0.7", False),
    ],
)
def test_who_may_send(text, ae, address, allowed):
    assert Sender.parse(text).allows(ae, address) is allowed


@pytest.mark.parametrize(
    "text", ["", "CR1", "@host", "CR1@", "CR1@host:x", "*@host:104", "CR1@10.0.0.0/8:104", "X" * 17 + "@h"]
)
def test_a_bad_line_of_senders_is_refused(text):
    with pytest.raises(ConfigError):
        Sender.parse(text)


def test_a_strange_sender_is_refused_and_a_known_one_has_its_site(ward, caplog):
    with listening(ward, dicom_peers=["CR1@127.0.0.1=north", "CR2@127.0.0.1", "CR3@192.0.2.1"]) as listener:
        for ae in ("CR3", "NOBODY"):
            with pytest.raises(PeerError, match=r"(?i)calling ae title not recognised"):
                send(listener, dataset(1), caller=Caller(ae))
        send(listener, dataset(1), caller=Caller("CR1"))
        send(listener, dataset(2), caller=Caller("CR2"))
        with pytest.raises(PeerError, match=r"(?i)called ae title not recognised"):
            peers.echo(Peer("OTHER", "127.0.0.1", listener.port), Caller("CR1"))
        wait(lambda: "called OTHER" in caplog.text, "the refusal is logged")
    assert [row.site for row in rows(ward)] == ["north", "default"]
    assert "CR3 at 127.0.0.1 is not in dicom_peers and was refused" in caplog.text
    assert "CR1 at 127.0.0.1 called OTHER and was refused; we are WETREAD" in caplog.text


def test_associations_and_answers_are_counted_without_names(ward):
    def counted(**labels):
        name = "wetread_dicom_stores_total" if "status" in labels else "wetread_dicom_associations_total"
        return ward.intake.tally.registry.get_sample_value(name, labels) or 0

    with listening(ward, dicom_peers=["CR1@127.0.0.1"], dicom_associations=1) as listener:
        send(listener, dataset(1), caller=Caller("CR1"))
        send(listener, dataset(1, SOPClassUID=MRImageStorage), caller=Caller("CR1"))
        assert (counted(status="0x0000"), counted(outcome="accepted", reason="")) == (2, 2)
        with pytest.raises(PeerError):
            send(listener, dataset(2), caller=Caller("WHO"))
        with pytest.raises(PeerError):
            peers.echo(Peer("OTHER", "127.0.0.1", listener.port), Caller("CR1"))
        wait(lambda: not any(link.is_alive() for link in list(listener._guests)), "the associations end")
        with peers.association(listener.us, [build_context(Verification)], Caller("CR1")) as link:
            with pytest.raises(PeerError):
                peers.echo(listener.us, Caller("CR1"))
            link.abort()
        wait(lambda: counted(outcome="aborted", reason=""), "the abort is counted")
    refused = {reason: counted(outcome="refused", reason=reason) for reason in _WORDS.values()}
    assert refused == {"unknown sender": 1, "called AE title": 1, "no room": 0, "too many": 1}
    text = generate_latest(ward.intake.tally.registry).decode()
    assert "CR1" not in text
    assert "WHO" not in text


def test_nobody_may_send_unless_named(ward):
    with listening(ward, dicom_peers=[]) as listener, pytest.raises(PeerError, match=r"(?i)not recognised"):
        peers.echo(listener.us)


def test_too_many_associations_are_refused_until_one_ends(ward):
    with listening(ward, dicom_associations=2) as listener:
        with (
            peers.association(listener.us, [build_context(Verification)], US),
            peers.association(listener.us, [build_context(Verification)], US),
            pytest.raises(PeerError, match=r"(?i)transient.*limit exceeded"),
        ):
            peers.echo(listener.us, US)

        def free():
            try:
                peers.echo(listener.us, US)
            except PeerError:
                return False
            return True

        wait(free, "an association is free")


def test_private_classes_and_syntaxes_only_when_asked_to(ward, tmp_path):
    private, changed = dataset(1, SOPClassUID="1.2.276.0.7230010.3.1.0.1"), dataset(2)
    odd = tmp_path / "odd.dcm"
    odd.write_bytes(
        file_header(changed.SOPClassUID, changed.SOPInstanceUID, "1.2.840.113619.5.2") + body(dicom_file(2))
    )
    with listening(ward) as listener:
        assert [s.status for s in send(listener, private, dataset(3), odd)] == [peers.NO_CONTEXT, 0, peers.NO_CONTEXT]
        with pytest.raises(PeerError):
            send(listener, private)
    with listening(ward, dicom_private=True) as listener:
        assert [s.status for s in send(listener, private, odd)] == [0, 0]
    assert [row.sop_uid for row in rows(ward)] == [d.SOPInstanceUID for d in (dataset(3), private, changed)]


def test_a_compressed_image_stays_compressed(ward, listener):
    data = dataset(1)
    data.compress(pydicom.uid.RLELossless)
    assert send(listener, data)[0].status == 0
    kept = pydicom.dcmread(ward.archive.path(rows(ward)[0].sha256))
    assert kept.file_meta.TransferSyntaxUID == pydicom.uid.RLELossless
    assert kept.PixelData == data.PixelData


def test_the_header_depends_only_on_what_is_sent():
    first, second = (file_header("1.2.840.10008.5.1.4.1.1.7", "1.2.3", JPEGLosslessSV1) for _ in range(2))
    assert first == second
    assert first[128:132] == b"DICM"


def test_a_pdu_that_is_announced_too_large_ends_the_connection(listener):
    with socket.create_connection(("127.0.0.1", listener.port), timeout=20) as link:
        link.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + bytes(64))
        assert link.recv(64) in (b"", bytes.fromhex("07000000000400000200"))
    peers.echo(listener.us, US)


@pytest.mark.parametrize(
    "garbage", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(200), b"\x01\x00\x00\x00\x00\x10" + b"A" * 16]
)
def test_garbage_on_the_port_harms_nobody(listener, garbage):
    with socket.create_connection(("127.0.0.1", listener.port), timeout=20) as link:
        link.sendall(garbage)
    peers.echo(listener.us, US)


def test_stopping_ends_what_is_open_and_frees_the_port(ward):
    with listening(ward) as listener:
        entity = AE("MODALITY")
        link = entity.associate("127.0.0.1", listener.port, [build_context(Verification)], ae_title="WETREAD")
        assert link.is_established
        port = listener.port
    wait(lambda: link.is_aborted, "the association is aborted")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_stopping_does_not_wait_for_who_says_nothing(ward):
    with listening(ward, dicom_timeout_s=600.0, dicom_idle_s=600.0) as listener:
        silent = socket.create_connection(("127.0.0.1", listener.port), timeout=60)
        wait(lambda: listener._server.active_associations, "the connection is there")
    assert silent.recv(1) == b""
    silent.close()


def test_a_port_that_is_taken_is_one_line(ward):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listener = Listener(ward.intake, Settings(dicom_host="127.0.0.1", dicom_port=taken.getsockname()[1]))
        with pytest.raises(ConfigError, match="dicom_port"):
            listener.bind()


def command(**elements):
    """Return an encoded C-STORE-RQ with these elements."""
    from pydicom.uid import ImplicitVRLittleEndian
    from pynetdicom.dsutils import encode

    request = pydicom.Dataset()
    request.CommandField, request.MessageID, request.Priority, request.CommandDataSetType = 1, 1, 0, 0
    request.update(elements)
    encoded = encode(request, ImplicitVRLittleEndian.is_implicit_VR, ImplicitVRLittleEndian.is_little_endian)
    return struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded


KNOWN = {"AffectedSOPClassUID": SecondaryCaptureImageStorage, "AffectedSOPInstanceUID": "1.2.3"}


@pytest.mark.parametrize(
    ("context", "control", "first"),
    [
        (99, 2, command(**KNOWN)),  # a context that was never agreed on
        (1, 2, command()),  # no SOP class, no instance
        (1, 1, b""),  # a command set without end
    ],
)
def test_a_message_that_nothing_limits_is_aborted(ward, listener, context, control, first):
    def pdv(control, data):
        return struct.pack(">BBLLBB", 4, 0, len(data) + 6, len(data) + 2, context, control) + data

    with peers.association(listener.us, [build_context(SecondaryCaptureImageStorage)], US) as link:
        connection = link.dul.socket.socket
        if first:
            connection.sendall(pdv(3, first))
        piece = pdv(control & 1, bytes(8000))
        with suppress(OSError):
            for _ in range(200):  # 1.6 MB, more than `max_bytes`
                connection.sendall(piece)
        wait(lambda: link.is_aborted, "the association is aborted")
    assert send(listener, dataset(1))[0].status == 0


def conversation(listener, data):
    """Return what a sender writes, from the association request to the release, as one string of bytes."""
    written = []
    entity = AE("MODALITY")
    link = entity.associate(
        "127.0.0.1", listener.port, [build_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)], "WETREAD",
        evt_handlers=[(evt.EVT_DATA_SENT, lambda event: written.append(event.data))],
    )  # fmt: skip
    link.send_c_store(data)
    link.release()
    return b"".join(written)


def test_a_conversation_with_changed_bytes_harms_nobody(ward, listener):
    said = conversation(listener, dataset(1))
    rng = random.Random(0)
    for _ in range(40):
        changed = bytearray(said)
        for _ in range(rng.randint(1, 6)):
            place = rng.choice([rng.randrange(300), rng.randrange(len(changed))])
            changed[place] = rng.randrange(256)
        changed = changed[: rng.choice([len(changed), rng.randrange(1, len(changed))])]
        with socket.create_connection(("127.0.0.1", listener.port), timeout=20) as link:
            link.sendall(changed)
            link.shutdown(socket.SHUT_WR)
        if rng.random() < 0.2:
            peers.echo(listener.us, US)
    wait(lambda: not [a for a in listener._server.active_associations if a.is_established], "all have ended")
    assert send(listener, dataset(5))[0].status == 0
    # what was accepted of it is there, as it came
    for row in rows(ward):
        assert hashlib.sha256(ward.archive.path(row.sha256).read_bytes()).hexdigest() == row.sha256
    assert sorted(ward.archive.names()) == sorted({row.sha256 for row in rows(ward)})
