"""Every route × every kind of caller, against the table in `authorisation.py`; a route without a line there fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.routing import Mount
from starlette.testclient import TestClient
from ward import SITE, NameReader, dicom
from web import authorisation
from web.authorisation import ANYONE, KINDS, TABLE, Rule, may

from wetread.clinic import access, accounts, store
from wetread.clinic.access import RIGHTS, Right, Role
from wetread.config import Settings
from wetread.web import events, security
from wetread.web.app import create_app

BASE = "http://127.0.0.1"
ELSEWHERE = "elsewhere"
PATIENT = "Roe^Jane"
ids = [f"{method} {path}" for method, path in TABLE]


def walk(routes: Any) -> Iterator[tuple[str, str]]:
    """Give method and path of every route, also of those that no schema names."""
    for route in routes:
        if hasattr(route, "effective_candidates"):  # a router that was included
            yield from walk(route.effective_candidates())
            continue
        route = getattr(route, "starlette_route", None) or route
        if isinstance(route, Mount):
            yield "GET", f"{route.path}/{{path}}"
        else:
            yield from ((method, re.sub(r":\w+}", "}", route.path)) for method in sorted(route.methods))


@dataclass(frozen=True)
class House:
    """A running clinic with a study of one image, whose patient no other site may see."""

    app: FastAPI
    parameters: dict[str, dict[str, str]]  # of the API and of DICOMweb
    marks: tuple[str, ...]
    callers: dict[str, TestClient] = field(default_factory=dict)

    @property
    def database(self) -> store.Store:
        found: store.Store = self.app.state.clinic.database
        return found

    def client(self, secret: str | None = None, *, session: str | None = None) -> TestClient:
        """Return a caller; by a session, its requests carry what our own pages send."""
        http = TestClient(self.app, base_url=BASE, follow_redirects=False, raise_server_exceptions=False)
        if secret is not None:
            http.headers["Authorization"] = f"Bearer {secret}"
        if session is not None:
            http.cookies.set(security.COOKIE, session)
            http.headers[security.CSRF_HEADER] = security.csrf_token(session)
        return http

    def token(self, role: Role, *, site: str = SITE, scope: str | None = None) -> TestClient:
        name = f"token {store.new_id()}"
        return self.client(access.create(self.database, name, role, site, scopes=[scope] if scope else None))

    def session(self, role: Role, *, disabled: bool = False) -> TestClient:
        name = f"Dr {store.new_id()}"
        session = accounts.enter(self.database, "https://id.example", name, name, role, SITE)
        if disabled:
            with self.database.write() as connection:
                row = store.account.update().where(store.account.c.name == name)
                connection.execute(row.values(disabled_at=store.now()))
        return self.client(session=session)

    def call(self, http: TestClient, method: str, path: str, rule: Rule) -> Any:
        more = {name: dict(value) for name, value in rule.more.items()}
        if method == "POST" and not path.startswith(("/api/", "/dicomweb/", "/v2/")):
            more.setdefault("data", {})["csrf"] = http.headers.get(security.CSRF_HEADER, "")
        return http.request(method, self.fill(path), **more)

    def known(self, path: str, role: Role, **more: Any) -> TestClient:
        """Return a caller that other tests have used, too, where calling does not end it."""
        key, make = str((role, sorted(more.items()))), self.session if more.pop("session", False) else self.token
        if path == "/logout":
            return make(role, **more)
        if key not in self.callers:
            self.callers[key] = make(role, **more)
        return self.callers[key]

    def fill(self, path: str) -> str:
        return path.format_map(self.parameters["dicomweb" if path.startswith("/dicomweb") else "api"])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = Settings(threads=1, complete_after_s=86_400)  # nothing changes by itself meanwhile
    app = create_app(tmp_path_factory.mktemp("clinic"), settings, models=[NameReader()])

    async def one(*args: object) -> Any:
        yield "retry: 2000\n\n"

    with TestClient(app, base_url=BASE) as http, pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "_stream", one)  # a stream that ends
        database = app.state.clinic.database
        headers = {"Authorization": f"Bearer {access.create(database, 'feeder', 'service', SITE)}"}
        file = dicom(0, PatientName=PATIENT, PatientID="MRN-7", AccessionNumber="ACC-7")
        sent = http.post("/api/v1/studies?wait=20", files={"files": ("edema.dcm", file)}, headers=headers).json()
        study, image = sent["studies"][0]["study"], sent["images"][0]["image"]
        access.create(database, "there", "administrator", ELSEWHERE)
        person = accounts.create(database, "Dr Home", "radiologist", SITE, None)
        uids = {"study": "1.2.1.1", "series": "1.2.1.2", "instance": "1.2.1.3"}
        api = {
            "study": study,
            "image": image,
            "account": person.id,
            "path": "icon.svg",
            "name": "names",
            "version": "1",
            "delivery_id": "a-delivery",
            "pull": "a-pull",
            "model": NameReader().id,
            "code": "de",  # of a language
        }
        with database.write() as connection:
            asked = {"id": "a-pull", "site": SITE, "source": "pacs", "actor": "x", "state": "done", "wanted": []}
            connection.execute(store.pull.insert().values(**asked, outcomes=[], created_at=store.now()))
            sent_on = {"id": "a-delivery", "study": study, "kind": "webhook", "destination": "d", "cause": "c"}
            connection.execute(
                store.delivery.insert().values(
                    **sent_on, detail={}, state="failed", tries=1, due_at=store.now(), created_at=store.now()
                )
            )
        parameters = {"api": api, "dicomweb": uids | {"numbers": "1", "number": "1", "tag": "7FE00010"}}
        yield House(app, parameters, (PATIENT, "Roe", "MRN-7", "ACC-7", "Dr Home", study, image, *uids.values()))


def refused(response: Any, rule: Rule, *, stranger: bool) -> bool:
    """Tell a refusal in the right form from an answer of the route's own."""
    status = response.status_code
    if stranger and rule.page:
        assert status in (200, 303), status
        return bool(status == 303 and response.headers["location"] == "/login")
    if status == 401:
        assert stranger, response.text
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"
    elif status == 403 and status not in rule.also:
        assert not stranger, response.text
    return status in {401, 403} - set(rule.also)


