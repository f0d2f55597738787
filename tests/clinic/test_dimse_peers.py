"""Receiving by DICOM from real peers: the programs of DCMTK, and Orthanc."""

import os
import signal
import subprocess
from io import BytesIO

import pydicom
import pytest
import sqlalchemy as sa
from clinic_dimse import body, dataset, listening, rows, send
from peers import Gate, certificates, dcmtk, dcmtk_path, environment, wait
from ward import dicom

from wetread.clinic import commitment, peers, store
from wetread.clinic.commitment import Commitments
from wetread.clinic.peers import Caller, Peer, PeerError

pytestmark = pytest.mark.system


@pytest.fixture
def listener(ward):
    with listening(ward) as opened:
        yield opened


@pytest.fixture
def files(tmp_path):
    """Twenty files."""
    folder = tmp_path / "files"
    folder.mkdir()
    for seed in range(20):
        (folder / f"{seed:02d}.dcm").write_bytes(dicom(seed))
    return folder


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("certificates"))


def test_echoscu_and_its_wrong_titles(ward):
    with listening(ward, dicom_peers=["CR1@127.0.0.1"]) as listener:
        at = ("127.0.0.1", str(listener.port))
        assert dcmtk("echoscu", "-aet", "CR1", "-aec", "WETREAD", *at).returncode == 0
        wrong = dcmtk("echoscu", "-aet", "CR2", "-aec", "WETREAD", *at)
        assert wrong.returncode != 0
        assert "Calling AE Title Not Recognized" in wrong.stderr
        wrong = dcmtk("echoscu", "-aet", "CR1", "-aec", "PACS", *at)
        assert "Called AE Title Not Recognized" in wrong.stderr


def test_storescu_sends_a_folder_byte_for_byte(ward, listener, files):
    sent = dcmtk("storescu", "+sd", "-aec", "WETREAD", "127.0.0.1", str(listener.port), files)
    assert sent.returncode == 0, sent.stderr
    kept = {row.sop_uid: ward.archive.path(row.sha256).read_bytes() for row in rows(ward)}
    assert len(kept) == 20
    for path in files.iterdir():
        uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
        assert pydicom.dcmread(BytesIO(kept[uid])).PixelData == pydicom.dcmread(path).PixelData


def test_four_storescu_at_once(ward, listener, files):
    command = [dcmtk_path("storescu"), "+sd", "-aec", "WETREAD", "127.0.0.1", str(listener.port), str(files)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) for _ in range(4)]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert sorted(row.sop_uid for row in rows(ward)) == sorted(f"1.2.{n + 1}.3" for n in range(20))


def test_a_sender_that_dies_in_the_middle_leaves_nothing_and_disturbs_nobody(ward, listener, files):
    big = dataset(1)
    big.Rows = big.Columns = 512
    big.PixelData = os.urandom(2 * 512 * 512)
    big.save_as(files / "00.dcm")
    gate = Gate(listener.port, 100_000)
    command = [dcmtk_path("storescu"), "-aec", "WETREAD", "127.0.0.1", str(gate.port), str(files / "00.dcm")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment()) as process:
        wait(lambda: gate.passed >= 100_000, "half of the file is there")
        assert send(listener, dataset(5))[0].status == 0
        process.send_signal(signal.SIGKILL)
    gate.close()
    wait(lambda: not [a for a in listener._server.active_associations if a.is_established], "the association ends")
    assert [row.sop_uid for row in rows(ward)] == ["1.2.6.3"]
    assert sorted(ward.archive.names()) == [rows(ward)[0].sha256]
    assert list((ward.archive.root / "incoming").iterdir()) == []


