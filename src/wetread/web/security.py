"""Who may talk to this server, and what a browser may do with its answers.

Every request passes `Guard`: the Host header must name this server (DNS rebinding), bodies have a limit, and
every answer carries the content policy. Every route then says which right it needs, by `require`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import traceback
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Form, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wetread.clinic import access
from wetread.clinic.access import Caller, Right
from wetread.errors import DeniedError
from wetread.web.patience import Body
from wetread.web.problems import UnauthenticatedError, also, problem

log = logging.getLogger(__name__)

BACK = "wetread_back"
STUDY = re.compile(r"/studies/[0-9a-f-]{36}", re.ASCII)  # nowhere else does the cookie lead
COOKIE = "wetread_session"  # with __Host- before it over TLS, so that no other host and no plain answer can set it
CSRF_HEADER = "X-CSRF-Token"
POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY + "; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
# Once seen over TLS, a browser never goes back to plain HTTP, for a year.
STRICT_TRANSPORT = "max-age=31536000"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:[0-9]{0,5})?", re.ASCII)
SMALL_BODY = 2**20
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware around everything.

    Parameters
    ----------
    app : ASGI application
    hosts : sequence of str
        Names by which this server may be called, besides ``localhost`` and any IP address.
    upload_limit : int
        Most bytes of a body sent to `upload_path`; all other bodies may have 1 MiB.
    upload_path : str
    limits : mapping, optional
        Beginning of a path → most bytes of a body sent there.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: list[str],
        upload_limit: int,
        upload_path: str,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self.app, self.upload_limit, self.upload_path = app, upload_limit, upload_path
        self.limits = dict(limits or {})
        self.hosts = frozenset(host.lower() for host in hosts) | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request, pass it on, add headers to the answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, started = Headers(scope=scope), False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
                if scope["scheme"] == "https":
                    answer.setdefault("Strict-Transport-Security", STRICT_TRANSPORT)
                # Nothing about patients is kept; our own scripts and styles are, as long as they are the same.
                answer.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        if not self._ours(headers.get("host", "")):
            unknown = "this server does not go by that name; add it to the setting `hosts`"
            await problem(421, unknown)(scope, receive, sending)
            return
        limit = next((most for start, most in self.limits.items() if scope["path"].startswith(start)), SMALL_BODY)
        if scope["path"] == self.upload_path:
            limit = self.upload_limit
        detail, close = f"a body of more than {limit} bytes; send less at a time", {"Connection": "close"}
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or len(announced) > 19 or int(announced) > limit:
            await problem(413, detail, close, **also(scope["path"], detail))(scope, receive, sending)
            return
        try:
            await self.app(scope, Body(receive, limit, HTTPException(413, detail, close)), sending)
        except ClientDisconnect:
            log.info("%s %s: the sender hung up", scope["method"], getattr(scope.get("route"), "path", "?"))
        except Exception as error:
            # Where it happened, not its message, which may quote a patient's data.
            path, stack = getattr(scope.get("route"), "path", "?"), "".join(traceback.format_tb(error.__traceback__))
            log.error("%s %s: %s\n%s", scope["method"], path, type(error).__name__, stack)
            if not started:
                await problem(500, "an error that was not foreseen; it is in the server's log")(scope, receive, sending)

    def _ours(self, host: str) -> bool:
        """Tell whether a Host header names this server: a name of ours, or an address, which no DNS can rebind."""
        if not _HOST.fullmatch(host):  # what looks like more would end up in the addresses that we make of it
            return False
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def csrf_token(secret: str) -> str:
    """Return what a page must send with every change made in a session."""
    return hashlib.sha256(f"csrf {secret}".encode()).hexdigest()


def cookie_name(request: Request, name: str = COOKIE) -> str:
    """Return what a cookie of ours is called on this connection."""
    return f"__Host-{name}" if request.url.scheme == "https" else name


def session_of(request: Request) -> str | None:
    """Return the secret of the session's cookie, if one was sent."""
    return request.cookies.get(cookie_name(request))


def remember(request: Request, path: str) -> str:
    """Return the Set-Cookie that brings a browser back to a study once it has logged in again; see `recalled`."""
    secure = "; Secure" if request.url.scheme == "https" else ""
    return f"{cookie_name(request, BACK)}={path}; Path=/; Max-Age=600; HttpOnly; SameSite=Lax{secure}"


