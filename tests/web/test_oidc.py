"""Signing in at a real identity provider over TLS: the way in, and every way in which it must not lead in."""

from __future__ import annotations

import base64
import hmac
import json
import ssl
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import identity_provider
import pytest
from fastapi import FastAPI
from identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider
from joserfc.jwk import RSAKey
from starlette.testclient import TestClient
from ward import SITE, NameReader

from wetread.clinic import accounts, audit
from wetread.config import Settings
from wetread.errors import ConfigError
from wetread.web import oidc, security
from wetread.web.app import create_app

pytestmark = pytest.mark.system
pytest.importorskip("authlib", reason="needs Authlib, of the extra oidc")
BASE = "https://localhost"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    with identity_provider.running(tmp_path_factory.mktemp("identity")) as running:
        yield running


def settings(provider: IdentityProvider, **more: Any) -> Settings:
    known = {
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT_ID,
        "oidc_client_secret": CLIENT_SECRET,
        "oidc_ca": provider.ca,
        "oidc_roles": ["admins=administrator", "readers=radiologist"],
    }
    return Settings.model_validate({"threads": 1} | known | more)


@pytest.fixture(scope="module")
def app(provider: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    app = create_app(tmp_path_factory.mktemp("clinic"), settings(provider), models=[NameReader()])
    with TestClient(app):
        yield app


@pytest.fixture(autouse=True)
def _straight(provider: IdentityProvider, app: FastAPI) -> Iterator[None]:
    app.state.oidc = oidc.Provider(app.state.clinic.settings)  # which knows nothing yet
    yield
    provider.straight()


class Browser:
    """A browser that goes between the two."""

    def __init__(self, app: FastAPI, provider: IdentityProvider) -> None:
        self.http = TestClient(app, base_url=BASE, follow_redirects=False)
        self.provider = httpx.Client(verify=ssl.create_default_context(cafile=provider.ca))

    def begin(self) -> str:
        answer = self.http.get("/login/provider")
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])

    def consent(self, where: str) -> str:
        """Let the provider answer; return the path of ours to which it sends the browser back."""
        answer = self.provider.get(where)
        assert answer.status_code == 302, answer.text
        back = urlsplit(answer.headers["location"])
        assert f"{back.scheme}://{back.netloc}" == BASE
        return f"{back.path}?{back.query}"

    def sign_in(self) -> httpx.Response:
        answer: Any = self.http.get(self.consent(self.begin()))
        return answer  # type: ignore[no-any-return]


@pytest.fixture
def browser(app: FastAPI, provider: IdentityProvider) -> Iterator[Browser]:
    opened = Browser(app, provider)
    yield opened
    opened.provider.close()


def last(app: FastAPI) -> dict[str, Any]:
    return list(audit.rows(app.state.clinic.database))[-1]


def test_the_way_in(app: FastAPI, browser: Browser, provider: IdentityProvider) -> None:
    assert "/login/provider" in browser.http.get("/login").text
    where = browser.begin()
    asked = {name: values[0] for name, values in parse_qs(urlsplit(where).query).items()}
    assert asked["redirect_uri"] == f"{BASE}/login/provider/done"
    assert {"state", "nonce", "code_challenge"} <= set(asked)
    assert CLIENT_SECRET not in where
    flow = browser.http.cookies["__Host-wetread_oidc"]
    assert flow not in where
    answer = browser.http.get(browser.consent(where))
    assert answer.status_code == 200  # a page: a strict cookie is not sent after a redirect that another site began
    assert 'http-equiv="refresh"' in answer.text
    cookies = answer.headers.get_list("set-cookie")
    session = next(c for c in cookies if c.startswith(f"__Host-{security.COOKIE}="))
    assert "SameSite=strict" in session
    assert "Secure" in session
    assert any(c.startswith('__Host-wetread_oidc=""') for c in cookies)
    assert "Dr Q" in browser.http.get("/").text
    account = accounts.find(app.state.clinic.database, SITE, "Dr Q")
    assert (account.role, account.external) == ("radiologist", True)
    assert last(app)["action"] in ("session.opened", "worklist.viewed")
    assert browser.http.get("/users").status_code == 403
    assert "changed there" in browser.http.get("/password").text


