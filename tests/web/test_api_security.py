"""The guard: names, origins, sizes, sessions, and what a browser may do with an answer."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from ward import SITE, png

from wetread.clinic import access
from wetread.web import security


@pytest.fixture
def browser(client) -> TestClient:
    """A browser with a session."""
    code = access.login_code(client.clinic.database, "operator", access.Role.ADMINISTRATOR, SITE)
    session = access.login(client.clinic.database, code)
    http = TestClient(client.app, base_url="http://127.0.0.1")
    http.cookies.set(security.COOKIE, session)
    return http


def csrf(browser: TestClient) -> dict[str, str]:
    return {security.CSRF_HEADER: security.csrf_token(browser.cookies[security.COOKIE])}


@pytest.mark.parametrize("path", ["/healthz", "/api/v1/worklist", "/nothing", "/login", "/static/icon.svg", "/metrics"])
def test_every_answer_carries_the_content_policy(client, path: str) -> None:
    response = client.http.get(path)
    policy = response.headers["content-security-policy"]
    for part in (
        "default-src 'none'", "script-src 'self'", "worker-src 'self'", "style-src 'self'",
        "style-src-attr 'unsafe-inline'", "img-src 'self' data: blob:", "connect-src 'self'", "frame-ancestors 'none'",
    ):  # fmt: skip
        assert part in policy.split("; ")
    assert "unsafe-eval" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:8080", "192.168.1.7"]
)
def test_names_of_this_server(client, host: str) -> None:
    assert client.http.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8080",
        "",
        "[",
        "a b",
        "evil.example@localhost",
        "localhost/evil.example",
        "localhost?x",
        "localhost#x",
        "localhost:8080:1",
    ],
)
def test_other_names_are_dns_rebinding(client, host: str) -> None:
    response = client.http.get("/healthz", headers={"Host": host})
    assert response.status_code == 421
    assert "`hosts`" in response.json()["detail"]
    assert "content-security-policy" in response.headers


def test_a_configured_name_is_ours() -> None:
    guard = security.Guard(None, hosts=["Reading.Example"], upload_limit=1, upload_path="/x")  # type: ignore[arg-type]
    assert guard._ours("reading.example:8080")
    assert not guard._ours("example")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer x", "Basic eDp5", "bearer \xff", "Bearer " + "x" * 9000]
)
def test_other_tokens_are_nobody(client, header: str) -> None:
    response = client.http.get("/api/v1/worklist", headers={"Authorization": header.encode("latin-1")})
    assert response.status_code == 401


def test_a_token_that_fails_is_not_saved_by_a_cookie(browser: TestClient) -> None:
    assert browser.get("/api/v1/worklist").status_code == 200
    assert browser.get("/api/v1/worklist", headers={"Authorization": "Bearer x"}).status_code == 401


def test_a_session_changes_things_only_from_our_own_page(client, browser: TestClient) -> None:
    key = client.send(("edema.png", png(200)))["studies"][0]["study"]
    path = f"/api/v1/studies/{key}/claim"
    good = csrf(browser)
    for headers in (
        {},
        {security.CSRF_HEADER: "x"},
        {security.CSRF_HEADER: ""},
        good | {"Origin": "http://evil.example"},
        good | {"Origin": "null"},
        good | {"Origin": "http://127.0.0.1:9999"},
        good | {"Sec-Fetch-Site": "cross-site"},
        good | {"Sec-Fetch-Site": "same-site"},
    ):
        response = browser.post(path, headers=headers)
        assert response.status_code == 403, headers
        assert "our own page" in response.json()["detail"]
    assert client("GET", f"/api/v1/studies/{key}").json()["claim"] is None
    headers = good | {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert browser.post(path, headers=headers).status_code == 200
    assert browser.delete(path, headers=good).status_code == 200
    other = TestClient(client.app, base_url="http://127.0.0.1", cookies={security.COOKIE: "x"})
    assert other.post(path, headers=good).status_code == 401


def test_sign_in_by_link_and_out(client) -> None:
    code = access.login_code(client.clinic.database, "operator", access.Role.ADMINISTRATOR, SITE)
    http = TestClient(client.app, base_url="http://127.0.0.1", follow_redirects=False)
    assert http.get("/", headers={"Accept": "text/html"}).status_code == 303
    answer = http.post("/login", data={"code": code})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert http.get("/api/v1/worklist").status_code == 200
    again = TestClient(client.app, base_url="http://127.0.0.1", follow_redirects=False)
    assert again.post("/login", data={"code": code}).status_code == 403
    session = http.cookies[security.COOKIE]
    assert http.post("/logout", headers=csrf(http)).status_code == 204
    stale = TestClient(client.app, base_url="http://127.0.0.1", cookies={security.COOKIE: session})
    assert stale.get("/api/v1/worklist").status_code == 401


def test_bodies_have_a_limit_announced_or_not(client) -> None:
    key = client.send(("edema.png", png(201)))["studies"][0]["study"]
    path = f"/api/v1/studies/{key}/reviews"

    def pieces():
        for _ in range(40):
            yield b" " * 2**16

    announced = client("POST", path, content=b" " * (2**20 + 1))
    unannounced = client("POST", path, content=pieces())
    lying = client("POST", path, content=b"{}", headers={"Content-Length": "many"})
    assert [r.status_code for r in (announced, unannounced, lying)] == [413, 413, 413]
    upload = client("POST", "/api/v1/studies", content=b"x" * (4 * 2**20 + 1), headers={"Content-Type": "x/y"})
    assert upload.status_code == 413


def test_answers_are_not_kept_by_others(client) -> None:
    assert client("GET", "/api/v1/worklist").headers["cache-control"] == "no-store"
    image = client.send(("edema.png", png(202)))["images"][0]["image"]
    assert client("GET", f"/api/v1/images/{image}/frame").headers["cache-control"].startswith("private")


def test_a_bug_is_a_problem_without_a_traceback(client, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    from wetread.clinic import worklist

    def broken(*args: object, **more: object) -> None:
        raise ZeroDivisionError("-".join(["a", "patient"]))  # a message that no line of code holds

    monkeypatch.setattr(worklist, "page", broken)
    response = client("GET", "/api/v1/worklist")
    assert response.status_code == 500
    assert "a-patient" not in response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert "ZeroDivisionError" in caplog.text
    assert "in broken" in caplog.text
    assert "a-patient" not in caplog.text


def test_a_database_that_does_not_answer_is_503(client, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy as sa

    from wetread.clinic import worklist

    def gone(*args: object, **more: object) -> None:
        raise sa.exc.OperationalError("select", {}, Exception("gone"))

    monkeypatch.setattr(worklist, "page", gone)
    response = client("GET", "/api/v1/worklist")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


def test_a_full_disk_is_507_and_nothing_is_half_there(client, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = client("GET", "/api/v1/worklist").json()["counts"]["unread"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        response = client("POST", "/api/v1/studies", files={"files": ("a.png", png(300))})
    assert response.status_code == 507
    assert "disk full" in response.json()["detail"]
    assert client("GET", "/api/v1/worklist").json()["counts"]["unread"] == before
    assert client.send(("a.png", png(300)))["studies"][0]["new"] is True


def test_uploads_by_many_at_once(client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    before = client("GET", "/api/v1/worklist").json()["counts"]["unread"]
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda seed: client.send((f"edema {seed}.png", png(400 + seed % 12))), range(24)))
    assert {r["studies"][0]["status"] for r in receipts} == {"analysed"}
    assert len({r["studies"][0]["study"] for r in receipts}) == 12
    assert client("GET", "/api/v1/worklist").json()["counts"]["unread"] == before + 12
