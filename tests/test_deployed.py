"""deploy/bare-metal.sh, run into a folder: PostgreSQL, nginx, Orthanc and what wetread.service starts are real.

tests/test_systemd.py installs a whole machine, with systemd; that wants more of the kernel.
"""

import configparser
import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import peers
import pytest
from sqlalchemy import make_url

DEPLOY = Path(__file__).parents[1] / "deploy"
NAME = "wetread.test"

pytestmark = pytest.mark.system


class Installed:
    """What the script made below a folder, and the processes that its units name."""

    def __init__(self, root, database, port, https, dicom, environment):
        self.root, self.database, self.port, self.https, self.dicom = root, database, port, https, dicom
        self.environment = environment
        self.settings = root / "etc/wetread/wetread.toml"

    def unit(self, name):
        """Return the [Service] section of an installed unit."""
        # `strict` would refuse keys that stand there twice, which systemd adds up.
        found = configparser.RawConfigParser(strict=False, delimiters="=")
        found.optionxform = str
        found.read(self.root / "etc/systemd/system" / name)
        return found["Service"]

    def command(self, name):
        return shlex.split(self.unit(name)["ExecStart"])

    def run(self, *command):
        done = subprocess.run(
            command,
            cwd=self.settings.parent,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def script(self, *words):
        return subprocess.run(
            ["sh", DEPLOY / "bare-metal.sh", *words], env=self.environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def installed(postgresql, tmp_path_factory):
    if shutil.which("psql") is None:
        pytest.skip("needs psql: apt-get install -y postgresql")
    root = tmp_path_factory.mktemp("machine")
    url = make_url(postgresql)
    program = root / "opt/wetread/bin/wetread"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m wetread "$@"\n')  # what pip would have put there
    program.chmod(0o755)
    database = url.set(database="wetread").render_as_string()
    port, http, https, dicom = (peers.free_port() for _ in range(4))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")} | {
        "ROOT": str(root), "NAME": NAME, "PACKAGE": "", "DATABASE": database, "PORT": str(port),
        "HTTP_PORT": str(http), "HTTPS_PORT": str(https), "PGHOST": str(url.host), "PGPORT": str(url.port),
        "PGUSER": str(url.username),
    }  # fmt: skip
    made = Installed(root, database, port, https, dicom, environment)
    done = made.script("install")
    assert done.returncode == 0, done.stderr
    assert made.script("install").returncode == 0, "again is harmless"
    return made


@pytest.fixture(scope="module")
def archive(tmp_path_factory, installed):
    """Run Orthanc as Compose configures it, but for addresses."""
    shipped = json.loads((DEPLOY / "orthanc/wetread.json").read_text(encoding="utf-8"))
    shipped["DicomModalities"]["wetread"] |= {"Host": "127.0.0.1", "Port": installed.dicom}
    for ours in ("DicomPort", "Name", "AuthenticationEnabled"):
        del shipped[ours]
    shipped |= {"LuaScripts": [str(DEPLOY / "orthanc/forward.lua")], "DicomModalitiesInDatabase": False}
    with peers.orthanc(tmp_path_factory.mktemp("orthanc"), **shipped) as peer:
        yield peer


@pytest.fixture(scope="module")
def server(installed, archive):
    """Start what wetread.service starts."""
    pacs = f"dicom://{archive.peer}"
    installed.environment |= {
        "WETREAD_MODELS": "phantom", "WETREAD_COMPLETE_AFTER_S": "1", "WETREAD_DICOM_PORT": str(installed.dicom),
        "WETREAD_DICOM_HOST": "127.0.0.1", "WETREAD_DICOM_PEERS": archive.peer,
        "WETREAD_OUTPUTS_SR": pacs, "WETREAD_OUTPUTS_SC": pacs,
    }  # fmt: skip
    program, *arguments = installed.command("wetread.service")
    log = installed.root / "serve.log"
    with (
        log.open("w") as out,
        subprocess.Popen(
            [program, *arguments],
            cwd=installed.settings.parent, env=installed.environment, stdout=out, stderr=out,
        ) as process,
    ):  # fmt: skip
        try:

            def ready():
                assert process.poll() is None, log.read_text()
                try:
                    return httpx.get(f"http://127.0.0.1:{installed.port}/readyz").status_code == 200
                except httpx.HTTPError:
                    return False

            peers.wait(ready, "/readyz", 120)
            data = str(installed.root / "var/lib/wetread")
            token = installed.run(program, "token", "create", "test", "--role", "engineer", "--data", data).strip()
            with httpx.Client(
                base_url=f"http://127.0.0.1:{installed.port}", headers={"Authorization": f"Bearer {token}"}, timeout=60
            ) as client:
                yield client
        finally:
            process.terminate()
            process.wait(60)


def test_what_was_installed_is_for_its_owner_alone(installed):
    assert (installed.root / "var/lib/wetread").stat().st_mode & 0o777 == 0o700
    assert (installed.root / "etc/wetread/tls.key").stat().st_mode & 0o777 == 0o600
    assert installed.database in installed.settings.read_text()
    units = [file.read_text() for file in (installed.root / "etc/systemd/system").iterdir()]
    assert len(units) == len(list((DEPLOY / "systemd").iterdir()))
    assert not [line for text in units for line in text.splitlines() if "=/opt/" in line or " /var/" in line]


def test_systemd_understands_the_installed_units(installed, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze: apt-get install -y systemd")
    (installed.root / "opt/wetread-train/bin").mkdir(parents=True, exist_ok=True)
    (installed.root / "opt/wetread-train/bin/wetread").symlink_to(installed.root / "opt/wetread/bin/wetread")
    for unit in (installed.root / "etc/systemd/system").iterdir():
        target = tmp_path / unit.name.replace("@.", "@1.")
        target.write_text(unit.read_text().replace("User=wetread", "User=root").replace("Group=wetread", "Group=root"))
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:/lib/systemd/system"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "wetread" in line]
    assert (done.returncode, ours) == (0, [])
    for unit in (DEPLOY / "systemd").glob("*.service"):  # 0 is a fence around everything, 10 none; in tenths
        told = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", "--threshold=16", "--no-pager", unit],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stdout[-200:] + told.stderr


def test_nginx_ends_tls_and_tells_who_called(installed, server, tmp_path):
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(nginx).exists():
        pytest.skip("needs nginx: apt-get install -y nginx")
    site = installed.root / "etc/nginx/conf.d/wetread.conf"
    main = tmp_path / "nginx.conf"
    temporary = "".join(
        f"{kind}_temp_path {tmp_path};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main.write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}} "
        f"http {{ access_log off; {temporary} include {site}; }}"
    )
    trusted = ssl.create_default_context(cafile=installed.root / "etc/wetread/tls.pem")
    with subprocess.Popen([nginx, "-c", str(main), "-g", "daemon off;"], stderr=subprocess.DEVNULL) as process:
        try:
            # The certificate is of the name; the test reaches it by the address.
            with httpx.Client(base_url=f"https://127.0.0.1:{installed.https}", verify=trusted) as client:
                ask = {"headers": {"Host": NAME}, "extensions": {"sni_hostname": NAME}}

                def answers():
                    assert process.poll() is None, (tmp_path / "error.log").read_text()
                    try:
                        return client.get("/readyz", **ask)
                    except httpx.ConnectError:
                        return None

                assert peers.wait(answers, "nginx").status_code == 200
                assert client.get("/metrics", **ask).status_code == 404
                login = client.get("/login", **ask)
                assert login.status_code == 200
                assert "strict-transport-security" in login.headers
        finally:
            process.terminate()


def test_what_orthanc_gets_comes_to_wetread_and_its_report_goes_back_once(installed, server, archive, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "wetread", "phantom", str(tmp_path), "1", "--dicom", "--seed", "7"],
        check=True, capture_output=True,
    )  # fmt: skip
    (film,) = tmp_path.glob("*.dcm")
    sent = peers.dcmtk("storescu", "-aec", "ORTHANC", "127.0.0.1", str(archive.dicom_port), film)
    assert sent.returncode == 0, sent.stderr
    peers.wait(lambda: len(archive.instances()) == 3, "SR and SC in Orthanc", 120)

    def delivered():
        rows = server.get("/api/v1/deliveries", params={"state": "sent"}).json()
        return len(rows) == 2

    peers.wait(delivered, "both to be marked as sent")
    modalities = [archive.rest.get(f"/instances/{i}/simplified-tags").json()["Modality"] for i in archive.instances()]
    assert sorted(modalities) == ["DX", "OT", "SR"]
    stored = [
        line for line in server.get("/metrics").text.splitlines() if line.startswith("wetread_dicom_stores_total")
    ]
    assert [line.split()[-1] for line in stored] == ["1.0"], "neither report nor capture goes round"
    assert len(server.get("/api/v1/worklist").json()["studies"]) == 1


def test_an_upgrade_begins_with_a_backup_from_which_the_clinic_comes_back(installed, server, tmp_path):
    done = installed.script("upgrade")
    assert done.returncode == 0, done.stderr
    backup = installed.root / "var/backups/wetread/before-upgrade"
    again = subprocess.run(
        [installed.command("wetread.service")[0], "restore", str(backup), "--data", str(tmp_path / "again")],
        env=installed.environment | {"WETREAD_DATABASE": f"sqlite:///{tmp_path}/again.db"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "1 files" in again.stdout
    assert "whole" in again.stdout