def test_the_role_follows_the_provider(app: FastAPI, browser: Browser, provider: IdentityProvider) -> None:
    browser.sign_in()
    provider.person["roles"] = ["something else", "admins", "readers"]  # the first of our setting counts
    other = Browser(app, provider)
    other.sign_in()
    assert other.http.get("/users").status_code == 200
    assert browser.http.get("/").status_code == 303  # what was opened with the role before has ended
    changes = list(audit.rows(app.state.clinic.database, action="account.role"))
    assert changes[-1]["detail"]["to"] == "administrator"
    other.provider.close()


WRONG: dict[str, dict[str, Any]] = {
    "nonce": {"nonce": "another"},
    "no nonce": {"nonce": None},
    "audience": {"aud": "another client"},
    "no audience": {"aud": None},
    "audience of several without a word which": {"aud": [CLIENT_ID, "another"]},
    "authorized party": {"azp": "another"},
    "issuer": {"iss": "https://evil.example"},
    "no issuer": {"iss": None},
    "expired": {"exp": int(time.time()) - 3600, "iat": int(time.time()) - 7200},
    "no end": {"exp": None},
    "not yet": {"nbf": int(time.time()) + 3600},
    "issued in the future": {"iat": int(time.time()) + 3600},
    "access token": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
    "no subject": {"sub": None},
    "empty subject": {"sub": ""},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_token_that_is_not_right_leads_nowhere(
    app: FastAPI, browser: Browser, provider: IdentityProvider, what: str
) -> None:
    provider.claims = WRONG[what]
    refused(app, browser, browser.sign_in(), "answer was refused")


NOBODY: dict[str, dict[str, Any]] = {
    "unknown role": {"roles": ["visitors"]},
    "no role": {"roles": None},
    "roles that are no list": {"roles": {"readers": True}},
    "a role in pieces": {"roles": ["read", "ers", 7, ["readers"]]},
    "no name": {"preferred_username": None},
    "a name that is none": {"preferred_username": 7},
    "a name that the audit uses": {"preferred_username": "operator"},
    "a long name": {"preferred_username": "x" * 65},
}


@pytest.mark.parametrize("what", NOBODY)
def test_who_has_no_role_or_name_here_stays_out(
    app: FastAPI, browser: Browser, provider: IdentityProvider, what: str
) -> None:
    provider.claims = {"sub": what} | NOBODY[what]
    refused(app, browser, browser.sign_in())


def refused(app: FastAPI, browser: Browser, answer: httpx.Response, why: str = "") -> None:
    assert answer.status_code == 403, answer.text
    assert why in answer.text
    assert not any(c.startswith(f"__Host-{security.COOKIE}=") for c in answer.headers.get_list("set-cookie"))
    assert browser.http.get("/").status_code == 303
    row = last(app)
    assert (row["action"], row["actor"]) == ("login.failed", "unknown")
    assert (row["detail"]["by"], row["detail"]["address"]) == ("identity provider", "testclient")
    assert why in row["detail"]["why"]


def test_signatures(app: FastAPI, browser: Browser, provider: IdentityProvider) -> None:
    provider.signer = RSAKey.generate_key(2048, {"kid": "first"})  # somebody else's key under the same name
    refused(app, browser, browser.sign_in(), "answer was refused")
    # The classic: our public key taken for a shared secret, and no signature at all.
    provider.straight()
    public = provider.keys[0].as_pem(private=False)

    def forged(answer: dict[str, Any], algorithm: str) -> dict[str, Any]:
        def part(content: bytes) -> str:
            return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

        head = part(json.dumps({"alg": algorithm, "kid": "first"}).encode())
        signed = f"{head}.{answer['id_token'].split('.')[1]}"
        signature = hmac.digest(public, signed.encode(), "sha256") if algorithm == "HS256" else b""
        return answer | {"id_token": f"{signed}.{part(signature)}"}

    for algorithm in ("HS256", "none"):
        provider.bend = {"token": lambda answer, algorithm=algorithm: forged(answer, algorithm)}
        refused(app, browser, browser.sign_in(), "answer was refused")
    for broken in ("", "x", "a.b.c", None, 7):
        provider.bend = {"token": lambda answer, broken=broken: answer | {"id_token": broken}}
        refused(app, browser, browser.sign_in(), "answer was refused")


def test_a_new_key_of_the_provider_is_found(
    app: FastAPI, browser: Browser, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = provider.keys
    assert browser.sign_in().status_code == 200
    provider.new_key()
    try:
        monkeypatch.setattr(oidc, "_PATIENCE_S", 0.0)
        assert browser.sign_in().status_code == 200
    finally:
        provider.keys = before


def test_an_answer_for_another_browser_or_time_leads_nowhere(
    app: FastAPI, browser: Browser, provider: IdentityProvider
) -> None:
    other = Browser(app, provider)
    stolen = other.consent(other.begin())
    refused(app, browser, browser.http.get(stolen), "did not begin in this browser")  # without any cookie
    browser.begin()
    refused(app, browser, browser.http.get(stolen), "did not begin in this browser")  # with one of its own
    assert other.http.get(stolen).status_code == 200
    other.provider.close()


def test_who_was_turned_away_is_in_the_audit(app: FastAPI, browser: Browser, provider: IdentityProvider) -> None:
    """By their name at the provider: an account that is disabled here, or a name that is taken."""
    browser.sign_in()
    account = accounts.find(app.state.clinic.database, SITE, "Dr Q")
    accounts.change(app.state.clinic.database, SITE, account.id, disabled=True)
    try:
        refused(app, browser, browser.sign_in(), "disabled here")
        assert last(app)["detail"]["person"] == provider.person["sub"]
    finally:
        accounts.change(app.state.clinic.database, SITE, account.id, disabled=False)


def test_while_the_provider_is_slow_one_thread_waits_for_it(app: FastAPI, browser: Browser) -> None:
    """Otherwise strangers who begin to sign in could take every thread."""
    with app.state.oidc._lock:
        answer = browser.http.get("/login/provider")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert browser.http.get("/login/provider").status_code == 303


def test_a_code_is_good_once(app: FastAPI, browser: Browser, provider: IdentityProvider) -> None:
    where = browser.begin()
    flow = browser.http.cookies["__Host-wetread_oidc"]
    back = browser.consent(where)
    assert browser.http.get(back).status_code == 200
    again = TestClient(app, base_url=BASE, follow_redirects=False, cookies={"__Host-wetread_oidc": flow})
    assert again.get(back).status_code == 403


def test_a_code_of_another_sign_in_is_not_ours(app: FastAPI, browser: Browser, provider: IdentityProvider) -> None:
    """An attacker's code in a victim's sign-in: PKCE and the nonce tie a code to the browser that asked."""
    other = Browser(app, provider)
    theirs = parse_qs(urlsplit(other.consent(other.begin())).query)["code"][0]
    back = browser.consent(browser.begin())
    mine = parse_qs(urlsplit(back).query)["code"][0]
    refused(app, browser, browser.http.get(back.replace(mine, theirs)), "answer was refused")
    other.provider.close()


@pytest.mark.parametrize("iss", ["https://evil.example", ""])
def test_an_answer_that_names_another_issuer_is_mixed_up(
    app: FastAPI, browser: Browser, provider: IdentityProvider, iss: str
) -> None:
    provider.bend = {"answer": lambda answer: answer | {"iss": iss}}
    refused(app, browser, browser.sign_in(), "answer was refused")


def test_the_provider_says_no(app: FastAPI, browser: Browser, provider: IdentityProvider) -> None:
    provider.bend = {"answer": lambda answer: {"error": "access_denied", "state": answer["state"]}}
    refused(app, browser, browser.sign_in(), "did not let you in")
    assert last(app)["action"] == "login.failed"
    assert last(app)["actor"] == "unknown"


def test_a_provider_that_is_not_who_it_was_or_does_not_answer(
    app: FastAPI, browser: Browser, provider: IdentityProvider
) -> None:
    for bent in (
        {"issuer": "https://evil.example"},
        {"authorization_endpoint": "http://evil.example/authorize"},
        {"token_endpoint": None},
        {"jwks_uri": f"{provider.issuer}/nothing"},
    ):
        provider.bend = {"description": lambda description, bent=bent: description | bent}
        assert browser.http.get("/login/provider").status_code == 503
    provider.straight()
    provider.down = True
    answer = browser.http.get("/login/provider")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    provider.down = False
    untrusting = settings(provider, oidc_ca="")  # the machine's own authorities did not sign it
    app.state.oidc = oidc.Provider(untrusting)
    assert browser.http.get("/login/provider").status_code == 503


def test_sites_come_from_a_claim(app: FastAPI, browser: Browser, provider: IdentityProvider) -> None:
    app.state.oidc = oidc.Provider(
        settings(
            provider,
            oidc_role_claim="realm_access.roles",
            oidc_site_claim="hospital",
            oidc_sites=["CN=North,O=Clinics=north"],
        )
    )
    provider.person |= {"sub": "n", "preferred_username": "Dr North", "realm_access": {"roles": ["readers"]}}
    provider.claims = {"hospital": "CN=North,O=Clinics"}
    assert browser.sign_in().status_code == 200
    assert accounts.find(app.state.clinic.database, "north", "Dr North").role == "radiologist"
    other = Browser(app, provider)
    for hospital in ("CN=South", None, ["CN=South"]):
        provider.claims = {"hospital": hospital}
        refused(app, other, other.sign_in(), "no site here")
    other.provider.close()


def test_a_secret_that_is_wrong_or_sent_as_the_provider_wants(
    app: FastAPI, browser: Browser, provider: IdentityProvider
) -> None:
    app.state.oidc = oidc.Provider(settings(provider, oidc_client_secret="another secret"))
    refused(app, browser, browser.sign_in(), "answer was refused")
    provider.bend = {"description": lambda d: d | {"token_endpoint_auth_methods_supported": ["client_secret_post"]}}
    app.state.oidc = oidc.Provider(app.state.clinic.settings)
    assert browser.sign_in().status_code == 200
    assert "client_secret" in provider.log[-1]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"oidc_issuer": "http://id.example"}, "oidc_issuer"),
        ({"oidc_issuer": "id.example"}, "oidc_issuer"),
        ({"oidc_client_id": ""}, "oidc_client_id"),
        ({"oidc_roles": ["readers=king"]}, "'king'"),
        ({"oidc_roles": ["readers=service"]}, "'service'"),
        ({"oidc_roles": ["readers"]}, "oidc_roles"),
        ({"oidc_sites": ["=north"]}, "oidc_sites"),
        ({"oidc_ca": "/nowhere.pem"}, "oidc_ca"),
    ],
)
def test_bad_settings_are_named(provider: IdentityProvider, more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        oidc.Provider(settings(provider, **more))


def test_a_path_of_a_claim() -> None:
    claims = {"a": {"b": ["x"]}, "a.b": "dotted", "https://x.example/roles": ["y"]}
    assert oidc._claim(claims, "a.b") == "dotted"
    assert oidc._claim({"a": {"b": ["x"]}}, "a.b") == ["x"]
    assert oidc._claim(claims, "https://x.example/roles") == ["y"]
    assert oidc._claim({"a": "x"}, "a.b.c") is None
