"""`wetread serve` with a DICOM port: from storescu to the ranked worklist, and `wetread pull` beside it."""

import socket
import subprocess
import sys

import pytest
import tiny_package
from peers import dcmtk, free_port, wait
from serving import serving
from ward import dicom

from wetread.findings import CHEXPERT

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_package.write(tmp_path_factory.mktemp("model") / "tiny", CHEXPERT).path)


def test_from_the_modality_to_the_worklist_and_from_the_archive_too(tmp_path, orthanc, model):
    port = free_port()
    orthanc.empty()
    for seed in (10, 11):
        orthanc.upload(dicom(seed))
    files = tmp_path / "files"
    files.mkdir()
    for seed in range(3):
        (files / f"{seed}.dcm").write_bytes(dicom(seed))
    (tmp_path / "list.csv").write_text("PatientID\nP10\nP11\nP12\n", encoding="utf-8")
    with serving(
        tmp_path / "clinic",
        WETREAD_MODELS=model,
        WETREAD_DICOM_PORT=str(port),
        WETREAD_DICOM_HOST="127.0.0.1",
        WETREAD_DICOM_PEERS="*@127.0.0.1",
    ) as server:
        sent = dcmtk("storescu", "-aet", "CR1", "-aec", "WETREAD", "+sd", "127.0.0.1", str(port), files)
        assert sent.returncode == 0, sent.stderr
        for way in ("get", "move"):
            orthanc.add_modality("wetread", "WETREAD", port)
            pulled = server.wetread("pull", str(tmp_path / "list.csv"), "--from", orthanc.peer, "--by", way)
            assert pulled.returncode == 1, pulled.stderr  # P12 is not there
            assert "2 of 3 studies complete" in pulled.stdout
            assert f"{2 if way == 'get' else 0} instances new" in pulled.stdout

        def ready():
            rows = server.worklist()
            return len(rows) == 5 and all(row["analysis"] != "received" for row in rows)

        wait(ready, "all are analysed")
        assert dcmtk("echoscu", "-aec", "WETREAD", "127.0.0.1", str(port)).returncode == 0
        assert server.stop() == 0
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "Doe" not in log


def test_a_bad_setting_or_a_taken_port_is_one_line(tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        for more, said in (
            (["--dicom-port", str(port)], f"dicom_port {port}: cannot listen there"),
            (["--ae-title", "seventeen letters"], "dicom_ae_title"),
        ):
            command = [sys.executable, "-m", "wetread", "serve", "--data", str(tmp_path / "c"), "--port", "0", *more]
            found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
            assert found.returncode == 2, found.stderr
            assert said in found.stderr.splitlines()[-1]
            assert "Traceback" not in found.stderr