def test_the_table_has_every_route_and_no_other(house: House) -> None:
    found = set(walk(house.app.routes)) - {("HEAD", "/api/v1/openapi.json")}
    assert len(found) > 60
    schema = {
        (method.upper(), path)
        for path, methods in house.client().get("/api/v1/openapi.json").json()["paths"].items()
        for method in methods
    }
    assert schema <= found
    assert found - set(TABLE) == set(), "routes without a line in tests/web/authorisation.py"
    assert set(TABLE) - found == set(), "lines without a route"


def test_every_path_can_be_filled(house: House) -> None:
    for _, path in TABLE:
        assert "{" not in house.fill(path)


@pytest.mark.parametrize(("method", "path"), TABLE, ids=ids)
def test_who_may_call(house: House, method: str, path: str) -> None:
    rule = TABLE[method, path]
    callers: dict[str, TestClient] = {"nobody": house.client()}
    callers |= {role.value: house.known(path, role) for role in Role}
    callers |= {f"service: {scope}": house.known(path, Role.SERVICE, scope=scope) for scope in RIGHTS[Role.SERVICE]}
    assert set(callers) == {kind.name for kind in KINDS}
    for kind in KINDS:
        response = house.call(callers[kind.name], method, path, rule)
        allowed = not refused(response, rule, stranger=kind.name == "nobody")
        assert allowed == may(rule, kind), (kind.name, response.status_code, response.text[:300])
        assert response.status_code < 500 or response.status_code == 503, (kind.name, response.text[:300])


@pytest.mark.parametrize(("method", "path"), TABLE, ids=ids)
def test_a_session_may_what_its_role_may_and_a_disabled_account_nothing(house: House, method: str, path: str) -> None:
    rule = TABLE[method, path]
    for role in accounts.ROLES:
        kind = next(kind for kind in KINDS if kind.name == role)
        response = house.call(house.known(path, role, session=True), method, path, rule)
        assert refused(response, rule, stranger=False) != may(rule, kind), (role, response.status_code)
        if method != "GET" and rule.who != ANYONE:  # another site's page made the browser send it
            genuine = house.known(path, role, session=True)
            forged = house.client(session=genuine.cookies[security.COOKIE])
            forged.headers[security.CSRF_HEADER] = "x"
            response = house.call(forged, method, path, rule)
            assert response.status_code == 403, (role, response.status_code)
            assert "our own page" in response.json()["detail"]
    gone = house.known(path, Role.ADMINISTRATOR, session=True, disabled=True)
    assert refused(house.call(gone, method, path, rule), rule, stranger=True) == (rule.who != ANYONE)


@pytest.mark.parametrize(("method", "path"), TABLE, ids=ids)
def test_another_site_sees_and_changes_nothing(house: House, method: str, path: str) -> None:
    rule = TABLE[method, path]
    response = house.call(house.known(path, Role.ADMINISTRATOR, site=ELSEWHERE), method, path, rule)
    named = [name for name in ("study", "image", "account", "instance", "delivery_id") if f"{{{name}}}" in path]
    if response.status_code != 404:
        for mark in house.marks:
            assert mark not in response.text, mark
            assert mark not in str(response.headers), mark
    # What is looked for by name is not there; what is searched for or sent is ours alone, or empty.
    if named and rule.who != Right.UPLOAD and not path.endswith(("/series", "/instances")):
        assert response.status_code in (404, 422), (response.status_code, response.text[:300])
        assert PATIENT not in response.text


def test_those_who_may_not_change_nothing(house: House) -> None:
    """After all refusals together, every row of every table is as it was."""

    def rows() -> dict[str, list[Any]]:
        passing = {"attempt", "token", "process"}  # counters, and when a token or a process was last seen
        with house.database.read() as connection:
            return {
                table.name: connection.execute(sa.select(table).order_by(*table.primary_key)).all()
                for table in store.metadata.sorted_tables
                if table.name not in passing
            }

    callers = {
        "nobody": house.client(),
        "a revoked token": house.client("x" * 43),
        "service: upload": house.token(Role.SERVICE, scope="upload"),
        "a disabled account": house.session(Role.ADMINISTRATOR, disabled=True),
    }
    before = rows()
    for (method, path), rule in TABLE.items():
        for name, http in callers.items():
            if rule.who not in (ANYONE, authorisation.SIGNED_IN) and (
                rule.who != Right.UPLOAD or "service" not in name
            ):
                response = house.call(http, method, path, rule)
                assert response.status_code in (401, 403, 303), (name, method, path)
    assert rows() == before


def test_the_manual_has_the_table_as_it_is() -> None:
    text = authorisation.PAGE.read_text(encoding="utf-8")
    assert text == authorisation.written(text), "run `python tests/web/authorisation.py`"
