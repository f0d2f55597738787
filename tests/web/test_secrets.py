"""No secret is in the database or the log in clear, and no patient's name in log, metrics, events or audit.

Everything that has a secret is gone through once, right and wrong; then every byte is searched.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import identity_provider
import pytest
import sqlalchemy as sa
from peers import wait
from starlette.testclient import TestClient
from ward import SITE, NameReader, dicom
from web.test_oidc import BASE, Browser, settings

from wetread import config
from wetread.clinic import access, accounts, audit, logs, store
from wetread.clinic.access import Role
from wetread.errors import ConfigError
from wetread.web import oidc, security
from wetread.web.app import create_app

pytestmark = pytest.mark.system
pytest.importorskip("authlib", reason="needs Authlib, of the extra oidc")

PATIENT, IDENTIFIER = "Roe^Jane", "MRN-4711"
PASSWORDS = {
    "password": "correct horse battery",
    "wrong password": "incorrect horse battery",
    "new password": "staple paper clip ink",
    "password in the field for the name": "oops, my real password",
    "password that is refused": "tooshort!",
}


class Receiver(BaseHTTPRequestHandler):
    """Takes webhooks."""

    heard: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    heard: list[tuple[dict[str, str], bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("R", (Receiver,), {"heard": heard}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/critical", heard
    server.shutdown()
    thread.join()
    server.server_close()


def test_nothing_in_clear(tmp_path: Path, webhook: tuple[str, list[Any]], caplog: pytest.LogCaptureFixture) -> None:
    secrets = dict(PASSWORDS) | {
        "webhook secret": "hook, line and sinker 42",
        "webhook token": "bearer of good news 42",
        "token in a webhook's path": "T0PATH42",
        "token in a webhook's query": "T0QUERY42",
        "token in a remote model's path": "T0MODEL42",
        "password of a remote model": "T0REMOTE42",
        "token of a remote model in its query": "T0MODELQUERY42",
    }
    secrets["OIDC client secret"] = identity_provider.CLIENT_SECRET
    secrets["remote token"] = "token of a remote model 42"
    address, heard = webhook
    for name in ("webhook secret", "webhook token"):
        (tmp_path / name).write_text(secrets[name])
    path, query, deep, password, key = (name for name in secrets.values() if name.startswith("T0"))
    hidden = f"/{path}?key={query}"
    lost = f"http://127.0.0.1:1{hidden}#secret-file={tmp_path}/webhook secret".replace(" ", "%20")
    remote = [
        f"v2+http://127.0.0.1:1/{deep}/phantom",
        f"v2+http://127.0.0.1:1/{deep}/nothing",
        f"v2+http://user:{password}@127.0.0.1:1/phantom",
        f"v2+http://:{password}@127.0.0.1:1/phantom",
        f"v2+http://127.0.0.1:1/phantom?key={key}",
    ]
    hook = f"{address}{hidden}#secret-file={tmp_path}/webhook secret&token-file={tmp_path}/webhook token".replace(
        " ", "%20"
    )
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, logger="wetread")
    logs.quieten()
    data = tmp_path / "clinic"
    with identity_provider.running(tmp_path) as provider:
        known = settings(
            provider,
            outputs_webhook=[hook, lost],
            outputs_tries=1,
            models=remote,
            remote_token=secrets["remote token"],
        )
        app = create_app(data, known, models=[NameReader()])
        _remote_models(app)
        with TestClient(app, base_url=BASE) as http:
            said = _go_through(app, http, provider, secrets)
            wait(lambda: heard, "the webhook of a critical finding")
            wait(lambda: _sent(app), "the webhook's delivery is noted")
            operator = {"Authorization": f"Bearer {access.create(app.state.clinic.database, 'eng', 'engineer', SITE)}"}
            for page in ("/operations", "/deliveries", "/api/v1/deliveries?state=given_up", "/api/v1/operations"):
                said[page] = http.get(page, headers=operator).text
            assert "http://127.0.0.1:1/#" in said["/deliveries"]
            said["metrics"] = http.get("/metrics").text
            said["audit"] = "\n".join(map(str, audit.rows(app.state.clinic.database)))
            said["events"] = _events(app)
            assert audit.verify(app.state.clinic.database) is None
        secrets |= {f"issued by the provider {n}": value for n, value in enumerate(provider.issued)}
    assert heard[0][0]["authorization"] == f"Bearer {secrets['webhook token']}"  # they were really in use
    assert len(secrets) >= 18
    said["log"] = caplog.text
    database = b"".join(file.read_bytes() for file in data.glob("clinic.db*"))
    assert b"Jane" in database  # the search finds what is there
    assert "identity provider" in said["audit"]
    for what, secret in secrets.items():
        assert secret.encode() not in database, f"{what} is in the database"
        for place, text in said.items():
            assert secret not in text, f"{what} is in the {place}"
    for name in ("Jane", IDENTIFIER):
        for place, text in said.items():
            assert name not in text, f"{name} is in the {place}"


def _remote_models(app: Any) -> None:
    """Open the models of the settings, of which none answers, beside the one in service."""
    clinic = app.state.clinic
    clinic.switches.open()
    for model in clinic.models.values():
        model.predictor.close()
    clinic.models.clear()


def _go_through(app: Any, http: TestClient, provider: Any, secrets: dict[str, str]) -> dict[str, str]:
    """Log in in every way, right and wrong, and use every kind of token; collect the secrets."""
    database = app.state.clinic.database
    said = {}
    accounts.create(database, "Admin", "administrator", SITE, secrets["password"])
    secrets["login code"] = access.login_code(database, "operator", Role.ADMINISTRATOR, SITE)
    secrets["API token"] = access.create(database, "modality", "service", SITE, scopes=["upload"])
    secrets["revoked token"] = access.create(database, "gone", "service", SITE)
    access.revoke(database, "gone", SITE)
    wrong = {"name": "Admin", "password": secrets["wrong password"]}
    said["wrong password"] = http.post("/login", data=wrong).text
    mixed = {"name": secrets["password in the field for the name"], "password": "Admin"}
    http.post("/login", data=mixed)
    http.post("/login", data={"code": secrets["login code"]})
    http.post("/login", data={"code": secrets["login code"]})
    cookie = f"__Host-{security.COOKIE}"
    secrets["session by link"] = http.cookies[cookie]
    http.cookies.clear()
    http.post("/login", data={"name": "Admin", "password": secrets["password"]})
    secrets["session"] = http.cookies[cookie]
    headers = {security.CSRF_HEADER: security.csrf_token(secrets["session"])}
    secrets["CSRF token"] = headers[security.CSRF_HEADER]
    person = {"name": "Dr New", "role": "radiologist"}
    bad = http.post(
        "/api/v1/accounts", json=person | {"password": secrets["password that is refused"]}, headers=headers
    )
    said["refused password"] = bad.text
    made = http.post("/api/v1/accounts", json=person | {"password": secrets["password"]}, headers=headers).json()
    changed = http.put(
        f"/api/v1/accounts/{made['id']}/password", json={"password": secrets["new password"]}, headers=headers
    )
    assert changed.status_code == 204
    form = {"csrf": secrets["CSRF token"], "old": secrets["wrong password"], "new": secrets["new password"]}
    said["wrong old password"] = http.post("/password", data=form).text.replace(secrets["CSRF token"], "")
    assert http.post("/password", data=form | {"old": secrets["password"]}).status_code == 200

    browser = Browser(app, provider)
    where = browser.begin()
    secrets["OIDC flow"] = browser.http.cookies["__Host-wetread_oidc"]
    secrets["OIDC verifier"] = oidc._derived(secrets["OIDC flow"], "verifier")
    secrets["OIDC nonce"] = parse_qs(urlsplit(where).query)["nonce"][0]
    assert browser.http.get(browser.consent(where)).status_code == 200
    secrets["OIDC session"] = browser.http.cookies[cookie]
    provider.claims = {"nonce": "another"}
    assert browser.sign_in().status_code == 403
    browser.provider.close()

    bearer = {"Authorization": f"Bearer {secrets['API token']}"}
    http.cookies.clear()
    for secret in (secrets["revoked token"], secrets["API token"] + "x"):
        said[f"refused token {len(said)}"] = http.get(
            "/api/v1/worklist", headers={"Authorization": f"Bearer {secret}"}
        ).text
    file = dicom(7, PatientName=PATIENT, PatientID=IDENTIFIER)
    sent = http.post("/api/v1/studies?wait=20", files={"files": ("pneumothorax.dcm", file)}, headers=bearer)
    assert sent.status_code == 201, sent.text
    broken = b"x" * 128 + b"DICM" + file[132:400]
    http.post("/api/v1/studies?wait=20", files={"files": ("broken.dcm", broken)}, headers=bearer)
    reader = {"Authorization": f"Bearer {access.create(database, 'reader', 'radiologist', SITE)}"}
    assert "Jane" in http.get("/api/v1/worklist", headers=reader).text
    study = sent.json()["studies"][0]["study"]
    http.get(f"/studies/{study}", headers=reader)
    http.get("/dicomweb/studies", params={"PatientName": PATIENT}, headers=reader)
    for image in (study, PATIENT):  # a name in an address that is not ours
        http.get(f"/api/v1/images/{image}/frame", headers=reader)
        http.get(f"/api/v1/studies/{image}", headers=reader)
    return said


def _sent(app: Any) -> bool:
    with app.state.clinic.database.read() as connection:
        states = connection.execute(sa.select(store.delivery.c.state)).scalars().all()
    return bool(states) and set(states) <= {"sent", "nothing", "given_up"}


def _events(app: Any) -> str:
    with app.state.clinic.database.read() as connection:
        return "\n".join(map(str, connection.execute(sa.select(store.event)).all()))


def test_a_bad_setting_that_is_a_secret_is_not_said() -> None:
    with pytest.raises(ConfigError, match=re.escape("oidc_client_secret = (a secret)")) as caught:
        config.load(None, {}, oidc_client_secret=["hush"])
    assert "hush" not in str(caught.value)
    assert "hush" not in repr(config.load(None, {}, oidc_client_secret="hush"))


def test_the_log_of_libraries_would_say_too_much(caplog: pytest.LogCaptureFixture) -> None:
    """Why they are kept quiet: httpx logs addresses, and ours may hold a login code."""
    caplog.set_level(logging.INFO)
    logs.quieten()
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    with httpx.Client(transport=transport) as client:
        client.get("http://127.0.0.1/login?code=hush")
    assert "hush" not in caplog.text
