"""TLS of the server: what it speaks, what it refuses to start with, and that it never speaks in clear unasked."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from certificates import Authority

from wetread.config import Settings
from wetread.errors import ConfigError
from wetread.web import tls


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_without_a_certificate_there_is_none() -> None:
    assert tls.context(Settings()) is None
    for name in ("tls_key", "tls_client_ca"):
        with pytest.raises(ConfigError, match=f"{name}: means nothing"):
            tls.context(Settings.model_validate({name: "x.pem"}))


def test_tls_1_2_at_least(authority: Authority) -> None:
    certificate, key = authority.issue("least")
    context = tls.context(Settings(tls_certificate=str(certificate), tls_key=str(key)))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    both = authority.folder / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert tls.context(Settings(tls_certificate=str(both))) is not None
    asked = Settings(tls_certificate=str(both), tls_client_ca=str(authority.certificate))
    assert tls.context(asked).verify_mode == ssl.CERT_REQUIRED  # type: ignore[union-attr]


def test_what_cannot_be_used_is_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("one")
    other, _ = authority.issue("other")
    _, locked = authority.issue("locked", passphrase=b"secret")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for certificate_, key_, ca in (
        ("/nowhere.pem", key, ""),
        (certificate, "/nowhere.key", ""),
        (nonsense, key, ""),
        (certificate, nonsense, ""),
        (other, key, ""),
        (certificate.parent / "locked.pem", locked, ""),
        (certificate, "", ""),
        (certificate, key, "/nowhere.pem"),
        (certificate, key, nonsense),
    ):
        settings = Settings(tls_certificate=str(certificate_), tls_key=str(key_), tls_client_ca=str(ca))
        with pytest.raises(ConfigError, match="tls_client_ca" if ca else "tls_certificate") as caught:
            tls.context(settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.7", "fe80::1%eth0", "2001:db8::1"])
def test_other_machines_are_spoken_to_only_by_tls(
    address: str, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="--tls-certificate and --tls-key, or set tls_by_proxy"):
        tls.check(address, Settings())
    tls.check(address, Settings(tls_certificate="x.pem"))
    assert caplog.text == ""
    tls.check(address, Settings(tls_by_proxy=True))
    assert "let nobody but the proxy reach this port" in caplog.text
    assert "trusted_proxies is empty" in caplog.text
    caplog.clear()
    tls.check(address, Settings(tls_by_proxy=True, trusted_proxies=["10.0.0.1"]))
    assert "trusted_proxies" not in caplog.text


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1"])
def test_this_machine_needs_none(address: str, caplog: pytest.LogCaptureFixture) -> None:
    tls.check(address, Settings())
    assert caplog.text == ""


class Process:
    """`wetread` as a process, without this process's settings."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "clinic"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")}
        self.environment |= {"WETREAD_MODELS": "none", "WETREAD_THREADS": "1"}

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "wetread", *command, "--data", str(self.data)],
            capture_output=True, text=True, env=self.environment, cwd=self.folder, input=stdin, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Process:
    return Process(tmp_path_factory.mktemp("process"))


@pytest.fixture(scope="module")
def link(process: Process, authority: Authority) -> Iterator[str]:
    """Serve by TLS to who has a certificate of the authority; give the login link."""
    certificate, key = authority.issue("server")
    command = ["serve", "--data", str(process.data), "--port", "0", "--tls-certificate", str(certificate)]
    command += ["--tls-key", str(key)]
    environment = process.environment | {"WETREAD_TLS_CLIENT_CA": str(authority.certificate)}
    with (process.folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "wetread", *command],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=process.folder,
        )  # fmt: skip
    assert server.stdout is not None
    said = server.stdout.readline().strip()
    assert said.startswith("https://"), (process.folder / "log").read_text()
    yield said
    server.terminate()
    assert server.wait(60) == 0
    server.stdout.close()


@pytest.mark.system
def test_served_by_tls(process: Process, authority: Authority, link: str) -> None:
    base = link.split("/login")[0]
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    with httpx.Client(verify=trust) as stranger, pytest.raises(httpx.TransportError):
        stranger.get(f"{base}/healthz")  # without a certificate of its own
    trust.load_cert_chain(*authority.issue("client"))
    with httpx.Client(verify=trust, base_url=base) as http:
        answer = http.get("/healthz")
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        password = "correct horse battery"
        made = process.run("account", "create", "Dr N", "--role", "radiologist", stdin=f"{password}\n")
        assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
        answer = http.post("/login", data={"name": "Dr N", "password": password})
        assert answer.status_code == 303, answer.text
        assert answer.headers["set-cookie"].startswith("__Host-wetread_session=")
        assert http.get("/").status_code == 200
        assert process.run("account", "disable", "Dr N").returncode == 0  # another process: at once
        assert http.get("/").status_code == 303
        assert http.post("/login", data={"name": "Dr N", "password": password}).status_code == 403
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(str(authority.certificate))
    old.load_cert_chain(*authority.issue("client"))
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with httpx.Client(verify=old) as http, pytest.raises(httpx.TransportError):
        http.get(f"{base}/healthz")
    log = (process.folder / "log").read_text()
    assert password not in log
    assert link.split("code=")[1] not in log
    assert re.search(r"audit: the head of the chain is [0-9a-f]{64}", log)
