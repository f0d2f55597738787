"""Logging in and out, over HTTP and over TLS as the browser sees it: cookies, forms, limits, own password, users."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import argon2
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient
from ward import SITE, NameReader, dicom

from wetread.clinic import access, accounts, attempts, audit, passwords, store
from wetread.clinic.access import Role
from wetread.config import Settings
from wetread.web import events, security
from wetread.web.app import create_app

NAME, PASSWORD, OTHER = "Dr N", "correct horse battery", "staple paper clip ink"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    settings = Settings(threads=1, hosts=["wetread.example"], trusted_proxies=["10.1.0.0/16"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "hasher", argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        app = create_app(tmp_path_factory.mktemp("clinic"), settings, models=[NameReader()])
        with TestClient(app):
            accounts.create(app.state.clinic.database, NAME, "radiologist", SITE, PASSWORD)
            accounts.create(app.state.clinic.database, "Admin", "administrator", SITE, PASSWORD)
            yield app


@pytest.fixture(autouse=True)
def _nothing_counted(app: FastAPI) -> None:
    with app.state.clinic.database.write() as connection:
        connection.execute(store.attempt.delete())


def browser(app: FastAPI, base: str = "http://127.0.0.1", client: str = "testclient") -> TestClient:
    return TestClient(app, base_url=base, follow_redirects=False, client=(client, 50000))


def entered(app: FastAPI, name: str = NAME, password: str = PASSWORD, base: str = "http://127.0.0.1") -> TestClient:
    http = browser(app, base)
    assert http.post("/login", data={"name": name, "password": password}).status_code == 303
    cookie = next(iter(http.cookies.values()))
    http.headers[security.CSRF_HEADER] = security.csrf_token(cookie)
    return http


def csrf(http: TestClient) -> str:
    return str(http.headers[security.CSRF_HEADER])


def actions(app: FastAPI) -> list[str]:
    return [row["action"] for row in audit.rows(app.state.clinic.database)]


class TestLogin:
    def test_by_name_and_password(self, app: FastAPI) -> None:
        page = browser(app).get("/login").text
        assert 'autocomplete="current-password"' in page
        assert "Log in with your organisation" not in page
        http = entered(app)
        assert http.get("/").status_code == 200
        assert NAME in http.get("/").text

    def test_a_wrong_one_says_so_and_keeps_the_name_but_never_the_password(self, app: FastAPI) -> None:
        http = browser(app)
        for name in (NAME, "nobody here", '"><script>alert(1)</script>'):
            answer = http.post("/login", data={"name": name, "password": "wrong password"})
            assert answer.status_code == 403
            assert "not right, or the account is disabled" in answer.text
            assert "wrong password" not in answer.text
            assert "<script>alert" not in answer.text
            assert "set-cookie" not in answer.headers
        assert http.post("/login").status_code == 403

    def test_too_many_are_429_with_the_time_to_wait(self, app: FastAPI) -> None:
        http = browser(app)
        for _ in range(attempts.ACCOUNT.burst):
            http.post("/login", data={"name": NAME, "password": "wrong password"})
        answer = http.post("/login", data={"name": NAME, "password": PASSWORD})
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= attempts.ACCOUNT.every_s
        assert "try again in" in answer.text
        assert http.post("/login", data={"name": "Admin", "password": PASSWORD}).status_code == 303

    def test_links_are_guessed_only_so_often(self, app: FastAPI) -> None:
        http = browser(app)
        codes = [http.post("/login", data={"code": "x"}).status_code for _ in range(attempts.ADDRESS.burst + 1)]
        assert codes == [403] * attempts.ADDRESS.burst + [429]
        elsewhere = browser(app, client="10.3.0.1")
        code = access.login_code(app.state.clinic.database, "operator", Role.ADMINISTRATOR, SITE)
        assert elsewhere.post("/login", data={"code": code}).status_code == 303

    @pytest.mark.parametrize(
        "headers",
        [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}],
        ids=str,
    )
    def test_not_from_another_site_s_page(self, app: FastAPI, headers: dict[str, str]) -> None:
        """Otherwise it could log a reader in as somebody else."""
        answer = browser(app).post("/login", data={"name": NAME, "password": PASSWORD}, headers=headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers

    def test_every_refusal_is_audited(self, app: FastAPI) -> None:
        http, database = browser(app, client="10.4.0.1"), app.state.clinic.database
        code = access.login_code(database, "operator", Role.ADMINISTRATOR, SITE)
        newer = access.login_code(database, "operator", Role.ADMINISTRATOR, SITE)
        tries: list[tuple[dict[str, str], dict[str, str], str, str]] = [
            ({"name": NAME, "password": "wrong password"}, {}, NAME, "password"),
            ({"name": "nobody", "password": PASSWORD}, {}, "unknown", "password"),
            ({}, {}, "unknown", "password"),
            ({"code": "made up"}, {}, "unknown", "link"),
            ({"code": code}, {}, "operator", "link"),
            ({"name": NAME, "password": PASSWORD}, {"Origin": "http://evil.example"}, "unknown", "page"),
        ]
        for data, headers, who, by in tries:
            before = len(actions(app))
            assert http.post("/login", data=data, headers=headers).status_code == 403
            [row] = list(audit.rows(database))[before:]
            assert (row["action"], row["actor"], row["detail"]["by"]) == ("login.failed", who, by)
            assert row["detail"]["address"] == "10.4.0.1"
        assert http.post("/login", data={"code": newer}).status_code == 303
        assert actions(app)[-1] == "session.opened"

    def test_pages_of_other_sites_fill_no_audit(self, app: FastAPI) -> None:
        """Nor do they keep the people at the browser's address from logging in."""
        http, before = browser(app, client="10.4.0.2"), len(actions(app))
        for _ in range(attempts.ADDRESS.burst + 2):
            assert http.post("/login", headers={"Origin": "http://evil.example"}).status_code == 403
        assert actions(app)[before:] == ["login.failed"] * attempts.ADDRESS.burst
        assert http.post("/login", data={"name": NAME, "password": PASSWORD}).status_code == 303

    def test_a_login_ends_the_session_that_the_browser_had(self, app: FastAPI) -> None:
        http = entered(app)
        old = http.cookies[security.COOKIE]
        assert http.post("/login", data={"name": "Admin", "password": PASSWORD}).status_code == 303
        http.cookies.clear()
        http.cookies.set(security.COOKIE, old)
        assert http.get("/api/v1/worklist").status_code == 401
        rows = list(audit.rows(app.state.clinic.database))[-2:]
        assert {(row["action"], row["actor"]) for row in rows} == {
            ("session.opened", "Admin"),
            ("session.closed", NAME),
        }

    def test_each_login_gives_a_new_secret(self, app: FastAPI) -> None:
        http = browser(app)
        http.cookies.set(security.COOKIE, "chosen by somebody else")
        http.post("/login", data={"name": NAME, "password": PASSWORD})
        secrets = [cookie.value for cookie in http.cookies.jar if cookie.value != "chosen by somebody else"]
        assert len(secrets) == 1
        assert len(secrets[0]) >= 43

    def test_a_session_s_life_and_idle_time_are_settings(self, app: FastAPI) -> None:
        answer = browser(app).post("/login", data={"name": NAME, "password": PASSWORD})
        assert f"max-age={12 * 3600};" in answer.headers["set-cookie"].lower()

    def test_pages_that_refresh_by_themselves_keep_no_session_alive(
        self, app: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[bool] = []
        identify = access.identify

        def watch(*args: object, active: bool = True, **more: object) -> object:
            seen.append(active)
            return identify(*args, active=active, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(access, "identify", watch)
        http = entered(app)
        http.get("/")
        http.get("/", headers={"HX-Request": "true"})
        http.post("/api/v1/studies/x/claim")
        http.get("/api/v1/worklist")
        assert seen == [True, False, False, True]


class TestCookie:
    def test_in_clear_is_for_this_machine(self, app: FastAPI) -> None:
        answer = browser(app).post("/login", data={"name": NAME, "password": PASSWORD})
        name, flags = cookie(answer)
        assert name == security.COOKIE
        assert {"httponly", "samesite=strict", "path=/"} <= flags
        assert "secure" not in flags
        assert "strict-transport-security" not in answer.headers

    def test_over_tls_is_tied_to_this_host(self, app: FastAPI) -> None:
        http = browser(app, "https://wetread.example")
        answer = http.post("/login", data={"name": NAME, "password": PASSWORD})
        name, flags = cookie(answer)
        assert name == f"__Host-{security.COOKIE}"
        assert {"httponly", "samesite=strict", "secure", "path=/"} <= flags
        assert not any(flag.startswith("domain") for flag in flags)
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert http.get("/").status_code == 200
        gone = http.post("/logout", headers={security.CSRF_HEADER: security.csrf_token(http.cookies[name])})
        assert {"secure", "max-age=0"} <= cookie(gone)[1]

    def test_over_tls_a_cookie_that_a_plain_page_could_set_is_not_taken(self, app: FastAPI) -> None:
        secret = entered(app).cookies[security.COOKIE]
        http = browser(app, "https://wetread.example")
        http.cookies.set(security.COOKIE, secret)
        assert http.get("/api/v1/worklist").status_code == 401


FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9", "Host": "wetread.example"}


class TestProxy:
    def test_one_that_is_trusted_says_who_and_how(self, app: FastAPI) -> None:
        http = browser(app, client="10.1.2.3")
        answer = http.post("/login", data={"name": NAME, "password": "wrong password"}, headers=FORWARDED)
        assert answer.status_code == 403
        assert answer.headers["strict-transport-security"]
        assert list(audit.rows(app.state.clinic.database))[-1]["detail"]["address"] == "203.0.113.9"

    def test_others_are_not_believed(self, app: FastAPI) -> None:
        http = browser(app, client="10.2.2.3")
        answer = http.post("/login", data={"name": NAME, "password": "wrong password"}, headers=FORWARDED)
        assert "strict-transport-security" not in answer.headers
        assert list(audit.rows(app.state.clinic.database))[-1]["detail"]["address"] == "10.2.2.3"


class TestPassword:
    def test_is_changed_by_its_owner(self, app: FastAPI) -> None:
        accounts.create(app.state.clinic.database, "Dr P", "radiologist", SITE, PASSWORD)
        http, there = entered(app, "Dr P"), entered(app, "Dr P")
        form = {"csrf": csrf(http), "old": PASSWORD, "new": OTHER}
        assert http.post("/password", data=form | {"csrf": ""}).status_code == 403
        wrong = http.post("/password", data=form | {"old": "wrong password"})
        assert (wrong.status_code, "present one" in wrong.text) == (403, True)
        weak = http.post("/password", data=form | {"new": "short"})
        assert (weak.status_code, "12 to" in weak.text) == (422, True)
        done = http.post("/password", data=form)
        assert (done.status_code, "Changed" in done.text) == (200, True)
        assert OTHER not in done.text
        assert http.get("/").status_code == 200
        assert there.get("/").status_code == 303
        entered(app, "Dr P", OTHER)
        assert "account.password" in actions(app)

    def test_guessing_it_in_a_stolen_session_is_limited(self, app: FastAPI) -> None:
        http = entered(app)
        form = {"csrf": csrf(http), "old": "wrong password", "new": OTHER}
        codes = [http.post("/password", data=form).status_code for _ in range(attempts.ACCOUNT.burst + 1)]
        assert codes == [403] * attempts.ACCOUNT.burst + [429]

    def test_who_came_by_a_link_has_none(self, app: FastAPI) -> None:
        database = app.state.clinic.database
        http = browser(app)
        http.post("/login", data={"code": access.login_code(database, "operator", Role.ADMINISTRATOR, SITE)})
        assert "login link or a token" in http.get("/password").text
        form = {"csrf": security.csrf_token(http.cookies[security.COOKIE]), "old": "x", "new": OTHER}
        assert http.post("/password", data=form).status_code == 403


class TestUsers:
    def test_the_page_lists_makes_and_changes(self, app: FastAPI) -> None:
        http = entered(app, "Admin")
        assert 'href="/users"' in http.get("/settings").text
        assert 'href="/users"' not in entered(app).get("/settings").text
        form = {"csrf": csrf(http)}
        new = form | {"name": "Dr <Q>", "role": "radiologist", "password": PASSWORD}
        assert http.post("/users", data=new).status_code == 303
        page = http.get("/users").text
        assert "Dr &lt;Q&gt;" in page
        assert "<Q>" not in page
        again = http.post("/users", data=new)
        assert (again.status_code, "exists already" in again.text) == (409, True)
        assert PASSWORD not in again.text
        weak = http.post("/users", data=new | {"name": "Dr R", "password": "short"})
        assert weak.status_code == 422
        key = accounts.find(app.state.clinic.database, SITE, "Dr <Q>").id
        theirs = entered(app, "Dr <Q>")
        assert http.post(f"/users/{key}", data=form | {"role": "engineer"}).status_code == 303
        assert theirs.get("/").status_code == 303
        assert accounts.find(app.state.clinic.database, SITE, "Dr <Q>").role == "engineer"
        assert http.post(f"/users/{key}", data=form | {"password": OTHER}).status_code == 303
        theirs = entered(app, "Dr <Q>", OTHER)
        assert http.post(f"/users/{key}", data=form | {"disabled": "true"}).status_code == 303
        assert theirs.get("/").status_code == 303
        assert browser(app).post("/login", data={"name": "Dr <Q>", "password": OTHER}).status_code == 403
        assert http.post(f"/users/{key}", data=form | {"disabled": "false"}).status_code == 303
        entered(app, "Dr <Q>", OTHER)
        own = accounts.find(app.state.clinic.database, SITE, "Admin").id
        assert http.post(f"/users/{own}", data=form | {"disabled": "true"}).status_code == 409
        assert http.post("/users/nobody", data=form | {"disabled": "true"}).status_code == 422

    def test_the_api_does_the_same(self, app: FastAPI) -> None:
        http = entered(app, "Admin")
        body = {"name": "Dr S", "role": "radiologist", "password": PASSWORD}
        made = http.post("/api/v1/accounts", json=body)
        assert made.status_code == 201
        assert "password" not in made.json()
        assert http.post("/api/v1/accounts", json=body).status_code == 409
        assert http.post("/api/v1/accounts", json=body | {"name": "T", "role": "service"}).status_code == 422
        assert http.post("/api/v1/accounts", json=body | {"name": "T", "king": 1}).status_code == 422
        key = made.json()["id"]
        assert key in [account["id"] for account in http.get("/api/v1/accounts").json()]
        theirs = entered(app, "Dr S")
        assert http.put(f"/api/v1/accounts/{key}/password", json={"password": OTHER}).status_code == 204
        assert theirs.get("/").status_code == 303
        changed = http.patch(f"/api/v1/accounts/{key}", json={"disabled": True, "role": "engineer"}).json()
        assert (changed["role"], changed["disabled_at"] is not None) == ("engineer", True)
        assert http.patch("/api/v1/accounts/nobody", json={"disabled": True}).status_code == 404
        bad = http.put(f"/api/v1/accounts/{key}/password", json={"password": "short but mine"[:7]})
        assert (bad.status_code, "short b" in bad.text) == (422, False)


def test_looking_is_audited_once_a_while(app: FastAPI) -> None:
    http = entered(app)
    receipt = http.post("/api/v1/studies?wait=10", files={"files": ("edema.dcm", dicom(5, PatientName="Roe^Jane"))})
    study, image = receipt.json()["studies"][0]["study"], receipt.json()["images"][0]["image"]

    def looks() -> list[tuple[str, str]]:
        rows = audit.rows(app.state.clinic.database, actor=NAME, action="study.viewed", what=study)
        return [(row["actor"], row["object"]) for row in rows]

    assert looks() == []
    assert http.get(f"/api/v1/images/{image}/frame").status_code == 200  # the picture alone is a look, too
    assert looks() == [(NAME, study)]
    for path in (f"/studies/{study}", f"/api/v1/studies/{study}", f"/api/v1/images/{image}/preview.png"):
        assert http.get(path).status_code == 200
    assert looks() == [(NAME, study)]
    entered(app).get(f"/api/v1/images/{image}/heatmap", params={"finding": "Edema"})
    assert len(looks()) == 2  # another session
    http.get("/")
    assert [r["object"] for r in audit.rows(app.state.clinic.database, action="worklist.viewed", actor=NAME)][
        -1
    ] == SITE
    assert http.get("/api/v1/images/nothing/frame").status_code == 404
    assert all("Roe" not in str(row) for row in audit.rows(app.state.clinic.database))


def test_whose_session_ended_hears_no_more(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_S", 0.0)
    monkeypatch.setattr(events, "POLL_S", 0.01)
    clinic = app.state.clinic
    session = accounts.log_in(clinic.database, NAME, PASSWORD)
    caller = access.identify(clinic.database, session, kind="session")
    assert caller is not None

    async def receive() -> dict[str, str]:
        await asyncio.sleep(3600)
        return {}

    async def listen() -> list[str]:
        request = Request({"type": "http", "app": app, "headers": [], "path": "/events"}, receive)
        heard = []
        async for line in events._stream(request, clinic, caller, 0):
            heard.append(line)
            if len(heard) == 2:
                access.logout(clinic.database, caller)
                with clinic.database.write() as connection:
                    store.emit(connection, "study.analysed", SITE, None, {"late": True})
        return heard

    with clinic.database.write() as connection:
        store.emit(connection, "study.analysed", SITE)
    assert "late" not in "".join(asyncio.run(asyncio.wait_for(listen(), 60)))


@pytest.mark.parametrize("path", ["/", "/users", "/password", "/login", "/api/v1/accounts", "/api/v1/worklist"])
def test_what_a_browser_may_do_with_it(app: FastAPI, path: str) -> None:
    headers = entered(app, "Admin").get(path).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert not [part for part in policy if "unsafe-eval" in part or part == "script-src 'unsafe-inline'"]


def test_pages_have_no_script_or_style_of_their_own(app: FastAPI) -> None:
    http = entered(app, "Admin")
    for path in ("/", "/users", "/password", "/login"):
        text = http.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|javascript:", text), path


def cookie(answer: object) -> tuple[str, set[str]]:
    first, *flags = answer.headers["set-cookie"].split("; ")  # type: ignore[attr-defined]
    return first.split("=")[0], {flag.lower() for flag in flags}