def test_a_slow_sender_is_waited_for_and_a_silent_one_is_not(ward, files):
    with listening(ward, dicom_idle_s=2.0) as listener:
        gate = Gate(listener.port, 700)
        command = [dcmtk_path("storescu"), "-aec", "WETREAD", "127.0.0.1", str(gate.port), str(files / "00.dcm")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
            _, errors = process.communicate(timeout=60)  # nobody opens the gate: the listener gives up
            assert process.returncode != 0, errors
        gate.close()
        gate = Gate(listener.port, 700)
        with subprocess.Popen([*command[:4], str(gate.port), command[5]], env=environment()) as process:
            wait(lambda: gate.passed >= 700, "the request is there")
            gate.open()
            assert process.wait(60) == 0
        gate.close()
    assert [row.sop_uid for row in rows(ward)] == ["1.2.1.3"]


def test_tls_with_certificates_of_both_sides(ward, pem, tmp_path):
    (tmp_path / "x.dcm").write_bytes(dicom(1))
    settings = {
        "dicom_tls": True,
        "dicom_tls_certificate": str(pem["server"]),
        "dicom_tls_key": str(pem["server_key"]),
        "dicom_tls_ca": str(pem["ca"]),
    }
    with listening(ward, **settings) as listener:
        at = ("-aec", "WETREAD", "127.0.0.1", str(listener.port))
        ours = ("+tls", pem["client_key"], pem["client"], "+cf", pem["ca"])
        sent = dcmtk("storescu", *ours, *at, tmp_path / "x.dcm")
        assert sent.returncode == 0, sent.stderr
        assert dcmtk("echoscu", *at).returncode != 0  # no TLS
        assert dcmtk("echoscu", "+tla", "-ic", *at).returncode != 0  # no certificate
        strange = ("+tls", pem["stranger_key"], pem["stranger"], "+cf", pem["ca"])
        assert dcmtk("echoscu", *strange, *at).returncode != 0
        # our own client, with our own settings
        caller = Caller.of(listener.settings)
        peers.echo(listener.us, caller)
        assert peers.store(listener.us, [dataset(2)], caller)[0].ok
        with pytest.raises(PeerError):
            peers.echo(listener.us, Caller(tls=None))
        # somebody who connects and says nothing holds up nobody
        silent = Gate(listener.port, 0)
        peers.echo(listener.us, caller)
        silent.close()
    assert len(rows(ward)) == 2


def test_our_client_verifies_whom_it_calls(ward, pem):
    settings = {
        "dicom_tls": True,
        "dicom_tls_certificate": str(pem["stranger"]),
        "dicom_tls_key": str(pem["stranger_key"]),
    }
    with listening(ward, **settings) as listener:
        ours = listener.settings.model_copy(update={"dicom_tls_ca": str(pem["ca"]), "dicom_tls_certificate": ""})
        with pytest.raises(PeerError):
            peers.echo(listener.us, Caller.of(ours))


def test_orthanc_sends_and_sends_again(ward, orthanc):
    orthanc.empty()
    ids = [orthanc.upload(dicom(seed)) for seed in range(5)]
    with listening(ward, dicom_peers=["ORTHANC@127.0.0.1=north"]) as listener:
        orthanc.add_modality("wetread", "WETREAD", listener.port)
        for _ in range(2):
            done = orthanc.rest.post("/modalities/wetread/store", json=ids).raise_for_status().json()
            assert (done["InstancesCount"], done["FailedInstancesCount"]) == (5, 0)
    found = rows(ward)
    assert [row.site for row in found] == ["north"] * 5
    assert {body(ward.archive.path(row.sha256).read_bytes()) for row in found} == {
        body(orthanc.file(instance)) for instance in ids
    }


def commit(orthanc, uids, name="wetread"):
    """Let Orthanc ask for storage commitment; return the transaction."""
    body = {"DicomInstances": [{"SOPClassUID": c, "SOPInstanceUID": u} for c, u in uids]}
    answer = orthanc.rest.post(f"/modalities/{name}/storage-commitment", json=body)
    return answer.raise_for_status().json()["ID"]


def report(orthanc, transaction):
    return orthanc.rest.get(f"/storage-commitment/{transaction}").raise_for_status().json()


def test_orthanc_gets_a_commitment_for_what_is_whole_only(ward, orthanc):
    sop_class = str(dataset(0).SOPClassUID)
    with listening(ward, dicom_peers=[f"ORTHANC@127.0.0.1:{orthanc.dicom_port}"]) as listener:
        orthanc.add_modality("wetread", "WETREAD", listener.port)
        send(listener, *(dataset(n) for n in range(3)), caller=Caller("ORTHANC"))
        whole = [(sop_class, row.sop_uid) for row in rows(ward)]
        transaction = commit(orthanc, whole)
        assert listener.commitments.step() == 1
        done = wait(lambda: (r := report(orthanc, transaction))["Status"] != "Pending" and r, "Orthanc has the report")
        assert done["Status"] == "Success"
        assert {i["SOPInstanceUID"] for i in done["Success"]} == {uid for _, uid in whole}
        # one whose bytes rotted, one that never came
        rotten = ward.archive.path(rows(ward)[0].sha256)
        rotten.write_bytes(rotten.read_bytes()[:-1] + b"\xff")
        transaction = commit(orthanc, [*whole, (sop_class, "1.2.999")])
        assert listener.commitments.step() == 1
        done = wait(lambda: (r := report(orthanc, transaction))["Status"] != "Pending" and r, "Orthanc has the report")
        assert done["Status"] == "Failure"
        failed = {i["SOPInstanceUID"]: i["FailureReason"] for i in done["Failures"]}
        assert failed == {
            rows(ward)[0].sop_uid: commitment.PROCESSING_FAILURE,
            "1.2.999": commitment.NO_SUCH_INSTANCE,
        }
        assert listener.commitments.step() == 0


def test_a_commitment_outlives_the_service(ward, orthanc):
    with listening(ward, dicom_peers=["ORTHANC@127.0.0.1"]) as listener:
        orthanc.add_modality("wetread", "WETREAD", listener.port)
        send(listener, dataset(1), caller=Caller("ORTHANC"))
        transaction = commit(orthanc, [(str(dataset(1).SOPClassUID), "1.2.2.3")])
        with ward.database.read() as connection:
            assert connection.execute(sa.select(store.commitment.c.state)).scalar_one() == "pending"
    assert report(orthanc, transaction)["Status"] == "Pending"
    # the service starts again, and now knows where Orthanc listens
    where = Peer("ORTHANC", "127.0.0.1", orthanc.dicom_port)
    again = Commitments(ward.database, ward.archive, lambda ae, site: where, Caller("WETREAD"))
    assert again.step() == 1
    wait(lambda: report(orthanc, transaction)["Status"] == "Success", "Orthanc has the report")