def recalled(request: Request) -> str:
    """Return where a browser goes that has logged in: back to the study where it was logged out, else to the list."""
    path = request.cookies.get(cookie_name(request, BACK), "")
    return path if STUDY.fullmatch(path) else "/"


def address(request: Request) -> str:
    """Return the address that the request comes from, as far as proxies that we trust tell it."""
    return request.client.host if request.client else ""


def idle(request: Request) -> timedelta:
    """Return after which time a session that nobody uses ends."""
    return timedelta(minutes=request.app.state.clinic.settings.session_idle_minutes)


def life(request: Request) -> timedelta:
    """Return how long a session lasts at most."""
    return timedelta(hours=request.app.state.clinic.settings.session_hours)


def identify(request: Request) -> Caller:
    """Return who makes the request, by ``Authorization: Bearer`` or by the session's cookie.

    Raises
    ------
    UnauthenticatedError
        Without a valid one.
    DeniedError
        For a change in a session that did not come from our own page.
    """
    return _identify(request, request.headers.get(CSRF_HEADER, ""))


def by_form(request: Request, csrf: Annotated[str, Form(max_length=200)] = "") -> Caller:
    """Return who sends a form of ours; its hidden field `csrf` proves that it is ours."""
    return _identify(request, csrf)


def _identify(request: Request, csrf: str) -> Caller:
    database = request.app.state.clinic.database
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme:
        caller = access.identify(database, secret.strip(), kind="api") if scheme.lower() == "bearer" else None
        if caller is None:
            raise UnauthenticatedError("token: unknown, out of date or revoked; make one with `wetread token create`")
        return caller
    session = session_of(request)
    active = not _by_itself(request)
    caller = access.identify(database, session, kind="session", idle=idle(request), active=active) if session else None
    if session is None or caller is None:
        raise UnauthenticatedError("not signed in, or no longer: log in again, or use an API token")
    if request.method not in SAFE:
        _meant(request, session, csrf)
    return caller


def still(request: Request, caller: Caller) -> bool:
    """Return whether the caller is still let in, for answers that go on and on."""
    return access.still(request.app.state.clinic.database, caller, idle(request))


def saw(request: Request, caller: Caller, study: str | None = None, *, ahead: bool = False) -> None:
    """Audit that the caller looks at a study, or at the list of them, before anything of it is handed out.

    What a page fetches `ahead` nobody looks at yet; that it was fetched is noted all the same.
    """
    app = request.app.state
    deed = (
        ("study.prefetched" if ahead else "study.viewed", study)
        if study is not None
        else ("worklist.viewed", caller.site)
    )
    app.looks.note(app.clinic.database, caller.site, caller.name, caller.token, *deed)


def _by_itself(request: Request) -> bool:
    """Tell what an open page does without its reader: it follows events, refreshes the list, and renews its claim."""
    path = request.url.path
    return path == "/events" or request.headers.get("HX-Request") == "true" or path.endswith("/claim")


def ours(request: Request) -> None:
    """Refuse what another site's page makes a browser send.

    Raises
    ------
    DeniedError
        When the browser says that it was another page.
    """
    site, origin = request.headers.get("sec-fetch-site", "same-origin"), request.headers.get("origin")
    if site not in ("same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    ):
        raise DeniedError("a change must come from our own page; reload it")


def _meant(request: Request, session: str, csrf: str) -> None:
    """Refuse a change that does not prove, by origin and token, that a page of ours asked for it."""
    ours(request)
    if not hmac.compare_digest(csrf.encode(), csrf_token(session).encode()):
        raise DeniedError(f"a change must come from our own page, with the header {CSRF_HEADER}; reload the page")


def require(right: Right) -> Any:
    """Return the dependency of a route that needs this right; it gives the caller."""

    def dependency(request: Request) -> Caller:
        caller = identify(request)
        caller.require(right)
        return caller

    dependency.__name__ = f"require_{right}"
    dependency.right = right  # type: ignore[attr-defined]
    return Depends(dependency)


Uploader = Annotated[Caller, require(Right.UPLOAD)]
Viewer = Annotated[Caller, require(Right.VIEW)]
Inferrer = Annotated[Caller, require(Right.INFER)]
Reviewer = Annotated[Caller, require(Right.REVIEW)]
Operator = Annotated[Caller, require(Right.OPERATE)]
Puller = Annotated[Caller, require(Right.PULL)]
Administrator = Annotated[Caller, require(Right.ADMINISTER)]
