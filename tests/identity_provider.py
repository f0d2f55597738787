"""A small real OpenID Connect provider over TLS: discovery, keys, authorization code with PKCE, signed tokens.

It knows one person, who is always signed in there. What it says can be bent: `claims` replaces or (None) removes claims
of the next identity tokens, and `bend` changes a whole answer.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from certificates import Authority
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT_ID, CLIENT_SECRET = "wetread", "the client's own secret, 1234567890"


class IdentityProvider:
    """The provider; `issuer` is its address, `ca` the authority's file, `log` the parameters of each request."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "Identity Authority")
        self.ca = str(self.authority.certificate)
        self.certificate, self.key = self.authority.issue("identity")
        self.keys: list[Any] = [RSAKey.generate_key(2048, {"kid": "first"})]
        self.issuer = ""
        self.person: dict[str, Any] = {"sub": "4711", "preferred_username": "Dr Q", "roles": ["readers"]}
        self.claims: dict[str, Any] = {}
        self.bend: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self.algorithm, self.signer = "RS256", self.keys[0]
        self.down = False
        self.codes: dict[str, dict[str, str]] = {}
        self.log: list[dict[str, str]] = []
        self.issued: list[str] = []
        self.app = Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._describe),
                Route("/keys", self._keys),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
            ]
        )

    def straight(self) -> None:
        """Say the truth again."""
        self.claims, self.bend, self.algorithm, self.down = {}, {}, "RS256", False
        self.signer = self.keys[0]
        self.person = {"sub": "4711", "preferred_username": "Dr Q", "roles": ["readers"]}

    def new_key(self) -> None:
        """Sign with another key from now on, and publish only that one."""
        self.keys = [ECKey.generate_key("P-256", {"kid": secrets.token_hex(4)})]
        self.signer, self.algorithm = self.keys[0], "ES256"

    async def _describe(self, request: Request) -> Response:
        if self.down:
            return Response("down", 503)
        description = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256"],
            "code_challenge_methods_supported": ["S256"],
        }
        return JSONResponse(self._bent("description", description))

    async def _keys(self, request: Request) -> Response:
        return JSONResponse(KeySet(self.keys).as_dict(private=False))

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.log.append(asked)
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        self.issued.append(code)
        answer = self._bent("answer", {"code": code, "state": asked["state"], "iss": self.issuer})
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(answer)}", 302)

    async def _token(self, request: Request) -> Response:
        async with request.form() as form:
            sent = {name: str(value) for name, value in form.items()}
        self.log.append(sent)
        kind, _, basic = request.headers.get("authorization", "").partition(" ")
        if kind == "Basic":
            client, secret = base64.b64decode(basic).decode().split(":", 1)
        else:
            client, secret = sent.get("client_id", ""), sent.get("client_secret", "")
        if (client, secret) != (CLIENT_ID, CLIENT_SECRET):
            return JSONResponse({"error": "invalid_client"}, 401)
        asked = self.codes.pop(sent.get("code", ""), None)  # good for one use
        digest = hashlib.sha256(sent.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["redirect_uri"] != sent.get("redirect_uri") or asked["code_challenge"] != challenge:
            return JSONResponse({"error": "invalid_grant"}, 400)
        now, access = int(time.time()), secrets.token_urlsafe(24)
        half = hashlib.sha256(access.encode()).digest()[:16]
        claims = {
            "iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": asked["nonce"],
            "at_hash": base64.urlsafe_b64encode(half).rstrip(b"=").decode(), **self.person, **self.claims,
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": self.algorithm, "kid": getattr(self.signer, "kid", None) or "first"}
        token = jwt.encode(header, claims, self.signer, algorithms=[self.algorithm])
        self.issued += [access, token]
        answer = {"access_token": access, "token_type": "Bearer", "expires_in": 300, "id_token": token}
        return JSONResponse(self._bent("token", answer))

    def _bent(self, what: str, answer: dict[str, Any]) -> dict[str, Any]:
        return self.bend.get(what, lambda same: same)(answer)


@contextmanager
def running(folder: Path) -> Iterator[IdentityProvider]:
    """Run a provider on a free port of the loopback."""
    provider = IdentityProvider(folder)
    listener = socket.create_server(("127.0.0.1", 0))
    provider.issuer = f"https://localhost:{listener.getsockname()[1]}"
    config = uvicorn.Config(provider.app, log_level="error", lifespan="off", access_log=False)
    config.load()
    config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    config.ssl.load_cert_chain(provider.certificate, provider.key)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    until = time.monotonic() + 60
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield provider
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
