"""Sending by DICOM: to Orthanc, a real archive, byte for byte; and what a peer that is not there does."""

from io import BytesIO
from pathlib import Path

import films
import pydicom
import pytest
import ward
from clinic_dimse import body
from peers import free_port
from pydicom.uid import JPEG2000Lossless
from pynetdicom import AE, evt

from wetread.clinic import peers
from wetread.clinic.peers import Caller, Peer, PeerError
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("PACS@10.0.0.7:11112", Peer("PACS", "10.0.0.7", 11112)),
        (" MY PACS@archive.example:104+tls ", Peer("MY PACS", "archive.example", 104, True)),
        ("A@[::1]:104", Peer("A", "::1", 104)),
    ],
)
def test_a_peer_is_written_in_one_line(text, peer):
    assert peers.parse(text) == peer
    assert peers.parse(str(peer)) == peer


@pytest.mark.parametrize(
    "text",
    ["", "PACS", "PACS@host", "@host:104", "PACS@:104", "P@h:0", "P@h:65536", "P@h:x", "P" * 17 + "@h:104", "Ä@h:1"],
)
def test_a_line_that_is_no_peer_is_refused(text):
    with pytest.raises(ConfigError):
        peers.parse(text)


def test_nobody_there_is_one_line():
    peer = Peer("NOBODY", "127.0.0.1", free_port())
    with pytest.raises(PeerError, match=r"NOBODY@127.0.0.1:\d+: cannot be reached"):
        peers.echo(peer, Caller(timeout_s=5))
    with pytest.raises(PeerError):
        peers.store(Peer("NOBODY", "does-not-exist.invalid", 104), [_dataset()], Caller(timeout_s=5))


def test_a_peer_with_tls_needs_certificates():
    with pytest.raises(PeerError, match="dicom_tls_ca"):
        peers.echo(Peer("A", "127.0.0.1", 1, tls=True))
    with pytest.raises(ConfigError, match="dicom_tls_ca"):
        Caller.of(Settings(dicom_tls_ca="/no/such/file"))


def test_what_is_no_dicom_file_is_not_sent(tmp_path):
    (tmp_path / "x.png").write_bytes(ward.png())
    with pytest.raises(ClinicError, match=r"x\.png: no DICOM file"):
        peers.store(Peer("A", "127.0.0.1", 1), [tmp_path / "x.png"])


def _dataset(seed=0):
    return pydicom.dcmread(BytesIO(ward.dicom(seed)))


@pytest.fixture
def implicit_only():
    """A peer that takes only Implicit VR Little Endian, and what it got."""
    got = []

    def store(event):
        got.append((event.context.transfer_syntax, event.dataset))
        return 0xB000 if len(got) == 2 else 0x0000

    entity = AE("OLD")
    entity.add_supported_context(films.dataset(films.scene(8, 8, bits=12)).SOPClassUID, "1.2.840.10008.1.2")
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    yield Peer("OLD", "127.0.0.1", server.server_address[1]), got
    server.shutdown()


def test_a_peer_of_few_syntaxes_gets_what_can_be_converted_and_is_told_apart(implicit_only, tmp_path: Path):
    peer, got = implicit_only
    path = tmp_path / "1.dcm"
    path.write_bytes(ward.dicom(1))
    compressed, other = _dataset(2), _dataset(3)
    compressed.file_meta.TransferSyntaxUID = JPEG2000Lossless
    other.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    sent = peers.store(peer, [path, compressed, _dataset(4), other])
    assert [s.status for s in sent] == [0, peers.NO_CONTEXT, 0xB000, peers.NO_CONTEXT]
    assert [s.ok for s in sent] == [True, False, True, False]
    assert "JPEG 2000" in sent[1].reason
    assert [d.SOPInstanceUID for _, d in got] == [s.sop_uid for s in sent if s.ok]
    assert got[0][1].PixelData == _dataset(1).PixelData


@pytest.mark.system
def test_orthanc_gets_each_file_byte_for_byte(orthanc, tmp_path):
    orthanc.empty()
    peer = peers.parse(orthanc.peer)
    peers.echo(peer)
    files = []
    for seed in range(3):
        files.append(tmp_path / f"{seed}.dcm")
        files[-1].write_bytes(ward.dicom(seed))
    sent = peers.store(peer, [*files, _dataset(7)])
    assert all(s.ok for s in sent)
    kept = {
        pydicom.dcmread(BytesIO(content)).SOPInstanceUID: content for content in map(orthanc.file, orthanc.instances())
    }
    assert set(kept) == {s.sop_uid for s in sent}
    for file, answer in zip(files, sent, strict=False):
        assert body(kept[answer.sop_uid]) == body(file.read_bytes())
