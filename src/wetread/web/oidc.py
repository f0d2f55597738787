"""Signing in at an identity provider: OpenID Connect, authorization code with PKCE, by Authlib.

Nothing about a sign-in under way is kept here. The browser holds one secret in a cookie, and state, nonce and the PKCE
verifier are derived from it, so that only the browser that began can end it, on any of several processes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI

from wetread.clinic.access import Role
from wetread.clinic.accounts import ROLES
from wetread.config import Settings
from wetread.errors import BusyError, ConfigError, DeniedError, NotFoundError, hide

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA")
LEEWAY_S = 60  # by which the provider's clock may differ from ours
TIMEOUT_S = 10.0
_FRESH_S = 3600.0  # how long the provider's description and keys are believed
_PATIENCE_S = 30.0  # at least so long between two looks for a key that we do not know
_TURN_S = 0.5  # how long others wait while one looks
_REFUSED = "the identity provider's answer was refused; log in again"


@dataclass(frozen=True)
class Person:
    """Whom the provider vouches for, and what they are here."""

    issuer: str
    subject: str
    name: str
    role: Role
    site: str


def configured(app: FastAPI) -> bool:
    """Return whether people may sign in at a provider."""
    return app.state.oidc is not None


def of(app: FastAPI) -> Provider:
    """Return the provider that this application trusts.

    Raises
    ------
    NotFoundError
        When it trusts none.
    """
    provider: Provider | None = app.state.oidc
    if provider is None:
        raise NotFoundError("no identity provider: the setting `oidc_issuer` is empty")
    return provider


class Provider:
    """An OpenID Connect provider.

    Parameters
    ----------
    settings : Settings
        Those that begin with ``oidc_``, and `site`.

    Raises
    ------
    ConfigError
        When one of them cannot be, or the extra ``oidc`` is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            from authlib.integrations.httpx_client import OAuth2Client
        except ImportError:
            raise ConfigError("oidc_issuer: needs Authlib; pip install 'wetread[oidc]'") from None
        self._client_type = OAuth2Client
        self.settings, self.issuer = settings, settings.oidc_issuer.rstrip("/")
        _safe(self.issuer, "setting oidc_issuer")
        if not settings.oidc_client_id:
            raise ConfigError("oidc_client_id: empty; take it from the identity provider")
        self.roles = _pairs("oidc_roles", settings.oidc_roles)
        for _, role in self.roles:
            if role not in ROLES:
                raise ConfigError(f"oidc_roles: {role!r}: not one of {', '.join(ROLES)}")
        self.sites = dict(_pairs("oidc_sites", settings.oidc_sites))
        try:
            self._trust = ssl.create_default_context(cafile=settings.oidc_ca or None)
        except OSError as error:
            raise ConfigError(f"oidc_ca = {settings.oidc_ca!r}: no certificates in PEM form ({error})") from None
        self._lock = threading.Lock()
        self._known: tuple[float, dict[str, Any], Any] | None = None

    def begin(self, redirect: str) -> tuple[str, str]:
        """Return a new secret for the browser's cookie, and the address at the provider to send the browser to.

        Raises
        ------
        BusyError
            When the provider does not answer.
        """
        secret = secrets.token_urlsafe(32)
        description, _ = self._provider()
        with self._client(description, redirect) as client:
            where, _ = client.create_authorization_url(
                description["authorization_endpoint"],
                state=_derived(secret, "state"),
                nonce=_derived(secret, "nonce"),
                code_verifier=_derived(secret, "verifier"),
            )
        return secret, str(where)

    def finish(self, redirect: str, secret: str, answer: Mapping[str, str]) -> Person:
        """Return whom the provider's answer vouches for.

        Parameters
        ----------
        redirect : str
            As given to `begin`.
        secret : str
            From the browser's cookie.
        answer : mapping
            The query with which the provider sent the browser back.

        Raises
        ------
        DeniedError
            When the answer is not for this browser, is not genuine, or its person has no role or site here.
        BusyError
            When the provider does not answer.
        """
        return self._person(self._claims(redirect, secret, answer))

    def _claims(self, redirect: str, secret: str, answer: Mapping[str, str]) -> Mapping[str, Any]:
        """Exchange the code for an identity token and check everything about it."""
        from authlib.common.errors import AuthlibBaseError
        from authlib.oidc.core import CodeIDToken
        from joserfc import jwt
        from joserfc.errors import JoseError

        state = _derived(secret, "state")
        if not secret or not hmac.compare_digest(answer.get("state", "").encode(), state.encode()):
            raise DeniedError("this sign-in did not begin in this browser, or too long ago; log in again")
        if "error" in answer:
            raise DeniedError("the identity provider did not let you in")
        description, keys = self._provider()
        named = answer.get("iss")
        if named != self.issuer_in(description) and (
            named is not None or description.get("authorization_response_iss_parameter_supported")
        ):
            raise DeniedError(_REFUSED)
        try:
            with self._client(description, redirect) as client:
                token = self._ask(
                    client.fetch_token,
                    description["token_endpoint"],
                    grant_type="authorization_code",
                    code=answer.get("code", ""),
                    redirect_uri=redirect,
                    code_verifier=_derived(secret, "verifier"),
                )
            encoded = token.get("id_token") or ""
            try:
                decoded = jwt.decode(encoded, keys, algorithms=ALGORITHMS)
            except (JoseError, ValueError):
                # The provider may have changed its keys since we looked.
                decoded = jwt.decode(encoded, self._provider(anew=True)[1], algorithms=ALGORITHMS)
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                options={
                    "iss": {"essential": True, "value": self.issuer_in(description)},
                    "aud": {"essential": True, "value": self.settings.oidc_client_id},
                    "nonce": {"essential": True},
                },
                params={
                    "nonce": _derived(secret, "nonce"),
                    "client_id": self.settings.oidc_client_id,
                    "access_token": token.get("access_token"),
                },
            )
            claims.validate(leeway=LEEWAY_S)
        except (AuthlibBaseError, JoseError, ValueError, TypeError, KeyError) as error:
            # The kind only: what is in the message may be a token.
            log.warning("identity provider: answer refused: %s", type(error).__name__)
            raise DeniedError(_REFUSED) from None
        return dict(claims)

    @staticmethod
    def issuer_in(description: Mapping[str, Any]) -> str:
        """Return the issuer's name, exactly as it writes it."""
        return str(description["issuer"])

    def _person(self, claims: Mapping[str, Any]) -> Person:
        settings, subject = self.settings, str(claims.get("sub", ""))
        if not 0 < len(subject) <= 255:
            raise DeniedError(_REFUSED)
        name = _claim(claims, settings.oidc_name_claim)
        if not isinstance(name, str):
            raise DeniedError("the identity provider tells no name; see the setting oidc_name_claim")
        held = _values(_claim(claims, settings.oidc_role_claim))
        role = next((role for value, role in self.roles if value in held), None)
        if role is None:
            raise DeniedError("you have no role here; ask an administrator")
        site: str | None = settings.site
        if settings.oidc_site_claim:
            site = next(
                (self.sites[v] for v in _values(_claim(claims, settings.oidc_site_claim)) if v in self.sites), None
            )
        if site is None:
            raise DeniedError("you have no site here; ask an administrator")
        return Person(str(claims["iss"]), subject, name.strip(), Role(role), site)

    def _provider(self, *, anew: bool = False) -> tuple[dict[str, Any], Any]:
        """Return the provider's description and keys, asking again when they are old, or `anew`."""
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        # A stranger can begin as often as they like: when the provider is slow, one thread waits for it and no more.
        if not self._lock.acquire(timeout=_TURN_S):
            raise BusyError("the identity provider is being asked already; try again later")
        try:
            age = time.monotonic() - self._known[0] if self._known else float("inf")
            if self._known and age < (_PATIENCE_S if anew else _FRESH_S):
                return self._known[1:]
            with self._client({}, "") as client:
                try:
                    description = self._get(client, f"{self.issuer}/.well-known/openid-configuration")
                    # Exactly, but for the slash at the end, which some write and some do not.
                    if str(description.get("issuer", "")).rstrip("/") != self.issuer:
                        raise ValueError("issuer")
                    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                        _safe(str(description.get(name, "")), f"identity provider: {name}")
                    keys = KeySet.import_key_set(self._get(client, description["jwks_uri"]))  # type: ignore[arg-type]
                except (ValueError, KeyError, TypeError, AttributeError, JoseError, ConfigError) as error:
                    log.error("identity provider: its description cannot be used: %s", type(error).__name__)
                    raise BusyError("the identity provider cannot be used at the moment; try again later") from None
            self._known = (time.monotonic(), description, keys)
            return self._known[1:]
        finally:
            self._lock.release()

    def _get(self, client: Any, url: str) -> dict[str, Any]:
        answer = self._ask(client.request, "GET", url, withhold_token=True)
        if answer.status_code != 200:
            raise ValueError(answer.status_code)
        found = answer.json()
        if not isinstance(found, dict):
            raise TypeError(url)
        return found

    def _ask(self, call: Any, *args: Any, **more: Any) -> Any:
        """Talk to the provider; when it cannot be reached, say so in our words."""
        from httpx2 import HTTPError

        try:
            return call(*args, **more)
        except (HTTPError, ssl.SSLError) as error:
            log.error("identity provider: does not answer: %s", type(error).__name__)
            raise BusyError("the identity provider does not answer; try again later") from None

    def _client(self, description: Mapping[str, Any], redirect: str) -> Any:
        settings, offered = self.settings, description.get("token_endpoint_auth_methods_supported")
        method = "client_secret_basic" if settings.oidc_client_secret else "none"
        if settings.oidc_client_secret and offered and method not in offered:
            method = "client_secret_post"
        return self._client_type(
            client_id=settings.oidc_client_id,
            client_secret=settings.oidc_client_secret or None,
            token_endpoint_auth_method=method,
            scope=" ".join(dict.fromkeys(["openid", *settings.oidc_scopes])),
            redirect_uri=redirect,
            code_challenge_method="S256",
            verify=self._trust,
            timeout=TIMEOUT_S,
            follow_redirects=False,
        )


def _derived(secret: str, purpose: str) -> str:
    digest = hmac.digest(secret.encode(), purpose.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _pairs(setting: str, entries: list[str]) -> list[tuple[str, str]]:
    """Return ``value=meaning`` entries as pairs; the value may hold equals signs, as LDAP's names do."""
    pairs = []
    for entry in entries:
        value, equals, meaning = entry.rpartition("=")
        if not (value and equals and meaning):
            raise ConfigError(f"{setting}: {entry!r}: must be `value=meaning`")
        pairs.append((value.strip(), meaning.strip()))
    return pairs


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name, or by a path with dots into one."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _values(claim: Any) -> list[str]:
    return (
        [claim]
        if isinstance(claim, str)
        else [v for v in claim if isinstance(v, str)]
        if isinstance(claim, list)
        else []
    )


def _safe(url: str, what: str) -> None:
    """Refuse an address over which secrets would go in clear; on this machine they may."""
    parts = urlsplit(url)
    try:
        loopback = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        loopback = False
    if not parts.hostname or parts.scheme not in (("https", "http") if loopback else ("https",)):
        raise ConfigError(f"{what} = {hide(url[:200])!r}: must be an https address")
